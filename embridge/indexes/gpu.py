"""faiss-gpu, where it is installed and there is a device."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

GPU_LIMIT = 2048  # k and nprobe on a GPU


def gpu_count() -> int:
    """CUDA devices that this FAISS can use: 0 for faiss-cpu."""
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def on_gpu(index: Any) -> Any:
    """The index on the first GPU, or as it is where FAISS has no GPU or no GPU version of its type (HNSW)."""
    lists = faiss.try_extract_index_ivf(index)
    if not gpu_count() or (lists is not None and lists.nprobe > GPU_LIMIT):
        return index
    resources = faiss.StandardGpuResources()
    try:
        placed = faiss.index_cpu_to_gpu(resources, 0, index)
    except RuntimeError:
        return index
    placed.embridge_resources = resources  # freed with the index, not before
    return placed


def nearest(
    queries: np.ndarray, rows: np.ndarray, k: int, *, l2: bool, floor: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of each query by brute force, on a GPU where FAISS has one.

    Parameters
    ----------
    queries, rows : ndarray of float32
    k : int
    l2 : bool
        By negated squared distance, else by inner product.
    floor : ndarray of shape (n_queries,), optional
        Scores that must be beaten: what does not may be left out, as ``-inf``.

    Returns
    -------
    scores, positions : ndarray of shape (n_queries, k)
        Best first; a higher score is closer.
    """
    if gpu_count() and k <= GPU_LIMIT:
        metric = faiss.METRIC_L2 if l2 else faiss.METRIC_INNER_PRODUCT
        found, places = faiss.knn_gpu(faiss.StandardGpuResources(), queries, rows, k, metric=metric)
        return (-found if l2 else found), places
    # One product: several times as fast as faiss.knn, which keeps heaps, for a few hundred queries.
    scores = queries @ rows.T
    if l2:
        scores = 2 * scores - np.einsum("ij,ij->i", rows, rows) - np.einsum("ij,ij->i", queries, queries)[:, None]
    places = np.zeros((len(queries), k), np.int64)
    best = np.full((len(queries), k), -np.inf, np.float32)
    for query, line in enumerate(scores):
        worst = np.partition(line, -k)[-k] if floor is None else np.nextafter(floor[query], np.float32(np.inf))
        beaten = np.flatnonzero(line >= worst)  # of equal scores the first, as FAISS has it
        beaten = beaten[np.argsort(-line[beaten], kind="stable")[:k]]
        places[query, : len(beaten)], best[query, : len(beaten)] = beaten, line[beaten]
    return best, places
