"""Strategies that search old vectors, or both vectors of a row, through the index that a store really has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.errors import MapError, ParameterError
from embridge.evaluation.bootstrap import bootstrap_interval
from embridge.evaluation.metrics import Qrels
from embridge.indexes.exact import search_exactly
from embridge.indexes.fusion import Fusion
from embridge.indexes.through_store import is_searchable, search_store
from embridge.maps import Map
from embridge.maps.queries import blend, project_queries
from embridge.neighbors import check_k
from embridge.records.through import IndexEvaluation, IndexScore
from embridge.stores.base import Collection
from embridge.stores.fetching import vectors_by_id
from embridge.types import Metric, space_mismatch

_SAME = 1e-3  # relative distance of two vectors that are the same: float16 rounds by less


def evaluate_through(
    store: Collection,
    translation: Map,
    queries: Anchors,
    *,
    k: int = 10,
    reverse_map: Map | None = None,
    weight: float = 0.5,
    fusion: Fusion | None = None,
    qrels: Qrels | None = None,
    max_queries: int = 1000,
    seed: int = 0,
) -> IndexEvaluation:
    """Measure strategies through a store's own index, against an exact search of the same rows.

    `evaluate` and `plan` search exactly. An index finds less, and how much less depends on the queries: projected and blended ones
    are not distributed like those that it was made for. A query that has the id of a row does not find this row.

    Parameters
    ----------
    store : Collection
        All rows by the old model, in a store that searches them; one with two vectors a row is also searched by both (``fuse``).
    translation : LinearMap or KernelMap
        From the old to the new space.
    queries : Anchors
        By both models.
    k : int, default 10
    reverse_map : LinearMap or KernelMap, optional
        From the new to the old space: adds ``project-queries``.
    weight : float, default 0.5
        Of the projected query in ``blend``.
    fusion : Fusion, optional
        Its weight is that of ``fuse``; default 0.5. There is no hubness correction.
    qrels : mapping, optional
        Relevance judgments: adds recall over all rows of the store.
    max_queries : int, default 1000
        More queries are sampled, by `seed`.
    seed : int, default 0

    Returns
    -------
    IndexEvaluation

    Raises
    ------
    ParameterError
        The store does not search, or k is out of range.
    SpaceMismatchError
        It is of another space than the map or the queries.
    """
    k, old = check_k(k), store.old_side or store
    if not is_searchable(store, store.old_side):
        raise ParameterError(f"{store.name} has no index of its own. Hint: give a collection in a store, such as postgresql://.")
    for what, space in (("The map", translation.source), ("The queries", queries.source)):
        if not old.stated_space.same_as(space):
            raise space_mismatch(what, space, old.name, old.stated_space)
    used = queries.sample(max_queries, seed)
    own = _own_rows(old, used)
    relevant = [set((qrels or {}).get(query, ())) - mine for query, mine in zip(used.ids.tolist(), own, strict=True)]
    depth = min(k + 1, len(store))  # the row that is the query itself is left out
    scores = []
    for name, rows, vectors, options in _strategies(store, old, translation, reverse_map, used, weight, fusion or Fusion()):
        found, truth = (
            [[row for row in hits.row(i)[0] if row not in mine][:k] for i, mine in enumerate(own)]
            for hits in (search(rows, vectors, depth, **options) for search in (search_store, search_exactly))
        )
        shares = np.array([len(set(a) & set(b)) / max(len(b), 1) for a, b in zip(found, truth, strict=True)])
        recalls = (_recall(rows, relevant) for rows in (found, truth))
        scores.append(IndexScore(name, float(shares.mean()), bootstrap_interval(shares, seed=seed), *recalls))
    return IndexEvaluation(str(store.path), k, len(used), sum(map(bool, relevant)), len(store), tuple(scores))


def _strategies(
    store: Collection, old: Collection, translation: Map, reverse_map: Map | None, queries: Anchors, weight: float, fusion: Fusion
) -> Iterator[tuple[str, Collection, np.ndarray, dict[str, Any]]]:
    """Names, with the rows, the query vectors and the options of the search."""
    space = old.stated_space
    yield "keep-old", old, queries.x, {}
    if reverse_map is not None:
        yield "project-queries", old, project_queries(queries.y, reverse_map, space), {}
    with contextlib.suppress(MapError):  # a kernel map, or L2 and no isometry
        projected = project_queries(queries.y, translation, space)
        yield "project-queries-adjoint", old, projected, {}
        yield "blend", old, blend(queries.x, projected, weight, space.metric), {}
    if store.old_side is not None and Metric.L2 not in (space.metric, store.stated_space.metric):
        yield "fuse", store, queries.y, {"old_queries": queries.x, "weight": fusion.weight}


def _own_rows(old: Collection, queries: Anchors) -> list[set[Any]]:
    """For each query its own id where it is a row: ids may coincide by chance, so the vectors must be equal too."""
    if (queries.ids.dtype == object) != (str(old.id_type) == "string"):
        return [set() for _ in queries.ids]
    ids, vectors = vectors_by_id(old, queries.ids.tolist())
    place = {name: n for n, name in enumerate(ids.to_pylist())}
    found = []
    for query, vector in zip(queries.ids.tolist(), queries.x, strict=True):
        row = vectors[place[query]] if query in place else None
        same = row is not None and np.linalg.norm(row - vector) <= _SAME * np.linalg.norm(row)
        found.append({query} if same else set())
    return found


def _recall(found: Sequence[Sequence[Any]], relevant: Sequence[set[Any]]) -> float | None:
    """Mean share of the relevant rows that were found; None where no query has any."""
    shares = [len(wanted.intersection(rows)) / len(wanted) for rows, wanted in zip(found, relevant, strict=True) if wanted]
    return float(np.mean(shares)) if shares else None
