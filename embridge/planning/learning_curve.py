"""Quality as a function of the number of anchors, with a prediction for more of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from embridge.anchors import Anchors
from embridge.evaluation.benchmark import Benchmark
from embridge.evaluation.parallel import side_by_side
from embridge.maps import LinearMap
from embridge.neighbors import overlap
from embridge.records import LearningCurve
from embridge.translators.again import same_method

_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
_QUERIES = 1000
_UNKNOWNS = 3  # of the formula
_DRAWS = 200


def learning_curve(translation: LinearMap, train: Anchors, benchmark: Benchmark) -> LearningCurve:
    """Overlap at 1/16 to all of the anchors, and a prediction for twice and four times as many.

    There are two formulas (`_extrapolate`); which one fits depends on the pair, and on how many anchors there are for
    its dimensions. The prediction is the mean of both; its interval goes from the lower end to the higher end of their two
    intervals over resampled queries.

    Subsets are nested. Each is fitted by the method chosen on all anchors, with alpha in inverse proportion to their
    number, like the best alpha of ridge regression.
    """
    some = benchmark.at(np.arange(len(benchmark.queries))[:_QUERIES])
    sizes = sorted({size for share in _SHARES if (size := int(len(train) * share)) >= 8})
    scores = side_by_side(partial(_overlap, translation, train, some), sizes)
    ahead = (2 * len(train), 4 * len(train))
    if not sizes:  # fewer than 8 anchors
        return LearningCurve((), (), (), (), ())
    table = np.array(scores)
    if len(sizes) < _UNKNOWNS:
        return LearningCurve(tuple(sizes), tuple(table.mean(1).tolist()), (), (), ())
    points, means = np.array(sizes), table.mean(1)
    forecast = _extrapolate(points, means[None], ahead)[0].mean(axis=0)
    draws = np.random.default_rng(0).integers(table.shape[1], size=(_DRAWS, table.shape[1]))
    drawn = np.stack([table[:, draw].mean(1) for draw in draws])
    low, high = np.quantile(_extrapolate(points, drawn, ahead), [0.025, 0.975], axis=0)
    low, high = low.min(axis=0), high.max(axis=0)  # of both formulas
    intervals = tuple((float(a), float(b)) for a, b in zip(low, high, strict=True))
    return LearningCurve(tuple(sizes), tuple(means.tolist()), ahead, tuple(forecast.tolist()), intervals)


def _overlap(translation: LinearMap, train: Anchors, benchmark: Benchmark, size: int) -> np.ndarray:
    """Overlap by query of rows translated by a map that is fitted on some of the anchors."""
    fitted = same_method(translation.record, len(train) / size).fit(train.sample(size))
    rows, metric = fitted.apply(benchmark.corpus.x), benchmark.corpus.target.metric
    return overlap(benchmark.search(benchmark.queries.y, rows, metric, k=benchmark.k), benchmark.truth)


def _extrapolate(sizes: np.ndarray, values: np.ndarray, ahead: Sequence[int]) -> np.ndarray:
    """Predictions of two formulas for more anchors: ``a - b / (n + d)`` and ``a - b n^-c``.

    The first fits a linear map with many anchors per dimension; with fewer anchors the second fits better. Each is fitted by
    least squares, d and c on a grid; neither falls, nor exceeds 1.

    Parameters
    ----------
    sizes : ndarray of shape (points,)
    values : ndarray of shape (curves, points)
    ahead : sequence of int

    Returns
    -------
    ndarray of shape (curves, 2, ahead)
    """
    n, beyond = sizes[None].astype(float), np.array([ahead], float)
    d = np.concatenate([[0], np.geomspace(n[0, 0] / 16, 4 * n[0, -1], 40)])[:, None]
    c = np.linspace(0.1, 1.5, 29)[:, None]
    laws = ((1 / (n + d), 1 / (beyond + d)), (n**-c, beyond**-c))
    last, mean = values[:, -1:], values.mean(1, keepdims=True)
    out = np.empty((len(values), len(laws), len(ahead)))
    for number, (shape, further) in enumerate(laws):
        center = shape.mean(1, keepdims=True)
        spread = np.square(shape - center).sum(1)
        slopes = (values - mean) @ (shape - center).T / spread  # -b of every curve and d or c
        explained = np.where(slopes <= 0, slopes**2 * spread, -1.0)
        best = explained.argmax(1)
        found = mean + np.take_along_axis(slopes, best[:, None], 1) * (further - center)[best]
        out[:, number] = np.clip(np.where(explained.max(1, keepdims=True) < 0, last, found), last, 1.0)
    return out
