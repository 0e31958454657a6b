"""Fixtures for the tests of conversions."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from tests.conversion.support import OLD, N, P, table_of


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return rng.permutation(10 * N)[:N], rng.normal(size=(N, P)).astype(np.float32)


@pytest.fixture
def source(tmp_path, rows):
    """A file of 100 rows in 7 row groups, with a payload of many types."""
    ids, x = rows
    payload = {
        "text": [None if i % 7 == 0 else f"text {i}" for i in range(N)],
        "tags": [[f"t{i}"] * (i % 3) for i in range(N)],
        "kind": pa.array([f"k{i % 4}" for i in range(N)]).dictionary_encode(),
        "when": pa.array(range(N), pa.timestamp("ms")),
        "meta": [{"a": i, "b": str(i)} for i in range(N)],
    }
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "old.parquet"
    pq.write_table(table_of(ids, x, OLD, **payload), path, row_group_size=15)
    return eb.open(path)
