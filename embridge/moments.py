"""Sufficient statistics of anchors: one pass in float64, exact under any split, mergeable across shards and devices."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from embridge.arrays import as_vectors
from embridge.device import resolve_device
from embridge.errors import BadVectorsError, MissingFileError, SpaceMismatchError, UnreadableFileError
from embridge.files import check_output, whole_or_absent
from embridge.types import Space

_CHUNK = 8192
_FORMAT = "embridge.moments.1"
_ARRAYS = ("mean_x", "mean_y", "sxx", "sxy", "syy")


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, means and centred second moments of paired rows.

    Attributes
    ----------
    n : int
        Rows seen.
    mean_x : ndarray of shape (dim_source,)
    mean_y : ndarray of shape (dim_target,)
    sxx : ndarray of shape (dim_source, dim_source)
        ``sum (x - mean_x)(x - mean_x)^T``, not divided by n; likewise
    sxy : ndarray of shape (dim_source, dim_target)
    syy : ndarray of shape (dim_target, dim_target)
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
        cls, x: np.ndarray, y: np.ndarray, source: Space, target: Space, *, device: str | torch.device | None = "cpu"
    ) -> Moments:
        """Moments of rows held in arrays (memory-mapped ones are read 8,192 rows at a time).

        Parameters
        ----------
        x : ndarray of shape (n, dim_source)
        y : ndarray of shape (n, dim_target)
            Row i of both belongs to one id.
        """
        x = as_vectors(x, source.dim, "x")
        y = as_vectors(y, target.dim, "y")
        if len(x) != len(y):
            raise BadVectorsError(f"x and y must have as many rows. Got {len(x):,} and {len(y):,} instead.")
        chunks = ((x[i : i + _CHUNK], y[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK))
        return cls.from_chunks(chunks, source, target, device=device)

    @classmethod
    def from_chunks(
        cls,
        chunks: Iterable[tuple[np.ndarray, np.ndarray]],
        source: Space,
        target: Space,
        *,
        device: str | torch.device | None = "cpu",
    ) -> Moments:
        """Moments of a stream of (x, y) chunks, in one pass.

        Rows are shifted by the first chunk's mean, summed and multiplied in float64; since the shift is a few standard
        errors from the mean at most, taking the rest of the mean out at the end loses no accuracy.
        """
        place = resolve_device(device)
        p, q = source.dim, target.dim
        n = 0
        shift = torch.zeros(p + q, dtype=torch.float64, device=place)
        total = torch.zeros_like(shift)
        sxx, sxy, syy = (torch.zeros(shape, dtype=torch.float64, device=place) for shape in ((p, p), (p, q), (q, q)))
        for x, y in chunks:
            if not len(x):
                continue
            rows = [torch.tensor(side, device=place).to(torch.float64) for side in (x, y)]
            if n == 0:
                shift = torch.cat([side.mean(0) for side in rows])
            rows[0] -= shift[:p]
            rows[1] -= shift[p:]
            n += len(rows[0])
            total += torch.cat([side.sum(0) for side in rows])
            sxx.addmm_(rows[0].T, rows[0])
            sxy.addmm_(rows[0].T, rows[1])
            syy.addmm_(rows[1].T, rows[1])
        if not torch.isfinite(total).all():
            raise BadVectorsError("Moments need finite rows; x or y holds NaN or infinite values. Hint: remove those rows.")
        left = total / max(n, 1)
        sxx.addr_(left[:p], left[:p], alpha=-n)
        sxy.addr_(left[:p], left[p:], alpha=-n)
        syy.addr_(left[p:], left[p:], alpha=-n)
        mean = (shift + left).cpu().numpy()
        return cls(n, mean[:p], mean[p:], sxx.cpu().numpy(), sxy.cpu().numpy(), syy.cpu().numpy(), source, target)

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
            self.syy + other.syy + weight * np.outer(dy, dy),
            self.source,
            self.target,
        )

    def _check_same(self, other: Moments) -> None:
        for mine, theirs in ((self.source, other.source), (self.target, other.target)):
            if not mine.same_as(theirs):
                raise SpaceMismatchError.between("Merging moments", mine, "the other side", theirs)

    def reversed(self) -> Moments:
        """The same rows with source and target exchanged."""
        return Moments(self.n, self.mean_y, self.mean_x, self.syy, self.sxy.T, self.sxx, self.target, self.source)

    def squared_error(self, weight: np.ndarray, intercept: np.ndarray) -> float:
        """Exact sum of squared errors of ``y = W^T x + b`` over the rows, without the rows.

        ``tr(Syy) - 2 <Sxy, W> + <W, Sxx W> + n |W^T mean_x + b - mean_y|^2``, with `weight` W of shape
        (dim_source, dim_target).
        """
        offset = self.mean_x @ weight + intercept - self.mean_y
        within = np.trace(self.syy) - 2 * np.vdot(self.sxy, weight) + np.vdot(weight, self.sxx @ weight)
        return float(within + self.n * (offset @ offset))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write safetensors (float64), usually named ``*.moments.safetensors``."""
        metadata = {
            "format": _FORMAT,
            "n": str(self.n),
            "source": json.dumps(self.source.to_dict()),
            "target": json.dumps(self.target.to_dict()),
        }
        with whole_or_absent(check_output(path, overwrite=overwrite)) as temporary:
            save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}, temporary, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Moments:
        """Read what `save` wrote.

        Raises
        ------
        MissingFileError
            Nothing is there.
        UnreadableFileError
            Truncated, or not moments of embridge.
        """
        name = os.fspath(path)
        if not os.path.isfile(name):
            raise MissingFileError.at(name)
        try:
            with safe_open(name, "np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise UnreadableFileError.foreign(name, "a file of moments", "its metadata")
                arrays = [np.array(file.get_tensor(n)) for n in _ARRAYS]
            source, target = (Space.from_dict(json.loads(metadata[side])) for side in ("source", "target"))
            p, q = source.dim, target.dim
            if [array.shape for array in arrays] != [(p,), (q,), (p, p), (p, q), (q, q)]:
                raise UnreadableFileError.foreign(name, "a file of moments", f"arrays for {p} and {q} dimensions")
            return cls(int(metadata["n"]), **dict(zip(_ARRAYS, arrays, strict=True)), source=source, target=target)
        except (SafetensorError, OSError, LookupError, TypeError, ValueError) as e:
            if isinstance(e, UnreadableFileError):
                raise
            raise UnreadableFileError.at(name, "moments", e) from e


@dataclass(frozen=True, eq=False)
class Folds:
    """Moments of disjoint parts of the anchors, each with a sample of its rows to measure neighbours on.

    Attributes
    ----------
    parts : tuple of Moments
    samples : tuple of (x, y)
        For each part some of its rows, shapes (n, dim_source) and (n, dim_target).
    """

    parts: tuple[Moments, ...]
    samples: tuple[tuple[np.ndarray, np.ndarray], ...]

    def total(self) -> Moments:
        """Moments of all parts together."""
        return self.without(-1)

    def without(self, fold: int) -> Moments:
        """Moments of all parts but one: what a map is fitted on that is judged by that one."""
        kept = [part for i, part in enumerate(self.parts) if i != fold]
        total = kept[0]
        for part in kept[1:]:
            total = total + part
        return total
