"""Data and functions for the tests of merges."""

import numpy as np

import embridge as eb
from embridge.types import Metric, Space

DIM, N, NATIVE, N_QUERIES, K = 12, 1500, 600, 600, 10
RNG = np.random.default_rng(3)
GROUPS = RNG.normal(size=(N // 30, DIM))
Y = (np.repeat(GROUPS, 30, axis=0) + 0.5 * RNG.normal(size=(N, DIM))).astype(np.float32)
Q = (GROUPS[RNG.integers(len(GROUPS), size=2 * N_QUERIES)] + 0.5 * RNG.normal(size=(2 * N_QUERIES, DIM))).astype(np.float32)
Q *= RNG.uniform(0.5, 2, size=(len(Q), 1)).astype(np.float32)
IDS = [f"d{i}" for i in range(N)]
ROWS = np.sort(RNG.choice(N, NATIVE, replace=False))


def of(metric):
    return Space("new", DIM, metric)


def translations(metric):
    """Translated rows as a map leaves them: noisy, and of smaller scores for those queries that they should answer."""
    noise = RNG.spawn(1)[0].normal(size=Y.shape)
    return ((0.8 * Y if metric == Metric.DOT else Y) + 0.5 * noise).astype(np.float32)


def memory(ids, vectors, metric=Metric.COSINE, payload=None):
    return eb.MemoryCollection(ids, vectors, of(metric), payload)
