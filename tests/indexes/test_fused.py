"""Fused indexes, and the exact fused search: the ranking is that of the formula, whatever the weight and the correction."""

import json
import os

import faiss
import numpy as np
import pyarrow as pa
import pytest

import embridge as eb
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    FaissIndexError,
    MapError,
    ParameterError,
    SpaceMismatchError,
    UnreadableFileError,
)
from embridge.stores.batch import Batch
from embridge.stores.parquet.writer import write_collection
from embridge.types import Metric, Provenance, Space
from tests.indexes.support import K, vectors

N, P, Q, N_QUERIES = 300, 6, 10, 25
OLD, NEW = Space("old", P), Space("new", Q)
X, Y, QX, QY = vectors(N, P, 1), vectors(N, Q, 2), vectors(N_QUERIES, P, 3), vectors(N_QUERIES, Q, 4)
RX, RY = vectors(40, P, 5), vectors(30, Q, 6)
IDS = np.array([f"doc/{i}" for i in range(N)], object)
ORDER = np.random.default_rng(7).permutation(N)  # the old vectors come in another order
FACTORIES = {"Flat": "", "HNSW32": "efSearch=300", "IVF8,Flat": "nprobe=8"}


def memory(rows, space, ids=None):
    return eb.MemoryCollection([f"q{i}" for i in range(len(rows))] if ids is None else ids, rows, space)


def sides(old=OLD, new=NEW):
    return memory(Y, new, IDS), memory(X[ORDER], old, IDS[ORDER])


def unit(rows):
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


def side_scores(queries, rows, references, metric, is_corrected):
    """cos(q, x) - r(x) / 2, r being the mean cosine of a row and its ten nearest reference queries; under dot <unit(q), x>."""
    x = unit(rows) if metric == Metric.COSINE else rows.astype(np.float64)
    r = np.sort(x @ unit(references).T, axis=1)[:, -10:].mean(axis=1)
    return unit(queries) @ x.T - is_corrected * r / 2


def by_formula(weight, hubness="none", old=OLD, new=NEW, old_queries=QX):
    """Positions and scores of the best rows, by definition."""
    one = side_scores(old_queries, X, RX, old.metric, hubness in ("old", "both"))
    other = side_scores(QY, Y, RY, new.metric, hubness in ("new", "both"))
    scores = (1 - weight) * one + weight * other
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return best, np.take_along_axis(scores, best, 1)


def check(hits, expected, ids=IDS):
    assert hits.ids.tolist() == ids[expected[0]].tolist()
    np.testing.assert_allclose(hits.scores, expected[1], atol=1e-5)


@pytest.fixture
def fused(tmp_path):
    """``fused(factory)``: an index with reference queries."""

    def make(factory="Flat", **options):
        new, old = sides()
        options = {"hubness": memory(RY, NEW), "old_hubness": memory(RX, OLD)} | options
        return eb.build_index(new, tmp_path / "fused.faiss", factory, fuse=old, overwrite=True, **options)

    return make


@pytest.mark.parametrize("factory", FACTORIES)
def test_an_index_ranks_by_the_formula_at_any_weight(fused, factory):
    index = fused(factory)
    before = index.fingerprint()
    for weight in (0, 0.2, 0.5, 1):
        for hubness in ("none", "old", "new", "both"):
            hits = index.search(QY, K, old_queries=QX, weight=weight, hubness=hubness, parameters=FACTORIES[factory])
            check(hits, by_formula(weight, hubness))
    assert index.fingerprint() == before


@pytest.mark.parametrize("hubness", ["none", "old", "new", "both"])
@pytest.mark.parametrize("metrics", [(Metric.COSINE, Metric.DOT), (Metric.DOT, Metric.DOT)])
def test_an_exact_search_ranks_by_the_formula(hubness, metrics):
    old, new = Space("old", P, metrics[0]), Space("new", Q, metrics[1])
    rows, old_rows = sides(old, new)
    options = {"references": memory(RY, new), "old_references": memory(RX, old), "fuse": old_rows, "weight": 0.3}
    ids, hits = eb.search(rows, memory(QY, new), K, old_queries=memory(QX, old), hubness=hubness, **options)
    assert ids.tolist() == [f"q{i}" for i in range(N_QUERIES)]
    check(hits, by_formula(0.3, hubness, old, new))


def test_both_sides_are_corrected_by_default_where_there_are_references(fused):
    check(fused().search(QY, K, old_queries=QX), by_formula(0.5, "both"))
    new, old = sides()
    options = {"references": memory(RY, NEW), "old_references": memory(RX, OLD), "fuse": old}
    check(eb.search(new, memory(QY, NEW), K, old_queries=memory(QX, OLD), **options)[1], by_formula(0.5, "both"))


def test_the_index_holds_spaces_and_defaults(fused):
    index = fused(fusion=eb.Fusion(0.3, "both"))
    opened = eb.open_index(index.path)
    assert (opened.space, opened.old_space, opened.fusion) == (NEW, OLD, eb.Fusion(0.3, "both"))
    check(opened.search(QY, K, old_queries=QX), by_formula(0.3, "both"))
    check(opened.search(QY, K, old_queries=QX, weight=0.6, hubness="none"), by_formula(0.6))
    new, old = sides()
    assert opened.lineage["source"] == new.fingerprint()
    assert opened.lineage["old"] == old.fingerprint()


def test_ids_may_be_integers(tmp_path):
    ids = np.arange(N)[ORDER] - 1  # -1 is FAISS's mark of an empty place
    new, old = memory(Y, NEW, ids), memory(X[ORDER], OLD, ids[ORDER])
    index = eb.build_index(new, tmp_path / "a.faiss", "HNSW32", fuse=old)
    expected = by_formula(0.5)
    check(index.search(QY, K, old_queries=QX, parameters="efSearch=300"), expected, ids)
    check(eb.search(new, memory(QY, NEW), K, fuse=old, old_queries=memory(QX, OLD))[1], expected, ids)
    assert index.search(QY[:1], N + 2, old_queries=QX[:1]).scores[0, -2:].tolist() == [-np.inf] * 2


def test_places_beyond_the_rows_are_empty():
    new, old = sides()
    hits = eb.search(new, memory(QY, NEW), N + 2, fuse=old, old_queries=memory(QX, OLD))[1]
    assert hits.ids[:, N:].tolist() == [[None, None]] * N_QUERIES
    assert (hits.scores[:, N:] == -np.inf).all()


def maps():
    rng = np.random.default_rng(8)
    forth = eb.LinearMap(rng.normal(size=(Q, P)), rng.normal(size=Q), OLD, NEW)
    back = eb.LinearMap(rng.normal(size=(P, Q)), rng.normal(size=P), NEW, OLD)
    kernel = eb.KernelMap(back, rng.normal(size=(5, Q)), rng.normal(size=(5, P)), 1.0)
    return {
        "adjoint": (forth, QY @ forth.coef),
        "reverse": (back, QY @ back.coef.T + back.intercept),
        "kernel": (kernel, kernel.apply(QY)),
    }


@pytest.mark.parametrize("kind", ["adjoint", "reverse", "kernel"])
def test_with_the_old_encoder_gone_the_old_side_is_projected(fused, kind):
    via, projected = maps()[kind]
    expected = by_formula(0.4, "new", old_queries=projected)
    check(fused().search(QY, K, via=via, weight=0.4, hubness="new"), expected)
    new, old = sides()
    options = {"references": memory(RY, NEW), "old_references": memory(RX, OLD), "fuse": old, "weight": 0.4, "hubness": "new"}
    check(eb.search(new, memory(QY, NEW), K, via=via, **options)[1], expected)


def test_a_side_without_queries_is_refused_unless_it_weighs_nothing(fused):
    index = fused()
    with pytest.raises(ParameterError, match=r"at weight 0.5 needs queries of 'old' too.*--via"):
        index.search(QY, K)
    check(index.search(QY, K, weight=1, hubness="none"), by_formula(1))
    with pytest.raises(ParameterError, match="Got both"):
        index.search(QY, K, old_queries=QX, via=maps()["reverse"][0])
    forth = maps()["adjoint"][0]
    bent = eb.KernelMap(forth, np.zeros((2, P)), np.zeros((2, Q)), 1.0)
    with pytest.raises(MapError, match="not affine"):
        index.search(QY, K, via=bent)


def test_wrong_queries_are_refused(fused):
    index, third = fused(), Space("third", P)
    for given, options, error in (
        (memory(QX, OLD), {"old_queries": memory(QY, NEW)}, "The index expects 10-dimensional vectors of 'new'"),
        (memory(QY, NEW), {"old_queries": memory(QX, third)}, "The old side expects 6-dimensional vectors of 'old'"),
        (memory(QY, NEW), {"via": eb.LinearMap(np.ones((P, Q)), np.ones(P), NEW, third)}, "translates 'new' -> 'third'"),
        (memory(QX, OLD), {"via": maps()["adjoint"][0]}, "The index expects 10-dimensional vectors of 'new'"),
    ):
        with pytest.raises(SpaceMismatchError, match=error):
            eb.search(index, given, K, **options)
    with pytest.raises(SpaceMismatchError, match="translates 'new' -> 'third'"):
        index.search(QY, K, via=eb.LinearMap(np.ones((P, Q)), np.ones(P), NEW, third))
    with pytest.raises(SpaceMismatchError):
        index.search(QX, K, old_queries=QY)
    with pytest.raises(ParameterError, match="as many as queries"):
        index.search(QY, K, old_queries=QX[1:])
    with pytest.raises(BadIdsError, match="'q24'"):
        eb.search(index, memory(QY, NEW), K, old_queries=memory(QX[:-1], OLD))
    with pytest.raises(BadVectorsError, match="old_queries has 1 row with NaN"):
        index.search(QY[:1], K, old_queries=np.full((1, P), np.nan, np.float32))
    with pytest.raises(BadVectorsError, match="zero vector"):
        index.search(QY[:1], K, old_queries=np.zeros((1, P), np.float32))
    for options in ({"weight": 1.5}, {"weight": float("nan")}, {"hubness": "all"}):
        with pytest.raises(ParameterError, match="must be"):
            index.search(QY, K, old_queries=QX, **options)


def test_options_of_a_fusion_are_refused_elsewhere(tmp_path, fused):
    new, old = sides()
    plain = eb.build_index(new, tmp_path / "plain.faiss", "Flat")
    with pytest.raises(ParameterError, match="not one"):
        plain.search(QY, K, hubness="none")
    with pytest.raises(ParameterError, match="belongs to a blend"):
        plain.search(QY, K, weight=0.3)
    for options in ({"hubness": "new"}, {"references": memory(RY, NEW)}, {"old_references": memory(RX, OLD)}):
        with pytest.raises(ParameterError, match="no old vectors"):
            eb.search(new, memory(QY, NEW), K, **options)
    with pytest.raises(ParameterError, match="belong to a fused index"):
        eb.build_index(new, tmp_path / "b.faiss", "Flat", old_hubness=memory(RX, OLD))
    with pytest.raises(ParameterError, match="belong to an index"):
        eb.search(new, memory(QY, NEW), K, parameters="nprobe=2")
    with pytest.raises(ParameterError, match="has its own"):
        eb.search(fused(), memory(QY, NEW), K, old_queries=memory(QX, OLD), fuse=old)
    without = fused(hubness=None, old_hubness=None)
    with pytest.raises(ParameterError, match="reference queries"):
        without.search(QY, K, old_queries=QX, hubness="new")
    check(without.search(QY, K, old_queries=QX), by_formula(0.5))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fuse": memory(X[:-2], OLD, IDS[:-2])}, BadIdsError, "2 rows of .* are missing in .*: ids 'doc/298', 'doc/299'"),
        ({"collection": memory(Y[1:], NEW, IDS[1:])}, BadIdsError, "1 row of .* missing in .*: ids 'doc/0'"),
        ({"fuse": memory(X, OLD, np.arange(N))}, BadIdsError, "cannot be matched"),
        ({"fuse": memory(Y, NEW, IDS), "hubness": None, "old_hubness": None}, ParameterError, "both of 'new'"),
        ({"fuse": memory(Y, Space("old", Q), IDS), "hubness": None, "old_hubness": None}, ParameterError, "both sides are column"),
        ({"fuse": memory(X, Space("old", P, Metric.L2), IDS)}, ParameterError, "measured by L2"),
        ({"collection": memory(Y, Space("new", Q, Metric.L2), IDS)}, ParameterError, "measured by L2"),
        ({"fuse": memory(np.vstack([X[1:], X[:1] * np.nan]), OLD, IDS)}, BadVectorsError, "'doc/299'"),
        ({"old_hubness": None}, ParameterError, "those of the old one are missing"),
        ({"hubness": None}, ParameterError, "those of the new one are missing"),
        ({"hubness": memory(RX, OLD), "old_hubness": memory(RY, NEW)}, SpaceMismatchError, "hubness bias expects"),
        ({"hubness": None, "old_hubness": None, "fusion": eb.Fusion(0.5, "new")}, ParameterError, "reference queries"),
    ],
)
def test_nothing_is_written_of_sides_that_do_not_fit(tmp_path, change, error, message):
    new, old = sides()
    options = {"collection": new, "fuse": old, "hubness": memory(RY, NEW), "old_hubness": memory(RX, OLD)} | change
    with pytest.raises(error, match=message):
        eb.build_index(options.pop("collection"), tmp_path / "a.faiss", "Flat", **options)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("factory", ["IVF4,PQ4x4np", "PQ4x4np", "OPQ4_16,IVF4,PQ4x4np"])
def test_product_quantizers_take_rows_with_biases(fused, factory):
    """16 dimensions and two biases: 4 divides only the former."""
    index = fused(factory)
    assert len(eb.open_index(index.path)) == N
    shares = []
    for hubness in ("none", "both"):
        found = index.search(QY, K, old_queries=QX, hubness=hubness, parameters="nprobe=4" if "IVF" in factory else "").ids.tolist()
        best = IDS[by_formula(0.5, hubness)[0]].tolist()
        shares.append(np.mean([len(set(a) & set(b)) for a, b in zip(found, best, strict=True)]) / K)
    assert min(shares) > 0.2  # far above chance, 0.03


def test_padding_may_be_larger_than_the_file(tmp_path):
    """FAISS limits a transform by its matrix, though padding holds none: 402 x 408 values here, and few bytes a row."""
    n, old, new = 600, Space("old", 200), Space("new", 200)
    x, y = vectors(n, 200, 1), vectors(n, 200, 2)
    references = {"hubness": memory(y[:20], new), "old_hubness": memory(x[:20], old)}
    index = eb.build_index(memory(y, new), tmp_path / "a.faiss", "PQ8x4np", fuse=memory(x, old), **references)
    assert os.path.getsize(index.path) < 402 * 408 * 4
    assert index.search(y[:20], 1, old_queries=x[:20]).ids.shape == (20, 1)


def test_a_factory_that_scales_rows_is_refused(fused):
    with pytest.raises(FaissIndexError, match="scales whole rows"):
        fused("L2norm,Flat")


def test_a_fused_index_is_no_collection_of_one_space(fused, tmp_path):
    index, via = fused(), maps()["adjoint"][0]
    with pytest.raises(FaissIndexError, match="a row holds its vectors of 'old' and 'new' together"):
        eb.open(index.path)
    for mode in ("auto", "wrap", "rewrite", "rebuild"):
        with pytest.raises(FaissIndexError, match="fused index"):
            eb.migrate(index.path, via, tmp_path / "m.faiss", mode=mode)
    with pytest.raises(FaissIndexError, match="fused index"):
        eb.verify(index.path)
    assert not (tmp_path / "m.faiss").exists()


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_rows_are_added_with_both_vectors(tmp_path, factory):
    first, rest = slice(0, 200), slice(200, None)
    index = eb.build_index(memory(Y[first], NEW, IDS[first]), tmp_path / "a.faiss", factory, fuse=memory(X[first], OLD, IDS[first]))
    more, old = memory(Y[rest], NEW, IDS[rest]), memory(X[rest][::-1], OLD, IDS[rest][::-1])
    with pytest.raises(FaissIndexError, match="no vectors of 'old'"):
        index.add(more)
    with pytest.raises(SpaceMismatchError, match="'third'"):
        index.add(more, fuse=memory(X[rest], Space("third", P), IDS[rest]))
    index.add(more, fuse=old)
    check(index.search(QY, K, old_queries=QX, parameters=FACTORIES[factory]), by_formula(0.5))
    with pytest.raises(BadIdsError, match="doc/2"):
        index.add(more, fuse=old)


def test_rows_of_a_two_vector_collection_are_added(tmp_path):
    via = maps()["adjoint"][0]
    for name, rows in (("first", slice(0, 200)), ("rest", slice(200, None))):
        eb.convert(memory(X[rows], OLD, IDS[rows]), via, tmp_path / f"{name}.parquet", keep_old=True)
    first, rest = (eb.open(tmp_path / f"{name}.parquet") for name in ("first", "rest"))
    index = eb.build_index(first, tmp_path / "a.faiss", "Flat", fuse=first.old_side)
    index.add(rest)
    rows = memory(via.apply(X), NEW, IDS)
    expected = eb.search(rows, memory(QY, NEW), K, fuse=memory(X, OLD, IDS), old_queries=memory(QX, OLD))[1]
    assert eb.open_index(index.path).search(QY, K, old_queries=QX).ids.tolist() == expected.ids.tolist()


def test_rows_cannot_be_added_under_a_bias(fused, tmp_path):
    new, old = sides()
    with pytest.raises(FaissIndexError, match="reference queries are not stored"):
        fused().add(memory(Y[:1], NEW, ["more"]), fuse=memory(X[:1], OLD, ["more"]))
    plain = eb.build_index(new, tmp_path / "plain.faiss", "Flat")
    with pytest.raises(ParameterError, match="belong to a fused index"):
        plain.add(memory(Y[:1], NEW, ["more"]), fuse=old)


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 2},
        {"weight": None},
        {"hubness": "all"},
        {"references": [0, 3]},
        {"references": None, "hubness": "new"},
        {"old_space": {"name": "old"}},
        {"old_space": None},
    ],
)
def test_a_damaged_sidecar_is_refused(fused, change, tmp_path):
    index = fused()
    path = tmp_path / "fused.faiss.json"
    sidecar = json.loads(path.read_text())
    sidecar["fusion"] |= change
    path.write_text(json.dumps(sidecar))
    with pytest.raises(UnreadableFileError, match="sidecar"):
        eb.open_index(index.path)


def test_rows_are_those_of_the_sidecar(fused, tmp_path):
    """Without the fusion's entry the width contradicts the space, so concatenated rows are never those of one space."""
    index = fused()
    assert faiss.read_index(index.path).d == P + Q + 2
    path = tmp_path / "fused.faiss.json"
    sidecar = json.loads(path.read_text())
    del sidecar["fusion"]
    path.write_text(json.dumps(sidecar))
    with pytest.raises(eb.EmbridgeError, match="state 10 dimensions, but its vectors have 18"):
        eb.open_index(index.path)


def test_plain_collections_are_searched_exactly(tmp_path):
    for metric in Metric:
        space = Space("new", Q, metric)
        rows = memory(Y, space, IDS)
        index = eb.build_index(rows, tmp_path / f"{metric}.faiss", "Flat")
        for options in ({}, {"via": eb.LinearMap(np.eye(Q), np.zeros(Q), Space("other", Q), space)}):
            queries = memory(QY, Space("other", Q) if options else space)
            expected, found = eb.search(index, queries, K, **options)[1], eb.search(rows, queries, K, **options)[1]
            assert found.ids.tolist() == expected.ids.tolist()
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("offset", [0.3, -0.3])
@pytest.mark.parametrize("metric", list(Metric))
def test_the_offset_of_translated_rows_counts_in_plain_searches_only(tmp_path, metric, offset):
    space, flags = Space("new", Q, metric), pa.array(["native", "translated"] * (N // 2))
    options = {"provenance": Provenance(offset, 10)}
    with write_collection(
        tmp_path / "m.parquet", space, pa.string(), pa.schema([("provenance", pa.string())]), **options
    ) as writer:
        writer.write(Batch(0, pa.array(IDS), Y, pa.record_batch([flags], ["provenance"])))
    merged, queries = eb.open(tmp_path / "m.parquet"), memory(QY, space)
    index = eb.build_index(merged, tmp_path / "m.faiss", "Flat")
    expected, found = eb.search(index, queries, K)[1], eb.search(merged, queries, K)[1]
    assert found.ids.tolist() == expected.ids.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
    if metric != Metric.L2:
        old = memory(X, OLD, IDS)
        fused = eb.build_index(merged, tmp_path / "f.faiss", "Flat", fuse=old)
        expected = by_formula(0.5, new=space)
        check(fused.search(QY, K, old_queries=QX), expected)
        check(eb.search(merged, queries, K, fuse=old, old_queries=memory(QX, OLD))[1], expected)
