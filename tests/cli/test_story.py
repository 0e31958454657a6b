"""Every verb on the bundled sample: what every verb writes and prints, and what the catalog then knows."""

import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.types import Metric
from tests.cli.support import holds
from tests.support import run, run_json, strict

# Every verb, on the bundled sample


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Every verb once, in one folder; what each printed with --json."""
    folder = tmp_path_factory.mktemp("story")
    for sample, name in (
        ("minilm", "old"),
        ("mpnet", "new"),
        ("minilm.queries", "qo"),
        ("mpnet.queries", "qn"),
        ("qrels", "qrels"),
    ):
        shutil.copy(eb.sample_path(sample), folder / f"{name}.parquet")
    steps = {
        "sample": "anchors sample old.parquet -n 100 -o ids.parquet --seed 3",
        "match": "anchors match old.parquet new.parquet",
        "fit": "fit old.parquet new.parquet -o map.safetensors --method ridge --alpha 0.1 --test-size 0.5",
        "evaluate": "evaluate map.safetensors old.parquet new.parquet --queries qo.parquet qn.parquet --qrels qrels.parquet -k 10",
        "convert": "convert old.parquet map.safetensors out.parquet",
        "index": "index out.parquet out.faiss --factory Flat",
        "old-index": "index old.parquet old.faiss --factory Flat",
        "search": "search out.faiss qn.parquet -k 5",
        "hits": "search old.faiss qn.parquet -k 5 --via map.safetensors --blend qo.parquet --weight 0.5 -o hits.parquet",
        "info": "info out.parquet",
    }
    printed = {name: run_json(f"{line} --json", cwd=folder) for name, line in steps.items()}
    return folder, printed


def test_info_reports_what_is_in_a_file(story):
    folder, printed = story
    shape = {"rows": int, "space": {"name": str, "dim": int, "metric": str, "normalized": bool}, "norm": {}, "duplicate_ids": int}
    shape["norm"] = {"mean": float, "std": float, "min": float, "max": float}
    shape |= {"bad_rows": int, "mean_cosine": float, "effective_rank": float}
    assert holds(printed["info"], shape)
    assert set(printed["info"]) == set(shape)
    assert printed["info"]["space"] == {"name": "mpnet", "dim": 768, "metric": "cosine", "normalized": True}
    lengths = np.linalg.norm(eb.open(folder / "out.parquet").read()[1].astype(np.float64), axis=1)
    assert printed["info"]["norm"] == pytest.approx(
        {"mean": lengths.mean(), "std": lengths.std(), "min": lengths.min(), "max": lengths.max()}, abs=1e-6
    )
    assert (printed["info"]["rows"], printed["info"]["duplicate_ids"], printed["info"]["bad_rows"]) == (3000, 0, 0)


def test_anchors_are_chosen_and_counted(story):
    folder, printed = story
    chosen = pq.read_table(folder / "ids.parquet").column("id").to_pylist()
    assert len(set(chosen)) == 100
    assert set(chosen) <= set(eb.open(folder / "old.parquet").read()[0].tolist())
    assert (printed["sample"]["ids"], printed["sample"]["rows"], printed["sample"]["path"]) == (100, 3000, "ids.parquet")
    assert {k: printed["match"][k] for k in ("shared", "source_rows", "target_rows")} == {
        "shared": 3000, "source_rows": 3000, "target_rows": 3000,
    }  # fmt: skip


def test_fit_reports_its_map(story):
    folder, printed = story
    found = printed["fit"]
    assert holds(found, {
        "map": str, "method": str, "parameters": dict, "source": str, "target": str, "anchors": int, "held_out": int,
        "seconds": float, "fingerprint": str,
    })  # fmt: skip
    made = eb.LinearMap.load(folder / "map.safetensors")
    assert found["fingerprint"] == made.fingerprint
    assert (found["map"], found["method"], found["source"], found["target"]) == ("map.safetensors", "ridge", "minilm", "mpnet")
    assert found["parameters"]["alpha"] == 0.1
    assert found["anchors"] + found["held_out"] == 3000
    assert (found["anchors"], found["held_out"]) == (made.record.anchors, made.record.held_out)


def test_evaluate_reports_every_strategy(story):
    folder, printed = story
    found = printed["evaluate"]
    strategy = {"name": str, "overlap": float, "overlap_ci": [float], "recall": float, "mrr": float}
    assert holds(found, {
        "k": int, "queries": int, "corpus": int, "strategies": [strategy], "mean_cosine": float, "relative_residual": float,
    })  # fmt: skip
    assert [s["name"] for s in found["strategies"]] == [
        "keep-old",
        "translate-documents",
        "project-queries-adjoint",
        "blend",
        "re-encode",
        "fuse",
        "fuse-projected",
    ]
    assert all(len(s["overlap_ci"]) == 2 and s["overlap_ci"][0] <= s["overlap"] <= s["overlap_ci"][1] for s in found["strategies"])
    opened = {name: eb.open(folder / f"{name}.parquet") for name in ("old", "new", "qo", "qn")}
    qrels = {}
    for row in pq.read_table(folder / "qrels.parquet").to_pylist():
        qrels.setdefault(row["query_id"], []).append(row["doc_id"])
    alone = eb.evaluate(
        eb.LinearMap.load(folder / "map.safetensors"),
        eb.match(opened["old"], opened["new"]),
        queries=eb.match(opened["qo"], opened["qn"]),
        qrels=qrels,
    )
    assert found == strict(json.dumps(alone.to_dict()))
    assert found["corpus"] == printed["fit"]["held_out"]
    by_name = {s["name"]: s for s in found["strategies"]}
    assert by_name["re-encode"]["overlap"] == 1
    assert by_name["translate-documents"]["overlap"] > 0.4


def test_convert_reports_what_it_wrote(story):
    folder, printed = story
    assert holds(printed["convert"], {"path": str, "rows": int, "seconds": float, "rows_per_second": float, "device": str})
    assert (printed["convert"]["path"], printed["convert"]["rows"]) == ("out.parquet", 3000)
    old, out = eb.open(folder / "old.parquet").read(), eb.open(folder / "out.parquet").read()
    assert out[0].tolist() == old[0].tolist()
    np.testing.assert_allclose(out[1], eb.LinearMap.load(folder / "map.safetensors").apply(old[1]), atol=1e-5)


def test_search_reports_hits_of_every_query(story):
    folder, printed = story
    found = printed["search"]
    assert holds(found, {"k": int, "hits": [{"query_id": str, "ids": [str], "scores": [float]}]})
    assert all(set(hit) == {"query_id", "ids", "scores"} for hit in found["hits"])
    ids, rows = eb.open(folder / "out.parquet").read()
    query_ids, queries = eb.open(folder / "qn.parquet").read()
    truth = eb.top_k(queries, rows, 5, Metric.COSINE)
    assert [hit["query_id"] for hit in found["hits"]] == query_ids.tolist()
    same = [set(hit["ids"]) == set(ids[best].tolist()) for hit, best in zip(found["hits"], truth.ids, strict=True)]
    assert np.mean(same) > 0.99  # near ties may fall either way
    np.testing.assert_allclose([hit["scores"] for hit in found["hits"]], truth.scores, atol=1e-4)


def test_hits_in_a_file_are_the_same_as_printed(story):
    folder, printed = story
    rows = pq.read_table(folder / "hits.parquet").to_pylist()
    assert list(rows[0]) == ["query_id", "rank", "id", "score"]
    assert [(r["query_id"], r["rank"], r["id"]) for r in rows] == [
        (hit["query_id"], rank, i) for hit in printed["hits"]["hits"] for rank, i in enumerate(hit["ids"], 1)
    ]
    assert [r["score"] for r in rows] == pytest.approx([s for hit in printed["hits"]["hits"] for s in hit["scores"]])
    via, opened = eb.LinearMap.load(folder / "map.safetensors"), eb.open_index(folder / "old.faiss")
    _, alone = eb.search(opened, eb.open(folder / "qn.parquet"), 5, via=via, old_queries=eb.open(folder / "qo.parquet"))
    assert [hit["ids"] for hit in printed["hits"]["hits"]] == alone.ids.tolist()


def test_the_catalog_knows_all_of_it(story):
    folder, printed = story
    verbs = [row["verb"] for row in run_json('catalog sql "SELECT verb FROM run ORDER BY id" --json', cwd=folder)]
    assert verbs == [
        "anchors sample", "anchors match", "fit", "evaluate", "convert", "index", "index", "search", "search", "info",
    ]  # fmt: skip
    best = run_json('catalog sql "SELECT source_space, fingerprint, overlap FROM best_translator" --json', cwd=folder)
    overlap = next(s["overlap"] for s in printed["evaluate"]["strategies"] if s["name"] == "translate-documents")
    assert best == [{"source_space": "minilm", "fingerprint": printed["fit"]["fingerprint"], "overlap": overlap}]
    (made,) = run_json('catalog sql "FROM translator" --json', cwd=folder)
    assert (made["anchors"], made["held_out"], made["method"]) == (printed["fit"]["anchors"], printed["fit"]["held_out"], "ridge")
    (done,) = run_json('catalog sql "FROM conversion" --json', cwd=folder)
    assert done["translator"] == printed["fit"]["fingerprint"]
    assert done["output"] == eb.open(folder / "out.parquet").fingerprint()
    (shared,) = run_json('catalog sql "FROM anchor_set" --json', cwd=folder)
    assert (shared["shared"], shared["anchors"]) == (3000, printed["fit"]["anchors"])


def test_lineage_goes_from_the_index_back_to_both_models(story):
    folder, _ = story
    found = run_json("catalog lineage out.faiss --json", cwd=folder)
    edges = {(row["verb"], os.path.basename(row["path"]), os.path.basename(row["from_path"])) for row in found}
    assert edges == {
        ("index", "out.faiss", "out.parquet"), ("convert", "out.parquet", "old.parquet"),
        ("convert", "out.parquet", "map.safetensors"), ("fit", "map.safetensors", "old.parquet"),
        ("fit", "map.safetensors", "new.parquet"),
    }  # fmt: skip
    assert [row["depth"] for row in found] == sorted(row["depth"] for row in found)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("catalog list", ["collections", "translators", "runs", "out.faiss", "ridge", "evaluate"]),
        ("catalog show map.safetensors", ["translator", "evaluation", "ridge"]),
        ("catalog show 3", ["run", "anchor_set", "fit"]),
        ("catalog lineage out.faiss", ["depth", "convert", "old.parquet"]),
        ('catalog sql "SELECT 1 AS one, NULL AS none"', ["one", "none", "1"]),
        ('catalog sql "SELECT 1 WHERE false"', ["(no rows)"]),
        ("catalog migrate", ["up to date"]),
    ],
)
def test_the_catalog_answers_in_tables(story, line, expected):
    result = run(line, cwd=story[0])
    assert result.exit_code == 0
    for word in expected:
        assert word in result.stdout
    assert len(max(result.stdout.splitlines(), key=len)) < 400


def test_text_is_for_people_and_on_stdout(story):
    """Into a separate catalog, so that the shared one does not change."""
    folder, _ = story
    for line, words in (
        ("info out.parquet", ["3,000 rows", "768 dimensions", "mpnet", "norms: mean", "bad rows: 0"]),
        ("anchors match old.parquet new.parquet", ["3,000 shared ids"]),
        (
            "evaluate map.safetensors old.parquet new.parquet --max-queries 50",
            ["50 queries over", "keep-old", "overlap@10", "mean cosine"],
        ),
        ("search out.faiss qn.parquet -k 2", [": "]),
    ):
        result = run(f"{line} --no-catalog", cwd=folder)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        for word in words:
            assert word in result.stdout
