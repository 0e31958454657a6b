"""The sidecars of a FAISS index: bound to it by its fingerprint, and replaced together with it.

``X.faiss.json`` holds space and lineage, ``X.faiss.ids.parquet`` ids by position. Both name the fingerprint (content hash) and the
count of the index they belong to, the first also the fingerprint of the second. New ones are written as ``.X.faiss.json.next`` and
``.X.faiss.ids.parquet.next`` before the index is renamed into place; a reader takes whichever names the index it sees.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embridge.errors import BadIdsError, EmbridgeError, FaissIndexError, UnreadableFileError
from embridge.files import fingerprint, sync_folder, whole_or_absent
from embridge.stores.faiss.index_file import IndexFile
from embridge.stores.id_types import normalize_ids
from embridge.types import Space

_KEY = b"embridge.index"  # of the id table's metadata
_LARGEST = 64 << 20  # bytes of a JSON sidecar
_DAMAGE = (
    pa.ArrowException, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, MemoryError,
)  # fmt: skip
"""What JSON and Parquet that are damaged, or hold other values than they should, raise."""
_HINT = "Hint: build the index again, or remove its sidecars to open it bare, with its own labels as ids."


def json_path(path: str | os.PathLike[str]) -> Path:
    """The sidecar with space and lineage."""
    return Path(f"{os.fspath(path)}.json")


def ids_path(path: str | os.PathLike[str]) -> Path:
    """The sidecar with ids by position."""
    return Path(f"{os.fspath(path)}.ids.parquet")


def _next(path: Path) -> Path:
    return path.with_name(f".{path.name}.next")


@dataclass(frozen=True, eq=False)
class Sidecars:
    """The content of the sidecars of an index; see `IndexFile` for attributes with the same names.

    Attributes
    ----------
    count : int or None
        Number of vectors of the index that they belong to.
    """

    space: Space | None = None
    ids: pa.Array | None = None
    lineage: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    count: int | None = None
    bound: bool = False


def read_sidecars(path: str) -> Sidecars:
    """The sidecars that belong to an index; none for a bare one.

    Raises
    ------
    UnreadableFileError
        Damaged, or not sidecars of an index.
    FaissIndexError
        They belong to another index, or not to each other.
    BadIdsError
        Ids that are null or repeated.
    """
    if not _there(path):
        return Sidecars()
    own = fingerprint(path)
    manifest, pending = _manifest(path, own)
    binding = manifest.get("index")
    expected = binding["ids"] if binding else None
    table = _id_table(path, own, binding)
    if expected is not None and table is None:
        raise FaissIndexError(f"The ids of {path!r} ({ids_path(path)}) are missing or belong to another index. {_HINT}")
    if table is None and not pending and os.path.lexists(ids_path(path)):
        raise FaissIndexError(f"The ids in {str(ids_path(path))!r} belong to another index than {path!r}. {_HINT}")
    ids, count = (None, binding["count"] if binding else None) if table is None else _read_ids(path, table)
    notes = {key: value for key, value in manifest.items() if key not in ("space", "lineage", "index")}
    if notes and not binding:
        raise FaissIndexError(
            f"{str(json_path(path))!r} does not name the index it belongs to, but has more entries than its space "
            f"({', '.join(sorted(notes))}). {_HINT}"
        )
    space = manifest.get("space")
    bound = bool(binding) or table is not None
    return Sidecars(space, ids, manifest.get("lineage", {}), notes, count, bound)


def current_ids_paths(path: str) -> list[Path]:
    """The path of the id table of an index; empty where there is none."""
    if not _there(path):
        return []
    own = fingerprint(path)
    table = _id_table(path, own, _manifest(path, own)[0].get("index"))
    return [] if table is None else [table]


def is_pending(path: str) -> bool:
    """True while new sidecars do not have their final names."""
    return any(os.path.lexists(_next(name)) for name in (json_path(path), ids_path(path)))


def _there(path: str) -> bool:
    files = (json_path(path), ids_path(path))
    return any(os.path.lexists(file) for name in files for file in (name, _next(name)))


def _manifest(path: str, own: str) -> tuple[dict[str, Any], bool]:
    """The content of the JSON sidecar, and whether it still has its hidden name."""
    with contextlib.suppress(EmbridgeError):  # ignore an unfinished one of a killed writer
        found = _read_json(_next(json_path(path)), path)
        if found.get("index", {}).get("fingerprint") == own:
            return found, True
    if not os.path.lexists(json_path(path)):
        return {}, False
    found = _read_json(json_path(path), path)
    if "index" in found and found["index"]["fingerprint"] != own:
        raise FaissIndexError(f"{str(json_path(path))!r} belongs to another index than the one in {path!r}. {_HINT}")
    return found, False


def _read_json(name: Path, path: str) -> dict[str, Any]:
    try:
        sidecar = json.loads(_regular(name, _LARGEST).read_bytes())
        binding = sidecar.get("index")
        if binding is not None:
            binding = {"fingerprint": str(binding["fingerprint"]), "count": int(binding["count"]), "ids": binding["ids"]}
        space = Space.from_dict(sidecar["space"])
        lineage = {str(key): str(value) for key, value in sidecar.get("lineage", {}).items()}
        _check_notes(sidecar, space)
    except EmbridgeError as e:
        raise UnreadableFileError.at(str(name), "the sidecar of an index", e) from e
    except _DAMAGE as e:
        reason = f"it lacks {e}" if isinstance(e, KeyError) else e
        raise UnreadableFileError.at(str(name), "the sidecar of an index", reason) from e
    notes = {key: value for key, value in sidecar.items() if key != "index"}
    return {**notes, "space": space, "lineage": lineage, **({"index": binding} if binding else {})}


def _check_notes(notes: dict[str, Any], space: Space) -> None:
    """Check that the notes have what a search reads, with the right types and widths."""
    if "scores" in notes:
        scores = notes["scores"]
        for name in ("offset", "centre"):
            if name in scores:
                np.asarray(scores[name], np.float32).reshape(space.dim)
        if "scale" in scores:
            float(scores["scale"]), scores["centre"]
    if "calibration" in notes:
        float(notes["calibration"]["offset"])
    if not isinstance(notes.get("hubness", {}), dict):
        raise TypeError("hubness is not an object")
    if "fusion" in notes:
        _check_fusion(notes)


def _check_fusion(notes: dict[str, Any]) -> None:
    fusion = notes["fusion"]
    Space.from_dict(fusion["old_space"])
    references, hubness = fusion["references"], fusion["hubness"]
    if not 0 <= float(fusion["weight"]) <= 1 or hubness not in ("none", "old", "new", "both"):
        raise ValueError("the fusion needs a weight in [0, 1], and the sides with hubness correction")
    if references is None and hubness != "none":
        raise ValueError("the fusion was made without reference queries")
    if references is not None:
        old, new = (int(count) for count in references)
        if min(old, new) < 1:
            raise ValueError("the fusion was made with no reference queries")
    if "hubness" in notes or "calibration" in notes or "scores" in notes:
        raise ValueError("a fused index has no hubness bias, calibration or correction of scores of its own")


def _id_table(path: str, own: str, binding: dict[str, Any] | None) -> Path | None:
    """The id table of an index: there may be two while it is replaced."""
    if binding is not None and binding["ids"] is None:
        return None
    for name in (_next(ids_path(path)), ids_path(path)):
        if os.path.lexists(name):
            try:
                metadata = pq.read_metadata(_regular(name)).metadata or {}
                found = json.loads(metadata.get(_KEY, b"{}"))
                if found.get("fingerprint") == own and (binding is None or binding["ids"] == fingerprint(name)):
                    return name
            except _DAMAGE as e:
                if name == ids_path(path):  # the other one may be unfinished, or renamed by now
                    raise UnreadableFileError.at(str(name), "the ids of an index", e) from e
    return None


def _read_ids(path: str, name: Path) -> tuple[pa.Array, int]:
    try:
        with pq.ParquetFile(name) as file:
            count = int(json.loads(file.metadata.metadata[_KEY])["count"])
            column = file.read(columns=["id"]).column("id").combine_chunks()
        column.validate(full=True)
    except _DAMAGE as e:
        raise UnreadableFileError.at(str(name), "the ids of an index", e) from e
    ids = normalize_ids(column, repr(path))
    if ids.null_count:
        raise BadIdsError.null(repr(str(name)), ids.null_count)
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = ids.value_counts()
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        raise BadIdsError.duplicate(repr(str(name)), repeated.to_pylist())
    return ids, count


def _regular(name: Path, most: int | None = None) -> Path:
    """The same path, after checking that it is a regular file: reading a FIFO would block."""
    found = os.stat(name)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is not a regular file")
    if most is not None and found.st_size > most:
        raise OSError(f"it has {found.st_size:,} bytes")
    return name


def write_sidecars(path: str, own: str, count: int, content: IndexFile) -> None:
    """Write the sidecars of an index that is about to be renamed into place, under their hidden names."""
    if content.space is None:
        raise ValueError("An index is written with the space of its vectors.")
    _check_notes(content.notes, content.space)
    binding: dict[str, Any] = {"fingerprint": own, "count": count, "ids": None}
    if content.ids is not None:
        name = _next(ids_path(path))
        with whole_or_absent(name) as temporary:
            table = pa.table({"id": content.ids})
            pq.write_table(table.replace_schema_metadata({_KEY: json.dumps({"fingerprint": own, "count": count})}), temporary)
        binding["ids"] = fingerprint(name)
    sidecar = {"space": content.space.to_dict(), "lineage": content.lineage, **content.notes, "index": binding}
    with whole_or_absent(_next(json_path(path))) as temporary:
        temporary.write_text(json.dumps(sidecar, indent=2) + "\n")


def settle(path: str) -> None:
    """Rename new sidecars where their index was committed; else remove them.

    Called by the writer after its commit, or by the next one after an interruption; readers find matching sidecars after each
    step. The caller holds the lock of the output, so every temporary file of a sidecar is from a killed writer.
    """
    pending, pending_ids = _next(json_path(path)), _next(ids_path(path))
    for name in (pending, pending_ids):
        for left in name.parent.glob(f".{glob.escape(name.name)}.*-*.tmp"):
            left.unlink(missing_ok=True)
    if not os.path.lexists(pending) and not os.path.lexists(pending_ids):
        return
    manifest: dict[str, Any] = {}
    with contextlib.suppress(EmbridgeError, OSError):
        own = fingerprint(path)
        found = _read_json(pending, path)
        manifest = found if found.get("index", {}).get("fingerprint") == own else {}
    if manifest:
        if manifest["index"]["ids"] is None:
            ids_path(path).unlink(missing_ok=True)
        elif os.path.lexists(pending_ids):
            os.replace(pending_ids, ids_path(path))
        os.replace(pending, json_path(path))
    for name in (pending, pending_ids):
        name.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a missing folder is reported by the writer
        sync_folder(Path(path).parent)


__all__ = ["Sidecars", "current_ids_paths", "ids_path", "is_pending", "json_path", "read_sidecars", "settle", "write_sidecars"]
