"""Migrations in place of tables of PostgreSQL that embridge did not make."""

import uuid

import numpy as np
import pytest

import embridge as eb
from embridge.errors import (
    ChangedSourceError,
    CollectionError,
    EmbridgeError,
    InterruptedOutputError,
    OutputExistsError,
    VerificationError,
)
from embridge.stores.uri import Location
from embridge.testing.in_place import interrupted_after, migration_note

psycopg = pytest.importorskip("psycopg")
from embridge.stores.pgvector.indexes import indexes_of  # noqa: E402
from tests.stores.foreign_table import IDS, MAP, ROWS, N, P  # noqa: E402

pytestmark = pytest.mark.pgvector


def test_a_foreign_table_is_migrated_as_it_stands(foreign):
    foreign.index()
    others = foreign.sql("SELECT doc, meta FROM TABLE_ ORDER BY doc").fetchall()
    held = eb.open(foreign.uri, space="minilm")
    before = _rows(held)
    done = eb.migrate_in_place(foreign.uri, MAP, space="minilm")
    assert (done.rows, done.skipped, done.without_vector, done.into) == (N - 1, 0, 1, "embedding_new")
    assert done.space == eb.Space("renewed", 5, "dot")
    foreign.check("embedding_new")
    foreign.check("embedding", translated=False)
    assert eb.open(foreign.uri).space.name == "minilm"
    assert eb.open(f"{foreign.uri}&vector=embedding_new").space == done.space
    assert _rows(held) == before

    swapped = eb.cutover(foreign.uri)
    assert "takes vectors of 'renewed'" in swapped.remarks[0]
    foreign.check("embedding")
    foreign.check("embedding_old", translated=False)
    assert foreign.sql("SELECT doc, meta FROM TABLE_ ORDER BY doc").fetchall() == others
    with pytest.raises(ChangedSourceError, match="renamed"):
        held.read()
    found = eb.open(foreign.uri)
    assert (found.space.name, found.lineage) == ("renewed", {"map": MAP.fingerprint})
    hits = found.search(MAP.apply(ROWS[:3]), 1)
    exact = eb.top_k(MAP.apply(ROWS[:3]), MAP.apply(ROWS[: N - 1]), 1, "dot")
    assert hits.ids[:, 0].tolist() == [IDS[i] for i in exact.ids[:, 0]]
    assert eb.open(f"{foreign.uri}&vector=embedding_old").space.name == "minilm"

    eb.rollback(foreign.uri)
    foreign.check("embedding", translated=False)
    foreign.check("embedding_new")
    eb.cutover(foreign.uri)
    eb.drop_vector(foreign.uri, "old")
    assert list(foreign.columns()) == ["doc", "meta", "embedding"]
    foreign.check("embedding")
    with pytest.raises(OutputExistsError, match="was not written by embridge"):
        eb.copy(eb.MemoryCollection([1], [[1.0]], eb.Space("a", 1)), foreign.uri, overwrite=True)


def _rows(collection):
    return {i: str(v) for b in collection.batches(validate=False) for i, v in zip(b.ids.to_pylist(), b.vectors, strict=True)}


@pytest.mark.parametrize(
    "what",
    [
        "hnsw (embedding vector_ip_ops) WITH (m = 8, ef_construction = 40)",
        "hnsw (embedding vector_cosine_ops)",
        "ivfflat (embedding vector_l2_ops) WITH (lists = 7)",
        "hnsw (embedding vector_l1_ops) WITH (ef_construction = 70) WHERE meta IS NOT NULL",
    ],
)
def test_the_new_index_has_the_settings_of_the_old_one(foreign, what):
    location = Location.parse(foreign.index(what).uri)
    done = eb.migrate_in_place(foreign.uri, MAP, space="minilm:dot")
    [old], [new] = (indexes_of(foreign.server, location, column) for column in ("embedding", "embedding_new"))
    assert new.settings == old.settings
    assert new.is_valid
    assert done.remarks[0].startswith(f"Built {new} over 'embedding_new'")
    eb.migrate_in_place(foreign.uri, MAP, space="minilm:dot", resume=True)
    assert len(indexes_of(foreign.server, location, "embedding_new")) == 1
    eb.cutover(foreign.uri)
    [now] = indexes_of(foreign.server, location, "embedding")
    assert now.settings == old.settings


def test_indexes_that_cannot_be_built_again_are_named(foreign):
    foreign.index("hnsw ((embedding::halfvec(4)) halfvec_cosine_ops)")
    done = eb.migrate_in_place(foreign.uri, MAP, space="minilm")
    assert "is not over the column alone: CREATE INDEX" in done.remarks[0]
    eb.drop_vector(foreign.uri, "new")
    rng = np.random.default_rng(0)
    wide = eb.LinearMap(rng.normal(size=(2_001, P)), np.zeros(2_001), eb.Space("minilm", P), eb.Space("wide", 2_001))
    foreign.index("hnsw (embedding vector_cosine_ops)")
    steps = eb.preview_in_place(foreign.uri, wide, space="minilm").steps
    assert any("hnsw takes vector of up to 2,000 dimensions" in step and "--dtype float16" in step for step in steps)
    done = eb.migrate_in_place(foreign.uri, wide, space="minilm", dtype="float16")
    assert any("halfvec_cosine_ops" in remark for remark in done.remarks)
    eb.cutover(foreign.uri)
    assert eb.open(foreign.uri).vector_type == "float16"


def test_an_index_whose_building_was_interrupted_is_built_again(foreign):
    location = Location.parse(foreign.index().uri)
    eb.migrate_in_place(foreign.uri, MAP, space="minilm")
    foreign.server.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass",
        [indexes_of(foreign.server, location, "embedding_new")[0].name],
    )
    eb.migrate_in_place(foreign.uri, MAP, space="minilm", resume=True)
    [index] = indexes_of(foreign.server, location, "embedding_new")
    assert index.is_valid


def test_rows_written_meanwhile_are_found(foreign, monkeypatch):
    foreign.sql("DELETE FROM TABLE_ WHERE doc = ANY(%s)", IDS[50:59])
    monkeypatch.setattr("embridge.conversion.in_place.migrate.rows_of_group", lambda *_: 20)
    done = []

    def change(rows, total):
        if not done:
            done.append(rows)
            foreign.insert(range(50, 59))
            foreign.sql("DELETE FROM TABLE_ WHERE doc = ANY(%s)", [IDS[3], IDS[40]])
            foreign.sql("UPDATE TABLE_ SET embedding = %s WHERE doc = ANY(%s)", str(ROWS[0].tolist()), sorted(IDS[:50])[-3:])

    eb.migrate_in_place(foreign.uri, MAP, space="minilm", progress=change)
    old, new = foreign.vectors("embedding"), foreign.vectors("embedding_new")
    assert new.keys() == old.keys() == set(IDS[:59]) - {IDS[3], IDS[40]}
    np.testing.assert_allclose([new[i] for i in old], MAP.apply(np.array(list(old.values()))), atol=1e-5)


def test_a_row_that_changes_between_reading_and_writing_is_translated_again(foreign):
    """Its version differs, so the translation of its former vector is not written."""
    from embridge.stores.pgvector.in_place import PgInPlace

    plain, seen = PgInPlace.write, []

    def write(self, batch, note):
        if not seen:
            foreign.sql("UPDATE TABLE_ SET embedding = %s WHERE doc = %s", str(ROWS[1].tolist()), IDS[7])
        seen.append(len(batch))
        return plain(self, batch, note)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PgInPlace, "write", write)
        eb.migrate_in_place(foreign.uri, MAP, space="minilm")
    assert seen == [N - 1, 1]
    np.testing.assert_allclose(foreign.vectors("embedding_new")[IDS[7]], MAP.apply(ROWS[1:2])[0], atol=1e-5)


def test_a_trigger_marks_rows_whose_old_vector_changes(foreign):
    plain = eb.migrate_in_place(foreign.uri, MAP, space="minilm")
    assert "are not noticed" in plain.remarks[-1]
    foreign.sql("UPDATE TABLE_ SET embedding = %s WHERE doc = %s", str(ROWS[1].tolist()), IDS[7])
    with pytest.raises(VerificationError, match="is not the translation"):
        eb.verify(foreign.uri, translation=MAP)
    foreign.sql("UPDATE TABLE_ SET embedding_new = NULL WHERE doc = %s", IDS[7])
    eb.migrate_in_place(foreign.uri, MAP, space="minilm", resume=True, mark_changed=True)
    foreign.sql("UPDATE TABLE_ SET embedding = %s WHERE doc = %s", str(ROWS[2].tolist()), IDS[7])
    foreign.sql("UPDATE TABLE_ SET meta = '{}' WHERE doc = %s", IDS[8])
    assert foreign.vectors("embedding_new").keys() == set(IDS[: N - 1]) - {IDS[7]}
    with pytest.raises(CollectionError, match="1 row without a new vector"):
        eb.cutover(foreign.uri)
    assert eb.migrate_in_place(foreign.uri, MAP, space="minilm", resume=True).remarks[-1] == plain.remarks[0]
    assert eb.verify(foreign.uri, translation=MAP).compared == N - 1
    eb.cutover(foreign.uri)
    assert foreign.sql("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'TABLE_'::regclass").fetchone() == (0,)
    foreign.sql("UPDATE TABLE_ SET embedding_old = %s WHERE doc = %s", str(ROWS[3].tolist()), IDS[7])
    assert IDS[7] in foreign.vectors("embedding")


def test_not_null_goes_with_the_vectors_in_use(make):
    table = make("doc text PRIMARY KEY, embedding vector(4) NOT NULL, meta jsonb")
    eb.migrate_in_place(table.uri, MAP, space="minilm")
    eb.cutover(table.uri)
    assert table.columns() == {"doc": "NO", "embedding_old": "YES", "meta": "YES", "embedding": "NO"}
    eb.rollback(table.uri)
    assert table.columns() == {"doc": "NO", "embedding": "NO", "meta": "YES", "embedding_new": "YES"}
    eb.cutover(table.uri)
    table.sql("INSERT INTO TABLE_ (doc, embedding) VALUES ('later', '[1,2,3,4,5]')")
    assert "1 row have none" in eb.rollback(table.uri).remarks[-1]
    assert table.columns()["embedding"] == "YES"


def test_views_that_keep_reading_the_old_vectors_are_named(foreign):
    view = f"v{uuid.uuid4().hex[:8]}"
    foreign.sql(f"CREATE VIEW {view} AS SELECT doc, embedding FROM TABLE_")
    assert any(view in step for step in eb.preview_in_place(foreign.uri, MAP, space="minilm").steps)
    eb.migrate_in_place(foreign.uri, MAP, space="minilm")
    assert any(view in remark for remark in eb.cutover(foreign.uri).remarks)
    with pytest.raises(EmbridgeError, match="cannot drop column embedding_old"):
        eb.drop_vector(foreign.uri, "old")
    assert migration_note(foreign.uri).stage == "live"


def test_a_connection_that_drops_leaves_the_old_vectors_and_is_continued(foreign, monkeypatch):
    monkeypatch.setattr("embridge.conversion.in_place.migrate.rows_of_group", lambda *_: 20)

    def drop(rows, total):
        if rows == 40:
            foreign.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
            )

    with pytest.raises(EmbridgeError, match=r"cannot be (written|reached or read)"):
        eb.migrate_in_place(foreign.uri, MAP, space="minilm", progress=drop)
    assert migration_note(foreign.uri).cursor.written == 40
    foreign.check("embedding", translated=False)
    with pytest.raises(InterruptedOutputError, match="40 rows written"):
        eb.migrate_in_place(foreign.uri, MAP, space="minilm")
    eb.migrate_in_place(foreign.uri, MAP, space="minilm", resume=True)
    foreign.check("embedding_new")


def test_two_vector_columns_are_migrated_one_by_one(make):
    table = make("doc text PRIMARY KEY, embedding vector(4), meta jsonb, title vector(4)")
    table.sql("UPDATE TABLE_ SET title = embedding")
    for column in ("embedding", "title"):
        uri = f"{table.uri}&vector={column}"
        eb.migrate_in_place(uri, MAP, space="minilm")
        eb.cutover(uri)
        table.check(column, ROWS)
    eb.rollback(f"{table.uri}&vector=embedding")
    table.check("embedding", ROWS, translated=False)
    table.check("title", ROWS)


@pytest.mark.parametrize("kind", ["text", "varchar(40)", "char(40)", 'text COLLATE "C"', "citext", "uuid"])
def test_ids_of_every_kind_are_found_again(make, server, kind, monkeypatch):
    if kind == "citext":
        server.execute("CREATE EXTENSION IF NOT EXISTS citext")
    table = make(f"doc {kind} PRIMARY KEY, embedding vector(4), meta jsonb")
    monkeypatch.setattr("embridge.conversion.in_place.migrate.rows_of_group", lambda *_: 20)
    with interrupted_after(table.uri, 2), pytest.raises(KeyboardInterrupt):
        eb.migrate_in_place(table.uri, MAP, space="minilm")
    assert eb.migrate_in_place(table.uri, MAP, space="minilm", resume=True).rows == N
    found = table.vectors("embedding_new")
    np.testing.assert_allclose([found[i] for i in IDS], MAP.apply(ROWS), atol=1e-5)


@pytest.mark.parametrize("kind", ["smallint", "int", "bigint"])
def test_integer_ids_are_found_again(server, postgres, kind):
    name = f"t{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE TABLE {name} (id {kind} PRIMARY KEY, embedding halfvec(4))")
    for i, row in enumerate(ROWS):
        server.execute(f"INSERT INTO {name} VALUES (%s, %s)", [i - 30, str(row.tolist())])
    done = eb.migrate_in_place(f"{postgres}&table={name}", MAP, space="minilm")
    assert (done.rows, eb.open(f"{postgres}&table={name}&vector=embedding_new").vector_type) == (N, "float16")
    [[kind]] = server.execute("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attname = 'embedding_new' "
                              "AND attrelid = %s::regclass", [name]).fetchall()  # fmt: skip
    assert kind == "halfvec(5)"
