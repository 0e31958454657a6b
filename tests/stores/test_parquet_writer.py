"""Written collections: what they say, how they lie in the file, who reads them, what is refused."""

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embridge.errors import (
    BadVectorsError,
    CollectionError,
    ParameterError,
)
from embridge.stores import MemoryCollection, ParquetCollection
from embridge.stores.parquet import row_groups
from embridge.stores.parquet import writer as writer_module
from embridge.stores.parquet.writer import write_collection
from embridge.types import Metric, Space

ROWS, DIM = 20, 4
VECTORS = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float16)


def batches_of(vectors, ids=None, payload=None, space=None, batch_rows=7):
    memory = MemoryCollection(ids or list(range(len(vectors))), vectors, space or Space("m", vectors.shape[1]), payload)
    return memory, memory.batches(batch_rows, payload=True, validate=False)


def write_all(path, memory, batches, **options):
    with write_collection(path, memory.space, memory.id_type, **options) as writer:
        for batch in batches:
            writer.write(batch)


def test_written_files_say_what_they_are(tmp_path):
    space = Space("m", DIM, Metric.DOT)
    memory, batches = batches_of(
        VECTORS.astype(np.float32), space=space, payload={"word": ["x"] * ROWS, "tags": [["a", "b"]] * ROWS}
    )
    path = tmp_path / "a.parquet"
    options = {"columns": ("doc", "emb"), "lineage": {"source": "abc", "map": "def"}}
    with write_collection(path, space, memory.id_type, memory.payload_schema, **options) as writer:
        for batch in batches:
            writer.write(batch)
        assert not path.exists()
    assert writer.rows == ROWS
    collection = ParquetCollection(path)
    assert collection.space == space
    assert collection.lineage == options["lineage"]
    assert (collection.id_column, collection.vector_column) == ("doc", "emb")
    file = pq.ParquetFile(path)
    assert file.schema_arrow.field("emb").type == pa.list_(pa.field("element", pa.float32(), nullable=False), DIM)
    columns = {file.metadata.row_group(0).column(i).path_in_schema: file.metadata.row_group(0).column(i) for i in range(4)}
    assert not columns["emb.list.element"].has_dictionary_page
    assert columns["emb.list.element"].statistics is None
    assert columns["doc"].statistics.max == ROWS - 1


@pytest.mark.parametrize(("dtype", "split"), [("float32", True), ("float16", False)])
def test_compact_files_are_split_where_duckdb_can_read_them(tmp_path, dtype, split):
    memory, batches = batches_of(VECTORS.astype(np.float32))
    write_all(tmp_path / "a.parquet", memory, batches, dtype=dtype, compact=True)
    column = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(1)
    assert ("BYTE_STREAM_SPLIT" in column.encodings) == split
    assert column.compression == ("ZSTD" if split else "UNCOMPRESSED")


def test_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "GROUP_BYTES", 4 * DIM * 6)
    memory, batches = batches_of(VECTORS.astype(np.float32))
    write_all(tmp_path / "a.parquet", memory, batches)
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [6, 6, 6, 2]
    np.testing.assert_array_equal(ParquetCollection(tmp_path / "a.parquet").read()[1], VECTORS)


@pytest.mark.parametrize("dim", [1, 3, 8, 13, 40])
@pytest.mark.parametrize("options", [{}, {"compact": True}, {"dtype": "float16"}], ids=["plain", "compact", "float16"])
@pytest.mark.parametrize("kind", ["string", "int64"])
def test_others_read_what_is_written(tmp_path, monkeypatch, dim, options, kind):
    """pyarrow and DuckDB find the same values, types and nulls, over row groups of several pages."""
    monkeypatch.setattr(writer_module, "GROUP_BYTES", 4 * dim * 33)
    monkeypatch.setattr(row_groups, "_PAGE_BYTES", 4 * dim * 10)
    n = 100
    vectors = np.random.default_rng(dim).normal(size=(n, dim)).astype(np.float16).astype(np.float32)
    payload = pa.table(
        {
            "word": pa.array([None if i % 7 == 0 else f"wörd {i}" for i in range(n)]),
            "label": pa.array([i % 3 for i in range(n)], pa.int8()),
            "tags": pa.array([None if i % 11 == 0 else [str(i)] * (i % 4) for i in range(n)]),
            "kind": pa.array(["ab"[i % 2] for i in range(n)]).dictionary_encode(),
            "place": pa.array([{"x": i, "y": None if i % 5 else [0.5]} for i in range(n)]),
        }
    )
    ids = [f"d{i}" for i in range(n)] if kind == "string" else list(range(-5, n - 5))
    memory = MemoryCollection(ids, vectors, Space("m", dim, Metric.DOT), payload)
    path = tmp_path / "a.parquet"
    with write_collection(path, memory.space, memory.id_type, memory.payload_schema, **options) as writer:
        for batch in memory.batches(17, payload=True):
            writer.write(batch)
    assert pq.ParquetFile(path).metadata.num_row_groups > 1
    table = pq.read_table(path)
    assert table.schema.equals(writer.schema)
    assert table.schema.metadata == writer.schema.metadata
    assert table["id"].to_pylist() == ids
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()).astype(np.float32), vectors)
    assert table.select(payload.column_names).to_pylist() == payload.to_pylist()
    found = duckdb.sql(f"SELECT id, vector, word, label, tags, place FROM '{path}'").fetchall()
    expected = [
        (i, tuple(v), p["word"], p["label"], p["tags"], p["place"])
        for i, v, p in zip(ids, vectors, payload.to_pylist(), strict=True)
    ]
    assert [(i, tuple(v), *rest) for i, v, *rest in found] == expected


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
def test_an_output_that_failed_is_absent(tmp_path, exception):
    memory, batches = batches_of(VECTORS.astype(np.float32))

    def fail():
        with write_collection(tmp_path / "a.parquet", memory.space, memory.id_type) as writer:
            writer.write(next(batches))
            raise exception

    with pytest.raises(exception):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "metric", "dtype", "reason"),
    [
        (1e5, Metric.DOT, "float16", "NaN or infinite values"),
        (1e-9, Metric.COSINE, "float16", "a zero vector"),
        (1e300, Metric.DOT, "float32", "NaN or infinite values"),
    ],
)
def test_what_a_narrower_type_cannot_hold_is_refused(tmp_path, value, metric, dtype, reason):
    vectors = VECTORS.astype(np.float64)
    vectors[8] = value
    memory, batches = batches_of(vectors, space=Space("m", DIM, metric))
    with pytest.raises(BadVectorsError, match=f"The output in {dtype} has 1 row with {reason}.*ids 8"):
        write_all(tmp_path / "a.parquet", memory, batches, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_payload_column_must_not_take_the_place_of_the_vectors(tmp_path):
    payload = pa.schema([("vector", pa.string())])
    with (
        pytest.raises(CollectionError, match="already has a column 'vector', which the output needs"),
        write_collection(tmp_path / "a.parquet", Space("m", 4), pa.int64(), payload),
    ):
        pass
    with (
        pytest.raises(ParameterError, match="dtype must be"),
        write_collection(tmp_path / "a", Space("m", 4), pa.int64(), dtype="int8"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
