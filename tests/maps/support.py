"""Data and functions for the tests of confidence."""

import dataclasses

import numpy as np

import embridge as eb
from embridge.anchors import Anchors
from embridge.records import AnchorRecord
from embridge.types import Metric, Space

P, Q = 6, 9
OLD, NEW = Space("old", P), Space("new", Q)


def planted(n, seed=0, target=NEW, start=0, noise=0.02):
    """Rows whose translation is the noisier the farther they lie from the mean, by a map that is the same for every seed."""
    weight = np.random.default_rng(99).normal(size=(P, target.dim))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, P)) * np.exp(rng.normal(size=(n, 1)) * 0.6) + 0.3
    y = x @ weight + 4
    y += noise * (x**2).sum(1, keepdims=True) * rng.normal(size=(n, target.dim))
    y = y / np.linalg.norm(y, axis=1, keepdims=True) if target.normalized else y
    ids = np.array([f"r{i}" for i in range(start, start + n)], object)
    return Anchors(ids, x.astype(np.float32), y.astype(np.float32), OLD, target, AnchorRecord("a", "b", n, n, 0, 0.0, 0))


def calibrated(target=NEW, n=400, seed=0):
    train = planted(1000, 1, target)
    return eb.calibrate(eb.fit(train, "ridge", alpha=0.01), train, planted(n, 2, target, start=5000), seed=seed)


TARGETS = [NEW, dataclasses.replace(NEW, normalized=True), Space("new", Q, Metric.L2), Space("new", Q, Metric.DOT)]
NAMES = ["cosine", "unit", "l2", "dot"]
