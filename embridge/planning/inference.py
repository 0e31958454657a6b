"""Intervals that hold for all strategies at once, so that the best of them may be chosen by them."""

from __future__ import annotations

import numpy as np

from embridge.evaluation import resampled_means


def simultaneous_intervals(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> np.ndarray:
    """Intervals of the means of several strategies that hold together, whichever of them is then chosen for what it scored.

    Queries are resampled jointly for all strategies, so what they have in common stays in common. With m the means and s their
    standard errors, c is the `level`-quantile over resamples of ``max_j |m*_j - m_j| / s_j`` and the intervals are
    ``m_j +- c s_j`` (max-t: Westfall and Young 1993, Romano and Wolf 2005). For one strategy c is about 1.96.

    Parameters
    ----------
    values : ndarray of shape (strategies, queries)
    level : float, default 0.95
    seed : int, default 0

    Returns
    -------
    ndarray of shape (strategies, 2)
    """
    n = values.shape[1]
    if n < 2:  # one query tells nothing of others
        return np.tile([-np.inf, np.inf], (len(values), 1))
    means = values.mean(axis=1)
    centred = values - means[:, None]
    errors = centred.std(axis=1) / np.sqrt(n)
    alive = errors > 1e-12 * np.abs(means)  # what is the same for every query has no error, but for rounding
    if not alive.any():
        return np.stack([means, means], 1)
    largest = np.abs(resampled_means((centred[alive] / errors[alive, None]).T, seed=seed)).max(axis=1)
    half = np.quantile(largest, level) * np.where(alive, errors, 0)
    return np.stack([means - half, means + half], 1)
