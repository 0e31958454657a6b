"""Qdrant: the conformance suite on the local mode of its client and on its own engine, and what is particular to it."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import embridge as eb
from embridge.arrays import unit
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    ChangedSourceError,
    CollectionError,
    MissingFileError,
    OutputError,
    ParameterError,
    UnreadableFileError,
)
from embridge.stores.uri import Location
from embridge.testing.writers import StoreConformance, write
from embridge.types import Metric, Space

qdrant_client = pytest.importorskip("qdrant_client")
pytest.importorskip("qdrant_edge")
from qdrant_client import models  # noqa: E402

from embridge.stores.qdrant import capabilities_of  # noqa: E402
from embridge.stores.qdrant.client import connect, point_of  # noqa: E402
from tests.stores.qdrant_server import QdrantServer  # noqa: E402
from tests.stores.support import memory_folder  # noqa: E402

pytestmark = pytest.mark.qdrant
ROWS = np.random.default_rng(2).normal(size=(600, 4)).astype(np.float32)
UNHELD = (pa.field("bytes", pa.binary()), pa.field("pairs", pa.map_(pa.string(), pa.int64())), pa.field("span", pa.duration("s")))
PAYLOAD = StoreConformance.payload | {
    "kind": pa.array(["a", "b"] * 50).dictionary_encode(),
    "pair": pa.array([{"x": i, "y": [str(i), None]} for i in range(100)]),
    "small": pa.array([None, 0.1] * 50, pa.float32()),
    "large": pa.array([2**64 - 1 - i for i in range(100)], pa.uint64()),
    "day": pa.array(list(range(100)), pa.int32()).cast(pa.date32()),
    "price": pa.array(["1.50", None] * 50).cast(pa.decimal128(9, 2)),
}


@pytest.fixture(scope="module")
def server():
    with memory_folder() as folder, QdrantServer(Path(folder)) as server:
        yield server


@pytest.fixture
def uri(server):
    """Of a collection that does not exist, on a server that is as it should be."""
    server.api_key = server.broken = server.before = None
    server.keeps_metadata = True
    return f"qdrant://127.0.0.1:{server.port}/t{uuid.uuid4().hex}"


def client_of(uri):
    location = Location.parse(uri)
    return connect(location, may_create=True), (location.path.strip("/") if location.host else location.part)


class _Qdrant(StoreConformance):
    capabilities = capabilities_of(Metric.COSINE)
    keeps_bad_values = False  # Qdrant refuses them, and scales to unit length
    tolerance = 1e-6
    unheld = UNHELD
    payload = PAYLOAD

    def lose_the_next_note(self, writer, monkeypatch):
        def stop(note):
            raise KeyboardInterrupt

        monkeypatch.setattr(writer, "finish", stop)

    def add(self, uri, ids, vectors):
        client, name = client_of(uri)
        points = models.Batch(
            ids=[point_of(i) for i in ids], vectors={"vector": vectors.tolist()}, payloads=[{"id": i} for i in ids]
        )
        client.upsert(name, points)


class TestLocalMode(_Qdrant):
    @pytest.fixture
    def new_uri(self):
        with memory_folder() as folder:
            yield lambda: f"qdrant://{folder}/db#t{uuid.uuid4().hex}"


class TestEngine(_Qdrant):
    @pytest.fixture
    def new_uri(self, uri):
        return lambda: f"{uri}{uuid.uuid4().hex}"


def create(uri, vectors, points):
    """A collection that embridge did not make."""
    client, name = client_of(uri)
    client.create_collection(name, vectors_config=vectors)
    for start in range(0, len(points), 100):
        client.upsert(name, points[start : start + 100])
    return client, name


def test_a_foreign_collection_is_read_as_it_stands(uri):
    points = [models.PointStruct(id=i, vector=v.tolist(), payload={"text": f"t{i}", "n": i}) for i, v in enumerate(ROWS)]
    points[5].payload = {"text": None, "tags": ["a"], "deep": {"x": 1}, "mixed": 1}
    points[6].payload |= {"mixed": "one", "deep": {"y": 2.5}, "empty": {}}
    create(uri, models.VectorParams(size=4, distance=models.Distance.DOT), points)
    found = eb.open(uri, space="minilm")
    assert found.space == Space("minilm", 4, Metric.DOT)
    ids, vectors = found.read()
    assert ids.tolist() == list(range(600))
    np.testing.assert_array_equal(vectors, ROWS)
    fields = {"deep": pa.struct([("x", pa.int64()), ("y", pa.float64())]), "empty": pa.string(), "mixed": pa.string()}
    fields |= {"n": pa.int64(), "tags": pa.list_(pa.string()), "text": pa.string()}
    assert {column.name: column.type for column in found.payload_schema} == fields
    rows = next(found.batches(20, payload=True)).payload.to_pylist()
    nothing = dict.fromkeys(fields)
    assert rows[4:7] == [
        nothing | {"text": "t4", "n": 4},
        nothing | {"tags": ["a"], "deep": {"x": 1, "y": None}, "mixed": "1"},
        nothing | {"text": "t6", "n": 6, "deep": {"x": None, "y": 2.5}, "mixed": '"one"', "empty": "{}"},
    ]
    assert found.search(ROWS[:3], 1).ids.dtype == np.int64
    by_text = eb.open(f"{uri}?id=n", space="minilm")
    with pytest.raises(BadIdsError, match="1 row without an id"):
        by_text.read()


def test_under_cosine_vectors_have_unit_length_and_a_map_of_others_is_refused(uri, tmp_path, planted, make_space):
    ids, x, y, _ = planted(p=4)
    old, new = (eb.MemoryCollection(ids, v, make_space(n, v.shape[1])) for n, v in (("old", x), ("new", y)))
    eb.copy(old, uri)
    stored = eb.open(uri)
    assert stored.space == make_space("old", 4, normalized=True)
    assert not stored.capabilities.keeps_lengths
    order = {i: n for n, i in enumerate(ids.tolist())}
    np.testing.assert_allclose(stored.read()[1], unit(x)[[order[i] for i in stored.read()[0]]], atol=1e-6)
    with pytest.raises(eb.EmbridgeError, match="scaled to unit length, and the map was fitted on vectors of other lengths"):
        eb.convert(stored, eb.fit(eb.match(old, new), "ridge", alpha=0.1), tmp_path / "out.parquet")
    rotation = eb.fit(eb.match(old, new), "rotation")  # without an intercept, lengths do not change directions
    assert eb.convert(stored, rotation, tmp_path / "rotated.parquet").rows == len(ids)
    fitted = eb.fit(eb.match(stored, new), "ridge", alpha=0.1)
    assert eb.convert(stored, fitted, tmp_path / "out.parquet").rows == len(ids)
    assert eb.convert(stored, fitted, f"{uri}2").rows == len(ids)


def test_named_vectors(uri):
    kinds = {"old": models.VectorParams(size=4, distance=models.Distance.EUCLID)}
    kinds |= {"new": models.VectorParams(size=2, distance=models.Distance.DOT)}
    points = [models.PointStruct(id=i, vector={"old": v.tolist(), "new": v[:2].tolist()}) for i, v in enumerate(ROWS)]
    del points[3].vector["new"]
    create(uri, kinds, points)
    assert eb.open(f"{uri}?vector=old", space="a").space == Space("a", 4, Metric.L2)
    np.testing.assert_array_equal(eb.open(f"{uri}?vector=old", space="a").read()[1], ROWS)
    new = eb.open(f"{uri}?vector=new", space="b")
    with pytest.raises(BadVectorsError, match=r"1 row without a vector \(null\), the first at row 3"):
        new.read()
    assert eb.summarize(new).bad_rows == 1
    with pytest.raises(CollectionError, match=r"no vector ''\. Vectors: 'old', 'new'"):
        eb.open(uri, space="a")
    with pytest.raises(CollectionError, match="no vector 'x'"):
        eb.open(f"{uri}?vector=x", space="a")
    with pytest.raises(ParameterError, match="name one"):
        eb.open(f"{uri}?vector=old", space="a", vector_column="new")


@pytest.mark.parametrize("distance", ["Manhattan"])
def test_a_distance_without_a_metric_is_refused(uri, distance):
    create(uri, models.VectorParams(size=4, distance=distance), [models.PointStruct(id=1, vector=[1, 2, 3, 4])])
    with pytest.raises(CollectionError, match=f"has the distance '{distance}'"):
        eb.open(uri, space="a")


def test_ids_of_points_are_numbers_or_text(uri):
    kind = models.VectorParams(size=4, distance=models.Distance.DOT)
    some = str(uuid.uuid4())
    points = [models.PointStruct(id=i, vector=[1, 2, 3, 4]) for i in (7, 2**63 - 1, 2**63, 2**64 - 1, some)]
    create(f"{uri}n", kind, points[:2])
    create(f"{uri}m", kind, points)
    numbers, mixed = eb.open(f"{uri}n", space="a"), eb.open(f"{uri}m", space="a")
    assert numbers.read()[0].tolist() == [7, 2**63 - 1]
    expected = ["7", str(2**63 - 1), str(2**63), str(2**64 - 1), some]
    assert mixed.read()[0].tolist() == expected
    for place, i in enumerate(expected):
        assert [x for b in mixed.batches(2, after=i) for x in b.ids.to_pylist()] == expected[place + 1 :]
    client_of(f"{uri}n")[0].upsert(client_of(f"{uri}n")[1], points[2:])
    with pytest.raises(BadIdsError, match="not all int64"):
        numbers.read()


def test_ids_of_every_kind_come_back(uri):
    numbers = [-1, -(2**63), 2**63 - 1, 0, 12345]
    write(f"{uri}n", numbers, ROWS[:5], Space("a", 4))
    found = eb.open(f"{uri}n")
    assert sorted(found.read()[0].tolist()) == sorted(numbers)
    for i in numbers:
        assert found.search(ROWS[[numbers.index(i)]], 1).ids.item() == i
    version5 = str(uuid.uuid5(uuid.NAMESPACE_URL, "x"))
    texts = [str(uuid.UUID(int=5)), version5, "x", "", "7", version5.upper(), "é" * 300, str(uuid.UUID(int=5)).upper()]
    texts = list(dict.fromkeys(texts))
    write(f"{uri}t", texts, ROWS[: len(texts)], Space("a", 4))
    found = eb.open(f"{uri}t")
    assert sorted(found.read()[0].tolist()) == sorted(texts)
    order = found.read()[0].tolist()
    for place, i in enumerate(order):
        assert [x for b in found.batches(2, after=i) for x in b.ids.to_pylist()] == order[place + 1 :]
    client, name = client_of(f"{uri}t")
    assert client.retrieve(name, [texts[0]])[0].payload == {"id": texts[0]}


def test_another_field_can_be_the_id(uri):
    points = [models.PointStruct(id=i, vector=v.tolist(), payload={"doc.key": f"d{i}", "n": i}) for i, v in enumerate(ROWS)]
    create(uri, models.VectorParams(size=4, distance=models.Distance.DOT), points)
    found = eb.open(f"{uri}?id=doc.key", space="a")
    assert found.read()[0].tolist() == [f"d{i}" for i in range(600)]
    assert found.payload_schema.names == ["n"]
    assert found.search(ROWS[:2], 1).ids.shape == (2, 1)
    assert [x for b in found.batches(100, after="d597") for x in b.ids.to_pylist()] == ["d598", "d599"]
    with pytest.raises(BadIdsError, match="field 'nothing'"):
        eb.open(f"{uri}?id=nothing", space="a")


def test_rows_that_are_deleted_and_inserted_while_reading_are_noticed(uri, server):
    write(uri, list(range(600)), ROWS, Space("a", 4, Metric.DOT))
    client, name = client_of(uri)
    found = eb.open(uri)
    content = found.fingerprint()
    batches = found.batches(100)
    seen = next(batches).ids.to_pylist()
    client.delete(name, models.PointIdsList(points=[5, 250]))
    client.upsert(name, [models.PointStruct(id=i, vector={"vector": [1, 2, 3, 4]}) for i in (1000, 1001)])
    seen += [i for b in batches for i in b.ids.to_pylist()]
    assert seen == [*range(250), *range(251, 600), 1000, 1001]  # no other row is left out or read twice
    found.check_unchanged()  # as many as before
    assert found.fingerprint() != content
    client.delete(name, models.PointIdsList(points=[6]))
    with pytest.raises(ChangedSourceError, match="had 600 rows, and has 599"):
        found.check_unchanged()


def test_fields_that_other_programs_add_are_not_lost(uri):
    write(uri, ["a", "b"], ROWS[:2], Space("s", 4), {"n": pa.array([1, 2])})
    client, name = client_of(uri)
    point = models.PointStruct(id=point_of("c"), vector={"vector": [1, 2, 3, 4]}, payload={"id": "c", "n": 1.5, "language": "en"})
    client.upsert(name, [point])
    with pytest.raises(CollectionError, match=r"field 'language' that was not there.*columns=inferred"):
        list(eb.open(uri).batches(payload=True))
    found = eb.open(f"{uri}?columns=inferred")
    rows = [row for b in found.batches(payload=True) for row in b.payload.to_pylist()]
    assert sorted(rows, key=str) == sorted(
        [{"language": None, "n": 1.0}, {"language": None, "n": 2.0}, {"language": "en", "n": 1.5}], key=str
    )
    client.delete(name, models.PointIdsList(points=[point.id]))
    client.upsert(name, [replace_payload(point, {"id": "c", "n": "one"})])
    with pytest.raises(CollectionError, match="field 'n' with values that are not int64"):
        list(eb.open(uri).batches(payload=True))


def replace_payload(point, payload):
    return point.model_copy(update={"payload": payload})


def test_values_that_json_has_not_come_back(uri):
    floats = pa.array([float("nan"), float("inf"), -float("inf"), None, 0.1])
    lists = pa.array([[1.5, float("nan")], [], None, [None], [float("-inf")]])
    write(uri, list(range(5)), ROWS[:5], Space("s", 4), {"x": floats, "y": lists})
    found = next(eb.open(uri).batches(payload=True)).payload.to_pydict()
    assert repr(found) == repr({"x": floats.to_pylist(), "y": lists.to_pylist()})


def test_the_api_key_is_sent_and_not_shown(uri, server, monkeypatch, caplog):
    write(uri, ["a", "b"], ROWS[:2], Space("s", 4))
    server.api_key = "hunter2"
    plain = f"{uri}?https=false"
    with pytest.raises(UnreadableFileError, match=r"refuses access \(403\). Hint: set QDRANT_API_KEY"):
        eb.open(plain)
    monkeypatch.setenv("QDRANT_API_KEY", "wrong")
    with pytest.raises(UnreadableFileError) as e:
        eb.open(plain)
    assert "wrong" not in str(e.value)
    monkeypatch.setenv("QDRANT_API_KEY", "hunter2")
    assert len(eb.open(plain)) == 2
    monkeypatch.delenv("QDRANT_API_KEY")
    found = eb.open(f"{plain}&api_key=hunter2")
    assert len(found) == 2
    assert "hunter2" not in f"{found!r} {found.path} {found.name} {caplog.text}"
    assert "was given with a password" in caplog.text


def test_a_dropped_connection_is_an_error(uri, server):
    write(uri, list(range(600)), ROWS, Space("a", 4))
    found = eb.open(uri)
    batches = found.batches(100)
    next(batches)
    server.broken = 2
    with pytest.raises(UnreadableFileError, match=r"cannot be read: .*Hint: is a Qdrant server running at 127.0.0.1"):
        list(batches)
    with pytest.raises(OutputError, match="cannot be written"):
        write(f"{uri}2", list(range(600)), ROWS, Space("a", 4))
    with pytest.raises(UnreadableFileError):
        eb.open(uri)


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("qdrant://127.0.0.1:1/docs", UnreadableFileError, "Connection refused.*running at 127.0.0.1:1"),
        ("qdrant://localhost", ParameterError, "does not name a collection"),
        ("qdrant://localhost/a/b", ParameterError, "does not name a collection"),
        ("qdrant://localhost/a#b", ParameterError, "does not name a collection"),
        ("qdrant:///nowhere", ParameterError, "does not name a collection"),
        ("qdrant:///nowhere#docs", MissingFileError, "nowhere"),
        ("qdrant://localhost/a?https=maybe", ParameterError, "https must be true or false"),
        ("qdrant://localhost/a?columns=all", ParameterError, "columns must be inferred"),
    ],
)
def test_wrong_addresses_are_errors(text, error, reason):
    with pytest.raises(error, match=reason):
        eb.open(text, space="a")


def test_a_missing_or_empty_collection_is_an_error(uri):
    create(f"{uri}empty", models.VectorParams(size=4, distance="Dot"), [])
    with pytest.raises(CollectionError, match="holds no rows"):
        eb.open(f"{uri}empty", space="a")
    with pytest.raises(MissingFileError, match="There is no collection"):
        eb.open(uri, space="a")


def test_another_width_is_an_error(uri):
    create(uri, models.VectorParams(size=4, distance="Dot"), [models.PointStruct(id=1, vector=[1, 2, 3, 4])])
    with pytest.raises(eb.EmbridgeError, match="dim"):
        eb.open(uri, space=Space("a", 5, Metric.DOT))
    with pytest.raises(OutputError, match="already exists"):
        write(uri, [1], np.ones((1, 5), np.float32), Space("a", 5))


def test_a_server_without_metadata_is_not_written(uri, server):
    server.keeps_metadata = False
    with pytest.raises(OutputError, match=r"Qdrant 1\.16 or newer"):
        write(uri, ["a"], ROWS[:1], Space("s", 4))
    with pytest.raises(MissingFileError):
        eb.open(uri)


@pytest.mark.filterwarnings("ignore")  # the client leaves the lock file open when it finds it locked
def test_a_folder_in_use_by_another_process_is_an_error(tmp_path):
    path = str(tmp_path / "db")
    text = f"qdrant://{path}#docs"
    write(text, ["a", "b"], ROWS[:2], Space("s", 4))
    code = (
        f"from qdrant_client import QdrantClient; c = QdrantClient(path={path!r}); print('ready', flush=True); input(); c.close()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(UnreadableFileError, match="already accessed by another instance"):
            eb.open(text)
        other.communicate("\n")
    assert len(eb.open(text)) == 2


def test_nothing_is_printed_when_the_interpreter_ends(tmp_path):
    text = f"qdrant://{tmp_path}/db#docs"
    write(text, ["a", "b"], ROWS[:2], Space("s", 4))
    code = f"import embridge as eb; c = eb.open({text!r}); print(len(c))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_damaged_note_is_an_error(uri):
    write(uri, ["a", "b"], ROWS[:2], Space("s", 4))
    client, name = client_of(uri)
    for key, value in (("embridge_schema", "???"), ("embridge", json.dumps({"embridge": 1}))):
        client.update_collection(name, metadata={key: value})
        with pytest.raises(CollectionError, match="damaged"):
            eb.open(uri)


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
