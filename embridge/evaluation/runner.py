"""The engine that runs strategies for `evaluate` and `plan`: equal names give equal numbers in both."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from embridge.arrays import unit
from embridge.errors import MapError
from embridge.evaluation.benchmark import Benchmark, References
from embridge.evaluation.metrics import by_hits
from embridge.evaluation.strategies import TRANSLATE_DOCUMENTS, Maps, Queries, Rows, Strategy, StrategyRun
from embridge.indexes.hubness import augment, with_bias
from embridge.maps import Map
from embridge.maps.queries import blend, project_queries
from embridge.translators.select import one_standard_error
from embridge.types import Metric

LAZY_DEPTHS = (10, 20, 50)  # and all candidates
WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)
_TUNING = 1000  # queries of a half used to choose the weight
_LEAST_QUERIES = 50  # to choose a weight; with fewer it is 0.5


class Runner:
    """Runs strategies on a benchmark.

    Parameters
    ----------
    benchmark : Benchmark
    maps : Maps
    weight : float, optional
        Weight of the projected query in the blend. Default: for each half of the queries the weight nearest to 0.5 that the
        other half cannot distinguish from the best.
    """

    def __init__(self, benchmark: Benchmark, maps: Maps, weight: float | None = None) -> None:
        self.benchmark, self.maps = benchmark, maps
        self.source, self.target = maps.translation.source, maps.translation.target
        self._weight = weight
        self._translated: dict[Rows, np.ndarray] = {}
        self._candidates: dict[tuple[Queries, Rows, bool], np.ndarray] = {}

    def available(self, strategies: tuple[Strategy, ...]) -> list[Strategy]:
        """The strategies that exist for these spaces and maps."""
        return [strategy for strategy in strategies if self._exists(strategy)]

    def corrections(self, strategy: Strategy) -> tuple[bool, ...]:
        """Hubness correction off and, where possible, on: not under L2, and not without reference queries."""
        if Metric.L2 in (self.source.metric, self.target.metric) or (
            strategy.queries == Queries.OLD and self.benchmark.references_for(0).x is None
        ):
            return (False,)
        return (False, True)

    def run(self, strategy: Strategy, *, hubness: bool = False) -> StrategyRun:
        """Search with a strategy, and score the results."""
        found, rows = self.found(strategy, hubness=hubness), len(self.benchmark.corpus)
        encodes = round(rows * strategy.percent / 100)
        if 0 < strategy.percent < 100:
            encodes = max(1, encodes)
        if strategy.lazy:
            encodes = len(np.unique(found))
            found = self.benchmark.rerank(found, found.shape[1])
        changed = 0 if strategy.rows == Rows.OLD else rows
        return StrategyRun(strategy, hubness, self.benchmark.scores(found), encodes, changed)

    def lazy_runs(self, strategy: Strategy, *, hubness: bool) -> Iterator[tuple[int, StrategyRun]]:
        """A lazy strategy at several depths (candidates re-encoded per query) with the results.

        Depths are 10, 20, 50 and all candidates, without those below k.
        """
        found, rows = self.found(strategy, hubness=hubness), len(self.benchmark.corpus)
        depths = [depth for depth in LAZY_DEPTHS if self.benchmark.k <= depth < found.shape[1]]
        for depth in (*depths, found.shape[1]):
            scores = self.benchmark.scores(self.benchmark.rerank(found, depth))
            changed = 0 if strategy.rows == Rows.OLD else rows
            yield depth, StrategyRun(strategy, hubness, scores, len(np.unique(found[:, :depth])), changed)

    def found(self, strategy: Strategy, *, hubness: bool = False) -> np.ndarray:
        """Candidates of each query, best first, before any of them is re-encoded; shape (n_queries, depth)."""
        key = (strategy.queries, strategy.rows, hubness)
        if key in self._candidates:
            return self._candidates[key]
        benchmark, vectors = self.benchmark, self.vectors(strategy.queries)
        metric = self.metric(strategy)
        if not hubness and strategy.rows != Rows.MIXED:
            found = benchmark.search(vectors, self.rows(strategy.rows), metric)
        else:
            found = np.empty((len(benchmark.queries), benchmark.depth), np.int64)
            for half in np.unique(benchmark.half):
                members = np.flatnonzero(benchmark.half == half)
                rows = self._mixed(strategy.percent, half) if strategy.rows == Rows.MIXED else self.rows(strategy.rows)
                chosen, how = vectors[members], metric
                if hubness:
                    references = self._references(strategy.queries, benchmark.references_for(half))
                    chosen, rows, how = corrected(chosen, rows, metric, references)
                found[members] = benchmark.search(chosen, rows, how, members=members)
        if strategy.rows in (Rows.OLD, Rows.TRANSLATED):  # lazy strategies start from these
            self._candidates[key] = found
        return found

    def vectors(self, kind: Queries) -> np.ndarray:
        """Query vectors, shape (n_queries, dim)."""
        queries = self.benchmark.queries
        if kind == Queries.BLENDED:
            projected = self._project(queries.y)
            parts = [blend(queries.x, projected, weight, self.source.metric) for weight in self.weights]
            return np.where((self.benchmark.half == 0)[:, None], *parts)
        return self._made(kind, References(queries.y, queries.x))

    def rows(self, kind: Rows) -> np.ndarray:
        """Rows that are searched, the same for all queries; shape (n, dim)."""
        corpus = self.benchmark.corpus
        if kind in (Rows.OLD, Rows.NEW):
            return corpus.x if kind == Rows.OLD else corpus.y
        if kind not in self._translated:
            chosen = self.maps.kernel if kind == Rows.KERNEL and self.maps.kernel is not None else self.maps.translation
            self._translated[kind] = translate(chosen, corpus.x)
        return self._translated[kind]

    def metric(self, strategy: Strategy) -> Metric:
        """Of the space that is searched."""
        return (self.source if strategy.rows == Rows.OLD else self.target).metric

    @cached_property
    def weights(self) -> tuple[float, float]:
        """The weight of the projected query in the blend, for queries of either half."""
        if self._weight is not None:
            return self._weight, self._weight
        return self._chosen_weight(1), self._chosen_weight(0)

    def _exists(self, strategy: Strategy) -> bool:
        if strategy.queries == Queries.NEW and strategy.rows == Rows.OLD:
            return self.source.dim == self.target.dim
        if strategy.queries == Queries.PROJECTED:
            return self.maps.reverse is not None
        if strategy.queries in (Queries.ADJOINT, Queries.BLENDED):
            return self._has_adjoint
        return strategy.rows != Rows.KERNEL or self.maps.kernel is not None

    @cached_property
    def _has_adjoint(self) -> bool:
        try:
            self._project(self.benchmark.queries.y[:1])
        except MapError:  # a kernel map, or L2 and no isometry
            return False
        return True

    def _project(self, vectors: np.ndarray) -> np.ndarray:
        return project_queries(vectors, self.maps.translation, self.source)

    def _made(self, kind: Queries, both: References) -> np.ndarray:
        if kind == Queries.OLD and both.x is not None:
            return both.x
        if kind == Queries.PROJECTED and self.maps.reverse is not None:
            return self.maps.reverse.apply(both.y)
        return self._project(both.y) if kind == Queries.ADJOINT else both.y

    def _references(self, kind: Queries, references: References) -> np.ndarray:
        """Reference queries in the searched space. For the blend they are projected: those of the old model may be unknown."""
        return self._made(Queries.ADJOINT if kind == Queries.BLENDED else kind, references)

    def _mixed(self, percent: int, half: int) -> np.ndarray:
        """Translated rows; those found by most queries of the other half are re-encoded."""
        found = self.found(TRANSLATE_DOCUMENTS)[self.benchmark.half != half]
        rows = self.rows(Rows.TRANSLATED).copy()
        chosen = by_hits(found, len(rows))[0][: max(1, round(len(rows) * percent / 100))]
        rows[chosen] = self.benchmark.corpus.y[chosen]
        return rows

    def _chosen_weight(self, half: int) -> float:
        """The weight nearest to 0.5 that one half of the queries cannot distinguish from the best."""
        small = self.benchmark.at(np.flatnonzero(self.benchmark.half == half)[:_TUNING])
        measured = int(small.judged.sum()) if self.benchmark.judged.any() else len(small.queries)
        if measured < _LEAST_QUERIES:
            return 0.5
        projected = self._project(small.queries.y)
        weights, scores = sorted(WEIGHTS, key=lambda w: (abs(w - 0.5), w)), []
        for weight in weights:
            vectors = blend(small.queries.x, projected, weight, self.source.metric)
            found = small.search(vectors, small.corpus.x, self.source.metric, k=small.k)
            scores.append(small.measure(small.scores(found)))
        return weights[one_standard_error(np.array(scores))[0]]


def translate(translation: Map, rows: np.ndarray) -> np.ndarray:
    """Translated rows, float32; 8,192 at a time."""
    out = np.empty((len(rows), translation.target.dim), np.float32)
    for start in range(0, len(rows), 8192):
        out[start : start + 8192] = translation.apply(rows[start : start + 8192])
    return out


def corrected(
    queries: np.ndarray, rows: np.ndarray, metric: Metric, references: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Metric]:
    """Queries and rows with hubness correction, as in an index (`embridge.indexes.hubness`)."""
    held = unit(rows) if metric == Metric.COSINE else rows.astype(np.float32, copy=False)
    return augment(unit(queries)), with_bias(held, references), Metric.DOT
