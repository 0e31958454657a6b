"""Fixtures for the tests of outputs of conversions."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from embridge.stores.parquet import writer
from tests.conversion.outputs.support import GROUP_ROWS, ROWS, P, Q, table_of


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [f"d{i}" for i in range(ROWS)], rng.normal(size=(ROWS, P)).astype(np.float32)


@pytest.fixture
def shards(tmp_path, rows, monkeypatch):
    """A folder of four files, three of them in folders, with a column of their own; several row groups each."""
    monkeypatch.setattr(writer, "GROUP_BYTES", GROUP_ROWS * 4 * Q)
    ids, x = rows
    names = ("a.parquet", "deep/er/b.parquet", "year=2024/a.parquet", "year=2025/a.parquet")
    for number, name in enumerate(names):
        part = slice(30 * number, 30 * (number + 1))
        path = tmp_path / "shards" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table_of(ids[part], x[part], n=list(range(ROWS))[part]), path)
    (tmp_path / "shards" / "_SUCCESS").touch()
    return SimpleNamespace(path=tmp_path / "shards", names=list(names), out=tmp_path / "out" / "new", at=tmp_path)


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "new"
