"""The engine that runs strategies for `evaluate` and `plan`: equal names give equal numbers in both."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial

import numpy as np

from embridge.device import free_memory
from embridge.errors import MapError
from embridge.evaluation.benchmark import Benchmark, References
from embridge.evaluation.fused import FusedSearch
from embridge.evaluation.metrics import by_hits
from embridge.evaluation.parallel import side_by_side
from embridge.evaluation.rows import held, translate
from embridge.evaluation.strategies import RE_ENCODE, TRANSLATE_DOCUMENTS, Maps, Queries, Rows, Strategy, StrategyRun
from embridge.indexes.hubness import bias
from embridge.maps import Map
from embridge.maps.queries import blend, project_queries
from embridge.neighbors.products import Changed, Named, Products
from embridge.translators.select import one_standard_error
from embridge.types import Metric

LAZY_DEPTHS = (10, 20, 50)  # and all candidates
WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)
_TUNING = 1000  # queries of a half used to choose the weight
_MEMORY_SHARE = 8  # of free memory, one part for products that several strategies use
_LEAST_QUERIES = 50  # to choose a weight; with fewer it is 0.5


class Runner:
    """Runs strategies on a benchmark.

    Parameters
    ----------
    benchmark : Benchmark
    maps : Maps or pair of Maps
        A pair: the maps for the queries of half 0 and of half 1. They were chosen on the other half.
    weight : float, optional
        Weight of the projected query in the blend. Default: for each half of the queries the weight nearest to 0.5 that the
        other half cannot distinguish from the best.
    hubness : bool, default True
        Strategies run with hubness correction too: both are then searched at once.
    """

    def __init__(
        self, benchmark: Benchmark, maps: Maps | tuple[Maps, Maps], weight: float | None = None, *, hubness: bool = True
    ) -> None:
        self.benchmark = benchmark
        self._hubness = hubness
        self.maps = maps if isinstance(maps, tuple) else (maps, maps)
        self.source, self.target = self.maps[0].translation.source, self.maps[0].translation.target
        self._weight = weight
        self._translated: dict[tuple[Rows, int], np.ndarray] = {}
        self._candidates: dict[tuple[Queries, Rows, float], dict[bool, np.ndarray]] = {}
        self._biases: dict[tuple[Rows, Queries, int], np.ndarray] = {}
        self._native: dict[tuple[str, bool], np.ndarray] = {}
        self.products = Products(free_memory() // _MEMORY_SHARE)
        self._fused = FusedSearch(self)

    def available(self, strategies: tuple[Strategy, ...]) -> list[Strategy]:
        """The strategies that exist for these spaces and maps."""
        return [strategy for strategy in strategies if self._exists(strategy)]

    def corrections(self, strategy: Strategy) -> tuple[bool, ...]:
        """Hubness correction off and, where possible, on: not under L2, and not without reference queries."""
        if self._has_l2 or strategy.fused:  # a fusion chooses its correction
            return (False,)
        if strategy.queries == Queries.OLD and self.benchmark.references_for(0).x is None:
            return (False,)
        return (False, True)

    def run(self, strategy: Strategy, *, hubness: bool = False) -> StrategyRun:
        """Search with a strategy, and score the results."""
        self.benchmark.know_truth(self.found(RE_ENCODE))
        fusion = None
        if strategy.fused:
            found, fusion = self._fused.run(strategy)
        else:
            found = self.found(strategy, hubness=hubness)
        rows = len(self.benchmark.corpus)
        encodes = strategy.encodes(rows)
        if strategy.lazy:
            encodes = len(np.unique(found))
            found = self.benchmark.rerank(found, found.shape[1], self._native_scores(strategy, found, hubness=hubness))
        changed = 0 if strategy.rows == Rows.OLD else rows
        return StrategyRun(strategy, hubness, self.benchmark.scores(found), encodes, changed, fusion)

    def lazy_runs(self, strategy: Strategy, *, hubness: bool) -> Iterator[tuple[int, StrategyRun]]:
        """A lazy strategy at several depths (candidates re-encoded per query) with the results.

        Depths are 10, 20, 50 and all candidates, without those below k.
        """
        found, rows = self.found(strategy, hubness=hubness), len(self.benchmark.corpus)
        depths = [depth for depth in LAZY_DEPTHS if self.benchmark.k <= depth < found.shape[1]]
        for depth in (*depths, found.shape[1]):
            known = self._native_scores(strategy, found, hubness=hubness)
            scores = self.benchmark.scores(self.benchmark.rerank(found, depth, known))
            changed = 0 if strategy.rows == Rows.OLD else rows
            yield depth, StrategyRun(strategy, hubness, scores, len(np.unique(found[:, :depth])), changed)

    def found(self, strategy: Strategy, *, hubness: bool = False) -> np.ndarray:
        """Candidates of each query, best first, before any of them is re-encoded; shape (n_queries, depth)."""
        key = (strategy.queries, strategy.rows, strategy.percent)
        if hubness not in self._candidates.get(key, {}):
            wanted = self.corrections(strategy) if self._hubness else (hubness,)
            self._candidates[key] = dict(zip(wanted, self._searched(strategy, wanted), strict=True))
        return self._candidates[key][hubness]

    def _searched(self, strategy: Strategy, corrections: tuple[bool, ...]) -> list[np.ndarray]:
        """Candidates without and with hubness correction, out of the same products."""
        benchmark, vectors, metric = self.benchmark, self.vectors(strategy.queries), self.metric(strategy)
        if not (any(corrections) or strategy.rows == Rows.MIXED or (self._has_pair and strategy.rows not in (Rows.OLD, Rows.NEW))):
            return benchmark.searches(vectors, self.rows(strategy.rows), metric, (None,))
        halves = np.unique(benchmark.half).tolist()
        for half in halves:  # before threads need it
            self.found(TRANSLATE_DOCUMENTS) if strategy.rows == Rows.MIXED else self.rows(strategy.rows, half)
        search = partial(self._searched_half, strategy, corrections, vectors)
        found = [np.empty((len(benchmark.queries), benchmark.depth), np.int64) for _ in corrections]
        for half, parts in zip(halves, side_by_side(search, halves), strict=True):
            for each, part in zip(found, parts, strict=True):
                each[benchmark.half == half] = part
        return found

    def _searched_half(self, strategy: Strategy, corrections: tuple[bool, ...], vectors: np.ndarray, half: int) -> list[np.ndarray]:
        members, known, chosen = np.flatnonzero(self.benchmark.half == half), None, None
        if strategy.rows == Rows.MIXED:
            rows, chosen = self._mixed(strategy, half)
            changed = Changed(chosen, self.benchmark.corpus.y[chosen])
            known = Named(self.products, (Queries.NEW, Rows.TRANSLATED, half), changed, self.rows(Rows.TRANSLATED, half))
        else:
            rows = self.rows(strategy.rows, half)
            if strategy.rows != Rows.OLD or strategy.queries in (Queries.OLD, Queries.PROJECTED):  # fusions need these, too
                known = Named(self.products, (strategy.queries, strategy.rows, half))
        offsets = [self._offset(strategy, half, chosen) if corrected else None for corrected in corrections]
        return self.benchmark.searches(vectors[members], rows, self.metric(strategy), offsets, members=members, known=known)

    def _offset(self, strategy: Strategy, half: int, chosen: np.ndarray | None) -> np.ndarray:
        """The hubness correction of the rows that queries of a half search; `chosen` rows are native ones of mixed rows."""
        if chosen is None:
            return self.bias(strategy.rows, strategy.queries, half)
        found = self.bias(Rows.TRANSLATED, strategy.queries, half).copy()
        found[chosen] = self.bias(Rows.NEW, strategy.queries, half)[chosen]
        return found

    def bias(self, rows: Rows, queries: Queries, half: int) -> np.ndarray:
        """Half of each row's mean similarity to its nearest reference queries (`embridge.indexes.hubness`), shape (n,), float32."""
        kind = Queries.ADJOINT if queries == Queries.BLENDED else queries if rows == Rows.OLD else Queries.NEW
        key = (rows, kind, half)
        if key not in self._biases:
            metric = (self.source if rows == Rows.OLD else self.target).metric
            self._biases[key] = bias(held(self.rows(rows, half), metric), self._references(kind, half)) / 2
        return self._biases[key]

    def vectors(self, kind: Queries) -> np.ndarray:
        """Query vectors, shape (n_queries, dim)."""
        queries = self.benchmark.queries
        both = References(queries.y, queries.x)
        if kind == Queries.BLENDED:
            parts = [
                blend(queries.x, self.made(Queries.ADJOINT, both, half), self.weights[half], self.source.metric) for half in (0, 1)
            ]
        elif self._has_pair and kind in (Queries.PROJECTED, Queries.ADJOINT):
            parts = [self.made(kind, both, half) for half in (0, 1)]
        else:
            return self.made(kind, both, 0)
        return np.where((self.benchmark.half == 0)[:, None], *parts)

    def made(self, kind: Queries, both: References, half: int) -> np.ndarray:
        """Vectors of one kind, made for a half of the queries out of those of both models."""
        if kind == Queries.OLD and both.x is not None:
            return both.x
        reverse = self.maps[half].reverse
        if kind == Queries.PROJECTED and reverse is not None:
            return reverse.apply(both.y)
        return self._project(both.y, half) if kind in (Queries.ADJOINT, Queries.PROJECTED) else both.y

    def rows(self, kind: Rows, half: int = 0) -> np.ndarray:
        """Rows that queries of a half search; shape (n, dim)."""
        corpus = self.benchmark.corpus
        if kind in (Rows.OLD, Rows.NEW):
            return corpus.x if kind == Rows.OLD else corpus.y
        first, chosen = (self._map(kind, each) for each in (0, half))
        key = (kind, 0 if chosen is first else half)
        if key not in self._translated:
            self._translated[key] = translate(chosen, corpus.x)
        return self._translated[key]

    def _map(self, kind: Rows, half: int) -> Map:
        """The map that translates rows for the queries of a half."""
        maps = self.maps[half]
        return maps.kernel if kind == Rows.KERNEL and maps.kernel is not None else maps.translation

    def metric(self, strategy: Strategy) -> Metric:
        """Of the space that is searched."""
        return (self.source if strategy.rows == Rows.OLD else self.target).metric

    @cached_property
    def weights(self) -> tuple[float, float]:
        """The weight of the projected query in the blend, for queries of either half."""
        if self._weight is not None:
            return self._weight, self._weight
        first, second = side_by_side(self._chosen_weight, (1, 0))
        return first, second

    @property
    def _has_pair(self) -> bool:
        return self.maps[0] is not self.maps[1]

    @property
    def _has_l2(self) -> bool:
        return Metric.L2 in (self.source.metric, self.target.metric)

    def _exists(self, strategy: Strategy) -> bool:
        maps = self.maps[0]
        if strategy.rows == Rows.KERNEL and maps.kernel is None:
            return False
        if strategy.fused:
            reachable = strategy.queries == Queries.OLD or maps.reverse is not None or self._has_adjoint
            return reachable and not self._has_l2 and (strategy.rows != Rows.PROGRESSIVE or maps.refit is not None)
        if strategy.queries == Queries.NEW and strategy.rows == Rows.OLD:
            return self.source.dim == self.target.dim
        if strategy.queries == Queries.PROJECTED:
            return maps.reverse is not None
        if strategy.queries in (Queries.ADJOINT, Queries.BLENDED):
            return self._has_adjoint
        return True

    @cached_property
    def _has_adjoint(self) -> bool:
        try:
            self._project(self.benchmark.queries.y[:1], 0)
        except MapError:  # a kernel map, or L2 and no isometry
            return False
        return True

    def _project(self, vectors: np.ndarray, half: int) -> np.ndarray:
        return project_queries(vectors, self.maps[half].translation, self.source)

    def _references(self, kind: Queries, half: int) -> np.ndarray:
        """Reference queries in the searched space. For the blend they are projected: those of the old model may be unknown."""
        return self.made(kind, self.benchmark.references_for(half), half)

    def _native_scores(self, strategy: Strategy, found: np.ndarray, *, hubness: bool) -> np.ndarray:
        """Native scores of the candidates of a lazy strategy, computed once."""
        key = (strategy.name, hubness)
        if key not in self._native:
            self._native[key] = self.benchmark.native_scores(found)
        return self._native[key]

    def _mixed(self, strategy: Strategy, half: int) -> tuple[np.ndarray, np.ndarray]:
        """Translated rows, of which those found by most queries of the other half are re-encoded; and the positions of these."""
        found = self.found(TRANSLATE_DOCUMENTS)[self.benchmark.half != half]
        rows = self.rows(Rows.TRANSLATED, half).copy()
        chosen = np.sort(by_hits(found, len(rows))[0][: strategy.encodes(len(rows))])
        rows[chosen] = self.benchmark.corpus.y[chosen]
        return rows, chosen

    def _chosen_weight(self, half: int) -> float:
        """The weight nearest to 0.5 that one half of the queries cannot distinguish from the best."""
        small = self.benchmark.at(np.flatnonzero(self.benchmark.half == half)[:_TUNING])
        measured = int(small.judged.sum()) if self.benchmark.judged.any() else len(small.queries)
        if measured < _LEAST_QUERIES:
            return 0.5
        projected = self._project(small.queries.y, 1 - half)  # by the map that the weight is for
        weights, scores = sorted(WEIGHTS, key=lambda w: (abs(w - 0.5), w)), []
        for weight in weights:
            vectors = blend(small.queries.x, projected, weight, self.source.metric)
            found = small.search(vectors, small.corpus.x, self.source.metric, k=small.k)
            scores.append(small.measure(small.scores(found)))
        return weights[one_standard_error(np.array(scores))[0]]
