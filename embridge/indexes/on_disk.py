"""Builds IVF indexes whose inverted lists stay in a file of their own, out of parts: memory is bounded, and a killed build goes on.

An index is trained on a sample; then rows are added in parts, each an index file of its own beside the output, and the lists of all
parts are merged into one file, which FAISS maps into memory. A build that is repeated after an interruption uses the parts that
are there. The file of the lists has a digest of everything that determines it in its name, so an index that is replaced keeps its
own lists until the new index is renamed into place.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from embridge.errors import EmbridgeError, FaissIndexError
from embridge.files import whole_or_absent
from embridge.indexes.rows import FusedRows, PlainRows
from embridge.parts import Parts
from embridge.stores.faiss.decode import external_lists_of
from embridge.stores.faiss.file import faiss_reason, open_index_file
from embridge.stores.faiss.index_file import IndexFile

PART_BYTES = 256 << 20  # of codes and labels in a part
_MOST_ROWS = 1 << 20  # of a part: an interruption costs at most these
_CHUNK = 8192  # rows added at a time; parts begin at multiples of it, so a build that goes on adds the same chunks


class OnDisk:
    """Where the inverted lists of an index are built.

    Parameters
    ----------
    target : Path
        Where the index will be written; the caller has claimed it. Parts are in ``TARGET.parts``, lists in ``TARGET.DIGEST.lists``.
    overwrite : bool, default False
        Remove the parts of another build.
    """

    def __init__(self, target: Path, overwrite: bool = False) -> None:
        self._target, self._overwrite = target, overwrite
        self._parts: Parts | None = None

    def build(
        self,
        rows: PlainRows | FusedRows,
        train: Callable[[], Any],
        plan: dict[str, Any],
        *,
        own_ids: bool,
        progress: Callable[[int, int], None] | None = None,
    ) -> IndexFile:
        """The index of all rows; those that an interrupted build has added are not added again.

        Parameters
        ----------
        rows : PlainRows or FusedRows
        train : callable
            Returns the empty, trained index.
        plan : dict
            What determines the index besides the rows, as JSON.
        own_ids : bool
            The ids are the labels of the index; else its labels are positions.
        progress : callable, optional
            Called with (rows added, rows in all).

        Raises
        ------
        FaissIndexError
            FAISS cannot read a part.
        OutputExistsError, InterruptedOutputError
            Parts of another build are there, or a part was altered.
        """
        source = rows.collection
        plan = {**plan, "rows": len(source), "lineage": rows.lineage(), "notes": rows.notes(), "references": _digest(rows)}
        plan = json.loads(json.dumps(plan))  # as it is read back
        folder = self._target.with_name(f"{self._target.name}.parts")
        self._parts = parts = Parts(folder, plan, overwrite=self._overwrite, kind="faiss")
        if parts.find(0) is None:
            _keep(parts, 0, train())
        trained = _open(parts.find(0))
        step = _rows_of_part(trained)
        numbers = range(1, -(-len(source) // step) + 1)
        missing = next((number for number in numbers if parts.find(number) is None), None)
        if missing is not None:
            _add_parts(rows, parts, missing, step, own_ids=own_ids, progress=progress)
        name = hashlib.blake2b(json.dumps(plan, sort_keys=True).encode(), digest_size=16).hexdigest()
        _merge(trained, [parts.find(number) for number in numbers], Path(f"{self._target}.{name}.lists"))
        ids = None if own_ids else pa.chunked_array([part.column("id") for part in source.id_reader()], source.id_type)
        return IndexFile(trained, source.space, None if ids is None else ids.combine_chunks(), rows.lineage(), rows.notes())

    def finish(self) -> None:
        """Remove the parts, once the index is written or refused."""
        if self._parts is not None:
            self._parts.remove()


@contextlib.contextmanager
def unused_lists(target: Path) -> Iterator[None]:
    """On exit, remove the files of inverted lists beside an index that it does not use: of a replaced or an unfinished one."""
    try:
        yield
    finally:
        found = list(target.parent.glob(f"{glob.escape(target.name)}.{'[0-9a-f]' * 32}.lists"))
        with contextlib.suppress(EmbridgeError):  # of an index that cannot be read nothing is removed
            index = open_index_file(os.fspath(target), mapped=True) if found and target.exists() else None
            used = None if index is None else external_lists_of(index)
            for path in found:
                if used is None or os.path.realpath(path) != os.path.realpath(used):
                    path.unlink(missing_ok=True)


def _digest(rows: PlainRows | FusedRows) -> str:
    references = rows.references
    digest = hashlib.blake2b(digest_size=16)
    for side in references if isinstance(references, tuple) else (references,):
        digest.update(b"" if side is None else np.ascontiguousarray(side).tobytes())
    return digest.hexdigest()


def check_type(index: Any, factory: str) -> None:
    """Refuse types that keep anything by position outside their inverted lists.

    Raises
    ------
    FaissIndexError
    """
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    if not isinstance(inner, faiss.IndexIVF) or isinstance(inner, faiss.IndexIVFPQR):
        raise FaissIndexError(
            f"{factory!r} has no inverted lists that can be in another file. Hint: a factory string such as IVF4096,Flat or "
            "OPQ64,IVF65536,PQ64, or leave --on-disk (on_disk=True) out."
        )


def _lists(index: Any) -> Any:
    """The IVF index inside, whose type `check_type` has checked."""
    return faiss.try_extract_index_ivf(index)


def _rows_of_part(index: Any) -> int:
    size = _lists(index).code_size + 8  # with a label
    return max(min(PART_BYTES // size, _MOST_ROWS) // _CHUNK, 1) * _CHUNK


def _keep(parts: Parts, number: int, index: Any) -> None:
    with whole_or_absent(parts.new(number)) as temporary:
        faiss.write_index(index, os.fspath(temporary))
    parts.keep(number)


def _open(path: Path | None, flags: int = 0) -> Any:
    assert path is not None  # noqa: S101 - the caller has written it
    try:
        return faiss.read_index(os.fspath(path), flags)
    except RuntimeError as e:
        raise FaissIndexError(f"FAISS cannot read {str(path)!r}: {faiss_reason(e)}") from e


def _add_parts(
    rows: PlainRows | FusedRows,
    parts: Parts,
    first: int,
    step: int,
    *,
    own_ids: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Add the rows from part `first` on, and keep each part once it is full."""
    done, count = (first - 1) * step, len(rows.collection)
    index: Any = None
    for labels, vectors in _chunks(rows, done, own_ids=own_ids):
        index = _open(parts.find(0)) if index is None else index
        index.add_with_ids(vectors, labels)
        done += len(vectors)
        if done % step == 0 or done == count:
            _keep(parts, -(-done // step), index)
            index = None
        if progress is not None:
            progress(done, count)


def _chunks(rows: PlainRows | FusedRows, start: int, *, own_ids: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels and rows from the position `start` on, always in the same chunks."""
    labels, held = np.empty(_CHUNK, np.int64), np.empty((_CHUNK, rows.dim), np.float32)
    filled = 0
    for batch, vectors in rows.batches(start):
        own = batch.ids.to_numpy() if own_ids else np.arange(batch.start, batch.start + len(batch))
        at = max(start - batch.start, 0)
        while at < len(batch):
            taken = min(_CHUNK - filled, len(batch) - at)
            labels[filled : filled + taken], held[filled : filled + taken] = own[at : at + taken], vectors[at : at + taken]
            filled, at = filled + taken, at + taken
            if filled == _CHUNK:
                yield labels, held
                filled = 0
    if filled:
        yield labels[:filled], held[:filled]


def _merge(index: Any, parts: list[Path | None], path: Path) -> None:
    """Copy the lists of all parts into one file, and give them to the empty index.

    A list is its codes and then its labels, as `OnDiskInvertedLists` expects them; its own merging prints to the standard output.
    """
    lists = _lists(index)
    opened = [_open(part, faiss.IO_FLAG_MMAP) for part in parts]
    held: list[Any] = [_lists(part).invlists for part in opened]
    sizes = np.zeros(lists.nlist, np.uint64)
    with whole_or_absent(path) as temporary, open(temporary, "r+b") as file:
        for number in range(lists.nlist):
            filled = [(part, size) for part in held if (size := part.list_size(number))]
            sizes[number] = sum(size for _, size in filled)
            for part, size in filled:
                file.write(faiss.rev_swig_ptr(part.get_codes(number), size * lists.code_size))
            for part, size in filled:
                file.write(faiss.rev_swig_ptr(part.get_ids(number), size))
    merged = faiss.OnDiskInvertedLists(lists.nlist, lists.code_size, os.path.realpath(path))
    merged.read_only = True
    merged.set_all_lists_sizes(faiss.swig_ptr(sizes))
    merged.totsize = os.path.getsize(path)
    merged.do_mmap()
    merged.this.disown()
    lists.replace_invlists(merged, True)
    index.ntotal = lists.ntotal = int(sizes.sum())


__all__ = ["OnDisk", "check_type", "unused_lists"]
