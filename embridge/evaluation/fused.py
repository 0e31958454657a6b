"""Runs fusions and progressive re-encoding: each half of the queries with what was chosen on the other half.

At a stage of progressive re-encoding the rows that most queries of the other half reach (their fused 100 nearest before any row is
encoded) have native vectors. They are anchors too: the map is fitted again on all anchors, by the method and the parameters of the
first, and translates the other rows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from embridge.anchors.moments import Moments
from embridge.arrays import unit
from embridge.evaluation.benchmark import References
from embridge.evaluation.fusion import Candidates, CandidateSearch, best_fusion, fusion_scores
from embridge.evaluation.metrics import by_hits
from embridge.evaluation.parallel import side_by_side
from embridge.evaluation.rows import QueriedRows, held
from embridge.evaluation.strategies import FUSE, Queries, Refit, Rows, Strategy
from embridge.indexes.fusion import Fusion, Hubness
from embridge.indexes.hubness import mean_of_largest
from embridge.neighbors.products import Changed, Named, scaled

if TYPE_CHECKING:
    from embridge.evaluation.runner import Runner


class FusedSearch:
    """Fused searches on the benchmark of a `Runner`."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._benchmark = runner, runner.benchmark
        self._members = [np.flatnonzero(self._benchmark.half == half) for half in (0, 1)]
        self._old: dict[tuple[Queries, int], tuple[np.ndarray, np.ndarray]] = {}
        self._orders: dict[tuple[Queries, int], np.ndarray] = {}
        self._moments: dict[tuple[Queries, int], tuple[int, Moments]] = {}

    def run(self, strategy: Strategy) -> tuple[np.ndarray, Fusion]:
        """Choose a fusion on each half of the queries, and search with it for the other half.

        Returns
        -------
        found : ndarray of int64, shape (n_queries, depth)
        fusion : Fusion
            Chosen on all queries: the one to use.
        """
        benchmark, depth = self._benchmark, self._benchmark.depth
        hubness = self._corrections(strategy.queries)
        for half in (0, 1):  # before threads need them
            if strategy.rows == Rows.PROGRESSIVE:
                self._order_for(strategy.queries, half)
            else:
                self._runner.rows(strategy.rows, half)
        candidates, tables = zip(*side_by_side(partial(self._compared, strategy), (0, 1)), strict=True)
        if strategy.rows == Rows.TRANSLATED:
            for half in (0, 1):
                chosen = best_fusion(tables[half], hubness)
                self._orders[strategy.queries, 1 - half] = self._order(candidates[half], chosen)
        found = np.empty((len(benchmark.queries), depth), np.int64)
        for half in (0, 1):
            found[self._members[half]] = candidates[half].ranked(best_fusion(tables[1 - half], hubness), depth)
        return found, best_fusion(np.concatenate(tables, axis=1), hubness)

    def _compared(self, strategy: Strategy, half: int) -> tuple[Candidates, np.ndarray]:
        """Candidates of the queries of a half, and the scores of every fusion on them."""
        candidates = self._candidates(strategy, half)
        return candidates, self._scores(candidates, strategy.queries, half)

    def _scores(self, candidates: Candidates, queries: Queries, half: int) -> np.ndarray:
        """Scores of every fusion on the queries of a half."""
        benchmark = self._benchmark
        relevant = benchmark.relevant if benchmark.judged.any() else benchmark.truth
        chosen = [relevant[member] for member in self._members[half]]
        return fusion_scores(candidates, chosen, benchmark.k, self._corrections(queries))

    def _corrections(self, queries: Queries) -> tuple[Hubness, ...]:
        """Rows as queries would be their own references, and references by the old model may be unknown."""
        references = self._benchmark.references_for(0)
        if (self._benchmark.exclude >= 0).all() or not len(references.y) or not len(self._benchmark.references_for(1).y):
            return (Hubness.NONE,)
        return tuple(Hubness) if queries != Queries.OLD or references.x is not None else (Hubness.NONE, Hubness.NEW)

    def _candidates(self, strategy: Strategy, half: int) -> Candidates:
        """Candidates of the queries of a half, over the rows that the other half determines."""
        benchmark, members = self._benchmark, self._members[half]
        new_queries = scaled(benchmark.queries.y[members])
        if (strategy.queries, half) not in self._old:
            self._old[strategy.queries, half] = self._old_side(strategy.queries, half)
        old_queries, old_bias = self._old[strategy.queries, half]
        is_corrected = len(self._corrections(strategy.queries)) > 1
        new_rows, changed, new_bias = benchmark.native, None, None
        if strategy.rows == Rows.PROGRESSIVE:
            changed, new_bias = self._changed(strategy, half, new_queries, is_corrected=is_corrected)
        else:
            new_rows = held(self._runner.rows(strategy.rows, half), benchmark.corpus.target.metric)
            if is_corrected:
                new_bias = self._runner.bias(strategy.rows, Queries.NEW, half)
        biases = None if new_bias is None else (old_bias, new_bias)
        rows = Rows.NEW if strategy.rows == Rows.PROGRESSIVE else strategy.rows
        products = self._runner.products
        known = Named(products, (strategy.queries, Rows.OLD, half)), Named(products, (Queries.NEW, rows, half), changed)
        search = CandidateSearch(old_queries, new_queries, benchmark.depth, corrected=is_corrected)
        search.offer(self._old_rows, new_rows, np.arange(len(new_rows)), biases, benchmark.exclude[members], known)
        return search.candidates()

    @cached_property
    def _old_rows(self) -> np.ndarray:
        return held(self._benchmark.corpus.x, self._benchmark.corpus.source.metric)

    def _old_side(self, kind: Queries, half: int) -> tuple[np.ndarray, np.ndarray]:
        """Queries of a half for the old side, and the biases of its rows (zero without references)."""
        benchmark = self._benchmark
        given = benchmark.queries
        queries = scaled(self._runner.made(kind, References(given.y, given.x), half)[self._members[half]])
        if Hubness.OLD not in self._corrections(kind):
            return queries, np.zeros(len(self._old_rows), np.float32)
        return queries, self._runner.bias(Rows.OLD, kind, half)

    def _changed(
        self, strategy: Strategy, half: int, queries: np.ndarray, *, is_corrected: bool
    ) -> tuple[Changed | None, np.ndarray | None]:
        """Rows that are not re-encoded, by a map that is fitted on those that are, too; and the biases of all rows."""
        corpus, refit, rest = self._benchmark.corpus, self._runner.maps[half].refit, np.sort(self._left(strategy, half))
        found = self._runner.bias(Rows.NEW, Queries.NEW, half).copy() if is_corrected else None
        if refit is None or not len(rest):
            return None, found
        chosen = self._order_for(strategy.queries, half)[: strategy.encodes(len(corpus))]
        fitted = refit.method.fit(self._moments_with(strategy.queries, half, refit, chosen))
        through = QueriedRows.of(fitted, corpus.x[rest])
        if found is not None:
            references = through.queries(unit(self._benchmark.references_for(half).y))
            found[rest] = mean_of_largest(through.rows, references) / 2
        return Changed(rest, through.rows, through.queries(queries)), found

    def _left(self, strategy: Strategy, half: int) -> np.ndarray:
        """Rows that are not re-encoded."""
        rows = len(self._benchmark.corpus)
        count = strategy.encodes(rows)
        return self._order_for(strategy.queries, half)[count:] if count < rows else np.empty(0, np.int64)

    def _moments_with(self, queries: Queries, half: int, refit: Refit, chosen: np.ndarray) -> Moments:
        """Moments of the anchors and of the chosen rows; those of an earlier stage are continued."""
        corpus = self._benchmark.corpus
        done, moments = self._moments.get((queries, half), (0, refit.moments))
        if done > len(chosen):
            done, moments = 0, refit.moments
        rest = chosen[done:]
        if len(rest):
            added = Moments.from_rows(corpus.x[rest], corpus.y[rest], corpus.source, corpus.target, full=moments.full)
            moments = moments + added
        self._moments[queries, half] = len(chosen), moments
        return moments

    def _order_for(self, queries: Queries, half: int) -> np.ndarray:
        """The order in which rows are re-encoded for the queries of a half: by the number of the other half's that reach them."""
        if (queries, half) not in self._orders:
            other = 1 - half
            candidates = self._candidates(replace(FUSE, queries=queries), other)
            chosen = best_fusion(self._scores(candidates, queries, other), self._corrections(queries))
            self._orders[queries, half] = self._order(candidates, chosen)
        return self._orders[queries, half]

    def _order(self, candidates: Candidates, fusion: Fusion) -> np.ndarray:
        return by_hits(candidates.ranked(fusion, self._benchmark.depth), len(self._benchmark.corpus))[0]
