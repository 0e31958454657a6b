"""One search of an index file: queries as its space has them, scores as its space has them."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from embridge.arrays import unit
from embridge.indexes.build import prepare
from embridge.indexes.calibration import with_length
from embridge.indexes.hubness import augment
from embridge.stores.faiss_file import IndexFile
from embridge.types import Metric, Space


def ask(
    file: IndexFile, space: Space, queries: np.ndarray, k: int, *, index: Any = None, as_they_are: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of the k nearest rows.

    Parameters
    ----------
    file : IndexFile
    space : Space
    queries : ndarray of shape (n_queries, space.dim)
    k : int
    index : faiss.Index, optional
        Searched in place of the file's own, such as its copy on a GPU.
    as_they_are : bool, default False
        Do not make queries unit, whatever the metric: for queries that were pulled back.

    Returns
    -------
    scores, labels : ndarray of shape (n_queries, k)
        Cosine or inner product, L2 as negated squared distance, with a hubness bias ``2 <q, x> - r(x)``, of translated rows in a
        calibrated index with its offset (see `embridge.indexes.calibration`). Behind a map in front of
        the index (`notes["scores"]`) they are those of the translated rows.
    """
    hub, calibration = "hubness" in file.notes, file.notes.get("calibration")
    as_they_are = as_they_are or file.notes.get("raw_queries", False)
    asked = np.ascontiguousarray(queries, np.float32) if as_they_are else unit(queries) if hub else prepare(queries, space.metric)
    extended = augment(asked) if hub and file.biased else with_length(asked, space.metric) if file.biased else asked
    found, labels = (index or file.index).search(extended, k)
    correction = file.notes.get("scores", {})
    l2 = file.index.metric_type == faiss.METRIC_L2
    found[labels < 0] = np.inf if l2 else -np.inf  # places that stayed empty
    if not l2:
        if "offset" in correction:
            offset = asked @ np.asarray(correction["offset"], np.float32)
            found += (2 * offset if hub else offset)[:, None]
        return found, labels
    if calibration:
        found -= max(calibration["offset"], 0)
    if "scale" in correction:
        centred = asked - np.asarray(correction["centre"], np.float32)
        pulled = _first_transform(file.index).apply(asked)
        rest = np.einsum("ij,ij->i", centred, centred) - correction["scale"] * np.einsum("ij,ij->i", pulled, pulled)
        found = (correction["scale"] * found + rest[:, None]).astype(np.float32)
    # An L2 index of unit vectors may serve a cosine space: |q - x|^2 = 2 - 2 cos.
    return (1 - found / 2 if space.metric == Metric.COSINE else -found), labels


def _first_transform(index: Any) -> Any:
    index = faiss.downcast_index(index)
    while isinstance(index, faiss.IndexIDMap):
        index = faiss.downcast_index(index.index)
    return faiss.downcast_VectorTransform(index.chain.at(0))
