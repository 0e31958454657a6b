"""The maps of a rollout: of rows from the old to the new space, and of queries from the new to the old one.

Methods and parameters are chosen when the rollout starts (`fit_first`), with logged queries where there are some. Native rows that
are added later update the moments, and the same methods are solved again; a new map replaces the present one where it is better on
native rows that neither was fitted on (`refit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.anchors.fold_moments import FoldMoments
from embridge.maps import KernelMap, Map
from embridge.neighbors import overlap, top_k
from embridge.rollout.stage import HELD_OUT
from embridge.rollout.steps import MAP, MOMENTS, QUERIES_MAP
from embridge.tensors import write_tensors
from embridge.translators import Kernel, fit
from embridge.translators.again import same_method
from embridge.translators.fitting import query_pairs
from embridge.translators.scoring import HeldOutRows, Role, list_size, midpoints

LEAST_QUERIES = 20  # to compare methods on
LEAST_HELD_OUT = 30  # rows to compare two maps on; with fewer the map on more rows is taken
MOST_KERNEL = 5000  # rows that a kernel is fitted on: its cost grows with their square
MOST_HELD_OUT = 5000


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps of a stage and the moments that they are fitted on.

    Attributes
    ----------
    rows : LinearMap or KernelMap
        From the old to the new space.
    queries : LinearMap or KernelMap
        From the new to the old space.
    moments : FoldMoments
        Of all native rows but the held-out ones.
    """

    rows: Map
    queries: Map
    moments: FoldMoments

    def write(self, folder: Path) -> None:
        """Write the three files."""
        for name, value in ((MAP, self.rows), (QUERIES_MAP, self.queries), (MOMENTS, self.moments)):
            write_tensors(folder / name, *value.to_file())


def fit_first(
    anchors: Anchors, queries: Anchors | None, qrels: Mapping[Any, Sequence[Any] | Mapping[Any, float]] | None, seed: int
) -> Maps:
    """Choose methods and fit the maps.

    Parameters
    ----------
    anchors : Anchors
        The native rows.
    queries : Anchors, optional
        Logged queries: the methods of the maps are compared on half of them.
    qrels : mapping, optional
    seed : int

    Raises
    ------
    TooFewAnchorsError
        Too few native rows to choose a map.
    """
    train = anchors.split(HELD_OUT, seed)[0]
    folds = train.folds(full=True)
    documents = fit(train.sample(MOST_KERNEL, seed) if len(train) > MOST_KERNEL else train, "auto")
    return Maps(_plain(documents), fit_projection(folds, queries, qrels, seed), folds)


def fit_projection(
    moments: FoldMoments, queries: Anchors | None, qrels: Mapping[Any, Sequence[Any] | Mapping[Any, float]] | None, seed: int
) -> Map:
    """Choose and fit the map of queries; methods are compared on half of the logged queries where there are at least 20."""
    pairs = None
    if queries is not None and len(queries) >= LEAST_QUERIES:
        judged = {query: qrels[query] for query in queries.ids.tolist() if query in qrels} if qrels else None
        pairs = query_pairs(queries, judged or None, seed).reversed()
    return _plain(fit(moments.reversed(), "auto", role="queries", queries=pairs))


def refit(before: Maps, moments: FoldMoments, sample: Anchors, held_out: Anchors) -> Maps:
    """The maps with more native rows: each is replaced where a map on all of them is better on held-out rows.

    Parameters
    ----------
    before : Maps
    moments : FoldMoments
        Of all native rows but the held-out ones.
    sample : Anchors
        At most 5,000 of these rows, for a kernel.
    held_out : Anchors
        Native rows that no map was fitted on.
    """
    candidates: list[Map] = [_again(before.rows, "documents", moments)]
    if isinstance(before.rows, KernelMap):
        candidates.append(_kernel_again(before.rows, sample))
    rows = _best(before.rows, candidates, held_out, "documents")
    projection = _best(before.queries, [_again(before.queries, "queries", moments.reversed())], held_out.reversed(), "queries")
    return Maps(rows, projection, moments)


def _again(chosen: Map, role: Role, moments: FoldMoments) -> Map:
    """The affine map by the method and parameters of `chosen` on other moments.

    alpha is in inverse proportion to the number of rows, as the best alpha of ridge regression is.
    """
    record = chosen.record
    if record.method == "kernel":
        record = replace(record, method="bridge")
    found = fit(moments, same_method(record, record.anchors / moments.total().n))
    return _plain(found.recorded(role=role, chosen_by=record.chosen_by))


def _kernel_again(chosen: KernelMap, sample: Anchors) -> Map:
    """The kernel map by the parameters of `chosen` on other rows."""
    known = chosen.record.parameters
    alpha = known["alpha"] * chosen.record.anchors / len(sample)
    method = Kernel(
        penalty=known["penalty"], alpha=alpha, shrinkage_target_weight=known["shrinkage_target_weight"],
        mean_weight=known.get("mean_weight", 1.0),
    )  # fmt: skip
    return _plain(fit(sample, method).recorded(role="documents", chosen_by=chosen.record.chosen_by))


def _best(present: Map, candidates: Sequence[Map], held_out: Anchors, role: Role) -> Map:
    """The candidate with the best scores, if they exceed those of the present map by more than one standard error."""
    if len(held_out) < LEAST_HELD_OUT:
        return candidates[-1]
    held_out = held_out.at(np.argsort(held_out.hashes()))  # stand-in queries are made of them in order
    own = _scores(present, held_out, role)
    scored = [(candidate, _scores(candidate, held_out, role)) for candidate in candidates]
    best, scores = max(scored, key=lambda one: one[1].mean())
    gains = scores - own
    return best if gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)) else present


def _scores(translation: Map, rows: Anchors, role: Role) -> np.ndarray:
    """Overlap of the neighbors of stand-in queries with their native neighbors, by which translators are chosen too."""
    if role == "documents":
        mean = rows.y.mean(axis=0, dtype=np.float64)
        return HeldOutRows.of(rows.y, mean, role, rows.target).scores(translation.apply(rows.x))
    queries, k = midpoints(rows.x, rows.source), list_size(len(rows))
    truth = top_k(queries, rows.x, k, rows.source.metric).ids
    return overlap(top_k(translation.apply(queries), rows.y, k, rows.target.metric).ids, truth)


def _plain(translation: Map) -> Any:
    """The map without the duration of its fit, so that the same rows give the same file."""
    return translation.recorded(seconds=0.0)


__all__ = ["MOST_HELD_OUT", "MOST_KERNEL", "Maps", "fit_first", "refit"]
