"""The story of a fused search on the command line: convert --keep-old, merge, info, verify, index --fuse, search."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import embridge as eb
from tests.cli.support import NEW, OLD, N, P, Q
from tests.support import planted, run, run_json, table_of, write

SAME = ["--weight", "0.3", "--fused-hubness", "both"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of both spaces (of which only the collections name them), a map, and a fused index."""
    at = tmp_path_factory.mktemp("fused")
    ids, x, y, _ = planted(4 * N, P, Q, 0.3)
    names = [f"d{i}" for i in ids]
    write(at / "old.parquet", table_of(names, x, space=OLD))
    write(at / "native.parquet", table_of(names[:N], y[:N], space=NEW))
    for name, rows in (("old", x), ("new", y)):
        write(at / f"q-{name}.parquet", table_of([f"q{i}" for i in range(10)], rows[:10] + 0.1))
        write(at / f"r-{name}.parquet", table_of([f"r{i}" for i in range(30)], rows[10:40] + 0.1))
    steps = [
        "fit old.parquet native.parquet -o map.safetensors --keep-affine --method ridge",
        "convert old.parquet map.safetensors both.parquet --keep-old",
        "merge native.parquet both.parquet -o mixed.parquet",
        "index mixed.parquet fused.faiss --factory Flat --fuse mixed.parquet --weight 0.3 --fused-hubness both "
        "--hubness r-new.parquet --old-hubness r-old.parquet --space new --old-space old",
    ]
    at.joinpath("reported.json").write_text(json.dumps([run_json(f"{step} --json", cwd=at) for step in steps]))
    return at


def hits(folder, *words):
    return run_json("search", *words, "--space", "new", "--json", "-k", "5", cwd=folder)["hits"]


def test_what_the_verbs_report(folder):
    _, converted, _, index = json.loads((folder / "reported.json").read_text())
    assert converted["keep_old"] is True
    assert (index["space"]["name"], index["old_space"]["name"]) == ("new", "old")
    assert (index["weight"], index["hubness"], index["rows"]) == (0.3, "both", 4 * N)


def test_info_shows_both_spaces(folder):
    found = run_json("info mixed.parquet --json", cwd=folder)
    assert {name: space["name"] for name, space in found["spaces"].items()} == {"vector": "new", "old_vector": "old"}
    assert "column old_vector: 6 dimensions, space old, cosine" in run("info mixed.parquet", cwd=folder).stdout
    assert run_json("info mixed.parquet --vector-column old_vector --json", cwd=folder)["space"]["name"] == "old"
    assert "spaces" not in run_json("info old.parquet --json", cwd=folder)


def test_an_index_and_its_collection_give_the_same_hits(folder):
    by_index = hits(folder, "fused.faiss", "q-new.parquet", "--old-queries", "q-old.parquet")
    options = [*SAME, "--hubness", "r-new.parquet", "--old-hubness", "r-old.parquet"]
    by_rows = hits(folder, "mixed.parquet", "q-new.parquet", "--old-queries", "q-old.parquet", *options)
    assert [h["ids"] for h in by_index] == [h["ids"] for h in by_rows]
    np.testing.assert_allclose([h["scores"] for h in by_index], [h["scores"] for h in by_rows], atol=1e-5)
    index, new, old = eb.open_index(folder / "fused.faiss"), *(pq.read_table(folder / f"q-{n}.parquet") for n in ("new", "old"))
    queries = [np.array(t["vector"].to_pylist(), np.float32) for t in (new, old)]
    assert index.search(queries[0], 5, old_queries=queries[1]).ids.tolist() == [h["ids"] for h in by_index]
    other = hits(folder, "fused.faiss", "q-new.parquet", "--blend", "q-old.parquet", "--weight", "1", "--fused-hubness", "none")
    plain = hits(folder, "mixed.parquet", "q-new.parquet", "--weight", "1")
    assert [h["ids"] for h in other] == [h["ids"] for h in plain]


def test_with_the_old_encoder_gone(folder):
    by_index = hits(folder, "fused.faiss", "q-new.parquet", "--via", "map.safetensors", "--fused-hubness", "none")
    by_rows = hits(folder, "mixed.parquet", "q-new.parquet", "--via", "map.safetensors", "--weight", "0.3")
    assert [h["ids"] for h in by_index] == [h["ids"] for h in by_rows]
    result = run("search fused.faiss q-new.parquet --space new", cwd=folder)
    assert result.exit_code == 1
    assert "--old-queries" in result.stderr


def test_hits_and_the_catalog(folder):
    run_json("search fused.faiss q-new.parquet --space new --old-queries q-old.parquet -o hits.parquet --json", cwd=folder)
    assert pq.read_table(folder / "hits.parquet").num_rows == 100
    lineage = run_json("catalog lineage fused.faiss --json", cwd=folder)
    assert {"old vectors", "old reference queries"} <= {row["role"] for row in lineage}


def test_old_vectors_from_a_file_of_their_own(folder):
    made = run_json("index both.parquet own.faiss --factory Flat --fuse old.parquet --json", cwd=folder)
    assert made["old_space"]["name"] == "old"
    found = hits(folder, "own.faiss", "q-new.parquet", "--old-queries", "q-old.parquet")
    exact = hits(folder, "both.parquet", "q-new.parquet", "--old-queries", "q-old.parquet")
    assert [h["ids"] for h in found] == [h["ids"] for h in exact]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("index both.parquet x.faiss --weight 0.3", 2, "--fuse"),
        ("index both.parquet x.faiss --old-hubness r-old.parquet", 2, "--fuse"),
        ("index native.parquet x.faiss --fuse old.parquet", 1, "are missing in"),
        ("index both.parquet x.faiss --fuse native.parquet", 1, "both of 'new'"),
        ("index both.parquet x.faiss --fuse both.parquet --old-space third", 1, "'third'"),
        ("index both.parquet x.faiss --fuse both.parquet --hubness r-new.parquet --space new", 1, "--old-hubness"),
        ("index both.parquet both.parquet --fuse old.parquet --overwrite", 1, "both input and output"),
        ("index both.parquet old.parquet --fuse old.parquet --overwrite", 1, "both input and output"),
        ("search fused.faiss q-old.parquet --space old --old-queries q-new.parquet --old-space new", 1, "expects 9-dimensional"),
        ("search fused.faiss q-new.parquet --space new --old-queries q-new.parquet --old-space new", 1, "The old side expects"),
        ("search fused.faiss q-new.parquet --space new --old-queries q-old.parquet --hubness r-new.parquet", 1, "has its own"),
        ("search mixed.parquet q-new.parquet --space new --old-queries q-old.parquet --params nprobe=2", 1, "belong to an index"),
        ("info fused.faiss", 1, "fused index"),
        ("migrate fused.faiss map.safetensors x.faiss", 1, "fused index"),
        ("convert fused.faiss map.safetensors x.parquet", 1, "fused index"),
        ("merge native.parquet fused.faiss -o x.parquet", 1, "fused index"),
        ("verify fused.faiss", 1, "fused index"),
        ("evaluate map.safetensors fused.faiss native.parquet", 1, "fused index"),
        ("plan fused.faiss native.parquet", 1, "fused index"),
    ],
)
def test_errors_leave_nothing(folder, words, status, message):
    result = run(words, cwd=folder)
    assert result.exit_code == status, result.output
    assert message in result.stderr
    assert not list(folder.glob("x.*"))
