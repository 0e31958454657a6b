"""Rows by their ids: what leaves a store is what is wanted, and equals what reading all rows gives."""

import contextlib
import uuid

import numpy as np
import pytest

import embridge as eb
from embridge.errors import ChangedSourceError
from embridge.stores.fetching import vectors_by_id
from embridge.types import Space
from tests.stores.support import memory_folder

N = 400
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, 6)).astype(np.float32)
X /= np.linalg.norm(X, axis=1, keepdims=True)
SPACE = Space("old", 6)
TEXTS = [f'it\'s; "{i}"' for i in RNG.permutation(N)]
PLACES = {
    "postgresql": None,
    "lancedb": "lancedb://{}#a",
    "qdrant": "qdrant://{}#a",
    "chroma": "chroma://{}#rows",
    "npy": "npy://{}/a.npy",
}


@pytest.fixture(params=PLACES)
def new_uri(request):
    if request.param == "postgresql":
        pytest.importorskip("psycopg")
        yield request.getfixturevalue("new_table")
        return
    for package in {"lancedb": ["lancedb"], "qdrant": ["qdrant_client"], "chroma": ["chromadb"]}.get(request.param, []):
        pytest.importorskip(package)
    with memory_folder() as folder:
        yield lambda: PLACES[request.param].format(folder)


@pytest.mark.parametrize("ids", [TEXTS, list(range(-50, N - 50))], ids=["text", "int"])
def test_looked_up_rows_are_those_of_a_scan(new_uri, ids):
    uri = new_uri()
    eb.copy(eb.MemoryCollection(ids, X, SPACE), uri)
    found = eb.open(uri)
    assert found.fetches == (found.kind != "npy")
    names, vectors = found.read()
    rows = np.sort(RNG.choice(N, 60, replace=False))
    np.testing.assert_array_equal(found.take(rows), vectors[rows])
    np.testing.assert_array_equal(found.take(np.arange(N)), vectors)
    keys, got = vectors_by_id(found, names[rows[::-1]].tolist())
    place = {name: n for n, name in enumerate(names.tolist())}
    np.testing.assert_array_equal(got, vectors[[place[key] for key in keys.to_pylist()]])
    assert sorted(keys.to_pylist()) == sorted(names[rows].tolist())
    with pytest.raises(eb.EmbridgeError, match="rows must be sorted positions"):
        found.take(np.array([N]))


@pytest.mark.pgvector
def test_only_the_anchors_vectors_leave_postgresql(new_table, monkeypatch):
    psycopg = pytest.importorskip("psycopg")
    sizes, copy = {}, psycopg.Cursor.copy

    @contextlib.contextmanager
    def counted(cursor, query):
        with copy(cursor, query) as found:
            yield found
        sizes.setdefault("vector" in query.as_string(), []).append(cursor.rowcount)

    many = 3000
    x = RNG.normal(size=(many, 6)).astype(np.float32)
    ids = [f"d{i}" for i in range(many)]
    eb.copy(eb.MemoryCollection(ids, x, Space("old", 6, normalized=False)), uri := new_table())
    some = RNG.choice(many, 100, replace=False)
    new = eb.MemoryCollection([ids[i] for i in some], x[some][:, :4], Space("new", 4))
    source = eb.open(uri)
    monkeypatch.setattr(psycopg.Cursor, "copy", counted)
    anchors = eb.match(source, new)
    assert sizes[True] == [100]
    assert all(rows == many for rows in sizes[False])  # ids alone
    np.testing.assert_array_equal(anchors.x, x[[ids.index(i) for i in anchors.ids]])
    np.testing.assert_array_equal(anchors.y, anchors.x[:, :4])


@pytest.mark.pgvector
@pytest.mark.parametrize("kind", ["uuid", "smallint", "varchar", "citext", "char(40)"])
def test_ids_of_other_types_are_looked_up(postgres, kind):
    psycopg = pytest.importorskip("psycopg")
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres) as server:
        server.execute("CREATE EXTENSION IF NOT EXISTS vector; CREATE EXTENSION IF NOT EXISTS citext")
        server.execute(f"CREATE TABLE {name} (id {kind} PRIMARY KEY, vector vector(6))")
        for i in range(N):
            key = i if kind == "smallint" else str(uuid.UUID(int=i * 7919 + 1))
            server.execute(f"INSERT INTO {name} VALUES (%s, %s)", [key, str(X[i].tolist())])
    found = eb.open(f"{postgres}&table={name}", space="old")
    rows = np.arange(0, N, 7)
    np.testing.assert_array_equal(found.take(rows), found.read()[1][rows])


@pytest.mark.pgvector
def test_where_ids_are_repeated_rows_are_read_instead(postgres):
    psycopg = pytest.importorskip("psycopg")
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres) as server:
        server.execute("CREATE EXTENSION IF NOT EXISTS vector")
        server.execute(f"CREATE TABLE {name} (id text, vector vector(6))")
        for i in range(N):
            server.execute(f"INSERT INTO {name} VALUES (%s, %s)", [None if i == 9 else f"{i // 2:03}", str(X[i].tolist())])
    found = eb.open(f"{postgres}&table={name}", space="old")
    vectors = np.concatenate([batch.vectors for batch in found.batches(validate=False)])
    for rows in (np.array([3, 50]), np.array([3, 4, 50]), np.array([N - 1])):  # the null comes last
        np.testing.assert_array_equal(found.take(rows), vectors[rows])


@pytest.mark.chroma
def test_a_row_that_was_removed_is_an_error(tmp_path):
    chromadb = pytest.importorskip("chromadb")
    eb.copy(eb.MemoryCollection(TEXTS, X, SPACE), uri := f"chroma://{tmp_path}#rows")
    found = eb.open(uri)
    first = found.read()[0][0]
    chromadb.PersistentClient(str(tmp_path)).get_collection("rows").delete(ids=[first])
    with pytest.raises(ChangedSourceError, match="1 rows were removed"):
        found.take(np.array([0, 5]))
