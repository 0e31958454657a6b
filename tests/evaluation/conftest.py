"""Fixtures for the tests of evaluations."""

import numpy as np
import pytest

import embridge as eb
from tests.evaluation.support import NEW, OLD, anchors_of


@pytest.fixture(scope="module")
def data(planted):
    """A corpus, queries of their own, graded judgments, and two maps, one of them the worse."""
    ids, x, y, W = planted(400, 6, 9, 0.5, seed=0)
    rows = anchors_of(ids, x, y)
    rng = np.random.default_rng(5)
    near = rng.integers(400, size=60)
    query_pairs = anchors_of(
        [f"q{i}" for i in range(60)], x[near] + 0.3 * rng.normal(size=(60, 6)), y[near] + 0.3 * rng.normal(size=(60, 9))
    )
    qrels = {f"q{i}": {int(ids[near[i]]): 3.0, int(ids[(near[i] + 1) % 400]): 1.0, "none": 2.0} for i in range(50)}
    good = eb.LinearMap(W.T, np.zeros(9), OLD, NEW)
    worse = eb.LinearMap(W.T + 0.3 * rng.normal(size=(9, 6)), np.zeros(9), OLD, NEW)
    return rows, query_pairs, qrels, good, worse
