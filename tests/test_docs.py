"""The code blocks of README and of every page of docs/ run as they stand, on the bundled sample.

README and quickstart have the whole sample, the guides half of it. Commands run in forked processes (`tests.forked`) but on the
pages of `AS_INSTALLED`.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import embridge as eb

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_BLOCKS = [page for page in PAGES if BLOCK.search(page.read_text())]
AS_INSTALLED = {"README.md", "docs/guides/serve.md"}  # one sends signals to its service
STRICT = "import warnings; warnings.simplefilter('error')"
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
EXPECTED = {
    "README.md": {"old-in-new.parquet", "converted.faiss", "hits.parquet", "blended.parquet", "embridge.duckdb"},
    "docs/guides/chroma.md": {"chroma", "old-in-new.parquet"},
    "docs/guides/cluster.md": {"on-ray.parquet"},
    "docs/guides/convert.md": {"big.parquet", "with-errors.parquet"},
    "docs/guides/decoders.md": {"head.safetensors", "labels.parquet", "labels-again.parquet"},
    "docs/guides/evaluate.md": {"by-query.parquet", "plan.html", "next.parquet"},
    "docs/guides/fused-search.md": {
        "both.parquet",
        "mixed.parquet",
        "fused-hits.parquet",
        "exact-hits.parquet",
        "without-old-model.parquet",
        "corrected-hits.parquet",
        "store-hits.parquet",
        "exact-store-hits.parquet",
        "python.faiss",
    },
    "docs/guides/merge.md": {"mixed.parquet", "mixed.faiss", "mixed-hits.parquet"},
    "docs/guides/qdrant.md": {"qdrant", "back.parquet"},
    "docs/guides/rollout.md": {"rollout", "hits.parquet", "both-hits.parquet", "new.parquet", "in-store", "store-hits.parquet"},
    "docs/guides/search.md": {"projected.parquet", "blended.parquet", "projected-by-reverse-map.parquet"},
    "docs/guides/serve.md": {"queries.safetensors", "docs.faiss", "serve.log"},
    "docs/guides/sql.md": {"sql-hits.parquet", "hits.parquet"},
    "docs/guides/stores.md": {"lance", "vectors.npy", "vectors.npy.ids.parquet", "back.parquet", "projected-hits.parquet"},
    "docs/quickstart.md": {"converted.faiss", "hits.parquet"},
}


@pytest.fixture
def files(page, tmp_path, monkeypatch):
    """The file names that the documents use, in an empty folder, with this interpreter's embridge on the path."""
    names = {"minilm": "old", "mpnet": "new-sample", "minilm.queries": "queries-old", "mpnet.queries": "queries-new"}
    for sample, name in names.items():
        rows = pq.read_table(eb.sample_path(sample))
        whole = page in (ROOT / "README.md", ROOT / "docs/quickstart.md")
        pq.write_table(rows if whole else rows.slice(0, len(rows) // 2), tmp_path / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    yield tmp_path
    if (process := tmp_path / "serve.pid").exists():  # of a page that did not get to its end
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run_in_order(page, files, request, monkeypatch):
    if "postgresql://postgres@/" in page.read_text():
        monkeypatch.setenv("PGHOST", request.getfixturevalue("postgres").partition("host=")[2])
    name = str(page.relative_to(ROOT))
    python = [sys.executable, "-c"]
    if name not in AS_INSTALLED:
        folder = request.getfixturevalue("commands")
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        python = [str(folder / "python-c")]
    for language, block in BLOCK.findall(page.read_text()):
        command = [*python, f"{STRICT}\n{block}"] if language == "python" else ["bash", "-euc", block]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
    assert EXPECTED.get(name, set()) <= set(os.listdir(files))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_local_link_leads_to_a_file(page):
    for target in LINK.findall(page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
