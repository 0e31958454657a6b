"""Files of an evaluation: the figures of every query, graded judgments, and the command line."""

import json
import shutil

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.tables.hits import write_per_query
from embridge.tables.qrels import read_graded_qrels, read_qrels

# Files


def test_per_query_figures_in_a_file_can_be_queried_in_sql(data, tmp_path):
    rows, query_pairs, qrels, good, _ = data
    found = eb.evaluate(good, rows, queries=query_pairs, qrels=qrels, k=5, labels={"q0": 1, "q1": "a"})
    path = tmp_path / "q.parquet"
    write_per_query(path, found.per_query)
    assert pq.read_schema(path).names == [
        "query_id", "label", "strategy", "overlap", "candidate_recall", "recall", "reciprocal_rank", "ndcg",
    ]  # fmt: skip
    read = duckdb.sql(f"SELECT strategy, avg(overlap), avg(recall), avg(ndcg), count(recall) FROM '{path}' GROUP BY ALL").fetchall()
    assert {name: values for name, *values in read} == {
        s.name: pytest.approx([s.overlap, s.recall, s.ndcg, 50]) for s in found.strategies
    }
    assert duckdb.sql(f"SELECT DISTINCT label FROM '{path}' ORDER BY 1").fetchall() == [("1",), ("a",), (None,)]
    write_per_query(path, eb.evaluate(good, rows, k=5).per_query, overwrite=True)
    assert duckdb.sql(f"SELECT count(*), count(label), count(ndcg) FROM '{path}'").fetchall() == [(400 * 7, 0, 0)]


def test_graded_judgments_are_read(tmp_path):
    table = {"query_id": [1, 1, 1, 2], "doc_id": ["a", "b", "a", "c"], "score": [2, 0, 3, 1]}
    pq.write_table(pa.table(table), tmp_path / "r.parquet")
    assert read_graded_qrels(tmp_path / "r.parquet") == {1: {"a": 3.0}, 2: {"c": 1.0}}
    assert read_qrels(tmp_path / "r.parquet") == {1: ["a"], 2: ["c"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, planted):
    """Files of a pair, two maps of it, and labels."""
    place = tmp_path_factory.mktemp("evaluate")
    ids, x, y, _ = planted(300, 6, 9, 0.3)
    for name, vectors, kept in (("old", x, 300), ("new", y, 250), ("third", x, 300)):
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[:kept].ravel()), vectors.shape[1])
        pq.write_table(pa.table({"id": ids[:kept], "vector": column}), place / f"{name}.parquet")
    pq.write_table(pa.table({"id": ids, "label": ids % 3, "kind": ["n"] * 300}), place / "labels.parquet")
    shared = eb.match(eb.open(place / "old.parquet", space="old"), eb.open(place / "new.parquet", space="new"))
    eb.fit(shared.at(np.arange(50)), "ridge", alpha=0.1).save(place / "one.safetensors")
    eb.fit(shared.at(np.arange(25, 75)), "rotation").save(place / "two.safetensors")
    eb.fit(shared.at(np.arange(50)).reversed(), "ridge", alpha=0.1).save(place / "back.safetensors")
    return place


def run(folder, *arguments):
    spaces = ["--source-space", "old", "--target-space", "new"]
    given = ["evaluate", "one.safetensors", "old.parquet", "new.parquet", *spaces, *arguments]
    return CliRunner().invoke(main, given)


@pytest.fixture
def files(folder, tmp_path, monkeypatch):
    for path in folder.iterdir():
        shutil.copy(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_line_reports_all_figures(files):
    options = ["-k", "3", "--labels", "labels.parquet", "--against", "two.safetensors", "--per-query", "queries.parquet"]
    done = run(files, *options, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found) == {
        "k", "queries", "corpus", "strategies", "mean_cosine", "relative_residual", "map", "judged", "confidence", "by_label",
        "sizes", "against", "differences", "weight", "reverse_map", "qrels", "own_rows",
    }  # fmt: skip
    assert found["corpus"] == 175
    assert {one["label"] for one in found["by_label"]} == {0, 1, 2}
    assert set(found["differences"][0]) == {"strategy", "metric", "difference", "difference_ci"}
    assert set(found["sizes"][0]) == {"strategy", "corpus", "overlap", "overlap_ci", "forecast"}
    assert {"candidate_recall", "recall_ci", "mrr_ci", "ndcg", "ndcg_ci"} <= set(found["strategies"][0])
    assert pq.read_metadata("queries.parquet").num_rows == 175 * len(found["strategies"])
    catalog = eb.Catalog("embridge.duckdb")
    assert catalog.sql("SELECT count(*) AS n FROM evaluation_label") == [{"n": len(found["by_label"])}]
    assert catalog.sql("SELECT count(*) AS n FROM evaluation_size") == [{"n": len(found["sizes"])}]
    assert catalog.sql("SELECT count(*) AS n, min(other) AS other FROM evaluation_difference") == [
        {"n": 5, "other": found["against"]}
    ]
    assert {row["from_path"].rpartition("/")[2] for row in catalog.lineage("queries.parquet")} == {
        "one.safetensors", "two.safetensors", "old.parquet", "new.parquet", "labels.parquet",
    }  # fmt: skip
    text = run(files, *options, "--overwrite", "--no-catalog").output
    for expected in (
        "neither it nor two.safetensors was fitted on",
        "in top 100",
        "by label",
        "this map minus the other",
        "queries.parquet",
    ):
        assert expected in text


def test_the_command_line_forecasts_for_rows_that_are_not_shared(files):
    assert run(files, "-k", "3", "--no-catalog").output.count("about") == 0  # 200 rows: three sizes
    import pyarrow.compute as pc

    old = pq.read_table("old.parquet")
    more = old.set_column(0, "id", pc.add(old["id"], 10**6))
    pq.write_table(pa.concat_tables([old, more]), "old.parquet")
    found = json.loads(run(files, "-k", "3", "--json", "--no-catalog").stdout)
    assert not [s for s in found["sizes"] if s["forecast"]]
    new = pq.read_table("new.parquet")
    pq.write_table(pa.concat_tables([new, new.set_column(0, "id", pc.add(new["id"], 10**6))]), "new.parquet")
    found = json.loads(run(files, "-k", "3", "--json", "--no-catalog").stdout)
    assert {s["corpus"] for s in found["sizes"] if s["forecast"]} == {600}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "labels.parquet", "--label-column", "nothing"], r"has no column 'nothing'. Columns: id, label, kind"),
        (["--labels", "nowhere.parquet"], "no file or folder at 'nowhere.parquet'"),
        (["--labels", "old.parquet", "--label-column", "vector"], "'vector' of 'old.parquet' must hold strings or integers"),
        (["--against", "back.safetensors"], r"the one to compare it with 'new' \(9\) -> 'old' \(6\)"),
        (["--against", "labels.parquet"], "cannot be read as"),
        (["--per-query", "old.parquet"], "exists already|both input and output"),
        (["--per-query", "old.parquet", "--overwrite"], "both input and output"),
        (["--per-query", "nowhere/q.parquet"], "nowhere"),
    ],
)
def test_the_command_line_refuses_and_leaves_nothing(files, arguments, message):
    import re

    before = sorted(p.name for p in files.iterdir())
    done = run(files, *arguments)
    assert done.exit_code == 1
    assert re.search(message, done.stderr), done.stderr
    assert sorted(p.name for p in files.iterdir()) == before
