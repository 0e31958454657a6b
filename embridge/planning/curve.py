"""How quality grows with the number of anchors, and what more of them would give."""

from __future__ import annotations

import numpy as np

from embridge.anchors import Anchors
from embridge.evaluation import extrapolate, resampled_means
from embridge.maps import LinearMap
from embridge.neighbours import overlap, top_k
from embridge.planning.trial import Trial
from embridge.records import LearningCurve
from embridge.translators import METHODS, Bridge, Ridge, Translator

_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
_QUERIES = 1000
_DRAWS = 200


def learning_curve(translation: LinearMap, train: Anchors, trial: Trial) -> LearningCurve:
    """Overlap at 1/16 to all of the anchors, and a forecast for twice and four times as many.

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
    if len(sizes) < 3:  # there are three unknowns
        return LearningCurve(tuple(sizes), tuple(table.mean(1).tolist()), (), (), ())
    forecast = extrapolate(np.array(sizes), table.mean(1), ahead, rising=True)
    drawn = extrapolate(np.array(sizes), resampled_means(table.T, resamples=_DRAWS), ahead, rising=True)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    intervals = tuple((float(a), float(b)) for a, b in zip(low, high, strict=True))
    return LearningCurve(tuple(sizes), tuple(table.mean(1).tolist()), ahead, tuple(forecast.tolist()), intervals)


def _method(translation: LinearMap, factor: float) -> Translator:
    parameters = translation.record.parameters
    if translation.record.method == "bridge":
        return Bridge(parameters["alpha"] * factor, parameters["s"])
    if translation.record.method == "ridge":
        return Ridge(parameters["alpha"] * factor)
    return METHODS[translation.record.method]()
