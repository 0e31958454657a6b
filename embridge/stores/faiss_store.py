"""The vectors of a FAISS index as a collection."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.arrays import all_unit
from embridge.errors import BadIdsError, CollectionError, FaissIndexError, SpaceMismatchError
from embridge.stores.collection import Batch, Collection, Needed, declare_space
from embridge.stores.faiss_file import (
    IndexFile,
    faiss,
    faiss_reason,
    ids_path,
    index_fingerprint,
    json_path,
    read_index_file,
    write_index_file,
)
from embridge.stores.memory import empty_payload
from embridge.types import DeclaredSpace, Metric, Space

__all__ = [
    "FaissCollection",
    "IndexFile",
    "external_ids",
    "faiss_reason",
    "ids_path",
    "index_fingerprint",
    "json_path",
    "read_index_file",
    "space_of",
    "stored_vectors",
    "write_index_file",
]


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
    # reconstruct_n of an IVF scans all lists on every call, so codes are taken list by list and decoded many lists at a time.
    lists = index.invlists
    held: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    waiting = 0
    for number in range(index.nlist):
        size = lists.list_size(number)
        if not size:
            continue
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * index.code_size).reshape(size, -1)
        labels = faiss.rev_swig_ptr(lists.get_ids(number), size)
        for start in range(0, size, batch_rows):
            part = labels[start : start + batch_rows].copy()
            if waiting + len(part) > batch_rows:
                yield _decoded(index, held)
                held, waiting = [], 0
            held.append((part, codes[start : start + batch_rows].copy(), np.full(len(part), number, np.int64)))
            waiting += len(part)
    if held:
        yield _decoded(index, held)


def _decoded(index: Any, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    labels, codes, numbers = (np.concatenate(column) for column in zip(*parts, strict=True))
    vectors = np.empty((len(labels), index.d), np.float32)
    try:
        index.decode_vectors(len(labels), faiss.swig_ptr(codes), faiss.swig_ptr(numbers), faiss.swig_ptr(vectors))
    except RuntimeError as e:  # packed lists (fast scan)
        raise FaissIndexError.no_vectors("The index", type(index).__name__) from e
    return labels, vectors


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
        for _ in stored_vectors(self._file.index, 1):  # refused here where vectors cannot be read back
            break
        self.space = space_of(self.name, self._file, space)

    def __len__(self) -> int:
        return self._file.index.ntotal

    def _read(self, batch_rows: int, *, payload: bool, vectors: bool, needed: Needed | None, lenient: bool) -> Iterator[Batch]:
        start = 0
        for labels, values in stored_vectors(self._file.index, batch_rows):
            if needed is None or needed(start, start + len(labels)):
                ids = external_ids(self._file, labels, self.name)
                # a hubness bias or a calibration, which is no part of the vectors, stays behind
                yield Batch(start, ids, values[:, : self.space.dim if vectors else 0], empty_payload(len(labels)))
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


def space_of(where: str, file: IndexFile, declared: Space | DeclaredSpace | str | None) -> Space:
    """The space of an index file: its sidecar's, else the declared one with the metric that the index itself has."""
    inner = file.index.metric_type == faiss.METRIC_INNER_PRODUCT
    if not inner and file.index.metric_type != faiss.METRIC_L2:
        raise FaissIndexError(f"{where} uses a FAISS metric other than inner product and L2, which embridge does not know.")
    normalized = False
    if file.space is None:
        # an index whose vectors cannot be read back can still be searched; whether they are of unit length is then not known
        with contextlib.suppress(FaissIndexError):
            normalized = all_unit((rows for _, rows in stored_vectors(file.index, 1 << 14)), zero_is_bad=inner)
    space = declare_space(where, declared, file.space, file.dim, None if inner else Metric.L2, normalized=normalized)
    if file.space is None and inner and not space.normalized:
        # Inner product of vectors that are not of unit length is no cosine.
        said = DeclaredSpace.parse(declared) if isinstance(declared, str) else declared
        if said is None or said.metric is None:
            space = Space(space.name, space.dim, Metric.DOT, normalized=False)
    if inner == (space.metric == Metric.L2) and not (space.normalized and not inner):
        raise SpaceMismatchError.contradiction(where, "metric", str(space.metric), "inner product" if inner else "l2")
    return space
