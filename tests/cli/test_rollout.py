"""The verbs of a rollout on the command line: the same results as in the library, in text, JSON and catalog."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from tests.cli.support import holds, snapshot
from tests.rollout.support import make_world
from tests.support import run, run_json, table_of

SCORE = {"recall": float, "recall_ci": [float], "overlap": object, "overlap_ci": object}
STATUS = {
    "rows": int, "native": int, "translated": int, "stage": int, "weight": float, "hubness": str, "keep_old": SCORE, "now": SCORE,
    "forecast": [{"percent": int, "rows": int, "reached": float, "recall": float}], "old_model_needed": bool,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of a stranger: none names its space."""
    world, folder = make_world(), tmp_path_factory.mktemp("rollout")
    sides = {"old": (world.ids, world.x), "new": (world.ids, world.y), "sample": (world.ids[:200], world.y[:200])}
    sides |= {"more": (world.ids[200:260], world.y[200:260])}
    sides |= {"q-old": (world.query_ids, world.qx), "q-new": (world.query_ids, world.qy)}
    for name, (ids, vectors) in sides.items():
        pq.write_table(table_of(ids, vectors), folder / f"{name}.parquet")
    pq.write_table(pa.table({"query_id": world.query_ids, "doc_id": world.ids[world.relevant]}), folder / "qrels.parquet")
    return folder


START = "rollout start old.parquet sample.parquet -o {} --source-space old --target-space new --catalog runs.duckdb"
LOGGED = " --queries q-old.parquet q-new.parquet --qrels qrels.parquet"


@pytest.fixture(scope="module")
def started(folder):
    return run_json(*(START.format("ro") + LOGGED + " --json").split(), cwd=folder)


def test_a_rollout_by_its_verbs(folder, started):
    assert (started["verb"], started["rows"], started["map"]) == ("start", 200, "fitted")
    status = run_json("rollout", "status", "ro", "--json", "--no-catalog", cwd=folder)
    assert holds(status, STATUS)
    assert (status["rows"], status["native"], status["translated"], status["stage"]) == (600, 200, 400, 0)
    assert status == json.loads(json.dumps(eb.Rollout(folder / "ro").status().to_dict()))
    assert status["old_model_needed"] is True
    listed = run_json("rollout", "next", "ro", "-n", "30", "-o", "ids.parquet", "--json", "--catalog", "runs.duckdb", cwd=folder)
    assert (listed["rows"], listed["status"]["handed"]) == (30, 30)
    assert pq.read_table(folder / "ids.parquet").column_names == ["id", "order", "queries"]
    added = run_json("rollout", "add", "ro", "more.parquet", "--json", "--catalog", "runs.duckdb", cwd=folder)
    assert (added["rows"], added["known"], added["status"]["stage"], added["status"]["native"]) == (60, 0, 1, 260)
    text = run("rollout", "status", "ro", "--no-catalog", cwd=folder).output
    assert "stage 1: 260 of 600 rows native (43.3%), 340 translated; " in text
    assert "old model needed: " in text
    assert "stage 1: forecast 0." in text


def test_search_with_new_queries_alone_and_with_both(folder, started):
    new, old = (eb.open(folder / f"q-{side}.parquet", space=side) for side in ("new", "old"))
    for options, more in (({}, []), ({"old_queries": old}, ["--old-queries", "q-old.parquet"])):
        result = run_json("rollout", "search", "ro", "q-new.parquet", "-k", "4", *more, "--json", "--no-catalog", cwd=folder)
        ids, hits = eb.Rollout(folder / "ro").search(new, 4, **options)
        assert result["k"] == 4
        assert [hit["query_id"] for hit in result["hits"]] == ids.tolist()
        assert [hit["ids"] for hit in result["hits"]] == hits.ids.tolist()
        assert np.allclose([hit["scores"] for hit in result["hits"]], hits.scores)
    done = run("rollout", "search", "ro", "q-new.parquet", "-o", "hits.parquet", "--no-catalog", cwd=folder)
    assert "hits of 400 queries" in done.output
    assert pq.read_table(folder / "hits.parquet").column_names == ["query_id", "rank", "id", "score"]


def test_finish_refuses_with_the_loss_unless_it_is_accepted(folder, started):
    refused = run("rollout", "finish", "ro", "-o", "out.parquet", "--no-catalog", cwd=folder)
    assert refused.exit_code == 1
    assert "is not measured to be as good as the old model: recall@10 0." in refused.stderr
    assert not (folder / "out.parquet").exists()
    words = "rollout finish ro -o out.parquet --accept-loss --json --catalog runs.duckdb"
    done = run_json(*words.split(), cwd=folder)
    assert done["rows"] == 600
    assert eb.open(folder / "out.parquet").space.name == "new"


def test_queries_are_added_later(folder):
    run_json(*(START.format("later") + " --json").split(), cwd=folder)
    before = run_json("rollout", "status", "later", "--json", "--no-catalog", cwd=folder)
    assert (before["queries"], before["now"]["recall"]) == (0, None)
    words = "rollout queries later q-old.parquet q-new.parquet --qrels qrels.parquet --json"
    done = run_json(*words.split(), cwd=folder)
    assert (done["rows"], done["status"]["queries"]) == (400, 400)
    assert done["status"]["now"]["recall"] > 0


def test_runs_are_recorded_with_what_they_read(folder, started):
    found = eb.Catalog(folder / "runs.duckdb").sql(
        "SELECT verb, direction, list_sort(list(role)) AS roles FROM run JOIN artifact ON run.id = artifact.run "
        "WHERE parameters->>'rollout' = 'ro' GROUP BY ALL ORDER BY min(run.id), direction"
    )
    assert [(one["verb"], one["direction"], one["roles"]) for one in found] == [
        ("rollout start", "in", ["native", "qrels", "source", "source queries", "target queries"]),
        ("rollout start", "out", ["rollout"]),
        ("rollout next", "in", ["rollout"]),
        ("rollout next", "out", ["ids"]),
        ("rollout add", "in", ["native", "rollout"]),
        ("rollout add", "out", ["rollout"]),
        ("rollout finish", "in", ["rollout"]),
        ("rollout finish", "out", ["output"]),
    ]
    marks = eb.Catalog(folder / "runs.duckdb").sql(
        "SELECT verb, direction, fingerprint FROM run JOIN artifact ON run.id = artifact.run "
        "WHERE role = 'rollout' AND parameters->>'rollout' = 'ro'"
    )
    known = {(one["verb"], one["direction"]): one["fingerprint"] for one in marks}
    assert known["rollout add", "in"] == known["rollout start", "out"] != known["rollout add", "out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rollout start old.parquet sample.parquet -o x", "does not name the encoder"),
        (START.format("x") + " --qrels qrels.parquet", "--qrels needs --queries"),
        (START.format("sample.parquet"), "both input and output"),
        ("rollout add nowhere sample.parquet", "There is no rollout at 'nowhere'"),
        ("rollout status old.parquet", "There is no rollout at 'old.parquet'"),
        ("rollout next nowhere -n 3 -o ids9.parquet", "There is no rollout"),
        ("rollout search nowhere q-new.parquet", "There is no rollout"),
        ("rollout finish nowhere -o out9.parquet", "There is no rollout"),
    ],
)
def test_bad_use_is_one_sentence_and_changes_nothing(folder, words, message):
    before = snapshot(folder)
    done = run(*[word for word in words.split() if word not in ("--catalog", "runs.duckdb")], "--no-catalog", cwd=folder)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert snapshot(folder) == before


def test_anchors_are_chosen_by_logged_queries(folder):
    words = "anchors sample old.parquet -n 50 --space old --queries q-old.parquet -o chosen.parquet --no-catalog --json"
    done = run_json(*words.split(), cwd=folder)
    assert (done["ids"], done["strategy"]) == (50, "queries")
    old, queries = (eb.open(folder / f"{name}.parquet", space="old") for name in ("old", "q-old"))
    expected = old.read()[0][eb.sample_rows(old, 50, queries=queries)]
    assert pq.read_table(folder / "chosen.parquet")["id"].to_pylist() == expected.tolist()
