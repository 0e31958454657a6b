"""Calibration of native and translated rows: one offset that is added to the scores of translated rows.

It is estimated on pairs: rows whose native and translated vectors are both known. Over real queries, among the k nearest rows of
the whole collection, a pair should be found as often by its translation, in place of its native vector, as by the native vector:
then translated rows hold the share of places that they would hold as native rows.

A factor instead of the offset gave the same results at every measured share; matching means and deviations of all scores was
worse than no calibration, since only the tail matters. The offset is valid for the k it was estimated at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from embridge.neighbors import Nearest

HITS = 100  # places that pairs must hold before an offset is estimated: a standard error of about 10 %


@dataclass(frozen=True)
class Places:
    """Counts of the k nearest places at one offset, summed over queries.

    Attributes
    ----------
    share : float
        Of translated rows.
    native : int
        Places that pairs hold as native rows.
    translated : int
        Places that pairs would hold if their translation, one pair at a time, replaced the native vector.
    both : int
        Places that they hold both ways.
    """

    share: float
    native: int
    translated: int
    both: int

    @property
    def truth(self) -> float | None:
        """The share that translated rows would hold if they were native."""
        if not self.native or not self.translated:
            return None
        odds = self.native / self.translated * self.share
        return odds / (odds + 1 - self.share)

    @property
    def overlap(self) -> float | None:
        """Share of the native places of pairs that they hold both ways."""
        return self.both / self.native if self.native else None


@dataclass(frozen=True, eq=False)
class Found:
    """The best scores of native rows, of translated rows and of the translations of pairs, for some queries.

    Attributes
    ----------
    k : int
    native, translated : ndarray of shape (n_queries, k + 1)
    paired : ndarray of bool, shape (n_queries, k + 1)
        Mask of the pairs among `native`.
    twin : ndarray of shape (n_queries, m)
        Scores of the translations of pairs.
    twin_native : ndarray of shape (n_queries, m)
        Native scores of the same rows; minus infinity where these are not among the best of `native`.
    """

    k: int
    native: np.ndarray
    translated: np.ndarray
    paired: np.ndarray
    twin: np.ndarray
    twin_native: np.ndarray

    @classmethod
    def of(cls, k: int, native: Nearest, translated: Nearest, twins: Nearest, is_pair: np.ndarray) -> Found:
        """From the nearest rows; `is_pair` marks pairs among the rows in `native`."""
        twin_native = np.full_like(twins.scores, -np.inf)
        for place in range(native.rows.shape[1]):
            same = (twins.rows == native.rows[:, place : place + 1]) & (twins.rows >= 0)
            twin_native = np.where(same, native.scores[:, place : place + 1], twin_native)
        return cls(k, native.scores, translated.scores, is_pair & np.isfinite(native.scores), twins.scores, twin_native)

    def __len__(self) -> int:
        return len(self.native)

    def at(self, rows: np.ndarray) -> Found:
        """Some of the queries."""
        parts: Iterable[np.ndarray] = (self.native, self.translated, self.paired, self.twin, self.twin_native)
        return Found(self.k, *(part[rows] for part in parts))

    def places(self, offset: float) -> Places:
        """Counts of the k nearest places when `offset` is added to the scores of translations."""
        moved = self.translated + np.float32(offset)
        order = -np.sort(-np.hstack([self.native, moved]), axis=1)
        last, after = order[:, self.k - 1 : self.k], order[:, self.k : self.k + 1]
        last, after = np.maximum(last, np.finfo(np.float32).min), np.maximum(after, np.finfo(np.float32).min)
        native = self.paired & (self.native >= last)
        # Where the native vector holds a place, the translation gets it if it only beats the next row.
        holds = self.twin_native >= last
        translated = self.twin + np.float32(offset) >= np.where(holds, after, last)
        taken = int((moved >= last).sum())
        everyone = taken + int((self.native >= last).sum())
        share = taken / everyone if everyone else 0.0
        return Places(share, int(native.sum()), int(translated.sum()), int((translated & holds).sum()))

    def offset(self) -> float:
        """The offset at which pairs are found as often translated as native, by bisection."""
        scores = np.concatenate([part[np.isfinite(part)] for part in (self.native, self.translated, self.twin)])
        high = float(scores.max() - scores.min()) + 1e-6
        low = -high
        for _ in range(40):
            middle = (low + high) / 2
            places = self.places(middle)
            low, high = (middle, high) if places.translated < places.native else (low, middle)
        return (low + high) / 2
