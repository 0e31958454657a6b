"""Rows that strategies search: translated, and as an index holds them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from embridge.arrays import norms
from embridge.maps import LinearMap, Map
from embridge.neighbors.products import scaled
from embridge.types import Metric

_CHUNK = 8192


def translate(translation: Map, rows: np.ndarray) -> np.ndarray:
    """Translated rows, float32; 8,192 at a time."""
    out = np.empty((len(rows), translation.target.dim), np.float32)
    for start in range(0, len(rows), _CHUNK):
        out[start : start + _CHUNK] = translation.apply(rows[start : start + _CHUNK])
    return out


def held(rows: np.ndarray, metric: Metric) -> np.ndarray:
    """Rows as an index holds them, float32: of unit length under cosine."""
    return scaled(rows) if metric == Metric.COSINE else rows.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class QueriedRows:
    """Translated rows for inner products with queries, in the smaller of both widths.

    ``<q, s (W x + b)> = <[W^T q, <q, b>], s [x, 1]>``, where s scales a translated row to unit length: of a narrower source space
    neither rows nor products of the wider target space are needed.

    Attributes
    ----------
    rows : ndarray of shape (n, dim), float32
        ``s [x, 1]``, or the translated rows.
    adjoint : LinearMap or None
        The map that queries go through; None for translated rows.
    """

    rows: np.ndarray
    adjoint: LinearMap | None = None

    @classmethod
    def of(cls, translation: Map, rows: np.ndarray) -> QueriedRows:
        """Rows of shape (n, dim_source) through a map; of unit length where an index holds them so (`held`)."""
        space, dim = translation.target, rows.shape[1]
        if not isinstance(translation, LinearMap) or dim + 1 >= space.dim:
            return cls(held(translate(translation, rows), space.metric))
        out = np.ones((len(rows), dim + 1), np.float32)
        out[:, :dim] = translation.scaled(rows)
        if space.normalized or space.metric == Metric.COSINE:
            unscaled = replace(translation, target=replace(space, normalized=False))
            for start in range(0, len(rows), _CHUNK):
                lengths = norms(unscaled.apply(rows[start : start + _CHUNK]))
                out[start : start + _CHUNK] /= np.where(lengths > 0, lengths, 1)[:, None]
        return cls(out, translation)

    def queries(self, vectors: np.ndarray) -> np.ndarray:
        """Queries of shape (n_queries, dim_target) for inner products with `rows`, float32."""
        if self.adjoint is None:
            return vectors
        return np.column_stack([vectors @ self.adjoint.coef, vectors @ self.adjoint.intercept])
