"""Ridge and bridge: their formulas written out in NumPy, their limits, and how folds choose."""

import dataclasses

import numpy as np
import pytest

from embridge.anchors.fold_moments import FoldMoments
from embridge.errors import TooFewAnchorsError
from embridge.maps import LinearMap
from embridge.neighbors import overlap, top_k
from embridge.testing.translators import planted_anchors, textlike_anchors
from embridge.translators import Bridge, Isometry, Ridge, fit
from embridge.translators.bridge import ALPHAS, SHARES
from embridge.translators.scoring import fold_scores
from embridge.types import Metric, Space

WIDTHS = [(6, 9), (9, 6), (8, 8)]


def wide_rows(anchors):
    return anchors.x.astype(np.float64), anchors.y.astype(np.float64)


@pytest.mark.parametrize(("p", "q"), WIDTHS)
@pytest.mark.parametrize("alpha", [1e-3, 0.5, 20.0])
def test_the_gradient_of_ridge_is_zero_at_its_solution(alpha, p, q):
    anchors = textlike_anchors(100, p, q)
    x, y = wide_rows(anchors)
    found = Ridge(alpha).solve(anchors.moments())
    residual = x @ found.weight + found.intercept - y
    unit = x.var(0).mean()  # alpha is in units of the mean feature variance
    of_weight = x.T @ residual / len(x) + alpha * unit * found.weight
    scale = np.abs((x - x.mean(0)).T @ y / len(x)).max()
    assert np.abs(of_weight).max() < 1e-9 * scale
    assert np.abs(residual.mean(0)).max() < 1e-12  # the intercept is free


@pytest.mark.parametrize(("p", "q"), WIDTHS)
@pytest.mark.parametrize(("alpha", "s"), [(0.3, 1.0), (2.0, 0.4)])
def test_bridge_is_its_formula(alpha, s, p, q):
    anchors = textlike_anchors(100, p, q)
    x, y = wide_rows(anchors)
    n, x0, y0 = len(x), x - x.mean(0), y - y.mean(0)
    scale_x, scale_y = (np.sqrt(np.square(side).sum() / side.size) for side in (x0, y0))
    x0, y0 = x0 / scale_x, y0 / scale_y
    u, _, vt = np.linalg.svd(x0.T @ y0, full_matrices=False)
    c = np.linalg.norm(y0) / np.linalg.norm(x0 @ u @ vt)
    weight = np.linalg.solve(x0.T @ x0 / n + alpha * np.eye(p), x0.T @ y0 / n + alpha * s * c * u @ vt)
    found = Bridge(alpha, s).solve(anchors.moments())
    np.testing.assert_allclose(found.weight, weight * scale_y / scale_x, rtol=0, atol=1e-9)
    np.testing.assert_allclose(x.mean(0) @ found.weight + found.intercept, y.mean(0), rtol=0, atol=1e-9)


def least_squares_weight(anchors):
    x, y = wide_rows(anchors)
    return np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=1e-7)[0]


@pytest.mark.parametrize(("p", "q"), WIDTHS)
@pytest.mark.parametrize(
    ("bridge", "end", "tolerance"),
    [
        (Bridge(0.3, 0.0), Ridge(0.3), 0),
        (Bridge(np.inf, 1.0), Isometry(), 1e-12),
        (Bridge(1e9, 1.0), Isometry(), 1e-7),
        (Bridge(0.0, 0.0), least_squares_weight, 1e-9),
        (Bridge(0.0, 1.0), least_squares_weight, 1e-9),
        (Bridge(1e-10, 1.0), least_squares_weight, 1e-6),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_bridge_equals_its_three_limits(bridge, end, tolerance, p, q):
    anchors = textlike_anchors(100, p, q)
    moments = anchors.moments()
    expected = end.solve(moments).weight if isinstance(end, Ridge | Isometry) else end(anchors)
    np.testing.assert_allclose(bridge.solve(moments).weight, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_bridge_without_alpha_is_least_squares_of_minimum_norm():
    anchors = planted_anchors(12, 20, 24)
    expected = least_squares_weight(anchors)
    np.testing.assert_allclose(Bridge(0.0, 1.0).solve(anchors.moments()).weight, expected, rtol=0, atol=1e-6)


def candidates_directly(anchors, alphas, shares):
    """For every fold and candidate the held-out rows and their translation, fitted without the fold."""
    folds = anchors.folds()  # the samples hold all rows, for no fold has over 1,000
    for fold, (x, y) in enumerate(folds.samples):
        assert len(x) == folds.parts[fold].n
        moments = folds.without(fold)
        for i, alpha in enumerate(alphas):
            for j, s in enumerate(shares):
                found = Bridge(alpha, s).solve(moments)
                map_ = LinearMap(found.weight.T, found.intercept, anchors.source, anchors.target)
                yield (fold, i, j), x, y, x @ found.weight + found.intercept, map_.apply(x)


def scores_of(anchors, role="documents", alphas=ALPHAS, shares=SHARES):
    """Mean score of every candidate by role, shape (alphas, shares)."""
    grid = [Bridge(alpha, s) for alpha in alphas for s in shares]
    return fold_scores(grid, anchors.folds(), role).mean(1).reshape(len(alphas), len(shares))


@pytest.mark.parametrize(("p", "q"), [(6, 9), (9, 6)])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("role", ["documents", "decode"])
def test_scores_of_folds_are_those_of_a_search(metric, normalized, p, q, role):
    anchors, alphas, shares = planted_anchors(300, p, q, noise=0.3), (1e-3, 0.3, np.inf), (0.0, 0.5, 1.0)
    # Lengths that differ, so that the metrics rank differently.
    lengths = np.random.default_rng(2).uniform(0.3, 2, size=(300, 1))
    y = anchors.y / np.linalg.norm(anchors.y, axis=1, keepdims=True) if normalized else anchors.y * lengths
    target = Space("target", q, metric, normalized)
    anchors = dataclasses.replace(anchors, y=y.astype(np.float32), target=target)
    expected, units = np.zeros((len(alphas), len(shares))), 0
    for (fold, i, j), _, y, _, applied in candidates_directly(anchors, alphas, shares):
        itself, queries = np.arange(len(y)), y
        if role == "documents" and (normalized or metric == Metric.COSINE):
            rows = y / np.linalg.norm(y, axis=1, keepdims=True) if metric == Metric.COSINE else y
            queries = rows - anchors.folds().without(fold).mean_y.astype(np.float32)
        found, truth = (top_k(queries, rows, 10, metric, exclude=itself).ids for rows in (applied, y))
        expected[i, j] += overlap(found, truth).sum()
        units += len(y) if i == j == 0 else 0
    # Two ways to round may exchange one neighbor with one as near.
    np.testing.assert_allclose(scores_of(anchors, role, alphas, shares), expected / units, rtol=0, atol=0.005)
    assert np.ptp(expected) > 0.05 * units


@pytest.mark.parametrize("role", ["documents", "decode", "queries"])
def test_the_best_score_is_taken(role):
    anchors = planted_anchors(300, 24, 32, noise=0.7)
    scores = scores_of(anchors, role)
    i, j = np.unravel_index(scores.size - 1 - scores.ravel()[::-1].argmax(), scores.shape)
    record = fit(anchors, "bridge", role=role).record
    assert record.parameters == {"alpha": ALPHAS[i], "shrinkage_target_weight": SHARES[j], "rank": 24}
    assert (record.role, record.chosen_by) == (role, "documents")
    assert [c.score for c in record.candidates] == scores.ravel().tolist()


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_the_mean_of_the_target_takes_its_weight(weight):
    anchors = planted_anchors(100, 6, 9)
    plain, weighted = (Bridge(0.3, 0.5, mean_weight=w).solve(anchors.moments()) for w in (1.0, weight))
    np.testing.assert_array_equal(plain.weight, weighted.weight)
    np.testing.assert_allclose(weighted.intercept - plain.intercept, (weight - 1) * anchors.y.mean(0), rtol=0, atol=1e-6)


def test_one_parameter_can_be_given_and_the_other_chosen():
    anchors = planted_anchors(60, 6, 9)
    for given, name, grid in (
        ({"alpha": 0.7}, "shrinkage_target_weight", SHARES),
        ({"shrinkage_target_weight": 0.9}, "alpha", ALPHAS),
        ({"alpha": np.inf}, "shrinkage_target_weight", SHARES),
    ):
        for role in ("documents", "queries", "decode"):
            record = fit(anchors, "bridge", role=role, **given).record
            assert record.parameters.items() >= given.items()
            assert [c.parameters[name] for c in record.candidates] == list(grid)
            assert np.isfinite([c.score for c in record.candidates]).all()


def folds_of(anchors, size):
    parts = [anchors.at(np.arange(start, start + size)) for start in range(0, len(anchors), size)]
    return FoldMoments(tuple(part.moments() for part in parts), tuple((part.x, part.y) for part in parts))


def test_small_folds_still_distinguish_candidates():
    # Of 9 rows, a list of 8 would hold all others, whatever the map.
    folds = folds_of(planted_anchors(45, 12, 14, noise=0.5), 9)
    scores = fold_scores([Bridge(alpha, s) for alpha in ALPHAS for s in SHARES], folds, "documents")
    assert all(np.ptp(scores[:, 9 * fold : 9 * fold + 9].mean(1)) > 0 for fold in range(5))


def test_where_folds_do_not_distinguish_candidates_the_safest_is_taken():
    record = Bridge().fit(folds_of(planted_anchors(10, 12, 14), 2)).record
    assert {c.score for c in record.candidates} == {0}
    assert (record.parameters["alpha"], record.parameters["shrinkage_target_weight"]) == (ALPHAS[-1], SHARES[-1])


def test_folds_need_anchors_enough():
    with pytest.raises(TooFewAnchorsError, match="too few for 5 folds"):
        Bridge().fit(planted_anchors(4, 6, 9))
