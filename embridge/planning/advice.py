"""Which strategy to take, by situation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embridge.planning.inference import simultaneous_intervals
from embridge.records import PlannedStrategy, Recommendation
from embridge.translators.select import one_standard_error

ENOUGH = 0.8  # of the gap: what a lazy or partial re-encoding must recover to be worth not re-encoding everything


def recommend(strategies: Sequence[PlannedStrategy], gains: np.ndarray, *, judged: bool) -> dict[str, Recommendation]:
    """One recommendation for each situation.

    The best of many is the best by luck too. So what is chosen for its score is held to intervals that hold at once for all that
    it was chosen among (`simultaneous_intervals`), and of those that pass the simplest is taken that paired differences cannot
    tell from the best (`one_standard_error`): fewest rows changed, no hubness correction, no old encoder.

    ``old-encoder-gone``: of those that need neither the old model nor texts. ``both-encoders``: of those that encode no row and
    whose interval against ``keep-old`` lies above zero; ``keep-old`` where there is none. ``texts-available``: where re-encoding
    everything is not better than keeping (one comparison, in which nothing is chosen), the same; else what encodes fewest rows
    (within 1 % of them) of all whose interval lies above zero and that recover 80 % of the gain of re-encoding. That share
    counts as it was measured, without a margin: it is a price, and to miss it either way costs.

    Parameters
    ----------
    strategies : sequence of PlannedStrategy
    gains : ndarray of shape (strategies, queries)
        Paired differences to ``keep-old``, in recall or overlap.
    judged : bool
        Whether they are in recall.
    """
    what = "recall" if judged else "overlap with the new model's ranking"
    titles = [s.title for s in strategies]
    keep, full = titles.index("keep-old"), titles.index("re-encode")

    def against(i: int, interval: Sequence[float], among: int = 1) -> str:
        low, high = interval
        corrected = f" (95 %, corrected for choosing among {among})" if among > 1 else ""
        return f"{what} {strategies[i].gain:+.3f} [{low:+.3f}, {high:+.3f}] against keeping the old model{corrected}"

    def best(rows: Sequence[int]) -> int:
        return max(rows, key=lambda i: strategies[i].gain)

    def simplest(rows: Sequence[int]) -> tuple[int, str]:
        """Of some strategies the simplest that cannot be told from the best, and a word on the best."""
        if gains.shape[1] < 2:  # nothing can be told
            return best(rows), ""
        ordered = sorted(rows, key=lambda i: _effort(strategies[i]))
        i, top = ordered[one_standard_error(gains[ordered])[0]], best(rows)
        return i, "" if i == top else f" It is simpler than {titles[top]} ({strategies[top].gain:+.3f}) and not measurably worse."

    free = [i for i, s in enumerate(strategies) if not s.needs_texts and i != keep]
    without_old = [i for i in free if not strategies[i].needs_old_encoder]
    known = _together(gains, without_old)
    i, word = simplest(without_old)
    gone = Recommendation(titles[i], f"It needs no old model: {against(i, known[i], len(known))}.{word}")

    known = _together(gains, free)
    if proven := [i for i in free if known[i][0] > 0]:
        i, word = simplest(proven)
        both = Recommendation(titles[i], f"No row is encoded: {against(i, known[i], len(known))}.{word}")
    else:
        i = best(free)
        why = f"Keep it: nothing is measurably better; the best, {titles[i]}, has {against(i, known[i], len(known))}."
        both = Recommendation(titles[keep], why)

    if strategies[full].gain_ci[0] <= 0:
        why = f"Re-encoding everything is not measurably better: {against(full, strategies[full].gain_ci)}."
        texts = Recommendation(both.strategy, why)
    else:
        others = [i for i in range(len(strategies)) if i != keep]
        known, gap = _together(gains, others), gains[full].mean()
        shares = gains.mean(axis=1) / gap
        enough = [i for i in others if shares[i] >= ENOUGH and known[i][0] > 0] or [full]
        total = strategies[full].encodes
        partial = [i for i in enough if strategies[i].encodes < total] or enough
        fewest = min(strategies[i].encodes for i in partial)
        # Which of the lazy ones reaches a few rows less is chance: within 1 % of all rows they count as one.
        i, word = simplest([i for i in partial if strategies[i].encodes <= fewest + total // 100])
        # A share is a ratio of means; to first order it is the mean over queries of these.
        span = 2 * (1 + np.abs(shares).max()) / gap
        low, high = _together(shares[:, None] + (gains - shares[:, None] * gains[full]) / gap, others, span)[i]
        share = f"recovers {shares[i]:.0%} [{low:.0%}, {high:.0%}] of what re-encoding everything gains"
        encoded = f"{strategies[i].encodes:,} of {total:,} rows encoded"
        if 0.95 * total < strategies[i].encodes < total:
            word += f" These queries reach nearly all rows: to re-encode everything ({strategies[full].gain:+.3f}) costs the same."
        texts = Recommendation(titles[i], f"It {share} with {encoded}: {against(i, known[i], len(known))}.{word}")
    return {"old-encoder-gone": gone, "both-encoders": both, "texts-available": texts}


def _effort(s: PlannedStrategy) -> tuple[int, bool, bool]:
    return s.rows_changed, s.hubness, s.needs_old_encoder


def _together(values: np.ndarray, rows: Sequence[int], span: float = 2.0) -> dict[int, tuple[float, float]]:
    """Simultaneous intervals of some strategies."""
    edges = simultaneous_intervals(values[rows], span=span)
    return {i: (float(low), float(high)) for i, (low, high) in zip(rows, edges, strict=True)}
