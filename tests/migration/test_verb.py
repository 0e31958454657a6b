"""The verb `migrate` on the command line."""

import json

import faiss
import numpy as np
from click.testing import CliRunner

from embridge.catalog import Catalog
from embridge.cli.main import main
from embridge.types import Metric
from tests.migration.support import N_QUERIES, N, X, a_map, queries

# The command line


def invoke(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


def test_migrate_on_the_command_line(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMBRIDGE_CATALOG", raising=False)
    build("HNSW16")
    a_map().save("map.safetensors")
    done = invoke("migrate", "old.faiss", "map.safetensors", "new.faiss", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    reported = json.loads(done.stdout)
    kinds = {
        "path": str,
        "mode": str,
        "exact": bool,
        "verified_overlap": float,
        "queries_verified": int,
        "seconds": float,
        "reason": str,
    }
    assert {key: type(reported[key]) for key in kinds} == kinds
    assert (reported["path"], reported["mode"], reported["exact"], reported["queries_verified"]) == (
        "new.faiss",
        "rewrite",
        True,
        100,
    )
    refused = invoke(
        "migrate", "old.faiss", "map.safetensors", "none.faiss", "--min-recall", "1", "--mode", "rebuild", "--verify-queries", 400
    )
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Error: 'old.faiss' is not migrated. rebuild: 0.9")
    assert not (tmp_path / "none.faiss").exists()
    assert invoke("migrate", "old.faiss", "map.safetensors", "new.faiss").exit_code == 1
    again = invoke("migrate", "old.faiss", "map.safetensors", "new.faiss", "--overwrite", "--mode", "wrap", "--quiet")
    assert again.stdout.startswith("new.faiss: 400 vectors of 'new' by wrap, exact, ")
    runs = Catalog("embridge.duckdb").sql('SELECT verb, parameters, "rows" FROM run ORDER BY id')
    assert [(r["verb"], json.loads(r["parameters"])["mode"], r["rows"]) for r in runs] == [
        ("migrate", "rewrite", N),
        ("migrate", "wrap", N),
    ]
    edges = Catalog("embridge.duckdb").sql("SELECT DISTINCT role FROM lineage WHERE verb = 'migrate' ORDER BY role")
    assert [e["role"] for e in edges] == ["index", "map"]
    assert invoke("migrate", "old.faiss", "map.safetensors", "new.faiss", "--mode", "teleport").exit_code == 2
    assert "embridge migrate foreign.faiss map.safetensors new.faiss --space minilm" in invoke("migrate", "--help").stdout


def test_a_bare_index_on_the_command_line(index_of, tmp_path, write, table_of, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faiss.write_index(index_of("OPQ4,IVF4,PQ4x4np", np.tile(X, (3, 1))), "old.faiss")
    a_map("rotation", Metric.DOT).save("map.safetensors")
    write(tmp_path / "q.parquet", table_of(range(N_QUERIES), queries()))
    words = ["migrate", "old.faiss", "map.safetensors", "new.faiss", "--no-catalog", "--json", "--queries", "q.parquet"]
    assert invoke(*words).exit_code == 1
    reported = json.loads(invoke(*words, "--space", "old:dot", "--query-space", "new:dot").stdout)
    assert (reported["mode"], reported["exact"], reported["queries_verified"]) == ("rewrite", True, N_QUERIES)
    answered = invoke("search", "new.faiss", "q.parquet", "--space", "new:dot", "--no-catalog", "--json")
    assert len(json.loads(answered.stdout)["hits"]) == N_QUERIES
    assert invoke(*words, "--space", "old:dot", "--query-space", "third", "--overwrite").exit_code == 1
