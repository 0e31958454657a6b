"""The maps of a plan: for each half of the queries chosen on the other half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.anchors.fold_moments import FoldMoments
from embridge.evaluation.benchmark import Benchmark
from embridge.evaluation.metrics import Qrels
from embridge.evaluation.strategies import Maps, Refit
from embridge.maps import KernelMap, Map
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
    kernel = Kernel(seed=seed).fit(train, device=device, moments=folds)  # chosen on the anchors
    halves = [np.flatnonzero(benchmark.half == half) for half in (0, 1)]
    if not real or min(map(len, halves)) < _LEAST_QUERIES:
        maps = _fit(*sides, None, kernel, device)
        return maps, maps
    pairs = [_pairs(benchmark.queries.at(members[:_MOST_QUERIES]), qrels, seed, half) for half, members in enumerate(halves)]
    first, second = (_fit(*sides, pairs[1 - half], kernel, device) for half in (0, 1))
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


def _fit(forward: _Side, backward: _Side, queries: QueryPairs | None, kernel: KernelMap, device: Any) -> Maps:
    translation = forward.fit("documents", queries, device)
    reverse = backward.fit("queries", None if queries is None else queries.reversed(), device)
    chosen = same_method(translation.record)
    moments = forward.anchors.moments(device, full=chosen.needs_full())
    return Maps(translation, reverse, kernel, Refit(chosen, moments))


def _same(first: Maps, second: Maps) -> bool:
    """Whether maps of rows and of queries are equal."""
    pairs = ((first.translation, second.translation), (first.reverse, second.reverse))
    return all(a is not None and b is not None and a.fingerprint == b.fingerprint for a, b in pairs)
