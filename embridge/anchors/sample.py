"""Choose which rows to encode with the new model."""

from __future__ import annotations

from typing import Literal

import numpy as np

from embridge.arrays import unit
from embridge.errors import MissingDependencyError, ParameterError
from embridge.neighbors import Nearest
from embridge.stores.base import Collection
from embridge.stores.ids import hash_ids
from embridge.types import Metric, space_mismatch

_DEPTH = 100  # nearest rows of a query that it reaches
_MOST_QUERIES = 5000


def sample_rows(
    collection: Collection,
    n: int,
    *,
    strategy: Literal["uniform", "kmeans"] = "uniform",
    queries: Collection | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Choose which rows of a collection to re-encode, so that they can serve as anchors.

    Parameters
    ----------
    collection : Collection
    n : int
        Number of rows, at most the number of rows in the collection.
    strategy : {"uniform", "kmeans"}
        ``uniform`` draws without replacement. ``kmeans`` clusters a uniform sample of 20 n rows (32,768 at least) into n
        clusters and takes the row nearest to each center, so that sparse regions are covered too.
    queries : Collection, optional
        Logged queries of the same space: take the rows that most of them have among their 100 nearest, the others at random.
        These are the rows that a `Rollout` needs first; a map for all rows is better fitted on a uniform sample. Half of the
        queries, by a hash of the id, choose the rows; the half that a rollout reports on does not.
    seed : int, default 0

    Returns
    -------
    ndarray of int64, shape (n,)
        Sorted positions.

    Raises
    ------
    ParameterError
        n or the seed is out of range, no such strategy, or another strategy than "uniform" with queries.
    SpaceMismatchError
        The queries are of another space.
    """
    if seed < 0:
        raise ParameterError.must_be("seed", "at least 0", seed)
    if not 1 <= n <= len(collection):
        raise ParameterError.must_be("n", f"between 1 and {len(collection):,} (the rows of {collection.name})", n)
    if strategy not in ("uniform", "kmeans"):
        raise ParameterError.must_be("strategy", "'uniform' or 'kmeans'", strategy)
    rng = np.random.default_rng(seed)
    if queries is not None:
        if strategy != "uniform":
            raise ParameterError(f"Rows are chosen by queries or by {strategy!r}. Hint: leave one of the two out.")
        counts = _reach(collection, queries, seed)
        return np.sort(np.lexsort((rng.permutation(len(collection)), -counts))[:n])
    if strategy == "uniform" or n == len(collection):
        return np.sort(rng.choice(len(collection), n, replace=False))
    pool = np.sort(rng.choice(len(collection), min(len(collection), max(20 * n, 1 << 15)), replace=False))
    return pool[_nearest_to_centers(collection.take(pool), n, collection.space.metric, seed)]


def _reach(collection: Collection, queries: Collection, seed: int) -> np.ndarray:
    """For each row the number of queries that have it among their 100 nearest; of at most 5,000 queries of the choosing half."""
    if not queries.space.same_as(collection.space):
        raise space_mismatch("The sample", collection.space, queries.name, queries.space)
    ids, vectors = queries.read()
    half = np.flatnonzero(hash_ids(ids, "half", seed) % np.uint64(2) == 0)
    chosen = half if len(half) else np.arange(len(ids))
    chosen = chosen[np.argsort(hash_ids(ids[chosen], "sample", seed), kind="stable")[:_MOST_QUERIES]]
    nearest = Nearest(vectors[chosen], min(_DEPTH, len(collection)), collection.space.metric)
    for batch in collection.batches():
        nearest.offer(batch.vectors, np.arange(batch.start, batch.start + len(batch)))
    return np.bincount(nearest.rows[nearest.rows >= 0], minlength=len(collection))


def _nearest_to_centers(vectors: np.ndarray, n: int, metric: Metric, seed: int) -> np.ndarray:
    """Positions of n distinct rows, one near each of n centers of k-means (spherical where length does not count)."""
    try:
        import faiss
    except ImportError as e:
        raise MissingDependencyError.of("FAISS", "Sampling by k-means", "cpu") from e
    rows = vectors if metric == Metric.L2 else unit(vectors)
    kmeans = faiss.Kmeans(
        rows.shape[1], int(n), niter=10, seed=int(seed) % 2**31, spherical=metric != Metric.L2, min_points_per_centroid=1
    )
    kmeans.train(rows)
    distances, centers = kmeans.assign(rows)
    if metric != Metric.L2:
        distances = -distances  # they are cosines then, of which the largest is nearest
    nearest = np.lexsort((distances, centers))
    _, first = np.unique(centers[nearest], return_index=True)
    chosen = nearest[first]
    # A center without a nearest row leaves a place, filled with the rows that are farthest from any center.
    left = np.setdiff1d(np.arange(len(rows)), chosen, assume_unique=True)
    left = left[np.argsort(-distances[left], kind="stable")]
    return np.sort(np.concatenate([chosen, left[: n - len(chosen)]]))
