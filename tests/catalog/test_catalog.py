"""The catalog: every kind of record, and queries for them."""

import json
import os
import re
import shutil
from dataclasses import replace

import pytest

import embridge as eb
from embridge.catalog import migrations
from embridge.errors import CatalogError
from embridge.records import (
    Artifact,
    Conversion,
    CorpusSize,
    CostedScore,
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
from embridge.types import Space
from tests.catalog.support import NEW, OLD, catalog, contents, evaluate_run, fit_run, record_story


@pytest.fixture
def path(tmp_path):
    return tmp_path / "embridge.duckdb"


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
        "seconds": 1.5, "device": "cpu", "calibrated": 0, "role": "", "chosen_by": "", "run": 1,
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
        "mrr_high": None, "ndcg": None, "ndcg_low": None, "ndcg_high": None, "weight": None, "correction": None,
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
    expected = {
        "candidate_recall": 0.9, "recall": 0.3, "recall_low": 0.25, "recall_high": 0.35, "mrr": 0.2, "mrr_low": 0.15,
        "mrr_high": 0.25, "ndcg": 0.22, "ndcg_low": 0.2, "ndcg_high": 0.24, "mean_cosine": 0.9,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
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
    done = Conversion(str(tmp_path / "out.parquet"), 100, 2.0, "cpu", "c-old", "f1", "c-out", 3)
    catalog(path).record(Run("convert", {}, 2.0, rows=100, device="cpu", details=(done,)))
    assert catalog(path).sql("SELECT * FROM conversion") == [
        {
            "run": 1, "source": "c-old", "translator": "f1", "output": "c-out", "path": str(tmp_path / "out.parquet"),
            "rows": 100, "seconds": 2.0, "device": "cpu", "skipped": 3,
        }
    ]  # fmt: skip


def test_remote_paths_stay_as_they_are(path):
    catalog(path).record(Run("info", {}, 0.1, (Artifact("source", "s3://bucket/a.parquet", "x", "parquet", 5, OLD),)))
    assert catalog(path).sql("SELECT path FROM collection") == [{"path": "s3://bucket/a.parquet"}]


def test_a_run_that_cannot_be_stored_leaves_nothing(path):
    made = catalog(path)
    made.record(evaluate_run())
    before = contents(path)
    with pytest.raises(CatalogError, match="cannot be written: Constraint Error: NOT NULL"):
        made.record(Run("convert", {}, 2.0, details=(Conversion("out", None, 2.0, "cpu", "a", "b", "c"),)))
    with pytest.raises(CatalogError, match="does not name its spaces"):
        made.record(Run("fit", {}, 1.0, (), (Artifact("map", "m", "f", "map"),), details=(FitRecord("linear"),)))
    assert contents(path) == before


def test_the_same_facts_are_stored_once(path):
    for _ in range(2):
        catalog(path).record(fit_run())
    counts = {name: len(rows) for name, rows in contents(path).items()}
    assert counts == {
        "migration": len(migrations.load_migrations()), "run": 2, "artifact": 6,
        "anchor_set": 2, "collection": 2, "translator": 1, "space": 2,
        "evaluation": 0, "evaluation_label": 0, "evaluation_size": 0, "evaluation_difference": 0, "plan": 0, "recommendation": 0,
        "learning_curve": 0, "conversion": 0, "decoder": 0, "decoder_evaluation": 0, "decoding": 0, "index_migration": 0,
        "merge": 0,
    }  # fmt: skip


# Queries


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A catalog that the tests only read."""
    return record_story(catalog(tmp_path_factory.mktemp("story") / "embridge.duckdb"))


@pytest.mark.parametrize("name", ["out.faiss", "12345678ab", "12345678"])
def test_lineage_goes_back_to_the_beginning(story, name):
    found = [(row["depth"], row["path"], row["verb"], row["role"], row["from_path"], row["run"]) for row in story.lineage(name)]
    full = os.path.abspath
    assert found == [
        (1, full("out.faiss"), "index", "source", full("out.parquet"), 4),
        (2, full("out.parquet"), "convert", "map", full("a.safetensors"), 3),
        (2, full("out.parquet"), "convert", "source", full("old.parquet"), 3),
        (3, full("a.safetensors"), "fit", "source", full("old.parquet"), 1),
        (3, full("a.safetensors"), "fit", "target", full("new.parquet"), 1),
    ]


def test_a_source_has_no_lineage(story):
    assert story.lineage("old.parquet") == []


def test_a_file_made_of_itself_ends_the_walk(path):
    same = Artifact("source", "a.parquet", "same-print", "parquet", 1, OLD)
    catalog(path).record(Run("convert", {}, 1.0, (same,), (same,)))
    assert {row["from_path"] for row in catalog(path).lineage("a.parquet")} == {os.path.abspath("a.parquet")}


@pytest.mark.parametrize("name", ["a.safetensors", "f1-a", "f1-and-more"])
def test_show_reports_every_fact_about_a_file(story, name):
    found = story.show(name)
    assert {table: len(rows) for table, rows in found.items()} == {"translator": 1, "evaluation": 2, "artifact": 3}
    assert found["translator"][0]["fingerprint"] == "f1-and-more"
    assert {row["run"] for row in found["artifact"]} == {1, 2, 3}


def test_show_reports_every_fact_about_a_run(story):
    found = story.show("1")
    assert {table: len(rows) for table, rows in found.items()} == {"run": 1, "artifact": 3, "anchor_set": 1, "translator": 1}
    assert set(story.show("3")) == {"run", "artifact", "conversion"}


def test_a_number_that_is_no_run_may_begin_a_fingerprint(story):
    assert set(story.show("12345678")) == {"collection", "artifact"}


@pytest.mark.parametrize("name", ["5", "nothing.parquet", "f1", "%", "' OR true --"])
def test_unknown_names_are_reported(story, name):
    for read in (story.show, story.lineage):
        with pytest.raises(CatalogError, match=rf"has no path or fingerprint that starts with {re.escape(repr(name))}"):
            read(name)


def test_list_shows_newest_first(story, path):
    shutil.copy(story.path, path)
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


def test_best_translator_is_the_best_of_each_pair_of_spaces_as_last_measured(path):
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
    found = made.sql("SELECT source_space, target_space, fingerprint, overlap, others FROM best_translator ORDER BY target_space")
    assert [tuple(row.values()) for row in found] == [("minilm", "e5", "d", 0.1, 0), ("minilm", "mpnet", "b", 0.6, 2)]


@pytest.mark.parametrize(
    "other",
    [
        {"run": {"queries": 21}},
        {"run": {"sides": ("c-old", "c-newer")}},
        {"fit": {"seed": 4}},  # other rows held out: another corpus
        {"parameters": {"max_queries": 100}},
        {"parameters": {"seed": 1}},
    ],
    ids=str,
)
def test_best_translator_compares_figures_of_one_benchmark_only(path, other):
    """`a` is better than `b` on its own benchmark, which says nothing about `c` on another."""
    made = catalog(path)
    for fingerprint, overlap in (("a", 0.6), ("b", 0.5)):
        made.record(fit_run(fingerprint, path=f"{fingerprint}.safetensors"))
        made.record(evaluate_run(fingerprint, overlap))
    fitted = fit_run("c", path="c.safetensors")
    details = (replace(fitted.details[0], **other.get("fit", {})), *fitted.details[1:])
    made.record(replace(fitted, details=details))
    made.record(replace(evaluate_run("c", 0.9, **other.get("run", {})), parameters=other.get("parameters", {})))
    found = made.sql("SELECT fingerprint, overlap, others FROM best_translator ORDER BY overlap")
    assert [tuple(row.values()) for row in found] == [("a", 0.6, 1), ("c", 0.9, 0)]
    rows = {row["fingerprint"]: row["benchmark"] for row in made.list()["translators"]}
    assert rows["a"] == rows["b"] != rows["c"]
