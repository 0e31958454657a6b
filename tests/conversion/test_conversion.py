"""A whole collection into another space: equal to `apply`, with ids, order and payload kept."""

import json
import shutil

import duckdb
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.stores.faiss.file import IndexFile, write_index_file
from embridge.stores.parquet import writer
from embridge.types import Metric, Space
from tests.conversion.support import NEW, OLD, N, P, Q, map_between, table_of

# The laws


@pytest.mark.parametrize("batch_rows", [1, 7, 15, 99, 100, 1000, None])
def test_convert_equals_apply_at_any_batch_size(source, rows, tmp_path, batch_rows):
    ids, x = rows
    translation = map_between()
    seen = []
    done = eb.convert(
        source, translation, tmp_path / "out.parquet", batch_rows=batch_rows, progress=lambda n, of: seen.append((n, of))
    )
    made = eb.open(tmp_path / "out.parquet")
    found_ids, found = made.read()
    assert found_ids.tolist() == ids.tolist()
    expected = x.astype(np.float64) @ translation.coef.T.astype(np.float64) + translation.intercept
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert made.space == NEW
    assert seen[-1] == (N, N)
    assert (done.path, done.rows, done.device) == (str(tmp_path / "out.parquet"), N, "cpu")
    assert done.rows_per_second == pytest.approx(N / done.seconds)
    assert (done.source, done.map, done.fingerprint) == (source.fingerprint(), translation.fingerprint, made.fingerprint())


def test_rows_are_scaled_to_unit_length_only_for_a_normalized_target(source, rows, tmp_path):
    translation = map_between(target=Space("new", Q, normalized=True))
    eb.convert(source, translation, tmp_path / "out.parquet")
    expected = rows[1].astype(np.float64) @ translation.coef.T.astype(np.float64) + translation.intercept
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    made = eb.open(tmp_path / "out.parquet")
    np.testing.assert_allclose(made.read()[1], expected, atol=1e-6)
    assert made.space.normalized


def test_other_columns_pass_through_untouched(source, tmp_path):
    eb.convert(source, map_between(), tmp_path / "out.parquet", batch_rows=11)
    before, after = pq.read_table(source.path), pq.read_table(tmp_path / "out.parquet")
    assert after.column_names == ["id", "vector", "text", "tags", "kind", "when", "meta"]
    for name in after.column_names[2:]:
        assert after.column(name).combine_chunks().to_pylist() == before.column(name).combine_chunks().to_pylist()
        assert after.schema.field(name).type == before.schema.field(name).type
    assert after.column("vector").type == pa.list_(pa.field("element", pa.float32(), nullable=False), Q)


def test_string_ids_stay_strings(tmp_path, rows):
    names = [f"doc/{i}" for i in rows[0]]
    pq.write_table(table_of(names, rows[1], OLD), tmp_path / "old.parquet")
    eb.convert(eb.open(tmp_path / "old.parquet"), map_between(), tmp_path / "out.parquet")
    assert eb.open(tmp_path / "out.parquet").read()[0].tolist() == names


def test_a_folder_becomes_one_file_with_its_folders_as_columns(tmp_path, rows):
    ids, x = rows
    for year, part in (("2024", slice(0, 40)), ("2025", slice(40, N))):
        (tmp_path / "in" / f"year={year}").mkdir(parents=True)
        pq.write_table(table_of(ids[part], x[part], OLD), tmp_path / "in" / f"year={year}" / "a.parquet")
    eb.convert(eb.open(tmp_path / "in"), map_between(), tmp_path / "out.parquet", batch_rows=33)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column("id").to_pylist() == ids.tolist()
    assert found.column("year").to_pylist() == ["2024"] * 40 + ["2025"] * 60


def test_a_collection_in_memory_is_converted_too(tmp_path, rows):
    collection = eb.MemoryCollection(*rows, OLD, {"n": list(range(N))})
    translation = map_between()
    eb.convert(collection, translation, tmp_path / "out.parquet", batch_rows=30)
    made = eb.open(tmp_path / "out.parquet")
    np.testing.assert_allclose(made.read()[1], translation.apply(rows[1]), atol=1e-5)
    assert pq.read_table(tmp_path / "out.parquet").column("n").to_pylist() == list(range(N))


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8"])
def test_an_index_folds_into_parquet(tmp_path, rows, factory):
    ids, x = rows
    names = [f"n{i}" for i in ids]
    index = faiss.index_factory(P, factory, faiss.METRIC_L2)
    index.train(x)
    index.add(x)
    space = Space("old", P, Metric.L2)
    write_index_file(str(tmp_path / "old.faiss"), IndexFile(index, space, pa.array(names)))
    translation = map_between(source=space, target=Space("new", Q, Metric.L2))
    eb.convert(eb.open(tmp_path / "old.faiss"), translation, tmp_path / "out.parquet", batch_rows=17)
    found_ids, found = eb.open(tmp_path / "out.parquet").read()
    order = [names.index(i) for i in found_ids]  # an IVF has an order of its own
    assert sorted(order) == list(range(N))
    np.testing.assert_allclose(found, translation.apply(x)[order], rtol=1e-5, atol=1e-5)
    assert pq.read_schema(tmp_path / "out.parquet").names == ["id", "vector"]


@pytest.mark.parametrize("stored", [np.float16, np.float64])
def test_vectors_of_other_widths_of_float_are_taken(tmp_path, rows, stored):
    x = rows[1].astype(stored)
    column = pa.FixedSizeListArray.from_arrays(x.ravel(), P)
    pq.write_table(pa.table({"id": rows[0], "vector": column}), tmp_path / "old.parquet")
    translation = map_between()
    eb.convert(eb.open(tmp_path / "old.parquet", space="old"), translation, tmp_path / "out.parquet")
    np.testing.assert_allclose(eb.open(tmp_path / "out.parquet").read()[1], translation.apply(x.astype(np.float32)), atol=1e-5)


# The file


def test_names_of_columns_are_kept_and_known_without_flags(tmp_path, rows):
    ids, x = rows
    table = table_of(ids, x, names=("doc_id", "embedding"), id=[f"payload {i}" for i in ids])
    pq.write_table(table, tmp_path / "old.parquet")
    source = eb.open(tmp_path / "old.parquet", space="old", id_column="doc_id", vector_column="embedding")
    eb.convert(source, map_between(), tmp_path / "out.parquet")
    made = eb.open(tmp_path / "out.parquet")
    assert (made.id_column, made.vector_column, made.payload_schema.names) == ("doc_id", "embedding", ["id"])
    assert made.read()[0].tolist() == ids.tolist()


def test_the_file_records_its_source_and_map(source, tmp_path):
    translation = map_between()
    eb.convert(source, translation, tmp_path / "out.parquet")
    metadata = pq.read_schema(tmp_path / "out.parquet").metadata
    assert json.loads(metadata[b"embridge.lineage"]) == {"source": source.fingerprint(), "map": translation.fingerprint}
    assert json.loads(metadata[b"embridge.space"]) == {"name": "new", "dim": Q, "metric": "cosine", "normalized": False}
    assert eb.open(tmp_path / "out.parquet").lineage == {"source": source.fingerprint(), "map": translation.fingerprint}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("compact", [False, True])
def test_everybody_can_read_it(source, rows, tmp_path, dtype, compact):
    """pyarrow's file and dataset readers and DuckDB, which cannot read float16 in byte planes."""
    translation = map_between()
    path = tmp_path / "out.parquet"
    eb.convert(source, translation, path, dtype=dtype, compact=compact)
    expected = translation.apply(rows[1])
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-3, "atol": 1e-3}
    table = pq.read_table(path)
    assert table.schema.field("vector").type.value_type == pa.type_for_alias(dtype.replace("float16", "halffloat"))
    vectors = table.column("vector").combine_chunks()
    np.testing.assert_allclose(vectors.flatten().to_numpy().reshape(N, Q).astype(np.float32), expected, **tolerance)
    assert ds.dataset(path).to_table().column("id").to_pylist() == rows[0].tolist()
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT id, vector, text FROM '{path}'").fetchall()
    assert [row[0] for row in found] == rows[0].tolist()
    np.testing.assert_allclose(np.array([row[1] for row in found]), expected, **tolerance)
    (column,) = [c for c in _columns(path) if c.path_in_schema == "vector.list.element"]
    assert ("BYTE_STREAM_SPLIT" in column.encodings) == (compact and dtype == "float32")
    assert not any("DICTIONARY" in e for e in column.encodings)


def _columns(path):
    with pq.ParquetFile(path) as file:
        return [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]


@pytest.mark.parametrize("batch_rows", [7, 30, 1000])
def test_row_groups_are_bounded_whatever_the_batches(source, tmp_path, monkeypatch, batch_rows):
    monkeypatch.setattr(writer, "GROUP_BYTES", 32 * 4 * Q)  # 32 rows
    eb.convert(source, map_between(), tmp_path / "out.parquet", batch_rows=batch_rows)
    with pq.ParquetFile(tmp_path / "out.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)] == [32, 32, 32, 4]


# What is refused, with nothing left behind


def test_the_same_conversion_gives_the_same_bytes(source, tmp_path):
    for name in ("a.parquet", "b.parquet"):
        eb.convert(source, map_between(), tmp_path / name, batch_rows=13)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    shutil.rmtree(tmp_path / "in")
    assert len(eb.open(tmp_path / "a.parquet")) == N


@pytest.mark.gpu
@pytest.mark.skipif(not __import__("torch").cuda.is_available(), reason="there is no CUDA device here")
def test_cuda_and_cpu_agree(source, tmp_path):
    for device in ("cpu", "cuda"):
        eb.convert(source, map_between(), tmp_path / f"{device}.parquet", device=device)
    cpu, cuda = (eb.open(tmp_path / f"{device}.parquet").read() for device in ("cpu", "cuda"))
    assert cpu[0].tolist() == cuda[0].tolist()
    np.testing.assert_allclose(cuda[1], cpu[1], rtol=1e-5, atol=1e-5)
