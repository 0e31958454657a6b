"""Rows that strategies search: translated, and as an index holds them."""

from __future__ import annotations

import numpy as np

from embridge.arrays import unit
from embridge.maps import Map
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
    return unit(rows) if metric == Metric.COSINE else rows.astype(np.float32, copy=False)
