"""The offset of translated rows in an index of native and translated ones: one more dimension, as for hubness.

A row is stored as ``[x, c]``, c being the offset of a translated row and 0 for a native one, and a query is ``[q, |q|]``, so
that the inner product is ``<q, x> + c |q|``: the order is that of ``<q, x> + c`` for the unit query, whatever its length. Under L2
a dimension can only increase distances: queries get 0, and ``|q - x|^2`` grows by the square of the row's value, which is
``sqrt(-c)`` in translated rows or, where these must come nearer (c > 0), ``sqrt(c)`` in native ones.
"""

from __future__ import annotations

import numpy as np

from embridge.arrays import norms
from embridge.types import Metric


def with_offset(rows: np.ndarray, translated: np.ndarray, offset: float, metric: Metric) -> np.ndarray:
    """Rows with the offset column as their last column.

    Parameters
    ----------
    rows : ndarray of shape (n, dim)
        As stored in the index: unit under cosine.
    translated : ndarray of bool, shape (n,)
    offset : float
        To be added to the scores of translated rows; under L2 scores are negated squared distances.
    metric : Metric

    Returns
    -------
    ndarray of shape (n, dim + 1), float32
    """
    if metric == Metric.L2:
        column = np.where(translated == (offset < 0), np.sqrt(abs(offset)), 0)
    else:
        column = np.where(translated, offset, 0)
    return np.column_stack([rows, column]).astype(np.float32)


def with_length(queries: np.ndarray, metric: Metric) -> np.ndarray:
    """``[q, |q|]`` (``[q, 0]`` under L2), the query of a calibrated index."""
    column = np.zeros(len(queries)) if metric == Metric.L2 else norms(queries)
    return np.column_stack([queries, column]).astype(np.float32)
