"""Chroma: the conformance suite in a folder and on its bundled server, and what is particular to it."""

import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import embridge as eb
from embridge.errors import (
    BadIdsError,
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

chromadb = pytest.importorskip("chromadb")

from embridge.stores.chroma.client import connect  # noqa: E402
from embridge.stores.chroma.collection import CAPABILITIES  # noqa: E402
from tests.stores.support import memory_folder  # noqa: E402

pytestmark = pytest.mark.chroma
ROWS = np.random.default_rng(2).normal(size=(600, 4)).astype(np.float32)
PAYLOAD = StoreConformance.payload | {
    "document": pa.array([None if i % 3 == 0 else f"text {i}" for i in range(100)]),
    "uri": pa.array([None] * 100, pa.string()),
    "kind": pa.array(["a", "b"] * 50).dictionary_encode(),
    "pair": pa.array([{"x": i, "y": [str(i), None]} for i in range(100)]),
    "small": pa.array([None, 0.1] * 50, pa.float32()),
    "large": pa.array([2**64 - 1 - i for i in range(100)], pa.uint64()),
    "day": pa.array(list(range(100)), pa.int32()).cast(pa.date32()),
}
UNHELD = (*(pa.field(name, pa.int64()) for name in ("#x", "chroma:x", "")), pa.field("bytes", pa.binary()))


@contextmanager
def running_server():
    """Chroma's own server, as ``chroma run`` starts it: its process and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with memory_folder() as folder:
        command = [Path(sys.executable).with_name("chroma"), "run", "--path", folder, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield process, port
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def port():
    if not Path(sys.executable).with_name("chroma").exists():
        pytest.skip("the command `chroma` is not beside this Python")
    with running_server() as (_, port):
        yield port


@pytest.fixture
def uri():
    with memory_folder() as folder:
        yield f"chroma://{folder}#docs"


def client_of(uri):
    location = Location.parse(uri)
    return connect(location, may_create=True), (location.path.strip("/") if location.host else location.part)


def collection_of(uri):
    client, name = client_of(uri)
    return client.get_collection(name, embedding_function=None)


class _Chroma(StoreConformance):
    capabilities = CAPABILITIES
    keeps_bad_values = False  # Chroma refuses NaN
    tolerance = 1e-6  # under cosine
    unheld = UNHELD
    payload = PAYLOAD

    def lose_the_next_note(self, writer, monkeypatch):
        def stop(note):
            raise KeyboardInterrupt

        monkeypatch.setattr(writer, "finish", stop)

    def add(self, uri, ids, vectors):
        collection_of(uri).add(ids=[str(i) for i in ids], embeddings=vectors)


class TestFolder(_Chroma):
    @pytest.fixture
    def new_uri(self):
        with memory_folder() as folder:
            yield lambda: f"chroma://{folder}#t{uuid.uuid4().hex}"


class TestServer(_Chroma):
    @pytest.fixture
    def new_uri(self, port):
        return lambda: f"chroma://127.0.0.1:{port}/t{uuid.uuid4().hex}"


def create(uri, space="l2", **rows):
    """A collection that embridge did not make."""
    client, name = client_of(uri)
    configuration = {"hnsw": {"space": space}}
    collection = client.create_collection(name, configuration=configuration, metadata={"team": "search"}, embedding_function=None)
    collection.add(**rows)
    return collection


def test_a_foreign_collection_is_read_as_it_stands(uri):
    metadata = [{"n": i, "x": i / 7, "flag": i % 2 == 0} for i in range(600)]
    metadata[5] = {"tags": ["a", "b"], "mixed": 1, "x": 1}
    metadata[6] |= {"mixed": "one"}
    metadata[7] |= {"mixed": True}
    ids = [f"r{i:03}" for i in range(600)]
    create(uri, "ip", ids=ids[::-1], embeddings=ROWS[::-1], metadatas=metadata[::-1], documents=[f"text {i}" for i in ids[::-1]])
    found = eb.open(uri, space="minilm")
    assert found.space == Space("minilm", 4, Metric.DOT)
    np.testing.assert_array_equal(found.read()[1], ROWS)
    assert found.read()[0].tolist() == ids
    kinds = {"document": pa.string(), "flag": pa.bool_(), "mixed": pa.string(), "n": pa.int64(), "tags": pa.list_(pa.string())}
    assert {c.name: c.type for c in found.payload_schema} == kinds | {"x": pa.float64()}
    rows = next(found.batches(20, payload=True)).payload.to_pylist()
    nothing = dict.fromkeys(found.payload_schema.names)
    assert rows[5] == nothing | {"document": "text r005", "tags": ["a", "b"], "mixed": "1", "x": 1.0}
    assert rows[6] == nothing | metadata[6] | {"document": "text r006", "mixed": '"one"'}
    assert rows[7]["mixed"] == "true"
    assert found.search(ROWS[:3], 1).ids.shape == (3, 1)


def test_an_old_collection_whose_metadata_name_the_distance(uri):
    client, name = client_of(uri)
    client.create_collection(name, metadata={"hnsw:space": "cosine"}).add(ids=["a", "b"], embeddings=ROWS[:2])
    assert eb.open(uri, space="a").space.metric == Metric.COSINE


def test_lengths_survive_the_index_and_a_restart(uri):
    rows = np.random.default_rng(0).normal(size=(1600, 4)).astype(np.float32) * 7  # more than one sync of the index
    write(uri, [str(i) for i in range(1600)], rows, Space("a", 4))
    code = f"import embridge as eb; c = eb.open({uri!r}); i, v = c.read(); print(c.fingerprint(), float(abs(v).sum()), len(i))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = eb.open(uri)
    assert done.stdout.split() == [found.fingerprint(), str(float(abs(found.read()[1]).sum())), "1600"]
    order = {i: n for n, i in enumerate(map(str, range(1600)))}
    np.testing.assert_allclose(found.read()[1], rows[[order[i] for i in found.read()[0]]], rtol=1e-5, atol=1e-5)
    assert found.capabilities.keeps_lengths


def test_rows_that_are_deleted_and_inserted_while_reading_are_noticed(uri):
    write(uri, [f"{i:03}" for i in range(600)], ROWS, Space("a", 4))
    found = eb.open(uri)
    content = found.fingerprint()
    batches = found.batches(100)
    next(batches)
    collection = collection_of(uri)
    collection.delete(ids=["005"])
    collection.add(ids=["zzz"], embeddings=ROWS[:1])
    assert [i for b in batches for i in b.ids.to_pylist()] == [f"{i:03}" for i in range(100, 600)]
    with pytest.raises(ChangedSourceError, match="rows were added and removed"):
        found.check_unchanged()
    assert found.fingerprint() != content
    batches = found.batches(100)
    with pytest.raises(ChangedSourceError, match="1 rows were removed, the first '005'"):
        next(batches)
    collection.delete(ids=["006"])
    with pytest.raises(ChangedSourceError, match="had 600 rows, and has 599"):
        found.check_unchanged()


def test_fields_that_other_programs_add_are_not_lost(uri):
    write(uri, ["a", "b"], ROWS[:2], Space("s", 4), {"n": pa.array([1, 2])})
    collection_of(uri).add(ids=["c"], embeddings=ROWS[:1], metadatas=[{"n": 1.5}], documents=["text"])
    with pytest.raises(CollectionError, match=r"field 'document' that was not there.*columns=inferred"):
        list(eb.open(uri).batches(payload=True))
    found = eb.open(uri.replace("#", "?columns=inferred#"))
    rows = [row for b in found.batches(payload=True) for row in b.payload.to_pylist()]
    assert rows == [{"document": None, "n": 1.0}, {"document": None, "n": 2.0}, {"document": "text", "n": 1.5}]


def test_a_document_and_a_field_of_that_name_are_an_error(uri):
    create(uri, ids=["a"], embeddings=ROWS[:1], documents=["text"], metadatas=[{"document": "other"}])
    with pytest.raises(CollectionError, match="field 'document' as well"):
        list(eb.open(uri, space="a").batches(payload=True))


def test_values_that_chroma_has_not_come_back(uri):
    payload = {
        "x": pa.array([float("nan"), float("inf"), -float("inf"), None, 0.1]),
        "y": pa.array([[1.5, float("nan")], [], None, [None], [float("-inf")]]),
        "document": pa.array([1, 2, None, 4, 5]),
        "empty": pa.nulls(5),
    }
    write(uri, list("abcde"), ROWS[:5], Space("s", 4), payload)
    found = next(eb.open(uri).batches(payload=True)).payload.to_pydict()
    assert repr(found) == repr({name: column.to_pylist() for name, column in payload.items()})


def test_ids_of_every_kind_come_back(uri):
    numbers = [-1, -(2**63), 2**63 - 1, 0, 12345]
    write(uri, numbers, ROWS[:5], Space("a", 4))
    found = eb.open(uri)
    assert sorted(found.read()[0].tolist()) == sorted(numbers)
    assert found.search(ROWS[:1], 1).ids.item() == -1
    collection_of(uri).add(ids=["x"], embeddings=ROWS[:1])
    with pytest.raises(BadIdsError, match="not all int64"):
        eb.open(uri).read()
    other = uri.replace("#docs", "#texts")
    texts = ["é" * 300, "a b", "'; drop", "x\0y", " ", "7"]
    write(other, texts, ROWS[:6], Space("a", 4))
    assert eb.open(other).read()[0].tolist() == sorted(texts)


def test_an_empty_id_and_repeated_ids_of_one_batch_are_errors(uri):
    with pytest.raises(OutputError, match="Empty ID"):
        write(uri, [""], ROWS[:1], Space("a", 4))
    with pytest.raises(OutputError, match="duplicates of: x"):
        write(uri.replace("#docs", "#more"), ["x", "x"], ROWS[:2], Space("a", 4))


def test_columns_have_no_other_names(uri):
    write(uri, ["a"], ROWS[:1], Space("a", 4))
    assert len(eb.open(uri, id_column="id", vector_column="vector")) == 1
    with pytest.raises(CollectionError, match="has no column 'doc'"):
        eb.open(uri, id_column="doc")


def test_another_width_is_an_error(uri):
    write(uri, ["a"], ROWS[:1], Space("a", 4))
    with pytest.raises(eb.EmbridgeError, match="dim"):
        eb.open(uri, space=Space("a", 5))
    with pytest.raises(OutputError, match="already exists"):
        write(uri, ["a"], np.ones((1, 5), np.float32), Space("a", 5))


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("chroma://127.0.0.1:1/docs", UnreadableFileError, "running at 127.0.0.1:1"),
        ("chroma://localhost", ParameterError, "does not name a collection"),
        ("chroma://localhost/a/b", ParameterError, "does not name a collection"),
        ("chroma:///nowhere", ParameterError, "does not name a collection"),
        ("chroma:///nowhere#docs", MissingFileError, "nowhere"),
        ("chroma://localhost/a?https=maybe", ParameterError, "https must be true or false"),
    ],
)
def test_wrong_addresses_are_errors(text, error, reason):
    with pytest.raises(error, match=reason):
        eb.open(text, space="a")


def test_a_missing_or_empty_collection_is_an_error(uri):
    client, _ = client_of(uri)
    client.create_collection("docs", embedding_function=None)
    with pytest.raises(CollectionError, match="holds no rows"):
        eb.open(uri, space="a")
    with pytest.raises(MissingFileError, match="There is no collection 'other'"):
        eb.open(uri.replace("#docs", "#other"), space="a")
    with pytest.raises(OutputError, match="Expected a name"):
        write(uri.replace("#docs", "#x"), ["a"], ROWS[:1], Space("a", 4))


def test_a_server_that_dies_is_an_error(port):
    with running_server() as (process, other):
        uri = f"chroma://127.0.0.1:{other}/docs"
        write(uri, [f"{i:03}" for i in range(600)], ROWS, Space("a", 4))
        found = eb.open(uri)
        batches = found.batches(100)
        next(batches)
        process.kill()
        process.wait()
        with pytest.raises(UnreadableFileError, match=f"Hint: is a Chroma server running at 127.0.0.1:{other}"):
            list(batches)
        with pytest.raises(OutputError):
            write(f"{uri}2", ["a"], ROWS[:1], Space("a", 4))


def test_the_token_is_sent_and_not_shown(monkeypatch, caplog):
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("x-chroma-token"))
            body = b'{"error": "AuthError", "message": "no"}'
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            address = f"chroma://127.0.0.1:{server.server_address[1]}/docs"
            for text, key in ((address, "fromenv"), (f"{address}?api_key=hunter2", "hunter2")):
                monkeypatch.setenv("CHROMA_API_KEY", "fromenv")
                with pytest.raises(UnreadableFileError, match="refuses access") as e:
                    eb.open(text)
                assert seen[-1] == key
                assert key not in f"{e.value} {caplog.text}"
        finally:
            server.shutdown()
            thread.join()


def test_a_damaged_note_is_an_error(uri):
    write(uri, ["a", "b"], ROWS[:2], Space("s", 4))
    collection = collection_of(uri)
    for change in ({"embridge_schema": "???"}, {"embridge": '{"embridge": 1}'}):
        collection.modify(metadata=collection.metadata | change)
        with pytest.raises(CollectionError, match="damaged"):
            eb.open(uri)


def test_without_the_package_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['chromadb'] = None\n"
        "import embridge as eb\n"
        "try: eb.open('chroma:///nowhere#t')\n"
        "except eb.EmbridgeError as e: print(type(e).__name__, e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "MissingDependencyError chroma:// needs chromadb, which is not installed. Hint: pip install 'embridge[chroma]'."
    )


def test_metadata_named_as_the_id_or_the_vector_is_payload_of_another_name(uri, tmp_path):
    client, name = client_of(uri)
    client.create_collection(name, embedding_function=None).add(
        ids=["a", "b"], embeddings=ROWS[:2], metadatas=[{"id": 7, "vector": "x", "n": 1}, {"id": 8, "n": 2}]
    )
    found = eb.open(uri, space="a")
    eb.copy(found, tmp_path / "out.parquet")
    rows = next(eb.open(tmp_path / "out.parquet").batches(payload=True))
    assert rows.ids.to_pylist() == ["a", "b"]
    assert rows.payload.to_pylist() == [
        {"n": 1, "payload_id": 7, "payload_vector": "x"},
        {"n": 2, "payload_id": 8, "payload_vector": None},
    ]
    collection_of(uri).update(ids=["b"], metadatas=[{"payload_id": 1}])
    with pytest.raises(CollectionError, match="two would get the same name"):
        eb.copy(eb.open(uri, space="a"), tmp_path / "other.parquet")
