"""`translate_batch`: a record batch comes out as `convert` writes it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.conversion import prepare
from embridge.errors import BadVectorsError, CollectionError, MapError, ParameterError, SpaceMismatchError
from embridge.stores.parquet import writer
from embridge.types import Metric, Space

OLD, NEW = Space("old", 6), Space("new", 9)
N = 3000


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)


def map_between(target=NEW):
    rng = np.random.default_rng(5)
    return eb.LinearMap(rng.normal(size=(9, 6)), rng.normal(size=9), OLD, target)


def kernel_between():
    rng = np.random.default_rng(7)
    return eb.KernelMap(map_between(), rng.normal(size=(20, 6)), rng.normal(size=(20, 9)), 0.5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("make", [map_between, kernel_between, lambda: map_between(Space("new", 9, normalized=True))])
def test_the_same_bytes_as_convert(tmp_path, rows, table_of, write, monkeypatch, dtype, make):
    """In row groups that are not a multiple of a product's rows, and for the rest at the end."""
    monkeypatch.setattr(writer, "GROUP_BYTES", 1100 * 9 * np.dtype(dtype).itemsize)
    path = write(tmp_path / "old.parquet", table_of(list(range(N)), rows, {"n": list(range(N))}, space=OLD), row_group_size=700)
    eb.convert(eb.open(path), make(), tmp_path / "new.parquet", dtype=dtype, device="cpu")
    expected = pq.read_table(tmp_path / "new.parquet")
    [batch] = pq.read_table(path).combine_chunks().to_batches()
    found = eb.translate_batch(batch, make(), eb.TranslateOptions(dtype=dtype, device="cpu"))
    assert found.select(["id", "n"]).to_pydict() == expected.select(["id", "n"]).to_pydict()
    values = expected["vector"].combine_chunks()
    assert found.schema.field("vector").equals(expected.schema.field("vector"))
    assert found["vector"].flatten().to_numpy().tobytes() == values.flatten().to_numpy().tobytes()
    assert json.loads(found.schema.metadata[b"embridge.space"])["name"] == "new"


@pytest.mark.parametrize("kind", ["fixed", "list", "large_list"])
@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
def test_any_list_of_floats_and_slices_of_batches(rows, table_of, kind, stored):
    [whole] = table_of([f"i{i}" for i in range(N)], rows, kind=kind, dtype=stored).combine_chunks().to_batches()
    batch = whole.slice(100, 50)
    found = eb.translate_batch(batch, map_between())
    expected = map_between().apply(rows[100:150].astype(stored))
    np.testing.assert_allclose(found["vector"].flatten().to_numpy().reshape(-1, 9), expected, rtol=1e-4, atol=1e-5)
    assert found["id"].equals(batch["id"])
    assert found.schema.names == ["id", "vector"]


def test_columns_of_other_names_stay_in_their_places(rows, table_of):
    [batch] = table_of(list(range(N)), rows, names=("key", "v")).append_column("n", [list(range(N))]).to_batches()
    batch = batch.select(["n", "v", "key"])
    found = eb.translate_batch(batch, map_between(), eb.TranslateOptions(id_column="key", vector_column="v"))
    assert found.schema.names == ["n", "v", "key"]


def test_no_rows_make_no_rows(table_of, rows):
    batch = table_of(pa.array([], pa.int64()), rows[:0]).to_batches() or [
        pa.RecordBatch.from_pylist([], table_of([1], rows[:1]).schema)
    ]
    found = eb.translate_batch(batch[0], map_between())
    assert (len(found), found.schema.field("vector").type.list_size) == (0, 9)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda t: t.rename_columns(["id", "v"]), {}, CollectionError, "no column 'vector'"),
        (lambda t: t.rename_columns(["i", "vector"]), {}, CollectionError, "no column 'id'"),
        (lambda t: t.set_column(1, "vector", pa.array([["x"]] * 3)), {}, BadVectorsError, "must hold float"),
        (lambda t: t.set_column(1, "vector", pa.array([[1.0, 2.0]] * 3)), {}, BadVectorsError, "6-dimensional, but row 0 has 2"),
        (lambda t: t.set_column(1, "vector", pa.array([[1.0] * 6, None, [1.0] * 6])), {}, BadVectorsError, "without a vector"),
        (lambda t: t.set_column(1, "vector", pa.array([[1.0] * 6, [np.nan] * 6, [1.0] * 6])), {}, BadVectorsError, "ids 1"),
        (lambda t: t.set_column(1, "vector", pa.array([[1.0] * 6, [0.0] * 6, [1.0] * 6])), {}, BadVectorsError, "ids 1"),
        (lambda t: t.set_column(1, "vector", pa.array([[1e30] * 6] * 3)), {"dtype": "float16"}, BadVectorsError, "range"),
        (lambda t: t, {"dtype": "float64"}, ParameterError, "dtype must be"),
        (lambda t: t, {"precision": "int8"}, ParameterError, "precision must be"),
        (lambda t: t, {"confidence": 0.9}, MapError, "confidence"),
    ],
)
def test_what_cannot_be_translated_is_refused(rows, table_of, change, options, error, message):
    [batch] = change(table_of([0, 1, 2], rows[:3])).combine_chunks().to_batches()
    with pytest.raises(error, match=message):
        eb.translate_batch(batch, map_between(), eb.TranslateOptions(**options))


def test_a_batch_of_another_space_is_refused(rows, table_of):
    [batch] = table_of([0, 1, 2], rows[:3], space=Space("another", 6)).to_batches()
    with pytest.raises(SpaceMismatchError, match="'another'"):
        eb.translate_batch(batch, map_between())
    [batch] = table_of([0, 1, 2], rows[:3, :5]).to_batches()
    with pytest.raises(SpaceMismatchError, match="6"):
        eb.translate_batch(batch, map_between())


def test_a_translation_of_length_zero_is_refused_under_cosine_alone(rows, table_of):
    [batch] = table_of([0, 1], rows[:2]).to_batches()
    for metric, bad in ((Metric.COSINE, True), (Metric.L2, False)):
        zero = eb.LinearMap(np.zeros((9, 6)), np.zeros(9), OLD, Space("new", 9, metric))
        if bad:
            with pytest.raises(BadVectorsError, match="length zero"):
                eb.translate_batch(batch, zero)
        else:
            assert not eb.translate_batch(batch, zero)["vector"].flatten().to_numpy().any()


def test_metadata_of_others_passes_through_a_conversion(tmp_path, rows, table_of, write):
    table = table_of(list(range(N)), rows, space=OLD)
    table = table.replace_schema_metadata({**table.schema.metadata, "owner": "them", "license": "CC0"})
    path = write(tmp_path / "old.parquet", table)
    eb.convert(eb.open(path), map_between(), tmp_path / "new.parquet")
    found = pq.read_schema(tmp_path / "new.parquet").metadata
    assert (found[b"owner"], found[b"license"]) == (b"them", b"CC0")
    assert json.loads(found[b"embridge.space"])["name"] == "new"


def test_a_prepared_map_translates_many_batches_in_given_memory(rows, table_of):
    options = eb.TranslateOptions(dtype="float16", device="cpu")
    [whole] = table_of([f"i{i}" for i in range(N)], rows).combine_chunks().to_batches()
    engine, out = prepare(map_between(), options), np.empty((100, 9), np.float16)
    for start in (0, 100, 2900):
        batch = whole.slice(start, 100)
        found = eb.translate_batch(batch, engine, out=out)
        assert found.equals(eb.translate_batch(batch, map_between(), options), check_metadata=True)
        assert np.shares_memory(found["vector"].flatten().to_numpy(), out)
    with pytest.raises(ParameterError, match="has its own options"):
        eb.translate_batch(whole, engine, options)


def test_a_table_of_any_chunks_is_translated_like_one_batch(rows, table_of):
    table = table_of([f"i{i}" for i in range(N)], rows, {"n": list(range(N))}).combine_chunks()
    ids = pa.chunked_array([table["id"].chunk(0).slice(0, 7), table["id"].chunk(0).slice(7)])
    vectors = pa.chunked_array([table["vector"].chunk(0).slice(i, 1000) for i in range(0, N, 1000)])
    parts = pa.table({"id": ids, "vector": vectors, "n": table["n"]})
    found = eb.translate_batch(parts, map_between())
    [whole] = table.to_batches()
    assert isinstance(found, pa.Table)
    assert found["vector"].combine_chunks().equals(eb.translate_batch(whole, map_between())["vector"])
    assert found.select(["id", "n"]).equals(parts.select(["id", "n"]))
    bad = rows.copy()
    bad[1005, 2] = np.nan
    wrong = table_of([f"i{i}" for i in range(N)], bad).combine_chunks()["vector"].chunk(0)
    vectors = pa.chunked_array([wrong.slice(i, 1000) for i in range(0, N, 1000)])
    with pytest.raises(BadVectorsError, match="i1005"):
        eb.translate_batch(pa.table({"id": ids, "vector": vectors}), map_between())
