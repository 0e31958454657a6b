"""Isotropy of vectors: mean cosine and effective rank."""

from __future__ import annotations

import math

import numpy as np

from embridge.arrays import unit

_SAMPLE = 10_000  # rows used for the effective rank


class Isotropy:
    """Mean cosine of pairs of rows and effective rank, from batches of rows.

    Parameters
    ----------
    rows : int
        Largest number of rows: the sample for the rank is spread evenly over them.

    Examples
    --------
    >>> found = Isotropy(3)
    >>> found.add(np.eye(3, dtype=np.float32))
    >>> round(found.mean_cosine, 6), round(found.effective_rank, 6)
    (0.0, 2.0)
    """

    def __init__(self, rows: int) -> None:
        self._step = max(1, -(-rows // _SAMPLE))
        self._seen = 0
        self._counted = 0
        self._total: np.ndarray | float = 0.0
        self._sample: list[np.ndarray] = []

    def add(self, vectors: np.ndarray) -> None:
        """Add finite rows of shape (n, dim); zero rows have no direction and are ignored."""
        first = -self._seen % self._step
        self._seen += len(vectors)
        rows = unit(vectors)
        self._counted += int(rows.any(axis=1).sum())
        self._total = self._total + rows.sum(axis=0, dtype=np.float64)
        self._sample.append(rows[first :: self._step])

    @property
    def mean_cosine(self) -> float:
        """Mean cosine of all pairs of different rows, ``(|sum u|^2 - n) / (n (n - 1))`` with u of unit length; NaN below two rows.

        Near zero where directions are used evenly. At 0.8 the mean of all rows is the largest part of each.
        """
        n = self._counted
        return float(np.vdot(self._total, self._total) - n) / (n * (n - 1)) if n > 1 else math.nan

    @property
    def effective_rank(self) -> float:
        """``exp(-sum p log p)`` with p the shares of the eigenvalues of the covariance of directions (Roy and Vetterli 2007).

        It equals the width where all dimensions have equal variance. NaN where rows do not differ.
        """
        rows = np.concatenate(self._sample).astype(np.float64) if self._sample else np.empty((0, 1))
        if len(rows) < 2:
            return math.nan
        rows -= rows.mean(axis=0)
        values = np.maximum(np.linalg.eigvalsh(rows.T @ rows if len(rows) > rows.shape[1] else rows @ rows.T), 0)
        if not values.sum() > 1e-12 * len(rows):
            return math.nan
        shares = values[values > 0] / values.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))
