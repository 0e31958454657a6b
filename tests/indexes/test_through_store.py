"""Searches through the index of a store: hits are those of an exact search of the same rows."""

import numpy as np
import pytest

import embridge as eb
from embridge.errors import ParameterError
from embridge.types import Metric, Space
from tests.stores.support import memory_folder
from tests.support import run_json

N, QUERIES = 300, 25
RNG = np.random.default_rng(8)
W = np.linalg.qr(RNG.normal(size=(8, 8)))[0][:6]


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


X, QX = unit(RNG.normal(size=(N, 6))), unit(RNG.normal(size=(QUERIES, 6)))
Y, QY = (unit(side @ W + 0.2 * RNG.normal(size=(len(side), 8))) for side in (X, QX))
IDS = [f"d{i}" for i in RNG.permutation(N)]
PLACES = {"postgresql": None, "lancedb": "lancedb://{}#a", "qdrant": "qdrant://{}#a", "chroma": "chroma://{}#rows"}
MODULES = {"postgresql": "psycopg", "lancedb": "lancedb", "qdrant": "qdrant_client", "chroma": "chromadb"}


@pytest.fixture
def place(request):
    """``place(kind)`` gives the URI of a collection that does not exist."""
    with memory_folder() as folder:

        def new(kind):
            pytest.importorskip(MODULES[kind])
            return request.getfixturevalue("new_table")() if kind == "postgresql" else PLACES[kind].format(folder)

        yield new


def collection(vectors, name, metric=Metric.COSINE, ids=IDS):
    return eb.MemoryCollection(ids, vectors, Space(name, vectors.shape[1], metric, True))


def queries(metric=Metric.COSINE):
    ids = [f"q{i}" for i in range(QUERIES)]
    return collection(QX, "old", metric, ids), collection(QY, "new", metric, ids)


def the_map(metric=Metric.COSINE):
    return eb.fit(eb.match(collection(X, "old", metric), collection(Y, "new", metric)), "ridge", alpha=0.01)


@pytest.fixture
def both(place, tmp_path):
    """``both(kind)``: a two-vector collection in a store, and the same in Parquet."""

    def make(kind, metric=Metric.COSINE):
        uri, translation = place(kind), the_map(metric)
        for path in (uri, tmp_path / "both.parquet"):
            eb.convert(collection(X, "old", metric), translation, path, keep_old=True)
        return eb.open(uri), eb.open(tmp_path / "both.parquet")

    return make


def same(found, expected):
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("kind", PLACES)
def test_own_projected_and_blended_queries(place, kind, metric):
    rows = collection(X, "old", metric)
    eb.copy(rows, uri := place(kind))
    found, (old, new) = eb.open(uri), queries(metric)
    translation = eb.fit(eb.match(rows, collection(Y, "new", metric)), "rotation" if metric == Metric.L2 else "ridge")
    for given, options in (
        (old, {}),
        (new, {"via": translation}),
        (new, {"via": translation, "old_queries": old, "weight": 0.3}),
    ):
        same(eb.search(found, given, 7, **options)[1], eb.search(rows, given, 7, **options)[1])


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT])
@pytest.mark.parametrize("kind", ["postgresql", "lancedb"])
def test_fused_queries_over_both_vectors(both, kind, metric):
    found, exact = both(kind, metric)
    old, new = queries(metric)
    references = {"references": new, "old_references": old}
    for options in (
        {"old_queries": old},
        {"old_queries": old, "weight": 0.0},
        {"weight": 1.0},
        {"via": the_map(metric), "weight": 0.3},
        {"old_queries": old, "weight": 0.4, **references},
        {"old_queries": old, "hubness": "new", **references},
    ):
        hits, truth = eb.search(found, new, 5, **options)[1], eb.search(exact, new, 5, **options)[1]
        assert (hits.ids == truth.ids).mean() > 0.99
        same(eb.search(found, new, 5, exact=True, **options)[1], truth)
        every = hits.ids == truth.ids
        np.testing.assert_allclose(hits.scores[every], truth.scores[every], atol=1e-5)
    assert len(eb.search(found, new, N + 5, old_queries=old)[1].row(0)[0]) == N


def test_old_vectors_may_be_in_a_store_of_their_own(place, tmp_path):
    eb.copy(collection(X, "old"), old_uri := place("lancedb"))
    eb.copy(collection(Y, "new"), new_uri := place("postgresql"))
    old, new = queries()
    found = eb.search(eb.open(new_uri), new, 5, fuse=eb.open(old_uri), old_queries=old)[1]
    same(found, eb.search(collection(Y, "new"), new, 5, fuse=collection(X, "old"), old_queries=old)[1])


@pytest.mark.pgvector
def test_an_index_of_the_table_is_used_and_rows_without_a_vector_are_left_out(new_table):
    psycopg = pytest.importorskip("psycopg")
    eb.convert(collection(X, "old"), the_map(), uri := new_table(), keep_old=True)
    base, _, table = uri.partition("&table=")
    with psycopg.connect(base, options="-c lock_timeout=20s") as server:
        for column in ("vector", "old_vector"):
            server.execute(f"CREATE INDEX {table}_{column} ON {table} USING hnsw ({column} vector_cosine_ops)")
        server.execute(f"UPDATE {table} SET old_vector = NULL WHERE id = 'd5'")
    old, new = queries()
    hits = eb.search(eb.open(f"{uri}&options=-c enable_seqscan=off"), new, N, old_queries=old)[1]
    assert not (hits.ids == "d5").any()
    exact = eb.open(uri).read()
    truth = eb.search(collection(exact[1], "new", ids=exact[0]), new, 1, fuse=collection(X, "old"), old_queries=old)[1]
    assert (hits.ids[:, 0] == truth.ids[:, 0]).mean() > 0.9
    with psycopg.connect(base) as server:
        scans = server.execute("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname LIKE %s", [f"{table}_%vector"])
        assert [count for (count,) in scans] == [QUERIES, QUERIES]


def test_the_verb_takes_uris(both, tmp_path):
    found, _ = both("postgresql")
    for name, side in zip(("old", "new"), queries(), strict=True):
        eb.copy(side, tmp_path / f"{name}.parquet")
    the_map().save(tmp_path / "map.safetensors")
    words = [found.path, "new.parquet", "-k", "4", "--json", "--no-catalog"]
    options = (["--old-queries", "old.parquet", "--weight", "0.4"], ["--via", "map.safetensors"])
    for option in options:
        hits = run_json("search", *words, *option, cwd=tmp_path)["hits"]
        assert hits == run_json("search", *words, *option, "--exact", cwd=tmp_path)["hits"] or _close(hits, words, option, tmp_path)
    old_side = f"{found.path}&vector=old_vector"
    assert len(run_json("search", old_side, "old.parquet", "--json", "--no-catalog", cwd=tmp_path)["hits"]) == QUERIES


def _close(hits, words, option, folder):
    exact = run_json("search", *words, *option, "--exact", cwd=folder)["hits"]
    return all(a["ids"] == b["ids"] and np.allclose(a["scores"], b["scores"], atol=1e-5) for a, b in zip(hits, exact, strict=True))


def test_options_that_do_not_belong_together_are_refused(both):
    found, _ = both("lancedb")
    old, new = queries()
    with pytest.raises(ParameterError, match="needs queries of 'old' too"):
        eb.search(found, new)
    with pytest.raises(ParameterError, match="Search parameters"):
        eb.search(found, new, old_queries=old, parameters="nprobe=3")
    with pytest.raises(ParameterError, match="has no old vectors"):
        eb.search(found.old_side, old, hubness="both")
    with pytest.raises(ParameterError, match="both of 'old'"):
        eb.search(found.old_side, old, fuse=found.old_side, old_queries=old)


def chroma_of_l2(folder):
    chromadb = pytest.importorskip("chromadb")
    held = chromadb.PersistentClient(folder).create_collection("rows", embedding_function=None)  # Chroma's default is l2
    held.add(ids=IDS, embeddings=3 * X)
    return f"chroma://{folder}#rows"


def qdrant_of_l2(folder):
    qdrant = pytest.importorskip("qdrant_client")
    client, how = qdrant.QdrantClient(path=folder), qdrant.models
    client.create_collection("rows", how.VectorParams(size=6, distance=how.Distance.EUCLID))
    client.upsert("rows", how.Batch(ids=list(range(N)), vectors=(3 * X).tolist(), payloads=[{"doc": i} for i in IDS]))
    client.close()
    return f"qdrant://{folder}?id=doc#rows"


@pytest.mark.parametrize("make", [chroma_of_l2, qdrant_of_l2])
def test_an_index_of_another_metric_than_declared_is_not_used(make):
    """Its scores, and for rows of several lengths its order, are not those of the space."""
    with memory_folder() as folder:
        found = eb.open(make(folder), space="old:cosine")
        asked, _ = queries()
        hits = eb.search(found, asked, 5)[1]
        expected = eb.search(collection(X, "old"), asked, 5)[1]
        assert hits.ids.tolist() == expected.ids.tolist()
        np.testing.assert_allclose(hits.scores, expected.scores, atol=1e-5)
        with pytest.raises(ParameterError, match=r"ranks by l2, and its space was declared with cosine"):
            found.search(QX, 5)
        assert found.space.normalized is False


@pytest.mark.parametrize("kind", ["postgresql", "lancedb"])
def test_both_vectors_of_a_migration_in_place_are_searched(place, kind):
    eb.copy(collection(X, "old"), uri := place(kind))
    eb.migrate_in_place(uri, the_map(), into="other")
    marked = uri.replace("#", "?vector=other#") if "#" in uri else f"{uri}&vector=other"
    old, new = queries()
    both = eb.open(marked)
    assert (both.space.name, both.old_side.space.name, eb.open(uri).old_side) == ("new", "old", None)
    found, exact = (eb.search(both, new, 5, old_queries=old, exact=exact)[1] for exact in (False, True))
    assert (found.ids == exact.ids).mean() > 0.99
    translated = collection(the_map().apply(X), "new")
    assert (eb.search(translated, new, 5, fuse=collection(X, "old"), old_queries=old)[1].ids == exact.ids).mean() > 0.99
