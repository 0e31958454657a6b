"""Sufficient statistics of anchors: one pass in float64, exact under any split, mergeable across shards and devices."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from embridge.arrays import as_vectors
from embridge.device import resolve_device
from embridge.errors import BadVectorsError, ParameterError
from embridge.tensors import reading_tensors, write_tensors
from embridge.types import Space, space_mismatch

_CHUNK = 8192
_CPU_CHUNK = 1024  # in float64 it stays in the cache from the shift to the product
_BLOCK = 96  # columns of a symmetric product
_FORMAT = "embridge.moments.1"
_ROUNDING = 1e-9  # of the largest second moment
ARRAYS = ("mean_x", "mean_y", "sxx", "sxy", "syy")


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, means and centered second moments of paired rows.

    Attributes
    ----------
    n : int
        Rows seen.
    mean_x : ndarray of shape (dim_source,)
    mean_y : ndarray of shape (dim_target,)
    sxx : ndarray of shape (dim_source, dim_source)
        ``sum (x - mean_x)(x - mean_x)^T``, not divided by n; likewise
    sxy : ndarray of shape (dim_source, dim_target)
    syy : ndarray of shape (dim_target, dim_target), or (dim_target,)
        One-dimensional where only the diagonal is kept (see `from_rows`).
    source, target : Space

    All arrays are float64.
    """

    n: int
    mean_x: np.ndarray
    mean_y: np.ndarray
    sxx: np.ndarray
    sxy: np.ndarray
    syy: np.ndarray
    source: Space
    target: Space

    @classmethod
    def from_rows(
        cls,
        x: np.ndarray,
        y: np.ndarray,
        source: Space,
        target: Space,
        *,
        device: str | torch.device | None = "cpu",
        full: bool = True,
    ) -> Moments:
        """Moments of rows held in arrays (memory-mapped ones are read 8,192 rows at a time).

        Parameters
        ----------
        x : ndarray of shape (n, dim_source)
        y : ndarray of shape (n, dim_target)
            Row i of both belongs to one id.
        source, target : Space
        device : str, default "cpu"
        full : bool, default True
            False leaves out what fitting from source to target does not need: only the diagonal of `syy` is kept, which more
            than halves the work where the target is the wider side. Such moments cannot be reversed.
        """
        x = as_vectors(x, source.dim, "x")
        y = as_vectors(y, target.dim, "y")
        if len(x) != len(y):
            raise BadVectorsError(f"x and y must have as many rows. Got {len(x):,} and {len(y):,} instead.")
        chunks = ((x[i : i + _CHUNK], y[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK))
        return cls.from_chunks(chunks, source, target, device=device, full=full)

    @classmethod
    def from_chunks(
        cls,
        chunks: Iterable[tuple[np.ndarray, np.ndarray]],
        source: Space,
        target: Space,
        *,
        device: str | torch.device | None = "cpu",
        full: bool = True,
    ) -> Moments:
        """Moments of a stream of (x, y) chunks, in one pass.

        Rows are shifted by the first chunk's mean, summed and multiplied in float64; since the shift is a few standard
        errors from the mean at most, taking the rest of the mean out at the end loses no accuracy.
        """
        place = resolve_device(device)
        p, q = source.dim, target.dim
        n = 0
        zeros = functools.partial(torch.zeros, dtype=torch.float64, device=place)
        shift, total, across = zeros(p + q), zeros(p + q), zeros(p, p + q)
        syy = zeros(q, q) if full else zeros(q)
        rows = torch.empty(0, p + q, dtype=torch.float64, device=place)
        for x, y in _small(chunks, _CPU_CHUNK if place.type == "cpu" else _CHUNK):
            sides = [(torch.from_numpy(side) if side.flags.writeable else torch.tensor(side)).to(place) for side in (x, y)]
            if n == 0:
                shift = torch.cat([side.mean(0, dtype=torch.float64) for side in sides])
            if len(rows) < len(x):
                rows = rows.new_empty(len(x), p + q)
            z = rows[: len(x)]
            torch.sub(sides[0], shift[:p], out=z[:, :p])  # the cast to float64 and the shift in one pass
            torch.sub(sides[1], shift[p:], out=z[:, p:])
            n += len(z)
            total += z.sum(0)
            across[:, p:].addmm_(z[:, :p].T, z[:, p:])
            _add_square(across[:, :p], z[:, :p])
            if full:
                _add_square(syy, z[:, p:])
            else:
                syy += z[:, p:].square_().sum(0)  # in place: the next chunk overwrites it anyway
        if not torch.isfinite(total).all():
            raise BadVectorsError("Moments need finite rows; x or y holds NaN or infinite values. Hint: remove those rows.")
        for square in (across[:, :p], *([syy] if full else [])):
            square.copy_(square.triu() + square.triu(1).T)
        left = total / max(n, 1)
        across.addr_(left[:p], left, alpha=-n)
        syy -= n * (torch.outer(left[p:], left[p:]) if full else left[p:].square())
        if not (torch.isfinite(across).all() and torch.isfinite(syy).all()):
            raise BadVectorsError("Moments need finite squares; values of x or y are too large. Hint: scale those rows.")
        mean, across = (shift + left).cpu().numpy(), across.cpu().numpy()
        sxx, sxy = np.ascontiguousarray(across[:, :p]), np.ascontiguousarray(across[:, p:])
        return cls(n, mean[:p], mean[p:], sxx, sxy, syy.cpu().numpy(), source, target)

    @property
    def full(self) -> bool:
        """True where `syy` is whole, False where only its diagonal is kept."""
        return self.syy.ndim == 2

    @property
    def square_y(self) -> np.ndarray:
        """The diagonal of `syy`, shape (dim_target,): all of it that fitting needs."""
        return self.syy if self.syy.ndim == 1 else np.diag(self.syy)

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of rows together, by the formula of Chan, Golub and LeVeque (1979)."""
        self._check_same(other)
        n = self.n + other.n
        if n == 0:
            return self
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        weight = self.n * other.n / n
        return Moments(
            n,
            self.mean_x + dx * (other.n / n),
            self.mean_y + dy * (other.n / n),
            self.sxx + other.sxx + weight * np.outer(dx, dx),
            self.sxy + other.sxy + weight * np.outer(dx, dy),
            self.syy + other.syy + weight * (np.outer(dy, dy) if self.syy.ndim == 2 else dy * dy),
            self.source,
            self.target,
        )

    def __sub__(self, other: Moments) -> Moments:
        """Moments of the rows that remain when those of `other`, all of them among these, are removed.

        Raises
        ------
        ParameterError
            `other` has more rows.
        """
        self._check_same(other)
        n = self.n - other.n
        if n < 0:
            raise ParameterError(f"{other.n:,} rows cannot be removed from {self.n:,}.")
        if n == 0:
            zeros = (np.zeros_like(getattr(self, name)) for name in ARRAYS)
            return Moments(0, *zeros, self.source, self.target)
        mean_x = self.mean_x + (self.mean_x - other.mean_x) * (other.n / n)
        mean_y = self.mean_y + (self.mean_y - other.mean_y) * (other.n / n)
        dx, dy = other.mean_x - mean_x, other.mean_y - mean_y
        weight = n * other.n / self.n
        return Moments(
            n,
            mean_x,
            mean_y,
            self.sxx - other.sxx - weight * np.outer(dx, dx),
            self.sxy - other.sxy - weight * np.outer(dx, dy),
            self.syy - other.syy - weight * (np.outer(dy, dy) if self.syy.ndim == 2 else dy * dy),
            self.source,
            self.target,
        )

    def _check_same(self, other: Moments) -> None:
        for mine, theirs in ((self.source, other.source), (self.target, other.target)):
            if not mine.same_as(theirs):
                raise space_mismatch("Merging moments", mine, "the other side", theirs)
        if self.syy.ndim != other.syy.ndim:
            (other if self.full else self)._check_full()

    def _check_full(self) -> None:
        if not self.full:
            raise ParameterError("These moments hold only the diagonal of Syy. Hint: take them with full=True.")

    def reversed(self) -> Moments:
        """The same rows with source and target exchanged; they must be full."""
        self._check_full()
        return Moments(self.n, self.mean_y, self.mean_x, self.syy, self.sxy.T, self.sxx, self.target, self.source)

    def squared_error(self, weight: np.ndarray, intercept: np.ndarray) -> float:
        """Exact sum of squared errors of ``y = W^T x + b`` over the rows, without the rows.

        ``tr(Syy) - 2 <Sxy, W> + <W, Sxx W> + n |W^T mean_x + b - mean_y|^2``, with `weight` W of shape
        (dim_source, dim_target).
        """
        offset = self.mean_x @ weight + intercept - self.mean_y
        within = self.square_y.sum() - 2 * np.vdot(self.sxy, weight) + np.vdot(weight, self.sxx @ weight)
        return float(within + self.n * (offset @ offset))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write safetensors (float64), usually named ``*.moments.safetensors``."""
        metadata = {
            "format": _FORMAT,
            "n": json.dumps(self.n),
            "source": json.dumps(self.source.to_dict()),
            "target": json.dumps(self.target.to_dict()),
        }
        write_tensors(path, {name: getattr(self, name) for name in ARRAYS}, metadata, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Moments:
        """Read what `save` wrote.

        Raises
        ------
        MissingFileError
            The file does not exist.
        UnreadableFileError
            Truncated, altered, not moments of embridge, or moments that cannot come from rows.
        """
        with reading_tensors(path, (_FORMAT,), "moments", must_have_checksum=True) as (metadata, tensors):
            source, target = (Space.from_dict(json.loads(metadata[side])) for side in ("source", "target"))
            found = cls.of_arrays(json.loads(metadata["n"]), {name: tensors[name] for name in ARRAYS}, source, target)
            if not found.n:
                raise ValueError("they hold no rows")
            return found

    @classmethod
    def of_arrays(cls, n: Any, arrays: dict[str, np.ndarray], source: Space, target: Space) -> Moments:
        """Moments from a file.

        Raises
        ------
        ValueError
            n is not a count, shapes are not those of the spaces, values are not finite, or the second moments are not symmetric and
            positive semi-definite within rounding.
        """
        if type(n) is not int or n < 0:
            raise ValueError(f"{n!r} is not a number of rows")
        p, q = source.dim, target.dim
        shapes = [arrays[name].shape for name in ARRAYS]
        if shapes[:4] != [(p,), (q,), (p, p), (p, q)] or shapes[4] not in ((q,), (q, q)):
            raise ValueError(f"arrays do not have the shapes of {p} and {q} dimensions")
        if any(array.dtype != np.float64 or not np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("arrays must hold finite float64 values")
        _check_moments(arrays["sxx"], arrays["sxy"], arrays["syy"])
        return cls(n, **arrays, source=source, target=target)


def _check_moments(sxx: np.ndarray, sxy: np.ndarray, syy: np.ndarray) -> None:
    """Raise ValueError where no rows can have these second moments, beyond errors of rounding and of removing rows."""
    full = syy.ndim == 2
    whole = np.block([[sxx, sxy], [sxy.T, syy]]) if full else sxx
    room = _ROUNDING * np.abs(np.diag(whole)).max(initial=0) + np.finfo(np.float64).tiny
    if np.abs(whole - whole.T).max() > room:
        raise ValueError("second moments are not symmetric")
    try:
        np.linalg.cholesky(whole + room * np.eye(len(whole)))
    except np.linalg.LinAlgError:
        raise ValueError("second moments are not positive semi-definite") from None
    if not full:  # only the diagonal of Syy is there: the Cauchy-Schwarz inequality remains to check
        room = _ROUNDING * max(np.diag(sxx).max(), syy.max()) + np.finfo(np.float64).tiny
        if syy.min() < -room or (sxy**2 > np.outer(np.diag(sxx) + room, syy + room) * (1 + _ROUNDING)).any():
            raise ValueError("second moments are not positive semi-definite")


def _add_square(square: torch.Tensor, rows: torch.Tensor) -> None:
    """Add ``rows^T rows`` in place; below the diagonal only what is in its blocks, since it is symmetric."""
    for start in range(0, len(square), _BLOCK):
        stop = start + _BLOCK
        square[:stop, start:stop].addmm_(rows[:, :stop].T, rows[:, start:stop])


def _small(chunks: Iterable[tuple[np.ndarray, np.ndarray]], rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same rows in chunks of at most `rows`, none of them empty."""
    for x, y in chunks:
        for start in range(0, len(x), rows):
            yield x[start : start + rows], y[start : start + rows]
