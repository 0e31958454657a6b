"""Projected queries: only their direction counts where the map was fitted on vectors of unit length under cosine."""

import numpy as np
import pytest

from embridge.arrays import unit
from embridge.maps import LinearMap
from embridge.maps.queries import project_queries
from embridge.types import Space


@pytest.mark.parametrize(("metric", "is_scaled"), [("cosine", True), ("dot", False), ("l2", False)])
def test_queries_of_any_length_are_projected_as_those_of_unit_length_under_cosine(metric, is_scaled):
    rng = np.random.default_rng(0)
    source, target = Space("new", 6, metric, normalized=True), Space("old", 4)
    reverse = LinearMap(rng.normal(size=(4, 6)), rng.normal(size=4), source, target)
    queries = rng.normal(size=(5, 6)).astype(np.float32)
    expected = reverse.apply(unit(queries) if is_scaled else queries)
    np.testing.assert_allclose(project_queries(queries, reverse, target), expected, rtol=1e-6)


def test_where_lengths_of_rows_differ_queries_keep_theirs():
    rng = np.random.default_rng(0)
    reverse = LinearMap(rng.normal(size=(4, 6)), rng.normal(size=4), Space("new", 6), Space("old", 4))
    queries = rng.normal(size=(5, 6)).astype(np.float32)
    np.testing.assert_array_equal(project_queries(queries, reverse, reverse.target), reverse.apply(queries))
