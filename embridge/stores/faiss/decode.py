"""Reads the vectors of a FAISS index back: only for types with known decoding, each checked against FAISS's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

from embridge.errors import FaissIndexError

# Exact types: the decoding of a base class is wrong for a subclass that adds a second stage.
_BY_POSITION = {
    "IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexScalarQuantizer", "IndexPQ", "IndexResidualQuantizer",
    "IndexLocalSearchQuantizer", "IndexProductResidualQuantizer", "IndexProductLocalSearchQuantizer", "IndexLSH", "IndexRaBitQ",
    "IndexPQFastScan", "IndexResidualQuantizerFastScan", "IndexLocalSearchQuantizerFastScan", "IndexHNSWFlat", "IndexHNSWSQ",
    "IndexHNSWPQ", "IndexNSGFlat", "IndexNSGSQ", "IndexNSGPQ",
}  # fmt: skip
_BY_LIST = {
    "IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFPQR", "IndexIVFResidualQuantizer",
    "IndexIVFLocalSearchQuantizer", "IndexIVFProductResidualQuantizer", "IndexIVFProductLocalSearchQuantizer",
}  # fmt: skip
_SAMPLED = 4  # rows of each index, and of IVF lists, that are compared with FAISS's own `reconstruct`


def stored_vectors(index: Any, batch_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The vectors of an index with their labels, in its own order (list by list for IVF), float32.

    Quantized vectors are decoded, including second stages (refinement).

    Parameters
    ----------
    index : faiss.Index
    batch_rows : int

    Yields
    ------
    labels : ndarray of shape (n,), int64
    vectors : ndarray of shape (n, index.d), float32

    Raises
    ------
    FaissIndexError
        A type whose vectors cannot be read back, or differ from those of FAISS's own `reconstruct`.
    """
    index = faiss.downcast_index(index)
    kind = type(index).__name__
    if kind in ("IndexIDMap", "IndexIDMap2"):
        labels = faiss.vector_to_array(index.id_map)
        for positions, vectors in stored_vectors(index.index, batch_rows):
            yield labels[positions], vectors
    elif kind == "IndexPreTransform":
        transforms = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        for labels, vectors in stored_vectors(index.index, batch_rows):
            for transform in reversed(transforms):
                try:
                    vectors = transform.reverse_transform(vectors)
                except RuntimeError as e:
                    raise _no_vectors(type(transform).__name__) from e
            yield labels, vectors
    elif kind in ("IndexRefine", "IndexRefineFlat"):
        yield from stored_vectors(index.refine_index, batch_rows)
    elif kind in _BY_LIST:
        yield from _list_vectors(index, batch_rows)
    elif kind in _BY_POSITION:
        yield from _position_vectors(index, batch_rows)
    else:
        raise _no_vectors(kind)


def _no_vectors(kind: str) -> FaissIndexError:
    return FaissIndexError(f"The index is a FAISS {kind}, whose vectors cannot be read back.")


def _position_vectors(index: Any, batch_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    kind = type(index).__name__
    try:
        for i in np.linspace(0, index.ntotal - 1, min(_SAMPLED, index.ntotal)).astype(int).tolist():
            _compare(kind, index.reconstruct_n(i, 1)[0], index.reconstruct(i))
        for start in range(0, index.ntotal, batch_rows):
            count = min(batch_rows, index.ntotal - start)
            yield np.arange(start, start + count), index.reconstruct_n(start, count)
    except RuntimeError as e:
        raise _no_vectors(kind) from e


def _compare(kind: str, ours: np.ndarray, expected: np.ndarray) -> None:
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0)
    if not np.allclose(ours, expected, rtol=1e-4, atol=1e-5 * (1 + largest), equal_nan=True):
        raise FaissIndexError(f"The index is a FAISS {kind}, whose decoded vectors differ from those that FAISS reconstructs.")


def _list_vectors(index: Any, batch_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    # reconstruct_n of an IVF scans all lists on every call, so codes are taken list by list and decoded many lists at a time.
    lists = index.invlists
    held: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    waiting = sampled = 0
    for number in range(index.nlist):
        size = lists.list_size(number)
        if not size:
            continue
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * index.code_size).reshape(size, -1)
        labels = faiss.rev_swig_ptr(lists.get_ids(number), size)
        if sampled < _SAMPLED:
            sampled += 1
            _compare_list(index, number, size - 1, labels, codes)
        for start in range(0, size, batch_rows):
            part = labels[start : start + batch_rows].copy()
            if waiting + len(part) > batch_rows:
                yield _decoded(index, held)
                held, waiting = [], 0
            held.append((part, codes[start : start + batch_rows].copy(), np.full(len(part), number, np.int64)))
            waiting += len(part)
    if held:
        yield _decoded(index, held)


def _compare_list(index: Any, number: int, offset: int, labels: np.ndarray, codes: np.ndarray) -> None:
    kind, expected = type(index).__name__, np.empty(index.d, np.float32)
    one = slice(offset, offset + 1)
    ours = _decoded(index, [(labels[one].copy(), codes[one].copy(), np.full(1, number, np.int64))])[1]
    try:
        index.reconstruct_from_offset(number, offset, faiss.swig_ptr(expected))
    except RuntimeError as e:
        raise _no_vectors(kind) from e
    _compare(kind, ours[0], expected)


def _decoded(index: Any, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    labels, codes, numbers = (np.concatenate(column) for column in zip(*parts, strict=True))
    vectors = np.empty((len(labels), index.d), np.float32)
    try:
        index.decode_vectors(len(labels), faiss.swig_ptr(codes), faiss.swig_ptr(numbers), faiss.swig_ptr(vectors))
        if isinstance(index, faiss.IndexIVFPQR):  # its labels are positions among the codes of the second stage
            refined = faiss.vector_to_array(index.refine_codes).reshape(-1, index.refine_pq.code_size)
            vectors += index.refine_pq.decode(refined[labels])
    except RuntimeError as e:
        raise _no_vectors(type(index).__name__) from e
    return labels, vectors


def labels_of(index: Any) -> np.ndarray:
    """Every label that an index holds, int64."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return labels_of(index.index)
    if isinstance(index, faiss.IndexRefine):
        return labels_of(index.base_index)
    if isinstance(index, faiss.IndexIDMap):
        return faiss.vector_to_array(index.id_map)
    if isinstance(index, faiss.IndexIVF):
        lists: Any = index.invlists
        sizes = [lists.list_size(number) for number in range(index.nlist)]
        held = [faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in enumerate(sizes) if size]
        return np.concatenate(held) if held else np.empty(0, np.int64)
    return np.arange(index.ntotal)


def keeps_labels(index: Any) -> bool:
    """True where the index stores a label with each vector, so that labels need not be positions."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return keeps_labels(index.index)
    # the labels of an IVFPQR are positions among the codes of its second stage
    return isinstance(index, faiss.IndexIVF | faiss.IndexIDMap) and not isinstance(index, faiss.IndexIVFPQR)


def holds_lists(index: Any) -> bool:
    """True where the labels of an index are stored in its inverted lists, not in an id map around them."""
    index = faiss.downcast_index(index)
    return holds_lists(index.index) if isinstance(index, faiss.IndexPreTransform) else isinstance(index, faiss.IndexIVF)


def external_lists_of(index: Any) -> str | None:
    """The file in which an index keeps its inverted lists, where that is not its own."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap | faiss.IndexPreTransform):
        return external_lists_of(index.index)
    if isinstance(index, faiss.IndexRefine):
        return external_lists_of(index.base_index)
    if isinstance(index, faiss.IndexIVF) and hasattr(faiss, "OnDiskInvertedLists"):
        lists = faiss.downcast_InvertedLists(index.invlists)
        return str(lists.filename) if isinstance(lists, faiss.OnDiskInvertedLists) else None
    return None


def holds_codes(index: Any) -> bool:
    """True where vectors are stored as codes, which decode approximately."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap | faiss.IndexPreTransform):
        return holds_codes(index.index)
    if isinstance(index, faiss.IndexRefine):
        return holds_codes(index.refine_index)
    if isinstance(index, faiss.IndexHNSW | faiss.IndexNSG):
        return holds_codes(index.storage)
    return not isinstance(index, faiss.IndexFlat | faiss.IndexIVFFlat)


__all__ = ["external_lists_of", "holds_codes", "holds_lists", "keeps_labels", "labels_of", "stored_vectors"]
