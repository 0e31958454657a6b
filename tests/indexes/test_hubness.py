"""The hubness bias: what it is, that every search knows it, and that it survives a migration."""

import json

import faiss
import numpy as np
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.errors import FaissIndexError, MigrationRefusedError, ParameterError, SpaceMismatchError
from embridge.indexes.hubness import augment, bias, with_bias
from embridge.maps.queries import blend
from embridge.stores.faiss.file import read_index_file
from embridge.types import Metric, Space

P, Q, N, REFERENCES, N_QUERIES, K = 8, 12, 300, 40, 30, 10
RNG = np.random.default_rng(2)
X = (RNG.normal(size=(N, P)) * RNG.uniform(0.5, 2, size=(N, 1))).astype(np.float32)
REFS, QUERIES, NEW_QUERIES, REFS_NEW = (
    RNG.normal(size=s).astype(np.float32) for s in ((REFERENCES, P), (N_QUERIES, P), (N_QUERIES, Q), (REFERENCES, Q))
)
STRINGS = np.array([f"d{i}" for i in range(N)], object)
TURN = np.linalg.qr(RNG.normal(size=(Q, Q)))[0]


def unit(a):
    return a.astype(np.float64) / np.linalg.norm(a, axis=1, keepdims=True)


def corrected(queries, rows, references, metric):
    """``2 <q, x> - mean of the 10 largest <x, reference>``, by definition."""
    x = unit(rows) if metric == Metric.COSINE else rows.astype(np.float64)
    r = np.sort(x @ unit(references).T, axis=1)[:, -10:].mean(1)
    return 2 * unit(queries) @ x.T - r


def check(hits, ids, scores):
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    assert hits.ids.tolist() == ids[order].tolist()
    np.testing.assert_allclose(hits.scores, np.take_along_axis(scores, order, 1), rtol=1e-4, atol=1e-4)


def memory(ids, rows, space):
    return eb.MemoryCollection(ids, rows, space)


def a_map(kind, metric, dim=Q):
    coef = TURN[:, :P] if kind == "rotation" else np.linspace(0.5, 1.5, P) * TURN[:, :P]
    coef = np.linalg.qr(coef[:dim])[0] if dim == P else coef
    intercept = np.zeros(dim) if kind == "rotation" else np.full(dim, 0.3)
    return eb.LinearMap(coef, intercept, Space("old", P, metric), Space("new", dim, metric))


@pytest.fixture
def build(tmp_path):
    def make(metric=Metric.COSINE, factory="Flat", ids=STRINGS, hubness=REFS):
        space = Space("old", P, metric)
        return eb.build_index(
            memory(ids, X, space), tmp_path / "old.faiss", factory, hubness=memory(range(len(hubness)), hubness, space)
        )

    return make


def test_the_bias_is_the_mean_of_the_ten_largest_similarities():
    expected = np.sort(X.astype(np.float64) @ unit(REFS).T, axis=1)[:, -10:].mean(1)
    np.testing.assert_allclose(bias(X, REFS), expected, rtol=1e-5)
    np.testing.assert_allclose(bias(X, 7 * REFS), expected, rtol=1e-5)  # references are made unit
    np.testing.assert_allclose(bias(X, REFS[:3]), (X @ unit(REFS[:3]).T).mean(1), rtol=1e-4, atol=1e-6)  # fewer than ten
    np.testing.assert_allclose(augment(QUERIES) @ with_bias(X, REFS).T, 2 * QUERIES @ X.T - expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ParameterError, match="at least one reference query"):
        bias(X, REFS[:0])


@pytest.mark.parametrize("ids", [np.arange(N) * 3, STRINGS], ids=["int64", "string"])
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT])
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_a_search_subtracts_it(build, tmp_path, ids, metric, factory):
    index = build(metric, factory, ids)
    wide = "nprobe=4" if "IVF" in factory else ""
    for opened in (index, eb.open_index(tmp_path / "old.faiss")):
        check(opened.search(QUERIES, K, parameters=wide), ids, corrected(QUERIES, X, REFS, metric))
        check(opened.search(5 * QUERIES, K, parameters=wide), ids, corrected(QUERIES, X, REFS, metric))  # the query is made unit
    assert opened.space.dim == P
    assert read_index_file(str(tmp_path / "old.faiss")).index.d == P + 1
    assert set(opened.lineage) == {"source", "hubness"}


def test_its_vectors_are_read_without_the_bias(build, tmp_path):
    build()
    collection = eb.open(tmp_path / "old.faiss")
    assert collection.space == Space("old", P)
    np.testing.assert_allclose(collection.read()[1], unit(X), atol=1e-6)


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT])
def test_searches_across_models_and_blends_subtract_it(build, metric):
    via, index = a_map("general", metric), build(metric)
    pulled = NEW_QUERIES @ via.coef
    check(index.search(NEW_QUERIES, K, via=via), STRINGS, corrected(pulled, X, REFS, metric))
    hits = index.search(NEW_QUERIES, K, via=via, old_queries=QUERIES, weight=0.3)
    check(hits, STRINGS, corrected(blend(QUERIES, pulled, 0.3), X, REFS, metric))


def test_rows_near_to_every_query_are_ranked_lower(tmp_path):
    """Planted: each query has one true row at cosine 0.65, and hubs lie near the mean of all queries at cosine 0.7."""
    rng = np.random.default_rng(0)
    center = unit(rng.normal(size=(1, 64)))
    new_queries = unit(center + unit(rng.normal(size=(400, 64))))
    rows = unit(new_queries[:200] + 1.17 * unit(rng.normal(size=(200, 64))))
    hubs = unit(center + 0.05 * unit(rng.normal(size=(5, 64))))
    space, names = Space("m", 64), np.arange(205)
    collection = memory(names, np.concatenate([rows, hubs]).astype(np.float32), space)
    references = memory(range(200), new_queries[200:].astype(np.float32), space)
    found = []
    for name, hubness in (("plain", None), ("corrected", references)):
        index = eb.build_index(collection, tmp_path / f"{name}.faiss", "Flat", hubness=hubness)
        found.append((index.search(new_queries[:200], 1).ids.ravel() == names[:200]).mean())
    assert found[1] > found[0] + 0.5


@pytest.mark.parametrize("mode", ["wrap", "rewrite", "rebuild"])
@pytest.mark.parametrize(("kind", "metric"), [("rotation", Metric.COSINE), ("rotation", Metric.DOT), ("general", Metric.DOT)])
@pytest.mark.parametrize("dim", [P, Q])
def test_a_bias_survives_a_migration(build, tmp_path, mode, kind, metric, dim):
    """Wrapped, it goes into the map in front; moved, it stays a column; a rebuild without references has none."""
    index, via = build(metric, "HNSW32"), a_map(kind, metric, dim)
    done = eb.migrate(index.path, via, tmp_path / "new.faiss", mode=mode)
    made, new_queries = eb.open_index(tmp_path / "new.faiss"), NEW_QUERIES[:, :dim]
    held = unit(X) if metric == Metric.COSINE else X
    r = np.sort(held @ unit(REFS).T, axis=1)[:, -10:].mean(1)
    scores = unit(new_queries) @ (held @ via.coef.T + via.intercept).T if mode == "rebuild" and metric == Metric.COSINE else None
    if mode == "rebuild":
        assert read_index_file(made.path).index.d == dim
        assert not done.exact
        scores = (unit(new_queries) if metric == Metric.COSINE else new_queries) @ (held @ via.coef.T + via.intercept).T
    else:
        assert done.exact
        assert read_index_file(made.path).index.d == dim + (mode == "rewrite")
        scores = 2 * unit(new_queries) @ (held @ via.coef.T + via.intercept).T - r
    check(made.search(new_queries, K, parameters="efSearch=300"), STRINGS, scores)
    if mode != "rebuild":
        with pytest.raises(FaissIndexError, match="accepts no new vectors: each row has a hubness bias"):
            made.add(memory(np.array(["e"], object), new_queries[:1], made.space))


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT])
def test_a_migration_gives_a_bias(tmp_path, metric):
    space = Space("old", P, metric)
    eb.build_index(memory(STRINGS, X, space), tmp_path / "old.faiss", "IVF4,Flat")
    via = a_map("general", metric)
    done = eb.migrate(tmp_path / "old.faiss", via, tmp_path / "new.faiss", hubness=REFS_NEW)
    assert done.mode == "rebuild"
    rows = via.apply(unit(X).astype(np.float32) if metric == Metric.COSINE else X)
    hits = eb.open_index(tmp_path / "new.faiss").search(NEW_QUERIES, K, parameters="nprobe=4")
    check(hits, STRINGS, corrected(NEW_QUERIES, rows, REFS_NEW, metric))
    for mode in ("wrap", "rewrite"):
        with pytest.raises(MigrationRefusedError, match="a hubness bias is a new dimension, which needs a rebuild"):
            eb.migrate(tmp_path / "old.faiss", via, tmp_path / "other.faiss", mode=mode, hubness=REFS_NEW)


def test_what_cannot_have_a_bias_is_refused_and_nothing_is_written(build, tmp_path):
    with pytest.raises(FaissIndexError, match="measured by L2; a hubness bias needs cosine or inner product"):
        build(Metric.L2)
    with pytest.raises(SpaceMismatchError, match="The hubness bias expects 8-dimensional vectors of 'old'"):
        eb.build_index(memory(STRINGS, X, Space("old", P)), tmp_path / "a.faiss", hubness=memory([1], REFS[:1], Space("third", P)))
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_measures_it(planted, make_space):
    ids, x, y, W = planted(300, P, Q, noise=0.3, seed=4)
    source, target = make_space("old", P), make_space("new", Q)
    translation = eb.LinearMap(W.T, np.zeros(Q), source, target)
    found = eb.evaluate(translation, eb.match(memory(ids, x, source), memory(ids, y, target)), hubness=REFS_NEW)
    names = [s.name for s in found.strategies]
    assert names == [
        "keep-old",
        "translate-documents",
        "translate-documents+hubness",
        "project-queries-adjoint",
        "project-queries-adjoint+hubness",
        "blend",
        "blend+hubness",
        "re-encode",
        "re-encode+hubness",
        "fuse",
        "fuse-projected",
    ]
    truth = unit(y) @ unit(y).T
    scores = corrected(y, translation.apply(x), REFS_NEW, Metric.COSINE)
    for s in (truth, scores):
        np.fill_diagonal(s, -np.inf)
    best, true = (np.argsort(-s, axis=1)[:, :K] for s in (scores, truth))
    expected = np.mean([len(set(a) & set(b)) / K for a, b in zip(best.tolist(), true.tolist(), strict=True)])
    assert found["translate-documents+hubness"].overlap == pytest.approx(expected, abs=2e-3)
    assert "translate-documents+hubness " in str(found)
    l2 = eb.LinearMap(W.T, np.zeros(Q), make_space("old", P, metric="l2"), make_space("new", Q, metric="l2"))
    with pytest.raises(ParameterError, match="measured by L2"):
        eb.evaluate(l2, eb.match(memory(ids, x, l2.source), memory(ids, y, l2.target)), hubness=REFS_NEW)


def test_the_command_line_knows_it(tmp_path, write, table_of, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMBRIDGE_CATALOG", raising=False)
    old, new = Space("old", P), Space("new", Q)
    write(tmp_path / "old.parquet", table_of(STRINGS, X, space=old))
    write(tmp_path / "refs.parquet", table_of(range(REFERENCES), REFS, space=old))
    write(tmp_path / "refs-new.parquet", table_of(range(REFERENCES), REFS_NEW, space=new))
    write(tmp_path / "new.parquet", table_of(STRINGS, a_map("general", Metric.COSINE).apply(X), space=new))
    write(tmp_path / "q.parquet", table_of(range(N_QUERIES), QUERIES, space=old))
    a_map("general", Metric.COSINE).save("map.safetensors")

    def run_json(line):
        done = CliRunner().invoke(main, line.split())
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    run_json("index old.parquet old.faiss --factory Flat --hubness refs.parquet --json")
    hits = run_json("search old.faiss q.parquet --json")["hits"]
    order = np.argsort(-corrected(QUERIES, X, REFS, Metric.COSINE), axis=1, kind="stable")[:, :K]
    assert [h["ids"] for h in hits] == STRINGS[order].tolist()
    moved = run_json("migrate old.faiss map.safetensors new.faiss --mode rebuild --hubness refs-new.parquet --json")
    assert (moved["mode"], moved["exact"], moved["verified_overlap"]) == ("rebuild", True, pytest.approx(1, abs=0.01))
    names = [
        s["name"]
        for s in run_json("evaluate map.safetensors old.parquet new.parquet --hubness refs-new.parquet --json")["strategies"]
    ]
    assert "blend+hubness" in names
    wrong = CliRunner().invoke(main, ["evaluate", "map.safetensors", "old.parquet", "new.parquet", "--hubness", "refs.parquet"])
    assert (wrong.exit_code, "expects 12-dimensional vectors of 'new'" in wrong.stderr) == (1, True)


def test_an_index_with_a_bias_searched_by_plain_faiss(build, tmp_path):
    """What is stored is an ordinary inner-product index of [x, r]."""
    build(ids=np.arange(N))
    plain = faiss.read_index(str(tmp_path / "old.faiss"))
    found = plain.search(augment(unit(QUERIES).astype(np.float32)), K)[1]
    order = np.argsort(-corrected(QUERIES, X, REFS, Metric.COSINE), axis=1, kind="stable")[:, :K]
    assert found.tolist() == order.tolist()
