"""The maps of a plan: for each half of the queries chosen on the other half."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.anchors.fold_moments import FoldMoments
from embridge.evaluation.benchmark import Benchmark
from embridge.evaluation.metrics import Qrels
from embridge.evaluation.parallel import side_by_side
from embridge.evaluation.strategies import Maps, Refit
from embridge.maps import Map
from embridge.translators import Auto, Kernel, QueryPairs
from embridge.translators.again import same_method
from embridge.translators.fitting import query_pairs
from embridge.translators.scoring import Role

_LEAST_QUERIES = 100  # of a half, to choose a map on
_MOST_QUERIES = 400


def fitted_maps(
    train: Anchors, benchmark: Benchmark, qrels: Qrels | None, *, real: bool, seed: int, device: Any
) -> tuple[Maps, Maps]:
    """Maps for the queries of half 0 and of half 1.

    Parameters
    ----------
    train : Anchors
    benchmark : Benchmark
    qrels : mapping, optional
    real : bool
        Its queries are not rows of the collection: `auto` compares methods on them, for a half on at most 400 of the other. With
        fewer than 100 in a half, or without, it compares methods on the anchors, and both halves have the same maps.
    seed : int
    device : str

    Returns
    -------
    pair of Maps
        One object twice where both halves choose the same.
    """
    folds = train.folds(device=device, full=True)
    sides = _Side(train, folds), _Side(train.reversed(), folds.reversed())
    kernel = partial(Kernel(seed=seed).fit, train, device=device, moments=folds)  # chosen on the anchors
    halves = [np.flatnonzero(benchmark.half == half) for half in (0, 1)]
    if not real or min(map(len, halves)) < _LEAST_QUERIES:
        found = side_by_side(_called, [kernel, *_fits(*sides, None, device)])
        maps = _maps(train, *found, device)
        return maps, maps
    pairs = [_pairs(benchmark.queries.at(members[:_MOST_QUERIES]), qrels, seed, half) for half, members in enumerate(halves)]
    fits = [fit for half in (0, 1) for fit in _fits(*sides, pairs[1 - half], device)]
    fitted, *found = side_by_side(_called, [kernel, *fits])
    first, second = _maps(train, fitted, *found[:2], device), _maps(train, fitted, *found[2:], device)
    return first, first if _same(first, second) else second


def _pairs(queries: Anchors, qrels: Qrels | None, seed: int, half: int) -> QueryPairs:
    judged = qrels is not None and any(query in qrels for query in queries.ids.tolist())
    return query_pairs(queries, qrels if judged else None, seed, half)


@dataclass(frozen=True, eq=False)
class _Side:
    """Anchors in one direction and their moments by folds, which every choice uses."""

    anchors: Anchors
    folds: FoldMoments

    def fit(self, role: Role, queries: QueryPairs | None, device: Any) -> Map:
        """The affine map that `Auto` chooses."""
        found = Auto(role, keep_affine=True, queries=queries).fit(self.anchors, device=device, moments=self.folds)
        return found.recorded(role=role)


def _fits(forward: _Side, backward: _Side, queries: QueryPairs | None, device: Any) -> tuple[Callable[[], Map], ...]:
    """The fits of the maps of rows and of queries."""
    reverse = None if queries is None else queries.reversed()
    return partial(forward.fit, "documents", queries, device), partial(backward.fit, "queries", reverse, device)


def _called(fit: Callable[[], Map]) -> Map:
    return fit()


def _maps(train: Anchors, kernel: Any, translation: Map, reverse: Map, device: Any) -> Maps:
    chosen = same_method(translation.record)
    return Maps(translation, reverse, kernel, Refit(chosen, train.moments(device, full=chosen.needs_full())))


def _same(first: Maps, second: Maps) -> bool:
    """Whether maps of rows and of queries are equal."""
    pairs = ((first.translation, second.translation), (first.reverse, second.reverse))
    return all(a is not None and b is not None and a.fingerprint == b.fingerprint for a, b in pairs)
