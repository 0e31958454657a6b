"""A search of an open index, or of a collection, with a collection of queries: every space is checked."""

from __future__ import annotations

import numpy as np

from embridge.errors import BadIdsError, ParameterError, SpaceMismatchError
from embridge.indexes.exact import search_exactly
from embridge.indexes.fusion import Hubness, reference_pair
from embridge.indexes.index import Index
from embridge.indexes.through_store import is_searchable, search_store
from embridge.maps import Map
from embridge.stores.base import Collection
from embridge.stores.ids import match_rows
from embridge.types import Hits, Space, space_mismatch


def search(
    index: Index | Collection,
    queries: Collection,
    k: int = 10,
    *,
    fuse: Collection | None = None,
    via: Map | None = None,
    old_queries: Collection | None = None,
    weight: float | None = None,
    hubness: Hubness | str | None = None,
    references: Collection | None = None,
    old_references: Collection | None = None,
    parameters: str = "",
    exact: bool = False,
) -> tuple[np.ndarray, Hits]:
    """Search with a collection of queries; every space is checked.

    Parameters are those of `Index.search`, with collections for arrays; `old_queries` are matched to `queries` by id.

    Parameters
    ----------
    index : Index or Collection
        A collection in a store that has an index of its own is searched through that (`embridge.indexes.through_store`), any other
        exactly, row by row; one with two vectors by both of them.
    fuse : Collection, optional
        The old vectors of a collection, where it does not hold them itself.
    references, old_references : Collection, optional
        Reference queries of both spaces, for the hubness correction of a collection; an index has its own.
    exact : bool, default False
        Search a collection in a store row by row too.

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
    ParameterError
        Options that this index or collection does not take.
    """
    is_index = isinstance(index, Index)
    old_side = None if is_index else fuse or index.old_side
    old_space = index.old_space if is_index else old_side.stated_space if old_side is not None else None
    name, space = ("The index", index.space) if is_index else (index.name, index.stated_space)
    _check_queries(name, space, old_space, queries, via)
    ids, vectors = queries.read()
    old = None
    if old_queries is not None:
        old = _matched(queries, old_queries, *(("Blending", space) if old_space is None else ("The old side", old_space)))
    options = {"via": via, "old_queries": old, "weight": weight, "hubness": hubness}
    if is_index:
        if fuse is not None or references is not None or old_references is not None or exact:
            raise ParameterError("An index has its own old vectors and reference queries. Leave fuse, references and exact out.")
        return ids, index.search(vectors, k, parameters=parameters, **options)
    if parameters:
        raise ParameterError(f"Search parameters ({parameters}) belong to an index, and {index.name} is a collection.")
    if old_space is None and (references is not None or old_references is not None):
        raise ParameterError(f"Reference queries belong to a fused search, and {index.name} has no old vectors.")
    pair = None
    if old_space is not None:
        sides = ((old_references, old_space), (references, space))
        pair = reference_pair(*(None if side is None else _references(side, own) for side, own in sides))
    run = search_exactly if exact or not is_searchable(index, old_side) else search_store
    return ids, run(index, vectors, k, fuse=old_side, references=pair, **options)


def _check_queries(name: str, space: Space, old_space: Space | None, queries: Collection, via: Map | None) -> None:
    if (via is None or old_space is not None) and not queries.space.same_as(space):
        raise space_mismatch(name, space, queries.name, queries.space)
    if via is not None:
        onto = space if old_space is None else old_space
        ends = ((via.source, via.target), (via.target, via.source))
        if not any(a.same_as(queries.space) and b.same_as(onto) for a, b in ends):
            raise SpaceMismatchError.unrelated((via.source.name, via.target.name), queries.space.name, onto.name)


def _matched(queries: Collection, old_queries: Collection, what: str, space: Space) -> np.ndarray:
    """Queries of the old model, in the order of the new ones."""
    if not old_queries.space.same_as(space):
        raise space_mismatch(what, space, old_queries.name, old_queries.space)
    rows, old_rows = match_rows(queries, old_queries)
    if len(rows) < len(queries):
        missing = np.setdiff1d(np.arange(len(queries)), rows)
        raise BadIdsError.unknown(queries.name, queries.read()[0][missing].tolist())
    return old_queries.read()[1][old_rows]


def _references(queries: Collection, space: Space) -> np.ndarray:
    if not queries.space.same_as(space):
        raise space_mismatch("The hubness bias", space, queries.name, queries.space)
    return queries.read()[1]
