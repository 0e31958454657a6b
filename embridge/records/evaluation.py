"""What an evaluation found: every strategy side by side, by label and by size of the corpus, and one map beside another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embridge.records.quality import ConfidenceCheck
from embridge.records.rows import Row, columns_of
from embridge.records.telling import difference_lines, label_lines, size_lines, strategy_lines

if TYPE_CHECKING:
    import numpy as np

Interval = tuple[float, float]


@dataclass(frozen=True)
class Strategy:
    """How one way of answering new-space queries does against native neighbours, and against labels where there are any.

    Attributes
    ----------
    name : str
        ``keep-old``, ``no-translation``, ``translate-documents``, ``translate-queries``, ``blend`` or ``re-encode``; with a
        hubness bias ``translate-documents+hubness`` and ``blend+hubness`` as well.
    overlap : float
        Mean share of the native target's k nearest rows that are among this strategy's k nearest.
    overlap_ci : tuple of float
        95 % bootstrap interval over queries, as all intervals here.
    recall, mrr : float or None
        Recall at k and mean reciprocal rank at k against the relevance judgements, where given.
    candidate_recall : float
        Mean share of the native k nearest that are among the 100 nearest found (all rows but one, where there are fewer).
    recall_ci, mrr_ci : tuple of float or None
    ndcg, ndcg_ci : float, tuple of float, or None
        nDCG at k, with grades where the judgements have any.
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


@dataclass(frozen=True)
class LabelStrategy:
    """The same as `Strategy`, for the queries of one label.

    Attributes
    ----------
    label : str or int
    strategy : str
    queries, judged : int
        Queries of the label; of these those with a relevant row, over which recall, MRR and nDCG are taken.
    overlap, overlap_ci, recall, recall_ci, mrr, mrr_ci, ndcg, ndcg_ci
        As in `Strategy`.
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
    """Overlap of a strategy among some of the rows, all of them, or (``forecast``) more than there were to measure on."""

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
        """``this`` or ``other`` where the interval leaves out zero, else nothing."""
        low, high = self.difference_ci
        return "this" if low > 0 else "other" if high < 0 else ""

    def __str__(self) -> str:
        low, high = self.difference_ci
        return f"{self.metric} {self.difference:+.4f} [{low:+.4f}, {high:+.4f}]"


@dataclass(frozen=True, eq=False)
class PerQuery:
    """Every figure of every query, before any mean is taken.

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
    """Every strategy side by side, on rows that the map was not fitted on.

    Attributes
    ----------
    k, queries, corpus : int
        Neighbours compared, queries asked, rows searched.
    strategies : tuple of Strategy
    mean_cosine : float
        Mean cosine between translated and native vectors. It flatters: the mean vector alone often scores high.
    relative_residual : float
        ||translated - native|| / ||native - mean(native)||, Frobenius norms: 0 is perfect, 1 is no better than the mean.
    map : str
        Fingerprint of the map.
    judged : int
        Queries with a relevant row in the corpus, over which recall, MRR and nDCG are taken.
    confidence : ConfidenceCheck, optional
        Where the map has a confidence, and 50 rows at least are left that it was not calibrated on.
    by_label : tuple of LabelStrategy
        By label, then strategy; empty without labels.
    sizes : tuple of CorpusSize
        By strategy, then size.
    against : str
        Fingerprint of the map that this one was compared with.
    differences : tuple of Difference
        For every strategy that depends on the map.
    per_query : PerQuery
        Not part of `to_dict`.
    """

    k: int
    queries: int
    corpus: int
    strategies: tuple[Strategy, ...]
    mean_cosine: float
    relative_residual: float
    map: str = ""
    judged: int = 0
    confidence: ConfidenceCheck | None = None
    by_label: tuple[LabelStrategy, ...] = ()
    sizes: tuple[CorpusSize, ...] = ()
    against: str = ""
    differences: tuple[Difference, ...] = ()
    per_query: PerQuery | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> Strategy:
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
        parts = (strategy_lines, size_lines, label_lines, difference_lines)
        return "\n".join(line.rstrip() for part in parts for line in part(self))
