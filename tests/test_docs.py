"""The blocks of README run as they stand, on the bundled sample."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mktestdocs
import numpy as np
import pyarrow.parquet as pq
import pytest

import embridge as eb

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The names that README uses, in an empty folder, with this interpreter's embridge on the path."""
    names = {"minilm": "old", "mpnet": "new-sample", "minilm.queries": "queries-old", "mpnet.queries": "queries-new"}
    for sample, name in names.items():
        shutil.copy(eb.sample_path(sample), tmp_path / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def blocks(language: str) -> list[str]:
    return mktestdocs.grab_code_blocks(README.read_text(), lang=language)


def test_python_story(files, capsys):
    for story in blocks("python"):
        exec(compile(story, str(README), "exec"), {})  # noqa: S102
    printed = capsys.readouterr().out
    assert "re-encode" in printed
    assert "retrained" in printed
    assert len(eb.open("old-in-new.parquet")) == 3000
    assert "prediction" in pq.read_schema("labels.parquet").names


def test_command_line_story(files):
    new = eb.open("new-sample.parquet")
    eb.LinearHead(np.eye(2, 768), [0, 0.1], new.space, classes=["noun.plant", "adj.all"]).save("head.safetensors")  # as from Python
    story = "\n".join(blocks("bash"))
    done = subprocess.run(["bash", "-euc", story], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "translate-documents" in done.stdout
    assert {"converted.faiss", "hits.parquet", "blended.parquet", "labels-again.parquet", "embridge.duckdb"} <= set(
        os.listdir(files)
    )
