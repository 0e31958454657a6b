"""Migrations in place in Chroma: what is particular to a shadow that changes names; interrupted and killed anywhere."""

import random

import numpy as np
import pytest

import embridge as eb
from embridge.errors import CollectionError, InterruptedOutputError, MissingFileError, OutputExistsError, ParameterError
from tests.stores.in_place import (
    IDS,
    LIFE,
    MAP,
    NEW_ROWS,
    ROWS,
    check,
    is_killed,
    many_writes,
    migrate,
    note_of,
    plant,
    survives_interrupts,
)

chromadb = pytest.importorskip("chromadb")
from chromadb.api.client import Client  # noqa: E402
from chromadb.api.models.Collection import Collection  # noqa: E402

from tests.stores.support import memory_folder  # noqa: E402
from tests.stores.test_chroma import client_of, collection_of, port  # noqa: E402, F401

pytestmark = pytest.mark.chroma
REQUESTS = [(Collection, name) for name in ("upsert", "modify", "delete")]
REQUESTS += [(Client, name) for name in ("create_collection", "delete_collection")]


@pytest.fixture
def folder():
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def uri(folder):
    """Of a collection with the planted rows."""
    plant(made := f"chroma://{folder}#docs")
    return made


def test_a_shadow_whatever_request_was_the_last(folder):
    names = iter(f"t{number:03}" for number in range(100))

    def make():
        plant(made := f"chroma://{folder}#{next(names)}")
        return made

    def check_interrupted(uri, step):
        client, name = client_of(uri)
        if name in {held.name for held in client.list_collections()}:
            assert eb.open(uri).space.name in {0: ["old"], 4: ["new"]}.get(step, ["old", "new"])
        else:
            assert step in (1, 2, 3)
            with pytest.raises(MissingFileError, match=r"Hint: complete its swap: embridge cutover, or embridge rollback\."):
                eb.open(uri)

    assert survives_interrupts(make, REQUESTS, check_interrupted) >= 18


@pytest.mark.parametrize("place", ["folder", "server"])
def test_processes_that_are_killed(commands, folder, place, tmp_path, request):
    uri = f"chroma://{folder}#docs" if place == "folder" else f"chroma://127.0.0.1:{request.getfixturevalue('port')}/killed"
    plant(uri)
    MAP.save(tmp_path / "map.safetensors")
    chance = random.Random(place)
    verbs = {"folder": [("migrate", 8), ("migrate", 4)], "server": [("migrate", 8)]}[place]
    for verb, requests in verbs:
        assert is_killed(commands, verb, uri, tmp_path / "map.safetensors", "shadow", REQUESTS, 1 + chance.randrange(requests))
        check(uri, "old")
    migrate(uri)
    assert is_killed(commands, "cutover", uri, tmp_path / "map.safetensors", "shadow", REQUESTS, 3)  # between the renames
    eb.cutover(uri)
    assert eb.verify(uri, translation=MAP).compared == len(IDS)
    check(uri, "new")
    for step, name in LIFE[2:]:
        step(uri)
        check(uri, name)


@pytest.mark.parametrize("verb", ["cutover", "rollback", "drop"])
def test_a_swap_that_was_interrupted_between_the_renames(uri, verb):
    client, _ = client_of(uri)
    migrate(uri)
    client.get_collection("docs", embedding_function=None).modify(name="docs_old")
    with pytest.raises(MissingFileError, match="Hint: complete its swap"):
        eb.open(uri)
    with pytest.raises(CollectionError, match="Hint: embridge rollback first"):
        eb.drop_vector(uri, "new")
    if verb == "drop":
        eb.drop_vector(uri, "old")
    else:
        getattr(eb, verb)(uri)
    check(uri, "old" if verb == "rollback" else "new")
    assert note_of(uri).stage == {"cutover": "live", "rollback": "ready", "drop": "finished"}[verb]


def test_another_program_takes_the_name_between_the_renames(uri):
    client, _ = client_of(uri)
    migrate(uri)
    client.get_collection("docs", embedding_function=None).modify(name="docs_old")
    client.create_collection("docs", embedding_function=None)
    with pytest.raises(CollectionError, match=r"another program has made a collection 'docs' \(0 rows\)"):
        eb.cutover(uri)
    client.delete_collection("docs")
    eb.cutover(uri)
    check(uri, "new")


def test_rows_are_whole_and_settings_are_kept(folder):
    uri = f"chroma://{folder}#docs"
    client, name = client_of(uri)
    settings = {"hnsw:space": "cosine", "hnsw:construction_ef": 77, "hnsw:M": 9, "team": "x"}
    made = client.create_collection(name, metadata=settings, embedding_function=None)
    fields = [{"n": i, "f": i + 0.5, "b": i % 2 == 0, "s": f"ä{i}"} if i % 3 else None for i in range(len(IDS))]
    documents = [f"text {i}" if i % 2 else None for i in range(len(IDS))]
    uris = [None if i % 5 else f"file://{i}" for i in range(len(IDS))]
    made.add(ids=IDS, embeddings=ROWS, metadatas=fields, documents=documents, uris=uris)
    include = ["metadatas", "documents", "uris"]
    before = made.get(ids=IDS, include=include)
    migrate(uri, space="old")
    eb.cutover(uri)
    after = collection_of(uri).get(ids=IDS, include=include)
    rows = [dict(zip(found["ids"], zip(*(found[kind] for kind in include), strict=True), strict=True)) for found in (before, after)]
    assert rows[0] == rows[1]
    found = collection_of(uri)
    index = found.configuration_json["hnsw"]
    assert (index["space"], index["ef_construction"], index["max_neighbors"]) == ("cosine", 77, 9)
    assert found.metadata["team"] == "x"
    assert client.get_collection("docs_old", embedding_function=None).metadata == settings
    assert eb.open(uri).space.name == "new"
    check(uri, "new")


def test_rows_that_are_added_and_deleted(uri):
    client, name = client_of(uri)
    done = []

    def change(*_):
        if not done:
            done.append(True)
            collection = client.get_collection(name, embedding_function=None)
            collection.delete(ids=[IDS[0], IDS[-1]])
            collection.add(ids=["a first one", "zzz"], embeddings=ROWS[:2])

    with many_writes():
        assert migrate(uri, progress=change).rows == len(IDS)
    collection_of(uri).delete(ids=[IDS[1]])  # between the migration and the cutover
    eb.cutover(uri)
    ids, vectors = eb.open(uri).read()
    found = dict(zip(ids.tolist(), vectors, strict=True))
    assert set(found) == {"a first one", "zzz", *IDS[2:-1]}
    np.testing.assert_allclose([found["a first one"], found["zzz"], found[IDS[2]]], NEW_ROWS[:3], atol=1e-5)
    collection_of(uri).add(ids=["written after the cutover"], embeddings=NEW_ROWS[:1])
    eb.rollback(uri)
    assert len(eb.open(uri)) == len(IDS) - 1
    assert "1 row of" in eb.cutover(uri).remarks[0]
    assert len(eb.open(uri)) == len(IDS)


def test_what_is_refused(uri):
    client, _ = client_of(uri)
    with pytest.raises(ParameterError, match="a name of 3 to 512 letters"):
        migrate(uri, into="a b")
    for name in ("docs_old", "docs_new"):
        client.create_collection(name, embedding_function=None)
        with pytest.raises(OutputExistsError, match=f"a collection {name!r} already"):
            migrate(uri)
        client.delete_collection(name)
    assert note_of(uri) is None
    with many_writes(), pytest.raises(KeyboardInterrupt):
        migrate(uri, progress=_interrupt)
    with pytest.raises(InterruptedOutputError, match="the unfinished shadow of 'docs'"):
        eb.open(uri.replace("#docs", "#docs_new"))


def _interrupt(*_):
    raise KeyboardInterrupt
