"""The map that changes nothing, and its engine: a copy is a conversion by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embridge.arrays import bad_rows
from embridge.types import Space


@dataclass(frozen=True)
class Identity:
    """The map from a space to itself that keeps every vector as it is.

    Attributes
    ----------
    source : Space
    """

    source: Space
    fingerprint = ""
    confidence = None

    @property
    def target(self) -> Space:
        """The same space."""
        return self.source

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """The same vectors in float32."""
        return np.asarray(vectors, np.float32)


class CopyEngine:
    """Writes rows as they are; used where a conversion has an `Engine`."""

    predicts_errors = False

    def run(self, pieces: Sequence[np.ndarray], out: np.ndarray, errors: None = None) -> tuple[np.ndarray, np.ndarray]:
        """Copy consecutive rows into `out`, as `Engine.run`."""
        start = 0
        with np.errstate(over="ignore"):  # what is infinite in the output's type is reported below
            for piece in pieces:
                out[start : start + len(piece)] = piece
                start += len(piece)
        not_finite, zero = bad_rows(out, zero_is_bad=True)
        return zero, not_finite
