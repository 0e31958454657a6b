"""How quality grows with the number of anchors, and what more of them would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embridge.anchors import Anchors
from embridge.maps import LinearMap
from embridge.neighbours import overlap, top_k
from embridge.planning.trial import Trial
from embridge.records import LearningCurve
from embridge.translators import METHODS, Bridge, Ridge, Translator

_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
_QUERIES = 1000
_UNKNOWNS = 3  # of the formula
_DRAWS = 200


def learning_curve(translation: LinearMap, train: Anchors, trial: Trial) -> LearningCurve:
    """Overlap at 1/16 to all of the anchors, and a forecast for twice and four times as many.

    The interval of the forecast adds, in squares, that of resampled queries and the miss of the same formula one step back, on all
    anchors from half of them (twice that for four times as many).

    Subsets are nested. Each is fitted by the method that was chosen on all anchors, with alpha in inverse proportion to their
    number, as the best strength of ridge regression is.
    """
    some = np.arange(len(trial.asked))[:_QUERIES]
    asked, exclude = trial.asked.at(some), None if trial.exclude is None else trial.exclude[some]
    sizes = sorted({size for share in _SHARES if (size := int(len(train) * share)) >= 8})
    scores = []
    for size in sizes:
        fitted = _method(translation, len(train) / size).fit(train.sample(size))
        rows = fitted.apply(trial.corpus.x)
        found = top_k(asked.y, rows, trial.k, trial.corpus.target.metric, exclude=exclude, device=trial.device).ids
        scores.append(overlap(found, trial.truth[some]))
    ahead = (2 * len(train), 4 * len(train))
    table = np.array(scores)
    if len(sizes) < _UNKNOWNS:
        return LearningCurve(tuple(sizes), tuple(table.mean(1).tolist()), (), (), ())
    points, means = np.array(sizes), table.mean(1)
    forecast = _extrapolate(points, means, ahead)
    draws = np.random.default_rng(0).integers(len(some), size=(_DRAWS, len(some)))
    drawn = np.array([_extrapolate(points, table[:, draw].mean(1), ahead) for draw in draws])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    # How the formula holds beyond the points: half of the anchors foretell what all of them gave, and are held against it.
    missed = (
        abs(_extrapolate(points[:-1], means[:-1], sizes[-1:])[0] - means[-1]) * np.array([1, 2]) if len(sizes) > _UNKNOWNS else 0
    )
    low, high = forecast - np.hypot(forecast - low, missed), forecast + np.hypot(high - forecast, missed)
    intervals = tuple((float(a), float(b)) for a, b in zip(np.maximum(low, 0), np.minimum(high, 1), strict=True))
    return LearningCurve(tuple(sizes), tuple(means.tolist()), ahead, tuple(forecast.tolist()), intervals)


def _method(translation: LinearMap, factor: float) -> Translator:
    parameters = translation.record.parameters
    if translation.record.method == "bridge":
        return Bridge(parameters["alpha"] * factor, parameters["s"])
    if translation.record.method == "ridge":
        return Ridge(parameters["alpha"] * factor)
    return METHODS[translation.record.method]()


def _extrapolate(sizes: np.ndarray, values: np.ndarray, ahead: Sequence[int]) -> np.ndarray:
    """``a - b / (n + d)`` by least squares, d on a grid; neither falling nor above 1.

    What a linear map misses for want of anchors shrinks as 1/n once there are many for its dimensions, and slower before that.
    """
    best, error = np.full(len(ahead), values[-1]), np.inf
    for d in np.concatenate([[0], np.geomspace(sizes[0] / 16, 4 * sizes[-1], 40)]):
        design = np.stack([np.ones(len(sizes)), -1 / (sizes + d)], 1)
        found, *_ = np.linalg.lstsq(design, values, rcond=None)
        residual = float(np.square(design @ found - values).sum())
        if residual < error and found[1] >= 0:
            error = residual
            best = found[0] - found[1] / (np.array(ahead, float) + d)
    return np.clip(best, values[-1], 1.0)
