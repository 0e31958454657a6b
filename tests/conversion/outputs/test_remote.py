"""Object storage as source and output of a conversion, by a server that speaks its protocol."""

import io
import os
import tempfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.conversion import file
from embridge.conversion import remote as remote_module
from embridge.errors import (
    EmbridgeError,
    OutputExistsError,
    UnreadableFileError,
)
from embridge.stores import locations
from tests.conversion.outputs.support import NEW, ROWS, listing, map_between, puncture

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
    ("error", "raised"), [(OSError("the cable was pulled"), UnreadableFileError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
@pytest.mark.parametrize("source", ["shards/a.parquet", "shards"])
def test_an_upload_that_fails_leaves_no_object_and_is_done_again(remote, monkeypatch, error, raised, source):
    monkeypatch.setattr(locations, "_PART", 1000)
    before = remote.names()
    collection = eb.open(remote.shards.path.parent / source)
    target = remote.uri("out/new" if source == "shards" else "out/new.parquet")
    with monkeypatch.context() as broken:
        fails = lambda path, mode: Failing(path, mode, error) if path.suffix == ".parquet" else open(path, mode)  # noqa: E731, SIM115
        broken.setattr(locations, "open", fails, raising=False)
        with pytest.raises(raised):
            eb.convert(collection, map_between(), target)
    begun = ["out/new/_embridge.json"] if source == "shards" else []  # which objects are ours, if a later run finds them
    assert remote.names() == sorted([*before, *begun])
    assert listing(remote.staging)
    translated = []
    original = file.translate_rows
    monkeypatch.setattr(file, "translate_rows", lambda *a, **k: translated.append(1) or original(*a, **k))
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


def test_an_object_is_replaced_only_with_overwrite_and_never_the_source(remote):
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


def test_a_missing_bucket_is_reported(remote):
    target = remote.uri("x").replace("s3://b", "s3://nobucket")
    with pytest.raises(EmbridgeError, match="nobucket"):
        eb.convert(eb.open(remote.shards.path / "a.parquet"), map_between(), target)


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
    with pytest.raises(OutputExistsError, match=r"are nested|both input and output|no manifest|exists already"):
        eb.convert(eb.open(remote.uri(source)), map_between(), remote.uri(target), overwrite=True)
    assert remote.names() == before


@pytest.mark.parametrize("name", ["s3://", "s3://bucket", "s3://bucket/", "s3:///key"])
def test_a_remote_output_needs_a_key(shards, name):
    with pytest.raises(EmbridgeError):
        eb.convert(eb.open(shards.path), map_between(), name)


@pytest.mark.parametrize("plant", ["link", "open"])
def test_a_staging_folder_of_another_user_is_not_used(remote, tmp_path, monkeypatch, plant):
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
