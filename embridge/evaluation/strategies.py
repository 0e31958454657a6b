"""The strategies for answering new-space queries, as data: which queries search which rows (`embridge.evaluation.runner`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from embridge.evaluation.metrics import QueryScores
from embridge.maps import Map

PERCENTS = (1, 5, 20)


class Queries(StrEnum):
    """How queries are made from the vectors of both models."""

    OLD = "old"
    NEW = "new"
    PROJECTED = "projected"  # by a fitted reverse map
    ADJOINT = "adjoint"  # by the adjoint of the map; under L2 by the inverse of an isometry
    BLENDED = "blended"  # old queries blended with adjoint ones


class Rows(StrEnum):
    """Which rows are searched."""

    OLD = "old"
    TRANSLATED = "translated"
    KERNEL = "kernel"  # translated by a kernel map
    MIXED = "mixed"  # some re-encoded, the others translated
    NEW = "new"


@dataclass(frozen=True)
class Strategy:
    """One way of answering queries of the new model.

    Attributes
    ----------
    name : str
    queries : Queries
    rows : Rows
    percent : int
        Percentage of rows that are re-encoded beforehand.
    lazy : bool
        Candidates are re-encoded and ranked again when a query finds them.
    """

    name: str
    queries: Queries
    rows: Rows
    percent: int = 0
    lazy: bool = False

    @property
    def needs_old_encoder(self) -> bool:
        """At query time."""
        return self.queries in (Queries.OLD, Queries.BLENDED)

    @property
    def needs_texts(self) -> bool:
        """Whether rows are encoded."""
        return self.percent > 0 or self.lazy

    @property
    def uses_map(self) -> bool:
        """Whether it depends on the map that is evaluated."""
        return self.rows in (Rows.TRANSLATED, Rows.MIXED) or self.queries in (Queries.ADJOINT, Queries.BLENDED)


KEEP_OLD = Strategy("keep-old", Queries.OLD, Rows.OLD)
TRANSLATE_DOCUMENTS = Strategy("translate-documents", Queries.NEW, Rows.TRANSLATED)
BLEND = Strategy("blend", Queries.BLENDED, Rows.OLD)
RE_ENCODE = Strategy("re-encode", Queries.NEW, Rows.NEW, percent=100)

STRATEGIES = (
    KEEP_OLD,
    Strategy("no-translation", Queries.NEW, Rows.OLD),
    TRANSLATE_DOCUMENTS,
    Strategy("translate-documents-kernel", Queries.NEW, Rows.KERNEL),
    Strategy("project-queries", Queries.PROJECTED, Rows.OLD),
    Strategy("project-queries-adjoint", Queries.ADJOINT, Rows.OLD),
    BLEND,
    RE_ENCODE,
)
ENCODING = (
    Strategy("lazy-re-encode", Queries.NEW, Rows.TRANSLATED, lazy=True),
    Strategy("lazy-re-encode-blend", Queries.BLENDED, Rows.OLD, lazy=True),
    *(Strategy(f"re-encode-{percent}%", Queries.NEW, Rows.MIXED, percent=percent) for percent in PERCENTS),
)


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps that strategies use: of rows, and optionally of queries to the old space and of rows by a kernel."""

    translation: Map
    reverse: Map | None = None
    kernel: Map | None = None


@dataclass(frozen=True, eq=False)
class StrategyRun:
    """The result of a strategy: scores by query, and the rows encoded and changed for it."""

    strategy: Strategy
    hubness: bool
    scores: QueryScores
    encodes: int
    rows_changed: int

    @property
    def title(self) -> str:
        """The name, with ``+hubness`` where it is corrected."""
        return f"{self.strategy.name}+hubness" if self.hubness else self.strategy.name
