"""Choose which rows to encode with the new model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from embridge.arrays import unit
from embridge.errors import MissingDependencyError, ParameterError
from embridge.stores.base import Collection
from embridge.types import Metric

if TYPE_CHECKING:
    pass


def sample_rows(
    collection: Collection,
    n: int,
    *,
    strategy: Literal["uniform", "kmeans"] = "uniform",
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
    seed : int, default 0

    Returns
    -------
    ndarray of int64, shape (n,)
        Sorted positions.

    Raises
    ------
    ParameterError
        n or the seed is out of range, or no such strategy.
    """
    if seed < 0:
        raise ParameterError.must_be("seed", "at least 0", seed)
    if not 1 <= n <= len(collection):
        raise ParameterError.must_be("n", f"between 1 and {len(collection):,} (the rows of {collection.name})", n)
    if strategy not in ("uniform", "kmeans"):
        raise ParameterError.must_be("strategy", "'uniform' or 'kmeans'", strategy)
    rng = np.random.default_rng(seed)
    if strategy == "uniform" or n == len(collection):
        return np.sort(rng.choice(len(collection), n, replace=False))
    pool = np.sort(rng.choice(len(collection), min(len(collection), max(20 * n, 1 << 15)), replace=False))
    return pool[_nearest_to_centers(collection.take(pool), n, collection.space.metric, seed)]


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
