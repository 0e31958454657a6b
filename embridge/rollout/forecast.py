"""Which rows come next, and what they are expected to bring.

With counts c of how many queries have a row among their 100 nearest, ``x = sum of c over native rows / sum of c`` is the share of
what queries reach that is native. It saturates: the rows that are reached most come first. Recall is expected to rise in proportion
to it, from the present recall at the present share to that of the old model plus the gain of the new one (measured among native
rows) at x = 1.
"""

from __future__ import annotations

import numpy as np

from embridge.records.rollout import RolloutForecast, RolloutStatus
from embridge.rollout.quality import CHOOSING, REPORTED

PERCENTS = (1, 5, 20)
LEAST_JUDGED = 30  # queries for the gain of the new model


def order_of(reach: np.ndarray, ties: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Positions of the rows `left` (a mask), those that most queries of the choosing half reach first.

    Rows that equally many reach are in the order of `ties`, so that it is the same in whatever order a store has its rows.
    """
    order = np.lexsort((ties, -reach[CHOOSING]))
    return order[left[order]]


def reached(reach: np.ndarray, native: np.ndarray) -> float:
    """The share x of `native` (a mask) for the queries of the reported half."""
    counts = reach[REPORTED]
    return float(counts[native].sum() / max(counts.sum(), 1))


def expected(status: RolloutStatus, present: float, share: float) -> float | None:
    """Recall at a share of what queries reach, where the present share is `present`; None where it cannot be told.

    It is not told where fewer than 30 judged queries compare the two models.
    """
    now, old, gain = status.now.recall, status.keep_old.recall, status.new_model.gain
    if now is None or old is None or gain is None or status.new_model_judged < LEAST_JUDGED or present >= 1:
        return now if present >= 1 else None
    rise = max(old + gain - now, 0.0) * (share - present) / (1 - present)
    return min(now + rise, 1.0)


def forecast(status: RolloutStatus, reach: np.ndarray, ties: np.ndarray, native: np.ndarray) -> tuple[RolloutForecast, ...]:
    """Forecasts for the next 1, 5 and 20 % of all rows; none where all are native."""
    left, present, found = order_of(reach, ties, ~native), reached(reach, native), []
    for percent in PERCENTS:
        count = min(max(1, round(len(native) * percent / 100)), len(left))
        if not count or (found and count == found[-1].rows):
            continue
        then = native.copy()
        then[left[:count]] = True
        share = reached(reach, then)
        found.append(RolloutForecast(percent, count, share, expected(status, present, share)))
    return tuple(found)
