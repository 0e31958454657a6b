"""Anchors: the rows of two collections that share an id. Matching, splitting and sampling them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from embridge.anchors.fold_moments import ROWS, FoldMoments
from embridge.anchors.moments import Moments
from embridge.anchors.shards import Origin, moments_of_sets
from embridge.arrays import unit
from embridge.errors import NoSharedIdsError, ParameterError, SpaceMismatchError, TooFewAnchorsError, first_few
from embridge.ray import Backend, as_backend
from embridge.records import AnchorRecord
from embridge.stores.base import Collection
from embridge.stores.fetching import ids_at
from embridge.stores.ids import hash_ids, match_rows
from embridge.types import Space

if TYPE_CHECKING:
    import torch

_IN_MEMORY = 1 << 30  # larger arrays of anchors are kept in an unnamed temporary file


_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class Anchors:
    """Paired rows of two spaces.

    Attributes
    ----------
    ids : ndarray of shape (n,)
        int64, or object where ids are strings.
    x : ndarray of shape (n, dim_source), float32
    y : ndarray of shape (n, dim_target), float32
        Row i of both belongs to ``ids[i]``. Arrays over 1 GiB are memory-mapped from a temporary file.
    source, target : Space
    record : AnchorRecord
        Where they came from and how they were split.
    origin : Origin, optional
        Where tasks on a cluster read them to take moments.
    """

    ids: np.ndarray
    x: np.ndarray
    y: np.ndarray
    source: Space
    target: Space
    record: AnchorRecord
    origin: Origin | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Anchors({len(self):,} rows, {self.source.name!r} ({self.source.dim}) -> {self.target.name!r} ({self.target.dim}))"

    def at(self, rows: np.ndarray) -> Anchors:
        """The anchors at some positions (or where a mask is True)."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        origin = self.origin and self.origin.at(rows)
        return replace(self, ids=self.ids[rows], x=_gather(self.x, rows), y=_gather(self.y, rows), origin=origin)

    def split(self, test_size: float = 0.2, seed: int = 0) -> tuple[Anchors, Anchors]:
        """Rows to fit on and rows to hold out, by a hash of the id.

        A row lands on the same side whatever other rows there are, so held-out rows stay held out when the data grow, and
        growing `test_size` only adds to them.

        Parameters
        ----------
        test_size : float, default 0.2
            Expected share of held-out rows, in [0, 1).
        seed : int, default 0

        Returns
        -------
        train, held_out : Anchors
        """
        if not 0 <= test_size < 1:
            raise ParameterError.must_be("test_size", "in [0, 1)", test_size)
        held = hash_ids(self.ids, "split", seed) < np.uint64(test_size * 2**64)
        counts = replace(self.record, anchors=int((~held).sum()), held_out=int(held.sum()), test_size=float(test_size), seed=seed)
        train, held_out = self.at(~held), self.at(held)
        return replace(train, record=counts), replace(held_out, record=counts)

    def sample(self, n: int, seed: int = 0) -> Anchors:
        """n of the anchors (all of them where there are fewer), those with the smallest hash of their id, in their order."""
        if n < 1:
            raise ParameterError.must_be("n", "at least 1", n)
        return self.at(np.sort(np.argsort(hash_ids(self.ids, "sample", seed))[:n]))

    def without(self, hashes: np.ndarray) -> Anchors:
        """The anchors whose ids are not among `hashes` (`LinearMap.anchor_hashes`)."""
        return self.at(~np.isin(self.hashes(), hashes))

    def hashes(self) -> np.ndarray:
        """Hashes of the ids, shape (n,), uint64. A map stores them to record which rows it was fitted on."""
        return hash_ids(self.ids, "anchor")

    def reversed(self) -> Anchors:
        """The same rows with source and target exchanged."""
        swapped = replace(self.record, source=self.record.target, target=self.record.source)
        return Anchors(self.ids, self.y, self.x, self.target, self.source, swapped, self.origin and self.origin.reversed())

    def unit(self) -> Anchors:
        """The same rows scaled to unit length, in normalized spaces; a zero row stays zero."""
        source, target = replace(self.source, normalized=True), replace(self.target, normalized=True)
        return replace(self, x=_unit_rows(self.x), y=_unit_rows(self.y), source=source, target=target, origin=None)

    def moments(self, device: str | torch.device | None = "cpu", *, full: bool = True) -> Moments:
        """Their sufficient statistics (see `Moments.from_rows`)."""
        return self._moments([np.arange(len(self))], device, full=full)[0]

    def _moments(self, sets: list[np.ndarray], device: str | torch.device | None, *, full: bool) -> list[Moments]:
        return moments_of_sets(self.x, self.y, (self.source, self.target), sets, self.origin, device=device, full=full)

    def folds(
        self, n_folds: int = 5, rows: int = ROWS, seed: int = 0, device: str | torch.device | None = "cpu", *,
        partial: bool = False, full: bool = False,
    ) -> FoldMoments:  # fmt: skip
        """Moments of `n_folds` parts, split by a hash of the id, with at most `rows` rows of each to measure neighbors on.

        With `partial` a part may be empty: a few anchors to be added to, or removed from, the folds of many. With `full`
        they can be reversed (see `Moments.from_rows`).

        Raises
        ------
        TooFewAnchorsError
            A fold would be empty.
        """
        if n_folds < 2:
            raise ParameterError.must_be("n_folds", "at least 2", n_folds)
        hashes = hash_ids(self.ids, "fold", seed)
        fold = (hashes % np.uint64(n_folds)).astype(np.int64)
        if len(np.unique(fold)) < n_folds and not partial:
            raise TooFewAnchorsError(f"{len(self):,} anchors are too few for {n_folds} folds. Hint: re-encode more shared rows.")
        sets = [np.flatnonzero(fold == number) for number in range(n_folds)]
        parts = self._moments(sets, device, full=full)
        samples, drawn = [], []
        for members in sets:
            # The quotient is independent of the fold, so the smallest ones are a random sample that does not depend on order.
            chosen = members[np.argsort(hashes[members] // np.uint64(n_folds), kind="stable")[:rows]]
            samples.append((np.asarray(self.x[chosen], np.float32), np.asarray(self.y[chosen], np.float32)))
            drawn.append(hashes[chosen] // np.uint64(n_folds))
        return FoldMoments(tuple(parts), tuple(samples), tuple(drawn), np.sort(self.hashes()))


def match(source: Collection, target: Collection, *, known: np.ndarray | None = None, backend: Backend = "local") -> Anchors:
    """Match the rows of two collections by id.

    Ids are joined out of core, then vectors are read once from each side, in order; row groups without a shared row are
    passed over. Both sides may be of any size and in any order.

    Parameters
    ----------
    source, target : Collection
        In two different spaces, with ids of one type.
    known : ndarray of uint64, optional
        Hashes of ids (`Anchors.hashes`, `LinearMap.anchor_hashes`) to skip: their vectors are not read.
    backend : {"local", "ray"} or RayBackend, default "local"
        With Ray the moments of the anchors will be taken as tasks, which read them again from Parquet files that all nodes share.

    Returns
    -------
    Anchors
        In the order of the source.

    Raises
    ------
    SpaceMismatchError
        Both sides are of one space.
    NoSharedIdsError
        No id is on both sides.
    BadIdsError
        A shared id is repeated on a side, or the types of the ids differ.
    BadVectorsError
        A shared row is unusable (NaN, infinite, zero under cosine).
    """
    if source.space.same_as(target.space):
        raise SpaceMismatchError(
            f"Source and target are both of space {source.space.name!r}; there is nothing to translate. "
            "Hint: name the two encoders apart with --source-space and --target-space."
        )
    source_rows, target_rows = match_rows(source, target)
    if not len(source_rows):
        raise NoSharedIdsError(
            f"{source.name} and {target.name} share no id. First ids: {first_few(_first_ids(source), 2)} and "
            f"{first_few(_first_ids(target), 2)}. Hint: check --id-column on both sides."
        )
    ids = ids_at(source, source_rows) if known is not None else None
    if ids is not None and known is not None:
        fresh = ~np.isin(hash_ids(ids, "anchor"), known)
        source_rows, target_rows, ids = source_rows[fresh], target_rows[fresh], ids[fresh]
    x = _allocate((len(source_rows), source.space.dim))
    for place, vectors in source.select(source_rows):
        x[place] = vectors
    y = _allocate((len(target_rows), target.space.dim))
    order = np.argsort(target_rows, kind="stable")
    for place, vectors in target.select(target_rows[order]):
        y[order[place]] = vectors
    ids = ids_at(source, source_rows) if ids is None else ids
    record = AnchorRecord(source.fingerprint(), target.fingerprint(), len(ids), len(ids), 0, 0.0, 0)
    ray = as_backend(backend)
    origin = ray and Origin.of(source, target, (source_rows, target_rows), ray)
    return Anchors(ids, x, y, source.space, target.space, record, origin)


def _first_ids(collection: Collection) -> list[str | int]:
    first = next(iter(collection.id_reader()))
    return first.column(0).slice(0, 2).to_pylist()


def _allocate(shape: tuple[int, int]) -> np.ndarray:
    if 4 * shape[0] * shape[1] <= _IN_MEMORY:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(prefix="embridge-") as file:  # unnamed: removed with the process, however it ends
        return np.memmap(file, np.float32, "w+", shape=shape)


def _gather(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    out = _allocate((len(rows), array.shape[1]))
    for start in range(0, len(rows), _CHUNK):
        out[start : start + _CHUNK] = array[rows[start : start + _CHUNK]]
    return out


def _unit_rows(array: np.ndarray) -> np.ndarray:
    out = _allocate(array.shape)
    for start in range(0, len(array), _CHUNK):
        out[start : start + _CHUNK] = unit(array[start : start + _CHUNK])
    return out
