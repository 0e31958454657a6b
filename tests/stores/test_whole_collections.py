"""What a collection says of itself holds for all of its rows and files, and for as long as they are read."""

import json
import logging
import os
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.errors import BadVectorsError, ChangedSourceError, CollectionError, SpaceMismatchError
from embridge.stores import ParquetCollection
from embridge.stores.parquet.writer import write_collection
from embridge.tables.texts import TextTable
from embridge.types import Metric, Space

ROWS, DIM = 3000, 4
UNIT = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32)
UNIT /= np.linalg.norm(UNIT, axis=1, keepdims=True)


def with_length(row: int, length: float) -> np.ndarray:
    vectors = UNIT.copy()
    vectors[row] *= length
    return vectors


# Unit length


@pytest.mark.parametrize("row", [0, 1500, ROWS - 1])
@pytest.mark.parametrize("split", [False, True])
def test_unit_length_is_a_fact_about_all_rows(tmp_path, row, split, table_of, write):
    table = table_of(range(ROWS), with_length(row, 1.01))
    if split:
        for number in range(3):
            write(tmp_path / f"{number}.parquet", table.slice(number * 1000, 1000))
    path = tmp_path if split else write(tmp_path / "a.parquet", table)
    assert ParquetCollection(path, space="m:dot").space == Space("m", DIM, Metric.DOT, normalized=False)


@pytest.mark.parametrize(("metric", "normalized"), [("cosine", True), ("dot", False)])
def test_zero_rows_have_no_unit_length_where_they_can_be_ranked(tmp_path, metric, normalized, table_of, write):
    path = write(tmp_path / "a.parquet", table_of(range(ROWS), with_length(2000, 0)))
    assert ParquetCollection(path, space=f"m:{metric}").space.normalized == normalized


def test_opening_does_not_read_all_rows(tmp_path, table_of, write, monkeypatch):
    collection = ParquetCollection(write(tmp_path / "a.parquet", table_of(range(ROWS), UNIT)), space="m")
    assert collection.stated_space == Space("m", DIM)
    assert "normalized=False" in repr(collection)
    read = []
    spans = type(collection._first).spans
    monkeypatch.setattr(type(collection._first), "spans", lambda *a: read.append(1) or spans(*a))
    assert collection.space.normalized
    assert collection.space.normalized
    assert len(read) == 1


@pytest.mark.parametrize("said_by", ["file", "caller"])
def test_stated_unit_length_is_checked_while_reading(tmp_path, said_by, table_of, write):
    space = Space("m", DIM, Metric.DOT, normalized=True)
    path = write(tmp_path / "a.parquet", table_of(range(ROWS), with_length(2500, 3), space=space if said_by == "file" else None))
    collection = ParquetCollection(path, space=space)
    message = r"space of .*a.parquet' says that every vector has unit length .*1 row of one batch .*3 to 3: ids 2500\. Hint"
    with pytest.raises(BadVectorsError, match=message):
        list(collection.batches())
    with pytest.raises(BadVectorsError, match="ids 2500"):
        collection.take(np.array([0, 2500]))
    np.testing.assert_array_equal(collection.take(np.array([0, 2499])), UNIT[[0, 2499]])
    assert eb.summarize(collection).bad_rows == 1


def test_rows_without_the_stated_length_are_left_out_of_a_conversion_and_listed(tmp_path, table_of, write):
    space = Space("m", DIM, normalized=True)
    path = write(tmp_path / "a.parquet", table_of(range(ROWS), with_length(7, 3), space=space))
    translation = eb.LinearMap(np.eye(DIM), np.zeros(DIM), space, Space("n", DIM))
    with pytest.raises(BadVectorsError, match="ids 7"):
        eb.convert(eb.open(path), translation, tmp_path / "stop.parquet")
    done = eb.convert(eb.open(path), translation, tmp_path / "skip.parquet", on_bad="skip")
    assert (done.rows, done.skipped) == (ROWS - 1, 1)
    bad = pq.read_table(tmp_path / "skip.parquet.bad.parquet").to_pylist()
    assert bad == [{"row": 7, "id": 7, "reason": "not of unit length, as its space states"}]


def test_memory_is_checked_too():
    collection = eb.MemoryCollection(range(ROWS), with_length(5, 2), Space("m", DIM, normalized=True))
    with pytest.raises(BadVectorsError, match="ids 5"):
        collection.read()


def test_a_writer_refuses_rows_without_the_length_that_it_states(tmp_path):
    batch = next(eb.MemoryCollection(range(ROWS), with_length(5, 2), Space("m", DIM)).batches())
    with (
        pytest.raises(BadVectorsError, match="ids 5"),
        write_collection(tmp_path / "a.parquet", Space("m", DIM, normalized=True), pa.int64()) as writer,
    ):
        writer.write(batch)
    assert list(tmp_path.iterdir()) == []


# Width


@pytest.mark.parametrize("places", [[0], [5], [0, 1, 2], range(1100), [ROWS - 1]], ids=["first", "sixth", "three", "1,100", "last"])
@pytest.mark.parametrize("other", [[1.0, 2.0], [], None, [1.0] * 9], ids=["short", "empty", "null", "long"])
def test_rows_of_another_width_are_bad_rows_wherever_they_are(tmp_path, places, other, write):
    values = UNIT.tolist()
    for place in places:
        values[place] = other
    path = write(tmp_path / "a.parquet", pa.table({"id": range(ROWS), "vector": pa.array(values, pa.list_(pa.float32()))}))
    collection = ParquetCollection(path, space="m")
    assert collection.stated_space.dim == DIM
    with pytest.raises(BadVectorsError, match=f"row {places[0]:,}"):
        list(collection.batches())
    assert eb.summarize(collection).bad_rows == len(places)
    assert collection.space.normalized


def test_the_width_is_that_of_most_rows_of_all_files(tmp_path, write):
    for name, width, rows in (("a", 2, 10), ("b", DIM, 30)):
        vectors = pa.array(np.ones((rows, width)).tolist(), pa.list_(pa.float32()))
        write(tmp_path / f"{name}.parquet", pa.table({"id": [f"{name}{i}" for i in range(rows)], "vector": vectors}))
    collection = ParquetCollection(tmp_path, space="m")
    assert collection.stated_space.dim == DIM
    assert eb.summarize(collection).bad_rows == 10


# What is read behind a path


def names_read(path) -> list[str]:
    return [os.path.basename(p) for p in ParquetCollection(path, space="m").paths]


def test_a_folder_is_read_by_what_its_files_are(tmp_path, table_of, write, caplog):
    for name in (
        "a.parquet",
        "b.PARQUET",
        "c.parq",
        "d.pq",
        "part-00001",
        "e.snappy",
        ".hidden.parquet",
        "_embridge.parquet",
        "_old/x.parquet",
    ):
        write(tmp_path / name, table_of([name], UNIT[:1]))
    for name, content in (
        ("README.md", b"text"),
        ("g.parquet.partial", b"PAR1 unfinished"),
        ("empty", b""),
        ("_embridge.json", b"{}"),
    ):
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.parquet")
    with caplog.at_level(logging.WARNING, "embridge"):
        assert names_read(tmp_path) == ["a.parquet", "b.PARQUET", "c.parq", "d.pq", "e.snappy", "part-00001"]
    assert [r.getMessage().partition("; ")[2] for r in caplog.records] == [
        "not read: README.md, empty, g.parquet.partial, pipe.parquet"
    ]
    assert names_read(f"{tmp_path}/*") == ["a.parquet", "b.PARQUET", "c.parq", "d.pq", "e.snappy", "part-00001"]
    assert names_read(f"{tmp_path}/_old/*") == ["x.parquet"]
    assert names_read(f"{tmp_path}/_*.parquet") == ["_embridge.parquet"]


def test_a_folder_with_nothing_to_read_names_what_is_there(tmp_path):
    (tmp_path / "a.csv").write_text("id,vector")
    with pytest.raises(CollectionError, match=r"holds no Parquet files\. Other files: a\.csv\."):
        ParquetCollection(tmp_path, space="m")


@pytest.mark.parametrize(
    "pattern", ["", "/lang=*", "/lang=*/*.parquet", "/**/*.parquet", "/lang=[df][er]/?.parquet", "/*/year=1/*"]
)
def test_folders_become_columns_under_globs_too(tmp_path, pattern, table_of, write):
    for number, language in enumerate(("de", "fr")):
        write(tmp_path / f"lang={language}" / "year=1" / f"{number}.parquet", table_of([number], UNIT[:1]))
        write(tmp_path / f"lang={language}" / f"{number}.parquet", table_of([number + 2], UNIT[:1]))
    collection = ParquetCollection(f"{tmp_path}{pattern}", space="m")
    rows = {
        i: row["lang"]
        for b in collection.batches(payload=True)
        for i, row in zip(b.ids.to_pylist(), b.payload.to_pylist(), strict=True)
    }
    assert rows == {i: ("de", "fr")[i % 2] for i in rows}
    assert set(rows) in ({0, 1, 2, 3}, {0, 1}, {2, 3})


def test_files_of_one_name_in_two_folders_keep_their_folders(tmp_path, table_of, write):
    for number in range(2):
        write(tmp_path / f"n={number}" / "a.parquet", table_of([number], UNIT[:1]))
    assert [name for name, _ in ParquetCollection(f"{tmp_path}/n=*/*.parquet", space="m").split_files()] == [
        "n=0/a.parquet",
        "n=1/a.parquet",
    ]


@pytest.fixture
def storage(monkeypatch):
    """A bucket of real S3 requests: ``put(key, bytes)`` and ``uri(key)``."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    address = "{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    yield SimpleNamespace(
        put=lambda key, body: client.put_object(Bucket="bucket", Key=key, Body=body),
        delete=lambda key: client.delete_object(Bucket="bucket", Key=key),
        uri=lambda key: f"s3://bucket/{key}?endpoint_override={address}&scheme=http&region=us-east-1",
    )
    client.close()
    server.stop()


def file_of(table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def test_the_rule_is_the_same_in_object_storage(storage, table_of, caplog):
    for number, name in enumerate(("h/lang=de/a.parquet", "h/lang=fr/b.PARQUET", "h/lang=fr/part-1", "h/_old/c.parquet")):
        storage.put(name, file_of(table_of([number], UNIT[:1])))
    storage.put("h/README.md", b"text")
    for pattern in ("h", "h/lang=*", "h/lang=*/*", "h/**"):
        collection = ParquetCollection(storage.uri(pattern), space="m")
        rows = {
            i: r["lang"]
            for b in collection.batches(payload=True)
            for i, r in zip(b.ids.to_pylist(), b.payload.to_pylist(), strict=True)
        }
        assert rows == {0: "de", 1: "fr", 2: "fr"}
        assert collection.is_many
    assert any("not read: README.md" in r.getMessage() for r in caplog.records)
    assert len(ParquetCollection(storage.uri("h/*/a.parquet"), space="m")) == 1
    with pytest.raises(CollectionError, match="holds no Parquet files"):
        ParquetCollection(storage.uri("*.parquet"), space="m")


@pytest.mark.parametrize("change", ["overwritten", "added", "removed"])
def test_objects_that_change_are_noticed(storage, change, table_of):
    for name in ("d/a.parquet", "d/b.parquet"):
        storage.put(name, file_of(table_of([name], UNIT[:1])))
    collection = ParquetCollection(storage.uri("d"), space="m")
    collection.fingerprint()
    collection.check_unchanged()
    if change == "removed":
        storage.delete("d/b.parquet")
    else:  # of the same size, perhaps in the same second
        storage.put("d/b.parquet" if change == "overwritten" else "d/c.parquet", file_of(table_of(["d/b.parquet"], UNIT[1:2])))
    with pytest.raises(ChangedSourceError):
        collection.check_unchanged()


# Sources that change


def overwrite(path, tmp_path, table, write):
    write(path, table)


def overwrite_with_the_old_time(path, tmp_path, table, write):
    before = os.stat(path)
    write(path, table)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_rename(path, tmp_path, table, write):
    write(tmp_path / "elsewhere" / "new", table)
    os.replace(tmp_path / "elsewhere" / "new", path)


def remove(path, tmp_path, table, write):
    path.unlink()


def add(path, tmp_path, table, write):
    write(path.with_name("z.parquet"), table)


CHANGES = [overwrite, overwrite_with_the_old_time, replace_by_rename, remove]


@pytest.mark.parametrize(("change", "many"), [*((c, many) for c in CHANGES for many in (False, True)), (add, True)])
def test_a_source_that_changed_is_noticed(tmp_path, change, many, table_of, write):
    folder = tmp_path / "d"
    for name in ("a", "b"):
        write(folder / f"{name}.parquet", table_of([f"{name}{i}" for i in range(ROWS)], UNIT, {"text": ["x"] * ROWS}))
    opened = [
        ParquetCollection(folder if many else folder / "b.parquet", space="m"),
        TextTable(folder if many else folder / "b.parquet"),
    ]
    for source in opened:
        source.fingerprint()
        source.check_unchanged()
    batches = opened[0].batches(100)
    next(batches)
    time.sleep(0.02)  # two ticks of the clock that file systems keep
    change(
        folder / "b.parquet", tmp_path, table_of([f"b{i}" for i in range(ROWS)], UNIT[::-1].copy(), {"text": ["y"] * ROWS}), write
    )
    for source in opened:
        with pytest.raises(ChangedSourceError, match=r"[bz].parquet' changed while|z.parquet'"):
            source.check_unchanged()
    if change is not add:
        with pytest.raises(ChangedSourceError, match=r"b.parquet"):
            list(batches)
    opened[0].__class__(folder if many else folder / "a.parquet", space="m").check_unchanged()


def test_content_is_compared_where_size_and_times_are_the_same(tmp_path, table_of, write, monkeypatch):
    path = tmp_path / "a.parquet"
    write(path, table_of(range(ROWS), UNIT))
    collection = ParquetCollection(path, space="m")
    collection.fingerprint()
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr("embridge.stores.parquet.file.file_identity", lambda *_: collection._first._identity)
    with pytest.raises(ChangedSourceError, match="its content differs"):
        collection.check_unchanged()


def test_memory_never_changes():
    eb.MemoryCollection([1], UNIT[:1], Space("m", DIM)).check_unchanged()


# Metadata of others


def test_metadata_of_others_is_kept_as_far_as_it_holds(tmp_path, table_of, write):
    features = {"id": {"dtype": "int64", "_type": "Value"}, "vector": {"feature": {"dtype": "float32"}, "length": DIM}, "gone": {}}
    pandas = {"columns": [{"name": n, "field_name": n} for n in ("id", "vector", "gone")], "index_columns": ["gone", "id"]}
    said = {
        b"license": b"CC-BY",
        b"\xff": b"\x00\xff",
        b"embridge.other": b"ours",
        b"huggingface": json.dumps({"info": {"features": features, "version": 1}}).encode(),
        b"pandas": json.dumps(pandas).encode(),
    }
    table = table_of(range(ROWS), UNIT).replace_schema_metadata(said)
    source = ParquetCollection(write(tmp_path / "a.parquet", table), space="m")
    assert source.metadata == {key: value for key, value in said.items() if key != b"embridge.other"}
    eb.convert(source, eb.LinearMap(np.ones((6, DIM)), np.zeros(6), Space("m", DIM), Space("n", 6)), tmp_path / "out.parquet")
    found = pq.read_schema(tmp_path / "out.parquet").metadata
    assert (found[b"license"], found[b"\xff"]) == (b"CC-BY", b"\x00\xff")
    assert b"embridge.other" not in found
    assert json.loads(found[b"huggingface"]) == {"info": {"features": {"id": features["id"]}, "version": 1}}
    assert json.loads(found[b"pandas"]) == {"columns": pandas["columns"][:2], "index_columns": ["id"]}
    assert eb.open(tmp_path / "out.parquet").space == Space("n", 6)


def test_metadata_that_files_disagree_on_or_that_cannot_be_read_is_left_out(tmp_path, table_of, write):
    for name in ("a", "b"):
        said = {b"same": b"1", b"name": name.encode(), b"pandas": b"[" * 100_000, b"huggingface": b"{}"}
        write(tmp_path / f"{name}.parquet", table_of([name], UNIT[:1]).replace_schema_metadata(said))
    source = ParquetCollection(tmp_path, space="m")
    assert set(source.metadata) == {b"same", b"pandas", b"huggingface"}
    with write_collection(tmp_path / "out.parquet", Space("m", DIM), pa.string(), metadata=source.metadata) as writer:
        for batch in source.batches():
            writer.write(batch)
    found = pq.read_schema(tmp_path / "out.parquet").metadata
    assert found[b"same"] == b"1"
    assert not {b"pandas", b"huggingface"} & set(found)


def test_a_column_with_the_name_of_the_vectors_leaf_is_kept(tmp_path, table_of, write):
    values = {"vector.list.element": [f"text {i}" for i in range(ROWS)]}
    source = ParquetCollection(write(tmp_path / "a.parquet", table_of(range(ROWS), UNIT, values)), space="m")
    for compact in (True, False):
        path = tmp_path / f"{compact}.parquet"
        schema = source.payload_schema
        with write_collection(path, Space("m", DIM), pa.int64(), schema, compact=compact) as writer:
            for batch in source.batches(payload=True):
                writer.write(batch)
        np.testing.assert_array_equal(eb.open(path).read()[1], UNIT)
        assert [v for b in eb.open(path).batches(payload=True) for v in b.payload.column(0).to_pylist()] == values[
            "vector.list.element"
        ]


def test_a_declared_width_that_no_row_has_is_refused(tmp_path, table_of, write):
    path = write(tmp_path / "a.parquet", table_of(range(ROWS), UNIT, kind="list"))
    with pytest.raises(SpaceMismatchError, match="dim 384"):
        ParquetCollection(path, space=Space("m", 384))
