"""Exact search over a collection without an index: its rows are streamed past the queries."""

from __future__ import annotations

import numpy as np

from embridge.anchors import ids_at
from embridge.errors import ParameterError
from embridge.indexes.fusion import Fusion, Hubness
from embridge.indexes.offset import with_length
from embridge.indexes.queries import fused_queries, plain_queries
from embridge.indexes.rows import FusedRows, PlainRows, prepare
from embridge.maps import Map
from embridge.neighbors import Nearest, check_k
from embridge.stores.base import Collection
from embridge.types import Hits, Metric


def search_exactly(
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
    """The k nearest rows of each query, by brute force in float64. Scores are those of an index over the same rows.

    Parameters
    ----------
    collection : Collection
        A two-vector collection is searched by both vectors.
    queries : ndarray of shape (n_queries, dim)
    k : int, default 10
    fuse : Collection, optional
        The old vectors of the same ids. Default: those of a two-vector collection.
    via, old_queries, weight, hubness
        As for `Index.search`; defaults are those of `Fusion.default`.
    references : pair of ndarray, optional
        Reference queries, of the old and of the new space, for hubness correction.

    Returns
    -------
    Hits

    Raises
    ------
    SpaceMismatchError, BadVectorsError, BadIdsError, ParameterError
    """
    k = check_k(k)
    old = fuse or collection.old_side
    if old is not None:
        has_bias = references is not None
        fusion = Fusion.default(has_bias=has_bias).changed(weight, hubness)
        fused = FusedRows(collection, old, references, fusion)
        given = fused_queries(fusion, *fused.spaces, queries, via, old_queries, has_bias=has_bias)
        nearest = _nearest(fused, given, k)
        return Hits(_ids(collection, nearest.rows), nearest.scores.astype(np.float32))
    check_unfused(collection, hubness, references)
    given, offset = plain_queries(collection.space, queries, via, old_queries, weight)
    rows = PlainRows.of(collection)
    given = prepare(given, rows.metric)
    nearest = _nearest(rows, with_length(given, rows.metric) if rows.provenance else given, k)
    if rows.provenance and rows.metric == Metric.L2:
        offset = offset + max(rows.provenance.offset, 0)
    return Hits(_ids(collection, nearest.rows), (nearest.scores + offset[:, None]).astype(np.float32))


def check_unfused(collection: Collection, hubness: object, references: object) -> None:
    """Refuse options of a fused search for a collection without old vectors.

    Raises
    ------
    ParameterError
    """
    if hubness is not None or references is not None:
        raise ParameterError(f"hubness belongs to a fused search, and {collection.name} has no old vectors beside its new ones.")


def _nearest(rows: PlainRows | FusedRows, queries: np.ndarray, k: int) -> Nearest:
    nearest = Nearest(queries, k, Metric.L2 if rows.metric == Metric.L2 else Metric.DOT)
    for batch, vectors in rows.batches():
        nearest.offer(vectors, np.arange(batch.start, batch.start + len(batch)))
    return nearest


def _ids(collection: Collection, rows: np.ndarray) -> np.ndarray:
    """The ids of rows, -1 or None in empty places."""
    found = np.unique(rows[rows >= 0])
    ids = ids_at(collection, found)
    out = np.full(rows.shape, None if ids.dtype == object else -1, ids.dtype)
    out[rows >= 0] = ids[np.searchsorted(found, rows[rows >= 0])]
    return out


__all__ = ["check_unfused", "search_exactly"]
