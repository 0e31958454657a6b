"""PostgreSQL with pgvector: the conformance suite, and what is particular to its tables."""

import contextlib
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import embridge as eb
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    ChangedSourceError,
    CollectionError,
    EmbridgeError,
    InterruptedOutputError,
    MissingFileError,
    OutputError,
    ParameterError,
    UndeclaredSpaceError,
    UnreadableFileError,
)
from embridge.stores.capabilities import Capabilities
from embridge.stores.uri import Location
from embridge.testing.stored_rows import N
from embridge.testing.writers import StoreConformance
from embridge.types import Metric

psycopg = pytest.importorskip("psycopg")
from embridge.stores.pgvector.collection import connect  # noqa: E402

pytestmark = pytest.mark.pgvector
ROWS = np.random.default_rng(2).normal(size=(60, 4)).astype(np.float32)


class TestPgvector(StoreConformance):
    capabilities = Capabilities(
        keeps_order=False,
        keeps_repeated_ids=True,
        has_snapshot=True,
        supports_second_vector=True,
        dtypes=("float32", "float16"),
        in_place_modes=("column",),
        finds_missing=True,
        marks_changed=True,
    )
    keeps_bad_values = False  # pgvector refuses them
    is_reproducible = False  # the fingerprint is that of the versions of rows
    unheld = (pa.field("length", pa.duration("s")), pa.field("pair", pa.struct([("a", pa.int64())])))
    payload = StoreConformance.payload | {
        "price": pa.array([None, *range(1, N)], pa.decimal128(12, 2)),
        "tags": pa.array([[str(i)] * (i % 3) for i in range(N)]),
        "raw": pa.array([bytes([i, 0]) for i in range(N)]),
    }

    @pytest.fixture
    def new_uri(self, new_table):
        return new_table

    def lose_the_next_note(self, writer, monkeypatch):
        def stop(note):
            raise KeyboardInterrupt

        monkeypatch.setattr(writer, "_put", stop)

    def add(self, uri, ids, vectors):
        location = Location.parse(uri)
        with connect(location) as connection:
            for i, vector in zip(ids, vectors, strict=True):
                connection.execute(f"INSERT INTO {location.options['table']} VALUES (%s, %s)", [i, str(vector.tolist())])


@pytest.fixture
def foreign(server, postgres):
    """A table that embridge did not make: a uuid key, other names, a jsonb payload, null vectors, an HNSW index."""
    name = f'a"; drop {uuid.uuid4().hex[:8]}'
    quoted = psycopg.sql.Identifier(name).as_string(server)
    server.execute(f"CREATE TABLE {quoted} (doc uuid PRIMARY KEY, embedding vector(4), meta jsonb, seen timestamptz, mood text[])")
    ids = [str(uuid.UUID(int=i * 7919 % 60)) for i in range(60)]
    for i, row in zip(ids, ROWS, strict=True):
        server.execute(f"INSERT INTO {quoted} VALUES (%s, %s, %s, now(), '{{a,b}}')", [i, str(row.tolist()), '{"a": 1}'])
    server.execute(f"CREATE INDEX ON {quoted} USING hnsw (embedding vector_ip_ops)")
    return f"{postgres}&table={name.replace(' ', '%20').replace(';', '%3B')}&id=doc", ids, quoted


def test_a_foreign_table_is_read_as_it_stands(foreign):
    uri, ids, _ = foreign
    found = eb.open(uri, space="minilm")
    assert found.space == eb.Space("minilm", 4, Metric.DOT)
    order = np.argsort(ids)
    assert found.read()[0].tolist() == sorted(ids)
    np.testing.assert_array_equal(found.read()[1], ROWS[order])
    assert found.payload_schema.names == ["meta", "seen", "mood"]
    batch = next(found.batches(7, payload=True))
    assert batch.payload.column(0).to_pylist() == ['{"a": 1}'] * 7
    assert batch.payload.column(2).to_pylist() == [["a", "b"]] * 7
    assert [i for b in found.batches(after=sorted(ids)[50]) for i in b.ids.to_pylist()] == sorted(ids)[51:]
    hits = found.search(ROWS[:5], 60)
    assert {len(hits.row(i)[0]) for i in range(5)} == {60}


def test_the_metric_is_that_of_all_indexes_or_declared(foreign, server):
    uri, _, quoted = foreign
    server.execute(f"CREATE INDEX ON {quoted} USING hnsw ((embedding::halfvec(4)) halfvec_ip_ops)")
    assert eb.open(uri, space="minilm").stated_space.metric == Metric.DOT
    server.execute(f"CREATE INDEX ON {quoted} USING hnsw ((embedding::halfvec(4)) halfvec_l2_ops)")
    with pytest.raises(UndeclaredSpaceError, match=r"several metrics over 'embedding': dot, l2\. Hint: .*minilm:dot"):
        eb.open(uri, space="minilm")
    for metric in (Metric.L2, Metric.COSINE):
        assert eb.open(uri, space=f"minilm:{metric}").stated_space.metric == metric
        assert eb.open(uri, space=eb.Space("minilm", 4, metric)).space.metric == metric


def test_null_vectors_are_named_and_left_out_on_request(foreign, server, tmp_path):
    uri, ids, quoted = foreign
    server.execute(f"UPDATE {quoted} SET embedding = NULL WHERE doc = %s", [ids[3]])
    found = eb.open(uri, space="minilm")
    with pytest.raises(BadVectorsError, match=r"1 row without a vector \(null\)"):
        found.read()
    done = eb.copy(found, tmp_path / "out.parquet", on_bad="skip")
    assert (done.rows, done.skipped) == (59, 1)


def test_a_snapshot_sees_neither_updates_nor_deletes(foreign, server):
    uri, ids, quoted = foreign
    found = eb.open(uri, space="minilm")
    mark = found.fingerprint()
    batches = found.batches(10)
    first = next(batches)
    server.execute(f"DELETE FROM {quoted} WHERE doc = %s", [sorted(ids)[30]])
    server.execute(f"UPDATE {quoted} SET embedding = '[9,9,9,9]' WHERE doc = %s", [sorted(ids)[40]])
    rows = np.concatenate([first.vectors, *(b.vectors for b in batches)])
    np.testing.assert_array_equal(rows, ROWS[np.argsort(ids)])
    assert found.fingerprint() == mark
    found.check_unchanged()
    assert eb.open(uri, space="minilm").fingerprint() != mark


def test_a_snapshot_that_is_lost_is_an_error(foreign, server):
    uri, _, _ = foreign
    found = eb.open(uri, space="minilm")
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid() AND datname IS NOT NULL")
    with pytest.raises(ChangedSourceError, match="snapshot was lost"):
        found.read()


def test_a_connection_that_drops_while_reading_is_an_error(server, postgres, new_table):
    uri = new_table()
    eb.copy(eb.MemoryCollection(range(50_000), np.ones((50_000, 32)), eb.Space("a", 32)), uri)
    batches = eb.open(uri).batches(100)
    next(batches)
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid() AND datname IS NOT NULL")
    with pytest.raises(UnreadableFileError, match="cannot be reached or read"):
        list(batches)


@pytest.mark.parametrize(
    ("columns", "error", "reason"),
    [
        ("id numeric, vector vector(2)", BadIdsError, "'id'.*string or int64. Got numeric"),
        ("id text, vector text", BadVectorsError, "'vector'.* is text, not one of vector, halfvec"),
        ("id text, vector bit(4)", BadVectorsError, "is bit, not one of"),
        (
            "id text, embedding_a vector(2), embedding_b vector(2)",
            CollectionError,
            "has no column 'vector'. Columns: id, embedding_a",
        ),
        ("key text, vector vector(2)", CollectionError, "has no column 'id'. Columns: key, vector"),
        ("id text, vector vector(2)", CollectionError, "holds no rows"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(server, postgres, columns, error, reason):
    name = f"t{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE TABLE {name} ({columns})")
    with pytest.raises(error, match=reason):
        eb.open(f"{postgres}&table={name}", space="a")


def test_vectors_of_any_width_and_half_precision_are_read(server, postgres):
    name = f"t{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE TABLE {name} (id smallint, free vector, half halfvec(2))")
    server.execute(f"INSERT INTO {name} VALUES (1, '[1,2,3]', '[1,2]'), (2, NULL, '[0.5,4]'), (3, '[4,5,6]', '[3,3]')")
    free = eb.open(f"{postgres}&table={name}&vector=free", space="a")
    assert free.space.dim == 3
    assert next(free.batches(validate=False)).vectors[0].tolist() == [1, 2, 3]
    half = eb.open(f"{postgres}&table={name}&vector=half", space="a")
    assert half.read()[1].tolist() == [[1, 2], [0.5, 4], [3, 3]]
    assert half.payload_schema.field("free").type == pa.list_(pa.float32())


def test_places_that_do_not_exist_are_named(postgres):
    with pytest.raises(MissingFileError, match="There is no table 'nothing'"):
        eb.open(f"{postgres}&table=nothing", space="a")
    with pytest.raises(ParameterError, match="names no table"):
        eb.open(postgres, space="a")
    with pytest.raises(EmbridgeError, match="does not exist"):
        eb.open(postgres.replace("/postgres?", "/nowhere?") + "&table=t", space="a")
    with pytest.raises(EmbridgeError, match="cannot be reached"):
        eb.open("postgresql://ann:s3cret@127.0.0.1:1/db?table=t", space="a")


def test_a_wrong_password_is_an_error_that_does_not_show_it(server, postgres, caplog):
    server.execute("CREATE ROLE ann LOGIN PASSWORD 'right'")
    hba = server.execute("SHOW hba_file").fetchone()[0]
    before = Path(hba).read_text()
    try:
        Path(hba).write_text(f"local all ann scram-sha-256\n{before}")
        server.execute("SELECT pg_reload_conf()")
        uri = postgres.replace("postgres@", "ann:wr0ng-s3cret@") + "&table=t"
        with pytest.raises(UnreadableFileError, match="password authentication failed") as e:
            eb.open(uri, space="a")
        assert "wr0ng" not in str(e.value) + caplog.text
        with pytest.raises(MissingFileError):
            eb.open(uri.replace("wr0ng-s3cret", "right"), space="a")
    finally:
        Path(hba).write_text(before)
        server.execute("SELECT pg_reload_conf()")


def test_without_the_package_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "import embridge as eb\n"
        "try: eb.open('postgresql://x/y?table=t')\n"
        "except eb.EmbridgeError as e: print(type(e).__name__, e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "MissingDependencyError postgresql:// needs psycopg, which is not installed. Hint: pip install 'embridge[pgvector]'."
    )


def test_a_replacement_is_one_transaction_and_needs_no_short_name(new_table, server):
    uri = f"{new_table()}{'x' * 45}"
    name = Location.parse(uri).options["table"]
    first = eb.MemoryCollection(range(9), ROWS[:9], eb.Space("a", 4))
    eb.copy(first, uri)
    server.execute(f"CREATE VIEW v{name[:20]} AS SELECT id FROM {name}")
    with pytest.raises(OutputError, match="other objects depend on it"):
        eb.copy(eb.MemoryCollection(range(60), ROWS, eb.Space("a", 4)), uri, overwrite=True)
    assert len(eb.open(uri)) == 9
    server.execute(f"DROP VIEW v{name[:20]}")
    assert eb.copy(eb.MemoryCollection(range(60), ROWS, eb.Space("a", 4)), uri, resume=True).rows == 60
    assert len(eb.open(uri)) == 60
    assert not server.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'replacement%'").fetchall()


def test_a_writer_on_another_machine_is_refused(new_table, monkeypatch):
    source, uri = eb.MemoryCollection(range(60), ROWS, eb.Space("a", 4)), new_table()
    monkeypatch.setattr("embridge.conversion.store._alone", contextlib.nullcontext)
    tried = []

    def again(*_):
        with pytest.raises((InterruptedOutputError, OutputError), match="Another process is writing"):
            eb.copy(source, uri, resume=True)
        tried.append(1)

    monkeypatch.setattr("embridge.conversion.store.rows_of_group", lambda *_: 40)
    assert eb.copy(source, uri, progress=lambda *a: tried or again(*a)).rows == 60
    assert tried


@pytest.mark.parametrize("end", ["source", "output"])
def test_a_connection_that_is_dropped_in_the_middle_of_a_copy_is_an_error_and_it_continues(new_table, server, end, monkeypatch):
    source, start, uri = eb.MemoryCollection(range(60), ROWS, eb.Space("a", 4)), new_table(), new_table()
    eb.copy(source, start)
    monkeypatch.setattr("embridge.conversion.store.rows_of_group", lambda *_: 20)
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid() AND datname IS NOT NULL"
    with pytest.raises(EmbridgeError, match=r"terminating connection|snapshot was lost|cannot be (reached|written)"):
        eb.copy(eb.open(start) if end == "source" else source, uri, progress=lambda *_: server.execute(query))
    with pytest.raises(EmbridgeError, match=r"unfinished|There is no table"):
        eb.open(uri)
    assert eb.copy(eb.open(start) if end == "source" else source, uri, resume=True).rows == 60
    found = eb.open(uri)
    assert found.read()[0].tolist() == list(range(60))
    np.testing.assert_array_equal(found.read()[1], ROWS)
