"""A whole collection into another space: equal to `apply`, ids, order and payload kept, whole or absent."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import duckdb
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    CollectionError,
    DeviceError,
    MissingFileError,
    OutputExistsError,
    ParameterError,
    SpaceMismatchError,
    UnreadableFileError,
)
from embridge.stores.faiss.file import IndexFile, write_index_file
from embridge.stores.parquet import writer
from embridge.types import Metric, Space

P, Q, N = 6, 9, 100
OLD, NEW = Space("old", P), Space("new", Q)


def table_of(ids, vectors, space=None, names=("id", "vector"), **payload):
    vectors = np.asarray(vectors, np.float32) if isinstance(vectors, np.ndarray) else vectors
    column = (
        pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        if isinstance(vectors, np.ndarray)
        else pa.array(vectors, pa.list_(pa.float32()))
    )
    table = pa.table({names[0]: ids, names[1]: column, **payload})
    return table.replace_schema_metadata({"embridge.space": json.dumps(space.to_dict())}) if space else table


def map_between(source=OLD, target=NEW, seed=5, scale=1.0):
    rng = np.random.default_rng(seed)
    coef = scale * rng.normal(size=(target.dim, source.dim))
    return eb.LinearMap(coef, scale * rng.normal(size=target.dim), source, target)


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


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


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


def test_rows_are_scaled_to_unit_length_only_for_a_normalised_target(source, rows, tmp_path):
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


def test_the_file_tells_what_it_was_made_of(source, tmp_path):
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


@pytest.fixture
def refused(tmp_path):
    """``with refused(error, message): ...``: the message is right, and the folder is as it was."""

    @contextlib.contextmanager
    def check(error, message):
        before = {name: (tmp_path / name).stat().st_mtime_ns for name in listing(tmp_path)}
        with pytest.raises(error, match=message) as caught:
            yield
        assert isinstance(caught.value, eb.EmbridgeError)
        assert {name: (tmp_path / name).stat().st_mtime_ns for name in listing(tmp_path)} == before

    return check


@pytest.mark.parametrize(
    ("ids", "vectors", "space", "error", "message"),
    [
        (range(3), [[1, 0], [np.nan, 1], [1, 1]], "cosine", BadVectorsError, r"1 row with NaN or infinite values: ids 1\."),
        (range(3), [[1, 0], [1, 1], [1, -np.inf]], "l2", BadVectorsError, r"1 row with NaN or infinite values: ids 2\."),
        (["a", "b", "c"], [[1, 0], [0, 0], [0, 0]], "cosine", BadVectorsError, r"1 row with a zero vector, .*: ids 'b'\."),
        (range(3), [[1, 0], [1], [1, 1]], "cosine", BadVectorsError, r"ragged: vectors are 2-dimensional, but row 1 has 1 values"),
        (range(3), [[1, 0], None, [1, 1]], "cosine", BadVectorsError, r"1 row without a vector \(null\), the first at row 1"),
        (range(3), [[1, 0], [1, None], [1, 1]], "cosine", BadVectorsError, r"null values within vectors"),
        ([7, 8, 7], [[1, 0]] * 3, "cosine", BadIdsError, r"holds ids more than once: 7\."),
        ([7, None, 8], [[1, 0]] * 3, "cosine", BadIdsError, r"1 row without an id \(null\)"),
    ],
)
def test_bad_rows_leave_nothing(tmp_path, refused, ids, vectors, space, error, message):
    pq.write_table(table_of(list(ids), vectors), tmp_path / "old.parquet", row_group_size=1)
    collection = eb.open(tmp_path / "old.parquet", space=f"old:{space}")
    with refused(error, message):
        eb.convert(collection, map_between(Space("old", 2, space)), tmp_path / "out.parquet", batch_rows=1)


@pytest.mark.parametrize("groups", [1, 10])
def test_a_bad_row_in_the_middle_of_the_stream_leaves_no_output(tmp_path, rows, monkeypatch, groups):
    """Nothing at all where no row group was finished; else what was, under a name that is no Parquet file's."""
    monkeypatch.setattr(writer, "GROUP_BYTES", N // groups * 4 * Q)
    x = rows[1].copy()
    x[57, 3] = np.inf
    pq.write_table(table_of(rows[0], x, OLD), tmp_path / "old.parquet", row_group_size=10)
    with pytest.raises(BadVectorsError, match=rf"1 row with NaN or infinite values: ids {rows[0][57]}\.") as caught:
        eb.convert(eb.open(tmp_path / "old.parquet"), map_between(), tmp_path / "out.parquet", batch_rows=10)
    left = ["out.parquet.journal", "out.parquet.partial"] if groups > 1 else []
    assert listing(tmp_path) == ["old.parquet", *left]
    assert ("0 rows are done and kept: --resume --on-bad skip" in str(caught.value)) == (groups > 1)


def test_a_failure_leaves_an_output_that_was_there_as_it_was(tmp_path, refused, rows):
    x = rows[1].copy()
    x[57, 3] = np.nan
    pq.write_table(table_of(rows[0], x, OLD), tmp_path / "old.parquet", row_group_size=10)
    (tmp_path / "out.parquet").write_text("yesterday's")
    with refused(BadVectorsError, "NaN"):
        eb.convert(eb.open(tmp_path / "old.parquet"), map_between(), tmp_path / "out.parquet", overwrite=True, batch_rows=10)
    assert (tmp_path / "out.parquet").read_text() == "yesterday's"


def test_an_interrupt_leaves_no_output(source, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eb.convert(source, map_between(), tmp_path / "out.parquet", batch_rows=10, progress=interrupt)
    assert "out.parquet" not in listing(tmp_path)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Space("old", 4), r"expects 4-dimensional vectors of 'old', but .* holds 6-dimensional vectors of 'old'\."),
        (
            Space("e5", P),
            r"expects 6-dimensional vectors of 'e5', but .*old\.parquet' holds 6-dimensional vectors of 'old'\. Hint: fit a map",
        ),
    ],
)
def test_a_map_of_another_space_is_refused(source, tmp_path, refused, space, message):
    with refused(SpaceMismatchError, message):
        eb.convert(source, map_between(space), tmp_path / "out.parquet")


def test_the_way_back_is_no_way_there(source, tmp_path, refused):
    with refused(SpaceMismatchError, "'new', but .* of 'old'"):
        eb.convert(source, map_between(NEW, OLD), tmp_path / "out.parquet")


def test_an_output_that_exists_is_kept_unless_told_otherwise(source, tmp_path, refused):
    path = tmp_path / "out.parquet"
    path.write_text("precious")
    with refused(OutputExistsError, r"out\.parquet' exists already\. Hint: .*--overwrite"):
        eb.convert(source, map_between(), path)
    assert path.read_text() == "precious"
    eb.convert(source, map_between(), path, overwrite=True)
    assert len(eb.open(path)) == N


@pytest.mark.parametrize("opened", ["in/old.parquet", "in", "in/*.parquet", "in/../in/old.parquet"])
def test_a_source_is_never_its_own_output(source, tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "in" / "old.parquet").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="both input and output"):
            eb.convert(eb.open(opened), map_between(), "in/old.parquet", overwrite=overwrite)
    assert (tmp_path / "in" / "old.parquet").read_bytes() == before
    assert listing(tmp_path / "in") == ["old.parquet"]


def test_a_folder_is_no_output(source, tmp_path, refused):
    with refused(OutputExistsError, "lie one in the other"):
        eb.convert(source, map_between(), tmp_path / "in", overwrite=True)
    with refused(MissingFileError, "nowhere"):
        eb.convert(source, map_between(), tmp_path / "nowhere" / "out.parquet")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "float64"}, ParameterError, r"dtype must be .*float32.*float16.* Got 'float64'"),
        ({"batch_rows": 0}, ParameterError, r"batch_rows must be at least 1\. Got 0"),
        ({"device": "abacus"}, DeviceError, r"Device 'abacus' is not available here\. Available: .*cpu"),
    ],
)
def test_options_out_of_range_are_refused(source, tmp_path, refused, options, error, message):
    with refused(error, message):
        eb.convert(source, map_between(), tmp_path / "out.parquet", **options)


@pytest.mark.parametrize(
    ("scale", "dtype", "metric", "message"),
    [
        (1e6, "float16", "cosine", "a translation beyond the range of float16"),
        (1e-10, "float16", "cosine", "a translation of length zero"),
        (1e38, "float32", "cosine", "a translation beyond the range of float32"),
        (0, "float32", "cosine", "a translation of length zero"),
    ],
)
def test_a_translation_that_cannot_be_written_is_refused(source, tmp_path, refused, scale, dtype, metric, message):
    with refused(BadVectorsError, rf"has \d+ rows with .*{message}"):
        eb.convert(source, map_between(target=Space("new", Q, metric), scale=scale), tmp_path / "out.parquet", dtype=dtype)


@pytest.mark.parametrize("scale", [1e12, 1e-12])
def test_large_and_small_translations_are_written(source, rows, tmp_path, scale):
    translation = map_between(target=Space("new", Q, Metric.L2), scale=scale)
    eb.convert(source, translation, tmp_path / "out.parquet")
    expected = rows[1].astype(np.float64) @ translation.coef.T.astype(np.float64) + translation.intercept
    np.testing.assert_allclose(eb.open(tmp_path / "out.parquet").read()[1], expected, rtol=1e-4, atol=1e-5 * scale)


def test_under_l2_a_translation_may_be_zero(source, tmp_path):
    eb.convert(source, map_between(target=Space("new", Q, Metric.L2), scale=0), tmp_path / "out.parquet", dtype="float16")
    assert not eb.open(tmp_path / "out.parquet").read()[1].any()


def test_a_source_damaged_in_the_middle_leaves_nothing(tmp_path, refused, rows):
    path = tmp_path / "old.parquet"
    pq.write_table(table_of(rows[0], rows[1], OLD), path, row_group_size=20, compression="zstd")
    content = bytearray(path.read_bytes())
    with pq.ParquetFile(path) as file:
        start = file.metadata.row_group(3).column(1).data_page_offset
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    with refused(UnreadableFileError, r"old\.parquet' cannot be read as Parquet"):
        eb.convert(eb.open(path), map_between(), tmp_path / "out.parquet", batch_rows=20)


def test_a_column_that_the_output_needs_is_told(tmp_path, refused, rows):
    with refused(CollectionError, "vector"):
        eb.convert(eb.MemoryCollection(*rows, OLD, {"vector": list(range(N))}), map_between(), tmp_path / "out.parquet")


def test_killed_at_any_moment_there_is_no_output(source, tmp_path):
    map_between().save(tmp_path / "map.safetensors")
    code = (
        "import sys, time, embridge as eb\n"
        "def wait(done, total):\n"
        "    print(done, flush=True)\n"
        "    time.sleep(60 if done >= 50 else 0)\n"
        "eb.convert(eb.open(sys.argv[1]), eb.LinearMap.load(sys.argv[2]), sys.argv[3], batch_rows=10, progress=wait)\n"
    )
    out = tmp_path / "out" / "out.parquet"
    out.parent.mkdir()
    command = [sys.executable, "-c", code, source.path, str(tmp_path / "map.safetensors"), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) >= 50:
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()  # and what is there instead is nothing that a reader of the folder takes for data
    with pytest.raises(CollectionError, match="holds no Parquet files"):
        eb.open(out.parent)
    eb.convert(source, eb.LinearMap.load(tmp_path / "map.safetensors"), out, resume=True)
    eb.convert(source, eb.LinearMap.load(tmp_path / "map.safetensors"), tmp_path / "undisturbed.parquet")
    assert out.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_a_link_to_the_source_is_the_source(source, tmp_path):
    (tmp_path / "link.parquet").symlink_to(source.path)
    with pytest.raises(OutputExistsError, match="both input and output"):
        eb.convert(source, map_between(), tmp_path / "link.parquet", overwrite=True)


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
