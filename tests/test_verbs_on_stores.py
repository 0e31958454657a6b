"""Verbs that compare two collections take those of stores: figures are those of the same rows in Parquet.

A store may have another order of rows. Rows are sampled and split by hashes of ids, so figures differ by no more than the last
digits of sums, and the order of rows whose scores are equal.
"""

import numpy as np
import pyarrow.parquet as pq
import pytest

import embridge as eb
from tests.stores.support import memory_folder
from tests.support import planted, run_json, table_of, write

N, NEW = 300, 160
PLACES = {"postgresql": None, "lancedb": "lancedb://{}#a", "qdrant": "qdrant://{}#a", "chroma": "chroma://{}#rows"}
MODULES = {"postgresql": "psycopg", "lancedb": "lancedb", "qdrant": "qdrant_client", "chroma": "chromadb"}


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """A folder with old.parquet, a sample of its rows by the new model, and queries; ids ascend."""
    folder = tmp_path_factory.mktemp("sides")
    ids, x, y, _ = planted(n=N + 60, p=8, q=10, noise=0.4, seed=4)
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))
    names = np.array([f"d{i:05}" for i in ids])
    rows, queries = np.argsort(names[:N]), np.arange(N, N + 60)
    new = np.sort(np.random.default_rng(1).choice(rows, NEW, replace=False))
    for name, side, chosen, space in (
        ("old", x, rows, "old"),
        ("new", y, new, "new"),
        ("q-old", x, queries, "old"),
        ("q-new", y, queries, "new"),
    ):
        declared = eb.Space(space, side.shape[1], normalized=True)
        write(folder / f"{name}.parquet", table_of(names[chosen], side[chosen], space=declared))
    return folder


@pytest.fixture(params=PLACES)
def stored(request, sides):
    """URIs of the old rows and of the sample in a store."""
    pytest.importorskip(MODULES[request.param])
    with memory_folder() as folder:
        uris = []
        for name in ("old", "new"):
            if request.param == "postgresql":
                uri = request.getfixturevalue("new_table")()
            else:
                uri = PLACES[request.param].format(folder).replace("#a", f"#{name}").replace("#rows", f"#{name}rows")
            eb.copy(eb.open(sides / f"{name}.parquet"), uri)
            uris.append(uri)
        yield uris


def verb(folder, *words):
    return run_json(*words, "--json", "--no-catalog", cwd=folder)


def figures(values):
    """A result without durations and fingerprints, which name the inputs; rounded, since a store may have another order of rows."""
    if isinstance(values, dict):
        return {key: figures(value) for key, value in values.items() if key not in _NAMES and "seconds" not in key}
    if isinstance(values, list):
        return [figures(value) for value in values]
    return round(values, 4) if isinstance(values, float) else values


_NAMES = ("source", "target", "map", "fingerprint", "path", "output", "anchors_fingerprint", "version")


def test_fit_evaluate_and_plan_give_the_figures_of_parquet(stored, sides, tmp_path):
    expected = {}
    files, queries = (
        [str(sides / "old.parquet"), str(sides / "new.parquet")],
        [str(sides / f"q-{n}.parquet") for n in ("old", "new")],
    )
    for pair in (files, [stored[0], files[1]], [files[0], stored[1]]):
        found = {"fit": verb(tmp_path, "fit", *pair, "--method", "ridge", "-o", "map.safetensors", "--overwrite")}
        found["evaluate"] = verb(tmp_path, "evaluate", "map.safetensors", *pair, "--queries", *queries, "-k", "5")
        if pair[1] == files[1]:
            found["plan"] = verb(tmp_path, "plan", *pair, "--queries", *queries, "-k", "5", "--anchors", "80")
        for name, values in found.items():
            assert figures(values) == expected.setdefault(name, figures(values)), (pair, name)
    assert expected["evaluate"]["strategies"]
    assert expected["plan"]["strategies"]


@pytest.mark.pgvector
def test_every_verb_of_collections_takes_a_table(new_table, sides, tmp_path):
    pytest.importorskip("psycopg")
    eb.copy(eb.open(sides / "old.parquet"), uri := new_table())
    old, new, q_old, q_new = uri, *(str(sides / f"{name}.parquet") for name in ("new", "q-old", "q-new"))
    assert verb(tmp_path, "info", old)["rows"] == N
    listed = []
    for source in (old, str(sides / "old.parquet")):
        verb(tmp_path, "anchors", "sample", source, "-n", "40", "--queries", q_old, "-o", "ids.parquet", "--overwrite")
        listed.append(pq.read_table(tmp_path / "ids.parquet")["id"].to_pylist())
        assert verb(tmp_path, "anchors", "match", source, new)["shared"] == NEW
    assert listed[0] == listed[1]
    verb(tmp_path, "fit", old, new, "-o", "map.safetensors")
    verb(tmp_path, "fit", new, old, "--for", "queries", "-o", "back.safetensors")
    verb(tmp_path, "convert", old, "map.safetensors", "converted.parquet")
    assert verb(tmp_path, "verify", "converted.parquet", "--source", old, "--map", "map.safetensors")["rows"]
    evaluated = verb(tmp_path, "evaluate", "map.safetensors", old, new, "--reverse-map", "back.safetensors", "-k", "5")
    assert evaluated["sizes"]
    planned = verb(tmp_path, "plan", old, new, "-k", "5", "--anchors", "80", "--rows-to-re-encode", "next.parquet")
    assert planned["rows_to_re_encode"]["rows"] > 0
    verb(tmp_path, "index", old, "old.faiss", "--factory", "Flat")
    hits = verb(tmp_path, "search", old, q_new, "--via", "back.safetensors", "-k", "3")["hits"]
    exact = verb(tmp_path, "search", "old.faiss", q_new, "--via", "back.safetensors", "-k", "3")["hits"]
    assert [hit["ids"] for hit in hits] == [hit["ids"] for hit in exact]
