"""Rows that are left out and listed, indexes as sources, and the memory of a conversion."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.errors import (
    BadVectorsError,
    EmbridgeError,
)
from embridge.stores.faiss.file import IndexFile, write_index_file
from embridge.types import Metric, Space
from tests.conversion.outputs.support import ROWS, P, Q, listing, map_between, puncture, table_of

# Rows that are left out


def test_rows_that_cannot_be_translated_are_left_out_and_listed(tmp_path, out):
    vectors = [[1.0, 2], [np.nan, 1], [0, 0], None, [1], [3, 4], [1, None], [np.inf, 0], [5, 6]]
    ids = ["a", "b", "c", "d", "e", "f", "g", "h", None]
    table = pa.table({"id": ids, "vector": pa.array(vectors, pa.list_(pa.float32())), "n": range(9)})
    pq.write_table(table, tmp_path / "old.parquet", row_group_size=4)
    translation = map_between(Space("old", 2))
    translation.save(tmp_path / "map.safetensors")
    target = out.with_suffix(".parquet")
    line = ["convert", str(tmp_path / "old.parquet"), str(tmp_path / "map.safetensors"), str(target), "--space", "old"]
    stopped = CliRunner().invoke(main, [*line, "--json", "--no-catalog"])
    assert stopped.exit_code == 1
    assert listing(out.parent) == []
    result = CliRunner().invoke(main, [*line, "--json", "--no-catalog", "--on-bad", "skip"])
    assert result.exit_code == 0, result.output
    reported = json.loads(result.stdout)
    assert (reported["rows"], reported["skipped"]) == (2, 7)
    made = pq.read_table(target)
    assert made.select(["id", "n"]).to_pylist() == [{"id": "a", "n": 0}, {"id": "f", "n": 5}]
    np.testing.assert_allclose(np.stack(made["vector"].to_numpy()), translation.apply(np.float32([[1, 2], [3, 4]])), atol=1e-5)
    bad = "no vector, or NaN or infinite values"
    reasons = {1: bad, 2: "zero vector", 3: bad, 4: bad, 6: bad, 7: bad, 8: "no id"}
    assert pq.read_table(f"{target}.bad.parquet").to_pylist() == [
        {"row": row, "id": ids[row], "reason": reason} for row, reason in reasons.items()
    ]
    source = eb.open(tmp_path / "old.parquet", space="old")
    assert eb.verify(target, source=source, translation=translation).compared == 2


def test_without_bad_rows_nothing_is_listed(tmp_path, out, rows):
    pq.write_table(table_of(*rows), tmp_path / "old.parquet")
    done = eb.convert(eb.open(tmp_path / "old.parquet"), map_between(), out.with_suffix(".parquet"), on_bad="skip")
    assert (done.rows, done.skipped) == (ROWS, 0)
    assert listing(out.parent) == ["new.parquet"]


def test_a_source_of_bad_rows_alone_makes_no_output(tmp_path, out, shards):
    for name in shards.names:
        puncture(shards.path / name, slice(None))
    for source, target in (
        ("shards/a.parquet", out.with_suffix(".parquet")),
        ("shards", out),
        ("shards", out.with_name("n.parquet")),
    ):
        with pytest.raises(BadVectorsError, match=r"has \d+ rows, and none of them can be translated"):
            eb.convert(eb.open(tmp_path / source), map_between(), target, on_bad="skip")
        assert not target.exists()


def test_bad_rows_of_a_folder_are_listed_by_their_place_in_all_of_it(shards, out):
    puncture(shards.path / "a.parquet", [3, 29])
    puncture(shards.path / "year=2025/a.parquet", [0])
    done = eb.convert(eb.open(shards.path), map_between(), out, on_bad="skip")
    assert (done.rows, done.skipped) == (ROWS - 3, 3)
    assert listing(out.parent) == ["new.bad.parquet", "new/_embridge.json", *[f"new/{name}" for name in shards.names]]
    listed = pq.read_table(f"{out}.bad.parquet")
    assert listed["row"].to_pylist() == [3, 29, 90]
    assert listed["id"].to_pylist() == ["d3", "d29", "d90"]
    assert eb.verify(out, source=eb.open(shards.path), translation=map_between()).compared == ROWS - 3
    puncture(shards.path / "a.parquet", [3, 29], 1.0)
    puncture(shards.path / "year=2025/a.parquet", [0], 1.0)
    eb.convert(eb.open(shards.path), map_between(), out, on_bad="skip", overwrite=True)
    assert listing(out.parent) == ["new/_embridge.json", *[f"new/{name}" for name in shards.names]]


# FAISS


@pytest.mark.parametrize(("factory", "metric"), [("Flat", Metric.DOT), ("IVF4,Flat", Metric.L2)])
def test_from_an_index_to_parquet_and_back(tmp_path, out, rows, index_of, factory, metric):
    import faiss

    ids, x = rows
    space, target = Space("old", P, metric), Space("new", Q, metric)
    inner = faiss.METRIC_INNER_PRODUCT if metric == Metric.DOT else faiss.METRIC_L2
    write_index_file(str(tmp_path / "old.faiss"), IndexFile(index_of(factory, x, metric=inner), space, pa.array(ids)))
    translation = map_between(space, target)
    eb.convert(eb.open(tmp_path / "old.faiss"), translation, out.with_suffix(".parquet"))
    made = eb.open(out.with_suffix(".parquet"))
    index = eb.build_index(made, out.with_suffix(".faiss"), factory="Flat")
    expected = translation.apply(x)
    hits = index.search(expected, k=1) if metric == Metric.L2 else index.search(expected, k=ROWS)
    if metric == Metric.L2:
        assert hits.ids[:, 0].tolist() == ids
    else:
        np.testing.assert_allclose(hits.scores, -np.sort(-(expected @ expected.T), axis=1), rtol=1e-4, atol=1e-4)
    assert eb.open(out.with_suffix(".faiss")).space == target
    with pytest.raises(EmbridgeError):
        eb.verify(out.with_suffix(".parquet"), source=eb.open(tmp_path / "old.faiss"), translation=map_between(space, target, 6))


# Memory


MEASURE = """
import sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
import embridge as eb, embridge.stores.parquet.writer as writer
from embridge.types import Space
writer.GROUP_BYTES = 4 << 20
rows, path = int(sys.argv[1]), sys.argv[2]
old, new = Space("old", 64), Space("new", 64)
translation = eb.LinearMap(np.eye(64), np.zeros(64), old, new)
eb.convert(eb.open(path, space=old), translation, path + ".out", device="cpu")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def test_memory_does_not_grow_with_the_collection(tmp_path):
    peaks = {}
    x = np.random.default_rng(0).normal(size=(50_000, 64)).astype(np.float32)
    for rows in (100_000, 400_000):
        path = tmp_path / f"{rows}.parquet"
        ids = pa.array(range(rows))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 64)
        schema = pa.schema([("id", pa.int64()), ("vector", vectors.type)])
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
            for start in range(0, rows, len(x)):
                file.write_table(pa.table([ids.slice(start, len(x)), vectors], schema=schema))
        command = [sys.executable, "-c", MEASURE, str(rows), str(path)]
        peaks[rows] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024
    assert peaks[400_000] < peaks[100_000] + 60, peaks
    assert peaks[400_000] < 800, peaks
