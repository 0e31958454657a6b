"""Searches rows of a store through the store's own index, with plain, projected, blended or fused queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embridge.indexes.exact import check_unfused
from embridge.indexes.fusion import Fusion, Hubness, fused_rows
from embridge.indexes.queries import fused_queries, plain_queries
from embridge.indexes.rows import check_sides
from embridge.maps import Map
from embridge.neighbors import check_k
from embridge.stores.base import Collection
from embridge.stores.fetching import vectors_by_id
from embridge.stores.store import Searchable
from embridge.types import Hits

CANDIDATES = 100  # of each side of a fused search, or k
_QUERIES = 32  # whose candidates are in memory at once


def is_searchable(collection: Collection, old: Collection | None) -> bool:
    """Whether stores search the rows by the metric of their space: both sides of a fused search, where there are two."""
    sides = [side for side in (collection, old) if side is not None]
    return all(isinstance(side, Searchable) and side.index_metric in (None, side.stated_space.metric) for side in sides)


def search_store(
    collection: Collection,
    queries: np.ndarray,
    k: int = 10,
    *,
    fuse: Collection | None = None,
    via: Map | None = None,
    old_queries: np.ndarray | None = None,
    weight: float | None = None,
    hubness: Hubness | str | None = None,
    references: tuple[np.ndarray, np.ndarray] | None = None,
) -> Hits:
    """The k nearest rows of each query, as the store's own index finds them.

    A fused search takes 100 candidates (k, where that is more) from the index of each side, whose score counts. Both vectors of
    these rows are looked up by id, and the rows are ranked by their exact fused score. Rows without one of the two are left out.

    Parameters
    ----------
    collection : Collection
        `Searchable`; a two-vector collection is searched by both vectors.
    queries, k, via, old_queries, weight, hubness, references
        As for `embridge.indexes.exact.search_exactly`.
    fuse : Collection, optional
        The old vectors of the same ids, in a store too. Default: those of a two-vector collection.

    Returns
    -------
    Hits

    Raises
    ------
    SpaceMismatchError, BadVectorsError, BadIdsError, ParameterError
    """
    k = check_k(k)
    old = fuse or collection.old_side
    if old is None:
        check_unfused(collection, hubness, references)
        given, offset = plain_queries(collection.stated_space, queries, via, old_queries, weight)
        found = _search(collection, given, k)
        return Hits(found.ids, (found.scores + offset[:, None]).astype(np.float32))
    spaces, has_bias = (old.stated_space, collection.stated_space), references is not None
    check_sides(collection, old, spaces)
    fusion = Fusion.default(has_bias=has_bias).changed(weight, hubness)
    given = fused_queries(fusion, *spaces, queries, via, old_queries, has_bias=has_bias)
    is_text = pa.types.is_string(collection.id_type)
    ids = np.full((len(given), k), None if is_text else -1, object if is_text else np.int64)
    scores = np.full((len(given), k), -np.inf, np.float32)
    for start in range(0, len(given), _QUERIES):
        part = given[start : start + _QUERIES]
        candidates = _candidates(part, k, old, collection, fusion)
        names, rows = _rows(old, collection, candidates, references)
        place = {name: n for n, name in enumerate(names)}
        similar = part @ rows.T
        for i, known in enumerate(candidates):
            own = np.array(sorted(place[name] for name in known if name in place), np.int64)
            best = own[np.argsort(-similar[i, own], kind="stable")[:k]]
            ids[start + i, : len(best)], scores[start + i, : len(best)] = [names[n] for n in best], similar[i, best]
    return Hits(ids, scores)


def _candidates(given: np.ndarray, k: int, old: Collection, new: Collection, fusion: Fusion) -> list[set[Any]]:
    """For each query the ids that the indexes of both sides find."""
    found: list[set[Any]] = [set() for _ in given]
    dim = old.stated_space.dim
    sides = ((old, slice(dim), fusion.weight < 1), (new, slice(dim, dim + new.stated_space.dim), fusion.weight > 0))
    for side, columns, counts in sides:
        hits = _search(side, given[:, columns], max(k, CANDIDATES)) if counts else None
        for i, names in enumerate(found):
            if hits is not None:
                names.update(hits.row(i)[0])
    return found


def _rows(
    old: Collection, new: Collection, candidates: list[set[Any]], references: tuple[np.ndarray, np.ndarray] | None
) -> tuple[list[Any], np.ndarray]:
    """Ids of the candidates that have both vectors, in order, and their fused rows."""
    names = sorted(set().union(*candidates))
    wanted = pa.array(names, new.id_type)
    sides = []
    for side in (old, new):
        ids, vectors = vectors_by_id(side, names)
        usable = np.isfinite(vectors).all(axis=1)
        sides.append((ids.filter(pa.array(usable)), vectors[usable]))
    places = [pc.index_in(wanted, ids) for ids, _ in sides]
    both = pc.and_(*(place.is_valid() for place in places))
    chosen = [vectors[place.filter(both).to_numpy(zero_copy_only=False)] for place, (_, vectors) in zip(places, sides, strict=True)]
    return wanted.filter(both).to_pylist(), fused_rows(*chosen, old.stated_space, new.stated_space, references)


def _search(collection: Collection, queries: np.ndarray, k: int) -> Hits:
    assert isinstance(collection, Searchable)  # noqa: S101 (the caller looked)
    return collection.search(np.ascontiguousarray(queries, np.float32), k)
