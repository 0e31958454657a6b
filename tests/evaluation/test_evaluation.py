"""Strategies side by side: each against its definition in NumPy, and what must hold of them."""

import numpy as np
import pytest

import embridge as eb
from embridge.errors import ParameterError, SpaceMismatchError, TooFewAnchorsError
from embridge.evaluation import bootstrap_interval
from embridge.evaluation.metrics import labels_of_queries
from embridge.records import Evaluation, StrategyScore
from embridge.types import Metric, Space

N, K = 120, 5


def anchors_of(ids, x, y, source, target):
    return eb.match(eb.MemoryCollection(ids, x, source), eb.MemoryCollection(ids, y, target))


@pytest.fixture
def pair(planted):
    """``pair(p, q, metric, ...)``: anchors of two noisy views of the same rows, and a map that was not fitted on them."""

    def make(p=6, q=9, metric=Metric.COSINE, n=N, noise=0.6, seed=0, kind="general"):
        ids, x, y, W = planted(n, p, q, noise, seed)
        source, target = Space("old", p, metric), Space("new", q, metric)
        coef = W.T if kind == "general" else 1.3 * np.linalg.qr(W.T)[0]
        return anchors_of(ids, x, y, source, target), eb.LinearMap(coef, np.full(q, 0.1), source, target)

    return make


def nearest(queries, rows, k, metric, *, self_excluded):
    q, x = queries.astype(np.float64), rows.astype(np.float64)
    if metric == Metric.COSINE:
        q, x = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (q, x))
    scores = -((q[:, None] - x[None]) ** 2).sum(-1) if metric == Metric.L2 else q @ x.T
    if self_excluded:
        np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1)[:, :k]


def shared(found, truth):
    return np.array([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_hand(rows, query_pairs, translation, k, metric, weight, *, self_excluded):
    """Overlap of every strategy, from the definitions."""
    coef, b = translation.coef.astype(np.float64), translation.intercept.astype(np.float64)
    plans = {
        "keep-old": (query_pairs.x, rows.x),
        "translate-documents": (query_pairs.y, rows.x @ coef.T + b),
        "re-encode": (query_pairs.y, rows.y),
    }
    if metric != Metric.L2 or translation.isometry_scale is not None:
        back = (query_pairs.y - b) @ coef / translation.isometry_scale**2 if metric == Metric.L2 else query_pairs.y @ coef
        plans["project-queries-adjoint"] = (back, rows.x)
        parts = (
            (query_pairs.x, back) if metric == Metric.L2 else (unit(query_pairs.x), unit(back))
        )  # under L2 lengths have a meaning
        plans["blend"] = ((1 - weight) * parts[0] + weight * parts[1], rows.x)
    if rows.x.shape[1] == rows.y.shape[1]:
        plans["no-translation"] = (query_pairs.y, rows.x)
    truth = nearest(query_pairs.y, rows.y, k, metric, self_excluded=self_excluded)
    return {n: shared(nearest(*plan, k, metric, self_excluded=self_excluded), truth) for n, plan in plans.items()}


@pytest.mark.parametrize(("p", "q"), [(6, 9), (9, 9), (9, 6)])
@pytest.mark.parametrize("metric", tuple(Metric))
@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_every_strategy_is_what_it_says(pair, p, q, metric, weight):
    isometry = metric == Metric.L2 and p <= q  # there is none into a narrower space
    rows, translation = pair(p, q, metric, kind="isometry" if isometry else "general")
    found = eb.evaluate(translation, rows, k=K, weight=weight)
    expected = by_hand(rows, rows, translation, K, metric, weight, self_excluded=True)
    fused = set() if metric == Metric.L2 else {"fuse", "fuse-projected"}
    assert {s.name for s in found.strategies} == set(expected) | fused
    for s in found.strategies:
        assert (s.recall, s.mrr) == (None, None)
        if s.name not in fused:  # these choose a weight (test_fusion)
            assert s.overlap == pytest.approx(expected[s.name].mean(), abs=2e-3), s.name  # a near tie may fall either way
    assert found["re-encode"].overlap == 1
    assert found["re-encode"].overlap_ci == (1, 1)
    assert (found.k, found.queries, found.corpus, found.judged, found.map) == (K, N, N, 0, translation.fingerprint)


def test_mean_cosine_and_residual_are_those_of_the_translated_rows(pair):
    rows, translation = pair()
    found = eb.evaluate(translation, rows, k=K)
    translated = rows.x.astype(np.float64) @ translation.coef.T + translation.intercept
    assert found.mean_cosine == pytest.approx((unit(translated) * unit(rows.y)).sum(1).mean(), abs=1e-6)
    residual = np.linalg.norm(translated - rows.y) / np.linalg.norm(rows.y - rows.y.mean(0))
    assert found.relative_residual == pytest.approx(residual, abs=1e-6)


@pytest.mark.parametrize("metric", tuple(Metric))
def test_a_perfect_map_keeps_every_neighbor(planted, metric):
    ids, x, _, W = planted(N, 6, 9)
    source, target = Space("old", 6, metric), Space("new", 9, metric)
    Q = np.linalg.qr(W.T)[0]
    rows = anchors_of(ids, x, x @ Q.T, source, target)
    found = eb.evaluate(eb.LinearMap(Q, np.zeros(9), source, target), rows, k=K)
    for name in ("translate-documents", "project-queries-adjoint", "keep-old", "re-encode"):
        assert found[name].overlap == 1, name
    assert found.mean_cosine == pytest.approx(1, abs=1e-6)
    assert found.relative_residual == pytest.approx(0, abs=1e-6)


def test_a_map_that_knows_nothing_is_no_better_than_chance(pair):
    rows, _ = pair(n=300)
    rng = np.random.default_rng(4)
    found = eb.evaluate(eb.LinearMap(rng.normal(size=(9, 6)), np.zeros(9), rows.source, rows.target), rows, k=K)
    assert found["translate-documents"].overlap < 0.15 < found["re-encode"].overlap
    assert found.relative_residual > 1


# Rows that the map was fitted on


def test_rows_that_the_map_was_fitted_on_are_left_out(pair):
    """The whole match may be given: it is the same as giving the held-out rows."""
    rows, _ = pair(n=300)
    train, held_out = rows.split(0.4, seed=1)
    translation = eb.fit(train, "ridge", alpha=0.1)
    whole, alone = eb.evaluate(translation, rows, k=K), eb.evaluate(translation, held_out, k=K)
    assert whole.corpus == len(held_out) == alone.corpus < len(rows)
    assert whole.to_dict() == alone.to_dict()


def test_a_map_with_its_spaces_turned_round_leaves_the_same_rows_out(pair):
    rows, _ = pair(n=300)
    train, held_out = rows.split(0.4)
    back = eb.fit(train, "linear").inverse()
    assert eb.evaluate(back, rows.reversed(), k=K).corpus == len(held_out)


@pytest.mark.parametrize("left", [0, 1, K])
def test_too_few_rows_are_reported(pair, left):
    rows, _ = pair()
    translation = eb.fit(rows.at(np.arange(N - left)), "ridge", alpha=0.1)
    with pytest.raises(
        TooFewAnchorsError, match=rf"needs at least 6 shared rows that the map was not fitted on\. Got {left} of 120.*--test-size"
    ):
        eb.evaluate(translation, rows, k=K)
    enough = eb.fit(rows.at(np.arange(N - K - 1)), "ridge", alpha=0.1)
    assert eb.evaluate(enough, rows, k=K)["re-encode"].overlap == 1


# Queries and judgments


@pytest.fixture
def query_pairs(planted):
    """Queries of their own, in both spaces, with string ids."""
    _, x, y, _ = planted(30, 6, 9, 0.6, seed=9)
    return anchors_of([f"q{i}" for i in range(30)], x, y, Space("old", 6), Space("new", 9))


def test_separate_queries_search_the_whole_corpus(pair, query_pairs):
    rows, translation = pair()
    found = eb.evaluate(translation, rows, queries=query_pairs, k=K)
    expected = by_hand(rows, query_pairs, translation, K, Metric.COSINE, 0.5, self_excluded=False)
    for s in found.strategies:
        # 30 queries are too few to choose a weight on: each fusion is its old side alone.
        same = {"fuse": "keep-old", "fuse-projected": "project-queries-adjoint"}.get(s.name, s.name)
        assert s.overlap == pytest.approx(expected[same].mean(), abs=5e-3), s.name
    assert (found.queries, found.corpus) == (30, N)


def test_recall_and_reciprocal_rank_by_hand():
    """Documents on a line of angles; the query points at the first of them, so ranks are known."""
    space, other = Space("old", 2), Space("new", 2)
    angles = np.linspace(0, 1.5, 10)
    docs = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    corpus = anchors_of([f"d{i}" for i in range(10)], docs, docs, space, other)
    ahead = np.array([[1, 0], [1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    queries = anchors_of(["a", "b", "c", "d", "e"], ahead, ahead, space, other)
    qrels = {
        "a": ["d0"],  # rank 1: recall 1, reciprocal rank 1
        "b": ["d2", "d9"],  # ranks 3 and 10: one of two within 4, 1/3
        "c": ["d9", "d8", "d9"],  # seen from the other end: ranks 1 and 2, listed twice or not
        "d": ["d7"],  # rank 8: nothing within 4
        "e": ["elsewhere"],  # not in the corpus, so not judged
        "z": ["d1"],  # not among the queries
    }
    identity = eb.LinearMap(np.eye(2), np.zeros(2), space, other)
    found = eb.evaluate(identity, corpus, queries=queries, qrels=qrels, k=4)
    assert found.judged == 4
    for s in found.strategies:
        assert s.recall == pytest.approx((1 + 1 / 2 + 1 + 0) / 4)
        assert s.mrr == pytest.approx((1 + 1 / 3 + 1 + 0) / 4)


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ({}, "of 0 queries name no relevant document"),
        ({"q1": [], "q2": {5: 0}}, "of 2 queries name no relevant document"),
        ({"q1": [-1]}, "None of the 1 documents .* is among the 120 rows of the corpus. Ids are such as -1 in the judgments"),
        ({"q1": ["5"], "q2": ["6"]}, "None of the 2 documents .* strings or integers"),
        ({1: [5]}, "None of the 30 queries is among the 1 .* strings or as integers"),
    ],
)
def test_judgments_that_match_nothing_are_refused(pair, query_pairs, qrels, message):
    rows, translation = pair()
    with pytest.raises(ParameterError, match=message):
        eb.evaluate(translation, rows, queries=query_pairs, qrels=qrels, k=K)
    with pytest.raises(ParameterError, match=message.replace("120", "60")):
        eb.plan(rows, queries=query_pairs, qrels=qrels, k=K, anchors=60)


def test_judgments_that_match_some_rows_are_counted(pair, query_pairs):
    rows, translation = pair()
    ids = rows.ids.tolist()
    qrels = {"q0": {ids[0]: 1, ids[1]: 2, "elsewhere": 1}, "q1": {ids[0]: 3, ids[5]: 0}, "q2": ["nowhere"], "other": [ids[3]]}
    found = eb.evaluate(translation, rows, queries=query_pairs, qrels=qrels, k=K)
    assert found.to_dict()["qrels"] == {"queries": 4, "queries_found": 3, "documents": 4, "documents_found": 2}
    assert found.judged == 2
    assert "3 of 4 judged queries are among the queries, 2 of their 4 relevant documents are in the corpus" in str(found)


def test_many_queries_are_sampled_by_the_seed(pair):
    rows, translation = pair()
    one, same, other = (eb.evaluate(translation, rows, k=K, max_queries=40, seed=seed) for seed in (1, 1, 2))
    assert one.queries == other.queries == 40
    assert one.corpus == N  # all rows are still there to be found
    assert one.to_dict() == same.to_dict()
    assert one["keep-old"].overlap != other["keep-old"].overlap


@pytest.mark.parametrize("strings", [False, True])
def test_a_query_never_finds_itself_whatever_the_order_of_ids(pair, strings):
    rows, translation = pair()
    order = np.random.default_rng(3).permutation(N)
    shuffled = rows.at(order)
    if strings:
        shuffled = anchors_of([f"n{i}" for i in shuffled.ids], shuffled.x, shuffled.y, rows.source, rows.target)
    found = eb.evaluate(translation, shuffled, k=K)
    assert found["keep-old"].overlap == pytest.approx(eb.evaluate(translation, rows, k=K)["keep-old"].overlap, abs=1e-9)


def test_a_query_has_the_label_of_its_first_labelled_relevant_row_or_its_own():
    labels = {"q0": "alike", "b": 0, "c": "last", "a": None, "q4": "own"}
    relevant = [np.array(rows, np.int64) for rows in ([2], [0, 1, 2], [2, 1], [0], [])]
    ids, corpus = np.array(["q0", "q1", "q2", "q3", "q4"], object), np.array(["a", "b", "c"], object)
    assert labels_of_queries(ids, relevant, corpus, labels) == ["last", 0, "last", None, "own"]


# Which strategies there are


@pytest.mark.parametrize(("p", "q", "there"), [(6, 6, True), (6, 9, False), (9, 6, False)])
def test_no_translation_needs_equal_widths(pair, p, q, there):
    rows, translation = pair(p, q)
    names = [s.name for s in eb.evaluate(translation, rows, k=K).strategies]
    assert ("no-translation" in names) == there
    order = ["keep-old", "no-translation", "translate-documents", "project-queries-adjoint", "blend", "re-encode", "fuse"]
    assert names == [n for n in [*order, "fuse-projected"] if n in names]
    assert len(names) == 7 + there


def test_under_l2_only_an_isometry_pulls_queries_back(pair):
    rows, translation = pair(metric=Metric.L2)
    assert [s.name for s in eb.evaluate(translation, rows, k=K).strategies] == ["keep-old", "translate-documents", "re-encode"]
    rows, translation = pair(metric=Metric.L2, kind="isometry")
    assert "project-queries-adjoint" in [s.name for s in eb.evaluate(translation, rows, k=K).strategies]


def test_each_side_is_ranked_by_its_own_metric(planted):
    ids, x, y, W = planted(N, 6, 9, 0.6)
    x *= np.linspace(0.5, 3, N, dtype=np.float32)[:, None]
    source, target = Space("old", 6, Metric.DOT), Space("new", 9, Metric.COSINE)
    found = eb.evaluate(eb.LinearMap(W.T, np.zeros(9), source, target), anchors_of(ids, x, y, source, target), k=K)
    truth = nearest(y, y, K, Metric.COSINE, self_excluded=True)
    kept = shared(nearest(x, x, K, Metric.DOT, self_excluded=True), truth).mean()
    assert found["keep-old"].overlap == pytest.approx(kept, abs=2e-3)
    assert kept != pytest.approx(shared(nearest(x, x, K, Metric.COSINE, self_excluded=True), truth).mean(), abs=0.01)


@pytest.mark.parametrize("swap", ["anchors", "queries"])
def test_rows_of_other_spaces_are_refused(pair, query_pairs, swap):
    rows, translation = pair()
    given = {"held_out": rows.reversed()} if swap == "anchors" else {"held_out": rows, "queries": query_pairs.reversed()}
    with pytest.raises(SpaceMismatchError, match=r"expects 6-dimensional vectors of 'old', but .* 9-dimensional vectors of 'new'"):
        eb.evaluate(translation, k=K, **given)


@pytest.mark.parametrize("k", [0, -1])
def test_k_is_at_least_one(pair, k):
    rows, translation = pair()
    with pytest.raises(ParameterError, match=rf"k must be at least 1\. Got {k}"):
        eb.evaluate(translation, rows, k=k)


def test_progress_counts_strategies(pair):
    rows, translation = pair()
    seen = []
    eb.evaluate(translation, rows, k=K, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 7) for i in range(1, 8)]


# The interval


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    """200 samples of a known mean: at 95 % fewer than 178 cover it once in ten thousand times, and so do all 200."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.binomial(10, 0.4, size=80) / 10)
        inside += low <= 0.4 <= high
    assert 178 <= inside <= 199


def test_the_interval_is_that_of_the_normal_approximation_for_many_queries():
    values = np.random.default_rng(1).uniform(size=2000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high


def test_the_interval_of_one_value_is_that_value():
    assert bootstrap_interval(np.full(70, 0.3)) == (pytest.approx(0.3), pytest.approx(0.3))


def test_of_few_queries_an_interval_claims_little():
    assert bootstrap_interval(np.array([0.3])) == (0, 1)
    assert bootstrap_interval(np.array([-0.3])) == (-1, 1)
    rng = np.random.default_rng(0)
    for n in (2, 5, 20):
        held = [low <= 0 <= high for low, high in (bootstrap_interval(rng.choice([-0.1, 0, 0.1], n)) for _ in range(200))]
        assert np.mean(held) >= 0.95


# The record


def test_an_evaluation_prints_as_a_table_and_becomes_plain_values():
    found = Evaluation(
        5,
        10,
        20,
        (StrategyScore("keep-old", 0.25, (0.2, 0.3), 0.5, 0.75), StrategyScore("re-encode", 1.0, (1.0, 1.0))),
        0.9,
        0.4,
        "f",
        3,
    )
    lines = str(found).splitlines()
    assert lines[0].split() == ["strategy", "overlap@5", "95", "%", "interval", "recall@5", "MRR"]
    assert lines[1].split() == ["keep-old", "0.250", "[0.200,", "0.300]", "0.500", "0.750"]
    assert lines[2].split() == ["re-encode", "1.000", "[1.000,", "1.000]"]
    assert found.to_dict()["strategies"][0] == {
        "name": "keep-old", "overlap": 0.25, "overlap_ci": (0.2, 0.3), "recall": 0.5, "mrr": 0.75,
        "candidate_recall": None, "recall_ci": None, "mrr_ci": None, "ndcg": None, "ndcg_ci": None,
        "weight": None, "correction": None,
    }  # fmt: skip
    with pytest.raises(KeyError, match="blend"):
        found["blend"]


# The collection as such


def test_a_summary_counts_what_is_wrong_and_measures_the_rest(tmp_path, write):
    import pyarrow as pa

    rows = [[3.0, 4.0], [0.0, 0.0], None, [1.0], [np.nan, 1.0], [0.6, 0.8], [5.0, 12.0], [np.inf, 0.0]]
    ids = ["a", "b", "c", "d", "e", "f", "f", None]
    path = write(tmp_path / "a.parquet", pa.table({"id": ids, "vector": pa.array(rows, pa.list_(pa.float32()))}), row_group_size=3)
    lengths = np.array([5, 0, 1, 13])
    for declared, bad in (("m", 5), ("m:l2", 4)):  # a zero vector is bad under cosine only
        found = eb.summarize(eb.open(path, space=declared))
        assert (found.rows, found.duplicate_ids, found.bad_rows) == (8, 1, bad)
        expected_norm = {"mean": lengths.mean(), "std": lengths.std(), "min": 0, "max": 13}
        assert found.norm == pytest.approx(expected_norm, abs=1e-6)


@pytest.mark.parametrize("rows_a_group", [7, 64, 1000])
def test_a_summary_is_the_same_whatever_the_batches(tmp_path, write, table_of, rows_a_group):
    x = np.random.default_rng(0).normal(5, 2, size=(500, 4))
    path = write(tmp_path / "a.parquet", table_of(range(500), x), row_group_size=rows_a_group)
    lengths = np.linalg.norm(x.astype(np.float32).astype(np.float64), axis=1)
    found = eb.summarize(eb.open(path, space="m"))
    expected_norm = {"mean": lengths.mean(), "std": lengths.std(), "min": lengths.min(), "max": lengths.max()}
    assert found.norm == pytest.approx(expected_norm, rel=1e-6)
    assert (found.bad_rows, found.duplicate_ids, found.rows) == (0, 0, 500)
