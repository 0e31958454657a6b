"""Decoders measured on translated vectors: against scikit-learn's metrics, brute-force resampling and planted data."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error, r2_score

import embridge as eb
from embridge.errors import ParameterError, SpaceMismatchError, TooFewAnchorsError
from embridge.evaluation.decoders import _classification, _of_cells, _regression
from embridge.testing.translators import planted_anchors


@pytest.fixture(scope="module")
def planted():
    """Anchors with labels, a map fitted on 300 of them, and a head trained on those."""
    anchors = planted_anchors(1000, 5, 7, noise=0.02)
    labels = np.where(anchors.y[:, 0] > anchors.y[:, 1], "up", "down")
    train = anchors.sample(300)
    y = labels[np.isin(anchors.ids, train.ids)]
    head = eb.LinearHead.from_estimator(LogisticRegression().fit(train.y, y), anchors.target)
    return anchors, labels, eb.fit(train, "linear"), head


def test_every_strategy_of_decoding_is_compared(planted):
    anchors, labels, translation, head = planted
    seen = []
    found = eb.evaluate_decoder(head, anchors, labels, via=translation, progress=lambda *a: seen.append(a))
    assert [s.name for s in found.strategies] == ["native", "translated", "no-translation", "retrained"]
    assert (found.rows, found.trained_on, found.padded, found.kind) == (700, 300, 2, "classifier")
    assert seen == [(i, 4) for i in (1, 2, 3, 4)]
    accuracy = {s.name: s.values["accuracy"] for s in found.strategies}
    assert accuracy["native"] > 0.95
    assert accuracy["translated"] > accuracy["no-translation"] + 0.2
    assert accuracy["translated"] > 0.8
    for s in found.strategies:
        for metric, (low, high) in s.intervals.items():
            assert low <= s.values[metric] <= high
    rest = anchors.without(translation.anchor_hashes)
    truth = labels[np.isin(anchors.ids, rest.ids)]
    given = head.decode(translation.apply(rest.x)).prediction.astype(str)
    assert found["translated"].values["accuracy"] == pytest.approx(accuracy_score(truth, given))
    assert found["translated"].values["macro_f1"] == pytest.approx(f1_score(truth, given, average="macro"))
    assert "retrained" in str(found)
    assert found.to_dict()["strategies"][0]["name"] == "native"
    with pytest.raises(KeyError):
        found["magic"]
    again = eb.evaluate_decoder(head, anchors, dict(zip(anchors.ids.tolist(), labels, strict=True)), via=translation)
    assert again.strategies == found.strategies


def test_rows_are_kept_apart(planted):
    anchors, labels, translation, head = planted
    unknown = eb.LinearMap(translation.coef, translation.intercept, translation.source, translation.target)
    found = eb.evaluate_decoder(head, anchors, labels, via=unknown)
    assert found.rows + found.trained_on == len(anchors)  # the map does not know its rows, so half of all train
    assert 400 < found.rows < 600
    rest = anchors.without(translation.anchor_hashes)
    less = eb.evaluate_decoder(head, anchors, labels, via=translation, exclude=rest.ids[:100], retrained=False)
    assert (less.rows, less.trained_on) == (600, 0)
    assert [s.name for s in less.strategies] == ["native", "translated", "no-translation"]
    mine = eb.evaluate_decoder(head, anchors, labels, via=translation, train=rest.at(np.arange(50)))
    assert (mine.rows, mine.trained_on) == (650, 50)
    some = {i: label for i, label in zip(anchors.ids.tolist(), labels, strict=True) if i % 2}
    assert eb.evaluate_decoder(head, anchors, some, via=translation).rows == sum(i % 2 for i in rest.ids.tolist())


def test_regressors_and_outputs(planted):
    anchors, _, translation, _ = planted
    wide = anchors.y @ np.random.default_rng(0).normal(size=(7, 3))
    for kind, targets in (("regressor", wide[:, 0]), ("regressor", wide), ("output", wide)):
        model = Ridge().fit(anchors.y, targets)
        head = eb.LinearHead.from_estimator(model, anchors.target, kind=kind)
        found = eb.evaluate_decoder(head, anchors, targets, via=translation)
        rest = anchors.without(translation.anchor_hashes)
        truth, given = targets[np.isin(anchors.ids, rest.ids)], model.predict(translation.apply(rest.x))
        values = found["translated"].values
        assert set(values) == ({"r2", "mse"} if kind == "regressor" else {"mse"})
        assert values["mse"] == pytest.approx(mean_squared_error(truth, given), rel=1e-4)
        if kind == "regressor":
            assert values["r2"] == pytest.approx(r2_score(truth, given), abs=1e-5)
        assert found["native"].values["mse"] < values["mse"] < found["no-translation"].values["mse"]


def test_macro_f1_is_that_of_scikit_learn_for_any_confusion():
    rng = np.random.default_rng(0)
    for classes in (2, 5, 9):
        truth, found = rng.integers(classes, size=(2, 40))
        values, _ = _classification(found, truth, 0)
        assert values["macro_f1"] == pytest.approx(f1_score(truth, found, average="macro"))
        cells, counts = np.unique(truth * classes + found, return_counts=True)
        accuracy, f1 = _of_cells(cells, counts[None], classes)
        assert (accuracy[0], f1[0]) == pytest.approx((accuracy_score(truth, found), f1_score(truth, found, average="macro")))


def test_intervals_are_those_of_resampled_rows():
    rng = np.random.default_rng(1)
    truth = rng.integers(4, size=300)
    found = np.where(rng.random(300) < 0.7, truth, rng.integers(4, size=300))
    _, intervals = _classification(found, truth, 0)
    drawn = [rng.integers(300, size=300) for _ in range(1000)]
    scores = np.array([(accuracy_score(truth[r], found[r]), f1_score(truth[r], found[r], average="macro")) for r in drawn])
    for column, metric in enumerate(("accuracy", "macro_f1")):
        assert np.allclose(intervals[metric], np.quantile(scores[:, column], [0.025, 0.975]), atol=0.02)
    y = rng.normal(size=(300, 1))
    given = y + 0.5 * rng.normal(size=(300, 1))
    values, intervals = _regression(given, y, 0, r2=True)
    scores = np.array([r2_score(y[r], given[r]) for r in drawn])
    assert np.allclose(intervals["r2"], np.quantile(scores, [0.025, 0.975]), atol=0.02)
    assert values["r2"] == pytest.approx(r2_score(y, given))


def test_what_cannot_be_measured_is_reported(planted):
    anchors, labels, translation, head = planted
    with pytest.raises(ParameterError, match="one per row of the 1,000 anchors"):
        eb.evaluate_decoder(head, anchors, labels[:-1], via=translation)
    with pytest.raises(ParameterError, match="one string, integer or boolean"):
        eb.evaluate_decoder(head, anchors, anchors.y, via=translation)
    with pytest.raises(TooFewAnchorsError, match="Got 0 of 1,000"):
        eb.evaluate_decoder(head, anchors, {}, via=translation, retrained=False)
    with pytest.raises(SpaceMismatchError):
        eb.evaluate_decoder(head, anchors.reversed(), labels, via=translation)
    other = eb.LinearHead(np.eye(2, 4), [0, 0], eb.Space("elsewhere", 4), "output")
    with pytest.raises(SpaceMismatchError, match="elsewhere"):
        eb.evaluate_decoder(other, anchors, labels, via=translation)
    wide = eb.LinearHead(np.eye(2, 7), [0, 0], anchors.target, "output")
    with pytest.raises(SpaceMismatchError, match="outputs expects 2"):
        eb.evaluate_decoder(wide, anchors, anchors.y, via=translation)
    with pytest.raises(ParameterError, match="must be numbers"):
        eb.evaluate_decoder(wide, anchors, labels, via=translation)
