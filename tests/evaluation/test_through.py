"""Strategies through the index of a store, against exact search of the same rows."""

import numpy as np
import pytest

import embridge as eb
from embridge.errors import ParameterError, SpaceMismatchError
from embridge.types import Metric, Space
from tests.support import run_json

N, QUERIES = 400, 40
RNG = np.random.default_rng(9)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


X = unit(RNG.normal(size=(N + QUERIES, 8)))
Y = unit(X @ RNG.normal(size=(8, 10)) + 0.5 * RNG.normal(size=(N + QUERIES, 10)))
IDS = [f"d{i}" for i in RNG.permutation(N)]
OLD, NEW = Space("old", 8, normalized=True), Space("new", 10, normalized=True)


def sides(rows, ids):
    return eb.MemoryCollection(ids, X[rows], OLD), eb.MemoryCollection(ids, Y[rows], NEW)


@pytest.fixture(scope="module")
def shared():
    return eb.match(*sides(slice(N), IDS))


@pytest.fixture(scope="module")
def queries():
    return eb.match(*sides(slice(N, None), [f"q{i}" for i in range(QUERIES)]))


@pytest.fixture
def table(new_table, shared):
    """``table(two=False)``: a table with an HNSW index that finds little, of old vectors or of both."""
    psycopg = pytest.importorskip("psycopg")

    def make(two=False):
        old = sides(slice(N), IDS)[0]
        uri = new_table()
        done = eb.convert(old, eb.fit(shared, "ridge"), uri, keep_old=True) if two else eb.copy(old, uri)
        assert done.rows == N
        base, _, name = uri.partition("&table=")
        with psycopg.connect(base) as server:
            for column in ("old_vector", "vector") if two else ("vector",):
                server.execute(f"CREATE INDEX ON {name} USING hnsw ({column} vector_cosine_ops) WITH (m = 2, ef_construction = 4)")
        return f"{uri}&options=-c enable_seqscan=off"

    return make


@pytest.mark.pgvector
def test_what_an_index_loses_is_measured_for_every_strategy(table, shared, queries):
    translation, back = eb.fit(shared, "ridge"), eb.fit(shared.reversed(), "ridge")
    qrels = {query: [IDS[n]] for n, query in enumerate(queries.ids.tolist())}
    both = eb.open(table(two=True))
    found = eb.evaluate_through(both, translation, queries, k=5, reverse_map=back, fusion=eb.Fusion(0.3), qrels=qrels)
    assert [score.name for score in found.strategies] == [
        "keep-old", "project-queries", "project-queries-adjoint", "blend", "fuse",
    ]  # fmt: skip
    assert (found.rows, found.queries, found.judged, found.k) == (N, QUERIES, QUERIES, 5)
    scores = {score.name: score for score in found.strategies}
    assert 0 < scores["keep-old"].overlap < 1  # the graph is too thin
    for score in found.strategies:
        low, high = score.overlap_ci
        assert low <= score.overlap <= high
    old = both.old_side
    hits, truth = old.search(queries.x, 5), eb.top_k(queries.x, X[:N], 5, Metric.COSINE).ids
    shares = [len({*row} & {IDS[n] for n in best}) / 5 for row, best in zip(hits.ids.tolist(), truth.tolist(), strict=True)]
    assert scores["keep-old"].overlap == pytest.approx(np.mean(shares), abs=0.02)
    exact = [IDS[n] in {IDS[m] for m in best} for n, best in enumerate(truth.tolist())]
    assert scores["keep-old"].exact_recall == pytest.approx(np.mean(exact))


@pytest.mark.lancedb
def test_a_store_without_an_index_loses_nothing_and_rows_do_not_find_themselves(tmp_path, shared):
    pytest.importorskip("lancedb")
    eb.copy(sides(slice(N), IDS)[0], uri := f"lancedb://{tmp_path}#a")
    rows = shared.at(np.arange(30))
    found = eb.evaluate_through(eb.open(uri), eb.fit(shared, "ridge"), rows, qrels={rows.ids[0]: [rows.ids[0]]})
    assert [score.overlap for score in found.strategies] == [1.0, 1.0, 1.0]
    assert found.judged == 0
    assert found.strategies[0].recall is None
    assert "through the index" in str(found)


@pytest.mark.pgvector
def test_the_verb_adds_the_index_of_a_table(table, shared, queries, tmp_path):
    for name, side in zip(("old", "new"), sides(slice(N), IDS), strict=True):
        eb.copy(side, tmp_path / f"{name}.parquet")
    for name, side in zip(("q-old", "q-new"), sides(slice(N, None), [f"q{i}" for i in range(QUERIES)]), strict=True):
        eb.copy(side, tmp_path / f"{name}.parquet")
    eb.fit(shared.at(np.arange(200)), "ridge").save(tmp_path / "map.safetensors")
    uri = table(two=True)
    words = ["map.safetensors", "old.parquet", "new.parquet", "--queries", "q-old.parquet", "q-new.parquet", "-k", "5"]
    found = run_json("evaluate", *words, "--through", uri, "--json", "--no-catalog", cwd=tmp_path)
    assert [score["name"] for score in found["through"]["strategies"]] == ["keep-old", "project-queries-adjoint", "blend", "fuse"]
    assert found["through"]["rows"] == N
    assert "through" not in run_json("evaluate", *words, "--json", "--no-catalog", cwd=tmp_path)


def test_what_has_no_index_or_another_space_is_refused(shared, queries, tmp_path):
    old, new = sides(slice(N), IDS)
    translation = eb.fit(shared, "ridge")
    with pytest.raises(ParameterError, match="has no index of its own"):
        eb.evaluate_through(old, translation, queries)
    pytest.importorskip("lancedb")
    eb.copy(new, uri := f"lancedb://{tmp_path}#a")
    with pytest.raises(SpaceMismatchError):
        eb.evaluate_through(eb.open(uri), translation, queries)
