"""FAISS index files with their sidecars, and their vectors as a collection."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embridge.errors import (
    BadIdsError,
    CollectionError,
    FaissIndexError,
    MissingDependencyError,
    MissingFileError,
    SpaceMismatchError,
    UnreadableFileError,
)
from embridge.files import fingerprint, whole_or_absent
from embridge.stores.collection import Batch, Collection, Needed, declare_space, normalise_ids
from embridge.stores.memory import empty_payload
from embridge.types import DeclaredSpace, Metric, Space

try:
    import faiss
except ImportError as e:  # pragma: no cover - told by a subprocess test
    raise MissingDependencyError.of("FAISS", "This", "cpu] or embridge[gpu") from e

SUFFIXES = (".faiss", ".index")
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
    """

    index: Any
    space: Space | None
    ids: pa.Array | None
    lineage: dict[str, str] = field(default_factory=dict)


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
        index = faiss.read_index(path, flags)
    except RuntimeError as e:
        raise UnreadableFileError.at(path, "a FAISS index", faiss_reason(e)) from e
    restore_transforms(index)
    space, ids, lineage = None, None, {}
    if json_path(path).exists():
        try:
            sidecar = json.loads(json_path(path).read_text())
            space, lineage = Space.from_dict(sidecar["space"]), dict(sidecar.get("lineage", {}))
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
    return IndexFile(index, space, ids, lineage)


def faiss_reason(error: Exception) -> str:
    """What FAISS says went wrong, without the C++ signature and the line of its source that it happened in."""
    text = re.sub(r"^Error in .*? at \S+:\d+: (Error: )?", "", str(error).strip(), flags=re.DOTALL)
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
            sidecar = {"space": content.space.to_dict(), "lineage": content.lineage}
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


def stored_vectors(index: Any, batch_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The vectors of an index with their labels, in its own order (list by list for IVF), float32.

    Quantized vectors come back as what they decode to.

    Raises
    ------
    FaissIndexError
        An index whose vectors cannot be read back.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap):
        labels = faiss.vector_to_array(index.id_map)
        for positions, vectors in stored_vectors(index.index, batch_rows):
            yield labels[positions], vectors
    elif isinstance(index, faiss.IndexPreTransform):
        transforms = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        for labels, vectors in stored_vectors(index.index, batch_rows):
            for transform in reversed(transforms):
                try:
                    vectors = transform.reverse_transform(vectors)
                except RuntimeError as e:
                    raise FaissIndexError.no_vectors("The index", type(transform).__name__) from e
            yield labels, vectors
    elif isinstance(index, faiss.IndexIVF):
        yield from _list_vectors(index, batch_rows)
    elif isinstance(index, faiss.IndexRefine):
        yield from stored_vectors(index.refine_index, batch_rows)
    else:
        for start in range(0, index.ntotal, batch_rows):
            count = min(batch_rows, index.ntotal - start)
            try:
                yield np.arange(start, start + count), index.reconstruct_n(start, count)
            except RuntimeError as e:
                raise FaissIndexError.no_vectors("The index", type(index).__name__) from e


def _list_vectors(index: Any, batch_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    # reconstruct_n of an IVF scans all lists on every call, so lists are decoded one after the other.
    lists = index.invlists
    for number in range(index.nlist):
        size = lists.list_size(number)
        if not size:
            continue
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * index.code_size).reshape(size, -1)
        labels = faiss.rev_swig_ptr(lists.get_ids(number), size)
        for start in range(0, size, batch_rows):
            part = np.ascontiguousarray(codes[start : start + batch_rows])
            vectors = np.empty((len(part), index.d), np.float32)
            numbers = np.full(len(part), number, np.int64)
            index.decode_vectors(len(part), faiss.swig_ptr(part), faiss.swig_ptr(numbers), faiss.swig_ptr(vectors))
            yield labels[start : start + batch_rows].copy(), vectors


class FaissCollection(Collection):
    """The vectors of a FAISS index: flat, HNSW, IVF, scalar and product quantizers, behind id maps and linear transforms.

    Parameters
    ----------
    path : str or path-like
        With its sidecars ``.json`` and ``.ids.parquet``, or bare: then labels are the ids, and `space` must be given.
    space : Space, DeclaredSpace or str, optional

    Raises
    ------
    MissingFileError, UnreadableFileError, CollectionError, FaissIndexError
        Nothing there, not an index, no vectors, or vectors that cannot be read back.
    UndeclaredSpaceError, SpaceMismatchError
        The space is not known, or what is declared contradicts the index.
    """

    kind = "faiss"

    def __init__(self, path: str | os.PathLike[str], *, space: Space | DeclaredSpace | str | None = None) -> None:
        self.path = os.fspath(path)
        self._file = read_index_file(self.path, mapped=True)
        self.lineage = self._file.lineage
        if not self._file.index.ntotal:
            raise CollectionError.empty(self.name)
        self.id_type = pa.int64() if self._file.ids is None else self._file.ids.type
        self.payload_schema = pa.schema([])
        self.space = space_of(self.name, self._file, space)

    def __len__(self) -> int:
        return self._file.index.ntotal

    def _read(self, batch_rows: int, *, payload: bool, vectors: bool, needed: Needed | None, lenient: bool) -> Iterator[Batch]:
        start = 0
        for labels, values in stored_vectors(self._file.index, batch_rows):
            if needed is None or needed(start, start + len(labels)):
                ids = external_ids(self._file, labels, self.name)
                yield Batch(start, ids, values if vectors else values[:, :0], empty_payload(len(labels)))
            start += len(labels)

    def fingerprint(self) -> str:
        return index_fingerprint(str(self.path))


def external_ids(file: IndexFile, labels: np.ndarray, where: str) -> pa.Array:
    """The ids behind FAISS labels."""
    if file.ids is None:
        return pa.array(labels)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(file.ids):
        raise BadIdsError.unknown(where, labels[(labels < 0) | (labels >= len(file.ids))].tolist())
    return file.ids.take(pa.array(labels))


def index_fingerprint(path: str) -> str:
    """Content hash of an index and its ids."""
    return fingerprint(path, *([ids_path(path)] if ids_path(path).exists() else []))


def space_of(where: str, file: IndexFile, declared: Space | DeclaredSpace | str | None) -> Space:
    """The space of an index file: its sidecar's, else the declared one with the metric that the index itself has."""
    inner = file.index.metric_type == faiss.METRIC_INNER_PRODUCT
    if not inner and file.index.metric_type != faiss.METRIC_L2:
        raise FaissIndexError(f"{where} uses a FAISS metric other than inner product and L2, which embridge does not know.")
    sample = np.empty((0, file.index.d), np.float32)
    for _, vectors in stored_vectors(file.index, 1024):
        sample = vectors
        break
    space = declare_space(where, declared, file.space, file.index.d, None if inner else Metric.L2, sample)
    if file.space is None and inner and not space.normalized:
        # Inner product of vectors that are not of unit length is no cosine.
        said = DeclaredSpace.parse(declared) if isinstance(declared, str) else declared
        if said is None or said.metric is None:
            space = Space(space.name, space.dim, Metric.DOT, normalized=False)
    if inner == (space.metric == Metric.L2) and not (space.normalized and not inner):
        raise SpaceMismatchError.contradiction(where, "metric", str(space.metric), "inner product" if inner else "l2")
    return space
