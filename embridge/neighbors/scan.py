"""Exact search by products in float64, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from embridge.arrays import bad_rows
from embridge.types import Metric

QUERY_BLOCK = 1024
CORPUS_BLOCK = 8192  # 64 MiB of float64 scores a block
SPARE = 16  # candidates beyond k
_CANCELLED = 1e-6  # of |q|^2: a smaller squared distance has lost digits and is computed from the difference
_CENTER_ROWS = 257
UNSURE = 64  # queries per block of the second pass


class _Scan:
    """Float64 scores of all queries against one block of rows after another.

    Under L2 a center is subtracted from rows and queries first, which changes no distance: the median of some rows, since a mean
    would follow a single row of length 1e20. Queries and rows that are not finite score minus infinity. With an offset, which is
    subtracted from the scores of the rows, queries are scaled to unit length.
    """

    def __init__(
        self,
        queries: np.ndarray,
        corpus: np.ndarray,
        metric: Metric,
        exclude: np.ndarray | None,
        device: torch.device,
        offset: np.ndarray | None = None,
    ) -> None:
        self._corpus, self.metric, self._device = corpus, metric, device
        self._offset = None if offset is None else torch.tensor(np.asarray(offset, np.float64), device=device)
        self._exclude = None if exclude is None else torch.tensor(np.array(exclude), device=device)
        self._center = torch.zeros(corpus.shape[1], dtype=torch.float64, device=device)
        if metric == Metric.L2:
            some = np.linspace(0, len(corpus) - 1, min(len(corpus), _CENTER_ROWS)).astype(np.int64)
            self._center = self._load(corpus[some])[0].median(dim=0).values
        self.queries, self._usable = self._load(queries)
        if offset is not None and metric != Metric.COSINE:
            lengths = self.queries.norm(dim=1, keepdim=True)
            self.queries = self.queries / torch.where(lengths > 0, lengths, 1.0)
        self.lengths = (self.queries * self.queries).sum(1)

    def blocks(self, members: torch.Tensor | None = None) -> Iterator[tuple[int, int, torch.Tensor]]:
        """For each block of rows and of queries (all of them, or `members`): the start of both, and the scores."""
        members = torch.arange(len(self.queries), device=self._device) if members is None else members
        for start in range(0, len(self._corpus), CORPUS_BLOCK):
            rows, usable = self._load(self._corpus[start : start + CORPUS_BLOCK])
            squares = (rows * rows).sum(1)
            for first in range(0, len(members), QUERY_BLOCK):
                chosen = members[first : first + QUERY_BLOCK]
                scores = self.queries[chosen] @ rows.T
                if self.metric == Metric.L2:
                    scores = scores.mul_(2).sub_(squares).sub_(self.lengths[chosen, None])
                if self._offset is not None:
                    scores -= self._offset[start : start + len(rows)]
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


def search(
    queries: np.ndarray,
    corpus: np.ndarray,
    k: int,
    metric: Metric,
    exclude: np.ndarray | None,
    device: torch.device,
    offset: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (float64) and positions of the k nearest rows; of equal ones the first in the corpus.

    Some more candidates than k are kept. Where the last of them cannot be distinguished from the k-th (more rows are equal, or
    L2 distances cancelled), a second pass checks every row that may belong to the k nearest.
    """
    scan = _Scan(queries, corpus, metric, exclude, device, offset)
    kept = min(k + SPARE, len(corpus))
    best: list[tuple[torch.Tensor, torch.Tensor]] = []
    for start, first, scores in scan.blocks():
        top = scores.topk(min(kept, scores.shape[1]), dim=1)
        values, positions = top.values, top.indices + start
        if not start:
            best.append((values, positions))
            continue
        before = best[first // QUERY_BLOCK]
        values, positions = torch.cat([before[0], values], 1), torch.cat([before[1], positions], 1)
        top = values.topk(min(kept, values.shape[1]), dim=1)
        best[first // QUERY_BLOCK] = (top.values, positions.gather(1, top.indices))
    if not best:
        return np.empty((0, k)), np.empty((0, k), np.int64)
    scores, ids = (torch.cat(part).cpu().numpy() for part in zip(*best, strict=True))
    last = scores[:, -1].copy()
    lengths = scan.lengths.cpu().numpy()
    if metric == Metric.L2:
        # |x| is at most |q| + |q - x|: a distance much below |q| has lost digits.
        row, place = np.nonzero(np.isfinite(scores) & (-scores < _CANCELLED * lengths[:, None]))
        scores[row, place] = _squared(queries, corpus, row, ids[row, place])
    order = np.lexsort((ids, -rounded(scores)), axis=-1)[:, :k]
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    if kept < len(corpus):
        # Rounding: at most dim * eps of |q|^2 + |x|^2, where |x|^2 is at most 2 |q|^2 + 2 |q - x|^2.
        error = corpus.shape[1] * np.finfo(np.float64).eps * (3 * lengths * (metric == Metric.L2) + 2 * np.abs(last))
        unsure = np.flatnonzero(np.isfinite(scores[:, -1]) & (scores[:, -1] <= last + error))
        for start in range(0, len(unsure), UNSURE):
            some = unsure[start : start + UNSURE]
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
    order = np.lexsort((places, -rounded(values), rows))
    begins = np.searchsorted(rows[order], np.arange(len(members) + 1))
    k = ids.shape[1]
    for number, member in enumerate(members):
        chosen = order[begins[number] : begins[number + 1]][:k]
        if len(chosen) == k:
            ids[member], scores[member] = places[chosen], values[chosen]


def rounded(scores: np.ndarray) -> np.ndarray:
    """Scores without their last six bits: a matrix product rounds equal rows differently at the edge of a block."""
    return ((np.ascontiguousarray(scores).view(np.int64) + 32) & ~63).view(np.float64)


def _squared(queries: np.ndarray, corpus: np.ndarray, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Negated squared distances of pairs of a query and a row of the corpus, from their differences."""
    out = np.empty(len(rows))
    for start in range(0, len(rows), CORPUS_BLOCK):
        some = slice(start, start + CORPUS_BLOCK)
        out[some] = -np.square(queries[rows[some]].astype(np.float64) - corpus[places[some]]).sum(1)
    return out
