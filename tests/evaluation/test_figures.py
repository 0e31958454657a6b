"""Figures of an evaluation beside their definitions: nDCG, intervals, labels, corpus sizes, another map."""

import json

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

import embridge as eb
from embridge.errors import ParameterError, SpaceMismatchError
from embridge.evaluation import bootstrap_interval, bootstrap_intervals
from embridge.evaluation.bootstrap import resampled_means
from embridge.evaluation.corpus_size import extrapolate
from embridge.evaluation.metrics import candidate_depth, ndcg, recall_and_mrr, relevance
from embridge.types import Metric, Space
from tests.evaluation.support import NEW, OLD, anchors_of


def test_ndcg_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    for k in (1, 5, 10):
        scores = rng.normal(size=(30, 40))
        grades = rng.integers(0, 4, size=(30, 40)).astype(float) * (rng.random((30, 40)) < 0.2)
        grades[:, 0] += grades.sum(1) == 0  # scikit-learn gives 0 where nothing is relevant; such queries are not judged here
        found = np.argsort(-scores, axis=1)[:, :k]
        relevant = [np.flatnonzero(row) for row in grades]
        ours = ndcg(found, relevant, [row[r] for row, r in zip(grades, relevant, strict=True)])
        assert ours == pytest.approx([ndcg_score(g[None], s[None], k=k) for g, s in zip(grades, scores, strict=True)])


def test_laws_of_ndcg():
    relevant, grades = [np.array([3, 1, 8])], [np.array([1.0, 3.0, 2.0])]
    assert ndcg(np.array([[1, 8, 3, 5]]), relevant, grades) == pytest.approx([1])  # the perfect ranking
    assert ndcg(np.array([[1, 8]]), relevant, grades) == pytest.approx([1])  # the ideal is cut at k too
    assert ndcg(np.array([[0, 2, 4]]), relevant, grades) == pytest.approx([0])
    better = [ndcg(np.roll(np.array([[1, 0, 2, 4, 5]]), shift, 1), relevant, grades)[0] for shift in range(5)]
    assert better == sorted(better, reverse=True)  # a relevant row further down is worth less
    assert better[1] == pytest.approx(3 / np.log2(3) / (3 + 2 / np.log2(3) + 1 / 2))
    assert len(ndcg(np.array([[0, 1]]), [np.array([], np.int64)], [np.array([])])) == 0  # not judged


def test_grades_of_one_are_what_a_sequence_says():
    corpus, queries = np.array([5, 6, 7]), np.array([1, 2, 3])
    plain = relevance(corpus, queries, {1: [6, 5, 6], 2: [9]})
    graded = relevance(corpus, queries, {1: {6: 1, 5: 1.0, 7: 0}, 2: {9: 4}, 3: {5: -1, 6: None, 7: float("nan")}})
    for mine, theirs in zip(plain, graded, strict=True):
        assert [m.tolist() for m in mine] == [t.tolist() for t in theirs]
    with pytest.raises(ParameterError, match="grades of query 1 must be finite"):
        relevance(corpus, queries, {1: {5: np.inf}})


def test_recall_and_mrr_are_their_definitions():
    rng = np.random.default_rng(2)
    found = np.array([rng.permutation(30)[:8] for _ in range(40)])
    relevant = [np.sort(rng.permutation(30)[: rng.integers(0, 5)]) for _ in range(40)]
    recalls, ranks = recall_and_mrr(found, relevant)
    places = [
        [n for n, i in enumerate(row.tolist(), 1) if i in set(want.tolist())] for row, want in zip(found, relevant, strict=True)
    ]
    sized = [(p, len(want)) for p, want in zip(places, relevant, strict=True) if len(want)]
    assert recalls == pytest.approx([len(p) / n for p, n in sized])
    assert ranks == pytest.approx([1 / p[0] if p else 0 for p, _ in sized])


def test_columns_are_resampled_together_and_as_one_by_one():
    values = np.random.default_rng(3).random((300, 4))
    together = bootstrap_intervals(values, seed=9)
    assert np.array(together) == pytest.approx(np.array([bootstrap_interval(column, seed=9) for column in values.T]))
    rng = np.random.default_rng(9)
    drawn = rng.integers(300, size=(1000, 300))
    assert resampled_means(values, seed=9) == pytest.approx(values[drawn].mean(1))


def test_resamples_come_in_blocks_that_change_nothing(monkeypatch):
    values = np.random.default_rng(3).random((101, 2))
    whole = resampled_means(values)
    monkeypatch.setattr("embridge.evaluation.bootstrap._BLOCK", 1000)
    assert resampled_means(values) == pytest.approx(whole)


@pytest.mark.parametrize(("k", "rows", "depth"), [(10, 5000, 100), (10, 101, 100), (10, 60, 59), (10, 11, 10), (200, 5000, 200)])
def test_candidates_are_a_hundred_or_all_rows_but_one(k, rows, depth):
    assert candidate_depth(k, rows) == depth


# The whole evaluation


def test_every_figure_is_the_mean_of_its_queries(data):
    rows, query_pairs, qrels, good, _ = data
    found = eb.evaluate(good, rows, queries=query_pairs, qrels=qrels, k=5)
    assert found.judged == 50
    for s in found.strategies:
        mine = found.per_query.figures[s.name]
        assert mine["overlap"].mean() == pytest.approx(s.overlap)
        assert mine["candidate_recall"].mean() == pytest.approx(s.candidate_recall)
        assert s.candidate_recall >= s.overlap
        for name, field in (("recall", "recall"), ("reciprocal_rank", "mrr"), ("ndcg", "ndcg")):
            judged = mine[name][:50]
            assert np.isnan(mine[name][50:]).all()
            assert judged.mean() == pytest.approx(getattr(s, field))
            assert getattr(s, f"{field}_ci") == pytest.approx(bootstrap_interval(judged))
    assert found["re-encode"].candidate_recall == 1
    plain = found.to_dict()
    assert "per_query" not in plain
    json.dumps(plain)


def test_candidate_recall_is_native_neighbors_among_a_hundred(data):
    rows, query_pairs, _, good, _ = data
    found = eb.evaluate(good, rows, queries=query_pairs, k=5)
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)  # noqa: E731
    truth = np.argsort(-(unit(query_pairs.y) @ unit(rows.y).T), axis=1)[:, :5]
    top = np.argsort(-(unit(query_pairs.x) @ unit(rows.x).T), axis=1)[:, :100]
    share = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(top.tolist(), truth.tolist(), strict=True)])
    assert found["keep-old"].candidate_recall == pytest.approx(share, abs=5e-3)


def test_the_order_of_rows_does_not_matter(data):
    rows, query_pairs, qrels, good, _ = data
    turned = rows.at(np.random.default_rng(0).permutation(len(rows)))
    one, other = (eb.evaluate(good, r, queries=query_pairs, qrels=qrels, k=5).to_dict() for r in (rows, turned))
    for name in ("strategies", "sizes"):
        assert one[name] == other[name]


# Labels


def test_figures_by_label_are_those_of_its_queries(data):
    rows, query_pairs, qrels, good, _ = data
    labels = {f"q{i}": ["b", "a", None][i % 3] for i in range(60)}
    found = eb.evaluate(good, rows, queries=query_pairs, qrels=qrels, k=5, labels=labels)
    assert [one.label for one in found.by_label] == ["a"] * len(found.strategies) + ["b"] * len(found.strategies)
    for one in found.by_label:
        mine = np.array([i for i in range(60) if labels[f"q{i}"] == one.label])
        values = found.per_query.figures[one.strategy]
        assert (one.queries, one.judged) == (len(mine), int((mine < 50).sum()))
        assert one.overlap == pytest.approx(values["overlap"][mine].mean())
        assert one.overlap_ci == pytest.approx(bootstrap_interval(values["overlap"][mine]))
        assert one.recall == pytest.approx(values["recall"][mine[mine < 50]].mean())
        assert one.ndcg_ci == pytest.approx(bootstrap_interval(values["ndcg"][mine[mine < 50]]))
    assert found.per_query.labels == [labels[f"q{i}"] for i in range(60)]
    assert "recall@5 by label" in str(found)


def test_a_label_without_a_judged_query_has_overlap_only(data):
    rows, query_pairs, qrels, good, _ = data
    found = eb.evaluate(good, rows, queries=query_pairs, qrels=qrels, k=5, labels={"q55": np.int64(4), "q1": "x"})
    assert next((one.label, one.judged, one.recall) for one in found.by_label if one.strategy == "blend") == (4, 0, None)
    json.dumps(found.to_dict())
    assert str(found)


def test_rows_have_labels_as_queries(data):
    rows, _, _, good, _ = data
    labels = {int(i): int(i) % 2 for i in rows.ids}
    found = eb.evaluate(good, rows, k=5, labels=labels)
    assert {one.label: one.queries for one in found.by_label} == {c: int((rows.ids % 2 == c).sum()) for c in (0, 1)}
    assert "overlap@5 by label" in str(found)


def test_of_many_labels_the_worst_are_reported(data):
    rows, _, _, good, _ = data
    lines = str(eb.evaluate(good, rows, k=5, labels={int(i): int(i) % 18 for i in rows.ids})).splitlines()
    at = next(n for n, line in enumerate(lines) if "by label" in line)
    assert lines[at + 18] == "and 2 more labels"
    worst = [float(line.split()[3]) for line in lines[at + 2 : at + 18] if int(line.split()[1]) >= 20]
    assert worst == sorted(worst)


@pytest.mark.parametrize("labels", [{}, {"elsewhere": "a"}, {0: "a"}, {"q1": None}])
def test_labels_without_a_query_are_reported(data, labels):
    rows, query_pairs, qrels, good, _ = data
    with pytest.raises(ParameterError, match=r"None of the 60 queries has a label: .* Hint: check --id-column"):
        eb.evaluate(good, rows, queries=query_pairs, qrels=qrels, k=5, labels=labels)


# The size of the corpus


def test_overlap_in_a_part_of_the_corpus_is_that_of_an_evaluation_on_it(data):
    """Each subset is measured as if its rows were all there are; rows used as queries may be outside."""
    from embridge.stores.ids import hash_ids

    rows, query_pairs, _, good, _ = data
    found = eb.evaluate(good, rows, queries=query_pairs, k=5)
    order = np.argsort(hash_ids(rows.ids, "corpus", 0), kind="stable")
    assert [s.corpus for s in found.sizes if s.strategy == "blend"] == [50, 100, 200, 400]
    for size in found.sizes:
        part = eb.evaluate(good, rows.at(order[: size.corpus]), queries=query_pairs, k=5)
        assert size.overlap == pytest.approx(part[size.strategy].overlap, abs=5e-3)
    assert {s.strategy for s in found.sizes} == {"keep-old", "translate-documents", "project-queries-adjoint", "blend"}
    whole = {s.strategy: s for s in found.sizes if s.corpus == 400}
    for name, size in whole.items():
        assert (size.overlap, *size.overlap_ci) == pytest.approx((found[name].overlap, *found[name].overlap_ci))


def test_rows_used_as_queries_do_not_find_themselves_in_a_part(planted):
    ids, x, _, W = planted(400, 6, 9)
    Q = np.linalg.qr(W.T)[0]
    rows = anchors_of(ids, x, x @ Q.T)
    found = eb.evaluate(eb.LinearMap(Q, np.zeros(9), OLD, NEW), rows, k=5)
    assert all(s.overlap == pytest.approx(1) for s in found.sizes)


@pytest.mark.parametrize(
    ("n", "k", "sizes"), [(49, 5, [49]), (120, 5, [60, 120]), (120, 40, [120]), (170, 40, [85, 170]), (12, 11, [12])]
)
def test_tiny_corpora_and_large_k_have_fewer_sizes(data, n, k, sizes):
    rows, _, _, good, _ = data
    found = eb.evaluate(good, rows.at(np.arange(n)), k=k, corpus_size=10_000)
    assert [s.corpus for s in found.sizes if s.strategy == "keep-old"] == sizes  # and no forecast
    assert str(found)


def test_a_forecast_goes_beyond_the_corpus_only(data):
    rows, query_pairs, _, good, _ = data
    for size in (None, 1, 400):
        assert not any(s.forecast for s in eb.evaluate(good, rows, queries=query_pairs, k=5, corpus_size=size).sizes)
    found = eb.evaluate(good, rows, queries=query_pairs, k=5, corpus_size=6400)
    for name in ("keep-old", "blend"):
        last, ahead = [s for s in found.sizes if s.strategy == name][-2:]
        assert (ahead.corpus, ahead.forecast, last.corpus) == (6400, True, 400)
        assert 0 <= ahead.overlap_ci[0] <= ahead.overlap <= last.overlap
        assert ahead.overlap_ci[1] <= last.overlap_ci[1]
    assert "predicted at 6,400" in str(found)
    with pytest.raises(ParameterError, match="corpus_size must be at least 1"):
        eb.evaluate(good, rows, k=5, corpus_size=0)


def test_a_power_law_is_found_again():
    sizes = np.array([500, 1000, 2000, 4000, 8000])
    for c in (0.2, 0.5, 1.0):
        assert extrapolate(sizes, 0.3 + 2 * sizes**-c, (64000,)) == pytest.approx([0.3 + 2 * 64000**-c], abs=2e-3)
    table = np.stack([0.3 + 2 * sizes**-0.5, np.full(5, 0.4), 0.1 + sizes / 1e5])
    many = extrapolate(sizes, table, (64000,))
    assert many == pytest.approx(np.stack([extrapolate(sizes, row, (64000,)) for row in table]))
    assert many[1] == pytest.approx(0.4)
    assert many[2] == pytest.approx(table[2, -1])  # what rises is not taken to fall


def test_the_truth_is_within_the_forecast_of_a_quarter_of_the_sample():
    shared = eb.match(eb.open(eb.sample_path("minilm")), eb.open(eb.sample_path("mpnet")))
    query_pairs = eb.match(eb.open(eb.sample_path("minilm.queries")), eb.open(eb.sample_path("mpnet.queries")))
    translation = eb.fit(shared.sample(400), "ridge", alpha=0.1)
    rest = shared.without(translation.anchor_hashes)
    small = eb.evaluate(translation, rest.sample(len(rest) // 4, seed=3), queries=query_pairs, corpus_size=len(rest))
    large = eb.evaluate(translation, rest, queries=query_pairs)
    for size in (s for s in small.sizes if s.forecast):
        assert size.overlap_ci[0] <= large[size.strategy].overlap <= size.overlap_ci[1], size


# Another map


def test_the_difference_to_another_map_is_paired_by_query(data):
    rows, query_pairs, qrels, good, worse = data
    found = eb.evaluate(good, rows, queries=query_pairs, qrels=qrels, k=5, against=worse)
    alone, other = (eb.evaluate(m, rows, queries=query_pairs, qrels=qrels, k=5) for m in (good, worse))
    assert found.strategies == alone.strategies
    assert found.against == worse.fingerprint
    names = {"translate-documents", "project-queries-adjoint", "blend", "fuse", "fuse-projected"}
    assert {d.strategy for d in found.differences} == names
    named = {"overlap": "overlap", "recall": "recall", "mrr": "reciprocal_rank", "ndcg": "ndcg"}
    assert len(found.differences) == len(names) * len(named)
    for d in found.differences:
        gain = alone.per_query.figures[d.strategy][named[d.metric]] - other.per_query.figures[d.strategy][named[d.metric]]
        gain = gain[~np.isnan(gain)]
        assert d.difference == pytest.approx(gain.mean())
        assert d.difference_ci == pytest.approx(bootstrap_interval(gain))
    documents = next(d for d in found.differences if (d.strategy, d.metric) == ("translate-documents", "overlap"))
    assert documents.better == "this"
    assert "This map is significantly better in overlap" in str(found)
    back = eb.evaluate(worse, rows, queries=query_pairs, k=5, against=good)
    assert "The other map is significantly better in overlap" in str(back)
    assert {d.metric for d in back.differences} == {"overlap"}  # nothing is judged


def test_a_map_is_no_better_than_itself(data):
    rows, query_pairs, _, good, _ = data
    references = np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32)
    found = eb.evaluate(good, rows, queries=query_pairs, k=5, against=good, hubness=references)
    assert {(d.difference, d.difference_ci, d.better) for d in found.differences} == {(0.0, (0.0, 0.0), "")}
    assert "translate-documents+hubness" in {d.strategy for d in found.differences}
    assert "No difference is significant" in str(found)


def test_rows_that_either_map_was_fitted_on_are_left_out(data):
    rows = data[0]
    one, other = (eb.fit(rows.at(np.arange(start, start + 100)), "ridge", alpha=0.1) for start in (0, 50))
    assert eb.evaluate(one, rows, k=5).corpus == 300
    assert eb.evaluate(one, rows, k=5, against=other).corpus == 250


def test_only_strategies_that_both_maps_have_are_compared(planted):
    ids, x, y, W = planted(80, 6, 9, 0.5)
    source, target = Space("old", 6, Metric.L2), Space("new", 9, Metric.L2)
    rows = anchors_of(ids, x, y, source, target)
    general, isometry = (eb.LinearMap(c, np.zeros(9), source, target) for c in (W.T, np.linalg.qr(W.T)[0]))
    for one, other in ((general, isometry), (isometry, general)):
        assert {d.strategy for d in eb.evaluate(one, rows, k=5, against=other).differences} == {"translate-documents"}


def test_maps_of_other_spaces_cannot_be_compared(data):
    rows, _, _, good, _ = data
    for source, target, coef in ((Space("other", 6), NEW, good.coef), (OLD, Space("new", 8), good.coef[:8])):
        with pytest.raises(SpaceMismatchError, match=r"The map translates 'old' \(6\) -> 'new' \(9\), the one to compare it with"):
            eb.evaluate(good, rows, k=5, against=eb.LinearMap(coef, np.zeros(len(coef)), source, target))
