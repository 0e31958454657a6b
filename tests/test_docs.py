"""The blocks of README run as they stand, on the bundled sample."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mktestdocs
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
    (story,) = blocks("python")
    exec(compile(story, str(README), "exec"), {})  # noqa: S102
    assert "re-encode" in capsys.readouterr().out
    assert len(eb.open("old-in-new.parquet")) == 3000


def test_command_line_story(files):
    story = "\n".join(blocks("bash"))
    done = subprocess.run(["bash", "-euc", story], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "translate-documents" in done.stdout
    assert {"converted.faiss", "hits.parquet", "blended.parquet", "embridge.duckdb"} <= set(os.listdir(files))
