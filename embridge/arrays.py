"""All vectors are validated here: shape, kind and values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from embridge.errors import BadVectorsError, SpaceMismatchError, first_few, n_rows

FLOATS = (np.float16, np.float32, np.float64)
UNIT_TOLERANCE = 1e-3  # float16 keeps the length of a unit vector to about 5e-4


def as_vectors(values: Any, dim: int | None = None, what: str = "vectors") -> np.ndarray:
    """Vectors of shape (n, dim) in float16, float32 or float64, without a copy where possible.

    Parameters
    ----------
    values : array_like of shape (n, dim)
    dim : int, optional
        The width they must have.
    what : str
        Their name in messages.

    Raises
    ------
    BadVectorsError
        Not two-dimensional, or not of a float kind.
    SpaceMismatchError
        Of another width.
    """
    try:
        # A masked value is missing and must not enter calculations.
        array = values.filled(np.nan) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
    except Exception as e:  # ragged lists, tensors of other devices or kinds: each library has its own errors
        raise BadVectorsError(f"{what} must be vectors of shape (n, dim): {e}") from None
    if array.ndim != 2:
        raise BadVectorsError(f"{what} must be vectors of shape (n, dim). Got shape {array.shape} instead.")
    if array.dtype.type not in FLOATS:
        if array.dtype.kind not in "iub":
            raise BadVectorsError.dtype(what, array.dtype)
        array = array.astype(np.float32)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)  # torch takes neither reversed rows nor fields of records
    if dim is not None and array.shape[1] != dim:
        raise SpaceMismatchError.width(what, dim, array.shape[1])
    return array


def bad_rows(vectors: np.ndarray, *, zero_is_bad: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positions of rows with NaN or infinite values, and (where `zero_is_bad`) of zero rows.

    One pass of row sums finds candidates, and only those are checked value by value: a row sum is finite unless a value
    is not (or the sum overflows), and a row whose sum is not zero is not a zero row. Values of float64 are judged
    as float32, in which they are used: one beyond its range is infinite.
    """
    # Sums of float16 overflow at 65,504, so they are taken in float32; an overflow only makes the row a candidate.
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = vectors.astype(np.float32) if vectors.dtype == np.float64 else vectors
        sums = vectors.sum(axis=1, dtype=np.float32)
    suspects = np.flatnonzero(~np.isfinite(sums))
    not_finite = suspects[~np.isfinite(vectors[suspects]).all(axis=1)] if suspects.size else suspects
    if not zero_is_bad:
        return not_finite, np.empty(0, np.int64)
    suspects = np.flatnonzero(sums == 0)
    zero = suspects[~vectors[suspects].any(axis=1)] if suspects.size else suspects
    return not_finite, zero


def not_unit(vectors: np.ndarray, *, zero_is_bad: bool) -> np.ndarray:
    """Positions of rows whose length is not 1 within `UNIT_TOLERANCE`.

    Rows that `bad_rows` reports (NaN, infinite, zero where `zero_is_bad`) are not among them.
    """
    lengths = norms(vectors)
    with np.errstate(invalid="ignore"):
        other = np.flatnonzero(~(np.abs(lengths - 1) < UNIT_TOLERANCE))
    if not other.size:
        return other
    return np.delete(other, np.flatnonzero(np.isin(other, np.concatenate(bad_rows(vectors, zero_is_bad=zero_is_bad)))))


def all_unit(parts: Iterable[np.ndarray], *, zero_is_bad: bool) -> bool:
    """True where there is a usable row and every usable row has unit length. Reading ends at the first part with another row.

    Parameters
    ----------
    parts : iterable of ndarray of shape (n, dim)
        All rows, part by part. Rows that `bad_rows` reports are ignored.
    zero_is_bad : bool
        Ignore zero rows (cosine); otherwise they do not have unit length.
    """
    usable = 0
    for vectors in parts:
        if not_unit(vectors, zero_is_bad=zero_is_bad).size:
            return False
        usable += len(vectors) - sum(map(len, bad_rows(vectors, zero_is_bad=zero_is_bad)))
    return usable > 0


def check_rows(
    vectors: np.ndarray, ids: Sequence[Any], where: str, *, zero_is_bad: bool, unit_length: bool = False, otherwise: str = ""
) -> None:
    """Refuse rows that cannot be ranked, and (where `unit_length`) rows that do not have the unit length that their space states.

    `otherwise` says what else NaN can mean where rows were read without validation.

    Raises
    ------
    BadVectorsError
        The message names the ids of rows with NaN or infinite values, of zero vectors where `zero_is_bad` (cosine), or of rows
        whose length is not 1 where `unit_length`.
    """
    not_finite, zero = bad_rows(vectors, zero_is_bad=zero_is_bad)
    if not_finite.size:
        raise BadVectorsError.rows(where, f"NaN or infinite values{otherwise}", [ids[i] for i in not_finite])
    if zero.size:
        raise BadVectorsError.rows(where, "a zero vector, which has no direction under cosine", [ids[i] for i in zero])
    if unit_length and (other := not_unit(vectors, zero_is_bad=zero_is_bad)).size:
        lengths = norms(vectors[other])
        raise BadVectorsError(
            f"The space of {where} says that every vector has unit length (normalized), but {n_rows(len(other))} of one batch have "
            f"lengths from {lengths.min():.4g} to {lengths.max():.4g}: ids {first_few([ids[i] for i in other])}. "
            "Hint: scale them to unit length, or correct the metadata "
            "'embridge.space' of the file or the Space(normalized=True) given."
        )


def norms(vectors: np.ndarray) -> np.ndarray:
    """Euclidean length of each row, shape (n,), float32 at least."""
    wide = vectors.astype(np.float32, copy=False) if vectors.dtype == np.float16 else vectors
    lengths = _plain_norms(wide)
    extreme = _extreme(lengths)
    if extreme.size:
        peaks, scaled = _scaled(wide[extreme])
        with np.errstate(over="ignore"):
            lengths[extreme] = peaks * _plain_norms(scaled)
    return lengths


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, float32; a zero row stays zero."""
    wide = vectors if vectors.dtype == np.float64 else vectors.astype(np.float32, copy=False)
    lengths = _plain_norms(wide)
    extreme = _extreme(lengths)
    with np.errstate(over="ignore", invalid="ignore"):  # rows beyond float32 are done again below
        out = (wide / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32, copy=False)
        if extreme.size:
            _, scaled = _scaled(wide[extreme])
            lengths = _plain_norms(scaled)
            out[extreme] = scaled / np.where(lengths > 0, lengths, 1)[:, None]
    return out


def unit_where_off(vectors: np.ndarray) -> np.ndarray:
    """Rows whose length is not 1 within `UNIT_TOLERANCE` scaled to unit length; the others, and zero rows, as they are.

    Returns
    -------
    ndarray of shape (n, dim)
        `vectors` itself where no row changes, else a float32 copy.
    """
    other = not_unit(vectors, zero_is_bad=True)
    if not other.size:
        return vectors
    out = vectors.astype(np.float32)
    out[other] = unit(vectors[other])
    return out


def _plain_norms(vectors: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return np.sqrt(np.einsum("ij,ij->i", vectors, vectors))


def _extreme(lengths: np.ndarray) -> np.ndarray:
    """Rows whose squares may have overflowed float32, or lost digits below its range; and those with NaN or infinite values."""
    return np.flatnonzero(~((lengths > 1e-15) & (lengths < 1e18)))


def _scaled(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest magnitude of each row, and the rows divided by it."""
    peaks = np.abs(vectors).max(axis=1, initial=0)
    with np.errstate(invalid="ignore"):
        return peaks, vectors / np.where(peaks > 0, peaks, 1)[:, None]
