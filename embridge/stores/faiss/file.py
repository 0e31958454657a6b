"""FAISS index files: read without trust, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import faiss
import pyarrow as pa

from embridge.errors import (
    EmbridgeError,
    FaissIndexError,
    MissingFileError,
    UnreadableFileError,
)
from embridge.files import fingerprint, whole_or_absent
from embridge.stores.faiss.checks import inconsistency
from embridge.stores.faiss.decode import holds_lists, keeps_labels, labels_of
from embridge.stores.faiss.lists import check_external_lists
from embridge.stores.faiss.sidecars import (
    Sidecars,
    current_ids_paths,
    is_pending,
    read_sidecars,
    settle,
    write_sidecars,
)
from embridge.types import Space

_Read = TypeVar("_Read")
_TABLE_BYTES = 2 << 30
_MAPPED_FROM = 64 << 20  # smaller files are loaded: FAISS maps no better, and crashes where a mapped file ends within its header
_TRIES = 20  # of reading an index that is being replaced
_READING = threading.Lock()  # FAISS's limits for reading are global
# What FAISS and its wrapper raise on a damaged file: assertions of its Python part and overflows of SWIG included.
FAISS_ERRORS = (RuntimeError, MemoryError, AssertionError, TypeError, ValueError, OverflowError, IndexError, AttributeError)


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
    bound : bool
        The sidecars name the fingerprint of this index; what they say of all its rows was established when it was written.
    identity : tuple
        Of the file that was read (`file_identity`).
    """

    index: Any
    space: Space | None
    ids: pa.Array | None
    lineage: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    bound: bool = True
    identity: tuple[int, ...] = ()

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


def read_index_file(path: str, *, mapped: bool = False, external_lists: bool = False) -> IndexFile:
    """Read an index and its sidecars: all of one generation, whatever a writer does meanwhile.

    Parameters
    ----------
    path : str
    mapped : bool, default False
        Map what FAISS can map of a file over 64 MiB instead of loading it. Never write into such an index.
    external_lists : bool, default False
        Inverted lists in another file may lie outside the folder of the index.

    Raises
    ------
    MissingFileError, UnreadableFileError
        Nothing there, or not a FAISS index, or a damaged sidecar.
    FaissIndexError
        The sidecars belong to another index, or hold other ids than the index has vectors; or its inverted lists lie in a file
        that is not what the index claims.
    """
    return _unchanged(path, lambda: _read_once(path, mapped=mapped, external_lists=external_lists))


def _unchanged(path: str, read: Callable[[], _Read]) -> _Read:
    """What `read` gives while the index stays the same file; a reader never sees two generations."""
    for attempt in range(_TRIES):
        before, pending = file_identity(path), is_pending(path)
        try:
            found = read()
        except (EmbridgeError, OSError) as e:
            # sidecars that were getting their own names are found at the second try; those that a killed writer left stay
            if file_identity(path) == before and (not pending or attempt > 1):
                if isinstance(e, EmbridgeError):
                    raise
                raise UnreadableFileError.at(path, "a FAISS index", e.strerror or e) from e
        else:
            if file_identity(path) == before:
                return found
    raise FaissIndexError(f"{path!r} is replaced again and again while it is read. Hint: try later.")


def file_identity(path: str) -> tuple[int, ...]:
    """What changes when another file takes that name, or it is written anew."""
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
    """The FAISS index of one file, proven to be safe to search; its sidecars are not looked at.

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
    """Labels must lead into the id table, and FAISS's own lists may not hold -1, which it takes for an empty place."""
    if sidecars.count is not None and sidecars.count != index.ntotal:
        raise FaissIndexError(f"The sidecars of {path!r} are of {sidecars.count:,} vectors, but the index holds {index.ntotal:,}.")
    labelled = keeps_labels(index)
    if sidecars.ids is None:
        if labelled and holds_lists(index) and (labels_of(index) == -1).any():
            raise FaissIndexError(
                f"{path!r} has a vector of id -1 in its inverted lists, which is how FAISS marks an empty place, so searches would "
                "lose it. Hint: give that vector another id."
            )
        return
    if len(sidecars.ids) < index.ntotal or (len(sidecars.ids) > index.ntotal and not labelled):
        raise FaissIndexError.sidecar(repr(path), len(sidecars.ids), index.ntotal)


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
    """What FAISS says went wrong, without the C++ signature and the line of its source that it happened in."""
    text = re.sub(r"^Error in .*? at \S+:\d+: (Error: )?", "", str(error).strip(), flags=re.DOTALL)
    if "deserialization_" in text:  # one of the limits under which a file is read, see `_limited`
        return "it claims more data than the file holds"
    return " ".join(text.split()) or type(error).__name__


def write_index_file(path: str, content: IndexFile) -> None:
    """Write an index and its sidecars as one: readers, and whoever comes after a kill, see all of the old or all of the new.

    The new sidecars, which name the fingerprint of the new index, are written under hidden names. The rename of the index is the
    commit: until then readers match the old sidecars, from then on the new ones. Then they get their own names (`settle`). The
    caller holds the lock of the output.

    Raises
    ------
    DiskFullError, OutputError
        It cannot be written.
    FaissIndexError
        FAISS cannot write such an index, or what it wrote cannot be read again. Nothing is left.
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
    """Through a Python file: FAISS's own writer does not report what fails when it closes the file."""
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
    """Make every linear transform of a loaded index tell whether it is orthonormal.

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
