"""The file of the catalog: migrations, creation, kills, a full disk, other processes."""

import contextlib
import os
import subprocess
import sys
import time

import duckdb
import pytest

from embridge.catalog import Catalog, migrations
from embridge.catalog.migrations import Migration
from embridge.errors import CatalogError, MissingFileError
from embridge.records import Artifact, DecoderEvaluation, DecoderRecord, DecoderStrategy, Run
from tests.catalog.support import NEW, catalog, contents, evaluate_run, fit_run
from tests.support import ROOT


@pytest.fixture
def path(tmp_path):
    return tmp_path / "embridge.duckdb"


NEXT = len(migrations.load_migrations()) + 1  # the number of a migration that does not ship yet


# Migrations


def test_a_new_catalog_has_every_migration_once_and_migrating_again_does_nothing(path):
    known = migrations.load_migrations()
    assert catalog(path).migrate() == [m.name for m in known]
    before = contents(path)
    assert [row[:3] for row in before["migration"]] == [(m.version, m.name, m.sha256) for m in known]
    assert catalog(path).migrate() == []
    assert contents(path) == before


def test_new_migrations_keep_what_is_there(path):
    catalog(path).record(fit_run())
    step = Migration(NEXT, "notes", "CREATE TABLE note (run BIGINT, text VARCHAR); INSERT INTO note SELECT id, 'kept' FROM run")
    later = catalog(path, step)
    assert later.migrate() == ["notes"]
    assert later.sql("SELECT * FROM note") == [{"run": 1, "text": "kept"}]
    assert later.record(evaluate_run()) == 2


def older(path, version):
    """A catalog of an earlier version, with one run, the fit of a translator."""
    made = Catalog(path)
    made._known = made._known[:version]
    made.migrate()
    made.sql(
        "INSERT INTO run (verb, parameters, finished_at, seconds, version) VALUES ('fit', '{}', now()::TIMESTAMP, 1, '0'); "
        "INSERT INTO anchor_set VALUES (1, 'c-old', 'c-new', 50, 40, 10, 0.2, 3); "
        "INSERT INTO translator VALUES ('f1', 'a.safetensors', 'bridge', '{}', 'minilm', 384, 'mpnet', 768, 40, 10, 1.5, 'cpu', "
        """'[{"method": "ridge", "parameters": {"alpha": 0.1}, "score": 0.5, "deficit_error": null}]', 1)""",
        write=True,
    )
    return made


def test_a_catalog_of_the_first_version_learns_of_decoders(path):
    older(path, 1)
    now = catalog(path)
    with pytest.raises(CatalogError, match="embridge catalog migrate"):
        now.record(fit_run())
    assert now.migrate()[0] == "0002_decoder"
    assert now.decoders() == []
    assert len(now.list()["translators"]) == 1
    made = Artifact("decoder", "d.skops", "d1", "decoder", space=NEW)
    for name in ("first", "again"):
        now.record(
            Run("decoder register", {}, 0.1, outputs=(made,), details=(DecoderRecord(name, "skops", "classifier", ("a", "b")),))
        )
    assert [d["name"] for d in now.decoders()] == ["again"]
    ways = (DecoderStrategy("translated", {"accuracy": 0.5, "macro_f1": 0.4}, {"accuracy": (0.4, 0.6), "macro_f1": (0.3, 0.5)}),)
    now.record(Run("decoder evaluate", {}, 0.1, details=(DecoderEvaluation("classifier", 10, 5, 1, ways, "d1", "f1"),)))
    assert [(d["metric"], d["value"]) for d in now.decoders()] == [("accuracy", 0.5)]
    with pytest.raises(CatalogError, match="names 0 decoders and has 1 records"):
        now.record(Run("decoder register", {}, 0.1, details=(DecoderRecord("lost", "skops", "classifier"),)))


def test_a_catalog_of_the_second_version_keeps_its_evaluations_and_takes_full_ones(path):
    second = older(path, 2)
    columns = "run, translator, strategy, k, queries, corpus, judged, overlap, overlap_low, overlap_high, mean_cosine"
    values = "1, 'f1', 'translate-documents', 10, 20, 30, 0, 0.5, 0.4, 0.6, 0.9"
    second.sql(f"INSERT INTO evaluation ({columns}, relative_residual) VALUES ({values}, 0.4)", write=True)
    now = catalog(path)
    with pytest.raises(CatalogError, match="embridge catalog migrate"):
        now.record(evaluate_run())
    assert now.migrate()[0] == "0003_quality"
    assert now.record(evaluate_run("f1", overlap=0.7)) == 2
    assert now.sql("SELECT run, overlap, ndcg FROM evaluation WHERE strategy = 'translate-documents' ORDER BY run") == [
        {"run": 1, "overlap": 0.5, "ndcg": None},
        {"run": 2, "overlap": 0.7, "ndcg": None},
    ]
    assert now.sql("SELECT overlap, others FROM best_translator ORDER BY overlap") == [
        {"overlap": 0.5, "others": 0},  # of a run that names no files: another benchmark
        {"overlap": 0.7, "others": 0},
    ]
    assert now.sql("SELECT translator, method, alpha, shrinkage_target_weight, score, deficit_error FROM candidate") == [
        {"translator": "f1", "method": "ridge", "alpha": 0.1, "shrinkage_target_weight": None, "score": 0.5, "deficit_error": None}
    ]


@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TABLE note (i INTEGER); DELETE FROM run; SELECT * FROM nowhere",
        "CREATE TABLE note (i INTEGER); this is no SQL",
        "INSERT INTO run SELECT * FROM run",  # breaks the primary key
    ],
)
def test_a_failed_migration_leaves_no_trace(path, statements):
    catalog(path).record(fit_run())
    before = contents(path)
    good = Migration(NEXT, "good", "CREATE TABLE good (i INTEGER)")
    with pytest.raises(CatalogError, match=r"Migration 'bad' failed, and '.*embridge\.duckdb' is as before: \w+"):
        catalog(path, good, Migration(NEXT + 1, "bad", statements)).migrate()
    assert contents(path) == before


def test_a_first_migration_that_fails_leaves_nothing(path):
    bad = Catalog(path)
    bad._known = [Migration(1, "0001_bad", "CREATE TABLE run (id INTEGER); SELECT * FROM nowhere")]
    with pytest.raises(CatalogError, match="0001_bad"):
        bad.migrate()
    assert os.listdir(path.parent) == []
    assert catalog(path).record(fit_run()) == 1


def test_an_edited_migration_is_refused(path):
    catalog(path).migrate()
    edited = catalog(path)
    first = edited._known[0]
    edited._known = [Migration(1, first.name, first.sql + "\n-- edited"), *edited._known[1:]]
    for action in (edited.check, edited.migrate, lambda: edited.record(fit_run()), lambda: edited.sql("SELECT 1")):
        with pytest.raises(CatalogError, match=rf"Migration '{first.name}' differs from the one that was applied"):
            action()


def test_a_catalog_newer_than_the_code_is_refused(path):
    catalog(path, Migration(NEXT, "later", "CREATE TABLE later (i INTEGER)")).record(fit_run())
    before = contents(path)
    older = catalog(path)
    for action in (older.check, older.migrate, lambda: older.record(fit_run()), lambda: older.sql("SELECT 1"), older.list):
        with pytest.raises(
            CatalogError,
            match=rf"embridge\.duckdb' is at migration {NEXT}, but this embridge knows only {NEXT - 1}\. Hint: upgrade",
        ):
            action()
    assert contents(path) == before


def test_a_catalog_behind_the_code_is_refused_until_it_is_migrated(path):
    catalog(path).record(fit_run())
    before = contents(path)
    newer = catalog(path, Migration(NEXT, "later", "CREATE TABLE later (i INTEGER)"))
    for action in (newer.check, lambda: newer.record(fit_run()), lambda: newer.sql("SELECT 1")):
        with pytest.raises(
            CatalogError,
            match=rf"is at migration {NEXT - 1}, but this embridge needs {NEXT}\. Hint: run `embridge catalog migrate`",
        ):
            action()
    assert contents(path) == before
    newer.migrate()
    newer.check()


@pytest.mark.parametrize("names", [[], ["0002_b"], ["0001_a", "0003_c"], ["0001_a", "0001_b"]])
def test_migrations_are_numbered_without_a_gap(tmp_path, names):
    for name in names:
        (tmp_path / f"{name}.sql").write_text("SELECT 1")
    (tmp_path / "notes.sql").write_text("not a migration")
    with pytest.raises(CatalogError, match="not numbered"):
        migrations.load_migrations(tmp_path)


# Files that are no catalog


def test_checking_makes_no_file(path):
    catalog(path).check()
    assert not path.exists()


@pytest.mark.parametrize("act", ["check", "record", "migrate"])
def test_the_folder_of_a_catalog_must_be_there(tmp_path, act):
    made = catalog(tmp_path / "nowhere" / "embridge.duckdb")
    with pytest.raises((MissingFileError, CatalogError), match="nowhere"):
        made.record(fit_run()) if act == "record" else getattr(made, act)()
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_another_program_is_refused(path):
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE customer AS SELECT 1 AS id")
    before = contents(path)
    for action in (catalog(path).check, catalog(path).migrate, lambda: catalog(path).record(fit_run())):
        with pytest.raises(
            CatalogError, match=r"embridge\.duckdb' is a DuckDB database, but not an embridge catalog: it holds customer\."
        ):
            action()
    assert contents(path) == before


@pytest.mark.parametrize("content", [b"x", b"id,vector\n1,2\n", bytes(20_000)])
def test_a_file_that_is_no_database_is_refused_at_once(tmp_path, content):
    path = tmp_path / "locked.duckdb"  # the word in the name is no reason to wait
    path.write_bytes(content)
    made = catalog(path, patience=20)
    started = time.monotonic()
    for action in (made.check, made.migrate, lambda: made.record(fit_run())):
        with pytest.raises(CatalogError, match=r"locked\.duckdb' is not an embridge catalog"):
            action()
    assert time.monotonic() - started < 5
    assert path.read_bytes() == content


def test_queries_without_a_catalog_are_refused(path):
    for action in (lambda: catalog(path).sql("SELECT 1"), catalog(path).list, lambda: catalog(path).show("x")):
        with pytest.raises(CatalogError, match="There is no catalog at"):
            action()
    assert not path.exists()


def test_the_path_is_the_argument_or_the_environment_or_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("EMBRIDGE_CATALOG", raising=False)
    assert Catalog().path == "embridge.duckdb"
    monkeypatch.setenv("EMBRIDGE_CATALOG", str(tmp_path / "team.duckdb"))
    assert Catalog().path == str(tmp_path / "team.duckdb")
    assert Catalog("mine.duckdb").path == "mine.duckdb"


# Other processes


@contextlib.contextmanager
def holder(path, seconds=60):
    """Another process with the file open for writing."""
    code = (
        "import duckdb, sys, time\n"
        "connection = duckdb.connect(sys.argv[1])\n"
        "print('open', flush=True)\n"
        "time.sleep(float(sys.argv[2]))\n"
        "connection.close()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_catalog_held_by_another_process_is_waited_for_then_reported_with_its_pid(path):
    catalog(path).migrate()
    with holder(path) as process:
        for action in ("check", "record", "sql"):
            made = catalog(path, patience=0.5)
            call = {"check": made.check, "record": lambda m=made: m.record(fit_run()), "sql": lambda m=made: m.sql("SELECT 1")}[
                action
            ]
            started = time.monotonic()
            with pytest.raises(CatalogError, match=rf"is held by another process \(.*PID {process.pid}\).*--no-catalog"):
                call()
            assert 0.5 <= time.monotonic() - started < 5
    assert catalog(path).sql("SELECT count(*) AS n FROM run") == [{"n": 0}]


def test_a_catalog_that_is_let_go_in_time_is_used(path):
    catalog(path).migrate()
    with holder(path, seconds=0.7):
        started = time.monotonic()
        assert catalog(path, patience=30).record(fit_run()) == 1
        assert time.monotonic() - started > 0.3


def test_a_connection_of_this_process_is_reported_as_such(path):
    catalog(path).migrate()
    with duckdb.connect(str(path)), pytest.raises(CatalogError, match=rf"held by .*this process, PID {os.getpid()}"):
        catalog(path).record(fit_run())


def test_processes_take_turns(path):
    code = (
        "import sys, tests.catalog.support as t\n"
        "for _ in range(5):\n    t.Catalog(sys.argv[1], patience=60).record(t.evaluate_run())\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    assert catalog(path).sql("SELECT count(*) AS n, count(DISTINCT id) AS ids, min(verb) AS v FROM run") == [
        {"n": 15, "ids": 15, "v": "evaluate"}
    ]
