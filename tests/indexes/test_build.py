"""Files of indexes: opening, foreign indexes, building, what is refused."""

import json

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    FaissIndexError,
    MissingFileError,
    OutputExistsError,
    UndeclaredSpaceError,
    UnreadableFileError,
)
from embridge.types import Metric, Space
from tests.indexes.support import INTS, METRICS, QUERIES, STRINGS, K, N, P, X, check


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


# Files


@pytest.mark.parametrize("ids", [INTS, STRINGS], ids=["int64", "string"])
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8"])
def test_an_index_is_the_same_when_it_is_opened_again(build, tmp_path, ids, factory):
    made = build(Space("old", P, Metric.DOT), ids, factory=factory)
    opened = eb.open_index(tmp_path / "a.faiss")
    one, other = made.search(QUERIES, K), opened.search(QUERIES, K)
    assert one.ids.tolist() == other.ids.tolist()
    np.testing.assert_array_equal(one.scores, other.scores)
    assert opened.space == Space("old", P, Metric.DOT)
    assert opened.lineage == {"source": eb.MemoryCollection(ids, X, opened.space).fingerprint()}
    assert opened.fingerprint() == made.fingerprint()
    assert len(opened) == N
    assert listing(tmp_path) == ["a.faiss", *(["a.faiss.ids.parquet"] if ids is STRINGS else []), "a.faiss.json"]


@pytest.mark.parametrize("metric", METRICS)
def test_an_index_is_a_collection_again(build, tmp_path, metric):
    build(Space("old", P, metric), STRINGS)
    ids, found = eb.open(tmp_path / "a.faiss").read()
    assert ids.tolist() == STRINGS.tolist()
    expected = X / np.linalg.norm(X, axis=1, keepdims=True) if metric == Metric.COSINE else X
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("metric", "space"), [(faiss.METRIC_L2, Metric.L2), (faiss.METRIC_INNER_PRODUCT, Metric.DOT)])
@pytest.mark.parametrize("factory", ["Flat", "HNSW32"])
def test_a_bare_index_from_elsewhere_answers_with_positions(tmp_path, metric, space, factory):
    index = faiss.index_factory(P, factory, metric)
    index.add(X)
    faiss.write_index(index, str(tmp_path / "b.faiss"))
    with pytest.raises(UndeclaredSpaceError, match=r"b\.faiss' does not name the encoder"):
        eb.open_index(tmp_path / "b.faiss")
    opened = eb.open_index(tmp_path / "b.faiss", space="old")
    assert opened.space == Space("old", P, space)
    hits = opened.search(QUERIES, K, parameters="efSearch=400" if factory != "Flat" else "")
    check(hits, np.arange(N), QUERIES, X, space)
    assert listing(tmp_path) == ["b.faiss"]


def test_a_bare_index_of_its_own_labels_answers_with_them(tmp_path):
    index = faiss.index_factory(P, "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT)
    index.add_with_ids(X, INTS)
    faiss.write_index(index, str(tmp_path / "b.faiss"))
    check(eb.open_index(tmp_path / "b.faiss", space="old:dot").search(QUERIES, K), INTS, QUERIES, X, Metric.DOT)


def test_an_l2_index_of_unit_vectors_may_serve_cosine(tmp_path):
    rows = X / np.linalg.norm(X, axis=1, keepdims=True)
    index = faiss.IndexFlatL2(P)
    index.add(rows)
    faiss.write_index(index, str(tmp_path / "b.faiss"))
    opened = eb.open_index(tmp_path / "b.faiss", space=Space("old", P, Metric.COSINE, normalized=True))
    check(opened.search(QUERIES, K), np.arange(N), QUERIES, X, Metric.COSINE)


def test_a_missing_or_damaged_index_is_reported(build, tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.faiss"):
        eb.open_index(tmp_path / "nowhere.faiss")
    build(Space("old", P))
    content = (tmp_path / "a.faiss").read_bytes()
    (tmp_path / "a.faiss").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableFileError, match=r"a\.faiss' cannot be read as a FAISS index"):
        eb.open_index(tmp_path / "a.faiss")


def test_a_k_beyond_the_index_gives_all_rows_on_the_command_line(build, tmp_path, write, table_of):
    build(Space("old", P))
    queries = write(tmp_path / "q.parquet", table_of(range(3), QUERIES[:3], space=Space("old", P)))
    words = ["search", str(tmp_path / "a.faiss"), queries, "-k", str(10**9), "--json", "--no-catalog"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert [sorted(hit["ids"]) for hit in json.loads(done.stdout)["hits"]] == [sorted(INTS.tolist())] * 3


# Building


def test_an_index_that_is_built_anew_leaves_nothing_of_the_old_one(build, tmp_path):
    build(Space("old", P), STRINGS)
    with pytest.raises(OutputExistsError, match=r"a\.faiss' exists already"):
        build(Space("old", P), INTS)
    assert eb.open_index(tmp_path / "a.faiss").search(QUERIES[:1], 1).ids[0, 0] in STRINGS
    index = build(Space("third", P, Metric.L2), INTS, overwrite=True)
    assert listing(tmp_path) == ["a.faiss", "a.faiss.json"]
    check(index.search(QUERIES, K), INTS, QUERIES, X, Metric.L2)
    assert json.loads((tmp_path / "a.faiss.json").read_text())["space"]["name"] == "third"


@pytest.mark.parametrize(
    ("ids", "rows", "factory", "error", "message"),
    [
        (INTS, X, "Bogus7", FaissIndexError, "FAISS cannot build 'Bogus7': .*could not parse index string Bogus7"),
        (INTS, X, "PQ3", FaissIndexError, "FAISS cannot build 'PQ3': .*multiple of the number of subquantizers"),
        (INTS, X, "IVF1000,Flat", FaissIndexError, r"FAISS cannot build 'IVF1000,Flat': .*training points \(400\).*\(1000\)"),
        (INTS, np.where(np.arange(N)[:, None] == 7, np.nan, X), "Flat", BadVectorsError, rf"1 row with NaN.*: ids {INTS[7]}"),
        (INTS, np.where(np.arange(N)[:, None] == 7, 0, X), "HNSW8", BadVectorsError, rf"1 row with a zero vector.*: ids {INTS[7]}"),
        (
            INTS,
            np.where(np.arange(N)[:, None] == 7, np.inf, X),
            "IVF4,Flat",
            BadVectorsError,
            rf"1 row with NaN or inf.*: ids {INTS[7]}",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_and_nothing_is_written(build, tmp_path, ids, rows, factory, error, message):
    with pytest.raises(error, match=message) as caught:
        build(Space("old", P), ids, rows, factory)
    assert "faiss/" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert listing(tmp_path) == []


def test_repeated_and_missing_ids_are_refused_and_nothing_is_written(tmp_path):
    for ids, message in (([1, 2, 1], r"holds ids more than once: 1\."), ([1, None, 2], r"1 row without an id \(null\)")):
        pq.write_table(pa.table({"id": ids, "vector": X[:3].tolist()}), tmp_path / "a.parquet")
        with pytest.raises(BadIdsError, match=message):
            eb.build_index(eb.open(tmp_path / "a.parquet", space="old"), tmp_path / "a.faiss", "Flat")
        assert listing(tmp_path) == ["a.parquet"]


def test_a_failure_leaves_an_index_that_was_there_as_it_was(build, tmp_path):
    build(Space("old", P), STRINGS)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FaissIndexError, match="cannot build 'PQ3'"):
        build(Space("old", P), INTS, factory="PQ3", overwrite=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_index_is_never_its_own_source(build, tmp_path):
    build(Space("old", P))
    with pytest.raises(OutputExistsError, match="both input and output"):
        eb.build_index(eb.open(tmp_path / "a.faiss"), tmp_path / "a.faiss", "HNSW8", overwrite=True)
    with pytest.raises(MissingFileError, match="nowhere"):
        eb.build_index(eb.open(tmp_path / "a.faiss"), tmp_path / "nowhere" / "b.faiss")


def test_the_same_seed_gives_the_same_index(build, tmp_path):
    seen = []
    for name in ("a.faiss", "b.faiss"):
        build(Space("old", P), factory="IVF8,PQ4x4np", name=name, seed=7, progress=lambda *done: seen.append(done))
    assert (tmp_path / "a.faiss").read_bytes() == (tmp_path / "b.faiss").read_bytes()
    assert seen == [(N, N), (N, N)]
