"""A search of an open index with a collection of queries: every space is checked."""

from __future__ import annotations

import numpy as np

from embridge.errors import BadIdsError, SpaceMismatchError
from embridge.indexes.index import Index
from embridge.maps import Map
from embridge.stores.base import Collection
from embridge.stores.ids import match_rows
from embridge.types import Hits, space_mismatch


def search(
    index: Index,
    queries: Collection,
    k: int = 10,
    *,
    via: Map | None = None,
    old_queries: Collection | None = None,
    weight: float = 0.5,
    parameters: str = "",
) -> tuple[np.ndarray, Hits]:
    """Search with a collection of queries; every space is checked.

    Parameters are those of `Index.search`, with collections for arrays; `old_queries` are matched to `queries` by id.

    Returns
    -------
    ids : ndarray of shape (n_queries,)
        Of the queries.
    hits : Hits

    Raises
    ------
    SpaceMismatchError
        Queries are not in the space of the index and there is no map, or the map is of other spaces.
    BadIdsError
        A query is missing from `old_queries`.
    """
    if via is None and not queries.space.same_as(index.space):
        raise space_mismatch("The index", index.space, queries.name, queries.space)
    if via is not None:
        ends = ((via.source, via.target), (via.target, via.source))
        if not any(a.same_as(queries.space) and b.same_as(index.space) for a, b in ends):
            names = (via.source.name, via.target.name)
            raise SpaceMismatchError.unrelated(names, queries.space.name, index.space.name)
    ids, vectors = queries.read()
    old = None
    if old_queries is not None:
        if not old_queries.space.same_as(index.space):
            raise space_mismatch("Blending", index.space, old_queries.name, old_queries.space)
        rows, old_rows = match_rows(queries, old_queries)
        if len(rows) < len(ids):
            raise BadIdsError.unknown(queries.name, np.delete(ids, rows).tolist())
        old = old_queries.read()[1][old_rows]
    return ids, index.search(vectors, k, via=via, old_queries=old, weight=weight, parameters=parameters)
