"""Migrations in place in Qdrant: what is particular to named vectors, shadows and aliases; interrupted and killed anywhere."""

import random
import re
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import embridge as eb
from embridge.errors import CollectionError, InterruptedOutputError, OutputExistsError, ParameterError
from tests.stores.in_place import (
    IDS,
    LIFE,
    MAP,
    NEW_ROWS,
    OLD,
    ROWS,
    check,
    is_killed,
    many_writes,
    migrate,
    note_of,
    plant,
    survives_interrupts,
)

qdrant_client = pytest.importorskip("qdrant_client")
pytest.importorskip("qdrant_edge")
from qdrant_client import QdrantClient, models  # noqa: E402

from embridge.stores.qdrant.client import connect, point_of  # noqa: E402
from embridge.stores.uri import Location  # noqa: E402
from tests.stores.qdrant_server import QdrantServer  # noqa: E402
from tests.stores.support import memory_folder  # noqa: E402

pytestmark = pytest.mark.qdrant
WRITES = ("upsert", "update_vectors", "update_collection", "update_collection_aliases", "create_collection", "delete_collection")
REQUESTS = [(QdrantClient, name) for name in (*WRITES, "create_vector_name", "delete_vector_name", "delete")]


@pytest.fixture(scope="module")
def server():
    with memory_folder() as folder, QdrantServer(Path(folder)) as server:
        yield server


@pytest.fixture
def folder():
    with memory_folder() as folder:
        yield folder


@pytest.fixture(params=["local mode", "engine"])
def new_uri(request, server, folder):
    """``new_uri()`` of a collection that does not exist, in local mode and on the engine."""
    server.before, server.version, server.updates = None, "1.18.0", []
    start = f"qdrant://127.0.0.1:{server.port}/" if request.param == "engine" else f"qdrant://{folder}/db#"
    return lambda: f"{start}t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def engine_uri(server):
    server.before, server.version, server.updates = None, "1.18.0", []
    return f"qdrant://127.0.0.1:{server.port}/t{uuid.uuid4().hex[:12]}"


def client_of(uri):
    location = Location.parse(uri)
    return connect(location, may_create=True), (location.path.strip("/") if location.host else location.part)


def alias_of(uri):
    """The URI of a new alias of a collection."""
    client, name = client_of(uri)
    made = models.CreateAlias(collection_name=name, alias_name=f"{name}_live")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=made)])
    return uri.replace(name, f"{name}_live")


def shadowed(uri):
    """The URI of an alias of a collection with the planted rows."""
    plant(uri, payload={"text": pa.array([f"t{i}" for i in range(len(IDS))])})
    return alias_of(uri)


def planted(uri):
    plant(uri)
    return uri


def test_a_second_vector_whatever_request_was_the_last(folder):
    uris = iter(f"qdrant://{folder}/db#t{number}" for number in range(100))

    def check_interrupted(uri, step):
        if step < 2:
            assert eb.open(uri, vector_column="vector").space == OLD

    assert survives_interrupts(lambda: planted(next(uris)), REQUESTS, check_interrupted) >= 14


def test_a_shadow_whatever_request_was_the_last(engine_uri):
    uris = iter(f"{engine_uri}{number:03}" for number in range(100))

    def check_interrupted(uri, step):
        assert eb.open(uri).space.name in {0: ["old"], 4: ["new"]}.get(step, ["old", "new"])

    assert survives_interrupts(lambda: shadowed(next(uris)), REQUESTS, check_interrupted, mode="shadow") >= 15


@pytest.mark.parametrize(("mode", "kills"), [("column", {"migrate": 8}), ("shadow", {"migrate": 7, "cutover": 3})])
def test_processes_that_are_killed(commands, engine_uri, tmp_path, mode, kills):
    MAP.save(tmp_path / "map.safetensors")
    uri = shadowed(engine_uri) if mode == "shadow" else planted(engine_uri)
    chance = random.Random(mode)
    assert is_killed(commands, "migrate", uri, tmp_path / "map.safetensors", mode, REQUESTS, 1 + chance.randrange(kills["migrate"]))
    check(uri, "old")
    migrate(uri, mode=mode)
    if "cutover" in kills:
        assert is_killed(commands, "cutover", uri, tmp_path / "map.safetensors", mode, REQUESTS, kills["cutover"])
    assert eb.verify(uri, translation=MAP).compared == len(IDS)
    for step, name in LIFE[1:]:
        step(uri)
        check(uri, name)


def _interrupt(*_):
    raise KeyboardInterrupt


def test_points_that_change_during_the_run(new_uri):
    uri = planted(new_uri())
    _, name = client_of(uri)
    first = sorted(IDS, key=point_of)  # in the order in which they are read
    gone, again, changed = (point_of(i) for i in first[:3])
    done = []

    def change(*_):
        if not done:
            done.append(True)
            client, _ = client_of(uri)
            client.delete(name, [gone, point_of(first[-1])])
            client.upsert(name, [models.PointStruct(id=again, vector={"vector": ROWS[5].tolist()}, payload={"id": first[1]})])
            client.update_vectors(name, [models.PointVectors(id=changed, vector={"vector": ROWS[6].tolist()})])

    with many_writes():
        rows = migrate(uri, progress=change).rows
    assert rows == len(IDS) - 2
    eb.cutover(uri)
    ids, vectors = eb.open(uri).read()
    found = dict(zip(ids.tolist(), vectors, strict=True))
    assert set(found) == set(first[1:-1])
    np.testing.assert_allclose(found[first[1]], NEW_ROWS[5], atol=1e-5)  # upserted as a whole: it lost its new vector
    np.testing.assert_allclose(found[first[2]], NEW_ROWS[IDS.index(first[2])], atol=1e-5)  # not noticed, as the remarks say
    np.testing.assert_allclose(found[first[3]], NEW_ROWS[IDS.index(first[3])], atol=1e-5)


def test_a_point_that_is_deleted_within_a_batch_does_not_stop_it(new_uri):
    uri = planted(new_uri())
    plain, done = QdrantClient.update_vectors, []

    def update(client, name, points, **options):
        if not done:
            done.append(True)
            client.delete(name, [points[3].id, points[70].id])
        return plain(client, name, points, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QdrantClient, "update_vectors", update)
        assert migrate(uri).rows == len(IDS) - 2
    eb.cutover(uri)
    assert len(eb.open(uri)) == len(IDS) - 2


def test_the_index_is_built_at_the_end_with_the_settings_of_the_old_one(engine_uri, server):
    client, name = client_of(engine_uri)
    scalar = models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8))
    index = models.HnswConfigDiff(m=24, ef_construct=77)
    params = models.VectorParams(size=6, distance="Cosine", hnsw_config=index, quantization_config=scalar, on_disk=True)
    client.create_collection(name, vectors_config={"a": params, "b": models.VectorParams(size=2, distance="Dot")})
    client.upsert(name, [models.PointStruct(id=1, vector={"a": ROWS[0].tolist(), "b": [1.0, 2.0]})])
    uri = f"{engine_uri}?vector=a"
    done = eb.migrate_in_place(uri, MAP, space="old", into="c")
    first, last = (change["vectors"]["c"] for change in server.updates)
    assert first == {"hnsw_config": {"m": 0}}
    assert last == {
        "hnsw_config": {"m": 24, "ef_construct": 77},
        "quantization_config": {"scalar": {"type": "int8"}},
        "on_disk": True,
    }
    assert "m=24" in " ".join(done.remarks)
    assert eb.open(uri).space.name == "old"
    [remark] = eb.cutover(uri).remarks
    assert "using='c' in place of 'a'" in remark
    assert eb.open(engine_uri, vector_column="c").space.name == "new"
    assert eb.open(engine_uri, vector_column="b", space="other").space.dim == 2


def test_two_migrations_of_two_vectors(engine_uri):
    client, name = client_of(engine_uri)
    params = models.VectorParams(size=6, distance="Cosine")
    client.create_collection(name, vectors_config={"a": params, "b": params})
    points = [models.PointStruct(id=i, vector={"a": v.tolist(), "b": v[::-1].tolist()}) for i, v in enumerate(ROWS)]
    client.upsert(name, [*points, models.PointStruct(id=1000, vector={"b": ROWS[0].tolist()})])
    for vector in "ab":
        done = eb.migrate_in_place(f"{engine_uri}?vector={vector}", MAP, space="old")
        assert (done.into, done.rows, done.without_vector) == (f"{vector}_new", *((150, 1) if vector == "a" else (151, 0)))
    with pytest.raises(CollectionError, match=r"migrations of 'a', 'b'. Hint: write \?vector=NAME"):
        eb.cutover(engine_uri)
    eb.cutover(f"{engine_uri}?vector=b")
    eb.drop_vector(f"{engine_uri}?vector=b", "old")
    assert eb.drop_vector(f"{engine_uri}?vector=a", "new").stage == "none"
    assert set(client.get_collection(name).config.params.vectors) == {"a", "b_new"}
    assert eb.open(engine_uri, vector_column="b_new").space.name == "new"


def test_what_a_second_vector_is_refused_for(engine_uri, server):
    client, name = client_of(engine_uri)
    client.create_collection(name, vectors_config=models.VectorParams(size=6, distance="Cosine"))
    client.upsert(name, [models.PointStruct(id=1, vector=ROWS[0].tolist(), payload={"n": 5})])
    with pytest.raises(CollectionError, match=r"a vector without a name.* Hint: --mode shadow"):
        eb.migrate_in_place(engine_uri, MAP, space="old")
    named = planted(f"{engine_uri}b")
    with pytest.raises(ParameterError, match="a name of up to 200 bytes"):
        eb.migrate_in_place(named, MAP, into="a/b")
    client.create_collection(f"{name}e", vectors_config={v: models.VectorParams(size=6, distance="Cosine") for v in "ab"})
    client.upsert(f"{name}e", [models.PointStruct(id=1, vector={"a": ROWS[0].tolist()})])
    with pytest.raises(OutputExistsError, match="has a vector 'b' already"):
        eb.migrate_in_place(f"{engine_uri}e?vector=a", MAP, space="old", into="b")
    with pytest.raises(ParameterError, match="by their own ids"):
        eb.migrate_in_place(f"{named}?id=id", MAP)
    server.version = "1.17.3"
    with pytest.raises(CollectionError, match=r"is on Qdrant 1.17.3; --mode column needs 1.18 or newer"):
        eb.migrate_in_place(named, MAP)
    assert note_of(named) is None
    assert migrate(alias_of(named), mode="shadow").rows == len(IDS)


def test_a_shadow_is_whole(folder):
    uri = f"qdrant://{folder}/db#docs_v1"
    client, name = client_of(uri)
    vector, sparse = models.VectorParams(size=6, distance="Cosine"), {"words": models.SparseVectorParams()}
    client.create_collection(name, vectors_config=vector, sparse_vectors_config=sparse, metadata={"team": "x"})
    words = models.SparseVector(indices=[3, 9], values=[0.5, 0.25])
    deep = {"a": [1, {"b": None}], "text": "ä", "n": 2**53 + 1, "f": 0.1}
    points = [
        models.PointStruct(id=i, vector={"": v.tolist(), "words": words}, payload=deep | {"i": i}) for i, v in enumerate(ROWS)
    ]
    points += [
        models.PointStruct(id=str(uuid.UUID(int=1)), vector={"words": words}, payload={"only": "words"}),
        models.PointStruct(id=2000, vector=ROWS[0].tolist()),
    ]
    client.upsert(name, points)
    alias = alias_of(uri)
    done = eb.migrate_in_place(alias, MAP, space="old", mode="shadow", into="docs_v2")
    assert (done.rows, done.without_vector) == (151, 1)
    client, _ = client_of(uri)
    before, after = (client.scroll(n, limit=500, with_vectors=True)[0] for n in (name, "docs_v2"))
    assert [(p.id, p.payload) for p in before] == [(p.id, p.payload) for p in after]
    for old, new in zip(before, after, strict=True):
        kept = [p.vector.get("words") if isinstance(p.vector, dict) else None for p in (old, new)]
        assert kept[0] == kept[1]
    assert client.get_collection("docs_v2").config.metadata["team"] == "x"
    other = models.CreateAlias(collection_name=name, alias_name="other")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=other)])
    assert "These aliases still lead to the other: 'other'." in eb.cutover(alias).remarks
    with pytest.raises(CollectionError, match="aliases 'other' lead to 'docs_v1'"):
        eb.drop_vector(alias, "old")


def test_points_of_a_shadow_that_have_no_original(new_uri):
    uri = new_uri()
    alias = shadowed(uri)
    client, name = client_of(uri)
    migrate(alias, mode="shadow")
    client, _ = client_of(uri)
    client.delete(name, [point_of(IDS[0])])  # between the migration and the cutover
    eb.cutover(alias)
    check(alias, "new", IDS[1:])
    client, _ = client_of(uri)
    client.upsert(f"{name}_live", [models.PointStruct(id=7, vector={"vector": NEW_ROWS[0].tolist()}, payload={"id": "added"})])
    eb.rollback(alias)
    check(alias, "old", IDS[1:])
    assert "1 row of" in eb.cutover(alias).remarks[0]
    assert len(eb.open(alias)) == len(IDS)


def test_what_a_shadow_is_refused_for(engine_uri, server):
    planted(engine_uri)
    _, name = client_of(engine_uri)
    with pytest.raises(ParameterError, match=re.escape(f"Hint: create an alias of {name!r}")):
        eb.migrate_in_place(engine_uri, MAP, mode="shadow")
    alias = alias_of(engine_uri)
    with pytest.raises(OutputExistsError, match="There is a collection or an alias"):
        eb.migrate_in_place(alias, MAP, mode="shadow", into=client_of(planted(f"{engine_uri}c"))[1])
    server.version = "1.15.0"
    with pytest.raises(CollectionError, match=r"needs 1\.16"):
        eb.migrate_in_place(alias, MAP, mode="shadow")
    server.version = "1.16.0"
    with many_writes(), pytest.raises(KeyboardInterrupt):
        eb.migrate_in_place(alias, MAP, mode="shadow", progress=_interrupt)
    with pytest.raises(InterruptedOutputError, match="the unfinished shadow of"):
        eb.open(f"{engine_uri}_live_new")
    client, _ = client_of(engine_uri)
    params = models.VectorParams(size=6, distance="Cosine")
    client.create_collection(f"{name}d", vectors_config={"vector": params, "other": params})
    client.upsert(f"{name}d", [models.PointStruct(id=1, vector={"vector": ROWS[0].tolist()})])
    with pytest.raises(CollectionError, match=r"several dense vectors \('vector', 'other'\)"):
        eb.migrate_in_place(f"{alias_of(f'{engine_uri}d')}?vector=vector", MAP, space="old", mode="shadow")


def test_float16_and_another_metric(engine_uri):
    planted(engine_uri)
    eb.migrate_in_place(engine_uri, MAP, dtype="float16", metric="dot")
    eb.cutover(engine_uri)
    found = eb.open(engine_uri)
    assert found.space.metric == "dot"
    order = {i: n for n, i in enumerate(IDS)}
    ids, vectors = found.read()
    np.testing.assert_allclose(vectors, MAP.apply(ROWS)[[order[i] for i in ids]], atol=2e-3)
    client, name = client_of(engine_uri)
    assert client.get_collection(name).config.params.vectors["vector_new"].datatype == "float16"


def test_an_index_that_is_not_built(engine_uri, monkeypatch):
    planted(engine_uri)
    plain = QdrantClient.get_collection
    status = [models.CollectionStatus.YELLOW]

    def get_collection(client, name):
        found = plain(client, name)
        found.status = status[0]
        return found

    monkeypatch.setattr(QdrantClient, "get_collection", get_collection)
    monkeypatch.setattr("embridge.stores.qdrant.in_place._PAUSE", 0)
    assert "still builds the index" in " ".join(migrate(engine_uri).remarks)
    status[0] = models.CollectionStatus.RED
    with pytest.raises(eb.EmbridgeError, match="cannot optimize"):
        migrate(engine_uri)
