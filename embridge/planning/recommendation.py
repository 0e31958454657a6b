"""Recommends a strategy for each situation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from embridge.evaluation.bootstrap import simultaneous_intervals
from embridge.records import FEW_QUERIES, CostedScore, Recommendation
from embridge.translators.select import one_standard_error

ENOUGH = 0.8  # of the gap: the share that a lazy or partial re-encoding must recover to be recommended


def recommend(
    strategies: Sequence[CostedScore], gains: np.ndarray, *, judged: bool, budget: int | None = None
) -> dict[str, Recommendation]:
    """One recommendation for each situation.

    The best of many strategies is partly the best by luck. So a strategy chosen by its score must pass simultaneous intervals
    over all candidates (`simultaneous_intervals`), and of those that pass, the simplest is chosen that paired differences
    cannot distinguish from the best (`one_standard_error`): fewest rows changed, no fusion, no hubness correction, no
    old encoder.

    ``old-encoder-gone``: of those that need neither the old model nor texts. ``both-encoders``: of those that encode no row and
    whose interval against ``keep-old`` is above zero; ``keep-old`` where there is none. ``texts-available``: the strategy that
    encodes fewest rows (within 1 % of them) of all whose interval is above zero and that recover 80 % of the gain of re-encoding.
    That share is used as measured, without a margin. Where re-encoding everything is not better than keeping (a single
    comparison), a fusion may still be: then the one that encodes fewest rows of all whose interval is above zero and that cannot
    be distinguished from the best, or that of ``both-encoders`` if it encodes no row. ``budget``, where one is
    given: of those that encode no more rows and whose interval is above zero, the one that encodes fewest of all that cannot be
    distinguished from the best; ``keep-old`` where there is none.

    Without judgments no fusion is recommended: overlap counts the old model's neighbors, which it keeps, as errors.

    Parameters
    ----------
    strategies : sequence of CostedScore
    gains : ndarray of shape (strategies, queries)
        Paired differences to ``keep-old``, in recall or overlap.
    judged : bool
        Whether they are in recall.
    budget : int, optional
        Rows that may be encoded.
    """
    if not judged:
        comparable = [i for i, s in enumerate(strategies) if s.weight is None]
        strategies, gains = [strategies[i] for i in comparable], gains[comparable]
    table = _Table(strategies, gains, "recall" if judged else "overlap with the new model's ranking")
    both = table.both_encoders()
    found = {
        "old-encoder-gone": table.old_encoder_gone(),
        "both-encoders": both,
        "texts-available": table.texts_available(both),
    }
    if budget is not None:
        found["budget"] = table.within(budget)
    queries = gains.shape[1]
    if queries < FEW_QUERIES:
        note = f" With {queries:,} {'query' if queries == 1 else 'queries'} the choice is mostly random."
        found = {situation: replace(one, reason=one.reason + note) for situation, one in found.items()}
    return found


@dataclass(frozen=True, eq=False)
class _Table:
    """Strategies, their paired differences to ``keep-old`` by query, and the word for the measure."""

    strategies: Sequence[CostedScore]
    gains: np.ndarray
    measure: str

    @property
    def keep(self) -> int:
        return self._place("keep-old")

    @property
    def full(self) -> int:
        return self._place("re-encode")

    @property
    def free(self) -> list[int]:
        """Strategies that encode no row, without ``keep-old``."""
        return [i for i, s in enumerate(self.strategies) if not s.needs_texts and i != self.keep]

    def old_encoder_gone(self) -> Recommendation:
        without_old = [i for i in self.free if not self.strategies[i].needs_old_encoder]
        if not without_old:
            return Recommendation("re-encode", "No other strategy works without the old model here.")
        known = _together(self.gains, without_old)
        i, remark = self._simplest(without_old)
        return Recommendation(self._title(i), f"It needs no old model: {self._against(i, known[i], len(known))}.{remark}")

    def both_encoders(self) -> Recommendation:
        free = self.free
        known = _together(self.gains, free)
        if proven := [i for i in free if known[i][0] > 0]:
            i, remark = self._simplest(proven)
            return Recommendation(self._title(i), f"No row is encoded: {self._against(i, known[i], len(known))}.{remark}")
        return Recommendation(self._title(self.keep), self._nothing(free, known))

    def texts_available(self, otherwise: Recommendation) -> Recommendation:
        strategies, gains, full = self.strategies, self.gains, self.full
        others = [i for i in range(len(strategies)) if i != self.keep]
        known, gap = _together(gains, others), gains[full].mean()
        if strategies[full].gain_ci[0] <= 0:
            worse = "worse than the old model" if strategies[full].gain_ci[1] < 0 else "not measurably better"
            why = f"Re-encoding everything is {worse}: {self._against(full, strategies[full].gain_ci)}."
            proven = [i for i in others if known[i][0] > 0 and (i in self.free or strategies[i].weight is not None)]
            i, remark = self._simplest(proven, cheapest=True) if proven else (full, "")
            if not proven or not strategies[i].encodes:
                return Recommendation(otherwise.strategy, why)
            encoded = f"{strategies[i].encodes:,} of {strategies[full].encodes:,} rows encoded"
            return Recommendation(
                self._title(i), f"{why} With {encoded}, {self._title(i)} has {self._against(i, known[i], len(known))}.{remark}"
            )
        shares = gains.mean(axis=1) / gap
        enough = [i for i in others if shares[i] >= ENOUGH and known[i][0] > 0] or [full]
        total = strategies[full].encodes
        partial = [i for i in enough if strategies[i].encodes < total] or enough
        fewest = min(strategies[i].encodes for i in partial)
        # Small differences in encoded rows are random: within 1 % of all rows strategies are treated as equal.
        i, remark = self._simplest([i for i in partial if strategies[i].encodes <= fewest + total // 100])
        # A share is a ratio of means; to first order it is the mean over queries of these.
        span = 2 * (1 + np.abs(shares).max()) / gap
        low, high = _together(shares[:, None] + (gains - shares[:, None] * gains[full]) / gap, others, span)[i]
        share = f"recovers {shares[i]:.0%} [{low:.0%}, {high:.0%}] of what re-encoding everything gains"
        encoded = f"{strategies[i].encodes:,} of {total:,} rows encoded"
        if 0.95 * total < strategies[i].encodes < total:
            remark += f" These queries reach nearly all rows: re-encoding everything ({strategies[full].gain:+.3f}) costs the same."
        return Recommendation(self._title(i), f"It {share} with {encoded}: {self._against(i, known[i], len(known))}.{remark}")

    def within(self, budget: int) -> Recommendation:
        strategies, total = self.strategies, self.strategies[self.full].encodes
        allowed = f"{budget:,} of {total:,} rows may be encoded" if budget < total else f"All {total:,} rows may be encoded"
        reachable = [i for i, s in enumerate(strategies) if s.encodes <= budget and i != self.keep]
        known = _together(self.gains, reachable)
        proven = [i for i in reachable if known[i][0] > 0]
        if not proven:
            return Recommendation(self._title(self.keep), f"{allowed}. {self._nothing(reachable, known)}")
        i, remark = self._simplest(proven, cheapest=True)
        why = f"{allowed}, {strategies[i].encodes:,} are: {self._against(i, known[i], len(known))}.{remark}"
        return Recommendation(self._title(i), why)

    def _place(self, title: str) -> int:
        return [s.title for s in self.strategies].index(title)

    def _title(self, i: int) -> str:
        return self.strategies[i].title

    def _against(self, i: int, interval: Sequence[float], among: int = 1) -> str:
        low, high = interval
        corrected = f" (95 %, corrected for choosing among {among})" if among > 1 else ""
        gain = self.strategies[i].gain
        return f"{self.measure} {gain:+.3f} [{low:+.3f}, {high:+.3f}] against keeping the old model{corrected}"

    def _nothing(self, rows: Sequence[int], known: dict[int, tuple[float, float]]) -> str:
        i = self._best(rows)
        return f"Nothing is measurably better; the best, {self._title(i)}, has {self._against(i, known[i], len(known))}."

    def _best(self, rows: Sequence[int]) -> int:
        return max(rows, key=lambda i: self.strategies[i].gain)

    def _simplest(self, rows: Sequence[int], *, cheapest: bool = False) -> tuple[int, str]:
        """The simplest of some strategies that cannot be distinguished from the best, and a remark on the best.

        With `cheapest` those that encode fewest rows come first.
        """
        if self.gains.shape[1] < 2:  # one query has no standard error
            return self._best(rows), ""
        ordered = sorted(rows, key=lambda i: (cheapest * self.strategies[i].encodes, *_effort(self.strategies[i])))
        i, top = ordered[one_standard_error(self.gains[ordered])[0]], self._best(rows)
        if i == top:
            return i, ""
        word = "cheaper" if cheapest and self.strategies[i].encodes < self.strategies[top].encodes else "simpler"
        return i, f" It is {word} than {self._title(top)} ({self.strategies[top].gain:+.3f}) and not measurably worse."


def _effort(s: CostedScore) -> tuple[int, bool, bool, bool]:
    return s.rows_changed, s.weight is not None, s.hubness, s.needs_old_encoder


def _together(values: np.ndarray, rows: Sequence[int], span: float = 2.0) -> dict[int, tuple[float, float]]:
    """Simultaneous intervals of some strategies."""
    edges = simultaneous_intervals(values[rows], span=span)
    return {i: (float(low), float(high)) for i, (low, high) in zip(rows, edges, strict=True)}
