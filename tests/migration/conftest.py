"""Fixtures for the tests of migrations."""

import pytest

import embridge as eb
from embridge.types import Metric
from tests.migration.support import INTS, X, space


@pytest.fixture
def build(tmp_path):
    """``build(factory, metric, ids)``: an old index of X, its path."""

    def make(factory="Flat", metric=Metric.COSINE, ids=INTS, name="old.faiss"):
        eb.build_index(eb.MemoryCollection(ids, X, space(metric)), tmp_path / name, factory)
        return tmp_path / name

    return make
