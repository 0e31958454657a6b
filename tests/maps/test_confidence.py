"""Confidence: what it predicts, that its bound holds, and that its file is the map's."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import embridge as eb
from embridge.anchors import Anchors
from embridge.errors import (
    MapError,
    ParameterError,
    SpaceMismatchError,
    TooFewAnchorsError,
    UnreadableFileError,
)
from embridge.maps.confidence import translation_errors
from embridge.records import AnchorRecord
from embridge.translators.calibration import LEAST_ROWS, halves
from embridge.types import Metric
from tests.maps.support import NAMES, NEW, OLD, TARGETS, P, Q, calibrated, planted

# What it computes


def test_leverage_is_that_of_the_formula():
    train = planted(300, 1)
    known = eb.calibrate(eb.fit(train, "ridge", alpha=0.01), train, planted(100, 2, start=5000)).confidence
    x = train.x.astype(np.float64)
    centered = x - x.mean(0)
    sxx = centered.T @ centered
    inverse = np.linalg.inv(sxx / 300 + 0.1 * np.trace(sxx) / 300 / P * np.eye(P))
    rows = planted(50, 3).x
    expected = [1 / 300 + (row - x.mean(0)) @ inverse @ (row - x.mean(0)) / 300 for row in rows.astype(np.float64)]
    np.testing.assert_allclose(known.leverage(rows), expected, rtol=1e-4)


def test_moments_and_folds_calibrate_as_their_anchors_do():
    train, rows = planted(500, 1), planted(200, 2, start=5000)
    translation = eb.fit(train, "ridge", alpha=0.01)
    one, two, three = (eb.calibrate(translation, given, rows).confidence for given in (train, train.moments(), train.folds()))
    for other in (two, three):
        np.testing.assert_allclose(other.predict(rows.x), one.predict(rows.x), rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_errors_are_what_they_are_said_to_be(target):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, Q))
    plain = [1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a, b, strict=True)]
    distances = np.linalg.norm(a - b, axis=1)
    expected = distances if target.metric in (Metric.L2, Metric.DOT) and not target.normalized else plain
    np.testing.assert_allclose(translation_errors(a, b, target), expected, atol=1e-12)
    np.testing.assert_array_equal(translation_errors(a, a, target), 0)


def test_nearly_equal_directions_keep_their_digits():
    a = np.array([[1.0, 0.0]])
    assert translation_errors(a, np.array([[1.0, 1e-9]]), TARGETS[0])[0] == pytest.approx(0.5e-18, rel=1e-6)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_rows_with_the_highest_predicted_error_have_higher_errors_on_planted_data(target):
    translation, fresh = calibrated(target), planted(3000, 7, target, start=10_000)
    errors = translation_errors(translation.apply(fresh.x), fresh.y, target)
    predicted = translation.confidence.predict(fresh.x)
    assert predicted.dtype == np.float32
    found = translation.confidence.check(fresh.x, errors)
    assert found.worst_tenth_ci[0] > 1.5
    assert found.worst_tenth <= found.oracle_tenth
    assert found.rows == 3000
    assert 0.5 < predicted.mean() / errors.mean() < 2
    assert "no better than chance" not in str(found)


def test_errors_that_cannot_be_predicted_are_reported_as_such():
    translation, rng = calibrated(), np.random.default_rng(0)
    x = planted(400, 3).x
    found = translation.confidence.check(x, rng.uniform(size=400))
    assert found.worst_tenth == pytest.approx(1, abs=0.3)
    assert "no better than chance" in str(found)


def binomial_limits(n, p):
    """Four standard errors."""
    return n * p - 4 * (n * p * (1 - p)) ** 0.5, n * p + 4 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("coverage", [0.5, 0.9])
@pytest.mark.parametrize("target", TARGETS[1:3], ids=NAMES[1:3])
def test_the_bound_holds_as_often_as_it_says(target, coverage):
    """One fresh row for each of 600 calibrations, so that the calibrations are independent."""
    train = planted(1000, 1, target)
    translation = eb.fit(train, "ridge", alpha=0.01)
    moments, held, m = train.moments(), 0, 0
    pool = planted(600 * 81, 11, target, start=5000)
    for draw in range(600):
        rows = pool.at(np.arange(draw * 81, draw * 81 + 81))
        known = eb.calibrate(translation, moments, rows.at(np.arange(80)), seed=draw).confidence
        m = len(known.scores)
        last = rows.at(np.array([80]))
        held += int((translation_errors(translation.apply(last.x), last.y, target) <= known.bound(last.x, coverage)).all())
    low, _ = binomial_limits(600, coverage)
    _, high = binomial_limits(600, np.ceil((m + 1) * coverage) / (m + 1))  # what split conformal prediction gives exactly
    assert low <= held <= high


def test_weights_and_scores_are_of_different_rows():
    ids = np.array([f"r{i}" for i in range(101)], object)
    first, second = halves(ids, 0)
    assert (len(first), len(second)) == (50, 51)
    assert not set(first) & set(second)
    assert sorted([*first, *second]) == list(range(101))
    again = np.random.default_rng(0).permutation(101)
    assert {ids[i] for i in first} == {ids[again][i] for i in halves(ids[again], 0)[0]}  # by the id alone
    assert set(halves(ids, 1)[0]) != set(first)


def test_rows_that_give_scores_have_no_part_in_the_weights():
    train, rows = planted(500, 1), planted(200, 2, start=5000)
    translation = eb.fit(train, "ridge", alpha=0.01)
    _, second = halves(rows.ids, 0)
    changed = rows.y.copy()
    changed[second] = np.random.default_rng(0).normal(size=(len(second), Q))
    one, other = (eb.calibrate(translation, train, r).confidence for r in (rows, dataclasses.replace(rows, y=changed)))
    np.testing.assert_array_equal(one.weights, other.weights)
    assert not np.array_equal(one.scores, other.scores)


def test_the_quantile_is_that_of_the_finite_sample():
    known = dataclasses.replace(calibrated().confidence, scores=np.arange(1, 10.0))
    assert [known.quantile(c) for c in (0.9, 0.85, 0.8, 0.81, 0.1, 0.05)] == [9, 9, 8, 9, 1, 1]


@pytest.mark.parametrize("coverage", [0, 1, -0.1, 1.5, float("nan"), 0.999])
def test_an_unattainable_coverage_is_refused(coverage):
    with pytest.raises(ParameterError, match=r"coverage .* must be above 0 and at most 0\.995.*Got"):
        calibrated().confidence.bound(planted(3).x, coverage)


def test_only_rows_that_the_map_does_not_know_calibrate_it():
    train, fresh = planted(1000, 1), planted(LEAST_ROWS, 2, start=5000)
    translation = eb.fit(train, "ridge", alpha=0.01)
    mixed = Anchors(
        np.concatenate([train.ids, fresh.ids]), np.concatenate([train.x, fresh.x]), np.concatenate([train.y, fresh.y]), OLD, NEW,
        train.record,
    )  # fmt: skip
    known = eb.calibrate(translation, train.moments(), mixed).confidence
    assert known.hashes.tolist() == sorted(fresh.hashes().tolist())
    assert eb.calibrate(translation, train, mixed).record.calibrated == LEAST_ROWS
    unknowing = dataclasses.replace(translation, anchor_hashes=np.empty(0, np.uint64))  # fitted from moments
    assert eb.calibrate(unknowing, train, mixed).confidence.rows == LEAST_ROWS
    with pytest.raises(TooFewAnchorsError, match=r"at least 50 rows .* Got 49 of 1,049 instead\. Hint: hold out more"):
        eb.calibrate(translation, train, mixed.at(np.arange(1049)))


def test_other_spaces_do_not_calibrate():
    train, rows = planted(500, 1), planted(200, 2, start=5000)
    translation = eb.fit(train, "ridge", alpha=0.01)
    for given, held in ((train.reversed(), rows), (train, rows.reversed())):
        with pytest.raises(SpaceMismatchError, match="the calibration's data"):
            eb.calibrate(translation, given, held)


def test_a_constant_length_has_no_weight():
    """After a rotation of unit vectors it varies by rounding alone."""
    unit = dataclasses.replace(OLD, normalized=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, P))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = x + 0.1 * rng.normal(size=x.shape)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    record = AnchorRecord("a", "b", 600, 600, 0, 0.0, 0)
    rows = Anchors(np.arange(600), x.astype(np.float32), y.astype(np.float32), unit, dataclasses.replace(unit, name="new"), record)
    train, rest = rows.at(np.arange(400)), rows.at(np.arange(400, 600))
    assert eb.calibrate(eb.fit(train, "rotation"), train, rest).confidence.weights[2] == 0


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_exact_maps_and_absurd_rows_have_finite_errors(target):
    train = planted(200, 1, target, noise=0)
    translation = eb.calibrate(eb.fit(train, "ridge", alpha=0.0), train, planted(100, 2, target, start=5000, noise=0))
    rows = np.array([np.zeros(P), np.full(P, 1e30), np.full(P, -1e-30), train.x.mean(0)], np.float32)
    for values in (translation.confidence.predict(rows), translation.confidence.bound(rows)):
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert target.metric in (Metric.L2, Metric.DOT) or (values <= 2).all()


def test_a_wrong_width_is_reported():
    with pytest.raises(SpaceMismatchError, match=r"The confidence expects 6-dimensional vectors\. Got 9"):
        calibrated().confidence.predict(np.zeros((2, Q), np.float32))


# With its map


def test_calibrating_leaves_the_map_as_it_is():
    train = planted(500, 1)
    before = eb.fit(train, "ridge", alpha=0.01)
    after = eb.calibrate(before, train, planted(200, 2, start=5000))
    assert before.confidence is None
    assert after.fingerprint == before.fingerprint
    assert (before.record.calibrated, after.record.calibrated) == (0, 200)
    np.testing.assert_array_equal(after.coef, before.coef)
    assert after.confidence.coef is after.coef  # held once


def test_a_map_comes_back_from_its_file_with_its_confidence(tmp_path):
    translation, rows = calibrated(), planted(50, 5).x
    translation.save(tmp_path / "map.safetensors")
    found = eb.LinearMap.load(tmp_path / "map.safetensors")
    assert found.confidence.fingerprint == translation.confidence.fingerprint
    assert found.record == translation.record
    np.testing.assert_array_equal(found.confidence.predict(rows), translation.confidence.predict(rows))
    np.testing.assert_array_equal(found.confidence.bound(rows, 0.8), translation.confidence.bound(rows, 0.8))


def test_a_map_without_one_is_written_and_read_as_before(tmp_path):
    translation = eb.fit(planted(100, 1), "ridge", alpha=0.01)
    translation.save(tmp_path / "map.safetensors")
    assert set(load_file(tmp_path / "map.safetensors")) == {"coef", "intercept", "anchor_hashes"}
    assert eb.LinearMap.load(tmp_path / "map.safetensors").confidence is None


def resaved(path, change):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "checksum"}
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda t, m: t["confidence.scores"].__setitem__(0, 7.0),
        lambda t, m: t["confidence.factor"].__setitem__(0, np.nan),
        lambda t, m: t.pop("confidence.weights"),
        lambda t, m: t.update({"confidence.mean": np.zeros(3, np.float32)}),
        lambda t, m: m.update(confidence="nothing"),
        lambda t, m: m.update(confidence="[]"),
        lambda t, m: m.update(confidence=json.dumps({"kind": "manhattan", "anchors": 3, "fingerprint": ""})),
    ],
)
def test_a_confidence_that_was_damaged_is_refused(tmp_path, change):
    calibrated().save(tmp_path / "map.safetensors")
    resaved(tmp_path / "map.safetensors", change)
    with pytest.raises(UnreadableFileError, match=r"map\.safetensors"):
        eb.LinearMap.load(tmp_path / "map.safetensors")


def test_chains_and_inverses_have_none():
    translation = calibrated()
    assert translation.inverse().confidence is None
    assert translation.then(translation.inverse()).confidence is None


def test_the_confidence_of_another_map_is_refused():
    translation = calibrated()
    with pytest.raises(MapError, match="of a map with other coefficients"):
        dataclasses.replace(translation, coef=translation.coef * 2)


def test_an_evaluation_says_what_it_is_worth_on_rows_it_has_not_seen():
    translation = calibrated(n=400)
    both = [planted(400, 2, start=5000), planted(300, 8, start=20_000)]
    whole = dataclasses.replace(both[1], **{n: np.concatenate([getattr(b, n) for b in both]) for n in ("ids", "x", "y")})
    found = eb.evaluate(translation, whole, k=5)
    assert (found.corpus, found.confidence.rows) == (700, 300)
    fresh = both[1]
    errors = translation_errors(translation.apply(fresh.x), fresh.y, NEW)
    worst = np.argsort(-translation.confidence.predict(fresh.x), kind="stable")[:30]
    assert found.confidence.worst_tenth == pytest.approx(errors[worst].mean() / errors.mean())
    assert found.confidence.coverage == pytest.approx((errors <= translation.confidence.bound(fresh.x)).mean())
    assert found.to_dict()["confidence"]["level"] == 0.9
    assert eb.evaluate(translation, both[0], k=5).confidence is None  # it has seen all of them
    assert eb.evaluate(dataclasses.replace(translation, confidence=None), whole, k=5).confidence is None
