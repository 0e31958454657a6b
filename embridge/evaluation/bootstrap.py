"""Bootstrap intervals of means over queries: for one strategy, and for several at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_RESAMPLES = 1000
_BLOCK = 1 << 21  # counts held at once: 16 MiB
FEW = 30  # queries below which resampling underestimates the uncertainty


def resampled_means(values: np.ndarray, *, resamples: int = _RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means of every column over the same resamples of the rows, shape (resamples, n_columns).

    A resample is a vector of counts per row, so all columns are one matrix product. One seed draws the same rows for all
    columns, so differences between them are paired.
    """
    return np.concatenate([counts @ values for counts in _counts(len(values), resamples, seed)]) / len(values)


def _counts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // n)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def bootstrap_intervals(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> list[tuple[float, float]]:
    """`bootstrap_interval` of every column of an array of shape (n_queries, n_columns), over the same resamples."""
    low, high = np.quantile(resampled_means(values, seed=seed), [(1 - level) / 2, (1 + level) / 2], axis=0)
    if len(values) < FEW:
        floor, means = -1.0 if values.min() < 0 else 0.0, values.mean(axis=0)
        half = hoeffding(len(values), level, 1 - floor)
        low = np.minimum(low, np.maximum(means - half, floor))
        high = np.maximum(high, np.minimum(means + half, 1.0))
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def hoeffding(n: int, level: float, span: float) -> float:
    """Half-width of Hoeffding's interval for the mean of n values from a range of length `span` (Hoeffding 1963)."""
    return span * float(np.sqrt(np.log(2 / (1 - level)) / (2 * n)))


def bootstrap_interval(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-query values (Efron 1979), 1,000 resamples of the queries.

    Resamples of few queries vary too little (those of a single one are all equal), so below 30 of them the interval is at
    least that of Hoeffding's inequality for values in [0, 1], or in [-1, 1] where one is negative.

    Parameters
    ----------
    values : ndarray of shape (n_queries,)
    level : float, default 0.95
    seed : int, default 0

    Returns
    -------
    low, high : float
    """
    return bootstrap_intervals(values[:, None], level=level, seed=seed)[0]


def simultaneous_intervals(values: np.ndarray, *, level: float = 0.95, span: float = 2.0, seed: int = 0) -> np.ndarray:
    """Simultaneous intervals of the means of several strategies, valid also for a strategy chosen by its score.

    Queries are resampled jointly for all strategies, which keeps their correlation. With m the means and s their
    standard errors, c is the `level`-quantile over resamples of ``max_j |m*_j - m_j| / s_j`` and the intervals are
    ``m_j +- c s_j`` (max-t: Westfall and Young 1993, Romano and Wolf 2005). For one strategy c is about 1.96.

    Parameters
    ----------
    values : ndarray of shape (strategies, queries)
    level : float, default 0.95
    span : float, default 2.0
        Length of the range of values about zero, by which below 30 queries the intervals are those of Hoeffding's inequality with
        Bonferroni's correction: resamples of few queries vary too little.
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
    centered = values - means[:, None]
    errors = centered.std(axis=1) / np.sqrt(n)
    alive = errors > 1e-12 * np.abs(means)  # a value equal for every query has no error, except rounding
    if not alive.any():
        return np.stack([means, means], 1)
    largest = np.abs(resampled_means((centered[alive] / errors[alive, None]).T, seed=seed)).max(axis=1)
    half = np.quantile(largest, level) * np.where(alive, errors, 0)
    return np.stack([means - half, means + half], 1)
