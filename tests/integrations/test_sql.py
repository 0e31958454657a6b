"""`embridge sql`: maps as functions on the command line."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

import embridge as eb
from tests.support import run, run_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("sql")
    for sample, name in {"minilm": "old", "mpnet": "new"}.items():
        shutil.copy(eb.sample_path(sample), found / f"{name}.parquet")
    result = run("fit old.parquet new.parquet -o old-new.safetensors --method bridge --quiet", cwd=found)
    assert result.exit_code == 0, result.output
    shutil.copy(found / "old-new.safetensors", found / "again.safetensors")
    return found


def test_one_map_is_translate(folder):
    query = "SELECT id, translate(vector::FLOAT[384]) AS v FROM 'old.parquet' LIMIT 5"
    found = run_json("sql", "old-new.safetensors", query, "--json", cwd=folder)
    ids, vectors = eb.open(folder / "old.parquet").read()
    assert [row["id"] for row in found] == ids[:5].tolist()
    expected = eb.load_map(folder / "old-new.safetensors").apply(vectors[:5])
    np.testing.assert_allclose([row["v"] for row in found], expected, atol=1e-6)


def test_a_file_written_by_sql_is_a_collection(folder, tmp_path):
    query = f"COPY (SELECT id, translate(vector::FLOAT[384]) AS vector FROM 'old.parquet') TO '{tmp_path}/new.parquet'"
    result = run("sql", "old-new.safetensors", query, cwd=folder)
    assert (result.exit_code, result.stdout.split()) == (0, ["Count", "-----", "3000"])
    _, vectors = eb.open(tmp_path / "new.parquet", space="mpnet").read()
    expected = eb.load_map(folder / "old-new.safetensors").apply(eb.open(folder / "old.parquet").read()[1])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert pq.read_schema(tmp_path / "new.parquet").names == ["id", "vector"]


def test_several_maps_have_the_names_of_their_files_or_those_given(folder):
    query = "SELECT bool_and({}(vector) = {}(vector)) AS equal FROM 'old.parquet'"
    maps = ("old-new.safetensors", "again.safetensors")
    assert run_json("sql", *maps, query.format("old_new", "again"), "--json", cwd=folder) == [{"equal": True}]
    named = ("--name", "one", "--name", "other", "--json")
    assert run_json("sql", *maps, query.format("one", "other"), *named, cwd=folder) == [{"equal": True}]


def test_the_catalog_can_be_joined(folder):
    query = "SELECT t.method, count(*) AS n FROM 'old.parquet', catalog.translator t GROUP BY ALL"
    assert run_json("sql", "old-new.safetensors", query, "--json", cwd=folder) == [{"method": "bridge", "n": 3000}]
    result = run("sql", "old-new.safetensors", query, "--catalog", "none.duckdb", cwd=folder)
    assert (result.exit_code, "none" in result.stderr or "catalog" in result.stderr) == (1, True)
    assert not (folder / "none.duckdb").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("SELECT 1",), 2, "Missing argument 'MAP...'"),
        (("old-new.safetensors", ""), 1, "The query is empty"),
        (("missing.safetensors", "SELECT 1"), 1, "no file"),
        (("old.parquet", "SELECT 1"), 1, "cannot be read as a map"),
        (("old-new.safetensors", "SELEC 1"), 1, "The query failed: Parser Error"),
        (("old-new.safetensors", "SELECT translate([1, 2]::FLOAT[2])"), 1, "translate(FLOAT[384]) -> FLOAT[768]"),
        (("old-new.safetensors", "SELECT 1", "--name", "a b"), 1, "name must be a letter"),
        (("old-new.safetensors", "old-new.safetensors", "SELECT 1"), 1, "same name: old_new, old_new"),
    ],
)
def test_errors_are_one_sentence(folder, words, code, message):
    result = run("sql", *words, cwd=folder)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
