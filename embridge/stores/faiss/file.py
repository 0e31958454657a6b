"""FAISS index files: checked when read, and written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import faiss

from embridge.errors import (
    EmbridgeError,
    FaissIndexError,
    MissingFileError,
    UnreadableFileError,
)
from embridge.files import fingerprint, whole_or_absent
from embridge.stores.faiss.checks import inconsistency
from embridge.stores.faiss.decode import holds_lists, keeps_labels, labels_of
from embridge.stores.faiss.index_file import IndexFile
from embridge.stores.faiss.lists import check_external_lists
from embridge.stores.faiss.sidecars import (
    Sidecars,
    current_ids_paths,
    is_pending,
    read_sidecars,
    settle,
    write_sidecars,
)

_Read = TypeVar("_Read")
# Bytes beyond the size of the file, by the text of FAISS's error. The tables of IVFPQ are computed while reading, from lists and
# codebooks in the file. A transform without a matrix (Pad) is limited by the matrix that it would have.
_SPARE = {"precomputed_table": 2 << 30, "d_in * d_out": 64 << 20}
_MAPPED_FROM = (
    64 << 20
)  # smaller files are loaded: mapping is not faster, and FAISS crashes where a mapped file ends within its header
_TRIES = 20  # of reading an index that is being replaced
_READING = threading.Lock()  # FAISS's limits for reading are global
# Errors of FAISS and its wrapper on damaged files, including assertions in its Python code and overflows in SWIG.
FAISS_ERRORS = (RuntimeError, MemoryError, AssertionError, TypeError, ValueError, OverflowError, IndexError, AttributeError)


def read_index_file(path: str, *, mapped: bool = False, external_lists: bool = False) -> IndexFile:
    """Read an index and its sidecars, all of one version, also while another process writes.

    Parameters
    ----------
    path : str
    mapped : bool, default False
        Memory-map a file over 64 MiB where FAISS can, instead of loading it. Never write into such an index.
    external_lists : bool, default False
        Inverted lists in another file may lie outside the folder of the index.

    Raises
    ------
    MissingFileError, UnreadableFileError
        Missing, not a FAISS index, or a damaged sidecar.
    FaissIndexError
        The sidecars belong to another index, or the number of ids is not that of the vectors; or its inverted lists are in a file
        that does not match the index.
    """
    return _unchanged(path, lambda: _read_once(path, mapped=mapped, external_lists=external_lists))


def _unchanged(path: str, read: Callable[[], _Read]) -> _Read:
    """The result of `read`, repeated until the index was not replaced meanwhile."""
    for attempt in range(_TRIES):
        before, pending = file_identity(path), is_pending(path)
        try:
            found = read()
        except (EmbridgeError, OSError) as e:
            # sidecars that were being renamed are found at the second try; those of a killed writer remain
            if file_identity(path) == before and (not pending or attempt > 1):
                if isinstance(e, EmbridgeError):
                    raise
                raise UnreadableFileError.at(path, "a FAISS index", e.strerror or e) from e
        else:
            if file_identity(path) == before:
                return found
    raise FaissIndexError(f"{path!r} is replaced repeatedly while it is read. Hint: try later.")


def file_identity(path: str) -> tuple[int, ...]:
    """Values that change when the file is replaced or rewritten."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        raise MissingFileError.at(path) from None
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableFileError.at(path, "a FAISS index", "it is not a regular file")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read_once(path: str, *, mapped: bool, external_lists: bool) -> IndexFile:
    identity = file_identity(path)
    index = open_index_file(path, mapped=mapped, external_lists=external_lists)
    sidecars = read_sidecars(path)
    _check_labels(path, index, sidecars)
    return IndexFile(index, sidecars.space, sidecars.ids, sidecars.lineage, sidecars.notes, sidecars.bound, identity)


def open_index_file(path: str, *, mapped: bool = False, external_lists: bool = False) -> Any:
    """The FAISS index of one file, checked to be safe to search, without its sidecars.

    Raises
    ------
    UnreadableFileError, FaissIndexError
    """
    check_external_lists(path, allowed=external_lists)
    flags = faiss.IO_FLAG_READ_ONLY
    if mapped and os.path.getsize(path) >= _MAPPED_FROM:
        flags |= faiss.IO_FLAG_MMAP_IFC
    try:
        index = _read(path, flags)
        if index is None:
            raise UnreadableFileError.at(path, "a FAISS index", "it holds none")
        restore_transforms(index)
        fault = inconsistency(index)
    except FAISS_ERRORS as e:
        if isinstance(e, EmbridgeError):
            raise
        raise UnreadableFileError.at(path, "a FAISS index", faiss_reason(e)) from e
    if fault:
        raise UnreadableFileError.at(path, "a FAISS index", fault)
    return index


def _check_labels(path: str, index: Any, sidecars: Sidecars) -> None:
    """Check that labels are in the id table, and that inverted lists do not hold -1, which FAISS uses for an empty place."""
    if sidecars.count is not None and sidecars.count != index.ntotal:
        raise FaissIndexError(
            f"The sidecars of {path!r} belong to {sidecars.count:,} vectors, but the index holds {index.ntotal:,}."
        )
    labeled = keeps_labels(index)
    if sidecars.ids is None:
        if labeled and holds_lists(index) and (labels_of(index) == -1).any():
            raise FaissIndexError(
                f"{path!r} has a vector of id -1 in its inverted lists, which is how FAISS marks an empty place, so searches would "
                "lose it. Hint: give that vector another id."
            )
        return
    if len(sidecars.ids) < index.ntotal or (len(sidecars.ids) > index.ntotal and not labeled):
        raise FaissIndexError(
            f"The id sidecar of {path!r} holds {len(sidecars.ids):,} ids, but the index holds {index.ntotal:,} vectors."
        )


def _read(path: str, flags: int) -> Any:
    limit, spare = os.path.getsize(path), dict(_SPARE)
    while True:
        try:
            with _limited(limit):
                return faiss.read_index(path, flags)
        except RuntimeError as e:
            reason = next((text for text in spare if text in str(e)), None)
            if reason is None:
                raise
            limit += spare.pop(reason)


@contextlib.contextmanager
def _limited(size: int) -> Iterator[None]:
    """Limit FAISS to sizes that the file can hold: with a damaged header it could allocate terabytes, or run for hours."""
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):  # FAISS before 1.14
        yield
        return
    with _READING:
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(max(size, 1))
        faiss.set_deserialization_loop_limit(max(size, 1))
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])


def faiss_reason(error: Exception) -> str:
    """The message of FAISS, without the C++ signature and line of its source."""
    text = re.sub(r"^Error in .*? at \S+:\d+: (Error: )?", "", str(error).strip(), flags=re.DOTALL)
    if "deserialization_" in text:  # one of the limits under which a file is read, see `_limited`
        return "it claims more data than the file holds"
    return " ".join(text.split()) or type(error).__name__


def write_index_file(path: str, content: IndexFile) -> None:
    """Write an index and its sidecars together: readers see all of the old or all of the new ones, also after an interruption.

    The new sidecars, which name the fingerprint of the new index, are written under hidden names. The rename of the index is the
    commit: until then readers match the old sidecars, from then on the new ones. Then they get their final names (`settle`). The
    caller holds the lock of the output.

    Raises
    ------
    DiskFullError, OutputError
        It cannot be written.
    FaissIndexError
        FAISS cannot write such an index, or its output cannot be read again. No file is left.
    """
    settle(path)
    try:
        with whole_or_absent(path) as temporary:
            _write(content.index, temporary)
            _prove(path, content, temporary)
            write_sidecars(path, fingerprint(temporary), content.index.ntotal, content)
    finally:
        settle(path)


def _write(index: Any, temporary: Path) -> None:
    """Write through a Python file: FAISS's own writer does not report errors when it closes the file."""
    with open(temporary, "r+b") as file:
        failures: list[OSError] = []

        def keep(data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as e:
                failures.append(e)
                return 0

        try:
            faiss.write_index(index, faiss.PyCallbackIOWriter(keep, 1 << 20))
        except RuntimeError as e:
            if failures:
                raise failures[0] from e
            raise FaissIndexError(f"FAISS cannot write a {type(faiss.downcast_index(index)).__name__}: {faiss_reason(e)}") from e


def _prove(path: str, content: IndexFile, temporary: Path) -> None:
    kind = type(faiss.downcast_index(content.index)).__name__
    try:
        count = open_index_file(os.fspath(temporary), mapped=True).ntotal
    except EmbridgeError as e:
        reason = str(e).replace(str(temporary), path)
        raise FaissIndexError(f"{path!r} is not written: FAISS writes a {kind} that cannot be read again. {reason}") from e
    if count != content.index.ntotal:
        raise FaissIndexError(
            f"{path!r} is not written: FAISS writes {count:,} of the {content.index.ntotal:,} vectors of a {kind}."
        )


def restore_transforms(index: Any) -> None:
    """Set in every linear transform of a loaded index whether it is orthonormal.

    After `read_index` all of them claim to be, and reconstruction through one that is not is silently wrong (FAISS 1.15).
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap):
        restore_transforms(index.index)
    elif isinstance(index, faiss.IndexRefine):
        restore_transforms(index.base_index)
    elif isinstance(index, faiss.IndexPreTransform):
        for i in range(index.chain.size()):
            transform = faiss.downcast_VectorTransform(index.chain.at(i))
            if isinstance(transform, faiss.LinearTransform) and transform.A.size() == transform.d_in * transform.d_out:
                transform.set_is_orthonormal()
        restore_transforms(index.index)


def index_fingerprint(path: str) -> str:
    """Content hash of an index and its ids."""
    return _unchanged(path, lambda: fingerprint(path, *current_ids_paths(path)))
