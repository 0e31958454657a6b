"""A search of an index file with arrays: scores of its space and labels."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from embridge.arrays import unit
from embridge.indexes.hubness import augment
from embridge.indexes.offset import with_length
from embridge.indexes.rows import prepare
from embridge.stores.faiss.index_file import IndexFile
from embridge.types import Metric, Space

_LARGEST = float(np.finfo(np.float32).max)


def search_index(
    file: IndexFile,
    space: Space,
    queries: np.ndarray,
    k: int,
    *,
    index: Any = None,
    parameters: Any = None,
    as_they_are: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of the k nearest rows.

    Parameters
    ----------
    file : IndexFile
    space : Space
    queries : ndarray of shape (n_queries, space.dim)
    k : int
    index : faiss.Index, optional
        Searched instead of the file's index, such as its copy on a GPU.
    parameters : faiss.SearchParameters, optional
        Parameters of this search only, see `embridge.indexes.parameters`.
    as_they_are : bool, default False
        Do not scale queries to unit length, whatever the metric: for projected queries.

    Returns
    -------
    scores, labels : ndarray of shape (n_queries, k)
        Cosine or inner product, L2 as negated squared distance, with a hubness bias ``2 <q, x> - r(x)``; for translated rows in a
        calibrated index plus the offset (see `embridge.indexes.offset`). Behind a map in front of
        the index (`notes["scores"]`) they are those of the translated rows. An empty place has the score ``-inf``, which
        no row has; its label is -1, which may also be the id of a row.
    """
    hub = "hubness" in file.notes
    as_they_are = as_they_are or file.notes.get("raw_queries", False)
    prepared = (
        np.ascontiguousarray(queries, np.float32) if as_they_are else unit(queries) if hub else prepare(queries, space.metric)
    )
    extended = augment(prepared) if hub and file.biased else with_length(prepared, space.metric) if file.biased else prepared
    found, labels, empty = _search(index or file.index, extended, k, parameters)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = _scores(file, space, prepared, found)
    scores = np.clip(np.nan_to_num(scores, nan=-_LARGEST), -_LARGEST, _LARGEST)  # scores of rows are finite
    scores[empty] = -np.inf
    return scores, labels


def _search(index: Any, queries: np.ndarray, k: int, parameters: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FAISS's own distances and labels, and a mask of empty places, padded where there are fewer vectors than k."""
    shape, there = (len(queries), k), min(k, index.ntotal)
    found, labels, empty = np.zeros(shape, np.float32), np.full(shape, -1, np.int64), np.ones(shape, bool)
    if there and len(queries):
        part = slice(None), slice(there)
        found[part], labels[part], empty[part] = _mapped(index, queries, there, parameters)
        found[empty] = 0
    return found, labels, empty


def _mapped(index: Any, queries: np.ndarray, k: int, parameters: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Search inside an id map: empty places are FAISS's -1 among positions, since a label may be -1."""
    part = faiss.downcast_index(index)
    if isinstance(part, faiss.IndexPreTransform) and isinstance(faiss.downcast_index(part.index), faiss.IndexIDMap):
        for i in range(part.chain.size()):
            queries = faiss.downcast_VectorTransform(part.chain.at(i)).apply(queries)
        return _mapped(part.index, queries, k, None if parameters is None else parameters.index_params)
    if isinstance(part, faiss.IndexIDMap):
        found, positions, empty = _mapped(part.index, queries, k, parameters)
        ids = faiss.rev_swig_ptr(part.id_map.data(), part.id_map.size())
        return found, np.where(empty, -1, ids[np.where(empty, 0, positions)]), empty
    found, labels = index.search(queries, k, **({} if parameters is None else {"params": parameters}))
    return found, labels, labels == -1


def _scores(file: IndexFile, space: Space, prepared: np.ndarray, found: np.ndarray) -> np.ndarray:
    """FAISS's distances as scores of the space: higher is closer."""
    correction, calibration = file.notes.get("scores", {}), file.notes.get("calibration")
    if file.index.metric_type != faiss.METRIC_L2:
        if "offset" in correction:
            offset = prepared @ np.asarray(correction["offset"], np.float32)
            found = found + (2 * offset if "hubness" in file.notes else offset)[:, None]
        return found
    if calibration:
        found = found - max(calibration["offset"], 0)
    if "scale" in correction:
        centered = prepared - np.asarray(correction["centre"], np.float32)
        projected = _first_transform(file.index).apply(prepared)
        rest = np.einsum("ij,ij->i", centered, centered) - correction["scale"] * np.einsum("ij,ij->i", projected, projected)
        found = (correction["scale"] * found + rest[:, None]).astype(np.float32)
    # An L2 index of unit vectors may serve a cosine space: |q - x|^2 = 2 - 2 cos.
    return 1 - found / 2 if space.metric == Metric.COSINE else -found


def _first_transform(index: Any) -> Any:
    index = faiss.downcast_index(index)
    while isinstance(index, faiss.IndexIDMap):
        index = faiss.downcast_index(index.index)
    return faiss.downcast_VectorTransform(index.chain.at(0))
