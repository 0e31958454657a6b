"""Data and functions for the tests of migrations."""

import numpy as np

import embridge as eb
from embridge.types import Metric, Space

P, Q, N, N_QUERIES, K = 8, 12, 400, 50, 10
RNG = np.random.default_rng(1)
X = (RNG.normal(size=(N, P)) * RNG.uniform(0.5, 2, size=(N, 1))).astype(np.float32)
INTS = RNG.permutation(10**9 + np.arange(10 * N))[:N]
STRINGS = np.array([f"doc/{i}" for i in INTS], object)
TURN = np.linalg.qr(RNG.normal(size=(Q, Q)))[0]
GENERAL = RNG.normal(size=(Q, P)) / 3


def space(metric, name="old", dim=P):
    return Space(name, dim, metric)


def a_map(kind="rotation", metric=Metric.COSINE, dim=Q, source="old", target="new"):
    coef = {"rotation": TURN[:, :P], "isometry": 1.7 * TURN[:, :P], "general": GENERAL}[kind][:dim]
    if kind != "general" and dim == P:
        coef = np.linalg.qr(coef)[0] * (1.7 if kind == "isometry" else 1)
    intercept = np.zeros(dim) if kind == "rotation" else 0.5 * np.ones(dim)
    return eb.LinearMap(coef, intercept, space(metric, source), space(metric, target, dim))


def queries(dim=Q, n=N_QUERIES, seed=3):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def best(searched, rows, metric, k=K):
    q, x = searched.astype(np.float64), rows.astype(np.float64)
    if metric == Metric.COSINE:
        q, x = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (q, x))
    scores = -((q[:, None] - x[None]) ** 2).sum(-1) if metric == Metric.L2 else q @ x.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


def listing(folder):
    return sorted(p.name for p in folder.iterdir())
