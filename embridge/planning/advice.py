"""Which strategy to take, by situation."""

from __future__ import annotations

from collections.abc import Sequence

from embridge.records import PlannedStrategy, Recommendation

ENOUGH = 0.8  # of the gap: what a lazy or partial re-encoding must recover to be worth not re-encoding everything


def recommend(strategies: Sequence[PlannedStrategy], *, judged: bool) -> dict[str, Recommendation]:
    """One recommendation for each situation.

    ``old-encoder-gone``: the best that needs neither the old model nor texts. ``both-encoders``: the best that encodes no row, if
    its paired interval against ``keep-old`` lies above zero, else ``keep-old``. ``texts-available``: re-encode everything
    where that is better than keeping, or the strategy with the fewest encodes that recovers 80 % of the gap.
    """
    what = "recall" if judged else "overlap with the new model's ranking"
    by_title = {s.title: s for s in strategies}
    keep, full = by_title["keep-old"], by_title["re-encode"]

    def against(s: PlannedStrategy) -> str:
        low, high = s.gain_ci
        return f"{what} {s.gain:+.3f} [{low:+.3f}, {high:+.3f}] against keeping the old model"

    free = [s for s in strategies if not s.needs_texts]
    without_old = max((s for s in free if not s.needs_old_encoder), key=lambda s: s.gain)
    best = max((s for s in free if s is not keep), key=lambda s: s.gain)
    found = {"old-encoder-gone": Recommendation(without_old.title, f"The best without the old model: {against(without_old)}.")}
    kept = Recommendation("keep-old", f"Keep it: nothing is measurably better; the best, {best.title}, has {against(best)}.")
    both = Recommendation(best.title, f"No row is encoded: {against(best)}.") if best.gain_ci[0] > 0 else kept
    found["both-encoders"] = both
    if full.gain_ci[0] <= 0:
        reason = f"Re-encoding everything is not measurably better: {against(full)}."
        found["texts-available"] = Recommendation(both.strategy, reason)
        return found
    enough = [s for s in strategies if s.needs_texts and (s.recovered or 0) >= ENOUGH]
    cheapest = min(enough, key=lambda s: (s.encodes, -s.gain))
    share = f"recovers {cheapest.recovered:.0%} of what re-encoding everything gains" if cheapest.recovered else "gains most"
    found["texts-available"] = Recommendation(
        cheapest.title, f"It {share} with {cheapest.encodes:,} of {full.encodes:,} rows encoded: {against(cheapest)}."
    )
    return found
