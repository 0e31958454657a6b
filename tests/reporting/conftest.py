"""Fixtures for the tests of the report of a plan."""

import json

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.testing.translators import planted_anchors
from tests.reporting.support import HOSTILE, cosine


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Folder of a plan of the bundled sample, made on the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("report")
    for name in ("minilm", "mpnet"):
        pq.write_table(pq.read_table(eb.sample_path(name)).slice(0, 800), folder / f"{name}.parquet")
    pair = [str(folder / f"{name}.parquet") for name in ("minilm", "mpnet")]
    query_files = [eb.sample_path(f"{name}.queries") for name in ("minilm", "mpnet")]
    options = ["--anchors", "150", "--max-queries", "250", "--encode-rate", "3", "--price", "0.002"]
    names = [
        "--queries",
        *query_files,
        "--qrels",
        eb.sample_path("qrels"),
        "--labels",
        pair[0],
        "--report",
        str(folder / "plan.html"),
    ]
    done = CliRunner().invoke(main, ["plan", *pair, *options, *names, "--json", "--catalog", str(folder / "c.duckdb")])
    assert done.exit_code == 0, done.output
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="module")
def hostile():
    """A plan whose space and labels are written by an enemy."""
    rows = cosine(planted_anchors(700, 8, 12, noise=0.4), source=HOSTILE[0], target=HOSTILE[1])
    labels = {i: HOSTILE[n % (len(HOSTILE) + 1)] for n, i in enumerate(rows.ids.tolist()) if n % (len(HOSTILE) + 1) < len(HOSTILE)}
    return eb.plan(rows, anchors=300, labels=labels), labels


@pytest.fixture
def show(browser):
    """``page = show(path, width=..., **context)``; on leaving, nothing was complained of and nothing else was loaded."""
    opened, said, requested = [], [], []

    def show_(path, width=1200, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(path.as_uri())
        opened.append((context, path.as_uri()))
        return page

    yield show_
    for context, _ in opened:
        context.close()
    assert said == []
    assert requested == [url for _, url in opened]
