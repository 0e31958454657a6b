"""Queries of users on the catalog."""

import datetime
import shutil
import subprocess
import sys

import numpy as np
import pytest

from embridge.catalog import query
from embridge.errors import CatalogError, EmbridgeError
from tests.catalog.support import catalog, contents, fit_run, record_story


@pytest.fixture
def path(tmp_path):
    return tmp_path / "embridge.duckdb"


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A catalog that the tests only read."""
    return record_story(catalog(tmp_path_factory.mktemp("story") / "embridge.duckdb"))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (i INTEGER)",
        "DELETE FROM run",
        "UPDATE run SET verb = 'x'",
        "DROP VIEW lineage",
        "SELECT 1; DELETE FROM run",
        "WITH gone AS (DELETE FROM run RETURNING *) SELECT * FROM gone",
        "EXPLAIN ANALYZE DELETE FROM run",
        "SELECT nextval('run_id')",
        "COPY run TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{folder}/out.parquet'",
        "EXPORT DATABASE '{folder}/out'",
        "SELECT * FROM '{folder}/secret.csv'",
        "SELECT * FROM read_text('{folder}/secret.csv')",
        "SELECT * FROM glob('{folder}/*')",
        "ATTACH '{folder}/out.duckdb'",
        "SET enable_external_access = true",
        "RESET threads",
        "PRAGMA enable_profiling",
        "CALL enable_logging",
        "CALL enable_logging()",
        "CALL enable_logging(storage = 'file', storage_path = '{folder}/log')",
        "SELECT * FROM enable_logging(storage := 'file', storage_path := '{folder}/log')",
        "SELECT * FROM enable_profiling()",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM sql_auto_complete('SEL')",
        "UPDATE EXTENSIONS",
        "IMPORT DATABASE '{folder}'",
        "CHECKPOINT",
        "VACUUM",
        "BEGIN",
        "PREPARE p AS SELECT 1",
        "USE memory",
        "SELECT 1; SELECT 2",
        "SELECT * FROM nowhere",
        "SELEC",
        "",
        " ; -- nothing",
        "SELECT '\udcff'",
    ],
)
def test_without_write_nothing_is_changed_and_no_other_file_is_touched(story, path, tmp_path, statement):
    shutil.copy(story.path, path)
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    before = contents(path)
    with pytest.raises(CatalogError):
        catalog(path).sql(statement.format(folder=tmp_path))
    assert contents(path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["embridge.duckdb", "secret.csv"]


def test_variables_of_the_caller_are_no_tables(path):
    catalog(path).migrate()
    secret = np.arange(3)
    assert secret.size
    with pytest.raises(CatalogError, match="secret"):
        catalog(path).sql("SELECT * FROM secret")


def test_with_write_a_query_may_change_the_catalog_and_write_files(path, tmp_path):
    made = catalog(path)
    made.record(fit_run())
    assert made.sql("CREATE TABLE mine AS SELECT 7 AS i", write=True) == [{"Count": 1}]
    made.sql(f"COPY run TO '{tmp_path}/runs.csv'", write=True)
    assert made.sql("SELECT i FROM mine") == [{"i": 7}]
    assert (tmp_path / "runs.csv").read_text().startswith("id,verb")
    made.check()  # tables of the user's own do no harm


def test_rows_are_plain_values(path):
    catalog(path).record(fit_run())
    (row,) = catalog(path).sql("SELECT id, verb, seconds, finished_at, device IS NULL AS lacks, NULL AS nothing FROM run")
    assert {name: type(value) for name, value in row.items()} == {
        "id": int, "verb": str, "seconds": float, "finished_at": datetime.datetime, "lacks": bool, "nothing": type(None),
    }  # fmt: skip
    assert catalog(path).sql("SELECT 1 AS a WHERE false") == []


@pytest.mark.parametrize(
    "statement",
    ["FROM run", "TABLE run", "VALUES (1)", "SHOW TABLES", "DESCRIBE run", "SUMMARIZE run", "EXPLAIN SELECT 1",
     "WITH a AS (SELECT 1) SELECT * FROM a", "SELECT * FROM pragma_table_info('run')",
     "PIVOT run ON verb IN ('fit', 'index') USING count(*)"],
)  # fmt: skip
def test_every_statement_that_reads_may_run(story, statement):
    assert story.sql(statement)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("", "The query is empty"),
        ("SELECT 1; SELECT 2", "Got 2 statements"),
        ("DELETE FROM run", "Only SELECT and EXPLAIN may run, as the catalog is opened read-only. Hint: --write"),
        ("SELECT '\udcff'", "not valid UTF-8"),
        ("SELECT * FROM nowhere", r"The query on '.*embridge\.duckdb' failed: Catalog Error"),
        ("SELECT INTERVAL 1000000000 DAY", "failed: .*Hint: cast the values to VARCHAR"),
    ],
)
def test_the_error_says_what_is_wrong_with_a_query(story, statement, message):
    with pytest.raises(CatalogError, match=message):
        story.sql(statement)


def test_no_column_is_lost_where_names_repeat(story):
    assert story.sql("SELECT 1 AS a, 2 AS a, 3 AS a_1") == [{"a": 1, "a_1": 2, "a_1_1": 3}]


def test_a_result_of_too_many_rows_is_refused(story, monkeypatch):
    monkeypatch.setattr(query, "MOST_ROWS", 20_000)
    assert len(story.sql("SELECT * FROM range(20_000)")) == 20_000
    with pytest.raises(CatalogError, match=r"more than 20,000 rows\. Hint: LIMIT"):
        story.sql("SELECT * FROM range(1_000_000_000_000)")


def test_with_write_many_statements_run_and_the_last_one_answers(path):
    made = catalog(path)
    made.migrate()
    assert made.sql("CREATE TABLE mine (i INTEGER); INSERT INTO mine VALUES (1), (2); FROM mine", write=True) == [
        {"i": 1},
        {"i": 2},
    ]
    with pytest.raises(CatalogError, match="The query is empty"):
        made.sql("", write=True)
    assert made.sql("CALL enable_logging()", write=True) == []


def test_ctrl_c_ends_a_query_at_once(story):
    """DuckDB alone would go on for minutes: it looks for the signal too rarely."""
    statement = "SELECT count(*) FROM range(10_000_000_000) a, range(100) b"
    code = (
        "import signal, sys, os, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background process of a shell ignores it
        "from embridge.cli.main import main\n"
        "threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "catalog", "sql", "--catalog", story.path, statement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_errors_of_the_catalog_are_errors_of_embridge():
    assert issubclass(CatalogError, EmbridgeError)
    assert issubclass(CatalogError, RuntimeError)
