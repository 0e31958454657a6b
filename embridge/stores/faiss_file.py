"""FAISS index files with their sidecars: read without trust, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embridge.errors import (
    FaissIndexError,
    MissingDependencyError,
    MissingFileError,
    UnreadableFileError,
)
from embridge.files import fingerprint, whole_or_absent
from embridge.stores.collection import normalise_ids
from embridge.types import Space

try:
    import faiss
except ImportError as e:
    raise MissingDependencyError.of("FAISS", "This", "cpu]' or 'embridge[gpu") from e

_TABLE_BYTES = 2 << 30
_MAPPED_FROM = 64 << 20  # smaller files are loaded: FAISS maps no better, and crashes where a mapped file ends within its header


def json_path(path: str | os.PathLike[str]) -> Path:
    """The sidecar with space and lineage."""
    return Path(f"{os.fspath(path)}.json")


def ids_path(path: str | os.PathLike[str]) -> Path:
    """The sidecar with ids by position."""
    return Path(f"{os.fspath(path)}.ids.parquet")


@dataclass(frozen=True, eq=False)
class IndexFile:
    """A FAISS index as read from its file and sidecars.

    Attributes
    ----------
    index : faiss.Index
    space : Space or None
        What the sidecar says; a bare file says nothing.
    ids : pyarrow.Array or None
        By the index's own int64 label, where the index does not hold the ids itself.
    lineage : dict
    notes : dict
        What else the sidecar says: how scores are to be read (``scores``), that a hubness bias is stored (``hubness``), that
        translated rows carry an offset (``calibration``), whether vectors may be added (``adds``), how it was migrated
        (``migration``).
    """

    index: Any
    space: Space | None
    ids: pa.Array | None
    lineage: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def biased(self) -> bool:
        """True where the index's own last column is added to scores (hubness, calibration): then `Space.dim` is not ``index.d``."""
        return (
            ("hubness" in self.notes or "calibration" in self.notes)
            and self.space is not None
            and self.index.d == self.space.dim + 1
        )

    @property
    def dim(self) -> int:
        """Width of the vectors, without a bias."""
        return self.index.d - self.biased


def read_index_file(path: str, *, mapped: bool = False) -> IndexFile:
    """Read an index and its sidecars.

    Parameters
    ----------
    path : str
    mapped : bool, default False
        Map what FAISS can map of a file over 64 MiB instead of loading it. Never write into such an index.

    Raises
    ------
    MissingFileError, UnreadableFileError
        Nothing there, or not a FAISS index.
    FaissIndexError
        The sidecar holds another number of ids than the index.
    """
    if not os.path.isfile(path):
        raise MissingFileError.at(path)
    flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY if mapped and os.path.getsize(path) >= _MAPPED_FROM else 0
    try:
        index = _read(path, flags)
    except (RuntimeError, MemoryError) as e:
        raise UnreadableFileError.at(path, "a FAISS index", faiss_reason(e)) from e
    restore_transforms(index)
    if fault := inconsistency(index):
        raise UnreadableFileError.at(path, "a FAISS index", fault)
    space, ids, lineage, notes = None, None, {}, {}
    if json_path(path).exists():
        try:
            sidecar = json.loads(json_path(path).read_text())
            space, lineage = Space.from_dict(sidecar["space"]), dict(sidecar.get("lineage", {}))
            notes = {key: value for key, value in sidecar.items() if key not in ("space", "lineage")}
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as e:
            raise UnreadableFileError.at(str(json_path(path)), "the sidecar of an index", e) from e
    if ids_path(path).exists():
        try:
            column = pq.read_table(ids_path(path), columns=["id"]).column("id").combine_chunks()
        except (pa.ArrowException, OSError) as e:
            raise UnreadableFileError.at(str(ids_path(path)), "the ids of an index", e) from e
        ids = normalise_ids(column, repr(path))
        if len(ids) < index.ntotal:
            raise FaissIndexError.sidecar(repr(path), len(ids), index.ntotal)
    return IndexFile(index, space, ids, lineage, notes)


def _read(path: str, flags: int) -> Any:
    size = os.path.getsize(path)
    try:
        with _limited(size):
            return faiss.read_index(path, flags)
    except RuntimeError as e:
        # The tables of IVFPQ are made while reading, from lists and codebooks that the file does hold: FAISS's own limit for them.
        if "precomputed_table" not in str(e):
            raise
        with _limited(size + _TABLE_BYTES):
            return faiss.read_index(path, flags)


@contextlib.contextmanager
def _limited(size: int) -> Iterator[None]:
    """Let FAISS believe no header that claims more than its file holds: it would allocate terabytes, or run for hours."""
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):  # FAISS before 1.14
        yield
        return
    before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    faiss.set_deserialization_vector_byte_limit(max(size, 1))
    faiss.set_deserialization_loop_limit(max(size, 1))
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(before[0])
        faiss.set_deserialization_loop_limit(before[1])


def inconsistency(index: Any) -> str | None:
    """What in an index that FAISS did read contradicts itself, or None: searching such an index may end the process."""
    index = faiss.downcast_index(index)
    n, kind = index.ntotal, type(index).__name__
    if n < 0 or index.d < 1:
        return f"its {kind} claims {n:,} vectors of {index.d:,} dimensions"
    inner: list[tuple[Any, int]] = []
    if isinstance(index, faiss.IndexIDMap):
        if index.id_map.size() != n:
            return f"its {kind} claims {n:,} vectors, but holds {index.id_map.size():,} labels"
        inner = [(index.index, n)]
    elif isinstance(index, faiss.IndexPreTransform):
        inner = [(index.index, n)]
    elif isinstance(index, faiss.IndexRefine):
        inner = [(index.base_index, n), (index.refine_index, n)]
    elif isinstance(index, faiss.IndexHNSW | faiss.IndexNSG):
        inner = [(index.storage, n)] if index.storage is not None else []
    elif isinstance(index, faiss.IndexIVF):
        held = sum(index.invlists.list_size(i) for i in range(index.nlist)) if index.invlists is not None else 0
        if held != n:
            return f"its {kind} claims {n:,} vectors, but its lists hold {held:,}"
        inner = [(index.quantizer, index.nlist)]
    elif hasattr(index, "codes") and hasattr(index, "code_size") and index.codes.size() != n * index.code_size:
        return f"its {kind} claims {n:,} vectors of {index.code_size:,} bytes, but holds {index.codes.size():,} bytes"
    for part, expected in inner:
        if part.ntotal != expected:
            return f"its {kind} claims {expected:,} vectors, but {type(faiss.downcast_index(part)).__name__} holds {part.ntotal:,}"
        if fault := inconsistency(part):
            return fault
    return None


def faiss_reason(error: Exception) -> str:
    """What FAISS says went wrong, without the C++ signature and the line of its source that it happened in."""
    text = re.sub(r"^Error in .*? at \S+:\d+: (Error: )?", "", str(error).strip(), flags=re.DOTALL)
    if "deserialization_" in text:  # one of the limits under which a file is read, see `_limited`
        return "it claims more data than the file holds"
    return " ".join(text.split())


def write_index_file(path: str, content: IndexFile) -> None:
    """Write an index and its sidecars; the index itself is renamed into place last, so that it is never there without them.

    Sidecars of an earlier index of that name are replaced or removed, before the new one stands there.
    """
    with contextlib.ExitStack() as stack:
        index_to = stack.enter_context(whole_or_absent(path))
        faiss.write_index(content.index, os.fspath(index_to))
        if content.space is not None:
            json_to = stack.enter_context(whole_or_absent(json_path(path)))
            sidecar = {"space": content.space.to_dict(), "lineage": content.lineage, **content.notes}
            json_to.write_text(json.dumps(sidecar, indent=2) + "\n")
        if content.ids is not None:
            ids_to = stack.enter_context(whole_or_absent(ids_path(path)))
            pq.write_table(pa.table({"id": content.ids}), ids_to)
        # An index that is replaced goes first: one of the old and sidecars of the new must never stand together.
        for stale in (Path(path), json_path(path), ids_path(path)):
            stale.unlink(missing_ok=True)


def restore_transforms(index: Any) -> None:
    """Make every linear transform of a loaded index tell whether it is orthonormal.

    After `read_index` all of them claim to be, and reconstruction through one that is not is silently wrong (FAISS 1.15).
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap):
        restore_transforms(index.index)
    elif isinstance(index, faiss.IndexPreTransform):
        for i in range(index.chain.size()):
            transform = faiss.downcast_VectorTransform(index.chain.at(i))
            if isinstance(transform, faiss.LinearTransform):
                transform.set_is_orthonormal()
        restore_transforms(index.index)


def index_fingerprint(path: str) -> str:
    """Content hash of an index and its ids."""
    return fingerprint(path, *([ids_path(path)] if ids_path(path).exists() else []))
