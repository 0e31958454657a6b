"""Data and functions for the tests of indexes."""

import numpy as np

from embridge.types import Metric

P, Q, N, N_QUERIES, K = 8, 12, 400, 40, 10
METRICS = tuple(Metric)


def vectors(n, dim, seed):
    """Vectors of many lengths, so that the three metrics rank them differently."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, dim)) * rng.uniform(0.5, 2, size=(n, 1))).astype(np.float32)


X, QUERIES = vectors(N, P, 1), vectors(N_QUERIES, P, 2)
INTS = np.random.default_rng(3).permutation(10**12 + np.arange(10 * N))[:N]  # neither in order nor without gaps
STRINGS = np.array([f"doc/{i}" for i in INTS], object)


def scores_of(queries, rows, metric):
    q, x = queries.astype(np.float64), rows.astype(np.float64)
    if metric == Metric.L2:
        return -((q[:, None] - x[None]) ** 2).sum(-1)
    if metric == Metric.COSINE:
        q, x = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (q, x))
    return q @ x.T


def brute_force(queries, rows, k, metric):
    """Positions and scores of the k best, by definition."""
    scores = scores_of(queries, rows, metric)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return best, np.take_along_axis(scores, best, 1)


def check(hits, ids, queries, rows, metric, k=K):
    best, scores = brute_force(queries, rows, k, metric)
    assert hits.ids.tolist() == ids[best].tolist()
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-4, atol=1e-4)
