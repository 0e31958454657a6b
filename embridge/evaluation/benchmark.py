"""A benchmark: one corpus, one set of queries, and the rows that they should find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.arrays import norms, unit
from embridge.evaluation.metrics import (
    Qrels,
    QueryScores,
    candidate_depth,
    check_qrels,
    qrels_coverage,
    query_scores,
    relevance,
)
from embridge.evaluation.rows import held
from embridge.neighbors import rankings
from embridge.neighbors.products import Named
from embridge.records import QrelsCoverage
from embridge.stores.ids import hash_ids
from embridge.types import Metric

REFERENCES = 1500  # reference queries of the hubness correction, from the other half
_SAME = 1e-3  # relative distance of a query to the row of its id, below which it is that row: float16 rounds by less
_RERANKED = 8  # queries reranked at a time


@dataclass(frozen=True, eq=False)
class References:
    """Reference queries of the hubness correction: by the new model, and by the old one where it is known."""

    y: np.ndarray
    x: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A corpus and queries in two halves: choices for a query are made on the half that it is not in.

    Attributes
    ----------
    corpus : Anchors
        The rows searched, in an order drawn by their ids: the first n are a random sample.
    queries : Anchors
    k : int
    exclude : ndarray of int64, shape (n_queries,)
        Position in the corpus of a query that is a row itself (it does not find itself); -1 for others.
    half : ndarray of int64, shape (n_queries,)
        0 or 1, by a hash of the id.
    relevant, grades : list of ndarray
        Corpus positions of each query's relevant rows, and their grades.
    coverage : QrelsCoverage or None
    references : References or None
        Reference queries of the hubness correction for both halves. None: the queries of the other half.
    own_rows : int
        Number of given queries that are rows of the corpus.
    device : str
    """

    corpus: Anchors
    queries: Anchors
    k: int
    exclude: np.ndarray
    half: np.ndarray
    relevant: list[np.ndarray]
    grades: list[np.ndarray]
    coverage: QrelsCoverage | None = None
    references: References | None = None
    own_rows: int = 0
    device: Any = "cpu"

    @classmethod
    def of(
        cls, rows: Anchors, queries: Anchors | None, k: int, *, qrels: Qrels | None = None, references: References | None = None,
        max_queries: int = 5000, seed: int = 0, device: Any = "cpu",
    ) -> Benchmark:  # fmt: skip
        """The benchmark of rows that no map was fitted on.

        Parameters
        ----------
        rows : Anchors
        queries : Anchors, optional
            Default: rows are the queries. A query with the id and vector of a row is that row. Rows do not find themselves.
        k : int
        qrels : mapping, optional
        references : References, optional
        max_queries : int, default 5000
            Larger sets of queries are sampled.
        seed : int, default 0
        device : str, default "cpu"

        Raises
        ------
        ParameterError
            Judgments of none of the queries or rows (`check_qrels`).
        """
        corpus = rows.at(np.argsort(hash_ids(rows.ids, "corpus", seed), kind="stable"))
        given = corpus if queries is None else queries
        if qrels is not None:
            check_qrels(corpus.ids, given.ids, qrels)
        used = given.sample(max_queries, seed)
        exclude = _own_rows(used, corpus, certain=queries is None)
        half = (hash_ids(used.ids, "half", seed) % np.uint64(2)).astype(np.int64)
        coverage = None if qrels is None else qrels_coverage(corpus.ids, used.ids, qrels)
        relevant, grades = relevance(corpus.ids, used.ids, qrels)
        for place in np.flatnonzero(exclude >= 0):
            others = relevant[place] != exclude[place]
            relevant[place], grades[place] = relevant[place][others], grades[place][others]
        own_rows = 0 if queries is None else int((exclude >= 0).sum())
        return cls(corpus, used, k, exclude, half, relevant, grades, coverage, references, own_rows, device)

    def at(self, members: np.ndarray) -> Benchmark:
        """The benchmark of some of the queries."""
        relevant, grades = [self.relevant[m] for m in members], [self.grades[m] for m in members]
        part = replace(
            self, queries=self.queries.at(members), exclude=self.exclude[members], half=self.half[members], relevant=relevant,
            grades=grades,
        )  # fmt: skip
        if "truth" in self.__dict__:
            part.__dict__["truth"] = self.truth[members]
        return part

    def part(self, rows: int) -> Benchmark:
        """The benchmark of the first rows of the corpus only, without judgments."""
        none = [np.empty(0, np.int64)] * len(self.queries)
        exclude = np.where(self.exclude < rows, self.exclude, -1)
        return replace(self, corpus=self.corpus.at(np.arange(rows)), exclude=exclude, relevant=none, grades=none)

    @cached_property
    def judged(self) -> np.ndarray:
        """Which queries have a relevant row in the corpus."""
        return np.array([len(rows) > 0 for rows in self.relevant], bool)

    @property
    def depth(self) -> int:
        """Number of candidates: 100, or all rows but one; at least k."""
        return candidate_depth(self.k, len(self.corpus))

    @cached_property
    def native(self) -> np.ndarray:
        """The rows by the new model as an index holds them (`held`)."""
        return held(self.corpus.y, self.corpus.target.metric)

    @cached_property
    def truth(self) -> np.ndarray:
        """The k nearest rows by the new model, shape (n_queries, k)."""
        return self.search(self.queries.y, self.corpus.y, self.corpus.target.metric, k=self.k)

    def know_truth(self, candidates: np.ndarray) -> None:
        """Take the truth from the candidates of a search of all queries by the new model."""
        self.__dict__.setdefault("truth", candidates[:, : self.k])

    def search(self, vectors: np.ndarray, rows: np.ndarray, metric: Metric, *, k: int | None = None) -> np.ndarray:
        """Positions of the `k` nearest rows (default: all candidates) of each query."""
        return self.searches(vectors, rows, metric, (None,), k=k)[0]

    def searches(
        self,
        vectors: np.ndarray,
        rows: np.ndarray,
        metric: Metric,
        offsets: Sequence[np.ndarray | None],
        *,
        k: int | None = None,
        members: np.ndarray | None = None,
        known: Named | None = None,
    ) -> list[np.ndarray]:
        """Positions of the `k` nearest rows of each query, or of those at `members`, for each offset (`rankings`)."""
        exclude = _exclusion(self.exclude if members is None else self.exclude[members])
        return rankings(vectors, rows, k or self.depth, metric, offsets=offsets, exclude=exclude, device=self.device, known=known)

    def scores(self, found: np.ndarray) -> QueryScores:
        """Scores of lists of found rows."""
        return query_scores(found, self.truth, self.relevant, self.grades)

    def measure(self, scores: QueryScores) -> np.ndarray:
        """The score that strategies are compared by: recall where queries are judged, else overlap."""
        return scores.recall if self.judged.any() else scores.overlap

    def references_for(self, half: int) -> References:
        """Reference queries for the queries of a half."""
        if self.references is not None:
            return self.references
        other = self.queries.at(np.flatnonzero(self.half != half)[:REFERENCES])
        return References(other.y, other.x)

    def native_scores(self, found: np.ndarray) -> np.ndarray:
        """Scores of candidates by their native vectors, shape of `found`."""
        out, metric = np.empty(found.shape), self.corpus.target.metric
        queries = unit(self.queries.y) if metric == Metric.COSINE else self.queries.y
        native = self.native
        for start in range(0, len(found), _RERANKED):
            part = slice(start, start + _RERANKED)
            vectors, rows = queries[part].astype(np.float64), native[found[part]].astype(np.float64)
            if metric == Metric.L2:
                out[part] = -np.square(rows - vectors[:, None]).sum(-1)
            else:
                out[part] = np.einsum("qkd,qd->qk", rows, vectors)
        return out

    def rerank(self, found: np.ndarray, depth: int, scores: np.ndarray | None = None) -> np.ndarray:
        """The first `depth` candidates of each query, ranked again by their native vectors, then the others unchanged.

        `scores` are those of `native_scores`, where they are known.
        """
        out, first = found.copy(), found[:, :depth]
        known = self.native_scores(first) if scores is None else scores[:, :depth]
        out[:, :depth] = np.take_along_axis(first, np.argsort(-known, axis=1, kind="stable"), 1)
        return out


def _exclusion(exclude: np.ndarray) -> np.ndarray | None:
    return exclude if (exclude >= 0).any() else None


def _own_rows(queries: Anchors, corpus: Anchors, *, certain: bool) -> np.ndarray:
    """Position of each query in the corpus; -1 where it is not a row of it.

    Ids of queries and of rows may coincide by chance. So, unless all queries are known to be rows, the vector must be equal too,
    by at least one of the two models.
    """
    order = np.argsort(corpus.ids, kind="stable")
    ids = queries.ids.astype(corpus.ids.dtype) if queries.ids.dtype.kind == corpus.ids.dtype.kind else queries.ids[:0]
    if len(ids) < len(queries):
        return np.full(len(queries), -1)
    places = order[np.minimum(np.searchsorted(corpus.ids, ids, sorter=order), len(corpus) - 1)]
    same = corpus.ids[places] == ids
    if not certain:
        mine = np.flatnonzero(same)
        near = np.zeros(len(mine), bool)
        for one, other in ((queries.x[mine], corpus.x[places[mine]]), (queries.y[mine], corpus.y[places[mine]])):
            near |= norms(one.astype(np.float64) - other) <= _SAME * norms(other.astype(np.float64))
        same[mine] = near
    return np.where(same, places, -1)
