"""What a verification found, and the comparison of vectors with their recomputation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embridge.conversion.engine import Precision
from embridge.errors import VerificationError

# Of the longest vector: float32 products in another order differ by about 1e-6, a float16 is off by 5e-4 of its value.
TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "tf32": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Verification:
    """What was checked of an output.

    Attributes
    ----------
    path : str
    rows : int
        Rows, all readable, with unique ids.
    compared : int
        Rows that were recomputed from the source.
    max_error : float
        Largest difference of a value from its recomputation, in units of the longest vector.
    """

    path: str
    rows: int
    compared: int
    max_error: float


def failed(path: str, what: str) -> VerificationError:
    """The error for an output that differs."""
    return VerificationError(f"{path!r} is not what it should be: {what}")


def compare(found: np.ndarray, expected: np.ndarray, path: str, start: int, precision: Precision) -> float:
    """The largest difference of a value from what was expected, in units of the longest vector.

    Raises
    ------
    VerificationError
        It is beyond the tolerance.
    """
    longest = float(np.sqrt(np.einsum("ij,ij->i", expected, expected).max())) or 1.0
    error = np.abs(found.astype(np.float32) - expected).max(axis=1) / longest
    tolerance = max(TOLERANCES[precision], TOLERANCES["float16"] if found.dtype == np.float16 else 0.0)
    if not (error <= tolerance).all():
        row = start + int(np.argmax(~(error <= tolerance)))
        raise failed(path, f"the vector in row {row:,} is not the translation of the source's.")
    return float(error.max(initial=0.0))
