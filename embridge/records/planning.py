"""The result of a plan: scores and costs of every strategy, recommendations, and descriptions of the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from embridge.records.curves import (
    CurvePoint,
    LandmarkCost,
    LazyDepth,
    LearningCurve,
    curve_lines,
    landmark_lines,
    lazy_lines,
    learning_curve_lines,
)
from embridge.records.evaluation import StrategyScore
from embridge.records.queries import QrelsCoverage, query_notes
from embridge.records.rows import Row, columns_of
from embridge.records.text import aligned, fusion_text
from embridge.types import Space

FEW_QUERIES = 100  # below which means have an error of 0.1 or more, and the best strategy is mostly random
_ANISOTROPIC = 0.5
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class CostedScore(StrategyScore):
    """The scores of a strategy, its gain over the old model, and its costs.

    Attributes
    ----------
    name : str
        Without ``+hubness``; the `title` has it.
    hubness : bool
        With each row's mean similarity to its 10 nearest reference queries subtracted (CSLS).
    gain, gain_ci : float, tuple of float
        Paired difference to ``keep-old`` in recall (in overlap where nothing is judged), with the interval of this difference
        only; the reason of a recommendation has a simultaneous interval over all candidates.
    recovered : float or None
        Share of the gap between ``keep-old`` and ``re-encode``, in the same measure; None where re-encoding gains nothing.
    rows_changed, encodes : int
        Rows of the corpus rewritten, and rows encoded by the new model. A lazy strategy encodes each row that these queries
        find, once.
    seconds, cost : float or None
        ``encodes / encode_rate`` and ``encodes * price``, where these are given.
    needs_old_encoder, needs_texts : bool
        Whether it needs the old model, and the texts of rows, at query time.
    """

    hubness: bool
    gain: float
    gain_ci: Interval
    recovered: float | None
    rows_changed: int
    encodes: int
    seconds: float | None
    cost: float | None
    needs_old_encoder: bool
    needs_texts: bool

    @property
    def title(self) -> str:
        """The name, with ``+hubness`` where it is corrected."""
        return f"{self.name}+hubness" if self.hubness else self.name


@dataclass(frozen=True)
class SpaceIsotropy:
    """How evenly the rows of a space use its directions.

    Attributes
    ----------
    space : str
    dim : int
    mean_cosine : float
        Of two rows. Near 0 where directions are used evenly; above 0.5 the rows are strongly anisotropic.
    effective_rank : float
        At most `dim`.
    """

    space: str
    dim: int
    mean_cosine: float
    effective_rank: float

    @property
    def is_strong(self) -> bool:
        """Whether the mean of all rows is the largest part of each."""
        return self.mean_cosine > _ANISOTROPIC


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
        unit length, in a normalized target space.
    rows : int
    low, median, high : float
        Quantiles at 5, 50 and 95 %.
    edges, counts : tuple of float, tuple of int
        A histogram of all rows: one more edge than counts. One bin where all lengths are equal.
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
    """The score that strategies are compared by (recall where queries are judged, else overlap), averaged over a label's queries.

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
    """Scores of all strategies, and one recommendation for each situation.

    Attributes
    ----------
    k, queries, judged, corpus, anchors : int
        Neighbors compared; queries, and judged queries; rows searched; rows fitted on, none of them in the corpus.
    method : str
        Method chosen by `auto`.
    weight : float
        Weight of the projected query in the blend: the mean over the two halves of the queries.
    strategies : tuple of CostedScore
    recommendations : dict
        For ``old-encoder-gone``, ``both-encoders`` (no row is encoded), ``texts-available`` and, where a budget was given,
        ``budget``.
    learning_curve : LearningCurve
    source, target : Space or None
    norms : tuple of NormDistribution
    labels : tuple of LabelFigures
        Where labels were given: most queries first.
    unlabelled : int or None
        Queries without a label; None where no labels were given.
    lazy_depths : tuple of LazyDepth
        Lazy strategies by the number of re-encoded candidates.
    qrels : QrelsCoverage or None
        Counts of the relevance judgments that were used.
    own_rows : int
        Given queries that are rows of the corpus (same id, same vector) and do not find themselves.
    curve, curve_projected : tuple of CurvePoint
        Progressive migration from 0 to 100 % of the rows, with both encoders and with the old encoder gone. Empty under L2.
    isotropy : tuple of SpaceIsotropy
        Of the source's rows and of the target's.
    landmarks : tuple of LandmarkCost
        Kernel maps with 500, 1,500 and 5,000 landmarks (at most one an anchor).
    """

    k: int
    queries: int
    judged: int
    corpus: int
    anchors: int
    method: str
    weight: float
    strategies: tuple[CostedScore, ...]
    recommendations: dict[str, Recommendation]
    learning_curve: LearningCurve
    source: Space | None = None
    target: Space | None = None
    norms: tuple[NormDistribution, ...] = ()
    labels: tuple[LabelFigures, ...] = ()
    unlabelled: int | None = None
    lazy_depths: tuple[LazyDepth, ...] = ()
    qrels: QrelsCoverage | None = None
    own_rows: int = 0
    curve: tuple[CurvePoint, ...] = ()
    curve_projected: tuple[CurvePoint, ...] = ()
    isotropy: tuple[SpaceIsotropy, ...] = ()
    landmarks: tuple[LandmarkCost, ...] = ()

    def __getitem__(self, title: str) -> CostedScore:
        for strategy in self.strategies:
            if strategy.title == title:
                return strategy
        raise KeyError(title)

    @property
    def notes(self) -> list[str]:
        """What to know about the figures: the queries and their judgments, a worse new model, anisotropic spaces."""
        notes, measured = query_notes(self.qrels, self.own_rows), self.judged or self.queries
        if measured < FEW_QUERIES:
            notes.append(
                f"few queries: means over {measured:,} of them have an error of about {measured**-0.5:.2f}, so which "
                "strategy is best is mostly random; use some hundreds"
            )
        return [*notes, *self._yardstick_notes(), *map(_anisotropy_note, (one for one in self.isotropy if one.is_strong))]

    def _yardstick_notes(self) -> list[str]:
        full = self["re-encode"]
        if self.judged and full.gain_ci[1] < 0:
            interval = f"{full.gain:+.3f} [{full.gain_ci[0]:+.3f}, {full.gain_ci[1]:+.3f}]"
            return [f"the new model is worse than the old one on these queries: recall@{self.k} {interval}"]
        if not self.judged and self.curve:
            return [
                "without judgments (qrels) strategies are compared by overlap with the new model's ranking, which does not say "
                "whether the new model is better; a fusion keeps neighbors of the old model, which overlap counts as errors, so "
                "fused and progressive strategies are measured but not recommended"
            ]
        return []

    @property
    def deciding(self) -> tuple[CostedScore, ...]:
        """The most relevant strategies: the baselines, the recommended ones, and the best of those that need less."""
        titles = {"keep-old", "re-encode", *(r.strategy for r in self.recommendations.values())}
        free = [s for s in self.strategies if not s.needs_texts and s.title != "keep-old"]
        cheap = [s for s in self.strategies if s.needs_texts and s.encodes < self.corpus]
        for among in (free, [s for s in free if not s.needs_old_encoder], cheap):
            if among:
                titles.add(max(among, key=lambda s: s.gain).title)
        return tuple(s for s in self.strategies if s.title in titles)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"notes": self.notes}

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
        return self.to_text()

    def to_text(self, *, all_strategies: bool = False) -> str:
        """The plan as text, with the most relevant strategies, or with all of them."""
        shown = self.strategies if all_strategies else self.deciding
        lines = _strategy_lines(self.k, shown)
        if left := len(self.strategies) - len(shown):
            lines.append(f"and {left} more strategies (--all-strategies)")
        lines += curve_lines(self.k, self.curve, "progressive migration with both encoders, by rows re-encoded:")
        lines += curve_lines(self.k, self.curve_projected, "the same with the old encoder gone:")
        lines += [*self.notes, *lazy_lines(self.k, self.lazy_depths), *landmark_lines(self.k, self.landmarks)]
        lines += learning_curve_lines(self.learning_curve)
        if self.labels:
            some = (f"{x.label} ({x.queries:,}) {x.values['keep-old']:.3f} {x.values['re-encode']:.3f}" for x in self.labels[:8])
            lines += [f"largest of {len(self.labels):,} labels, keep-old and re-encode: {', '.join(some)}"]
        lines += [f"{situation}: {r.strategy}. {r.reason}" for situation, r in self.recommendations.items()]
        return "\n".join(lines)


def _anisotropy_note(one: SpaceIsotropy) -> str:
    return (
        f"space {one.space!r} is strongly anisotropic: two of its rows have a mean cosine of {one.mean_cosine:.2f} (effective rank "
        f"{one.effective_rank:.0f} of {one.dim}). All its cosines are high and close together, so thresholds on them do not carry "
        "over to another model, and maps that keep the common mean rank badly; the map was chosen among some that remove or shrink "
        "it"
    )


def _strategy_lines(k: int, strategies: Sequence[CostedScore]) -> list[str]:
    first = strategies[0]
    columns = [
        ("strategy", [s.title for s in strategies]),
        (f"overlap@{k}", [s.overlap for s in strategies]),
        (f"recall@{k}", ["-" if s.recall is None else s.recall for s in strategies]),
        ("against keep-old", [f"{s.gain:+.3f} [{s.gain_ci[0]:+.3f}, {s.gain_ci[1]:+.3f}]" for s in strategies]),
        ("recovered", ["-" if s.recovered is None else f"{s.recovered:.0%}" for s in strategies]),
        ("encodes", [f"{s.encodes:,}" for s in strategies]),
    ]
    if any(s.weight is not None for s in strategies):
        columns.append(("weight, hubness", [fusion_text(s.weight, s.correction) for s in strategies]))
    if first.seconds is not None:
        columns.append(("time", [f"{s.seconds:,.0f} s" for s in strategies]))
    if first.cost is not None:
        columns.append(("cost", [f"{s.cost:,.4g}" for s in strategies]))
    return aligned(columns)
