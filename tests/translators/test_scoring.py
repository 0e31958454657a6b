"""Scores of candidates: cheaper ways give the same translations, and methods far behind are not scored to the end."""

import dataclasses

import numpy as np
import pytest
import torch

import embridge as eb
from embridge.neighbors import overlap, top_k
from embridge.stores.ids import hash_ids
from embridge.testing.translators import planted_anchors, textlike_anchors
from embridge.translators import Bridge, Isometry, Kernel, Ortho, Projection, QueryPairs, Ridge, Rotation, fit
from embridge.translators.fitting import query_pairs
from embridge.translators.kernel_ridge import KernelRidge
from embridge.translators.penalties import PENALTIES, PenaltyTrial
from embridge.translators.scoring import FAR, comparable_means, deficits_to_best, fold_scores, real_scores
from embridge.translators.select import candidates_for
from embridge.types import Metric, Space

METHODS = (Rotation(), Isometry(), Ortho(), Ridge(0.1), Bridge(0.3, 0.75), Bridge(np.inf, 1.0), Bridge(3.0, 0.5, mean_weight=1.5))
PROJECTIONS = (Projection(np.inf, 0.0), Projection(3.0, 1.0), Projection(3.0))


class Away(Rotation):
    """A rotation turned the other way: every row finds the farthest ones."""

    def solve(self, data):
        found = super().solve(data)
        return dataclasses.replace(found, weight=-found.weight)


def cosine(anchors):
    """Unit vectors in cosine spaces."""
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (anchors.x, anchors.y))
    spaces = (Space(name, side.shape[1], Metric.COSINE, True) for name, side in (("old", x), ("new", y)))
    source, target = spaces
    return dataclasses.replace(anchors, x=x, y=y, source=source, target=target)


@pytest.mark.parametrize(("p", "q"), [(9, 12), (12, 9)])
@pytest.mark.parametrize("method", [*METHODS, *PROJECTIONS], ids=repr)
def test_candidates_translate_as_their_maps_do(method, p, q):
    anchors = cosine(textlike_anchors(200, p, q))
    moments = anchors.moments()
    found = method.solve(anchors.moments())
    expected = anchors.x @ found.weight + found.intercept
    for _ in range(2):  # the second time from the cache
        np.testing.assert_allclose(method.translate(moments, anchors.x), expected, atol=1e-5)
    np.testing.assert_allclose(method.translate(moments, anchors.x[:7]), expected[:7], atol=1e-5)


def test_methods_far_behind_are_not_scored_on_further_folds():
    methods = [Bridge(3.0, 1.0), Bridge(1.0, 0.5), Ridge(1e6), Bridge(1.0, 1.0)]
    folds = cosine(planted_anchors(1800, 24, 32, noise=0.7)).folds()
    assert min(len(x) for x, _ in folds.samples) > 300
    full, raced = fold_scores(methods, folds, "documents"), fold_scores(methods, folds, "documents", behind=1.0)
    assert full.shape == raced.shape == (4, 900)  # three folds of 300 stand-ins are enough
    dropped = np.isnan(raced).any(axis=1)
    assert dropped.any()
    assert not dropped.all()
    np.testing.assert_array_equal(raced[~dropped], full[~dropped])
    assert np.isfinite(raced[:, :300]).all()
    best = int(np.argmax(full.mean(axis=1)))
    assert best not in np.flatnonzero(dropped)
    deficits, errors = deficits_to_best(raced)
    assert (deficits[dropped] > errors[dropped]).all()
    means = comparable_means(raced)
    assert int(np.argmax(means)) == best
    np.testing.assert_array_equal(means[~dropped], full[~dropped].mean(axis=1))
    np.testing.assert_allclose(means[dropped], full[best].mean() - (full[best, :300] - full[dropped, :300]).mean(axis=1))


def test_a_method_that_was_dropped_early_is_not_the_best_because_its_folds_were_easier():
    scores = np.array([[0.9, 0.9, 0.1, 0.1], [0.8, 0.7, np.nan, np.nan]])
    assert comparable_means(scores).tolist() == pytest.approx([0.5, 0.35])
    deficits, errors = deficits_to_best(scores)
    np.testing.assert_allclose(deficits, [0, 0.15])
    np.testing.assert_allclose(errors, [0, np.std([0.1, 0.2], ddof=1) / np.sqrt(2)])


@pytest.mark.parametrize("role", ["documents", "queries"])
def test_real_queries_beyond_the_first_score_only_methods_that_are_not_far_behind(role):
    anchors, queries = cosine(planted_anchors(1500, 24, 32, noise=0.7)).split(0.5)
    methods = [Isometry(), Away()]
    relevant = tuple(np.array([i]) for i in anchors.ids[: len(queries)])
    found = real_scores(methods, anchors.folds(full=True), role, QueryPairs(queries.x, queries.y, relevant))
    assert found.overlap.shape == (2, len(queries))
    assert np.isfinite(found.overlap[0]).all()
    deficits, errors = deficits_to_best(found.overlap[:, :300])
    assert deficits[1] > FAR * errors[1]
    for scores in (found.overlap, found.recall):
        assert np.isfinite(scores[:, :300]).all()
        assert np.isnan(scores[1, 300:]).all()
    chosen = fit(anchors, role=role, keep_affine=True, queries=QueryPairs(queries.x, queries.y, relevant)).record
    assert all(np.isfinite(c.score) and np.isfinite(c.deficit_error) for c in chosen.candidates)


def test_queries_are_split_into_two_halves():
    queries = cosine(textlike_anchors(100, 6, 9))
    halves = [query_pairs(queries, half=half) for half in (0, 1)]
    rows = [{tuple(row) for row in half.x.tolist()} for half in halves]
    assert rows[0] | rows[1] == {tuple(row) for row in queries.x.tolist()}
    assert not rows[0] & rows[1]


def test_the_mean_of_the_target_gets_more_weight_only_where_it_dominates():
    planted = planted_anchors(200, 24, 32)
    even = cosine(dataclasses.replace(planted, y=planted.y - 0.7 * planted.y.mean(axis=0)))
    for anchors, expected in ((cosine(textlike_anchors(200, 9, 12)), 1.5), (even, 1.0)):
        mean = anchors.y.astype(np.float64).mean(axis=0)
        assert (mean @ mean > 0.5) == (expected == 1.5)
        for role, weight in (("documents", expected), ("decode", 1.0)):
            methods = candidates_for(role, anchors.moments(), real=False)
            assert {m.mean_weight for m in methods if isinstance(m, Bridge)} == {weight}
    plain = textlike_anchors(200, 9, 12)  # under L2 the mean is a place, not a direction
    assert {m.mean_weight for m in candidates_for("documents", plain.moments(), real=False) if isinstance(m, Bridge)} == {1.0}


@pytest.fixture(scope="module")
def bent():
    """Anchors that no affine map follows, and queries."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 8))
    y = np.tanh(2 * x @ np.linalg.qr(rng.normal(size=(8, 8)))[0]) + (x**2 - 1) @ rng.normal(size=(8, 8)) / 4
    return cosine(dataclasses.replace(planted_anchors(900, 8, 8), x=x.astype(np.float32), y=y.astype(np.float32))).split(1 / 3)


def test_a_kernel_stands_on_the_affine_choice_without_queries(bent):
    anchors, queries = bent
    affine = fit(anchors, keep_affine=True)
    for pairs in (None, QueryPairs(queries.x, queries.y)):
        found = fit(anchors, queries=pairs)
        assert isinstance(found, eb.KernelMap)
        for name in ("alpha", "shrinkage_target_weight"):
            assert found.record.parameters[name] == affine.record.parameters[name]
        assert found.record.chosen_by == ("documents" if pairs is None else "queries")


def test_penalties_are_compared_on_real_queries_where_given(bent):
    anchors, queries = bent
    kernel = Kernel(alpha=0.3, shrinkage_target_weight=1.0)
    penalty, candidates = kernel.contest(anchors, "cpu", QueryPairs(queries.x, queries.y))
    assert penalty == max(candidates, key=lambda c: c.score).parameters["penalty"]
    rows = anchors.sample(1500, kernel.seed)
    rows = rows.at(np.argsort(hash_ids(rows.ids, "kernel fold", kernel.seed)))
    fold = np.arange(len(rows)) % 3
    translated = np.empty_like(rows.y)
    for number in range(3):
        fitted = Kernel(alpha=0.3, shrinkage_target_weight=1.0, penalty=penalty).fit(rows.at(fold != number))
        translated[fold == number] = fitted.apply(rows.x[fold == number])
    expected = overlap(top_k(queries.y, translated, 10).ids, top_k(queries.y, rows.y, 10).ids).mean()
    assert max(c.score for c in candidates) == pytest.approx(expected, abs=0.003)  # a near tie may fall either way


def test_the_best_penalty_is_found_on_the_way_from_the_middle(bent):
    anchors, queries = bent
    for scored in (None, QueryPairs(queries.x, queries.y)):
        found = PenaltyTrial.of(anchors, 0, 0.3, 1.0, 1.0, "documents", torch.device("cpu"), scored).compared()
        assert {0.3, 100.0} < set(found) <= set(PENALTIES)
        means = {penalty: scores.mean() for penalty, scores in found.items()}
        best = max(means, key=means.__getitem__)
        assert means[best] > means[100.0]  # no affine map follows these rows
        place = PENALTIES.index(best)
        assert all(PENALTIES[i] in means for i in (place - 1, place + 1) if 0 <= i < len(PENALTIES))


def test_float32_gives_the_translations_of_float64():
    anchors = cosine(textlike_anchors(600, 24, 32))
    for alpha, expected in ((0.03, torch.float32), (1e-5, torch.float64)):
        problem = KernelRidge.of(anchors.moments(), alpha, 0.75, anchors.x, torch.device("cpu"))
        smoother = problem.smoother(anchors.x, anchors.y, anchors.x[:50], 0.03)
        assert smoother.linear.dtype == expected
        for penalty in PENALTIES:
            fitted = Kernel(alpha=alpha, shrinkage_target_weight=0.75, penalty=penalty).fit(anchors)
            found = (smoother.translations(penalty) + problem.mean_y).numpy()
            y = anchors.x[:50] @ fitted.affine.coef.T + fitted.affine.intercept
            k = np.exp(-fitted.gamma * ((anchors.x[:50, None] - fitted.landmarks) ** 2).sum(2))
            np.testing.assert_allclose(found, y + k @ fitted.weights, atol=1e-4)


def test_a_kernel_gains_little_where_an_affine_map_is_the_truth():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8000, 256), dtype=np.float32)
    y = x @ rng.standard_normal((256, 256), dtype=np.float32) / 20 + rng.standard_normal((8000, 256), dtype=np.float32)
    anchors = dataclasses.replace(planted_anchors(8000, 256, 256), x=x, y=y)
    _, candidates = Kernel(alpha=0.03, shrinkage_target_weight=1.0).contest(anchors, "cpu")
    assert max(c.score for c in candidates) - candidates[-1].score < 0.01
