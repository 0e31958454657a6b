"""Intervals of means over queries, by resampling the queries and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_RESAMPLES = 1000
_BLOCK = 1 << 21  # counts held at once: 16 MiB


def resampled_means(values: np.ndarray, *, resamples: int = _RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means of every column over the same resamples of the rows, shape (resamples, n_columns).

    A resample is how often it drew each row, so that all columns are one matrix product. One seed draws the same rows whatever
    the columns are: differences between them are paired.
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
    edges = np.quantile(resampled_means(values, seed=seed), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [(float(low), float(high)) for low, high in edges.T]


def bootstrap_interval(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-query values (Efron 1979), 1,000 resamples of the queries.

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
