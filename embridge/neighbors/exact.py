"""The k nearest rows of queries: at once, for several offsets of scores, and over any number of blocks of rows."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from embridge.arrays import as_vectors, check_rows
from embridge.device import resolve_device
from embridge.errors import ParameterError
from embridge.neighbors import scan
from embridge.neighbors.products import Named
from embridge.neighbors.settling import nearest, screened, settled
from embridge.types import Hits, Metric

_LARGEST = float(np.finfo(np.float32).max)


def top_k(
    queries: np.ndarray,
    corpus: np.ndarray,
    k: int,
    metric: Metric = Metric.COSINE,
    *,
    exclude: np.ndarray | None = None,
    device: str | torch.device | None = "cpu",
) -> Hits:
    """The k nearest rows of `corpus` for each query, by brute force in float64.

    Parameters
    ----------
    queries : ndarray of shape (n_queries, dim)
    corpus : ndarray of shape (n, dim)
        May be memory-mapped: it is read in blocks of 8,192 rows.
    k : int
        At most n.
    metric : Metric, default "cosine"
    exclude : ndarray of shape (n_queries,), optional
        For each query its own position in the corpus, which it does not find; -1 for none.
    device : str, default "cpu"

    Returns
    -------
    Hits
        `ids` are positions in the corpus; of rows with equal scores the first in the corpus comes first. L2 scores are negated
        squared distances. Scores beyond float32 are clipped to its largest finite value; the order is not affected.

    Raises
    ------
    ParameterError
        k is out of range.
    BadVectorsError
        NaN or infinite values.
    SpaceMismatchError
        Queries and corpus of different widths.
    """
    corpus = as_vectors(corpus, what="corpus")
    queries = as_vectors(queries, corpus.shape[1], "queries")
    room = len(corpus) - (exclude is not None)
    k = check_k(k)
    if k > room:
        raise ParameterError.must_be("k", f"between 1 and {room} (the rows there are to find)", k)
    check_rows(queries, range(len(queries)), "queries", zero_is_bad=False)
    for start in range(0, len(corpus), scan.CORPUS_BLOCK):
        block = corpus[start : start + scan.CORPUS_BLOCK]
        check_rows(block, range(start, start + len(block)), "corpus", zero_is_bad=False)
    scores, ids = nearest(queries, corpus, k, Metric(metric), exclude, resolve_device(device))
    return Hits(ids, np.clip(scores, -_LARGEST, _LARGEST).astype(np.float32))


def rankings(
    queries: np.ndarray,
    corpus: np.ndarray,
    k: int,
    metric: Metric,
    *,
    offsets: Sequence[np.ndarray | None] = (None,),
    exclude: np.ndarray | None = None,
    device: str | torch.device | None = "cpu",
    known: Named | None = None,
) -> list[np.ndarray]:
    """Positions of the k nearest rows of each query as `top_k` finds them, for several offsets of the rows' scores at once.

    Parameters
    ----------
    queries, corpus, k, metric, exclude, device
        As in `top_k`; vectors are not checked.
    offsets : sequence of ndarray of shape (n,), or None
        Subtracted from the scores of the rows by queries of unit length, to which they are scaled. Not under L2.
    known : Named, optional
        Name of the products of these queries and rows.

    Returns
    -------
    list of ndarray of int64, shape (n_queries, k)
        One for each offset.
    """
    place = resolve_device(device)
    candidates = screened(queries, corpus, k, metric, exclude, place, offsets, known)
    out = []
    for offset, found in zip(offsets, candidates, strict=True):
        if found is None:
            out.append(scan.search(queries, corpus, k, metric, exclude, place, offset)[1])
        else:
            out.append(settled(found, queries, corpus, k, metric, exclude, place, offset, is_order_enough=True)[1])
    return out


class Nearest:
    """The k nearest rows of each query so far, over any number of blocks of rows.

    Queries with NaN or infinite values find nothing; such rows are never found.

    Parameters
    ----------
    queries : ndarray of shape (n_queries, dim)
    k : int
    metric : Metric
    device : str, default "cpu"
        None uses CUDA where there is one.

    Attributes
    ----------
    scores : ndarray of float64, shape (n_queries, k)
        Best first; minus infinity where fewer rows were found.
    rows : ndarray of int64, same shape
        -1 where fewer were found.
    """

    def __init__(self, queries: np.ndarray, k: int, metric: Metric, device: str | torch.device | None = "cpu") -> None:
        self._queries, self._k, self._metric, self._device = as_vectors(queries, what="queries"), k, metric, device
        self.scores = np.full((len(queries), k), -np.inf)
        self.rows = np.full((len(queries), k), -1, np.int64)

    def offer(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Add a block of vectors with the positions `rows`."""
        if not len(vectors) or not len(self._queries):
            return
        vectors = as_vectors(vectors, self._queries.shape[1], "rows")
        count = min(self._k, len(vectors))
        scores, ids = nearest(self._queries, vectors, count, self._metric, None, resolve_device(self._device))
        self._keep(np.hstack([self.scores, scores]), np.hstack([self.rows, np.where(np.isfinite(scores), rows[ids], -1)]))

    def without(self, own: np.ndarray) -> None:
        """Remove the row `own[i]` from the results of query i."""
        self._keep(np.where(self.rows == own[:, None], -np.inf, self.scores), self.rows)

    def _keep(self, scores: np.ndarray, rows: np.ndarray) -> None:
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        self.scores, self.rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def overlap(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each query the share of its true neighbors that were found.

    Parameters
    ----------
    found : ndarray of shape (n_queries, k_found)
    truth : ndarray of shape (n_queries, k)
        No position twice in a row of either; -1 is an empty place.

    Returns
    -------
    ndarray of shape (n_queries,), float64

    Examples
    --------
    >>> overlap(np.array([[1, 2], [3, 4]]), np.array([[2, 9], [4, 3]])).tolist()
    [0.5, 1.0]
    """
    both = np.sort(np.concatenate([found, truth], axis=1), axis=1)
    return ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] != -1)).sum(axis=1) / truth.shape[1]


def check_k(k: Any) -> int:
    """A number of neighbors as an int.

    Raises
    ------
    ParameterError
        Not a whole number, or below 1.
    """
    try:
        count = operator.index(k)
    except TypeError:
        raise ParameterError.must_be("k", "a whole number", k) from None
    if count < 1:
        raise ParameterError.must_be("k", "at least 1", count)
    return count
