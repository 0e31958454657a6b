"""The result of `evaluate_through`: what the index of a store loses against an exact search of its rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from embridge.records.text import aligned


@dataclass(frozen=True)
class IndexScore:
    """One strategy through the index of a store.

    Attributes
    ----------
    name : str
        ``keep-old``, ``project-queries``, ``project-queries-adjoint``, ``blend`` or ``fuse``.
    overlap : float
        Mean share of the k nearest rows by exact search that the index finds.
    overlap_ci : tuple of float
        95 % bootstrap interval over queries.
    recall, exact_recall : float or None
        Recall at k against the relevance judgments, through the index and by exact search, where there are judgments.
    """

    name: str
    overlap: float
    overlap_ci: tuple[float, float]
    recall: float | None = None
    exact_recall: float | None = None


@dataclass(frozen=True)
class IndexEvaluation:
    """Strategies through the index of a store, over all rows of the store.

    Attributes
    ----------
    path : str
    k, queries, judged, rows : int
        `judged` counts the queries with a relevant row.
    strategies : tuple of IndexScore
    """

    path: str
    k: int
    queries: int
    judged: int
    rows: int
    strategies: tuple[IndexScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        scores = self.strategies
        columns: list[tuple[str, list[Any]]] = [
            ("through the index", [score.name for score in scores]),
            (f"overlap@{self.k} with exact", [score.overlap for score in scores]),
            ("95 %", [score.overlap_ci for score in scores]),
        ]
        if self.judged:
            columns += [
                (f"recall@{self.k}", [score.recall for score in scores]),
                ("exact", [score.exact_recall for score in scores]),
            ]
        return "\n".join([*aligned(columns), f"{self.path}: {self.queries:,} queries over all {self.rows:,} rows"])
