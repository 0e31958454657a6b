"""The result of an evaluation: scores of every strategy, by label and by size of the corpus, and of one map against another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embridge.records.quality import ConfidenceCheck
from embridge.records.queries import QrelsCoverage, query_notes
from embridge.records.rows import Row, columns_of
from embridge.records.text import aligned, cell, fusion_text

if TYPE_CHECKING:
    import numpy as np

Interval = tuple[float, float]
_LABELS = 16  # shown
_FEW = 20  # queries: labels with fewer come last


@dataclass(frozen=True)
class StrategyScore:
    """Scores of one strategy against native neighbors, and against relevance judgments where given.

    Attributes
    ----------
    name : str
        ``keep-old``, ``no-translation``, ``translate-documents``, ``project-queries``, ``project-queries-adjoint``, ``blend`` or
        ``re-encode``, with hubness correction followed by ``+hubness``; ``fuse``, ``fuse-kernel``, ``fuse-projected`` or
        ``fuse-kernel-projected``.
    overlap : float
        Mean share of the native target's k nearest rows that are among this strategy's k nearest.
    overlap_ci : tuple of float
        95 % bootstrap interval over queries, as all intervals here.
    recall, mrr : float or None
        Recall at k and mean reciprocal rank at k against the relevance judgments, where given.
    candidate_recall : float
        Mean share of the native k nearest that are among the 100 nearest found (all rows but one, where there are fewer).
    recall_ci, mrr_ci : tuple of float or None
    ndcg, ndcg_ci : float, tuple of float, or None
        nDCG at k, with grades where the judgments have any.
    weight, correction : float, str, or None
        Of a fusion: the weight of the new side and the sides corrected for hubness (``none``, ``old``, ``new``, ``both``), chosen
        on all queries. The scores are measured with choices for each half of the queries on the other half.
    """

    name: str
    overlap: float
    overlap_ci: Interval
    recall: float | None = None
    mrr: float | None = None
    candidate_recall: float | None = None
    recall_ci: Interval | None = None
    mrr_ci: Interval | None = None
    ndcg: float | None = None
    ndcg_ci: Interval | None = None
    weight: float | None = None
    correction: str | None = None


@dataclass(frozen=True)
class LabelScore:
    """The same as `StrategyScore`, for the queries of one label.

    Attributes
    ----------
    label : str or int
    strategy : str
    queries, judged : int
        Queries of the label; and those of them with a relevant row, over which recall, MRR and nDCG are averaged.
    overlap, overlap_ci, recall, recall_ci, mrr, mrr_ci, ndcg, ndcg_ci
        As in `StrategyScore`.
    """

    label: str | int
    strategy: str
    queries: int
    overlap: float
    overlap_ci: Interval
    judged: int = 0
    recall: float | None = None
    recall_ci: Interval | None = None
    mrr: float | None = None
    mrr_ci: Interval | None = None
    ndcg: float | None = None
    ndcg_ci: Interval | None = None


@dataclass(frozen=True)
class CorpusSize:
    """Overlap of a strategy for part of the rows, all of them, or (``forecast``) more rows than were measured."""

    strategy: str
    corpus: int
    overlap: float
    overlap_ci: Interval
    forecast: bool


@dataclass(frozen=True)
class Difference:
    """A strategy through this map minus the same through the other, paired by query.

    Attributes
    ----------
    strategy : str
    metric : str
        ``overlap``, ``recall``, ``mrr`` or ``ndcg``.
    difference : float
    difference_ci : tuple of float
        95 % bootstrap interval over queries.
    """

    strategy: str
    metric: str
    difference: float
    difference_ci: Interval

    @property
    def better(self) -> str:
        """``this`` or ``other`` where the interval excludes zero, else an empty string."""
        low, high = self.difference_ci
        return "this" if low > 0 else "other" if high < 0 else ""

    def __str__(self) -> str:
        low, high = self.difference_ci
        return f"{self.metric} {self.difference:+.4f} [{low:+.4f}, {high:+.4f}]"


@dataclass(frozen=True, eq=False)
class PerQuery:
    """The scores of every query.

    Attributes
    ----------
    ids : ndarray of shape (n_queries,)
    labels : list
        None where a query has none.
    figures : dict of dict of ndarray of shape (n_queries,)
        By strategy: ``overlap``, ``candidate_recall``, ``recall``, ``reciprocal_rank`` and ``ndcg``; NaN where nothing is judged.
    """

    ids: np.ndarray
    labels: list[Any]
    figures: dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Evaluation:
    """Scores of all strategies, on rows that the map was not fitted on.

    Attributes
    ----------
    k, queries, corpus : int
        Neighbors compared, queries, rows searched.
    strategies : tuple of StrategyScore
    mean_cosine : float
        Mean cosine between translated and native vectors. Misleading: the mean vector alone often scores high.
    relative_residual : float
        ||translated - native|| / ||native - mean(native)||, Frobenius norms: 0 is perfect, 1 is no better than the mean.
    map : str
        Fingerprint of the map.
    judged : int
        Queries with a relevant row in the corpus, over which recall, MRR and nDCG are averaged.
    confidence : ConfidenceCheck, optional
        Given where the map has a confidence, and at least 50 rows remain that it was not calibrated on.
    by_label : tuple of LabelScore
        By label, then strategy; empty without labels.
    sizes : tuple of CorpusSize
        By strategy, then size.
    against : str
        Fingerprint of the map that this one was compared with.
    differences : tuple of Difference
        For every strategy that depends on the map.
    per_query : PerQuery
        Not part of `to_dict`.
    weight : float or None
        Weight of the projected query in the blend: the mean over the two halves of the queries. None without a blend.
    reverse_map : str
        Fingerprint of the map that projects queries; empty without one.
    qrels : QrelsCoverage or None
        Counts of the relevance judgments that were used.
    own_rows : int
        Given queries that are rows of the corpus (same id, same vector) and do not find themselves.
    """

    k: int
    queries: int
    corpus: int
    strategies: tuple[StrategyScore, ...]
    mean_cosine: float
    relative_residual: float
    map: str = ""
    judged: int = 0
    confidence: ConfidenceCheck | None = None
    by_label: tuple[LabelScore, ...] = ()
    sizes: tuple[CorpusSize, ...] = ()
    against: str = ""
    differences: tuple[Difference, ...] = ()
    per_query: PerQuery | None = field(default=None, repr=False, compare=False)
    weight: float | None = None
    reverse_map: str = ""
    qrels: QrelsCoverage | None = None
    own_rows: int = 0

    def __getitem__(self, name: str) -> StrategyScore:
        for strategy in self.strategies:
            if strategy.name == name:
                return strategy
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without those of single queries."""
        plain = asdict(replace(self, per_query=None))
        del plain["per_query"]
        return plain

    def to_rows(self) -> Iterator[Row]:
        """Rows of the catalog's tables."""
        whole = {"k": self.k, "queries": self.queries, "corpus": self.corpus, "judged": self.judged}
        whole |= {"translator": self.map, "mean_cosine": self.mean_cosine, "relative_residual": self.relative_residual}
        for strategy in self.strategies:
            yield "evaluation", whole | columns_of(strategy, name="strategy")
        for one in self.by_label:
            yield "evaluation_label", {"translator": self.map} | columns_of(one) | {"label": str(one.label)}
        for size in self.sizes:
            yield "evaluation_size", {"translator": self.map} | columns_of(size, overlap_low="low", overlap_high="high")
        for difference in self.differences:
            columns = columns_of(difference, difference_low="low", difference_high="high")
            yield "evaluation_difference", {"translator": self.map, "other": self.against} | columns

    def __str__(self) -> str:
        lines = [*_strategy_lines(self), *query_notes(self.qrels, self.own_rows)]
        for part in (_size_lines, _label_lines, _difference_lines):
            lines += part(self)
        return "\n".join(line.rstrip() for line in lines)


def _strategy_lines(found: Evaluation) -> list[str]:
    """All strategies as a table; empty columns are left out."""
    columns = [
        ("strategy", [s.name for s in found.strategies]),
        (f"overlap@{found.k}", [s.overlap for s in found.strategies]),
        ("95 % interval", [s.overlap_ci for s in found.strategies]),
        (f"recall@{found.k}", [s.recall for s in found.strategies]),
        ("95 % interval", [s.recall_ci for s in found.strategies]),
        ("MRR", [s.mrr for s in found.strategies]),
        (f"nDCG@{found.k}", [s.ndcg for s in found.strategies]),
        (f"in top {max(100, found.k)}", [s.candidate_recall for s in found.strategies]),
        ("weight, hubness", [fusion_text(s.weight, s.correction) for s in found.strategies]),
    ]
    return aligned([(name, values) for name, values in columns if any(v is not None for v in values)])


def _size_lines(found: Evaluation) -> list[str]:
    """Overlap by rows searched, one line per strategy; empty where only one size was measured."""
    if len({s.corpus for s in found.sizes}) < 2:
        return []
    ahead = [s for s in found.sizes if s.forecast]
    forecast = f", predicted at {ahead[0].corpus:,}" if ahead else ""
    lines = [f"overlap@{found.k} by rows searched{forecast}:"]
    for name in dict.fromkeys(s.strategy for s in found.sizes):
        mine = [s for s in found.sizes if s.strategy == name]
        points = [f"{s.corpus:,}: {s.overlap:.3f}" for s in mine if not s.forecast]
        points += [f"{s.corpus:,}: about {s.overlap:.3f} {cell(s.overlap_ci)}" for s in mine if s.forecast]
        lines.append(f"  {name:<24} {', '.join(points)}")
    return lines


def _label_lines(found: Evaluation) -> list[str]:
    """Labels, ordered by the loss of translated documents against re-encoding; by recall where queries are judged."""
    if not found.by_label:
        return []
    table: dict[Any, dict[str, LabelScore]] = {}
    for one in found.by_label:
        table.setdefault(one.label, {})[one.strategy] = one
    measure = "recall" if found.judged else "overlap"

    def loss(label: Any) -> float | None:
        mine, best = (getattr(table[label][name], measure) for name in ("translate-documents", "re-encode"))
        return None if mine is None or best is None else best - mine

    def order(label: Any) -> tuple[bool, float, str]:
        lost = loss(label)
        return table[label]["re-encode"].queries < _FEW or lost is None, -(lost or 0.0), str(label)

    labels = sorted(table, key=order)
    shown = labels[:_LABELS]
    columns: list[tuple[str, list[Any]]] = [
        ("label", [str(label)[:40] for label in shown]),
        ("queries", [f"{table[label]['re-encode'].queries:,}" for label in shown]),
    ]
    there = (name for name in ("keep-old", "translate-documents", "blend", "re-encode") if name in table[shown[0]])
    columns += [(name, [getattr(table[label][name], measure) for label in shown]) for name in there]
    lines = [
        f"{measure}@{found.k} by label, worst translated first (labels of fewer than {_FEW} queries last):",
        *aligned(columns),
    ]
    return lines + ([f"and {len(labels) - _LABELS:,} more labels"] if len(labels) > _LABELS else [])


def _difference_lines(found: Evaluation) -> list[str]:
    """This map against the other: differences, and whether they are significant."""
    lines = []
    for name in dict.fromkeys(d.strategy for d in found.differences):
        mine = [d for d in found.differences if d.strategy == name]
        lines.append(f"{name}, this map minus the other: {'; '.join(map(str, mine))}. {_verdict(mine)}")
    return lines


def _verdict(differences: Sequence[Difference]) -> str:
    verdicts = []
    for side, name in (("this", "this map"), ("other", "the other map")):
        if metrics := [d.metric for d in differences if d.better == side]:
            verdicts.append(f"{name} is significantly better in {', '.join(metrics)}")
    sentence = ", ".join(verdicts) or "no difference is significant"
    return f"{sentence[0].upper()}{sentence[1:]}."
