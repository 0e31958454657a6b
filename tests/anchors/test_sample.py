"""Rows chosen by logged queries."""

import numpy as np
import pytest

import embridge as eb
from embridge.errors import ParameterError, SpaceMismatchError
from embridge.neighbors import top_k
from embridge.stores.ids import hash_ids
from embridge.types import Space

SPACE = Space("old", 8)


@pytest.fixture
def collections():
    rng = np.random.default_rng(4)
    rows = eb.MemoryCollection(np.arange(2000) + 10, rng.normal(size=(2000, 8)), SPACE)
    queries = eb.MemoryCollection([f"q{i}" for i in range(60)], rng.normal(size=(60, 8)) + np.eye(8)[0], SPACE)
    return rows, queries


@pytest.mark.parametrize("seed", [0, 7])
def test_rows_that_most_queries_of_the_choosing_half_reach_come_first(collections, seed):
    rows, queries = collections
    ids, vectors = queries.read()
    choosing = vectors[hash_ids(ids, "half", seed) % np.uint64(2) == 0]
    counts = np.bincount(top_k(choosing, rows.read()[1], 100).ids.ravel(), minlength=2000)
    found = eb.sample_rows(rows, 150, queries=queries, seed=seed)
    assert (np.diff(found) > 0).all()
    left = np.setdiff1d(np.arange(2000), found)
    assert len(found) == 150
    assert counts[found].min() >= counts[left].max()


def test_rows_that_no_query_reaches_are_drawn_at_random(collections):
    rows, queries = collections
    one = eb.MemoryCollection(["q"], queries.read()[1][:1], SPACE)
    reached = set(top_k(queries.read()[1][:1], rows.read()[1], 100).ids[0].tolist())
    samples = [set(eb.sample_rows(rows, 300, queries=one, seed=seed).tolist()) for seed in (1, 2)]
    assert all(reached < sample for sample in samples)
    assert samples[0] != samples[1]
    assert len(eb.sample_rows(rows, 2000, queries=one)) == 2000


def test_queries_of_another_space_or_with_another_strategy_are_refused(collections):
    rows, queries = collections
    with pytest.raises(SpaceMismatchError, match="'new'"):
        eb.sample_rows(rows, 10, queries=eb.MemoryCollection(["q"], np.ones((1, 8)), Space("new", 8)))
    with pytest.raises(ParameterError, match="leave one of the two out"):
        eb.sample_rows(rows, 10, strategy="kmeans", queries=queries)
