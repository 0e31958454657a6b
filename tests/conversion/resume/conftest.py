"""Fixtures for the tests of unfinished conversions."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.stores.parquet import writer
from tests.conversion.resume.support import GROUP_BYTES, ROWS, P, map_between, table_of


@pytest.fixture
def case(tmp_path, monkeypatch):
    """A source of fifty row groups with bad rows here and there, a map, and a folder for the output."""
    monkeypatch.setattr(writer, "GROUP_BYTES", GROUP_BYTES)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, P))
    bad = np.sort(rng.choice(np.arange(ROWS // 5, ROWS), 40, replace=False))
    words = {"word": [f"w{i % 7}" for i in range(ROWS)], "kind": pa.array(["ab"[i % 2] for i in range(ROWS)]).dictionary_encode()}
    pq.write_table(table_of([f"d{i}" for i in range(ROWS)], x, **words), tmp_path / "old.parquet", row_group_size=100)
    x[bad] = np.nan
    pq.write_table(table_of([f"d{i}" for i in range(ROWS)], x, **words), tmp_path / "holes.parquet", row_group_size=100)
    map_between().save(tmp_path / "map.safetensors")
    (tmp_path / "out").mkdir()
    return SimpleNamespace(
        folder=tmp_path,
        source=tmp_path / "old.parquet",
        holes=tmp_path / "holes.parquet",
        map=tmp_path / "map.safetensors",
        out=tmp_path / "out" / "new.parquet",
        bad=bad,
        convert=lambda name="old.parquet", out=None, **options: eb.convert(
            eb.open(tmp_path / name), map_between(), out or tmp_path / "out" / "new.parquet", **options
        ),
    )
