"""The report of a plan as a file, what the plan records for it, and the command line."""

import datetime
import json
import re
import subprocess
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.errors import MissingDependencyError, MissingFileError, OutputExistsError
from embridge.evaluation.metrics import recall_and_mrr, relevance
from embridge.planning.descriptives import distribution, norm_distributions
from embridge.records import LearningCurve
from embridge.testing.translators import planted_anchors
from embridge.types import Metric
from tests.reporting.support import DAY, FIGURES, cosine, written

# Without one


def test_the_file_stands_alone_and_its_ids_are_its_own(real):
    text = (real[0] / "plan.html").read_text("utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert not re.search(r"<script|@import|@font-face|javascript:", text)
    assert all(found.startswith("url(#") for found in re.findall(r"url\(.", text))
    identities = re.findall(r'\sid="([^"]*)"', text)
    assert len(identities) == len(set(identities))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text) + " ".join(re.findall(r'aria-labelledby="([^"]*)"', text)).split()
    assert set(used) <= set(identities)
    for name in FIGURES:
        assert f'aria-labelledby="{name}-title {name}-desc"' in text
    assert text.count("<figcaption>") == text.count("<figure ") == len(FIGURES)
    assert all("scope=" in tag for tag in re.findall(r"<th\b[^>]*>", text))


def test_the_same_plan_and_day_give_the_same_bytes_whatever_the_users_style(hostile, tmp_path):
    before = dict(matplotlib.rcParams)
    first = written(hostile[0], tmp_path).read_bytes()
    assert dict(matplotlib.rcParams) == before
    day = DAY + datetime.timedelta(1)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red", "axes.grid": True}):
        eb.write_report(hostile[0], tmp_path / "page.html", date=day, overwrite=True)
    assert (tmp_path / "page.html").read_bytes() == first.replace(b"2026-03-04", b"2026-03-05")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_drawing_opens_no_window():
    code = "import sys, embridge.reporting.figures; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("given", ["no labels", "none known", "L2", "few anchors", "an older plan"])
def test_what_a_plan_does_not_have_is_said(given, hostile, show, tmp_path):
    plan, shown = hostile[0], 4
    if given == "no labels":
        plan, said = replace(plan, labels=(), unlabelled=None), "No labels were given"
    elif given == "none known":
        plan, said = replace(plan, labels=(), unlabelled=400), "None of the 400 queries has a label"
    elif given == "L2":
        plan, said, shown = eb.plan(planted_anchors(120, 5, 9, noise=0.4), anchors=60), "No labels were given", 3
        assert not any(s.hubness for s in plan.strategies)
        assert [n.name for n in plan.norms] == ["source", "target", "translation"]
    elif given == "few anchors":
        plan, said, shown = replace(plan, learning_curve=LearningCurve((9,), (0.2,), (), (), ())), "too few points", 5
    else:
        none = {"norms": (), "labels": (), "unlabelled": None, "curve": (), "curve_projected": (), "isotropy": ()}
        plan, said, shown = replace(plan, source=None, target=None, **none), "No labels were given", 2
    page = show(written(plan, tmp_path))
    assert said in page.locator("body").inner_text()
    assert page.locator("figure svg").count() == shown


# What the plan knows for it


def test_lengths_are_those_of_the_rows(hostile):
    rows = cosine(planted_anchors(500, 6, 9, noise=0.3))
    translation = eb.fit(rows, "ridge")
    found = {n.name: n for n in norm_distributions(rows, translation)}
    raw = np.linalg.norm(rows.x.astype(float) @ translation.coef.T.astype(float) + translation.intercept, axis=1)
    assert list(found) == ["source", "target", "translation-unscaled", "translation"]
    one = found["translation-unscaled"]
    assert (one.low, one.median, one.high) == pytest.approx(np.quantile(raw, [0.05, 0.5, 0.95]), rel=1e-5)
    assert (one.edges[0], one.edges[-1]) == pytest.approx((raw.min(), raw.max()), rel=1e-5)
    assert one.median < 1
    assert np.abs(np.array(one.counts) - np.histogram(raw, one.edges)[0]).sum() <= 4  # float32 beside float64 at the edges
    for name in ("source", "target", "translation"):
        assert len(found[name].counts) == 1
        assert found[name].median == pytest.approx(1)
    assert all(sum(n.counts) == n.rows == 500 and len(n.edges) == len(n.counts) + 1 for n in found.values())
    long = replace(rows, x=rows.x * np.float32(1e30), source=replace(rows.source, normalized=False))
    assert norm_distributions(long, translation)[0].median == pytest.approx(1e30)
    assert distribution("zero", np.zeros(3)).edges == (0, 0)
    assert json.loads(json.dumps(hostile[0].to_dict()))["norms"][0]["counts"] == [hostile[0].corpus]


def test_figures_of_labels_make_up_the_whole(real, hostile):
    for plan in (real[1], hostile[0].to_dict()):
        measured = plan["judged"] or plan["queries"]
        counts = [row["queries"] for row in plan["labels"]]
        assert sum(counts) + plan["unlabelled"] == measured
        assert counts == sorted(counts, reverse=True)
        for s in plan["strategies"]:
            title = s["name"] + ("+hubness" if s["hubness"] else "")
            values = [row["values"][title] for row in plan["labels"]]
            assert all(0 <= v <= 1 for v in values)
            if not plan["unlabelled"]:
                assert np.average(values, weights=counts) == pytest.approx(s["recall"])
    assert real[1]["unlabelled"] == 0
    assert hostile[0].unlabelled > 0


def test_a_labels_figure_is_the_mean_of_its_queries():
    rows = cosine(planted_anchors(900, 8, 12, noise=0.5))
    shared, queries = rows.at(np.arange(600)), rows.at(np.arange(600, 900))
    qrels = {int(q): [int(d) for d in shared.ids[n % 590 : n % 590 + 3]] for n, q in enumerate(queries.ids) if n % 4}
    labels = {int(i): f"kind {n % 3}" for n, i in enumerate(shared.ids) if n % 5} | {int(queries.ids[1]): "its own"}
    train = shared.sample(200)
    corpus, query_pairs = shared.without(train.hashes()), queries.sample(5000)
    qrels[int(queries.ids[1])] = [next(int(i) for i in corpus.ids if int(i) not in labels)]
    found = eb.plan(shared, queries=queries, qrels=qrels, labels=labels, anchors=200)
    relevant, _ = relevance(corpus.ids, query_pairs.ids, qrels)
    hits = eb.top_k(query_pairs.x, corpus.x, 10, Metric.COSINE).ids
    judged = [n for n, places in enumerate(relevant) if len(places)]
    assert found.judged == len(judged)
    wanted: dict[str, list[float]] = {}
    for place, value in zip(judged, recall_and_mrr(hits, relevant)[0], strict=True):
        names = [*(labels.get(int(corpus.ids[p])) for p in relevant[place]), labels.get(int(query_pairs.ids[place]))]
        wanted.setdefault(next((name for name in names if name), "-"), []).append(value)
    assert found.unlabelled == len(wanted.pop("-", []))
    assert {row.label: row.queries for row in found.labels} == {label: len(values) for label, values in wanted.items()}
    assert found.labels[-1].label == "its own"
    for row in found.labels:
        assert row.values["keep-old"] == pytest.approx(np.mean(wanted[row.label]))
    assert all(s.mrr_ci[0] <= s.mrr <= s.mrr_ci[1] for s in found.strategies)
    assert "largest of 4 labels" in str(found)


# On the command line


def test_the_catalog_knows_the_report(real):
    folder, plan = real
    assert plan["report"] == str(folder / "plan.html")
    rows = eb.Catalog(str(folder / "c.duckdb")).sql("SELECT role, kind, direction FROM artifact WHERE role IN ('report', 'labels')")
    assert {(row["role"], row["kind"], row["direction"]) for row in rows} == {
        ("report", "report", "out"),
        ("labels", "table", "in"),
    }
    assert sorted(path.name for path in folder.iterdir()) == ["c.duckdb", "minilm.parquet", "mpnet.parquet", "plan.html"]


def test_what_cannot_be_written_is_refused_before_anything_is_planned(tmp_path, monkeypatch):
    monkeypatch.setattr(eb, "plan", lambda *_, **__: pytest.fail("planned all the same"))
    pair = [eb.sample_path("minilm"), eb.sample_path("mpnet")]
    taken = tmp_path / "taken.html"
    taken.write_text("mine")

    def refused(*options):
        done = CliRunner().invoke(main, ["plan", *pair, "--no-catalog", *options])
        assert done.exit_code == 1
        return done.stderr

    assert "taken.html" in refused("--report", str(taken))
    assert "nowhere" in refused("--report", str(tmp_path / "nowhere" / "a.html"))
    assert "input" in refused("--report", pair[0], "--overwrite")
    assert "no column 'kind'" in refused("--labels", pair[0], "--label-column", "kind", "--report", str(tmp_path / "a.html"))
    for package in ("jinja2", "matplotlib"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            said = refused("--report", str(tmp_path / "a.html"))
        assert f"A report needs {package}, which is not installed. Hint: pip install 'embridge[report]'." in said
    assert taken.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [taken]


def test_the_library_refuses_the_same(hostile, tmp_path, monkeypatch):
    path = written(hostile[0], tmp_path)
    with pytest.raises(OutputExistsError):
        eb.write_report(hostile[0], path)
    with pytest.raises(MissingFileError):
        eb.write_report(hostile[0], tmp_path / "nowhere" / "a.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="embridge\\[report\\]"):
        eb.write_report(hostile[0], tmp_path / "b.html")


def test_labels_may_have_other_columns(tmp_path):
    rows = cosine(planted_anchors(80, 5, 7, noise=0.3))
    names = {}
    for side, vectors, space in (("old", rows.x, "a"), ("new", rows.y, "b")):
        names[side] = str(tmp_path / f"{side}.parquet")
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        pq.write_table(pa.table({"key": rows.ids, "vector": column, "kind": rows.ids % 3}), names[side])
        names[space] = space
    options = [
        "--source-space",
        "a",
        "--target-space",
        "b",
        "--id-column",
        "key",
        "--labels",
        names["old"],
        "--label-column",
        "kind",
    ]
    done = CliRunner().invoke(main, ["plan", names["old"], names["new"], *options, "--anchors", "40", "--json", "--no-catalog"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {row["label"] for row in found["labels"]} == {0, 1, 2}
    assert found["report"] is None
    assert (found["source"]["name"], found["target"]["dim"]) == ("a", 7)
