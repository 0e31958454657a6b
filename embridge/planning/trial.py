"""One corpus, one set of queries, and what a list of found rows is worth on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.evaluation import Outcome, Qrels, candidate_depth, corrected, judgements, outcome_of
from embridge.ids import hash_ids
from embridge.neighbors import top_k
from embridge.types import Metric

REFERENCES = 1500

Ask = Callable[[Anchors, int], np.ndarray]


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
    relevant, grades : list of ndarray
        Corpus positions of each query's relevant rows, and their grades.
    """

    corpus: Anchors
    asked: Anchors
    exclude: np.ndarray | None
    reference: Anchors | None
    half: np.ndarray
    relevant: list[np.ndarray]
    grades: list[np.ndarray]
    k: int
    device: Any

    @classmethod
    def of(
        cls, corpus: Anchors, asked: Anchors, exclude: np.ndarray | None, reference: Anchors | None,
        qrels: Qrels | None, k: int, seed: int, device: Any,
    ) -> Trial:  # fmt: skip
        """The trial of some queries over a corpus."""
        half = (hash_ids(asked.ids, "half", seed) % np.uint64(2)).astype(np.int64)
        relevant, grades = judgements(corpus.ids, asked.ids, qrels)
        return cls(corpus, asked, exclude, reference, half, relevant, grades, k, device)

    def at(self, members: np.ndarray) -> Trial:
        """The trial of some of the queries."""
        exclude = None if self.exclude is None else self.exclude[members]
        relevant, grades = [self.relevant[m] for m in members], [self.grades[m] for m in members]
        return replace(
            self, asked=self.asked.at(members), exclude=exclude, half=self.half[members], relevant=relevant, grades=grades
        )

    @cached_property
    def judged(self) -> int:
        """Queries that have a relevant row in the corpus."""
        return sum(len(rows) > 0 for rows in self.relevant)

    @property
    def depth(self) -> int:
        """Candidates looked at: 100, or all rows but one."""
        return candidate_depth(self.k, len(self.corpus))

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
                vectors, held, how = corrected(vectors, held, metric, ask(other, half))
            exclude = None if self.exclude is None else self.exclude[members]
            found[members] = top_k(vectors, held, self.depth, how, exclude=exclude, device=self.device).ids
        return found

    def outcome(self, found: np.ndarray) -> Outcome:
        """What a list of found rows is worth."""
        return outcome_of(found, self.truth, self.relevant, self.grades)

    def measure(self, outcome: Outcome) -> np.ndarray:
        """What strategies are compared by: recall where anything is judged, else overlap."""
        return outcome.recall if self.judged else outcome.overlap

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
