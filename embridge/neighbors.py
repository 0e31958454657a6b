"""Exact nearest neighbors by blocked matrix products, and the overlap of two lists of neighbors. The only brute force.

Scores are computed in float64, under L2 about a center of the rows. In float32 the usual ``|q|^2 - 2 <q, x> + |x|^2`` cancels
where rows share a large common part, squares of long rows overflow, and cosines of nearly parallel rows are all 1.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from embridge.arrays import as_vectors, bad_rows, check_rows
from embridge.device import resolve_device
from embridge.errors import ParameterError
from embridge.types import Hits, Metric

_QUERY_BLOCK = 1024
_CORPUS_BLOCK = 8192  # 64 MiB of float64 scores a block
_SPARE = 16  # candidates beyond k
_CANCELLED = 1e-6  # of |q|^2: a smaller squared distance has lost digits and is computed from the difference
_CENTER_ROWS = 257
_UNSURE = 64  # queries per block of the second pass
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
    for start in range(0, len(corpus), _CORPUS_BLOCK):
        block = corpus[start : start + _CORPUS_BLOCK]
        check_rows(block, range(start, start + len(block)), "corpus", zero_is_bad=False)
    scores, ids = _search(queries, corpus, k, Metric(metric), exclude, resolve_device(device))
    return Hits(ids, np.clip(scores, -_LARGEST, _LARGEST).astype(np.float32))


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
        scores, ids = _search(self._queries, vectors, count, self._metric, None, resolve_device(self._device))
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


class _Scan:
    """Float64 scores of all queries against one block of rows after another.

    Under L2 a center is subtracted from rows and queries first, which changes no distance: the median of some rows, since a mean
    would follow a single row of length 1e20. Queries and rows that are not finite score minus infinity.
    """

    def __init__(
        self, queries: np.ndarray, corpus: np.ndarray, metric: Metric, exclude: np.ndarray | None, device: torch.device
    ) -> None:
        self._corpus, self.metric, self._device = corpus, metric, device
        self._exclude = None if exclude is None else torch.tensor(np.array(exclude), device=device)
        self._center = torch.zeros(corpus.shape[1], dtype=torch.float64, device=device)
        if metric == Metric.L2:
            some = np.linspace(0, len(corpus) - 1, min(len(corpus), _CENTER_ROWS)).astype(np.int64)
            self._center = self._load(corpus[some])[0].median(dim=0).values
        self.queries, self._usable = self._load(queries)
        self.lengths = (self.queries * self.queries).sum(1)

    def blocks(self, members: torch.Tensor | None = None) -> Iterator[tuple[int, int, torch.Tensor]]:
        """For each block of rows and of queries (all of them, or `members`): the start of both, and the scores."""
        members = torch.arange(len(self.queries), device=self._device) if members is None else members
        for start in range(0, len(self._corpus), _CORPUS_BLOCK):
            rows, usable = self._load(self._corpus[start : start + _CORPUS_BLOCK])
            squares = (rows * rows).sum(1)
            for first in range(0, len(members), _QUERY_BLOCK):
                chosen = members[first : first + _QUERY_BLOCK]
                scores = self.queries[chosen] @ rows.T
                if self.metric == Metric.L2:
                    scores = scores.mul_(2).sub_(squares).sub_(self.lengths[chosen, None])
                scores[:, ~usable] = -torch.inf
                scores[~self._usable[chosen]] = -torch.inf
                if self._exclude is not None:
                    inside = self._exclude[chosen] - start
                    hit = torch.nonzero((inside >= 0) & (inside < len(rows))).squeeze(1)
                    scores[hit, inside[hit]] = -torch.inf
                yield start, first, scores

    def _load(self, vectors: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors in float64, of unit length under cosine, about the center; and which of them are finite."""
        good = np.ones(len(vectors), bool)
        good[bad_rows(vectors, zero_is_bad=False)[0]] = False
        rows = torch.tensor(np.ascontiguousarray(vectors), device=self._device).to(torch.float64)
        usable = torch.tensor(good, device=self._device)
        if not good.all():
            rows = torch.where(usable[:, None], rows, 0.0)
        if self.metric == Metric.COSINE:
            peaks = rows.abs().amax(1, keepdim=True)  # first: squares of the smallest values vanish
            rows = rows / torch.where(peaks > 0, peaks, 1.0)
            lengths = rows.norm(dim=1, keepdim=True)
            return rows / torch.where(lengths > 0, lengths, 1.0), usable
        return rows - self._center, usable


def _search(
    queries: np.ndarray, corpus: np.ndarray, k: int, metric: Metric, exclude: np.ndarray | None, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (float64) and positions of the k nearest rows; of equal ones the first in the corpus.

    Some more candidates than k are kept. Where the last of them cannot be distinguished from the k-th (more rows are equal, or
    L2 distances cancelled), a second pass checks every row that may belong to the k nearest.
    """
    scan = _Scan(queries, corpus, metric, exclude, device)
    kept = min(k + _SPARE, len(corpus))
    best: list[tuple[torch.Tensor, torch.Tensor]] = []
    for start, first, scores in scan.blocks():
        top = scores.topk(min(kept, scores.shape[1]), dim=1)
        values, positions = top.values, top.indices + start
        if not start:
            best.append((values, positions))
            continue
        before = best[first // _QUERY_BLOCK]
        values, positions = torch.cat([before[0], values], 1), torch.cat([before[1], positions], 1)
        top = values.topk(min(kept, values.shape[1]), dim=1)
        best[first // _QUERY_BLOCK] = (top.values, positions.gather(1, top.indices))
    if not best:
        return np.empty((0, k)), np.empty((0, k), np.int64)
    scores, ids = (torch.cat(part).cpu().numpy() for part in zip(*best, strict=True))
    last = scores[:, -1].copy()
    lengths = scan.lengths.cpu().numpy()
    if metric == Metric.L2:
        # |x| is at most |q| + |q - x|: a distance much below |q| has lost digits.
        row, place = np.nonzero(np.isfinite(scores) & (-scores < _CANCELLED * lengths[:, None]))
        scores[row, place] = _squared(queries, corpus, row, ids[row, place])
    order = np.lexsort((ids, -_rounded(scores)), axis=-1)[:, :k]
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    if kept < len(corpus):
        # Rounding: at most dim * eps of |q|^2 + |x|^2, where |x|^2 is at most 2 |q|^2 + 2 |q - x|^2.
        error = corpus.shape[1] * np.finfo(np.float64).eps * (3 * lengths * (metric == Metric.L2) + 2 * np.abs(last))
        unsure = np.flatnonzero(np.isfinite(scores[:, -1]) & (scores[:, -1] <= last + error))
        for start in range(0, len(unsure), _UNSURE):
            some = unsure[start : start + _UNSURE]
            _resolve(scan, some, scores[some, -1] - error[some], queries, corpus, scores, ids)
    return scores, ids


def _resolve(
    scan: _Scan,
    members: np.ndarray,
    least: np.ndarray,
    queries: np.ndarray,
    corpus: np.ndarray,
    scores: np.ndarray,
    ids: np.ndarray,
) -> None:
    """Find the k nearest of some queries among all rows that score at least `least`; `scores` and `ids` are changed in place."""
    parts: list[tuple[np.ndarray, ...]] = []
    floor = torch.tensor(least, device=scan.queries.device)[:, None]
    for start, _, found in scan.blocks(torch.tensor(members, device=scan.queries.device)):
        row, place = (part.cpu().numpy() for part in torch.nonzero(found >= floor, as_tuple=True))
        values = found.cpu().numpy()[row, place]
        if scan.metric == Metric.L2:
            values = _squared(queries, corpus, members[row], place + start)
        parts.append((row, place + start, values))
    rows, places, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((places, -_rounded(values), rows))
    begins = np.searchsorted(rows[order], np.arange(len(members) + 1))
    k = ids.shape[1]
    for number, member in enumerate(members):
        chosen = order[begins[number] : begins[number + 1]][:k]
        if len(chosen) == k:
            ids[member], scores[member] = places[chosen], values[chosen]


def _rounded(scores: np.ndarray) -> np.ndarray:
    """Scores without their last six bits: a matrix product rounds equal rows differently at the edge of a block."""
    return ((np.ascontiguousarray(scores).view(np.int64) + 32) & ~63).view(np.float64)


def _squared(queries: np.ndarray, corpus: np.ndarray, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Negated squared distances of pairs of a query and a row of the corpus, from their differences."""
    out = np.empty(len(rows))
    for start in range(0, len(rows), _CORPUS_BLOCK):
        some = slice(start, start + _CORPUS_BLOCK)
        out[some] = -np.square(queries[rows[some]].astype(np.float64) - corpus[places[some]]).sum(1)
    return out


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
