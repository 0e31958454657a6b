"""Moments of disjoint parts of the anchors: enough to choose and update maps and to draw learning curves, without the anchors."""

from __future__ import annotations

import functools
import json
import operator
import os
from dataclasses import dataclass, field

import numpy as np

from embridge.anchors.moments import ARRAYS, Moments
from embridge.errors import ParameterError
from embridge.tensors import reading_tensors, write_tensors
from embridge.types import Space

_FORMAT = "embridge.folds.1"
ROWS = 1000  # of each part kept to measure neighbors on


def _none() -> np.ndarray:
    return np.empty(0, np.uint64)


@dataclass(frozen=True, eq=False)
class FoldMoments:
    """Moments of disjoint parts of the anchors, each with a sample of its rows to measure neighbors on.

    `Anchors.folds` makes them. ``a + b`` adds the anchors of b, ``a - b`` removes them again: a part is chosen by the hash of
    an id and a sample holds the rows of smallest hash, so adding gives the same result as all anchors at once.

    Attributes
    ----------
    parts : tuple of Moments
    samples : tuple of (x, y)
        For each part some of its rows, shapes (n, dim_source) and (n, dim_target), by ascending hash.
    sample_hashes : tuple of ndarray of uint64
        For each part the hashes by which its sample was drawn.
    anchor_hashes : ndarray of uint64
        Sorted hashes of all ids (`Anchors.hashes`).
    """

    parts: tuple[Moments, ...]
    samples: tuple[tuple[np.ndarray, np.ndarray], ...]
    sample_hashes: tuple[np.ndarray, ...] = ()
    anchor_hashes: np.ndarray = field(default_factory=_none)

    @property
    def full(self) -> bool:
        """True where the moments are full, so that the reverse map can be fitted too."""
        return all(part.full for part in self.parts)

    def reversed(self) -> FoldMoments:
        """The same anchors with source and target exchanged; their moments must be full."""
        samples = tuple((y, x) for x, y in self.samples)
        return FoldMoments(tuple(part.reversed() for part in self.parts), samples, self.sample_hashes, self.anchor_hashes)

    def total(self) -> Moments:
        """Moments of all parts together, computed once."""
        return self.without(-1)

    def without(self, fold: int) -> Moments:
        """Moments of all parts but one: a map is fitted on these and scored on that one.

        Computed once, and kept with what is cached of them: several choices on the same folds share their solutions.
        """
        cache: dict[int, Moments] = self.__dict__.setdefault("_without", {})
        if fold not in cache:
            cache[fold] = functools.reduce(operator.add, [part for i, part in enumerate(self.parts) if i != fold])
        return cache[fold]

    def each_without(self) -> tuple[Moments, ...]:
        """`without` of every part."""
        return tuple(self.without(number) for number in range(len(self.parts)))

    def __add__(self, other: FoldMoments) -> FoldMoments:
        """FoldMoments of both sets of anchors.

        Raises
        ------
        ParameterError
            The folds differ, or an anchor is in both.
        """
        self._check_same(other)
        shared = len(np.intersect1d(self.anchor_hashes, other.anchor_hashes))
        if shared:
            raise ParameterError(f"{shared:,} anchors are in both sets; a row counts once. Hint: add new rows only.")
        samples, hashes = [], []
        for (x, y), h, (other_x, other_y), other_h in zip(
            self.samples, self.sample_hashes, other.samples, other.sample_hashes, strict=True
        ):
            both = np.concatenate([h, other_h])
            kept = np.argsort(both, kind="stable")[:ROWS]
            samples.append((np.concatenate([x, other_x])[kept], np.concatenate([y, other_y])[kept]))
            hashes.append(both[kept])
        parts = tuple(a + b for a, b in zip(self.parts, other.parts, strict=True))
        return FoldMoments(parts, tuple(samples), tuple(hashes), np.union1d(self.anchor_hashes, other.anchor_hashes))

    def __sub__(self, other: FoldMoments) -> FoldMoments:
        """FoldMoments without the anchors of `other`, which must be among these.

        The moments are those of the remaining anchors. A sample loses the removed rows, and rows that were never in it cannot
        take their place: it is a smaller random sample.

        Raises
        ------
        ParameterError
            The folds differ, or an anchor is not among these.
        """
        self._check_same(other)
        unknown = len(np.setdiff1d(other.anchor_hashes, self.anchor_hashes))
        if unknown:
            raise ParameterError(f"{unknown:,} of {len(other.anchor_hashes):,} anchors to remove are not in these moments.")
        samples, hashes = [], []
        for (x, y), h, gone in zip(self.samples, self.sample_hashes, other.sample_hashes, strict=True):
            kept = ~np.isin(h, gone)
            samples.append((x[kept], y[kept]))
            hashes.append(h[kept])
        parts = tuple(a - b for a, b in zip(self.parts, other.parts, strict=True))
        return FoldMoments(parts, tuple(samples), tuple(hashes), np.setdiff1d(self.anchor_hashes, other.anchor_hashes))

    def _check_same(self, other: FoldMoments) -> None:
        if len(self.parts) != len(other.parts) or not self.sample_hashes or not other.sample_hashes:
            raise ParameterError(
                f"FoldMoments of {len(self.parts)} and {len(other.parts)} parts (with sample hashes) do not go together."
            )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write safetensors, usually named ``*.moments.safetensors``: moments in float64, sampled rows in float32."""
        write_tensors(path, *self.to_file(), overwrite=overwrite)

    def to_file(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Tensors and metadata of the file of these moments."""
        tensors = {"anchor_hashes": self.anchor_hashes}
        for number, (part, (x, y)) in enumerate(zip(self.parts, self.samples, strict=True)):
            tensors |= {f"{name}.{number}": getattr(part, name) for name in ARRAYS}
            tensors |= {f"x.{number}": x, f"y.{number}": y, f"hashes.{number}": self.sample_hashes[number]}
        spaces = self.parts[0]
        metadata = {
            "format": _FORMAT,
            "n": json.dumps([part.n for part in self.parts]),
            "source": json.dumps(spaces.source.to_dict()),
            "target": json.dumps(spaces.target.to_dict()),
        }
        return tensors, metadata

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FoldMoments:
        """Read what `save` wrote.

        Raises
        ------
        MissingFileError
            The file does not exist.
        UnreadableFileError
            Truncated, altered, of another format, or folds that cannot come from anchors.
        """
        with reading_tensors(path, (_FORMAT,), "moments by folds", must_have_checksum=True) as (metadata, tensors):
            source, target = (Space.from_dict(json.loads(metadata[side])) for side in ("source", "target"))
            counts = json.loads(metadata["n"])
            if not isinstance(counts, list) or len(counts) < 2:
                raise ValueError("it holds fewer than two folds")
            parts, samples, hashes = [], [], []
            for number, n in enumerate(counts):
                arrays = {name: tensors[f"{name}.{number}"] for name in ARRAYS}
                parts.append(Moments.of_arrays(n, arrays, source, target))
                samples.append((tensors[f"x.{number}"], tensors[f"y.{number}"]))
                hashes.append(tensors[f"hashes.{number}"])
            found = cls(tuple(parts), tuple(samples), tuple(hashes), tensors["anchor_hashes"])
            found._check()
            return found

    def _check(self) -> None:
        """A ValueError where counts, samples and hashes do not belong together."""
        known, n = self.anchor_hashes, sum(part.n for part in self.parts)
        if known.dtype != np.uint64 or known.shape != (n,) or not n or (known[1:] <= known[:-1]).any():
            raise ValueError(f"hashes of its anchors are not those of {n:,} rows")
        if len({part.full for part in self.parts}) > 1:
            raise ValueError("some of its moments are full and some are not")
        for part, (x, y), hashes in zip(self.parts, self.samples, self.sample_hashes, strict=True):
            shapes = x.shape, y.shape, hashes.shape
            m = len(hashes) if hashes.ndim == 1 else -1
            if m > part.n or shapes != ((m, part.source.dim), (m, part.target.dim), (m,)) or hashes.dtype != np.uint64:
                raise ValueError(f"a sample of shapes {shapes} is not one of {part.n:,} rows")
            if x.dtype.kind != "f" or y.dtype.kind != "f":
                raise ValueError("a sample holds no float values")
