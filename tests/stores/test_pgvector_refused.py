"""Tables of PostgreSQL that cannot be migrated in place."""

import uuid

import numpy as np
import pytest

import embridge as eb
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    CollectionError,
    OutputError,
    OutputExistsError,
    ParameterError,
)
from embridge.stores.uri import Location
from embridge.testing.in_place import a_map

psycopg = pytest.importorskip("psycopg")
from embridge.stores.pgvector.collection import connect  # noqa: E402
from tests.stores.foreign_table import IDS, MAP, PLAIN, ROWS, N, P  # noqa: E402

pytestmark = pytest.mark.pgvector


KEYLESS = "doc text, embedding vector(4), meta jsonb"
NO_KEY = "has no unique index of its own.*CREATE UNIQUE INDEX"


@pytest.mark.parametrize(
    ("columns", "change", "error", "reason"),
    [
        (KEYLESS, "", BadIdsError, NO_KEY),
        (f"{KEYLESS}, n int, UNIQUE (doc, n)", "", BadIdsError, NO_KEY),
        (KEYLESS, "CREATE UNIQUE INDEX ON TABLE_ (doc) WHERE doc > 'a'", BadIdsError, NO_KEY),
        (f"{KEYLESS}, UNIQUE (doc)", "INSERT INTO TABLE_ VALUES (NULL, '[1,2,3,4]')", BadIdsError, "1 row without an id"),
        (f"{PLAIN}, embedding_new int", "", OutputExistsError, "a column 'embedding_new'"),
        (f"{PLAIN}, embedding_old int", "", OutputExistsError, "a column 'embedding_old'"),
        (PLAIN, "UPDATE TABLE_ SET embedding = NULL", CollectionError, "no row with a vector"),
        (PLAIN, "UPDATE TABLE_ SET embedding = '[0,0,0,0]' WHERE doc > 'f'", None, ""),
    ],
)
def test_tables_that_cannot_be_migrated_are_refused(make, columns, change, error, reason):
    table = make(columns)
    if change:
        table.sql(change)
    before = table.columns()
    if error is None:
        assert eb.migrate_in_place(table.uri, MAP, space="minilm:dot").rows == N
        return
    for act in (eb.preview_in_place, eb.migrate_in_place):
        with pytest.raises(error, match=reason):
            act(table.uri, MAP, space="minilm")
    assert table.columns() == before


def test_generated_columns_and_hidden_rows_are_refused(make, server, postgres):
    half = "half halfvec(4) GENERATED ALWAYS AS (embedding::halfvec(4)) STORED"
    table = make(f"{PLAIN}, {half}")
    with pytest.raises(CollectionError, match="is a generated column"):
        eb.migrate_in_place(f"{table.uri}&vector=half", MAP, space="minilm")
    assert any("generated" in step or "half" in step for step in eb.preview_in_place(
        f"{table.uri}&vector=embedding", MAP, space="minilm").steps)  # fmt: skip
    role = f"r{uuid.uuid4().hex[:8]}"
    table.sql(f"CREATE ROLE {role} LOGIN")
    table.sql(f"ALTER TABLE TABLE_ OWNER TO {role}")
    table.sql("ALTER TABLE TABLE_ FORCE ROW LEVEL SECURITY")
    table.sql("ALTER TABLE TABLE_ ENABLE ROW LEVEL SECURITY")
    table.sql("CREATE POLICY half ON TABLE_ USING (doc < 'f')")
    with pytest.raises(CollectionError, match="Row-level security may hide rows"):
        eb.migrate_in_place(f"{table.uri}&vector=embedding".replace("postgres@", f"{role}@"), MAP, space="minilm")


def test_vectors_that_cannot_be_translated_stop_or_stay_without_a_new_one(make):
    table = make(PLAIN)
    table.sql("UPDATE TABLE_ SET embedding = '[0,0,0,0]' WHERE doc = ANY(%s)", IDS[:3])
    translation = a_map(eb.Space("minilm", P))
    with pytest.raises(BadVectorsError, match="3 rows with a zero vector"):
        eb.migrate_in_place(table.uri, translation, space="minilm")
    done = eb.migrate_in_place(table.uri, translation, space="minilm", on_bad="skip", resume=True)
    assert (done.rows, done.skipped, done.without_vector) == (N - 3, 3, 0)
    assert eb.verify(table.uri, translation=translation).compared == N - 3
    assert "3 rows have no new vector" in eb.cutover(table.uri).remarks[0]


def test_views_and_partitions_are_refused_and_a_partitioned_table_is_migrated(server, postgres):
    name = f"p{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE TABLE {name} (doc text PRIMARY KEY, embedding vector(4)) PARTITION BY HASH (doc)")
    for part in (0, 1):
        server.execute(f"CREATE TABLE {name}_{part} PARTITION OF {name} FOR VALUES WITH (MODULUS 2, REMAINDER {part})")
    for i, row in zip(IDS, ROWS, strict=True):
        server.execute(f"INSERT INTO {name} VALUES (%s, %s)", [i, str(row.tolist())])
    server.execute(f"CREATE INDEX ON {name} USING hnsw (embedding vector_ip_ops)")
    server.execute(f"CREATE VIEW {name}_view AS SELECT * FROM {name}")
    uri = f"{postgres}&table={name}&id=doc"
    with pytest.raises(CollectionError, match="is one partition"):
        eb.migrate_in_place(uri.replace(name, f"{name}_0"), MAP, space="minilm")
    with pytest.raises(CollectionError, match="is a view"):
        eb.migrate_in_place(uri.replace(name, f"{name}_view"), MAP, space="minilm")
    assert eb.migrate_in_place(uri, MAP, space="minilm").rows == N
    eb.cutover(uri)
    found, vectors = eb.open(uri).read()
    place = {i: at for at, i in enumerate(IDS)}
    np.testing.assert_allclose(vectors, MAP.apply(ROWS[[place[i] for i in found]]), atol=1e-5)


def test_a_reader_without_rights_gets_one_error_before_anything_is_written(foreign, postgres):
    role = f"r{uuid.uuid4().hex[:8]}"
    foreign.sql(f"CREATE ROLE {role} LOGIN")
    foreign.sql(f"GRANT SELECT ON TABLE_ TO {role}")
    uri = foreign.uri.replace("postgres@", f"{role}@")
    before = foreign.columns()
    with pytest.raises(OutputError, match=r"may not migrate .*: it needs to own the table, UPDATE on it, CREATE on its schema"):
        eb.migrate_in_place(uri, MAP, space="minilm")
    assert foreign.columns() == before


def test_names_that_are_too_long_or_the_same_are_refused(foreign):
    with pytest.raises(ParameterError, match="longer than the 63 bytes"):
        eb.migrate_in_place(foreign.uri, MAP, space="minilm", into="n" * 64)
    with pytest.raises(ParameterError, match="another name than"):
        eb.migrate_in_place(foreign.uri, MAP, space="minilm", into="embedding")
    with pytest.raises(ParameterError, match="mode shadow"):
        eb.migrate_in_place(foreign.uri, MAP, space="minilm", mode="shadow")
    assert eb.migrate_in_place(foreign.uri, MAP, space="minilm", into='x"; --').into == 'x"; --'
    foreign.check('"x""; --"')


def test_two_runs_at_once_and_a_table_that_is_locked_are_refused(foreign, monkeypatch):
    monkeypatch.setattr("embridge.stores.pgvector.in_place._LOCK_TIMEOUT", "100ms")
    tried = []

    def other(rows, total):
        with pytest.raises(CollectionError, match="is used by another"):
            eb.migrate_in_place(foreign.uri, MAP, space="minilm", resume=True)
        tried.append(rows)

    eb.migrate_in_place(foreign.uri, MAP, space="minilm", progress=other)
    assert tried
    with connect(Location.parse(foreign.uri)) as reader, reader.transaction():
        reader.execute(f"SELECT count(*) FROM {foreign.quoted}")
        with pytest.raises(CollectionError, match="is used by another"):
            eb.cutover(foreign.uri)
    eb.cutover(foreign.uri)
