"""Qdrant: the conformance suite on qdrant-client's local mode and on Qdrant's own engine, and what is particular to points."""

import subprocess
import sys
import uuid

import numpy as np
import pyarrow as pa
import pytest

import embridge as eb
from embridge.errors import BadIdsError, BadVectorsError, CollectionError, MissingFileError, ParameterError, UnreadableFileError
from embridge.stores.capabilities import Capabilities
from embridge.stores.uri import Location
from embridge.testing.writers import StoreConformance, batch_of
from embridge.types import Metric

qdrant_client = pytest.importorskip("qdrant_client")
from qdrant_client import models  # noqa: E402

from embridge.stores import qdrant  # noqa: E402
from embridge.stores.qdrant import collection as reading  # noqa: E402
from embridge.stores.qdrant.points import point_id  # noqa: E402

pytestmark = pytest.mark.qdrant
DOC_1 = "5d4120a9-2512-5ca3-aec5-4bdbd7a2f620"  # the point of "doc-1" in every version
ROWS = np.random.default_rng(2).normal(size=(60, 4)).astype(np.float32)


class TestQdrantLocalMode(StoreConformance):
    capabilities = Capabilities(
        keeps_lengths=False, keeps_order=False, supports_second_vector=True, supports_alias=True, dtypes=("float32", "float16")
    )
    keeps_bad_values = False
    is_reproducible = False  # a reopened folder scales vectors again, and differs in the last bits
    tolerance = 1e-6  # vectors are scaled once more
    unheld = (
        pa.field("raw", pa.binary()),
        pa.field("at", pa.timestamp("us")),
        pa.field("large", pa.uint64()),
        pa.field("pairs", pa.list_(pa.struct([("d", pa.decimal128(5, 2))]))),
    )
    payload = StoreConformance.payload | {
        "small": pa.array(range(100), pa.uint8()),
        "pair": pa.array([{"x": i, "y": [str(i)]} for i in range(100)]),
    }

    @pytest.fixture
    def new_uri(self, tmp_path):
        return lambda: f"qdrant://{tmp_path}#t{uuid.uuid4().hex}"

    def lose_the_next_note(self, writer, monkeypatch):
        def stop(note):
            raise KeyboardInterrupt

        monkeypatch.setattr(writer, "finish", stop)

    def add(self, uri, ids, vectors):
        location = Location.parse(uri)
        store = qdrant.QdrantStore()
        layout = self.layout(cursor=None)
        store.resume(location, layout).write(batch_of(ids, vectors), layout.note(None))


class TestQdrantEngine(TestQdrantLocalMode):
    is_reproducible = True

    @pytest.fixture(autouse=True)
    def engine(self, tmp_path, monkeypatch):
        pytest.importorskip("qdrant_edge")
        from tests.stores.edge import EdgeClient

        client = EdgeClient(tmp_path)
        for module in (qdrant, reading):
            monkeypatch.setattr(module, "client_of", lambda location: location.check_options("id", "vector") or client)


@pytest.fixture
def client(tmp_path):
    return reading.client_of(Location.parse(f"qdrant://{tmp_path}#docs"))


def add(client, points, **vectors):
    params = vectors or models.VectorParams(size=4, distance=models.Distance.DOT)
    client.create_collection("docs", vectors_config=params)
    client.upsert("docs", [models.PointStruct(**point) for point in points])


def test_a_foreign_collection_is_read_as_it_stands(client, tmp_path):
    points = [{"id": 7 * i % 60, "vector": ROWS[i].tolist(), "payload": {"text": f"t{i}", "n": i}} for i in range(60)]
    add(client, [p for p in points if p["id"] not in (1,)])
    found = eb.open(f"qdrant://{tmp_path}#docs", space="minilm")
    assert found.space == eb.Space("minilm", 4, Metric.DOT)
    ids, vectors = found.read()
    assert ids.tolist() == [i for i in range(60) if i != 1]
    np.testing.assert_array_equal(vectors, [p["vector"] for p in sorted(points, key=lambda p: p["id"]) if p["id"] != 1])
    assert found.payload_schema == pa.schema([("text", pa.string()), ("n", pa.int64())])
    keyed = eb.open(f"qdrant://{tmp_path}?id=text#docs", space="minilm")
    assert set(keyed.read()[0].tolist()) == {p["payload"]["text"] for p in points if p["id"] != 1}
    some = keyed.read()[0].tolist()
    assert [i for b in keyed.batches(after=some[10]) for i in b.ids.to_pylist()] == some[11:]


def test_named_and_missing_vectors(client, tmp_path):
    a, b = (models.VectorParams(size=n, distance=models.Distance.EUCLID) for n in (2, 3))
    add(client, [{"id": 1, "vector": {"a": [1, 2], "b": [1, 2, 3]}}, {"id": 2, "vector": {"a": [3, 4]}}], a=a, b=b)
    assert eb.open(f"qdrant://{tmp_path}?vector=a#docs", space="x").read()[1].tolist() == [[1, 2], [3, 4]]
    other = eb.open(f"qdrant://{tmp_path}#docs", space="x", vector_column="b")
    assert other.space == eb.Space("x", 3, Metric.L2)
    with pytest.raises(BadVectorsError, match=r"1 row without a vector \(null\)"):
        other.read()
    with pytest.raises(CollectionError, match=r"has no column 'vector'. Columns: a, b"):
        eb.open(f"qdrant://{tmp_path}#docs", space="x")


def test_ids_of_several_types_and_beyond_int64_are_refused(client, tmp_path):
    add(client, [{"id": 1, "vector": [1.0] * 4}, {"id": str(uuid.uuid4()), "vector": [1.0] * 4}])
    with pytest.raises(BadIdsError, match="several types"):
        eb.open(f"qdrant://{tmp_path}#docs", space="x").read()
    client.delete_collection("docs")
    add(client, [{"id": (1 << 63) + 1, "vector": [1.0] * 4}])
    with pytest.raises(BadIdsError, match="beyond int64"):
        eb.open(f"qdrant://{tmp_path}#docs", space="x").read()


def test_payload_that_is_not_uniform_is_refused_or_read_as_text(client, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_PAGE", 2)
    add(client, [{"id": i, "vector": [1.0] * 4, "payload": {"a": 1} if i < 3 else {"b": 1}} for i in range(5)])
    with pytest.raises(CollectionError, match="payload 'b' that its first points lack"):
        list(eb.open(f"qdrant://{tmp_path}#docs", space="x").batches(payload=True))
    client.delete_collection("docs")
    add(client, [{"id": i, "vector": [1.0] * 4, "payload": {"a": 1 if i < 3 else "one"}} for i in range(5)])
    with pytest.raises(CollectionError, match=r"payload 'a' of .* is int64 in its first points"):
        list(eb.open(f"qdrant://{tmp_path}#docs", space="x").batches(payload=True))
    text = eb.open(f"qdrant://{tmp_path}?payload=json#docs", space="x")
    assert [v for b in text.batches(payload=True) for v in b.payload.column(0).to_pylist()][-1] == '{"a": "one"}'


def test_under_cosine_lengths_are_not_kept_and_maps_of_raw_vectors_are_refused(client, tmp_path, planted, make_space):
    ids, x, y, _ = planted(p=4)
    old, new = (eb.MemoryCollection(ids, v, make_space(n, v.shape[1])) for n, v in (("old", x), ("new", y)))
    eb.copy(old, f"qdrant://{tmp_path}#docs")
    stored = eb.open(f"qdrant://{tmp_path}#docs")
    assert stored.space == make_space("old", 4, normalized=True)
    assert not stored.capabilities.keeps_lengths
    with pytest.raises(eb.EmbridgeError, match="scaled to unit length, and the map was fitted on vectors of other lengths"):
        eb.convert(stored, eb.fit(eb.match(old, new), "ridge", alpha=0.1), tmp_path / "out.parquet")
    fitted = eb.fit(eb.match(stored, new), "ridge", alpha=0.1)
    assert eb.convert(stored, fitted, tmp_path / "out.parquet").rows == len(ids)


def test_points_of_texts_are_stable():
    assert point_id("doc-1") == DOC_1 != point_id("doc-2")
    assert point_id("6f0f7c1e-5f0a-5d0c-9c40-0f5a8a1f6a3e") == "6f0f7c1e-5f0a-5d0c-9c40-0f5a8a1f6a3e"
    assert point_id("6F0F7C1E-5F0A-5D0C-9C40-0F5A8A1F6A3E") != "6f0f7c1e-5f0a-5d0c-9c40-0f5a8a1f6a3e"
    with pytest.raises(BadIdsError, match="no negative ids, such as -3"):
        point_id(-3)


@pytest.mark.parametrize("uri", ["qdrant://{0}", "qdrant://{0}/nothing#docs", "qdrant://127.0.0.1:1/docs", "qdrant://127.0.0.1:1"])
def test_places_that_do_not_exist_are_errors(tmp_path, uri):
    with pytest.raises((ParameterError, MissingFileError, UnreadableFileError)):
        eb.open(uri.format(tmp_path), space="a")


def test_without_the_package_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['qdrant_client'] = None\n"
        "import embridge as eb\n"
        "try: eb.open('qdrant:///nowhere#t')\n"
        "except eb.EmbridgeError as e: print(type(e).__name__, e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "MissingDependencyError qdrant:// needs qdrant-client, which is not installed. Hint: pip install 'embridge[qdrant]'."
    )
