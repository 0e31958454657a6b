"""Orders the rows of a collection for re-encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embridge.anchors import ids_at
from embridge.arrays import as_vectors
from embridge.device import resolve_device
from embridge.errors import ParameterError
from embridge.evaluation.metrics import DEPTH, by_hits
from embridge.maps import Map
from embridge.neighbors import Nearest
from embridge.stores.base import Collection
from embridge.stores.ids import hash_ids
from embridge.types import space_mismatch

if TYPE_CHECKING:
    import torch


def rows_to_reencode(
    source: Collection,
    translation: Map,
    queries: np.ndarray,
    *,
    known: np.ndarray | None = None,
    device: str | torch.device | None = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Order rows for re-encoding: first those that most queries find among their 100 nearest translated rows.

    `plan` measures this order as ``re-encode-1%`` and so on. Rows with the highest predicted errors are a worse choice: rows
    that no query finds do not matter. Vectors are read once, in batches.

    Parameters
    ----------
    source : Collection
    translation : LinearMap or KernelMap
        From its space.
    queries : ndarray of shape (n_queries, dim_target)
        By the new model.
    known : ndarray of uint64, optional
        Hashes (`Anchors.hashes`) of ids that already have a native vector; they are left out.
    device : str, default "cpu"

    Returns
    -------
    ids : ndarray of shape (n,)
        Rows found by any query, ordered by the number of queries.
    counts : ndarray of int64, shape (n,)
        Number of queries that find each.

    Raises
    ------
    SpaceMismatchError
        The map does not start in the space of the collection, or queries do not have the width of its output.
    ParameterError
        There is no query.
    """
    if not translation.source.same_as(source.space):
        raise space_mismatch("The map", translation.source, source.name, source.space)
    vectors = as_vectors(queries, translation.target.dim, "queries")
    if not len(vectors):
        raise ParameterError.must_be("queries", "at least one", 0)
    nearest = Nearest(vectors, DEPTH, translation.target.metric, str(resolve_device(device)))
    start = 0
    for batch in source.batches():
        nearest.offer(translation.apply(batch.vectors), np.arange(start, start + len(batch)))
        start += len(batch)
    order, counts = by_hits(nearest.rows, start)
    found = order[: np.count_nonzero(counts)]
    places = np.sort(found)
    ids = ids_at(source, places)[np.searchsorted(places, found)]
    kept = np.ones(len(ids), bool) if known is None else ~np.isin(hash_ids(ids, "anchor"), known)
    return ids[kept], counts[found][kept]
