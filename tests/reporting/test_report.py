"""The page of a plan, opened in a real browser: whole, alone, legible, and with the plan's own figures."""

import datetime
import io
import json
import re
import shutil
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
from embridge.types import Metric, Space

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
FIGURES = ("strategies", "curve", "norms", "labels")
DAY = datetime.date(2026, 3, 4)
HOSTILE = (
    "<script>window.hit = 1</script>", "<img src=x onerror='window.hit = 1'>", "]]>--><svg onload=alert(1)>", r"$\frac{$",
    "a\x00b\nc", 'style="fill: #010101"', "&lt;b&gt;", "\u6f22\u5b57\u30ab\u30ca", "long " * 60, "{{ 7 * 7 }}", 42,
)  # fmt: skip


def cosine(anchors, source="planted-source", target="planted-target"):
    """The same rows, of unit length in spaces of cosine: every strategy exists there."""
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (anchors.x, anchors.y))
    spaces = [Space(name, side.shape[1], Metric.COSINE, True) for name, side in ((source, x), (target, y))]
    return replace(anchors, x=x.astype(np.float32), y=y.astype(np.float32), source=spaces[0], target=spaces[1])


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Folder of a plan of the bundled sample, made on the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("report")
    for name in ("minilm", "mpnet"):
        pq.write_table(pq.read_table(eb.sample_path(name)).slice(0, 800), folder / f"{name}.parquet")
    pair = [str(folder / f"{name}.parquet") for name in ("minilm", "mpnet")]
    asked = [eb.sample_path(f"{name}.queries") for name in ("minilm", "mpnet")]
    options = ["--anchors", "150", "--max-queries", "250", "--encode-rate", "3", "--price", "0.002"]
    names = ["--queries", *asked, "--qrels", eb.sample_path("qrels"), "--labels", pair[0], "--report", str(folder / "plan.html")]
    done = CliRunner().invoke(main, ["plan", *pair, *options, *names, "--json", "--catalog", str(folder / "c.duckdb")])
    assert done.exit_code == 0, done.output
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="module")
def hostile():
    """A plan whose space and labels are written by an enemy."""
    rows = cosine(planted_anchors(700, 8, 12, noise=0.4), source=HOSTILE[0], target=HOSTILE[1])
    labels = {i: HOSTILE[n % (len(HOSTILE) + 1)] for n, i in enumerate(rows.ids.tolist()) if n % (len(HOSTILE) + 1) < len(HOSTILE)}
    return eb.plan(rows, anchors=300, labels=labels), labels


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium on the path")
    with playwright.sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def show(browser):
    """``page = show(path, width=..., **context)``; on leaving, nothing was complained of and nothing else was loaded."""
    opened, said, asked = [], [], []

    def show_(path, width=1200, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        opened.append((context, path.as_uri()))
        return page

    yield show_
    for context, _ in opened:
        context.close()
    assert said == []
    assert asked == [url for _, url in opened]


def written(plan, folder):
    eb.write_report(plan, folder / "page.html", date=DAY)
    return folder / "page.html"


# In the browser


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("which", ["real", "hostile"])
def test_every_figure_is_there_and_nothing_is_cut_off(which, width, real, hostile, show, tmp_path):
    page = show(real[0] / "plan.html" if which == "real" else written(hostile[0], tmp_path), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in FIGURES:
        box = page.locator(f"#figure-{name}").bounding_box()
        drawn = page.locator(f"#figure-{name} svg").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert min(drawn["width"], drawn["height"]) > 150
        assert drawn["width"] <= box["width"] or name == "labels"  # that one scrolls within its figure
    for name in FIGURES:
        spilled, covered = page.evaluate(TEXTS, f"#figure-{name} svg")
        assert spilled == []
        assert covered == []


TEXTS = """selector => {
  const svg = document.querySelector(selector), frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  const spilled = texts.filter(([, b]) =>
    b.left < frame.left - 2 || b.right > frame.right + 2 || b.top < frame.top - 2 || b.bottom > frame.bottom + 2).map(t => t[0]);
  const covered = [];
  for (let i = 0; i < texts.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [texts[i][1], texts[j][1]];
    const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (width > 1 && height > 0.35 * Math.min(a.height, b.height)) covered.push([texts[i][0], texts[j][0]]);
  }
  return [spilled, covered];
}"""


def test_the_table_has_the_figures_of_the_plan(real, show):
    folder, plan = real
    page = show(folder / "plan.html")
    rows = page.evaluate(
        "[...document.querySelectorAll('#strategies tbody tr')].map(tr => ({title: tr.querySelector('th').textContent, "
        "cells: [...tr.querySelectorAll('td')].map(td => td.textContent.trim()), "
        "values: [...tr.querySelectorAll('data')].map(d => Number(d.value))}))"
    )
    assert len(rows) == len(plan["strategies"]) == 24
    for row, s in zip(rows, plan["strategies"], strict=True):
        assert row["title"] == s["name"] + ("+hubness" if s["hubness"] else "")
        names = ("recall", "gain", "recovered", "overlap", "candidate_recall", "mrr", "rows_changed", "encodes", "seconds", "cost")
        assert row["values"] == [s[name] for name in names]
        assert row["cells"][-2:] == ["yes" if s[n] else "no" for n in ("needs_old_encoder", "needs_texts")]
        assert f"{s['recall']:.3f}" in row["cells"][0]
        low, high = s["recall_ci"]
        assert f"[{low:.3f}, {high:.3f}]" in row["cells"][0]
        low, high = s["gain_ci"]
        verdict = "\u2013" if row["title"] == "keep-old" else "yes" if low > 0 else "worse" if high < 0 else "unclear"
        assert row["cells"][2] == verdict
    cards = page.locator(".cards article").all_inner_texts()
    assert len(cards) == 3
    for card, r in zip(cards, plan["recommendations"].values(), strict=True):
        assert r["strategy"] in card
        assert r["reason"] in card
    marked = page.locator("#strategies tr.recommended th").all_text_contents()
    assert set(marked) == {r["strategy"] for r in plan["recommendations"].values()}
    labels = page.evaluate(
        "[...document.querySelectorAll('#labels-table tbody tr')].map(tr => [...tr.children].map(c => c.textContent.trim()))"
    )
    assert [row[0] for row in labels] == [row["label"] for row in plan["labels"]][:40]
    assert labels[0][2] == f"{plan['labels'][0]['values']['keep-old']:.3f}"


def test_what_an_enemy_wrote_is_text(hostile, show, tmp_path):
    plan, labels = hostile
    page = show(written(plan, tmp_path))
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit") is None
    assert page.locator("script, img, iframe, object, embed, [onload], [onerror]").count() == 0
    assert page.locator("h1").inner_text() == f"{HOSTILE[0]} \u2192 {HOSTILE[1]}"
    shown = page.locator("#labels-table tbody th").all_text_contents()
    assert len(shown) == len(set(labels.values())) == len(HOSTILE)
    assert {HOSTILE[0], HOSTILE[2], HOSTILE[3], HOSTILE[5], HOSTILE[6], HOSTILE[7], HOSTILE[9], "42"} <= set(shown)
    drawn = " ".join(page.locator("#figure-labels text").all_text_contents())
    assert all(text in drawn for text in (r"$\frac{$", 'style="fill: #010101"', "&lt;b&gt;", HOSTILE[7], "{{ 7 * 7 }}", "a b c"))


def test_it_is_drawn_and_follows_dark(real, show):
    looks = []
    for scheme in ("light", "dark"):
        page = show(real[0] / "plan.html", color_scheme=scheme)
        for name in FIGURES if scheme == "light" else FIGURES[-1:]:
            image = matplotlib.image.imread(io.BytesIO(page.locator(f"#figure-{name} svg").screenshot()), format="png")
            assert len(np.unique((image[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 30
        colour = "getComputedStyle(document.querySelector('#figure-curve text')).fill"
        looks.append((page.evaluate("getComputedStyle(document.body).backgroundColor"), page.evaluate(colour), image.mean()))
    (light, ink, bright), (dark, pale, dim) = looks
    assert light != dark
    assert ink != pale
    assert bright > 0.7 > 0.4 > dim


def test_it_prints_on_a_few_pages(real, show):
    page = show(real[0] / "plan.html")
    printed = page.pdf(prefer_css_page_size=True)
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 8


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
    assert text.count("<figcaption>") == text.count("<figure ") == 4
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


def test_no_window_is_asked_for():
    code = "import sys, embridge.reporting.figures; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("given", ["no labels", "none known", "L2", "few anchors", "an older plan"])
def test_what_a_plan_does_not_have_is_said(given, hostile, show, tmp_path):
    plan, shown = hostile[0], 3
    if given == "no labels":
        plan, said = replace(plan, labels=(), unlabelled=None), "No labels were given"
    elif given == "none known":
        plan, said = replace(plan, labels=(), unlabelled=400), "None of the 400 queries has a label"
    elif given == "L2":
        plan, said = eb.plan(planted_anchors(120, 5, 9, noise=0.4), anchors=60), "No labels were given"
        assert not any(s.hubness for s in plan.strategies)
        assert [n.name for n in plan.norms] == ["source", "target", "translation"]
    elif given == "few anchors":
        plan, said, shown = replace(plan, learning_curve=LearningCurve((9,), (0.2,), (), (), ())), "too few points", 4
    else:
        plan, said, shown = replace(plan, source=None, target=None, norms=(), labels=(), unlabelled=None), "No labels were given", 2
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
    corpus, asked = shared.without(train.hashes()), queries.sample(5000)
    qrels[int(queries.ids[1])] = [next(int(i) for i in corpus.ids if int(i) not in labels)]
    found = eb.plan(shared, queries=queries, qrels=qrels, labels=labels, anchors=200)
    relevant, _ = relevance(corpus.ids, asked.ids, qrels)
    hits = eb.top_k(asked.x, corpus.x, 10, Metric.COSINE).ids
    judged = [n for n, places in enumerate(relevant) if len(places)]
    assert found.judged == len(judged)
    wanted: dict[str, list[float]] = {}
    for place, value in zip(judged, recall_and_mrr(hits, relevant)[0], strict=True):
        names = [*(labels.get(int(corpus.ids[p])) for p in relevant[place]), labels.get(int(asked.ids[place]))]
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
