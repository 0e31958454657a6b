"""Fixtures for the tests of indexes."""

import pytest

import embridge as eb
from tests.indexes.support import INTS, X


@pytest.fixture
def build(tmp_path):
    """``build(space, ids, rows, factory)``: an index of these rows."""

    def make(space, ids=INTS, rows=X, factory="Flat", name="a.faiss", **options):
        return eb.build_index(eb.MemoryCollection(ids, rows, space), tmp_path / name, factory, **options)

    return make
