"""The catalog: migrations, taking turns on the file, and every kind of record."""

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import duckdb
import numpy as np
import pytest

import embridge as eb
from embridge.catalog import Catalog, migrations
from embridge.catalog.migrations import Migration
from embridge.errors import CatalogError, EmbridgeError, MissingFileError
from embridge.records import (
    AnchorRecord,
    Artifact,
    Candidate,
    Conversion,
    CorpusSize,
    CostedScore,
    DecoderEvaluation,
    DecoderRecord,
    DecoderStrategy,
    Difference,
    Evaluation,
    FitRecord,
    LabelScore,
    LearningCurve,
    Plan,
    Recommendation,
    Run,
    StrategyScore,
)
from embridge.types import Metric, Space

OLD, NEW = Space("minilm", 384, Metric.COSINE, normalized=True), Space("mpnet", 768, Metric.DOT)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "embridge.duckdb"


def catalog(path, *further, patience=0.2):
    """A catalog whose code knows `further` migrations beside those that ship."""
    made = Catalog(path, patience=patience)
    made._known = [*made._known, *further]
    return made


NEXT = len(migrations.load_migrations()) + 1  # the number of a migration that does not ship yet


def contents(path):
    """Everything in a DuckDB file, by table."""
    with duckdb.connect(str(path), read_only=True) as connection:
        names = [row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()]
        return {name: connection.execute(f'FROM "{name}" ORDER BY ALL').fetchall() for name in names}


def fit_run(fingerprint="f1", path="a.safetensors", source=OLD, target=NEW, method="bridge"):
    sides = (
        Artifact("source", "old.parquet", "c-old", "parquet", 100, source),
        Artifact("target", "new.parquet", "c-new", "parquet", 50, target),
    )
    made = Artifact("map", path, fingerprint, "map", space=target, source_space=source)
    record = FitRecord(method, {"alpha": 0.1}, 40, 10, 1.5, "cpu", ("c-old", "c-new"), (Candidate("ridge", {"alpha": 0.1}, 0.5),))
    return Run("fit", {"seed": 3}, 2.0, sides, (made,), 40, "cpu", (AnchorRecord("c-old", "c-new", 50, 40, 10, 0.2, 3), record))


def evaluate_run(fingerprint="f1", overlap=0.5, recall=None):
    strategies = (
        StrategyScore("keep-old", 0.3, (0.2, 0.4)),
        StrategyScore(
            "translate-documents", overlap, (overlap - 0.1, overlap + 0.1), recall, None if recall is None else recall / 2
        ),
    )
    found = Evaluation(10, 20, 30, strategies, 0.9, 0.4, fingerprint, 7)
    return Run("evaluate", {}, 1.0, (Artifact("map", "a.safetensors", fingerprint, "map"),), details=(found,))


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


def test_a_catalog_of_the_first_version_learns_of_decoders(path):
    first = Catalog(path)
    first._known = first._known[:1]
    first.record(fit_run())
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
    with pytest.raises(CatalogError, match="names no decoder"):
        now.record(Run("decoder register", {}, 0.1, details=(DecoderRecord("lost", "skops", "classifier"),)))


def test_a_catalog_of_the_second_version_keeps_its_evaluations_and_takes_full_ones(path):
    second = Catalog(path)
    second._known = second._known[:2]
    second.record(fit_run())
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
    assert now.sql("SELECT overlap FROM best_translator") == [{"overlap": 0.7}]
    assert now.sql("SELECT translator, method, alpha, s, score, deficit_error FROM candidate") == [
        {"translator": "f1", "method": "ridge", "alpha": 0.1, "s": None, "score": 0.5, "deficit_error": None}
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
    with pytest.raises(CatalogError, match=r"Migration 'bad' failed and was rolled back: \w+"):
        catalog(path, good, Migration(NEXT + 1, "bad", statements)).migrate()
    after = contents(path)
    assert after.pop("good") == []  # those before it stay
    assert [row[0] for row in after["migration"]] == [*range(1, NEXT), NEXT]
    after["migration"] = after["migration"][:-1]
    assert after == before


def test_a_first_migration_that_fails_leaves_a_file_that_can_still_become_a_catalog(path):
    bad = Catalog(path)
    bad._known = [Migration(1, "0001_bad", "CREATE TABLE run (id INTEGER); SELECT * FROM nowhere")]
    with pytest.raises(CatalogError, match="0001_bad"):
        bad.migrate()
    assert contents(path) == {}
    catalog(path).check()
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


def test_a_database_of_somebody_else_is_refused(path):
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE customer AS SELECT 1 AS id")
    before = contents(path)
    for action in (catalog(path).check, catalog(path).migrate, lambda: catalog(path).record(fit_run())):
        with pytest.raises(
            CatalogError, match=r"embridge\.duckdb' is a DuckDB database, but no embridge catalog: it holds customer\."
        ):
            action()
    assert contents(path) == before


@pytest.mark.parametrize("content", [b"", b"id,vector\n1,2\n", bytes(20_000)])
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


def test_there_is_nothing_to_ask_where_there_is_no_catalog(path):
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


def test_a_catalog_held_by_another_process_is_waited_for_then_told_with_its_pid(path):
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


def test_a_connection_of_this_process_is_told_as_such(path):
    catalog(path).migrate()
    with duckdb.connect(str(path)), pytest.raises(CatalogError, match=rf"held by .*this very process, PID {os.getpid()}"):
        catalog(path).record(fit_run())


def test_what_was_recorded_survives_a_kill(path):
    """The record is in the write-ahead log only, and a read-only connection finds it there."""
    code = (
        "import sys, time, duckdb, test_catalog as t\n"
        "connect = duckdb.connect\n"
        "def stay(connection, run, store=t.Catalog._store):\n"
        "    store(t.made, connection, run)\n"
        "    print('stored', flush=True)\n"
        "    time.sleep(60)\n"
        "t.made = t.Catalog(sys.argv[1])\n"
        "t.made._store = stay\n"
        "t.made.record(t.fit_run())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(__file__)
    )
    with process:
        assert process.stdout.readline() == "stored\n"
        process.send_signal(signal.SIGKILL)
    catalog(path).check()
    assert catalog(path).sql("SELECT verb FROM run") == [{"verb": "fit"}]
    assert catalog(path).record(evaluate_run()) == 2


def test_processes_take_turns(path):
    code = "import sys, test_catalog as t\nfor _ in range(5):\n    t.Catalog(sys.argv[1], patience=60).record(t.evaluate_run())\n"
    command = [sys.executable, "-c", code, str(path)]
    processes = [subprocess.Popen(command, cwd=os.path.dirname(__file__)) for _ in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    assert catalog(path).sql("SELECT count(*) AS n, count(DISTINCT id) AS ids, min(verb) AS v FROM run") == [
        {"n": 15, "ids": 15, "v": "evaluate"}
    ]


# Records


def test_a_fit_is_recorded_with_all_that_is_known_of_it(path, tmp_path):
    before = migrations.utc_now()
    assert catalog(path).record(fit_run(path=str(tmp_path / "a.safetensors"))) == 1
    (run,) = catalog(path).sql("SELECT * FROM run")
    assert before <= run.pop("finished_at") <= migrations.utc_now()
    assert json.loads(run.pop("parameters")) == {"seed": 3}
    assert run == {"id": 1, "verb": "fit", "seconds": 2.0, "rows": 40, "device": "cpu", "version": eb.__version__}
    (translator,) = catalog(path).sql("SELECT * FROM translator")
    assert json.loads(translator.pop("candidates")) == [
        {"method": "ridge", "parameters": {"alpha": 0.1}, "score": 0.5, "deficit_error": None}
    ]
    assert json.loads(translator.pop("parameters")) == {"alpha": 0.1}
    assert translator == {
        "fingerprint": "f1", "path": str(tmp_path / "a.safetensors"), "method": "bridge", "source_space": "minilm",
        "source_dim": 384, "target_space": "mpnet", "target_dim": 768, "anchors": 40, "held_out": 10,
        "seconds": 1.5, "device": "cpu", "run": 1,
    }  # fmt: skip
    assert catalog(path).sql("SELECT * FROM anchor_set") == [
        {"run": 1, "source": "c-old", "target": "c-new", "shared": 50, "anchors": 40, "held_out": 10, "test_size": 0.2, "seed": 3}
    ]
    assert catalog(path).sql("SELECT * FROM space ORDER BY name") == [
        {"name": "minilm", "dim": 384, "metric": "cosine", "normalized": True},
        {"name": "mpnet", "dim": 768, "metric": "dot", "normalized": False},
    ]
    found = catalog(path).sql('SELECT fingerprint, path, kind, "rows", space, dim, run FROM collection ORDER BY fingerprint')
    assert [tuple(row.values()) for row in found] == [
        ("c-new", os.path.abspath("new.parquet"), "parquet", 50, "mpnet", 768, 1),
        ("c-old", os.path.abspath("old.parquet"), "parquet", 100, "minilm", 384, 1),
    ]
    found = catalog(path).sql("SELECT direction, role, fingerprint FROM artifact ORDER BY ALL")
    assert [tuple(row.values()) for row in found] == [("in", "source", "c-old"), ("in", "target", "c-new"), ("out", "map", "f1")]


def test_an_evaluation_is_recorded_strategy_by_strategy(path):
    catalog(path).record(evaluate_run(overlap=0.5, recall=0.25))
    first, second = catalog(path).sql("SELECT * FROM evaluation ORDER BY strategy")
    assert second == {
        "run": 1, "translator": "f1", "strategy": "translate-documents", "k": 10, "queries": 20, "corpus": 30, "judged": 7,
        "overlap": 0.5, "overlap_low": 0.4, "overlap_high": 0.6, "recall": 0.25, "mrr": 0.125, "mean_cosine": 0.9,
        "relative_residual": 0.4, "candidate_recall": None, "recall_low": None, "recall_high": None, "mrr_low": None,
        "mrr_high": None, "ndcg": None, "ndcg_low": None, "ndcg_high": None,
    }  # fmt: skip
    assert (first["strategy"], first["recall"], first["mrr"]) == ("keep-old", None, None)


def test_an_evaluation_is_recorded_in_full(path):
    full = StrategyScore("blend", 0.5, (0.4, 0.6), 0.3, 0.2, 0.9, (0.25, 0.35), (0.15, 0.25), 0.22, (0.2, 0.24))
    label = LabelScore(7, "blend", 12, 0.5, (0.3, 0.7), 3, 0.4, (0.2, 0.6), 0.1, (0.0, 0.2), 0.3, (0.1, 0.5))
    bare = LabelScore("noun", "blend", 2, 0.5, (0.3, 0.7))
    sizes = CorpusSize("blend", 30, 0.5, (0.4, 0.6), forecast=False), CorpusSize("blend", 90, 0.4, (0.3, 0.5), forecast=True)
    change = (Difference("blend", "overlap", 0.1, (0.05, 0.15)),)
    found = Evaluation(10, 20, 30, (full,), 0.9, 0.4, "f1", 7, None, (label, bare), sizes, "f2", change)
    made = catalog(path)
    made.record(Run("evaluate", {}, 1.0, (Artifact("map", "a.safetensors", "f1", "map"),), details=(found,)))
    (row,) = made.sql("SELECT * FROM evaluation")
    told = {
        "candidate_recall": 0.9, "recall": 0.3, "recall_low": 0.25, "recall_high": 0.35, "mrr": 0.2, "mrr_low": 0.15,
        "mrr_high": 0.25, "ndcg": 0.22, "ndcg_low": 0.2, "ndcg_high": 0.24, "mean_cosine": 0.9,
    }  # fmt: skip
    assert {name: row[name] for name in told} == told
    first, second = made.sql("SELECT * FROM evaluation_label ORDER BY label")
    assert tuple(first.values()) == (1, "f1", "blend", "7", 12, 3, 0.5, 0.3, 0.7, 0.4, 0.2, 0.6, 0.1, 0.0, 0.2, 0.3, 0.1, 0.5)
    assert tuple(second.values()) == (1, "f1", "blend", "noun", 2, 0, 0.5, 0.3, 0.7, *[None] * 9)
    assert [tuple(row.values()) for row in made.sql("FROM evaluation_size ORDER BY corpus")] == [
        (1, "f1", "blend", 30, 0.5, 0.4, 0.6, False),
        (1, "f1", "blend", 90, 0.4, 0.3, 0.5, True),
    ]
    assert [tuple(r.values()) for r in made.sql("FROM evaluation_difference")] == [
        (1, "f1", "f2", "blend", "overlap", 0.1, 0.05, 0.15)
    ]
    parts = {"evaluation", "evaluation_label", "evaluation_size", "evaluation_difference"}
    assert set(made.show("1")) == {"run", "artifact", *parts}
    assert set(made.show("a.safetensors")) == {"artifact", *parts}


def test_a_plan_is_recorded(path):
    base = CostedScore(
        "blend", 0.5, (0.4, 0.6), candidate_recall=0.9, hubness=True, gain=0.1, gain_ci=(0.05, 0.15), recovered=None,
        rows_changed=3, encodes=4, seconds=None, cost=2.5, needs_old_encoder=True, needs_texts=False,
    )  # fmt: skip
    curve = LearningCurve((10, 20), (0.3, 0.4), (40,), (0.5,), ((0.45, 0.55),))
    reasons = {"old-encoder-gone": Recommendation("blend+hubness", "It is best.")}
    found = Plan(10, 20, 0, 30, 40, "bridge", 0.5, (base,), reasons, curve)
    made = catalog(path)
    made.record(Run("plan", {"k": 10}, 1.0, details=(found,)))
    (row,) = made.sql("SELECT * FROM plan")
    assert {name: value for name, value in row.items() if value is not None} == {
        "run": 1, "strategy": "blend+hubness", "name": "blend", "hubness": True, "method": "bridge", "anchors": 40, "k": 10,
        "queries": 20, "corpus": 30, "judged": 0, "overlap": 0.5, "overlap_low": 0.4, "overlap_high": 0.6, "candidate_recall": 0.9,
        "gain": 0.1, "gain_low": 0.05, "gain_high": 0.15, "rows_changed": 3, "encodes": 4, "cost": 2.5, "needs_old_encoder": True,
        "needs_texts": False,
    }  # fmt: skip
    assert [tuple(r.values()) for r in made.sql("FROM recommendation")] == [(1, "old-encoder-gone", "blend+hubness", "It is best.")]
    assert [tuple(r.values()) for r in made.sql("FROM learning_curve ORDER BY anchors")] == [
        (1, 10, 0.3, None, None, False), (1, 20, 0.4, None, None, False), (1, 40, 0.5, 0.45, 0.55, True),
    ]  # fmt: skip
    assert set(made.show("1")) == {"run", "plan", "recommendation", "learning_curve"}
    assert json.loads(made.sql("SELECT parameters FROM run")[0]["parameters"]) == {"k": 10}


def test_a_conversion_is_recorded(path, tmp_path):
    done = Conversion(str(tmp_path / "out.parquet"), 100, 2.0, "cpu", "c-old", "f1", "c-out")
    catalog(path).record(Run("convert", {}, 2.0, rows=100, device="cpu", details=(done,)))
    assert catalog(path).sql("SELECT * FROM conversion") == [
        {
            "run": 1, "source": "c-old", "translator": "f1", "output": "c-out", "path": str(tmp_path / "out.parquet"),
            "rows": 100, "seconds": 2.0, "device": "cpu",
        }
    ]  # fmt: skip


def test_remote_paths_stay_as_they_are(path):
    catalog(path).record(Run("info", {}, 0.1, (Artifact("source", "s3://bucket/a.parquet", "x", "parquet", 5, OLD),)))
    assert catalog(path).sql("SELECT path FROM collection") == [{"path": "s3://bucket/a.parquet"}]


def test_a_run_that_cannot_be_stored_leaves_nothing(path):
    made = catalog(path)
    made.record(evaluate_run())
    before = contents(path)
    with pytest.raises(CatalogError, match="cannot store the run"):
        made.record(Run("convert", {}, 2.0, details=(Conversion("out", None, 2.0, "cpu", "a", "b", "c"),)))
    with pytest.raises(CatalogError, match="does not name its spaces"):
        made.record(Run("fit", {}, 1.0, (), (Artifact("map", "m", "f", "map"),), details=(FitRecord("linear"),)))
    assert contents(path) == before


def test_the_same_facts_are_stored_once(path):
    for _ in range(2):
        catalog(path).record(fit_run())
    counts = {name: len(rows) for name, rows in contents(path).items()}
    assert counts == {
        "migration": NEXT - 1, "run": 2, "artifact": 6, "anchor_set": 2, "collection": 2, "translator": 1, "space": 2,
        "evaluation": 0, "evaluation_label": 0, "evaluation_size": 0, "evaluation_difference": 0, "plan": 0, "recommendation": 0,
        "learning_curve": 0, "conversion": 0, "decoder": 0, "decoder_evaluation": 0, "decoding": 0,
    }  # fmt: skip


# Questions


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Fit, evaluate, convert, index: the whole story, of records alone. Only read by the tests."""
    made = catalog(tmp_path_factory.mktemp("told") / "embridge.duckdb")
    old = Artifact("source", "old.parquet", "c-old", "parquet", 100, OLD)
    translator = Artifact("map", "a.safetensors", "f1-and-more", "map", space=NEW, source_space=OLD)
    made.record(fit_run("f1-and-more"))
    made.record(evaluate_run("f1-and-more", overlap=0.7))
    done = Conversion("out.parquet", 100, 1.0, "cpu", "c-old", "f1-and-more", "c-out")
    output = Artifact("output", "out.parquet", "c-out", "parquet", 100, NEW)
    made.record(Run("convert", {}, 1.0, (old, translator), (output,), 100, "cpu", (done,)))
    index = Artifact("index", "out.faiss", "12345678ab", "faiss", 100, NEW)
    made.record(
        Run("index", {"factory": "Flat"}, 1.0, (Artifact("source", "out.parquet", "c-out", "parquet", 100, NEW),), (index,))
    )
    return made


@pytest.mark.parametrize("name", ["out.faiss", "12345678ab", "12345678"])
def test_lineage_goes_back_to_the_beginning(told, name):
    found = [(row["depth"], row["path"], row["verb"], row["role"], row["from_path"], row["run"]) for row in told.lineage(name)]
    full = os.path.abspath
    assert found == [
        (1, full("out.faiss"), "index", "source", full("out.parquet"), 4),
        (2, full("out.parquet"), "convert", "map", full("a.safetensors"), 3),
        (2, full("out.parquet"), "convert", "source", full("old.parquet"), 3),
        (3, full("a.safetensors"), "fit", "source", full("old.parquet"), 1),
        (3, full("a.safetensors"), "fit", "target", full("new.parquet"), 1),
    ]


def test_what_nothing_was_made_of_has_no_lineage(told):
    assert told.lineage("old.parquet") == []


def test_a_file_made_of_itself_ends_the_walk(path):
    same = Artifact("source", "a.parquet", "same-print", "parquet", 1, OLD)
    catalog(path).record(Run("convert", {}, 1.0, (same,), (same,)))
    assert {row["from_path"] for row in catalog(path).lineage("a.parquet")} == {os.path.abspath("a.parquet")}


@pytest.mark.parametrize("name", ["a.safetensors", "f1-a", "f1-and-more"])
def test_show_tells_every_fact_about_a_file(told, name):
    found = told.show(name)
    assert {table: len(rows) for table, rows in found.items()} == {"translator": 1, "evaluation": 2, "artifact": 3}
    assert found["translator"][0]["fingerprint"] == "f1-and-more"
    assert {row["run"] for row in found["artifact"]} == {1, 2, 3}


def test_show_tells_every_fact_about_a_run(told):
    found = told.show("1")
    assert {table: len(rows) for table, rows in found.items()} == {"run": 1, "artifact": 3, "anchor_set": 1, "translator": 1}
    assert set(told.show("3")) == {"run", "artifact", "conversion"}


def test_a_number_that_is_no_run_may_begin_a_fingerprint(told):
    assert set(told.show("12345678")) == {"collection", "artifact"}


@pytest.mark.parametrize("name", ["5", "nothing.parquet", "f1", "%", "' OR true --"])
def test_what_is_not_known_is_told(told, name):
    for ask in (told.show, told.lineage):
        with pytest.raises(CatalogError, match=rf"knows no path or fingerprint that starts with {re.escape(repr(name))}"):
            ask(name)


def test_list_tells_newest_first(told, path):
    shutil.copy(told.path, path)
    catalog(path).record(evaluate_run("f1-and-more", overlap=0.6))
    found = catalog(path).list()
    assert [os.path.basename(row["path"]) for row in found["collections"]] == [
        "out.faiss",
        "out.parquet",
        "new.parquet",
        "old.parquet",
    ]
    assert [(row["method"], row["overlap"]) for row in found["translators"]] == [("bridge", 0.6)]  # as last measured
    assert [row["verb"] for row in found["runs"]] == ["evaluate", "index", "convert", "evaluate", "fit"]


def test_best_translator_is_the_best_of_each_pair_as_last_measured(path):
    made = catalog(path)
    third = Space("e5", 1024)
    for fingerprint, target, overlaps in (
        ("a", NEW, (0.9, 0.4)),  # measured again, and worse
        ("b", NEW, (0.6,)),
        ("c", NEW, (0.5,)),
        ("d", third, (0.1,)),
        ("e", third, ()),  # never measured
    ):
        made.record(fit_run(fingerprint, path=f"{fingerprint}.safetensors", target=target))
        for overlap in overlaps:
            made.record(evaluate_run(fingerprint, overlap))
    found = made.sql("SELECT source_space, target_space, fingerprint, overlap FROM best_translator ORDER BY target_space")
    assert [tuple(row.values()) for row in found] == [("minilm", "e5", "d", 0.1), ("minilm", "mpnet", "b", 0.6)]


# SQL


@pytest.mark.parametrize(
    "query",
    [
        "CREATE TABLE mine (i INTEGER)",
        "DELETE FROM run",
        "UPDATE run SET verb = 'x'",
        "DROP VIEW lineage",
        "SELECT 1; DELETE FROM run",
        "COPY run TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{folder}/out.parquet'",
        "EXPORT DATABASE '{folder}/out'",
        "SELECT * FROM '{folder}/secret.csv'",
        "SELECT * FROM read_text('{folder}/secret.csv')",
        "SELECT * FROM glob('{folder}/*')",
        "ATTACH '{folder}/out.duckdb'",
        "SET enable_external_access = true",
        "SELECT * FROM nowhere",
        "SELEC",
    ],
)
def test_without_write_nothing_is_changed_and_no_other_file_is_touched(told, path, tmp_path, query):
    shutil.copy(told.path, path)
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    before = contents(path)
    with pytest.raises(CatalogError, match="The query failed"):
        catalog(path).sql(query.format(folder=tmp_path))
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


def test_errors_of_the_catalog_are_errors_of_embridge():
    assert issubclass(CatalogError, EmbridgeError)
    assert issubclass(CatalogError, RuntimeError)
