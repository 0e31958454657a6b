"""What is searched: a FAISS index, a collection or a rollout; which strategies it permits, and how each is done.

A target has rows of one space, or of an old and a new one (a fused index, a two-vector collection, a rollout). With one space S:

- ``own-space``: queries of S.
- ``projected``: queries of another space, by a map between it and S.
- ``blended``: these, and the same queries of S.

With an old space A and a new space B:

- ``own-space``: queries of B, over the vectors of B alone.
- ``old-space``: queries of A, over the vectors of A alone.
- ``projected``, ``blended``: as above, over the vectors of A.
- ``fused``: queries of B, and of A or projected, over both vectors.
- ``native``: queries of B, over the rows that are not translated.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from embridge.anchors import ids_at
from embridge.arrays import unit
from embridge.errors import EmbridgeError, ParameterError
from embridge.indexes.exact import search_exactly
from embridge.indexes.index import Index, open_index
from embridge.indexes.queries import plain_queries
from embridge.maps import Map
from embridge.maps.queries import blend, project_queries
from embridge.neighbors import Nearest
from embridge.rollout import Rollout
from embridge.serving.maps import signature
from embridge.stores import Collection, MemoryCollection, open_collection
from embridge.stores.provenance import translated_rows
from embridge.stores.store import Searchable
from embridge.types import Hits, Metric, Space

OWN, OLD, PROJECTED, BLENDED, FUSED, NATIVE = STRATEGIES = (
    "own-space", "old-space", "projected", "blended", "fused", "native",
)  # fmt: skip
_PROVENANCE = "provenance"  # column of a rollout's rows
_STORE_SECONDS = 60.0  # a store is opened again after so long: what it shows is its state when it was opened


@dataclass(frozen=True, eq=False)
class Search:
    """One search of a target.

    Attributes
    ----------
    strategy : str
    queries : ndarray of shape (n, dim)
        In the space of the strategy (`Target.query_space`).
    k : int
    old_queries : ndarray, optional
        The same in the space of the rows (of the old rows), for ``blended`` and ``fused``.
    via : LinearMap or KernelMap, optional
        Projects `queries`.
    weight, hubness, parameters
        As for `Index.search`.
    """

    strategy: str
    queries: np.ndarray
    k: int
    old_queries: np.ndarray | None = None
    via: Map | None = None
    weight: float | None = None
    hubness: str | None = None
    parameters: str = ""

    def fusion(self) -> dict[str, Any]:
        """The options of a search by both sides; those of one side are a fusion of weight 0 or 1 without correction."""
        if self.strategy == FUSED:
            old = {"via": self.via} if self.old_queries is None else {"old_queries": self.old_queries}
            return {**old, "weight": self.weight, "hubness": self.hubness}
        return {"hubness": "none"}


class Target:
    """One thing to search.

    Attributes
    ----------
    name, path : str
    kind : str
        ``index``, ``collection`` or ``rollout``.
    space : Space
        Of its rows, or of its new rows.
    old_space : Space or None
        Of its old rows.
    fault : str
        Why a newer version is not used; empty where there is none.
    """

    def __init__(self, name: str, path: str, space: str | None) -> None:
        self.name, self.path, self._declared, self.fault = name, path, space, ""
        self._open()

    def _open(self) -> None:
        self._signature, self._opened_at = self._look(), time.monotonic()
        if os.path.isfile(os.path.join(self.path, "state.json")):
            self.kind, self._rollout = "rollout", Rollout(self.path)
            self.old_space, self.space = self._rollout.spaces
            return
        self._rollout = None
        if self.path.lower().endswith((".faiss", ".index")) and "://" not in self.path:
            self.kind, self._index = "index", open_index(self.path, space=self._declared)
            self.old_space, self.space = self._index.old_space, self._index.space
            return
        self.kind, self._index = "collection", None
        self._collection = open_collection(self.path, space=self._declared)
        self.space = self._collection.space
        self.old_space = None if self._collection.old_side is None else self._collection.old_side.space

    def _look(self) -> Any:
        return [signature(self.path + suffix) for suffix in ("", ".json", ".ids.parquet")]

    def reopen(self) -> bool:
        """Open it again where its file changed, or where it is a store that was opened a while ago; True where that was done.

        Raises
        ------
        EmbridgeError
            It cannot be opened, or its spaces changed; what was opened before stays in force.
        """
        is_store = "://" in self.path
        stale = is_store and time.monotonic() - self._opened_at > _STORE_SECONDS
        if self.kind == "rollout" or (not stale and self._signature == self._look()):
            return False
        try:
            fresh = Target(self.name, self.path, self._declared)
            if (fresh.space, fresh.old_space) != (self.space, self.old_space):
                raise ParameterError(f"{self.path!r} is now of other spaces. Hint: restart the service.")
        except EmbridgeError as e:
            self._signature, self._opened_at, self.fault = self._look(), time.monotonic(), str(e)
            raise
        self.__dict__.update(fresh.__dict__)
        return not is_store

    def expire(self) -> None:
        """Let the next `reopen` open a store again, since it could not be read (a connection was lost)."""
        self._opened_at = -math.inf

    @property
    def collection(self) -> Collection | None:
        """Its rows, of a rollout those of the present stage; None of a FAISS index."""
        if self._rollout is not None:
            return self._rollout.collection
        return self._collection if self.kind == "collection" else None

    @property
    def rollout(self) -> Rollout | None:
        """The rollout, where it is one."""
        return self._rollout

    @property
    def rows_space(self) -> Space:
        """The space of the rows that queries are projected to: the old one, where there are two."""
        return self.old_space or self.space

    def refusal(self, strategy: str, *, has_map: bool) -> str | None:
        """Why it cannot be searched with a strategy; None where it can."""
        one, searches = self.old_space is None, self.kind == "collection" and isinstance(self._collection, Searchable)
        if strategy in (OLD, FUSED) and one:
            return "it has vectors of one space only"
        if strategy in (PROJECTED, BLENDED) and not has_map:
            return f"no map leads queries to {self.rows_space.name!r}"
        if not one and searches and strategy == FUSED:
            return "a store ranks by one vector at a time; serve a fused index or a rollout"
        has_provenance = self.kind == "rollout" or (self.kind == "collection" and self._collection.provenance is not None)
        if strategy == NATIVE and not has_provenance:
            return "its rows do not say which of them are native"
        return None

    def query_space(self, strategy: str, other: Space | None) -> Space:
        """The space of the queries of a strategy; `other` is that of queries that are projected."""
        if strategy == OLD and self.old_space is not None:
            return self.old_space
        if self.old_space is None and strategy in (PROJECTED, BLENDED) and other is not None:
            return other
        return self.space

    def search(self, search: Search) -> Hits:
        """The k nearest rows of each query.

        Raises
        ------
        EmbridgeError
            As `Index.search`, `Rollout.search` and the stores raise them.
        """
        if search.strategy == NATIVE:
            return self._native(search)
        if self.old_space is None:
            return self._plain(search)
        if self._rollout is not None and search.strategy == FUSED:
            return _by_rollout(self._rollout, search)
        searched = self._index if self.kind == "index" else self.collection
        if isinstance(searched, Searchable) and not isinstance(searched, Index):
            return self._by_store(searched, search)
        queries, options = search.queries, search.fusion()
        if search.strategy == OWN:
            options |= {"weight": 1.0}
        elif search.strategy != FUSED:
            options |= {"weight": 0.0, "old_queries": self._old_queries(search)}
            queries = np.ones((len(queries), self.space.dim), np.float32)  # of weight 0, but it must not be a zero vector
        return _by_both(searched, queries, search, options)

    def _by_store(self, collection: Any, search: Search) -> Hits:
        """Search of one of the two vectors by the store's own engine."""
        _no_parameters(search, self.name)
        own = search.strategy == OWN
        side, queries = (collection, search.queries) if own else (collection.old_side, self._old_queries(search))
        return side.search(np.asarray(queries, np.float32), search.k)

    def _old_queries(self, search: Search) -> np.ndarray:
        """The queries over old vectors alone."""
        if search.strategy == OLD or search.via is None:
            return search.queries
        projected = project_queries(search.queries, search.via, self.rows_space)
        if search.strategy == PROJECTED or search.old_queries is None:
            return projected
        return blend(search.old_queries, projected, 0.5 if search.weight is None else search.weight, self.rows_space.metric)

    def _plain(self, search: Search) -> Hits:
        options: dict[str, Any] = {}
        if search.strategy != OWN:
            options["via"] = search.via
        if search.strategy == BLENDED:
            options |= {"old_queries": search.old_queries, "weight": search.weight}
        if self.kind == "index" and self._index is not None:
            return self._index.search(search.queries, search.k, parameters=search.parameters, **options)
        _no_parameters(search, self.name)
        collection = self._collection
        if isinstance(collection, Searchable):
            shape = (options.get("via"), options.get("old_queries"), options.get("weight"))
            queries, offset = plain_queries(collection.stated_space, search.queries, *shape)
            hits = collection.search(np.asarray(queries, np.float32), search.k)
            return Hits(hits.ids, hits.scores + offset[:, None])
        return search_exactly(collection, search.queries, search.k, **options)

    def _native(self, search: Search) -> Hits:
        """Exact search among native rows."""
        collection = self.collection
        if collection is None:
            raise ParameterError(f"The rows of {self.name!r} do not say which of them are native.")
        translated = translated_rows(collection, _PROVENANCE if collection.provenance is None else collection.provenance.column)
        cosine = collection.space.metric == Metric.COSINE
        metric = Metric.L2 if collection.space.metric == Metric.L2 else Metric.DOT
        nearest = Nearest(unit(search.queries) if cosine else search.queries, search.k, metric)
        for batch in collection.batches():
            rows = np.flatnonzero(~translated[batch.start : batch.start + len(batch)])
            vectors = batch.vectors[rows]
            nearest.offer(unit(vectors) if cosine else vectors, batch.start + rows)
        found = np.unique(nearest.rows[nearest.rows >= 0])
        ids = ids_at(collection, found)
        out = np.full(nearest.rows.shape, None if ids.dtype == object else -1, ids.dtype)
        out[nearest.rows >= 0] = ids[np.searchsorted(found, nearest.rows[nearest.rows >= 0])]
        return Hits(out, nearest.scores.astype(np.float32))


def _by_both(searched: Any, queries: np.ndarray, search: Search, options: dict[str, Any]) -> Hits:
    if isinstance(searched, Index):
        return searched.search(queries, search.k, parameters=search.parameters, **options)
    _no_parameters(search, searched.name)
    return search_exactly(searched, queries, search.k, **options)


def _by_rollout(rollout: Rollout, search: Search) -> Hits:
    """The fused search of a rollout, with its own weight and correction, which were measured."""
    if search.weight is not None or search.hubness is not None:
        raise ParameterError("A rollout searches with the weight and hubness correction that it measured. Leave both out.")
    old_space, space = rollout.spaces
    ids = np.arange(len(search.queries))
    old = None if search.old_queries is None else MemoryCollection(ids, search.old_queries, old_space)
    return rollout.search(MemoryCollection(ids, search.queries, space), search.k, old_queries=old, parameters=search.parameters)[1]


def _no_parameters(search: Search, name: str) -> None:
    if search.parameters:
        raise ParameterError(f"parameters ({search.parameters[:100]!r}) belong to a FAISS index, and {name} is not one.")
