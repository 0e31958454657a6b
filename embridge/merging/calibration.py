"""Native and translated rows on one scale of scores, by one number that is added to the scores of translated ones.

What it must do is seen on rows of which both vectors are known (pairs: a native row that replaced a translated one). Over real
queries, among the k nearest rows of the whole collection, a pair should come up as often by its translation, in place of its native
vector, as it does natively: then translated rows hold the share of places that they would hold as native ones.

A factor in place of the offset did the same at every mixture that was measured; matching means and deviations of all scores did
worse than nothing, since what counts happens in the tail, and there alone it is matched here. It holds for the k it was found at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from embridge.neighbors import Nearest

HITS = 100  # places that pairs must hold before an offset is taken from them: a standard error of about a tenth


@dataclass(frozen=True)
class Places:
    """Who holds the k nearest places at one offset, summed over queries.

    Attributes
    ----------
    share : float
        Of translated rows.
    native : int
        Places that pairs hold natively.
    translated : int
        Places that pairs would hold if their translation, one at a time, stood in place of the native vector.
    both : int
        Places that they hold either way.
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
        """Share of the native places of pairs that they hold either way."""
        return self.both / self.native if self.native else None


@dataclass(frozen=True, eq=False)
class Found:
    """The best scores of native rows, of translated rows and of the translations of pairs, for some queries.

    Attributes
    ----------
    k : int
    native, translated : ndarray of shape (n_queries, k + 1)
    paired : ndarray of bool, shape (n_queries, k + 1)
        Which of `native` are pairs.
    twin : ndarray of shape (n_queries, m)
        Scores of the translations of pairs.
    twin_native : ndarray of shape (n_queries, m)
        What the same rows score natively; minus infinity where that is not among the best of `native`.
    """

    k: int
    native: np.ndarray
    translated: np.ndarray
    paired: np.ndarray
    twin: np.ndarray
    twin_native: np.ndarray

    @classmethod
    def of(cls, k: int, native: Nearest, translated: Nearest, twins: Nearest, is_pair: np.ndarray) -> Found:
        """From what was found; `is_pair` says so of the rows in `native`."""
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
        """Who holds the k nearest places when `offset` is added to the scores of translations."""
        moved = self.translated + np.float32(offset)
        order = -np.sort(-np.hstack([self.native, moved]), axis=1)
        last, after = order[:, self.k - 1 : self.k], order[:, self.k : self.k + 1]
        last, after = np.maximum(last, np.finfo(np.float32).min), np.maximum(after, np.finfo(np.float32).min)
        native = self.paired & (self.native >= last)
        # Where its native vector holds a place, that place is free for the translation: it need only beat the one that comes after.
        holds = self.twin_native >= last
        translated = self.twin + np.float32(offset) >= np.where(holds, after, last)
        taken = int((moved >= last).sum())
        everyone = taken + int((self.native >= last).sum())
        share = taken / everyone if everyone else 0.0
        return Places(share, int(native.sum()), int(translated.sum()), int((translated & holds).sum()))

    def offset(self) -> float:
        """The number at which pairs come up as often translated as natively, by bisection."""
        scores = np.concatenate([part[np.isfinite(part)] for part in (self.native, self.translated, self.twin)])
        high = float(scores.max() - scores.min()) + 1e-6
        low = -high
        for _ in range(40):
            middle = (low + high) / 2
            places = self.places(middle)
            low, high = (middle, high) if places.translated < places.native else (low, middle)
        return (low + high) / 2
