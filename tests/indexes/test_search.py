"""Every index agrees with brute force, in its own space and across spaces."""

import numpy as np
import pytest

import embridge as eb
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    FaissIndexError,
    MapError,
    ParameterError,
    SpaceMismatchError,
)
from embridge.maps.queries import blend, project_queries
from embridge.types import Metric, Space
from tests.indexes.support import INTS, METRICS, N_QUERIES, QUERIES, STRINGS, K, N, P, Q, X, brute_force, check, scores_of, vectors


def map_between(source, target, kind="general", seed=5):
    rng = np.random.default_rng(seed)
    coef = rng.normal(size=(target.dim, source.dim)) / np.sqrt(source.dim)
    if kind != "general":
        coef = np.linalg.qr(rng.normal(size=(target.dim, source.dim)))[0]
    if kind == "isometry":
        coef = 1.7 * coef
    return eb.LinearMap(coef, np.zeros(target.dim) if kind == "rotation" else rng.normal(size=target.dim), source, target)


# In its own space


@pytest.mark.parametrize("ids", [INTS, STRINGS], ids=["int64", "string"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("factory", "parameters"),
    [("Flat", ""), ("IVF8,Flat", "nprobe=8"), ("IVF4_HNSW8,Flat", "nprobe=4,quantizer_efSearch=64"), ("RR8,Flat", "")],
)
def test_exact_indexes_equal_brute_force(build, ids, metric, factory, parameters):
    index = build(Space("old", P, metric), ids, factory=factory)
    check(index.search(QUERIES, K, parameters=parameters), ids, QUERIES, X, metric)


@pytest.mark.parametrize("ids", [INTS, STRINGS], ids=["int64", "string"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("factory", "parameters", "recall"),
    [
        ("HNSW32", "efSearch=128", 0.97),
        ("IVF8,SQ8", "nprobe=8", 0.9),
        ("SQfp16", "", 0.97),
        ("IVF8,PQ4x4np,RFlat", "nprobe=8", 0.2),
    ],
)
def test_other_indexes_find_most_of_what_brute_force_finds(build, ids, metric, factory, parameters, recall):
    index = build(Space("old", P, metric), ids, factory=factory)
    hits = index.search(QUERIES, K, parameters=parameters)
    truth = ids[brute_force(QUERIES, X, K, metric)[0]]
    found = np.mean([len(set(a) & set(b)) / K for a, b in zip(hits.ids.tolist(), truth.tolist(), strict=True)])
    assert found >= recall
    assert (np.diff(hits.scores, axis=1) <= 1e-6).all()  # best first, whatever the metric
    place = {i: n for n, i in enumerate(ids.tolist())}
    positions = np.vectorize(place.get)(hits.ids)
    true = np.take_along_axis(scores_of(QUERIES, X, metric), positions, 1)
    np.testing.assert_allclose(hits.scores, true, atol=0.05 * np.abs(true).max())


@pytest.mark.parametrize("ids", [INTS[:5], STRINGS[:5]], ids=["int64", "string"])
@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF1,Flat"])
@pytest.mark.parametrize("metric", METRICS)
def test_k_beyond_the_rows_leaves_places_empty(build, ids, factory, metric):
    hits = build(Space("old", P, metric), ids, X[:5], factory).search(QUERIES[:3], 8)
    check(type(hits)(hits.ids[:, :5], hits.scores[:, :5]), ids, QUERIES[:3], X[:5], metric, 5)
    assert hits.ids[:, 5:].tolist() == [[None if ids.dtype == object else -1] * 3] * 3
    assert (hits.scores[:, 5:] == -np.inf).all()
    found, scores = hits.row(0)
    assert sorted(found) == sorted(ids.tolist())
    assert len(scores) == 5


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_queries_of_other_widths_of_float(build, dtype):
    index = build(Space("old", P))
    check(index.search(QUERIES.astype(dtype), K), INTS, QUERIES.astype(dtype), X, Metric.COSINE)


def test_parameters_are_those_of_the_index(build):
    """With one list of eight probed an answer comes from one list only."""
    index = build(Space("old", P, Metric.L2), factory="IVF8,Flat")
    one, all_ = index.search(QUERIES, K, parameters="nprobe=1"), index.search(QUERIES, K, parameters="nprobe=8")
    assert (one.scores[:, -1] <= all_.scores[:, -1] + 1e-6).all()
    assert one.ids.tolist() != all_.ids.tolist()


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [
        ("Flat", "nprobe=2"),
        ("Flat", "bogus=1"),
        ("HNSW8", "nprobe=2"),
        ("IVF8,Flat", "nprobe"),
        ("IVF8,Flat", "nprobe=0"),
        ("IVF8,Flat", "nprobe=-3"),
    ],
)
def test_parameters_that_the_index_does_not_take_are_reported(build, factory, parameters):
    index = build(Space("old", P), factory=factory)
    with pytest.raises(FaissIndexError, match=rf"does not accept the search parameters '{parameters}' on this index: \S") as caught:
        index.search(QUERIES, K, parameters=parameters)
    assert "faiss/" not in str(caught.value)  # no source line of another library
    assert len(str(caught.value).splitlines()) == 1


# Across spaces


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("normalized", [False, True])
def test_via_a_map_into_the_index_equals_search_of_applied_queries(build, metric, normalized):
    """New documents, queries of the old model."""
    old, new = Space("old", P), Space("new", Q, metric, normalized)
    rows = vectors(N, Q, 4)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalized else rows
    via = map_between(old, new)
    index = build(new, rows=rows)
    hits, applied = index.search(QUERIES, K, via=via), index.search(via.apply(QUERIES), K)
    assert hits.ids.tolist() == applied.ids.tolist()
    np.testing.assert_array_equal(hits.scores, applied.scores)
    expected = QUERIES.astype(np.float64) @ via.coef.T.astype(np.float64) + via.intercept
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True) if normalized else expected
    check(hits, INTS, expected, rows, metric)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_the_adjoint_under_inner_product_equals_search_over_converted_rows(build, tmp_path, factory):
    """New queries, old documents left as they are: any map, ranking and scores."""
    old, new = Space("old", P, Metric.DOT), Space("new", Q, Metric.DOT)
    via, new_queries = map_between(old, new), vectors(N_QUERIES, Q, 6)
    hits = build(old, STRINGS, factory=factory).search(new_queries, K, via=via, parameters="nprobe=4" if "IVF" in factory else "")
    translated = X.astype(np.float64) @ via.coef.T.astype(np.float64) + via.intercept
    check(hits, STRINGS, new_queries, translated, Metric.DOT)
    eb.convert(eb.MemoryCollection(STRINGS, X, old), via, tmp_path / "converted.parquet")
    converted = eb.build_index(eb.open(tmp_path / "converted.parquet"), tmp_path / "converted.faiss", "Flat")
    over = converted.search(new_queries, K)
    assert over.ids.tolist() == hits.ids.tolist()
    np.testing.assert_allclose(over.scores, hits.scores, rtol=1e-4, atol=1e-4)


def test_the_adjoint_under_cosine_is_exact_for_a_rotation(build):
    old, new = Space("old", P), Space("new", Q)
    via, new_queries = map_between(old, new, "rotation"), vectors(N_QUERIES, Q, 6)
    translated = X.astype(np.float64) @ via.coef.T
    hits = build(old).search(new_queries, K, via=via)
    assert hits.ids.tolist() == INTS[brute_force(new_queries, translated, K, Metric.COSINE)[0]].tolist()


def test_under_cosine_another_map_searches_with_the_adjoint(build):
    old, new = Space("old", P), Space("new", Q)
    via, new_queries = map_between(old, new), vectors(N_QUERIES, Q, 6)
    check(build(old).search(new_queries, K, via=via), INTS, new_queries.astype(np.float64) @ via.coef, X, Metric.COSINE)


def test_under_l2_queries_are_pulled_back_through_an_isometry(build):
    old, new = Space("old", P, Metric.L2), Space("new", Q, Metric.L2)
    via, new_queries = map_between(old, new, "isometry"), vectors(N_QUERIES, Q, 6)
    translated = X.astype(np.float64) @ via.coef.T + via.intercept
    hits = build(old).search(new_queries, K, via=via)
    assert hits.ids.tolist() == INTS[brute_force(new_queries, translated, K, Metric.L2)[0]].tolist()


def test_under_l2_no_other_map_leads_back(build):
    via = map_between(Space("old", P, Metric.L2), Space("new", Q, Metric.L2))
    with pytest.raises(MapError, match=r"isometry only, and this map is not one.*Hint: fit a map from the space of the queries"):
        build(Space("old", P, Metric.L2)).search(vectors(3, Q, 6), K, via=via)


def test_project_queries_refuses_a_space_at_neither_end():
    via = map_between(Space("old", P), Space("new", Q))
    with pytest.raises(SpaceMismatchError, match=r"'old' -> 'new', but .* the index holds 'third'"):
        project_queries(QUERIES, via, Space("third", P))


# Blended


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT])
def test_blending_follows_its_formula(build, weight, metric):
    old, new = Space("old", P, metric), Space("new", Q, metric)
    via, new_queries = map_between(old, new), vectors(N_QUERIES, Q, 6)
    hits = build(old).search(new_queries, K, via=via, old_queries=QUERIES, weight=weight)
    one, other = (
        a / np.linalg.norm(a, axis=1, keepdims=True)
        for a in (QUERIES.astype(np.float64), new_queries.astype(np.float64) @ via.coef)
    )
    check(hits, INTS, (1 - weight) * one + weight * other, X, metric)


def test_the_ends_of_a_blend_are_the_two_searches(build):
    old, new = Space("old", P), Space("new", Q)
    via, new_queries, index = map_between(old, new), vectors(N_QUERIES, Q, 6), build(old)
    for weight, alone in ((0, index.search(QUERIES, K)), (1, index.search(new_queries, K, via=via))):
        hits = index.search(new_queries, K, via=via, old_queries=QUERIES, weight=weight)
        assert hits.ids.tolist() == alone.ids.tolist()
        np.testing.assert_allclose(hits.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_the_weight_is_a_share(weight):
    with pytest.raises(ParameterError, match=r"weight must be in \[0, 1\]"):
        blend(QUERIES, QUERIES, weight)


# What is refused


@pytest.mark.parametrize(
    ("queries", "options", "error", "message"),
    [
        (QUERIES[:, :5], {}, SpaceMismatchError, r"queries expects 8-dimensional vectors\. Got 5 dimensions"),
        (QUERIES, {"via": "map"}, SpaceMismatchError, r"queries of 'new' expects 12-dimensional vectors\. Got 8"),
        (QUERIES[0], {}, BadVectorsError, r"queries must be vectors of shape \(n, dim\)\. Got shape \(8,\)"),
        (
            np.where(np.arange(P) == 2, np.nan, QUERIES[:3]),
            {},
            BadVectorsError,
            "queries has 3 rows with NaN or infinite values: ids 0, 1, 2",
        ),
        (QUERIES, {"k": 0}, ParameterError, r"k must be at least 1\. Got 0"),
        (QUERIES, {"old_queries": QUERIES}, ParameterError, r"Blending needs a map"),
        (
            vectors(N_QUERIES, Q, 1),
            {"via": "map", "old_queries": QUERIES[:5]},
            ParameterError,
            r"old_queries must be as many as queries \(40\)\. Got 5",
        ),
        (vectors(N_QUERIES, Q, 1), {"via": "map", "old_queries": QUERIES[:, :5]}, SpaceMismatchError, "old_queries expects 8"),
        (
            vectors(N_QUERIES, Q, 1),
            {"via": "map", "old_queries": QUERIES * np.nan},
            BadVectorsError,
            "old_queries has 40 rows with NaN",
        ),
        (vectors(N_QUERIES, Q, 1), {"via": "map", "old_queries": QUERIES, "weight": 2}, ParameterError, "weight"),
    ],
)
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT])
def test_queries_that_cannot_be_answered_are_refused(build, metric, queries, options, error, message):
    index = build(Space("old", P, metric))
    if "via" in options:
        options = options | {"via": map_between(Space("old", P, metric), Space("new", Q, metric))}
    with pytest.raises(error, match=message):
        index.search(queries, **options)


def test_a_query_without_direction_is_refused_under_cosine_only(build):
    zero = np.zeros((1, P), np.float32)
    with pytest.raises(BadVectorsError, match="queries has 1 row with a zero vector"):
        build(Space("old", P)).search(zero)
    check(build(Space("old", P, Metric.L2), name="b.faiss").search(zero, K), INTS, zero, X, Metric.L2)


# Collections of queries


@pytest.fixture
def sides(build):
    old, new = Space("old", P), Space("new", Q)
    new_queries = vectors(N_QUERIES, Q, 6)
    names = np.array([f"q{i}" for i in range(N_QUERIES)], object)
    order = np.random.default_rng(8).permutation(N_QUERIES)
    return {
        "index": build(old),
        "map": map_between(old, new),
        "old": eb.MemoryCollection(names[order], QUERIES[order], old),  # in another order than the new ones
        "new": eb.MemoryCollection(names, new_queries, new),
        "queries": new_queries,
        "names": names,
    }


def test_queries_in_a_collection_are_answered_by_id(sides):
    ids, hits = eb.search(sides["index"], sides["old"], K)
    order = [int(i[1:]) for i in ids]
    check(hits, INTS, QUERIES[order], X, Metric.COSINE)
    ids, hits = eb.search(sides["index"], sides["new"], K, via=sides["map"])
    assert ids.tolist() == sides["names"].tolist()
    assert hits.ids.tolist() == sides["index"].search(sides["queries"], K, via=sides["map"]).ids.tolist()


def test_old_queries_are_matched_by_id(sides):
    ids, hits = eb.search(sides["index"], sides["new"], K, via=sides["map"], old_queries=sides["old"], weight=0.4)
    alone = sides["index"].search(sides["queries"], K, via=sides["map"], old_queries=QUERIES, weight=0.4)
    assert ids.tolist() == sides["names"].tolist()
    assert hits.ids.tolist() == alone.ids.tolist()


def test_the_wrong_spaces_are_named(sides):
    index, via = sides["index"], sides["map"]
    third = eb.MemoryCollection(sides["names"], QUERIES, Space("third", P))
    with pytest.raises(
        SpaceMismatchError, match=r"The index expects 8-dimensional vectors of 'old', but .* 12-dimensional vectors of 'new'"
    ):
        eb.search(index, sides["new"])
    with pytest.raises(SpaceMismatchError, match=r"of 'old', but .* holds 8-dimensional vectors of 'third'"):
        eb.search(index, third)  # the width alone would fit
    with pytest.raises(
        SpaceMismatchError, match=r"translates 'old' -> 'new', but the queries are of 'third' and the index holds 'old'"
    ):
        eb.search(index, third, via=via)
    with pytest.raises(SpaceMismatchError, match=r"queries are of 'old' and the index holds 'old'"):
        eb.search(index, sides["old"], via=via)
    with pytest.raises(SpaceMismatchError, match=r"Blending expects 8-dimensional vectors of 'old', but .* of 'third'"):
        eb.search(index, sides["new"], via=via, old_queries=third)


def test_every_query_needs_its_old_counterpart(sides):
    fewer = eb.MemoryCollection(sides["names"][:38], QUERIES[:38], Space("old", P))
    with pytest.raises(BadIdsError, match="names unknown ids: 'q38', 'q39'"):
        eb.search(sides["index"], sides["new"], via=sides["map"], old_queries=fewer)
