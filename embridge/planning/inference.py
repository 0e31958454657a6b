"""Intervals that hold for all strategies at once, so that the best of them may be chosen by them."""

from __future__ import annotations

import numpy as np

from embridge.evaluation import FEW, hoeffding, resampled_means


def simultaneous_intervals(values: np.ndarray, *, level: float = 0.95, span: float = 2.0, seed: int = 0) -> np.ndarray:
    """Intervals of the means of several strategies that hold together, whichever of them is then chosen for what it scored.

    Queries are resampled jointly for all strategies, so what they have in common stays in common. With m the means and s their
    standard errors, c is the `level`-quantile over resamples of ``max_j |m*_j - m_j| / s_j`` and the intervals are
    ``m_j +- c s_j`` (max-t: Westfall and Young 1993, Romano and Wolf 2005). For one strategy c is about 1.96.

    Parameters
    ----------
    values : ndarray of shape (strategies, queries)
    level : float, default 0.95
    span : float, default 2.0
        Length of the range of values about zero, by which below 30 queries the intervals are those of Hoeffding's inequality with
        Bonferroni's correction: few queries resampled are too much alike.
    seed : int, default 0

    Returns
    -------
    ndarray of shape (strategies, 2)
    """
    n = values.shape[1]
    means = values.mean(axis=1)
    if n < FEW:
        half = hoeffding(n, 1 - (1 - level) / len(values), span)
        return np.clip(np.stack([means - half, means + half], 1), -span / 2, span / 2)
    centred = values - means[:, None]
    errors = centred.std(axis=1) / np.sqrt(n)
    alive = errors > 1e-12 * np.abs(means)  # what is the same for every query has no error, but for rounding
    if not alive.any():
        return np.stack([means, means], 1)
    largest = np.abs(resampled_means((centred[alive] / errors[alive, None]).T, seed=seed)).max(axis=1)
    half = np.quantile(largest, level) * np.where(alive, errors, 0)
    return np.stack([means - half, means + half], 1)
