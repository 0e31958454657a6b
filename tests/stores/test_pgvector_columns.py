"""Types, names and ids of tables of PostgreSQL that embridge did not make, and columns that it cannot keep."""

import datetime
import decimal
import uuid
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.errors import CollectionError, MissingFileError, ParameterError

psycopg = pytest.importorskip("psycopg")

pytestmark = pytest.mark.pgvector


@pytest.fixture
def make(server, postgres):
    """``make(columns, *rows)`` creates a table, and gives its URI; ``# `` stands for a vector of three values."""

    def made(columns, *rows, name=None):
        name = name or f"t{uuid.uuid4().hex[:8]}"
        quoted = psycopg.sql.Identifier(name).as_string(server)
        server.execute(f"CREATE TABLE {quoted} ({columns})")
        for row in rows:
            server.execute(f"INSERT INTO {quoted} VALUES ({row})".replace("#", "'[1,2,3]'"))
        return f"{postgres}&table={quote(name)}"

    return made


def payload(uri):
    found = eb.open(uri, space="a")
    return pa.Table.from_batches([batch.payload for batch in found.batches(payload=True)]).to_pydict()


def test_a_domain_is_the_type_below_it(server, make):
    mark = uuid.uuid4().hex[:8]
    for name, below in (("key", "bigint"), ("row", "vector(3)"), ("count", "int"), ("small", f"count{mark}")):
        server.execute(f"CREATE DOMAIN {name}{mark} AS {below}")
    uri = make(f"id key{mark} PRIMARY KEY, vector row{mark}, n small{mark}", "7, #, 5", "8, #, NULL")
    found = eb.open(uri, space="a")
    assert (found.space.dim, found.payload_schema.field("n").type) == (3, pa.int32())
    assert found.read()[0].tolist() == [7, 8]
    assert payload(uri) == {"n": [5, None]}
    assert found.search(np.ones((1, 3), np.float32), 2).ids.tolist() == [[7, 8]]


def test_numbers_of_any_scale_are_kept(make):
    uri = make("id int, vector vector(3), a numeric(3,-2), b numeric(3,5)", "1, #, 12345, 0.00123")
    assert payload(uri) == {"a": [decimal.Decimal("1.23E+4")], "b": [decimal.Decimal("0.00123")]}


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("int[]", "'{{1,2},{3,4}}'", r"Column 'm' of .* has values that are not list<item: int32>"),
        ("numeric(10,2)", "'NaN'", r"Column 'm' of .* has values that are not decimal128\(10, 2\)"),
        ("timestamptz", "'infinity'", "has values that cannot be read: timestamp too large"),
        ("time", "'24:00'", "has values that cannot be read: time not supported"),
    ],
)
def test_values_that_arrow_has_not_are_refused_with_what_to_do(server, make, kind, value, reason):
    uri = make(f"id int, vector vector(3), m {kind}", f"1, #, {value}")
    with pytest.raises(CollectionError, match=f"{reason}.*Hint: read a view of the table"):
        payload(uri)
    name = uri.rpartition("=")[2]
    server.execute(f"CREATE VIEW {name}_view AS SELECT id, vector, m::text FROM {name}")
    assert len(payload(f"{uri}_view")["m"]) == 1


def test_names_with_percent_signs_are_names(make):
    uri = make('"i%d" int, "v%s" vector(3), "p%" text', "1, #, 'x'", name=f"a%b{uuid.uuid4().hex[:8]}")
    found = eb.open(f"{uri}&id=i%25d&vector=v%25s", space="a")
    assert found.search(np.array([[1, 2, 3]], np.float32), 1).ids.tolist() == [[1]]


def test_rows_without_an_id_are_seen_by_a_run_that_continues_too(make):
    """No comparison with the id of the last row finds them."""
    uri = make("id int, vector vector(3)", "1, #", "NULL, #", "2, #")
    found = eb.open(uri, space="a")
    for after, expected in ((None, [1, 2, None]), (1, [2, None]), (2, [None])):
        assert [i for batch in found.batches(2, validate=False, after=after) for i in batch.ids.to_pylist()] == expected


def test_names_that_postgresql_would_cut_are_refused(tmp_path, new_table, make_space):
    source = eb.MemoryCollection([1], np.ones((1, 3)), make_space("a", 3), {"n" * 64: [1]})
    uri = new_table()
    with pytest.raises(ParameterError, match="PostgreSQL cuts names after 63 bytes"):
        eb.copy(source, uri)
    with pytest.raises(ParameterError, match="PostgreSQL cuts names after 63 bytes"):
        eb.copy(eb.MemoryCollection([1], np.ones((1, 3)), make_space("a", 3)), f"{uri}{'é' * 30}")


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.date32()])
def test_moments_beyond_the_calendar_are_refused(tmp_path, new_table, write, table_of, make_space, kind):
    far = pa.array([10**7 if pa.types.is_date(kind) else 10**18], pa.int32() if pa.types.is_date(kind) else pa.int64())
    path = write(tmp_path / "a.parquet", table_of([1], np.ones((1, 3)), {"m": far.cast(kind)}, space=make_space("a", 3)))
    with pytest.raises(CollectionError, match=r"Column 'm' has values that cannot be written .*outside the years 1 to 9999"):
        eb.copy(eb.open(path), uri := new_table())
    with pytest.raises(MissingFileError):  # nothing was written, and nothing is left
        eb.open(uri)
    last = pa.array([datetime.date(9999, 12, 31)]).cast(pa.timestamp("us"))
    pq.write_table(table_of([1], np.ones((1, 3)), {"m": last}, space=make_space("a", 3)), path)
    eb.copy(eb.open(path), uri := new_table())
    assert payload(uri) == {"m": last.to_pylist()}
