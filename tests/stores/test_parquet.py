"""Parquet of other tools."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from embridge.errors import (
    CollectionError,
    UnreadableFileError,
)
from embridge.stores import ParquetCollection, open_collection
from embridge.stores.parquet.collection import COLUMNS_KEY
from embridge.types import Space

ROWS, DIM = 20, 4
VECTORS = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float16)


@pytest.mark.parametrize("kind", ["fixed", "list", "large_list"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("id_type", "kept"),
    [
        (pa.string(), pa.string()),
        (pa.large_string(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string()),
        (pa.int64(), pa.int64()),
        (pa.int32(), pa.int64()),
        (pa.uint64(), pa.int64()),
    ],
    ids=str,
)
def test_parquet_takes_vectors_and_ids_of_many_types(tmp_path, kind, dtype, id_type, kept, table_of, write):
    ids = [f"é{i}" for i in range(ROWS)] if kept == pa.string() else list(range(7, 7 + ROWS))
    # Sliced arrays: the table that is written does not begin where its buffers do.
    table = table_of([ids[0], *ids], np.vstack([VECTORS[:1], VECTORS]), kind=kind, dtype=dtype, id_type=id_type).slice(1)
    collection = open_collection(write(tmp_path / "a.parquet", table, row_group_size=9), space="m")
    batches = list(collection.batches(4))
    assert [len(b) for b in batches] == [4, 4, 1, 4, 4, 1, 2]
    assert all(b.vectors.dtype == dtype and b.ids.type == kept for b in batches)
    np.testing.assert_array_equal(np.concatenate([b.vectors for b in batches]), VECTORS.astype(dtype))
    assert collection.read()[0].tolist() == ids
    assert collection.space == Space("m", DIM)


def test_parquet_vectors_come_without_a_copy(tmp_path, table_of, write):
    collection = ParquetCollection(write(tmp_path / "a.parquet", table_of(range(ROWS), VECTORS)), space="m")
    batch = next(collection.batches())
    assert not batch.vectors.flags.owndata
    assert not batch.vectors.flags.writeable


def test_custom_column_names(tmp_path, table_of, write):
    table = table_of(range(ROWS), VECTORS, {"id": ["payload"] * ROWS}, names=("doc", "emb"))
    path = write(tmp_path / "a.parquet", table)
    collection = ParquetCollection(path, space="m", id_column="doc", vector_column="emb")
    assert (collection.id_column, collection.vector_column) == ("doc", "emb")
    assert collection.payload_schema.names == ["id"]
    assert collection.read()[0].tolist() == list(range(ROWS))
    named = table.replace_schema_metadata({COLUMNS_KEY: json.dumps({"id": "doc", "vector": "emb"})})
    assert ParquetCollection(write(tmp_path / "b.parquet", named), space="m").vector_column == "emb"


def test_hive_folders_become_columns(tmp_path, table_of):
    languages = [["en", "d/e", None, "zh CN"][i % 4] for i in range(ROWS)]
    table = table_of(range(ROWS), VECTORS, {"lang": languages, "number": list(range(ROWS))})
    ds.write_dataset(
        table, tmp_path / "hive", format="parquet", partitioning=ds.partitioning(pa.schema([("lang", pa.string())]), flavor="hive")
    )
    collection = ParquetCollection(tmp_path / "hive", space="m")
    assert collection.payload_schema.names == ["number", "lang"]
    batches = list(collection.batches(payload=True))
    rows = [row for b in batches for row in zip(b.ids.to_pylist(), b.vectors, b.payload.to_pylist(), strict=True)]
    assert sorted(i for i, _, _ in rows) == list(range(ROWS))
    for i, vector, payload in rows:
        assert payload == {"number": i, "lang": languages[i]}
        np.testing.assert_array_equal(vector, VECTORS[i].astype(np.float32))


def test_files_of_a_folder_are_read_by_name(tmp_path, table_of, write):
    for name, start in (("b", 5), ("a", 0), ("c/a", 10)):
        write(tmp_path / "f" / f"{name}.parquet", table_of(range(start, start + 5), VECTORS[start : start + 5]))
    for path in (tmp_path / "f", f"{tmp_path}/f/", f"{tmp_path}/f/**/*.parquet", f"file://{tmp_path}/f"):
        assert ParquetCollection(path, space="m").read()[0].tolist() == list(range(15))
    assert ParquetCollection(f"{tmp_path}/f/?.parquet", space="m").read()[0].tolist() == list(range(10))


def test_payload_columns_that_some_files_lack_are_null_there(tmp_path, table_of, write):
    write(tmp_path / "a.parquet", table_of([0, 1], VECTORS[:2], {"label": pa.array([1, 2], pa.int32())}))
    write(tmp_path / "b.parquet", table_of([2], VECTORS[2:3], {"label": pa.array([3], pa.int64()), "word": ["x"]}))
    write(tmp_path / "c.parquet", table_of([3], VECTORS[3:4]))
    batches = list(ParquetCollection(tmp_path, space="m").batches(payload=True))
    assert [row for b in batches for row in b.payload.to_pylist()] == [
        {"label": 1, "word": None},
        {"label": 2, "word": None},
        {"label": 3, "word": "x"},
        {"label": None, "word": None},
    ]
    assert pa.Table.from_batches([b.payload for b in batches]).schema.field("label").type == pa.int64()


def test_payload_columns_of_two_types_are_refused(tmp_path, table_of, write):
    write(tmp_path / "a.parquet", table_of([0], VECTORS[:1], {"label": [1]}))
    write(tmp_path / "b.parquet", table_of([1], VECTORS[1:2], {"label": ["one"]}))
    with pytest.raises(CollectionError, match=r"Columns of the files in .* do not match.*label"):
        ParquetCollection(tmp_path, space="m")


def test_unwanted_row_groups_are_not_read(tmp_path, table_of, write):
    path = write(tmp_path / "a.parquet", table_of(range(ROWS), VECTORS), row_group_size=5, compression="none")
    expected = ParquetCollection(path, space="m").take(np.array([12]))
    data = bytearray(Path(path).read_bytes())
    metadata = pq.ParquetFile(path).metadata
    for group in (0, 1, 3):
        chunk = metadata.row_group(group).column(1)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        data[start : start + 20] = b"\xff" * 20
    Path(path).write_bytes(data)
    collection = ParquetCollection(path, space="m")
    np.testing.assert_array_equal(collection.take(np.array([12])), expected)
    with pytest.raises(UnreadableFileError, match="cannot be read as Parquet"):
        collection.read()
