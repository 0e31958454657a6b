"""What the next rows are expected to bring: recall as a function of the share of reached rows that are native.

With counts c of how many queries have a row among their 100 nearest, ``x = sum of c over native rows / sum of c`` is the share of
what queries see that is native. It is known beforehand for the rows that come next, in whatever order they come. Recall is fitted
to it as ``a + b x^p`` with b at least 0 and p from 0.5 to 1, by least squares on the stages measured so far, and on x = 1, where
the recall of the old model plus the gain of the new one among native rows is expected. When a rollout starts there is one stage;
two earlier ones are simulated: a quarter, or half, of the native rows count as native, the others are translated by a map that was
fitted on that part alone (`simulated`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from embridge.anchors import Anchors
from embridge.evaluation.fusion import WEIGHTS
from embridge.indexes.fusion import Fusion
from embridge.maps import Map
from embridge.records.rollout import RolloutForecast, RolloutStatus
from embridge.rollout.maps import MOST_KERNEL, refitted
from embridge.rollout.quality import CHOOSING, REPORTED, Found, Logged, search_pairs
from embridge.rollout.stage import HELD_OUT, Stage

PERCENTS = (1, 5, 20)
PARTS = (4, 2)
POWERS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LEAST_JUDGED = 30  # queries for the gain of the new model
LEAST_PART = 50  # rows to fit the map of a simulated stage on

Curve = Sequence[tuple[float, float]]


def order_of(reach: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Positions of the rows `left` (a mask), those that most queries of the choosing half reach first."""
    order = np.argsort(-reach[CHOOSING], kind="stable")
    return order[left[order]]


def reached(reach: np.ndarray, native: np.ndarray) -> float:
    """The share x of `native` (a mask, or positions) for the queries of the reported half."""
    counts = reach[REPORTED]
    return float(counts[native].sum() / max(counts.sum(), 1))


def expected(curve: Curve, status: RolloutStatus, share: float) -> float | None:
    """Recall at a share of reached rows; None with fewer than two points.

    Parameters
    ----------
    curve : sequence of (float, float)
        Shares and recalls (`plain_recall`), of the present stage last.
    status : RolloutStatus
        Of the present stage.
    share : float
    """
    points, old, gain = list(curve), status.keep_old.recall, status.new_model.gain
    if old is not None and gain is not None and status.new_model_judged >= LEAST_JUDGED:
        points.append((1.0, old + gain))
    if status.now.recall is None or len({x for x, _ in points}) < 2:
        return None
    x, y = np.array(points).T
    best, rise = np.inf, 0.0
    for power in POWERS:
        centered = x**power - (x**power).mean()
        slope = max(float(centered @ (y - y.mean()) / (centered @ centered)), 0.0)
        error = float(np.square(y - y.mean() - slope * centered).sum())
        if error <= best:
            best, rise = error, slope * (share**power - curve[-1][0] ** power)
    return float(np.clip(status.now.recall + rise, 0.0, 1.0))


def forecast(curve: Curve, status: RolloutStatus, reach: np.ndarray, native: np.ndarray) -> tuple[RolloutForecast, ...]:
    """Forecasts for the next 1, 5 and 20 % of all rows; none where all are native."""
    left, found = order_of(reach, ~native), []
    for percent in PERCENTS:
        count = min(max(1, round(len(native) * percent / 100)), len(left))
        if not count or (found and count == found[-1].rows):
            continue
        then = native.copy()
        then[left[:count]] = True
        share = reached(reach, then)
        found.append(RolloutForecast(percent, count, share, expected(curve, status, share)))
    return tuple(found)


def simulated(stage: Stage, logged: Logged, seed: int) -> list[tuple[float, float]]:
    """Points of the curve (as of `plain_recall`) for stages with a quarter and with half of the native rows."""
    native, points = np.flatnonzero(stage.native), []
    ranked = native[np.argsort(-stage.reach[CHOOSING][native], kind="stable")]
    for part in PARTS:
        rows = np.sort(ranked[: len(ranked) // part])
        if len(rows) >= LEAST_PART:
            translation = refitted(stage.translation, _sampled(stage.anchors(rows), seed))
            found = search_pairs(_pairs(stage, translation, rows), (stage.old.space, stage.new.space), logged, None)
            points.append((reached(stage.reach, rows), plain_recall(found)))
    return points


def plain_recall(found: Found) -> float:
    """recall@10 of the reported queries without hubness correction, at the weight that is best for the choosing ones.

    Unlike the fusion that searches use, it need not be better than the old model beyond doubt: the curve has no jumps.
    """
    by_weight = [found.recall(found.both[CHOOSING], CHOOSING, Fusion(weight)).mean() for weight in WEIGHTS]
    weight = WEIGHTS[int(np.argmax(by_weight))]
    return float(found.recall(found.both[REPORTED], REPORTED, Fusion(weight)).mean())


def _sampled(anchors: Anchors, seed: int) -> Anchors:
    train = anchors.split(HELD_OUT, seed)[0]
    return train.sample(MOST_KERNEL, seed) if len(train) > MOST_KERNEL else train


def _pairs(stage: Stage, translation: Map, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The pairs of the stage if only `rows` were native."""
    for start, old, new in stage.pairs():
        vectors = np.array(translation.apply(old), np.float32)
        places = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + len(old))] - start
        vectors[places] = new[places]
        yield start, old, vectors
