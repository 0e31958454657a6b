"""What a plan says: frozen records, plain enough for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from embridge.records.rows import Row, columns_of
from embridge.types import Space

Interval = tuple[float, float]


@dataclass(frozen=True)
class PlannedStrategy:
    """One way of answering new-space queries: how good it is, and what it costs.

    Attributes
    ----------
    name : str
    hubness : bool
        With each row's mean similarity to its 10 nearest of other queries subtracted (CSLS).
    overlap, overlap_ci : float, tuple of float
        Mean share of the native target's k nearest rows found, with its 95 % bootstrap interval over queries. It is that of other
        queries to this corpus and this map; other documents and anchors move it too.
    candidate_recall : float
        Mean share of the native k nearest that are among the 100 nearest found (all rows but one, where there are fewer).
    recall, recall_ci, mrr : float or None
        Against relevance judgements, where given.
    gain, gain_ci : float, tuple of float
        Paired difference to ``keep-old`` in recall (in overlap where nothing is judged), with the interval of this difference
        alone; a reason of a recommendation has one that holds for all that was chosen among.
    recovered : float or None
        Share of the gap between ``keep-old`` and ``re-encode``, in the same measure; None where re-encoding gains nothing.
    rows_changed, encodes : int
        Rows of the corpus written anew, and rows encoded by the new model. A lazy strategy encodes the rows that these queries
        reach, once each.
    seconds, cost : float or None
        ``encodes / encode_rate`` and ``encodes * price``, where these are given.
    needs_old_encoder, needs_texts : bool
        At query time the old model, and the texts of rows.
    mrr_ci, ndcg, ndcg_ci : tuple of float, float, tuple of float, or None
        Against relevance judgements, with grades where they have any.
    """

    name: str
    hubness: bool
    overlap: float
    overlap_ci: Interval
    candidate_recall: float
    recall: float | None
    recall_ci: Interval | None
    mrr: float | None
    gain: float
    gain_ci: Interval
    recovered: float | None
    rows_changed: int
    encodes: int
    seconds: float | None
    cost: float | None
    needs_old_encoder: bool
    needs_texts: bool
    mrr_ci: Interval | None = None
    ndcg: float | None = None
    ndcg_ci: Interval | None = None

    @property
    def title(self) -> str:
        """The name, with ``+hubness`` where it is corrected."""
        return f"{self.name}+hubness" if self.hubness else self.name


@dataclass(frozen=True)
class LearningCurve:
    """Overlap of translated documents by number of anchors.

    Attributes
    ----------
    anchors : tuple of int
    overlap : tuple of float
    forecast_anchors : tuple of int
        Twice and four times as many.
    forecast, forecast_ci : tuple of float, tuple of intervals
        The mean of two laws fitted to the measured points, ``a - b / (n + d)`` and ``a - b n^-c``; the interval holds the 95 %
        intervals of both over resampled queries.
    """

    anchors: tuple[int, ...]
    overlap: tuple[float, ...]
    forecast_anchors: tuple[int, ...]
    forecast: tuple[float, ...]
    forecast_ci: tuple[Interval, ...]


@dataclass(frozen=True)
class Recommendation:
    """A strategy (its title), and why."""

    strategy: str
    reason: str


@dataclass(frozen=True)
class NormDistribution:
    """Lengths of the corpus's rows in a space, or of their translations.

    Attributes
    ----------
    name : str
        ``source``, ``target``, ``translation``, or ``translation-unscaled``: ``coef @ x + intercept`` before it is scaled to
        unit length, in a normalised target space.
    rows : int
    low, median, high : float
        Quantiles at 5, 50 and 95 %.
    edges, counts : tuple of float, tuple of int
        A histogram of all rows: one more edge than counts. One bin where all lengths are alike.
    """

    name: str
    rows: int
    low: float
    median: float
    high: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class LabelFigures:
    """What strategies are compared by (recall where anything is judged, else overlap), as a mean over the queries of a label.

    Attributes
    ----------
    label : str or int
    queries : int
    values : dict of str to float
        By strategy title.
    """

    label: str | int
    queries: int
    values: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """Every strategy side by side, and one recommendation for each situation.

    Attributes
    ----------
    k, queries, judged, corpus, anchors : int
        Neighbours compared; queries asked, and of these judged; rows searched; rows fitted on, none of them in the corpus.
    method : str
        What `auto` chose.
    weight : float
        Of the carried query in the blend: the mean of what the two halves of the queries chose for each other.
    strategies : tuple of PlannedStrategy
    recommendations : dict
        For ``old-encoder-gone``, ``both-encoders`` (no row is encoded) and ``texts-available``.
    learning_curve : LearningCurve
    source, target : Space or None
    norms : tuple of NormDistribution
    labels : tuple of LabelFigures
        Where labels were given: most queries first.
    unlabelled : int or None
        Queries that count for strategies but have no label; None where no labels were given.
    """

    k: int
    queries: int
    judged: int
    corpus: int
    anchors: int
    method: str
    weight: float
    strategies: tuple[PlannedStrategy, ...]
    recommendations: dict[str, Recommendation]
    learning_curve: LearningCurve
    source: Space | None = None
    target: Space | None = None
    norms: tuple[NormDistribution, ...] = ()
    labels: tuple[LabelFigures, ...] = ()
    unlabelled: int | None = None

    def __getitem__(self, title: str) -> PlannedStrategy:
        for strategy in self.strategies:
            if strategy.title == title:
                return strategy
        raise KeyError(title)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def to_rows(self) -> Iterator[Row]:
        """Rows of the catalog's tables."""
        whole = {"method": self.method, "anchors": self.anchors, "k": self.k, "queries": self.queries}
        whole |= {"corpus": self.corpus, "judged": self.judged}
        for strategy in self.strategies:
            yield "plan", whole | {"strategy": strategy.title} | columns_of(strategy)
        for situation, one in self.recommendations.items():
            yield "recommendation", {"situation": situation, "strategy": one.strategy, "reason": one.reason}
        curve = self.learning_curve
        for anchors, overlap in zip(curve.anchors, curve.overlap, strict=True):
            yield "learning_curve", {"anchors": anchors, "overlap": overlap, "forecast": False}
        for anchors, overlap, (low, high) in zip(curve.forecast_anchors, curve.forecast, curve.forecast_ci, strict=True):
            yield "learning_curve", {"anchors": anchors, "overlap": overlap, "low": low, "high": high, "forecast": True}

    def __str__(self) -> str:
        width = max(len(s.title) for s in self.strategies)
        head = f"{'strategy':<{width}} overlap@{self.k:<3} recall@{self.k:<3} against keep-old      recovered  encodes"
        head += "" if self.strategies[0].seconds is None else "         time"
        head += "" if self.strategies[0].cost is None else "       cost"
        lines = [head]
        for s in self.strategies:
            recall = "         -" if s.recall is None else f"{s.recall:>10.3f}"
            recovered = "        -" if s.recovered is None else f"{s.recovered:>9.0%}"
            low, high = s.gain_ci
            gain = f"{s.gain:+.3f} [{low:+.3f}, {high:+.3f}]"
            costs = "" if s.seconds is None else f" {s.seconds:>10,.0f} s"
            costs += "" if s.cost is None else f" {s.cost:>10,.4g}"
            lines.append(f"{s.title:<{width}} {s.overlap:>10.3f} {recall}  {gain} {recovered} {s.encodes:>8,}{costs}")
        curve = self.learning_curve
        points = ", ".join(f"{n:,}: {v:.3f}" for n, v in zip(curve.anchors, curve.overlap, strict=True))
        ahead = ", ".join(
            f"{n:,}: about {v:.3f} [{low:.3f}, {high:.3f}]"
            for n, v, (low, high) in zip(curve.forecast_anchors, curve.forecast, curve.forecast_ci, strict=True)
        )
        if points:
            lines += [f"overlap by anchors: {points}" + (f"; forecast {ahead}" if ahead else "")]
        if self.labels:
            some = (f"{x.label} ({x.queries:,}) {x.values['keep-old']:.3f} {x.values['re-encode']:.3f}" for x in self.labels[:8])
            lines += [f"largest of {len(self.labels):,} labels, keep-old and re-encode: {', '.join(some)}"]
        lines += [f"{situation}: {r.strategy}. {r.reason}" for situation, r in self.recommendations.items()]
        return "\n".join(lines)
