"""Hubness correction by one number per row, stored in the index as one more dimension (CSLS, Conneau et al. 2018).

``r(x)`` is the mean similarity of row x to its 10 nearest of some reference queries. A row is stored as ``[x, r(x)]`` and a query
is searched as ``[2 q, -1]``, so that the inner product is ``2 <q, x> - r(x)``: rows that are near to every query rank lower.
"""

from __future__ import annotations

import numpy as np

from embridge.arrays import unit
from embridge.errors import ParameterError

NEIGHBORS = 10


def bias(rows: np.ndarray, references: np.ndarray) -> np.ndarray:
    """``r(x)``, the mean of ``<x, q>`` over the 10 reference queries that are nearest to each row.

    Parameters
    ----------
    rows : ndarray of shape (n, dim)
        As stored in the index: unit under cosine.
    references : ndarray of shape (n_references, dim)
        Scaled to unit length.

    Returns
    -------
    ndarray of shape (n,), float32
    """
    if not len(references):
        raise ParameterError.must_be("hubness", "at least one reference query", 0)
    return mean_of_largest(rows, unit(references))


def mean_of_largest(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The mean of each row's 10 largest inner products with some queries, shape (n,), float32."""
    count = min(NEIGHBORS, len(queries))
    out = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), 4096):
        similar = rows[start : start + 4096] @ queries.T
        similar.partition(len(queries) - count, axis=1)
        out[start : start + 4096] = similar[:, -count:].mean(axis=1)
    return out


def with_bias(rows: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Rows with ``r(x)`` as their last column."""
    return np.column_stack([rows, bias(rows, references)]).astype(np.float32)


def augment(queries: np.ndarray) -> np.ndarray:
    """``[2 q, -1]``, the query of an index with a bias; must not be scaled again."""
    return np.column_stack([2 * queries, np.full(len(queries), -1, np.float32)]).astype(np.float32)
