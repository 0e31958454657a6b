"""Maps as functions of SQL: they equal `map.apply` row by row, and refuse what `convert` refuses."""

import concurrent.futures
import math
import subprocess
import sys

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.errors import CatalogError, MapError, ParameterError, SpaceMismatchError
from embridge.integrations.duckdb import function_names, sql
from embridge.types import Metric, Space

OLD, NEW = Space("old", 6, normalized=True), Space("new", 9, normalized=True)
N = 5000


@pytest.fixture
def rows():
    found = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def map_between(source=OLD, target=NEW, seed=5):
    rng = np.random.default_rng(seed)
    return eb.LinearMap(rng.normal(size=(target.dim, source.dim)), rng.normal(size=target.dim), source, target)


def kernel_between():
    rng = np.random.default_rng(7)
    return eb.KernelMap(map_between(), rng.normal(size=(20, 6)), rng.normal(size=(20, 9)), 0.5)


@pytest.fixture
def connection(rows):
    with duckdb.connect() as found:
        flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 6)
        given = pa.table({"id": np.arange(N), "vector": flat})
        assert len(given) == N
        found.execute("CREATE TABLE docs AS SELECT * FROM given")
        yield found


def vectors(connection, query):
    found = connection.sql(query).to_arrow_table()
    return np.array(found.column(found.num_columns - 1).to_pylist(), np.float32)


@pytest.mark.parametrize("make", [map_between, kernel_between, lambda: map_between(target=Space("new", 9, Metric.L2))])
def test_the_function_equals_apply(connection, rows, make):
    eb.register(connection, make())
    assert str(connection.sql("SELECT translate(vector) FROM docs").types[0]) == "FLOAT[9]"
    found = vectors(connection, "SELECT translate(vector) FROM docs ORDER BY id")
    np.testing.assert_allclose(found, make().apply(rows), atol=1e-6)
    some = vectors(connection, "SELECT translate(vector) FROM docs WHERE id % 7 = 3 ORDER BY id DESC")
    np.testing.assert_allclose(some, make().apply(rows[3::7][::-1]), atol=1e-6)


def test_a_real_pair_equals_apply(translation, map_path):
    path = eb.sample_path("minilm")
    with duckdb.connect() as connection:
        eb.register(connection, map_path)
        found = vectors(connection, f"SELECT translate(vector::FLOAT[384]) FROM '{path}'")
        np.testing.assert_allclose(found, translation.apply(eb.open(path).read()[1]), atol=1e-6)


def test_rows_of_other_lengths_are_translated_as_apply_does(connection, rows):
    eb.register(connection, map_between())
    found = vectors(
        connection, "SELECT translate(list_transform(vector::FLOAT[], lambda x: 3 * x)::FLOAT[6]) FROM docs ORDER BY id"
    )
    np.testing.assert_allclose(found, map_between().apply(3 * rows), atol=1e-5)


def test_null_stays_null(connection, rows):
    eb.register(connection, map_between())
    connection.execute("UPDATE docs SET vector = NULL WHERE id % 3 = 1")
    found = [row[0] for row in connection.sql("SELECT translate(vector) FROM docs ORDER BY id").fetchall()]
    assert [i for i, v in enumerate(found) if v is None] == list(range(1, N, 3))
    np.testing.assert_allclose([found[i] for i in range(0, N, 3)], map_between().apply(rows[::3]), atol=1e-6)
    assert connection.sql("SELECT translate(NULL), translate(NULL::FLOAT[6])").fetchall() == [(None, None)]
    assert connection.sql("SELECT translate(vector) FROM docs WHERE id % 3 = 1 LIMIT 2").fetchall() == [(None,), (None,)]
    assert connection.sql("SELECT translate(vector) FROM docs WHERE id < 0").fetchall() == []


def test_lists_doubles_and_integers_are_cast(connection, rows):
    eb.register(connection, map_between())
    expected = map_between().apply(rows[:2])
    for cast in ("vector::FLOAT[]", "vector::DOUBLE[]::FLOAT[6]", "vector::DOUBLE[6]::FLOAT[6]"):
        found = vectors(connection, f"SELECT translate({cast}) FROM docs ORDER BY id LIMIT 2")
        np.testing.assert_allclose(found, expected, atol=1e-6)
    found = vectors(connection, "SELECT translate([1, 2, 3, 4, 5, 6])")
    np.testing.assert_allclose(found, map_between().apply(np.array([[1, 2, 3, 4, 5, 6]], np.float32)), atol=1e-5)


@pytest.mark.parametrize("given", ["vector[1:5]::FLOAT[5]", "vector::DOUBLE[]", "vector::DOUBLE[6]", "id", "vector, 3"])
def test_another_type_is_an_error_when_the_query_is_bound(connection, given):
    eb.register(connection, map_between())
    with pytest.raises(duckdb.BinderException, match=r"translate\(FLOAT\[6\]\) -> FLOAT\[9\]"):
        connection.execute(f"EXPLAIN SELECT translate({given}) FROM docs")  # binds, and reads no row


def test_a_list_of_another_length_is_an_error_of_its_row(connection):
    eb.register(connection, map_between())
    with pytest.raises(duckdb.ConversionException, match="length 5 to array with length 6"):
        connection.sql("SELECT translate(vector[1:5]) FROM docs").fetchall()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("['nan'::FLOAT, 1, 1, 1, 1, 1]", "NaN or infinite values"),
        ("['-inf'::FLOAT, 1, 1, 1, 1, 1]", "NaN or infinite values"),
        ("[0, 0, 0, 0, 0, 0]", "length zero"),
        ("[1, NULL, 1, 1, 1, 1]", "NULL inside a vector"),
    ],
)
def test_bad_rows_are_named_by_their_place(connection, bad, reason):
    eb.register(connection, map_between())
    connection.execute("UPDATE docs SET vector = NULL WHERE id = 3")  # a null row before it does not shift the number
    query = f"SELECT translate(CASE WHEN id IN (7, 9) THEN {bad}::FLOAT[6] ELSE vector END) FROM (FROM docs ORDER BY id LIMIT 20)"
    with pytest.raises(duckdb.InvalidInputException) as raised:
        connection.sql(query).fetchall()
    shown = str(raised.value)
    assert f"BadVectorsError: translate() got 2 rows with {reason}" in shown
    assert "the first is row 7 (counted from 0) of a chunk of 20 rows, [" in shown
    assert "Hint: TRY(translate(...)) gives NULL for such rows." in shown
    found = connection.sql(query.replace("SELECT translate(", "SELECT TRY(translate(").replace("END)", "END))")).fetchall()
    assert [i for i, (v,) in enumerate(found) if v is None] == [3, 7, 9]


def test_zero_is_a_vector_like_others_where_lengths_count(connection):
    plain = map_between(Space("old", 6, Metric.L2), Space("new", 9, Metric.L2))
    eb.register(connection, plain)
    np.testing.assert_allclose(vectors(connection, "SELECT translate([0, 0, 0, 0, 0, 0])")[0], plain.intercept, atol=1e-6)


def test_a_translation_that_cannot_be_used_is_refused(connection):
    zero = eb.LinearMap(np.zeros((9, 6)), np.zeros(9), OLD, NEW)
    eb.register(connection, zero, "vanish")
    with pytest.raises(duckdb.InvalidInputException, match="length zero after the translation"):
        connection.sql("SELECT vanish(vector) FROM docs").fetchall()
    far = eb.LinearMap(np.full((9, 6), 1e30), np.zeros(9), Space("old", 6, Metric.L2), Space("new", 9, Metric.L2))
    eb.register(connection, far, "explode")
    with pytest.raises(duckdb.InvalidInputException, match="NaN or infinite values after the translation"):
        connection.sql("SELECT explode([1e30, 1e30, 0, 0, 0, 0]::FLOAT[6])").fetchall()


def test_queries_are_projected_by_the_adjoint(connection):
    affine = map_between()
    eb.register(connection, affine, "project", into=affine.source)
    queries = np.random.default_rng(3).normal(size=(4, 9)).astype(np.float32)
    table = pa.table({"q": pa.FixedSizeListArray.from_arrays(pa.array(queries.ravel()), 9)})
    connection.register("queries", table)
    found = vectors(connection, "SELECT project(q) FROM queries")
    np.testing.assert_allclose(found, affine.project_queries(queries), atol=1e-5)


def test_where_there_is_no_way_to_project_nothing_is_registered(connection):
    with pytest.raises(MapError, match="not affine"):
        eb.register(connection, kernel_between(), "project", into=OLD)
    uneven = map_between(Space("old", 6, Metric.L2), Space("new", 9, Metric.L2))
    with pytest.raises(MapError, match="isometry"):
        eb.register(connection, uneven, "project", into=uneven.source)
    with pytest.raises(SpaceMismatchError, match="'third'"):
        eb.register(connection, map_between(), into=Space("third", 6))
    with pytest.raises(ParameterError, match="into must be a Space"):
        eb.register(connection, map_between(), into="old")
    with pytest.raises(duckdb.CatalogException, match="project"):
        connection.sql("SELECT project([1, 2])")


@pytest.mark.parametrize("name", ["", "a b", 'a"; DROP TABLE docs; --', "main.x", "1a", "a-b", None, 3])
def test_a_name_that_is_none_is_refused(connection, name):
    with pytest.raises(ParameterError, match="name must be a letter or underscore"):
        eb.register(connection, map_between(), name)


@pytest.mark.parametrize("name", ["sum", "list_sum"])
def test_a_function_of_duckdb_that_cannot_be_extended_is_refused(connection, name):
    with pytest.raises(ParameterError, match=f"'{name}' cannot be registered .*Hint: give another name"):
        eb.register(connection, map_between(), name)
    assert connection.sql("SELECT sum(id) FROM docs").fetchall() == [(N * (N - 1) // 2,)]


def test_a_name_is_registered_once(connection, rows):
    eb.register(connection, map_between())
    with pytest.raises(ParameterError, match=r"'TRANSLATE' cannot be registered .*remove the function"):
        eb.register(connection, map_between(seed=6), "TRANSLATE")
    eb.register(connection, map_between(seed=6), "other")
    found = vectors(connection, "SELECT translate(vector) FROM docs ORDER BY id LIMIT 3")
    np.testing.assert_allclose(found, map_between().apply(rows[:3]), atol=1e-6)
    connection.remove_function("translate")
    eb.register(connection, map_between(seed=6))
    assert connection.sql("SELECT bool_and(translate(vector) = other(vector)) FROM docs").fetchall() == [(True,)]


def test_translate_of_duckdb_keeps_working(connection):
    eb.register(connection, map_between())
    assert connection.sql("SELECT translate('abc', 'ab', 'xy')").fetchall() == [("xyc",)]


def test_what_is_no_map_or_connection_is_refused(connection, tmp_path):
    with pytest.raises(ParameterError, match="map must be"):
        eb.register(connection, np.eye(3))
    with pytest.raises(eb.EmbridgeError, match="no file"):
        eb.register(connection, tmp_path / "missing.safetensors")
    with pytest.raises(ParameterError, match="connection must be a DuckDB connection"):
        eb.register("embridge.duckdb", map_between())


def test_a_constant_is_translated_once(connection, monkeypatch):
    calls = []
    plain = eb.LinearMap.apply
    monkeypatch.setattr(eb.LinearMap, "apply", lambda self, x: calls.append(len(x)) or plain(self, x))
    eb.register(connection, map_between(seed=11))
    calls.clear()  # of the check at registration
    connection.sql("SELECT translate([1, 0, 0, 0, 0, 0]), id FROM docs").fetchall()
    assert sum(calls) == 1


def test_threads_and_cursors_share_the_function(connection, rows):
    connection.execute("SET threads = 4; INSERT INTO docs SELECT id + r * 5000, vector FROM docs, range(1, 40) t(r)")
    eb.register(connection, kernel_between())
    expected = kernel_between().apply(rows)

    def one(start):
        found = vectors(connection.cursor(), f"SELECT translate(vector) FROM docs WHERE id % 5000 < {start} ORDER BY id % 5000, id")
        return np.abs(found - np.repeat(expected[:start], 40, axis=0)).max()

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert max(pool.map(one, (500, 900, 1300))) < 1e-6


def test_a_function_outlives_the_cursor_that_registered_it():
    """DuckDB frees the functions of a closed cursor and calls them nevertheless, which ended the process."""
    code = (
        "import duckdb, embridge as eb, gc\n"
        "connection = duckdb.connect()\n"
        "cursor = connection.cursor()\n"
        "eb.register(cursor, eb.LinearMap([[2, 0], [0, 2]], [0, 0], eb.Space('a', 2), eb.Space('b', 2)))\n"
        "cursor.close(); del cursor; gc.collect()\n"
        "print(connection.sql('SELECT translate([1, 2])').fetchall())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[((2.0, 4.0),)]"), done.stderr


def test_search_in_sql_finds_what_search_finds(connection, rows):
    eb.register(connection, map_between())
    query = map_between().apply(rows[17:18])[0]
    found = connection.execute(
        "SELECT id FROM docs ORDER BY array_cosine_similarity(translate(vector), ?::FLOAT[9]) DESC, id LIMIT 10", [query.tolist()]
    ).fetchall()
    expected = eb.top_k(query[None], map_between().apply(rows), 10)
    assert [i for (i,) in found] == expected.ids[0].tolist()


# sql: a connection of its own


def test_sql_gives_rows_and_writes_files(tmp_path, rows):
    source = tmp_path / "old.parquet"
    pq.write_table(pa.table({"id": np.arange(N), "vector": rows.tolist()}), source)
    text = f"COPY (SELECT id, translate(vector::FLOAT[6]) AS vector FROM '{source}') TO '{tmp_path}/new.parquet'; SELECT 1 AS a"
    assert sql(text, {"translate": map_between()}) == [{"a": 1}]
    found = pq.read_table(tmp_path / "new.parquet")
    np.testing.assert_allclose(found["vector"].to_pylist(), map_between().apply(rows), atol=1e-6)


def test_a_failed_copy_leaves_no_file(tmp_path, rows):
    rows[4900, 2] = math.nan
    source = tmp_path / "old.parquet"
    pq.write_table(pa.table({"id": np.arange(N), "vector": rows.tolist()}), source)
    with pytest.raises(CatalogError, match=r"^The query failed: translate\(\) got 1 row with NaN or infinite values"):
        sql(f"COPY (SELECT translate(vector::FLOAT[6]) FROM '{source}') TO '{tmp_path}/new.parquet'", {"translate": map_between()})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old.parquet"]


def test_variables_of_the_caller_are_no_tables():
    rows = pa.table({"a": [1]})
    assert len(rows) == 1
    with pytest.raises(CatalogError, match="rows does not exist"):
        sql("SELECT * FROM rows", {"translate": map_between()})


def test_the_catalog_is_attached_read_only(tmp_path):
    catalog = eb.Catalog(tmp_path / "it's.duckdb", patience=0.2)
    maps = {"translate": map_between()}
    with pytest.raises(CatalogError, match="catalog"):
        sql("SELECT * FROM catalog.run", maps, catalog=catalog)
    catalog.record(eb.Run.of("note", parameters={"text": "first"}))
    assert sql("SELECT verb FROM Catalog.run", maps, catalog=catalog) == [{"verb": "note"}]
    with pytest.raises(CatalogError, match="read-only"):
        sql("DELETE FROM catalog.run", maps, catalog=catalog)
    with duckdb.connect(catalog.path):
        assert sql("SELECT 1 AS a", maps, catalog=catalog) == [{"a": 1}]  # a query without the word leaves the file alone


def test_a_held_catalog_is_an_error(tmp_path):
    catalog = eb.Catalog(tmp_path / "embridge.duckdb", patience=0.2)
    catalog.record(eb.Run.of("note"))
    code = f"import duckdb; c = duckdb.connect({catalog.path!r}); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(CatalogError, match=f"held by another process .*PID {holder.pid}"):
            sql("SELECT * FROM catalog.run", {"translate": map_between()}, catalog=catalog)
        holder.communicate("\n")
    assert sql("SELECT verb FROM catalog.run", {"translate": map_between()}, catalog=catalog) == [{"verb": "note"}]


def test_names_of_functions():
    assert function_names(["x/map.safetensors"]) == ["translate"]
    assert function_names(["x/old-new.safetensors", "b.safetensors"]) == ["old_new", "b"]
    assert function_names(["a", "b"], ["f", "g"]) == ["f", "g"]
    with pytest.raises(ParameterError, match="Got 1 names for 2 maps"):
        function_names(["a", "b"], ["f"])
    with pytest.raises(ParameterError, match="Two functions have the same name: A, a"):
        function_names(["x/A.safetensors", "y/a.safetensors"])
