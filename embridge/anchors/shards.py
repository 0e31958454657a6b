"""Moments of many anchors in shards that are merged in order: in this process, or as tasks that read their rows themselves.

Shards, and so every bit of the result, depend on the anchors only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from embridge.anchors.moments import Moments
from embridge.errors import ParameterError
from embridge.ray import RayBackend, run_tasks
from embridge.stores import Collection, ParquetCollection
from embridge.types import Space

if TYPE_CHECKING:
    import torch

_SHARD_BYTES = 256 << 20  # of float32 rows of both sides
_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class Origin:
    """Where anchors were read, for tasks that read them again.

    Attributes
    ----------
    source, target : ParquetCollection
    source_rows, target_rows : ndarray of int64, shape (n,)
        Positions of the anchors.
    backend : RayBackend
    """

    source: ParquetCollection
    target: ParquetCollection
    source_rows: np.ndarray
    target_rows: np.ndarray
    backend: RayBackend

    @classmethod
    def of(cls, source: Collection, target: Collection, rows: tuple[np.ndarray, np.ndarray], backend: RayBackend) -> Origin:
        """Where the rows at these positions of two collections are.

        Raises
        ------
        ParameterError
            A side is not in Parquet.
        """
        for side in (source, target):
            if not isinstance(side, ParquetCollection):
                raise ParameterError(f"{side.name} is not in Parquet, which the backend 'ray' reads. Hint: leave the backend out.")
        return cls(source, target, *rows, backend)  # pyright: ignore[reportArgumentType]

    def at(self, rows: np.ndarray) -> Origin:
        """Of the anchors at some positions."""
        return replace(self, source_rows=self.source_rows[rows], target_rows=self.target_rows[rows])

    def reversed(self) -> Origin:
        """With source and target exchanged."""
        return Origin(self.target, self.source, self.target_rows, self.source_rows, self.backend)


@dataclass(frozen=True, eq=False)
class Shard:
    """The anchors of one task."""

    name: str
    origin: Origin
    full: bool


def shard_moments(shard: Shard) -> Moments:
    """In a worker: read the rows of a shard, and take their moments."""
    origin = shard.origin
    x, y = _take(origin.source, origin.source_rows), _take(origin.target, origin.target_rows)
    spaces = origin.source.space, origin.target.space
    return Moments.from_rows(x, y, *spaces, device=origin.backend.device, full=shard.full)


def moments_of_sets(
    x: np.ndarray,
    y: np.ndarray,
    spaces: tuple[Space, Space],
    sets: Sequence[np.ndarray],
    origin: Origin | None,
    *,
    device: str | torch.device | None,
    full: bool,
) -> list[Moments]:
    """Moments of sets of anchors, each given by their positions.

    Parameters
    ----------
    x, y : ndarray of shape (n, dim_source) and (n, dim_target)
    spaces : (source, target)
    sets : sequence of ndarray of int64
    origin : Origin, optional
        Take them as tasks.
    device : str
        Of this process; tasks have that of their backend.
    full : bool
        As for `Moments.from_rows`.
    """
    rows = max(_CHUNK, _SHARD_BYTES // (4 * (x.shape[1] + y.shape[1])))
    shards = [(i, part) for i, members in enumerate(sets) for part in _cut(members, rows)]
    if origin is None:
        parts = (
            Moments.from_chunks(((x[m], y[m]) for m in _cut(part, _CHUNK)), *spaces, device=device, full=full) for _, part in shards
        )
    else:
        parts = _in_order(origin, [part for _, part in shards], full=full)
    found: list[Moments | None] = [None] * len(sets)
    for (i, _), moments in zip(shards, parts, strict=True):
        before = found[i]
        found[i] = moments if before is None else before + moments
    return [moments for moments in found if moments is not None]


def _in_order(origin: Origin, shards: Sequence[np.ndarray], *, full: bool) -> Iterator[Moments]:
    """Moments of shards in their order, whatever the order in which tasks end."""
    units = [Shard(f"anchors {i + 1} of {len(shards)}", origin.at(rows), full) for i, rows in enumerate(shards)]
    early: dict[int, Moments] = {}
    expected = 0
    with contextlib.closing(run_tasks(origin.backend, shard_moments, units)) as tasks:
        for number, moments in tasks:
            early[number] = moments
            while expected in early:
                yield early.pop(expected)
                expected += 1


def _cut(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Pieces of `count` rows, at least one."""
    return [rows[start : start + count] for start in range(0, max(len(rows), 1), count)]


def _take(collection: ParquetCollection, rows: np.ndarray) -> np.ndarray:
    order = np.argsort(rows, kind="stable")
    out = np.empty((len(rows), collection.space.dim), np.float32)
    for place, vectors in collection.select(rows[order]):
        out[order[place]] = vectors
    return out
