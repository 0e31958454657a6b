"""Quality as a function of effort: rows re-encoded, candidates re-encoded per query, anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embridge.records.text import aligned

Interval = tuple[float, float]


@dataclass(frozen=True)
class CurvePoint:
    """Progressive migration at one stage: the strategy ``progressive-N%``, or ``fuse`` at 0 %.

    Attributes
    ----------
    percent : float
        Percentage of the rows that are re-encoded.
    encodes : int
    recall, recall_ci : float, tuple of float, or None
        None without relevance judgments.
    overlap, overlap_ci : float, tuple of float
    weight : float
        Weight of the new side, chosen on all queries: the one to use. The scores are measured with weights chosen for each half of
        the queries on the other half.
    hubness : str
        Sides corrected for hubness: ``none``, ``old``, ``new`` or ``both``; chosen like the weight.
    """

    percent: float
    encodes: int
    recall: float | None
    recall_ci: Interval | None
    overlap: float
    overlap_ci: Interval
    weight: float
    hubness: str


@dataclass(frozen=True)
class LandmarkCost:
    """A kernel map with some number of landmarks.

    Attributes
    ----------
    landmarks : int
    overlap : float
        Of ``translate-documents-kernel`` with so many, likewise
    recall : float or None
        None without judged queries.
    seconds : float
        To translate a million rows on the CPU of this machine, without reading and writing them.
    is_enough : bool
        The fewest landmarks whose score (recall where queries are judged, else overlap) is within one standard error of the best.
    """

    landmarks: int
    overlap: float
    recall: float | None
    seconds: float
    is_enough: bool = False


@dataclass(frozen=True)
class LazyDepth:
    """The costs and scores of a lazy strategy at one depth.

    Attributes
    ----------
    strategy : str
        Its title.
    depth : int
        Candidates re-encoded per query; those after them keep their order.
    encodes : int
        Distinct rows encoded for these queries.
    overlap, recall : float, float or None
    """

    strategy: str
    depth: int
    encodes: int
    overlap: float
    recall: float | None


@dataclass(frozen=True)
class LearningCurve:
    """Overlap of translated documents by number of anchors.

    Attributes
    ----------
    anchors : tuple of int
    overlap : tuple of float
    forecast_anchors : tuple of int
        Numbers of the prediction: twice and four times as many.
    forecast, forecast_ci : tuple of float, tuple of intervals
        The mean of two formulas fitted to the measured points, ``a - b / (n + d)`` and ``a - b n^-c``; the interval spans the 95 %
        intervals of both over resampled queries.
    """

    anchors: tuple[int, ...]
    overlap: tuple[float, ...]
    forecast_anchors: tuple[int, ...]
    forecast: tuple[float, ...]
    forecast_ci: tuple[Interval, ...]


def curve_lines(k: int, curve: Sequence[CurvePoint], title: str) -> list[str]:
    """A curve as a table."""
    if not curve:
        return []
    columns = [
        ("re-encoded", [f"{point.percent:.3g} %" for point in curve]),
        ("rows", [f"{point.encodes:,}" for point in curve]),
        (f"recall@{k}", [point.recall for point in curve]),
        ("95 % interval", [point.recall_ci for point in curve]),
        (f"overlap@{k}", [point.overlap for point in curve]),
        ("95 % interval", [point.overlap_ci for point in curve]),
        ("weight", [f"{point.weight:g}" for point in curve]),
        ("hubness", [point.hubness for point in curve]),
    ]
    return [title, *aligned([(name, values) for name, values in columns if any(value is not None for value in values)])]


def lazy_lines(k: int, depths: Sequence[LazyDepth]) -> list[str]:
    """Encodes against quality of the plain lazy strategies."""
    lines = []
    for title in dict.fromkeys(one.strategy for one in depths if not one.strategy.endswith("+hubness")):
        mine = [one for one in depths if one.strategy == title]
        measure = "overlap" if mine[0].recall is None else "recall"
        points = (f"{one.depth}: {getattr(one, measure):.3f} ({one.encodes:,})" for one in mine)
        lines.append(f"{title}, {measure}@{k} and rows encoded, by candidates per query: {', '.join(points)}")
    return lines


def landmark_lines(k: int, costs: Sequence[LandmarkCost]) -> list[str]:
    """Quality of kernel maps by landmarks against the cost of a conversion."""
    if not costs:
        return []
    measure = "overlap" if costs[0].recall is None else "recall"
    points = (f"{one.landmarks:,}: {getattr(one, measure):.3f} ({one.seconds:,.0f} s)" for one in costs)
    enough = next(one.landmarks for one in costs if one.is_enough)
    title = f"kernel maps by landmarks, {measure}@{k} and seconds to translate a million rows"
    return [f"{title}: {', '.join(points)}; {enough:,} are enough"]


def learning_curve_lines(curve: LearningCurve) -> list[str]:
    """Measured and predicted overlap on one line."""
    points = ", ".join(f"{n:,}: {v:.3f}" for n, v in zip(curve.anchors, curve.overlap, strict=True))
    ahead = ", ".join(
        f"{n:,}: about {v:.3f} [{low:.3f}, {high:.3f}]"
        for n, v, (low, high) in zip(curve.forecast_anchors, curve.forecast, curve.forecast_ci, strict=True)
    )
    return [f"overlap by anchors: {points}" + (f"; predicted {ahead}" if ahead else "")] if points else []
