"""Where conversions read from and write to: folders, globs, indexes, object storage; what is left out; what `verify` finds."""

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.conversion import file, journal
from embridge.conversion import remote as remote_module
from embridge.conversion.log import FORMAT
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    CollectionError,
    EmbridgeError,
    InterruptedOutputError,
    MissingFileError,
    OutputExistsError,
    SpaceMismatchError,
    UnreadableFileError,
    VerificationError,
)
from embridge.outputs import Output, claim
from embridge.stores import locations
from embridge.stores.faiss.file import IndexFile, write_index_file
from embridge.stores.parquet import writer
from embridge.types import Metric, Space

P, Q, ROWS, GROUP_ROWS = 6, 9, 120, 16
OLD, NEW = Space("old", P), Space("new", Q)


def table_of(ids, vectors, space=OLD, **payload):
    vectors = np.asarray(vectors)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"id": ids, "vector": column, **payload})
    return table.replace_schema_metadata({"embridge.space": json.dumps(space.to_dict())})


def map_between(source=OLD, target=NEW, seed=5):
    rng = np.random.default_rng(seed)
    return eb.LinearMap(rng.normal(size=(target.dim, source.dim)), rng.normal(size=target.dim), source, target)


def listing(place):
    return sorted(str(p.relative_to(place)) for p in place.rglob("*") if not p.is_dir())


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


def puncture(path, rows, value=np.nan):
    """Make rows of a file bad."""
    table = pq.read_table(path)
    x = np.array(table["vector"].combine_chunks().flatten()).reshape(-1, P)
    x[rows] = value
    metadata = table.schema.metadata
    table = table.set_column(1, "vector", pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), P))
    pq.write_table(table.replace_schema_metadata(metadata), path)


# A folder into a folder


def test_a_folder_keeps_its_files(shards, out, rows):
    ids, x = rows
    translation, source, seen = map_between(), eb.open(shards.path), []
    done = eb.convert(source, translation, out, progress=lambda *n: seen.append(n))
    assert listing(out.parent) == ["new/_embridge.json", *[f"new/{name}" for name in shards.names]]
    made = eb.open(out)
    assert (done.path, done.rows, done.skipped, done.fingerprint) == (str(out), ROWS, 0, made.fingerprint())
    assert (done.source, done.map) == (source.fingerprint(), translation.fingerprint)
    found_ids, found = made.read()
    assert found_ids.tolist() == ids
    np.testing.assert_allclose(found, translation.apply(x), atol=1e-5)
    assert max(seen) == (ROWS, ROWS)
    for number, name in enumerate(shards.names):
        before, after = pq.read_table(shards.path / name, partitioning=None), pq.read_table(out / name, partitioning=None)
        assert after.column_names == ["id", "vector", "n"]  # what folders say stays with the folders
        assert after.drop_columns("vector").to_pydict() == before.drop_columns("vector").to_pydict()
        with pq.ParquetFile(out / name) as file:
            assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [16, 14], number
    years = ds.dataset(out, partitioning="hive").to_table(columns=["id", "year"]).to_pylist()
    assert {row["year"] for row in years} == {None, 2024, 2025}
    assert {row["id"] for row in years if row["year"] == 2025} == set(ids[90:])
    assert made.payload_schema.names == ["n", "year"]


def test_a_file_of_a_folder_is_the_same_as_when_it_is_converted_alone(shards, out):
    """But for its lineage: that names the whole folder."""
    eb.convert(eb.open(shards.path), map_between(), out)
    eb.convert(eb.open(shards.path / "a.parquet"), map_between(), shards.at / "alone.parquet")
    one, other = pq.read_table(out / "a.parquet"), pq.read_table(shards.at / "alone.parquet")
    assert one.equals(other)
    assert eb.open(out / "a.parquet").lineage["source"] == eb.open(shards.path).fingerprint()


def test_a_folder_becomes_one_file_where_the_name_says_so(shards, out, rows):
    eb.convert(eb.open(shards.path), map_between(), out.with_suffix(".parquet"))
    table = pq.read_table(out.with_suffix(".parquet"))
    assert table["id"].to_pylist() == rows[0]
    assert table["year"].to_pylist() == [None] * 60 + ["2024"] * 30 + ["2025"] * 30


def test_a_glob_goes_into_a_folder_by_the_names_of_its_files(shards, out, rows):
    eb.convert(eb.open(f"{shards.path}/*.parquet"), map_between(), out)
    assert listing(out) == ["_embridge.json", "a.parquet"]
    assert eb.open(out).read()[0].tolist() == rows[0][:30]


def test_files_of_one_name_keep_their_folders(shards, out):
    eb.convert(eb.open(f"{shards.path}/year=*/*.parquet"), map_between(), out)
    assert listing(out) == ["_embridge.json", "year=2024/a.parquet", "year=2025/a.parquet"]


def test_a_file_that_fails_leaves_the_others_to_be_gone_on_with(shards, out):
    eb.convert(eb.open(shards.path), map_between(), shards.at / "first")
    puncture(shards.path / "year=2024/a.parquet", [25])
    with pytest.raises(BadVectorsError, match=r"year=2024/a\.parquet' has 1 row with NaN or infinite values: ids 'd85'"):
        eb.convert(eb.open(shards.path), map_between(), out)
    assert not out.exists()
    assert "new.journal" in listing(out.parent)
    with pytest.raises(CollectionError, match="holds no Parquet files"):  # no reader of the folder takes it for data
        eb.open(f"{out.parent}/*.parquet")
    with pytest.raises(InterruptedOutputError, match=r"new\.partial' exists already. Hint: --resume .* --overwrite"):
        eb.convert(eb.open(shards.path), map_between(), out)
    stamps = {p: p.stat().st_mtime_ns for p in (out.parent / "new.partial").rglob("*.parquet")}
    assert stamps  # two are converted at a time, so one was finished when the third began
    eb.convert(eb.open(shards.path), map_between(), out, resume=True, on_bad="skip")
    assert listing(out.parent) == ["new.bad.parquet", "new/_embridge.json", *[f"new/{name}" for name in shards.names]]
    for path, stamp in stamps.items():  # finished files are left alone
        assert (out / path.relative_to(out.parent / "new.partial")).stat().st_mtime_ns == stamp
    expected = [i for i in eb.open(shards.at / "first").read()[0] if i != "d85"]
    assert eb.open(out).read()[0].tolist() == expected


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda shards: {"dtype": "float16"}, "dtype"),
        (lambda shards: {"compact": True}, "compact"),
        (lambda shards: puncture(shards.path / "a.parquet", [3], 9.0) or {}, "source"),
        (lambda shards: (shards.path / "a.parquet").rename(shards.path / "aa.parquet") and {}, "files"),
    ],
)
def test_another_run_is_not_gone_on_with(shards, out, change, differs):
    """Least of all where files that are finished would stand beside others of another kind."""
    with pytest.raises(KeyboardInterrupt):
        eb.convert(eb.open(shards.path), map_between(), out, progress=stopped_after(70))
    assert listing(out.parent / "new.partial")
    options = change(shards)
    with pytest.raises(InterruptedOutputError, match=rf"begun with other inputs: {differs} differ"):
        eb.convert(eb.open(shards.path), map_between(), out, resume=True, **options)
    eb.convert(eb.open(shards.path), map_between(), out, overwrite=True, **options)
    assert eb.verify(out, source=eb.open(shards.path), translation=map_between()).compared == ROWS
    assert [p.name for p in out.parent.iterdir()] == ["new"]


def stopped_after(rows):
    def progress(done, _):
        if done >= rows:
            raise KeyboardInterrupt

    return progress


def test_an_error_ends_the_other_files_at_their_next_row_group(shards, out):
    """Ctrl-C does not wait for files of a hundred gigabytes."""
    for name in shards.names[1:]:
        (shards.path / name).unlink()
    pq.write_table(
        table_of([f"x{i}" for i in range(5000)], np.ones((5000, P), np.float32), n=[1] * 5000), shards.path / "b.parquet"
    )
    failed = threading.Event()

    def progress(done, _):
        if threading.current_thread().name.endswith("_0") and done:
            failed.set()
            raise ArithmeticError
        failed.wait(10)

    with pytest.raises(ArithmeticError):
        eb.convert(eb.open(shards.path), map_between(), out, progress=progress)
    assert not (out.parent / "new.partial" / "b.parquet").exists()
    assert journal.rows_done(out.parent / "new.partial" / "b.parquet") < 2500


def test_a_folder_is_replaced_only_when_told(shards, out):
    eb.convert(eb.open(shards.path), map_between(seed=6), out)
    pq.write_table(table_of(["s"], np.ones((1, P), np.float32), n=[0]), shards.path / "stale.parquet")
    eb.convert(eb.open(shards.path), map_between(seed=6), out, overwrite=True)
    assert "stale.parquet" in listing(out)
    (shards.path / "stale.parquet").unlink()
    with pytest.raises(OutputExistsError, match="exists already"):
        eb.convert(eb.open(shards.path), map_between(), out)
    with pytest.raises(OutputExistsError, match="exists already"):
        eb.convert(eb.open(shards.path), map_between(), out, resume=True)
    eb.convert(eb.open(shards.path), map_between(), out, overwrite=True)
    assert listing(out.parent) == ["new/_embridge.json", *[f"new/{name}" for name in shards.names]]
    assert eb.open(out).lineage["map"] == map_between().fingerprint


def test_a_folder_that_is_finished_is_resumed_at_once(shards, out):
    first = eb.convert(eb.open(shards.path), map_between(), out)
    stamps = {name: (out / name).stat().st_mtime_ns for name in shards.names}
    journal.start(out, {"format": FORMAT, "files": []})
    again = eb.convert(eb.open(shards.path), map_between(), out, resume=True)
    assert (again.rows, again.fingerprint) == (first.rows, first.fingerprint)
    assert {name: (out / name).stat().st_mtime_ns for name in shards.names} == stamps
    assert [p.name for p in out.parent.iterdir()] == ["new"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_never_its_own_output(shards, overwrite):
    before = {name: (shards.path / name).read_bytes() for name in shards.names}
    with pytest.raises(OutputExistsError, match="both input and output" if overwrite else "both input|exists"):
        eb.convert(eb.open(shards.path), map_between(), shards.path, overwrite=overwrite)
    assert {name: (shards.path / name).read_bytes() for name in shards.names} == before
    assert [p.name for p in shards.at.iterdir()] == ["shards"]


def test_what_is_no_unfinished_output_is_not_touched(shards, out):
    partial = out.parent / "new.partial"
    partial.mkdir()
    (partial / "precious").write_text("mine")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(InterruptedOutputError, match=r"new\.partial' is not what an unfinished run .* Hint: move it away"):
            eb.convert(eb.open(shards.path), map_between(), out, **options)
    assert listing(out.parent) == ["new.partial/precious"]
    with pytest.raises(MissingFileError, match="nowhere"):
        eb.convert(eb.open(shards.path), map_between(), out.parent / "nowhere" / "new")


def test_two_processes_do_not_write_one_folder(shards, out):
    with claim(Output(out, folder=True)):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(InterruptedOutputError, match="Another process is writing"):
                eb.convert(eb.open(shards.path), map_between(), out, **options)
    assert listing(out.parent) == []


def test_shards_without_a_row_stay_shards_without_a_row(shards, out, rows):
    """Some writers leave empty files, and all rows of a file may be bad."""
    pq.write_table(table_of(pa.array([], pa.string()), rows[1][:0], n=pa.array([], pa.int64())), shards.path / "empty.parquet")
    puncture(shards.path / "a.parquet", slice(None))
    done = eb.convert(eb.open(shards.path), map_between(), out, on_bad="skip")
    assert (done.rows, done.skipped) == (ROWS - 30, 30)
    assert listing(out) == sorted([*shards.names, "_embridge.json", "empty.parquet"])
    assert [pq.read_metadata(out / name).num_rows for name in ("a.parquet", "empty.parquet")] == [0, 0]
    assert eb.verify(out, source=eb.open(shards.path), translation=map_between()).compared == ROWS - 30


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
    told = json.loads(result.stdout)
    assert (told["rows"], told["skipped"]) == (2, 7)
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


# Object storage, by a server that speaks its protocol


@pytest.fixture(scope="module")
def server():
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """A bucket of its own: ``uri("a/b.parquet")``, ``names()``, ``etag(name)``; staging in the test's folder."""
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    name = f"b{abs(hash(str(tmp_path))) % 10**9}"
    client = boto3.client("s3", endpoint_url=f"http://{server}", region_name="us-east-1")
    client.create_bucket(Bucket=name)
    yield SimpleNamespace(
        uri=lambda key: f"s3://{name}/{key}?endpoint_override={server}&scheme=http&region=us-east-1",
        put=lambda path, key: client.upload_file(str(path), name, key),
        get=lambda key: client.get_object(Bucket=name, Key=key)["Body"].read(),
        # without the markers of empty folders, which pyarrow makes where it deletes the last object
        names=lambda: sorted(
            o["Key"] for o in client.list_objects_v2(Bucket=name).get("Contents", []) if not o["Key"].endswith("/")
        ),
        etag=lambda key: client.head_object(Bucket=name, Key=key)["ETag"].strip('"'),
        staging=tmp_path / "tmp",
    )
    client.close()


@pytest.fixture
def remote(bucket, shards):
    """The shards, in the bucket too."""
    for name in shards.names:
        bucket.put(shards.path / name, f"shards/{name}")
    bucket.shards = shards
    return bucket


@pytest.mark.parametrize("source", ["shards/a.parquet", "shards", "shards/year=*/*.parquet"])
def test_a_collection_is_read_from_object_storage(remote, source):
    there, here = eb.open(remote.uri(source)), eb.open(f"{remote.shards.path.parent}/{source}")
    assert there.read()[0].tolist() == here.read()[0].tolist()
    np.testing.assert_array_equal(there.read()[1], here.read()[1])
    assert there.fingerprint() == here.fingerprint()


def test_from_object_storage_to_object_storage(remote, out):
    source = eb.open(remote.uri("shards/a.parquet"))
    done = eb.convert(source, map_between(), remote.uri("out/new.parquet"))
    eb.convert(eb.open(remote.shards.path / "a.parquet"), map_between(), out.with_suffix(".parquet"))
    assert remote.get("out/new.parquet") == out.with_suffix(".parquet").read_bytes()
    assert (done.path, done.rows) == (remote.uri("out/new.parquet"), 30)
    assert listing(remote.staging) == []
    assert eb.verify(done.path, source=source, translation=map_between()).compared == 30


@pytest.mark.parametrize("source", ["shards", "here"])
def test_a_folder_goes_to_object_storage_file_by_file(remote, out, source):
    before = remote.names()
    collection = eb.open(remote.shards.path if source == "here" else remote.uri("shards"))
    done = eb.convert(collection, map_between(), remote.uri("out/new"))
    eb.convert(eb.open(remote.shards.path), map_between(), out)
    assert remote.names() == sorted([*before, "out/new/_embridge.json", *[f"out/new/{name}" for name in remote.shards.names]])
    assert remote.get("out/new/_embridge.json") == (out / "_embridge.json").read_bytes()
    for name in remote.shards.names:
        assert remote.get(f"out/new/{name}") == (out / name).read_bytes()
    assert done.rows == ROWS
    assert listing(remote.staging) == []
    with pytest.raises(OutputExistsError, match="exists already"):
        eb.convert(collection, map_between(), remote.uri("out/new"))


def test_a_folder_becomes_one_object_where_the_name_says_so(remote):
    """The name ends before the question mark."""
    eb.convert(eb.open(remote.shards.path), map_between(), remote.uri("out/new.parquet"))
    assert [n for n in remote.names() if n.startswith("out")] == ["out/new.parquet"]
    assert len(eb.open(remote.uri("out/new.parquet"))) == ROWS


def test_a_large_object_is_uploaded_in_parts(bucket, tmp_path):
    content = np.random.default_rng(0).bytes(35 << 20)
    (tmp_path / "large").write_bytes(content)
    locations.upload(tmp_path / "large", bucket.uri("large"))
    parts = int(bucket.etag("large").partition("-")[2])
    assert parts >= 3
    assert bucket.get("large") == content
    assert locations.exists(bucket.uri("large"))
    locations.remove(bucket.uri("large"))
    locations.remove(bucket.uri("large"))
    assert not locations.exists(bucket.uri("large"))


class Failing(io.FileIO):
    """A file whose second read fails."""

    def __init__(self, path, mode, error):
        super().__init__(path, mode)
        self.error, self.reads = error, 0

    def read(self, size=-1):
        self.reads += 1
        if self.reads == 2:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize(
    ("error", "told"), [(OSError("the cable was pulled"), UnreadableFileError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
@pytest.mark.parametrize("source", ["shards/a.parquet", "shards"])
def test_an_upload_that_fails_leaves_no_object_and_is_done_again(remote, monkeypatch, error, told, source):
    monkeypatch.setattr(locations, "_PART", 1000)
    before = remote.names()
    collection = eb.open(remote.shards.path.parent / source)
    target = remote.uri("out/new" if source == "shards" else "out/new.parquet")
    with monkeypatch.context() as broken:
        fails = lambda path, mode: Failing(path, mode, error) if path.suffix == ".parquet" else open(path, mode)  # noqa: E731, SIM115
        broken.setattr(locations, "open", fails, raising=False)
        with pytest.raises(told):
            eb.convert(collection, map_between(), target)
    begun = ["out/new/_embridge.json"] if source == "shards" else []  # which objects are ours, if a later run finds them
    assert remote.names() == sorted([*before, *begun])
    assert listing(remote.staging)
    translated = []
    original = file.translate_groups
    monkeypatch.setattr(file, "translate_groups", lambda *a, **k: translated.append(1) or original(*a, **k))
    eb.convert(collection, map_between(), target, resume=True)
    if source != "shards":
        assert translated == []  # it was made already
    assert len(translated) < 4
    assert eb.verify(target, source=collection, translation=map_between()).compared == len(collection)
    assert listing(remote.staging) == []
    translated.clear()
    done = eb.convert(collection, map_between(), target, resume=True)  # and there already
    assert (done.rows, translated) == (len(collection), [])


@pytest.mark.parametrize("source", ["shards/a.parquet", "shards"])
def test_bad_rows_are_listed_beside_the_object(remote, source):
    """The list has a name of its own, and is no file of the folder."""
    puncture(remote.shards.path / "a.parquet", [4])
    puncture(remote.shards.path / "year=2025/a.parquet", [0])
    collection = eb.open(remote.shards.path.parent / source)
    name, bad = ("out/new", [4, 90]) if source == "shards" else ("out/new.parquet", [4])
    done = eb.convert(collection, map_between(), remote.uri(name), on_bad="skip")
    assert done.skipped == len(bad)
    assert pq.read_table(pa.BufferReader(remote.get(f"{name}.bad.parquet")))["row"].to_pylist() == bad
    assert len(eb.open(remote.uri(name))) == len(collection) - len(bad)
    assert eb.verify(remote.uri(name), source=collection, translation=map_between()).compared == len(collection) - len(bad)
    for path in ("a.parquet", "year=2025/a.parquet"):
        puncture(remote.shards.path / path, [4, 0], 1.0)
    eb.convert(eb.open(remote.shards.path.parent / source), map_between(), remote.uri(name), on_bad="skip", overwrite=True)
    assert f"{name}.bad.parquet" not in remote.names()


def test_an_object_is_replaced_only_when_told_and_never_the_source(remote):
    source = eb.open(remote.uri("shards/a.parquet"))
    before = remote.get("shards/a.parquet")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="both input and output"):
            eb.convert(source, map_between(), remote.uri("shards/a.parquet"), overwrite=overwrite)
    assert remote.get("shards/a.parquet") == before
    remote.put(remote.shards.path / "a.parquet", "out/new.parquet")
    for resume in (False, True):
        with pytest.raises(OutputExistsError, match="exists already"):
            eb.convert(source, map_between(), remote.uri("out/new.parquet"), resume=resume)
    assert remote.get("out/new.parquet") == before
    eb.convert(source, map_between(), remote.uri("out/new.parquet"), overwrite=True)
    assert eb.open(remote.uri("out/new.parquet")).space == NEW


def test_a_bucket_that_is_not_there_is_told(remote):
    target = remote.uri("x").replace("s3://b", "s3://nobucket")
    with pytest.raises(EmbridgeError, match="nobucket"):
        eb.convert(eb.open(remote.shards.path / "a.parquet"), map_between(), target)


# What verify finds


@pytest.fixture
def made(tmp_path, rows, out):
    """A source, a map and what became of it."""
    pq.write_table(table_of(*rows, n=range(ROWS)), tmp_path / "old.parquet")
    source, target = eb.open(tmp_path / "old.parquet"), out.with_suffix(".parquet")
    eb.convert(source, map_between(), target)
    return SimpleNamespace(source=source, path=target, translation=map_between(), at=tmp_path)


def rewritten(path, change):
    table = pq.read_table(path)
    metadata = table.schema.metadata
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata(metadata), path, row_group_size=50)


def with_vectors(table, change):
    x = np.array(table["vector"].combine_chunks().flatten()).reshape(-1, Q)
    change(x)
    return table.set_column(
        1,
        table.schema.field("vector"),
        pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), type=table.schema.field("vector").type),
    )


def swap_ids(table):
    ids = table["id"].to_pylist()
    ids[40], ids[41] = ids[41], ids[40]
    return table.set_column(0, table.schema.field("id"), pa.array(ids))


def nudge(x):
    x[77, 3] += 0.01


def exchange(x):
    x[[10, 90]] = x[[90, 10]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: with_vectors(t, nudge), VerificationError, "the vector in row 77 is not the translation of the source's"),
        (lambda t: with_vectors(t, exchange), VerificationError, "the vector in row 10 is not"),
        (
            lambda t: pa.concat_tables([t.slice(0, 60), t.slice(61)]),
            VerificationError,
            "ids between rows .* are not those of the source",
        ),
        (lambda t: t.slice(0, ROWS - 1), VerificationError, r"1 rows of the source are missing"),
        (lambda t: t.slice(1), VerificationError, "ids between"),
        (
            lambda t: pa.concat_tables([t, t.slice(0, 1).set_column(0, t.schema.field("id"), [["new"]])]),
            VerificationError,
            "ids between",
        ),
        (swap_ids, VerificationError, "ids between rows 0 and 50 are not those of the source"),
        (lambda t: pa.concat_tables([t.slice(0, 119), t.slice(0, 1)]), BadIdsError, "holds ids more than once: 'd0'"),
        (lambda t: with_vectors(t, lambda x: x.__setitem__((5, 0), np.nan)), BadVectorsError, "NaN or infinite values: ids 'd5'"),
    ],
    ids=["value", "exchanged", "missing", "cut", "first", "more", "ids", "twice", "nan"],
)
def test_verify_finds_what_is_wrong(made, change, error, message):
    rewritten(made.path, change)
    with pytest.raises(error, match=message):
        eb.verify(made.path, source=made.source, translation=made.translation)


def test_verify_finds_another_map_source_or_space(made, rows):
    with pytest.raises(VerificationError, match=r"its lineage names map .*, which is not"):
        eb.verify(made.path, translation=map_between(seed=6))
    pq.write_table(table_of(rows[0], 2 * rows[1]), made.at / "other.parquet")
    with pytest.raises(VerificationError, match="its lineage names source"):
        eb.verify(made.path, source=eb.open(made.at / "other.parquet"))
    with pytest.raises(VerificationError, match="its lineage names source None"):
        eb.verify(made.at / "old.parquet", source=made.source)
    metadata = pq.read_schema(made.path).metadata
    metadata[b"embridge.space"] = json.dumps(Space("third", Q).to_dict()).encode()
    pq.write_table(pq.read_table(made.path).replace_schema_metadata(metadata), made.path)
    with pytest.raises(SpaceMismatchError, match="third"):
        eb.verify(made.path, translation=made.translation)


def test_verify_finds_a_damaged_file(made):
    content = bytearray(made.path.read_bytes())
    content[-200:-100] = bytes(100)
    made.path.write_bytes(content)
    with pytest.raises(UnreadableFileError):
        eb.verify(made.path)


@pytest.mark.parametrize(
    ("options", "stored", "error"),
    [
        ({}, np.float32, 1e-6),
        ({}, np.float16, 1e-6),
        ({}, np.float64, 1e-6),
        ({"compact": True}, np.float32, 1e-6),
        ({"dtype": "float16"}, np.float32, 1e-3),
        ({"dtype": "float16"}, np.float16, 1e-3),
        ({"precision": "bfloat16"}, np.float32, 2e-2),
    ],
)
@pytest.mark.parametrize("target", [NEW, Space("new", Q, Metric.COSINE, normalized=True), Space("new", Q, Metric.L2)], ids=str)
def test_verify_passes_what_is_sound(tmp_path, out, rows, options, stored, error, target):
    pq.write_table(table_of(rows[0], rows[1].astype(stored)), tmp_path / "old.parquet")
    source, translation, seen = eb.open(tmp_path / "old.parquet"), map_between(target=target), []
    path = out.with_suffix(".parquet")
    eb.convert(source, translation, path, **options)
    precision = options.get("precision", "float32")
    found = eb.verify(path, source=source, translation=translation, precision=precision, progress=lambda *n: seen.append(n))
    assert (found.rows, found.compared) == (ROWS, ROWS)
    assert found.max_error < error
    assert seen[-1] == (ROWS, ROWS)
    if error > 1e-6:  # what was computed more coarsely is not float32's work
        assert found.max_error > 1e-5
    alone = eb.verify(path)
    assert (alone.rows, alone.compared, alone.max_error) == (ROWS, 0, 0.0)


def test_a_conversion_that_wrote_something_else_is_found_at_once(tmp_path, out, rows, monkeypatch):
    """The sample that is recomputed before the output gets its name."""
    pq.write_table(table_of(*rows), tmp_path / "old.parquet")
    put = writer.CollectionWriter.append
    monkeypatch.setattr(writer.CollectionWriter, "append", lambda self, parts, vectors, _: put(self, parts, vectors[::-1].copy()))
    with pytest.raises(VerificationError, match="is not the translation of the source's"):
        eb.convert(eb.open(tmp_path / "old.parquet"), map_between(), out.with_suffix(".parquet"))
    assert not out.with_suffix(".parquet").exists()


def test_verify_tells_on_the_command_line(made):
    made.translation.save(made.at / "map.safetensors")
    line = [
        "verify",
        str(made.path),
        "--source",
        made.source.path,
        "--map",
        str(made.at / "map.safetensors"),
        "--json",
        "--no-catalog",
    ]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["rows"], told["compared"]) == (ROWS, ROWS)
    rewritten(made.path, swap_ids)
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: '{made.path}' is not what it should be: ids")


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


@pytest.mark.parametrize("name", ["out", "deep/out", "out.parquet"])
def test_an_output_within_its_own_input_is_refused(tmp_path, rows, name):
    ids, vectors = rows
    folder = tmp_path / "shards"
    (folder / "deep").mkdir(parents=True)
    for part in range(2):
        pq.write_table(table_of(ids[part::2], vectors[part::2]), folder / f"{part}.parquet")
    before = listing(tmp_path)
    with pytest.raises(OutputExistsError, match="lie one in the other"):
        eb.convert(eb.open(folder), map_between(), folder / name)
    assert listing(tmp_path) == before


# A folder of objects


def test_a_remote_folder_replaces_only_its_own_objects(remote, tmp_path):
    source, target = eb.open(remote.shards.path), remote.uri("out/new")
    eb.convert(source, map_between(seed=6), target)
    (tmp_path / "notes.txt").write_text("mine")
    remote.put(tmp_path / "notes.txt", "out/new/notes.txt")
    (remote.shards.path / "a.parquet").unlink()
    source = eb.open(remote.shards.path)
    eb.convert(source, map_between(), target, overwrite=True)
    there = [name for name in remote.names() if name.startswith("out/")]
    assert there == sorted(f"out/new/{name}" for name in ["_embridge.json", "notes.txt", *remote.shards.names[1:]])
    assert remote.get("out/new/notes.txt") == b"mine"
    assert eb.verify(target, source=source, translation=map_between()).compared == ROWS - 30


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("out/new/c.parquet", "c.parquet.*was not written by embridge"),
        ("out/new/a.parquet", "a.parquet.*was altered since embridge wrote it"),
    ],
)
def test_a_remote_folder_with_objects_of_others_is_refused(remote, key, named):
    target = remote.uri("out/new")
    eb.convert(eb.open(remote.shards.path), map_between(seed=6), target)
    remote.put(remote.shards.path / "a.parquet", key)
    before = {name: remote.get(name) for name in remote.names()}
    with pytest.raises(OutputExistsError, match=named):
        eb.convert(eb.open(remote.shards.path), map_between(), target, overwrite=True)
    assert {name: remote.get(name) for name in remote.names()} == before


def test_a_remote_folder_without_a_manifest_is_refused(remote):
    with pytest.raises(OutputExistsError, match="no manifest"):
        eb.convert(eb.open(remote.shards.path), map_between(), remote.uri("shards"), overwrite=True)


@pytest.mark.parametrize(
    ("source", "target"),
    [("shards", "shards/new"), ("shards/a.parquet", "shards"), ("shards", "shards"), ("shards/year=*", "shards")],
)
def test_remote_inputs_and_outputs_do_not_overlap(remote, source, target):
    before = remote.names()
    with pytest.raises(OutputExistsError, match=r"one in the other|both input and output|no manifest|exists already"):
        eb.convert(eb.open(remote.uri(source)), map_between(), remote.uri(target), overwrite=True)
    assert remote.names() == before


@pytest.mark.parametrize("name", ["s3://", "s3://bucket", "s3://bucket/", "s3:///key"])
def test_a_remote_output_needs_a_key(shards, name):
    with pytest.raises(EmbridgeError):
        eb.convert(eb.open(shards.path), map_between(), name)


@pytest.mark.parametrize("plant", ["link", "open"])
def test_a_staging_folder_of_somebody_else_is_not_used(remote, tmp_path, monkeypatch, plant):
    """Its name can be predicted, and the folder of temporary files is everybody's."""
    made = []
    mkdir = os.mkdir
    with monkeypatch.context() as patch:
        patch.setattr(remote_module.os, "mkdir", lambda path, mode=0o777: made.append(path) or mkdir(path, mode))
        eb.convert(eb.open(remote.shards.path / "a.parquet"), map_between(), remote.uri("x.parquet"))
    staging = next(path for path in made if path.name.startswith("embridge-"))
    (tmp_path / "victim").mkdir()
    if plant == "link":
        staging.symlink_to(tmp_path / "victim")
    else:
        staging.mkdir(mode=0o755)
    with pytest.raises(EmbridgeError, match=r"is not a folder|is a file"):
        eb.convert(eb.open(remote.shards.path / "a.parquet"), map_between(), remote.uri("x.parquet"), overwrite=True)
    assert list((tmp_path / "victim").iterdir()) == []
