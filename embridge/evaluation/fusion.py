"""Chooses the weight and the hubness correction of a fused search, on queries that are not reported.

Candidates of each query are collected once, from arrays or batch by batch; then every weight and correction ranks the same
candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from embridge.arrays import as_vectors
from embridge.errors import BadVectorsError
from embridge.evaluation.metrics import DEPTH
from embridge.indexes.fusion import Fusion, Hubness
from embridge.neighbors.products import QUERIES, ROWS, Named
from embridge.neighbors.screening import kth_largest, lower_limit, places

WEIGHTS = tuple(step / 10 for step in range(11))
LEAST_QUERIES = 50  # to choose on; with fewer the old model is kept
_LONG = 16  # times the depth
_EMPTY = (-1, 0, 0, 0, 0)  # of each part of the candidates
# The nearest rows by each of these are candidates: together they hold nearly all of the nearest rows by any other fusion.
_COLLECTED = (Fusion(0.0), Fusion(0.5), Fusion(1.0))
_COLLECTED_CORRECTED = (Fusion(0.0, Hubness.OLD), Fusion(0.5, Hubness.BOTH), Fusion(1.0, Hubness.NEW))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates of each query with their parts of a fused score (`embridge.indexes.fusion`).

    Attributes
    ----------
    rows : ndarray of int64, shape (n_queries, n_candidates)
        Positions; -1 is an empty place.
    old, new : ndarray of float32, same shape
        Similarity of the query to the row, by the old and by the new model.
    old_bias, new_bias : ndarray of float32, same shape
        Half of the row's mean similarity to its 10 nearest reference queries; 0 without reference queries.
    """

    rows: np.ndarray
    old: np.ndarray
    new: np.ndarray
    old_bias: np.ndarray
    new_bias: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """Candidates of several groups of queries, one after the other."""
        width = max((part.rows.shape[1] for part in parts), default=0)
        columns = zip(*((part.rows, part.old, part.new, part.old_bias, part.new_bias) for part in parts), strict=True)
        return cls(
            *(
                np.concatenate([np.pad(c, ((0, 0), (0, width - c.shape[1])), constant_values=empty) for c in column])
                for column, empty in zip(columns, _EMPTY, strict=True)
            )
        )

    def scores(self, fusion: Fusion) -> np.ndarray:
        """Fused scores, shape (n_queries, n_candidates), float32; minus infinity at empty places."""
        parts = (torch.from_numpy(part) for part in (self.old, self.new, self.old_bias, self.new_bias))
        return _fused(fusion, *parts).masked_fill(torch.from_numpy(self.rows < 0), -torch.inf).numpy()

    def ranked(self, fusion: Fusion, k: int) -> np.ndarray:
        """Positions of the k best candidates, best first, shape (n_queries, k); -1 where there are fewer.

        Of equal scores the first row of the collection comes first.
        """
        scores = torch.from_numpy(self.scores(fusion))
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :k].numpy()
        found = np.full((len(scores), k), -1, np.int64)
        found[:, : best.shape[1]] = np.take_along_axis(self.rows, best, 1)
        return found

    def shares(self, relevant: Sequence[np.ndarray]) -> np.ndarray:
        """Shares of the relevant rows: 1 / their number where a candidate is one, else 0. Shape (n_queries, n_candidates)."""
        found = np.zeros(self.rows.shape, np.float32)
        for number, wanted in enumerate(relevant):
            if len(wanted):
                found[number] = (self.rows[number][:, None] == wanted).any(1) / len(wanted)
        return found

    def at(self, members: np.ndarray) -> Candidates:
        """Candidates of some of the queries."""
        return Candidates(*(part[members] for part in (self.rows, self.old, self.new, self.old_bias, self.new_bias)))


class CandidateSearch:
    """Collects `Candidates` over any number of batches of rows: the 100 nearest by the old and by the new side and by both equally.

    Parameters
    ----------
    old : ndarray of shape (n_queries, dim_old)
        Queries of the old side, as `Fusion.queries` uses them: of unit length.
    new : ndarray of shape (n_queries, dim_new)
        Queries of the new side, of unit length.
    depth : int, default 100
    corrected : bool, default True
        Rows have biases: the nearest with hubness correction are candidates too.
    """

    def __init__(self, old: np.ndarray, new: np.ndarray, depth: int = DEPTH, *, corrected: bool = True) -> None:
        self._old, self._new = (torch.tensor(np.asarray(as_vectors(side), np.float32)) for side in (old, new))
        if len(self._old) != len(self._new):
            raise BadVectorsError(f"Fused search needs both vectors of each query. Got {len(old):,} old and {len(new):,} new ones.")
        self._depth = depth
        self._fusions = (*_COLLECTED, *_COLLECTED_CORRECTED) if corrected else _COLLECTED
        starts = range(0, max(len(self._old), 1), QUERIES)
        self._blocks: list[tuple[torch.Tensor, ...]] = [_none(min(QUERIES, len(self._old) - start)) for start in starts]

    def offer(
        self,
        old: np.ndarray,
        new: np.ndarray,
        rows: np.ndarray,
        biases: tuple[np.ndarray, np.ndarray] | None = None,
        exclude: np.ndarray | None = None,
        known: tuple[Named, Named] | None = None,
    ) -> None:
        """Add a batch of rows.

        Parameters
        ----------
        old, new : ndarray of shape (n, dim_old) and (n, dim_new)
            As in an index: of unit length where the space is measured by cosine.
        rows : ndarray of int64, shape (n,)
            Their positions.
        biases : pair of ndarray of shape (n,), optional
            ``r / 2`` of both sides, as in `fused_rows`.
        exclude : ndarray of int64, shape (n_queries,), optional
            Position of the row that is the query itself, which it does not find; -1 for none.
        known : pair of Named, optional
            Names of the products of both sides, which another search may have computed.
        """
        names = known or (Named(), Named())
        exclude = None if exclude is None or (exclude < 0).all() else exclude
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            held = [torch.tensor(np.asarray(side[part], np.float32)) for side in (old, new)]
            bias = [torch.tensor(np.asarray(side[part], np.float32)) for side in biases or (np.zeros(len(rows)),) * 2]
            ids = torch.tensor(rows[part])[None]
            sides = [name.at(start, side) for name, side in zip(names, held, strict=True)]
            for number, before in enumerate(self._blocks):
                first = number * QUERIES
                some = slice(first, first + QUERIES)
                scores = [side.of(queries[some], first) for side, queries in zip(sides, (self._old, self._new), strict=True)]
                own = ids if exclude is None else ids.masked_fill(ids == torch.tensor(exclude[some])[:, None], -1)
                found = self._kept(own, *scores, *bias)
                if before[0].shape[1]:
                    found = self._kept(*(torch.cat(pair, 1) for pair in zip(before, found, strict=True)))
                self._blocks[number] = found

    def candidates(self) -> Candidates:
        """The candidates so far."""
        return Candidates.joined([Candidates(*(part.numpy() for part in block)) for block in self._blocks])

    def _kept(
        self, rows: torch.Tensor, old: torch.Tensor, new: torch.Tensor, old_bias: torch.Tensor, new_bias: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Those that are among the nearest by at least one of the fusions; positions and biases may be one row for all queries."""
        parts = (rows, old, new, old_bias, new_bias)
        if old.shape[1] > _LONG * self._depth:  # first those above a lower limit: `topk` is slow on long rows
            chosen = torch.zeros(old.shape, dtype=torch.bool)
            for scores in self._all_scores(*parts):
                chosen |= scores >= lower_limit(scores, self._depth)
            parts = _selected(chosen & (rows >= 0), parts)
        chosen = torch.zeros(parts[1].shape, dtype=torch.bool)
        depth = min(self._depth, chosen.shape[1])
        for scores in self._all_scores(*parts):
            chosen |= scores >= kth_largest(scores, depth)
        return _selected(chosen & (parts[0] >= 0), parts)

    def _all_scores(self, rows: torch.Tensor, *parts: torch.Tensor) -> Iterator[torch.Tensor]:
        """Scores of every fusion; minus infinity in empty places."""
        empty = rows < 0
        is_full = not empty.any()
        for fusion in self._fusions:
            scores = _fused(fusion, *parts)
            yield scores if is_full else scores.masked_fill(empty, -torch.inf)


def choose_fusion(
    candidates: Candidates, relevant: Sequence[np.ndarray], k: int = 10, hubness: Sequence[Hubness] = tuple(Hubness)
) -> Fusion:
    """The weight and the hubness correction that find most relevant rows, or the old model alone.

    The score of a query is the share of its relevant rows among the k best. Mean scores are smoothed over neighboring weights
    (1/4, 1/2, 1/4; the ends, where only one side counts, stand alone), which takes out part of the luck of the best of many. The
    best is chosen if it is better than the old model without correction (weight 0) by more than one standard error of the paired
    difference. Otherwise, and with fewer than 50 queries, the choice is the old model.

    Parameters
    ----------
    candidates : Candidates
    relevant : sequence of ndarray of int64
        Positions for each query: its relevant rows (then the score is recall@k), or the k nearest by the new model (then it is
        overlap@k). Queries without any do not count.
    k : int, default 10
    hubness : sequence of Hubness
        The corrections that are possible; default: all.

    Returns
    -------
    Fusion
        Use it for other queries than these.
    """
    return best_fusion(fusion_scores(candidates, relevant, k, hubness), hubness)


def fusion_scores(candidates: Candidates, relevant: Sequence[np.ndarray], k: int, hubness: Sequence[Hubness]) -> np.ndarray:
    """Scores of the old side alone and then of every weight with every correction, by counted query (see `choose_fusion`).

    Returns
    -------
    ndarray of shape (1 + 11 * corrections, n_counted)
    """
    counted = np.array([place for place, rows in enumerate(relevant) if len(rows)], np.int64)
    used = candidates.at(counted)
    shares = used.shares([rows for rows in relevant if len(rows)])
    return np.stack([_recall(used, shares, fusion, k) for fusion in _fusions(hubness)])


def best_fusion(scores: np.ndarray, hubness: Sequence[Hubness]) -> Fusion:
    """The choice of `choose_fusion` by the scores of `fusion_scores`."""
    fusions, old = _fusions(hubness), scores[0]
    if len(old) < LEAST_QUERIES:
        return fusions[0]
    means = np.concatenate([scores[:1].mean(axis=1), *map(_smoothed, scores[1:].mean(axis=1).reshape(len(hubness), -1))])
    best = int(np.argmax(means))
    gain = scores[best] - old
    return fusions[best] if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)) else fusions[0]


def _fusions(hubness: Sequence[Hubness]) -> list[Fusion]:
    return [Fusion(0.0), *(Fusion(weight, correction) for correction in hubness for weight in WEIGHTS)]


def _recall(candidates: Candidates, shares: np.ndarray, fusion: Fusion, k: int) -> np.ndarray:
    """Sums of the shares of the k best candidates; of more where several are equal to the k-th."""
    scores = candidates.scores(fusion)
    if not scores.shape[1]:
        return np.zeros(len(scores))
    least = kth_largest(torch.from_numpy(scores), min(k, scores.shape[1])).numpy()
    return np.where(scores >= least, shares, 0).sum(1, dtype=np.float64)


def _smoothed(means: np.ndarray) -> np.ndarray:
    out = means.copy()
    out[1:-1] = (means[:-2] + 2 * means[1:-1] + means[2:]) / 4
    return out


def _fused(fusion: Fusion, old: torch.Tensor, new: torch.Tensor, old_bias: torch.Tensor, new_bias: torch.Tensor) -> torch.Tensor:
    """The score of `embridge.indexes.fusion`."""
    w = fusion.weight
    if fusion.hubness in (Hubness.OLD, Hubness.BOTH):
        old = old - old_bias
    if fusion.hubness in (Hubness.NEW, Hubness.BOTH):
        new = new - new_bias
    return torch.lerp(old, new, w) if 0 < w < 1 else (new if w else old)


def _none(queries: int) -> tuple[torch.Tensor, ...]:
    return torch.empty(queries, 0, dtype=torch.int64), *(torch.empty(queries, 0) for _ in range(4))


def _selected(chosen: torch.Tensor, parts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The chosen places of each part, one line a query, filled up with empty ones."""
    count, n = chosen.shape
    flat = np.flatnonzero(chosen.numpy())
    row, (place, width) = flat // max(n, 1), places(flat // max(n, 1), count)
    out = []
    for part, empty in zip(parts, _EMPTY, strict=True):
        filled = torch.full((count * width,), empty, dtype=part.dtype)
        filled[place] = part.expand(count, n)[row, flat - row * n]
        out.append(filled.view(count, width))
    return tuple(out)
