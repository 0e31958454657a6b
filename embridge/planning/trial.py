"""One corpus, one set of queries, and what a list of found rows is worth on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.arrays import unit
from embridge.ids import hash_ids
from embridge.indexes.hubness import augment, with_bias
from embridge.neighbours import overlap, top_k
from embridge.types import Metric

DEPTH = 100
REFERENCES = 1500
_RESAMPLES = 1000

Ask = Callable[[Anchors, int], np.ndarray]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one strategy found, by query: overlap and candidate recall of all, recall and reciprocal rank of the judged."""

    overlap: np.ndarray
    candidates: np.ndarray
    recall: np.ndarray
    ranks: np.ndarray


@dataclass(frozen=True, eq=False)
class Trial:
    """Queries in two halves, so that whatever is chosen or referred to comes from the half that is not asked.

    Attributes
    ----------
    corpus, asked : Anchors
    exclude : ndarray or None
        Positions of the queries in the corpus, where rows are the queries.
    reference : Anchors or None
        Reference rows for hubness where rows are the queries; else the queries of the other half are.
    half : ndarray of int64
        0 or 1 for each query, by a hash of its id.
    relevant : list of ndarray
        Corpus positions of each query's relevant rows.
    """

    corpus: Anchors
    asked: Anchors
    exclude: np.ndarray | None
    reference: Anchors | None
    half: np.ndarray
    relevant: list[np.ndarray]
    k: int
    device: Any

    @classmethod
    def of(
        cls, corpus: Anchors, asked: Anchors, exclude: np.ndarray | None, reference: Anchors | None,
        qrels: Mapping[Any, Sequence[Any]] | None, k: int, seed: int, device: Any,
    ) -> Trial:  # fmt: skip
        """The trial of some queries over a corpus."""
        half = (hash_ids(asked.ids, "half", seed) % np.uint64(2)).astype(np.int64)
        place = {i: n for n, i in enumerate(corpus.ids.tolist())} if qrels else {}
        relevant = [
            np.array([place[d] for d in dict.fromkeys((qrels or {}).get(q, ())) if d in place], np.int64)
            for q in asked.ids.tolist()
        ]
        return cls(corpus, asked, exclude, reference, half, relevant, k, device)

    @cached_property
    def judged(self) -> np.ndarray:
        """Which queries have a relevant row in the corpus."""
        return np.array([len(r) > 0 for r in self.relevant], bool)

    @property
    def depth(self) -> int:
        """Candidates looked at: 100, or all rows but one."""
        return max(self.k, min(DEPTH, len(self.corpus) - 1))

    @cached_property
    def truth(self) -> np.ndarray:
        """The k nearest rows by the new model, shape (n_queries, k)."""
        target = self.corpus.target
        return top_k(self.asked.y, self.corpus.y, self.k, target.metric, exclude=self.exclude, device=self.device).ids

    def search(self, ask: Ask, rows: np.ndarray | Sequence[np.ndarray], metric: Metric, *, hubness: bool) -> np.ndarray:
        """The `depth` nearest rows of each query, shape (n_queries, depth).

        Parameters
        ----------
        ask : callable
            Makes query vectors of pairs, as chosen for a half.
        rows : ndarray of shape (n, dim), or one for each half
        metric : Metric
        hubness : bool
        """
        found = np.empty((len(self.asked), self.depth), np.int64)
        for half in (0, 1):
            members = np.flatnonzero(self.half == half)
            if not len(members):
                continue
            held = rows if isinstance(rows, np.ndarray) else rows[half]
            vectors, how = ask(self.asked.at(members), half), metric
            if hubness:
                other = (
                    self.reference if self.reference is not None else self.asked.at(np.flatnonzero(self.half != half)[:REFERENCES])
                )
                held = unit(held) if metric == Metric.COSINE else held.astype(np.float32, copy=False)
                vectors, held, how = augment(unit(vectors)), with_bias(held, ask(other, half)), Metric.DOT
            exclude = None if self.exclude is None else self.exclude[members]
            found[members] = top_k(vectors, held, self.depth, how, exclude=exclude, device=self.device).ids
        return found

    def outcome(self, found: np.ndarray) -> Outcome:
        """What a list of found rows is worth."""
        top = found[:, : self.k]
        recalls, ranks = [], []
        for row in np.flatnonzero(self.judged):
            hits = np.flatnonzero(np.isin(top[row], self.relevant[row]))
            recalls.append(len(hits) / len(self.relevant[row]))
            ranks.append(1 / (hits[0] + 1) if len(hits) else 0.0)
        return Outcome(overlap(top, self.truth), overlap(found, self.truth), np.array(recalls), np.array(ranks))

    def measure(self, outcome: Outcome) -> np.ndarray:
        """What strategies are compared by: recall where anything is judged, else overlap."""
        return outcome.recall if self.judged.any() else outcome.overlap

    def rerank(self, found: np.ndarray) -> np.ndarray:
        """The same candidates in the order of their native vectors: what encoding them lazily gives."""
        out = np.empty_like(found)
        metric = self.corpus.target.metric
        for start in range(0, len(found), 128):
            ids = found[start : start + 128]
            queries, rows = self.asked.y[start : start + 128].astype(np.float32), self.corpus.y[ids]
            if metric == Metric.L2:
                scores = -np.square(rows - queries[:, None]).sum(-1)
            else:
                if metric == Metric.COSINE:
                    rows = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-30)
                scores = np.einsum("qcd,qd->qc", rows, queries)
            out[start : start + 128] = np.take_along_axis(ids, np.argsort(-scores, axis=1, kind="stable"), 1)
        return out


class Resampler:
    """Means of resampled queries: one set of resamples for all strategies, so that their differences are paired."""

    def __init__(self, n: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.shares = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n if n else None

    def interval(self, values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
        """Percentile bootstrap interval of the mean (Efron 1979)."""
        if self.shares is None:
            return float("nan"), float("nan")
        low, high = np.quantile(self.shares @ values.astype(float), [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)
