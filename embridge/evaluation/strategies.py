"""The strategies for answering new-space queries, as data: which queries search which rows (`embridge.evaluation.runner`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from embridge.anchors.moments import Moments
from embridge.evaluation.metrics import QueryScores
from embridge.indexes.fusion import Fusion
from embridge.maps import KernelMap, Map
from embridge.translators import Translator

PERCENTS = (1, 5, 20)
STAGES = (1, 5, 10, 20, 35, 50, 100)  # percentages of progressive re-encoding


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
    PROGRESSIVE = "progressive"  # some re-encoded, the others translated by a map that is fitted on those too
    NEW = "new"


@dataclass(frozen=True)
class Strategy:
    """One way of answering queries of the new model.

    Attributes
    ----------
    name : str
    queries : Queries
    rows : Rows
    percent : float
        Percentage of rows that are re-encoded beforehand.
    lazy : bool
        Candidates are re-encoded and ranked again when a query finds them.
    fused : bool
        A row is scored by its old and its new vector together (`embridge.evaluation.fused`). `queries` are those that search the
        old vectors, `rows` are the new vectors.
    """

    name: str
    queries: Queries
    rows: Rows
    percent: float = 0
    lazy: bool = False
    fused: bool = False

    @property
    def needs_old_encoder(self) -> bool:
        """At query time."""
        return self.queries in (Queries.OLD, Queries.BLENDED)

    @property
    def needs_texts(self) -> bool:
        """Whether rows are encoded."""
        return self.percent > 0 or self.lazy

    def encodes(self, rows: int) -> int:
        """How many of `rows` rows are encoded beforehand: at least one where any."""
        return max(1, round(rows * self.percent / 100)) if self.percent else 0

    @property
    def uses_map(self) -> bool:
        """Whether it depends on the map that is evaluated."""
        return self.rows in (Rows.TRANSLATED, Rows.MIXED, Rows.PROGRESSIVE) or self.queries in (Queries.ADJOINT, Queries.BLENDED)


KEEP_OLD = Strategy("keep-old", Queries.OLD, Rows.OLD)
TRANSLATE_DOCUMENTS = Strategy("translate-documents", Queries.NEW, Rows.TRANSLATED)
TRANSLATE_DOCUMENTS_KERNEL = Strategy("translate-documents-kernel", Queries.NEW, Rows.KERNEL)
BLEND = Strategy("blend", Queries.BLENDED, Rows.OLD)
RE_ENCODE = Strategy("re-encode", Queries.NEW, Rows.NEW, percent=100)

STRATEGIES = (
    KEEP_OLD,
    Strategy("no-translation", Queries.NEW, Rows.OLD),
    TRANSLATE_DOCUMENTS,
    TRANSLATE_DOCUMENTS_KERNEL,
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
FUSE = Strategy("fuse", Queries.OLD, Rows.TRANSLATED, fused=True)
FUSED = (
    FUSE,
    Strategy("fuse-kernel", Queries.OLD, Rows.KERNEL, fused=True),
    Strategy("fuse-projected", Queries.PROJECTED, Rows.TRANSLATED, fused=True),
    Strategy("fuse-kernel-projected", Queries.PROJECTED, Rows.KERNEL, fused=True),
)


def progressive(rows: int, count: int | None = None) -> tuple[Strategy, ...]:
    """Progressive migration at every stage, with both encoders and with the old one gone (``-projected``).

    Parameters
    ----------
    rows : int
        Of the collection.
    count : int, optional
        One more stage, of exactly this number of re-encoded rows.
    """
    stages = [float(percent) for percent in STAGES]
    if count is not None and 0 < count < rows and count not in [round(rows * percent / 100) for percent in STAGES]:
        stages = sorted([*stages, 100 * count / rows])
    return tuple(
        Strategy(f"progressive-{percent:.4g}%{suffix}", queries, Rows.PROGRESSIVE, percent=percent, fused=True)
        for queries, suffix in ((Queries.OLD, ""), (Queries.PROJECTED, "-projected"))
        for percent in stages
    )


def percent_of(name: str) -> float | None:
    """The percentage of rows that a progressive strategy re-encodes, 0 for ``fuse``; None for another name."""
    if name == FUSE.name:
        return 0
    found = re.fullmatch(r"progressive-([0-9.]+)%", name)
    return None if found is None else float(found[1])


@dataclass(frozen=True, eq=False)
class Refit:
    """How the map of rows is fitted again with more anchors: its method with parameters, and the moments of its anchors."""

    method: Translator
    moments: Moments


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps that strategies use: of rows, and optionally of queries to the old space, of rows by a kernel, and its refit."""

    translation: Map
    reverse: Map | None = None
    kernel: KernelMap | None = None
    refit: Refit | None = None


@dataclass(frozen=True, eq=False)
class StrategyRun:
    """The result of a strategy: scores by query, the rows encoded and changed for it, and what was chosen for a fusion.

    `fusion` is chosen on all queries: it is the one to use. Scores are measured with choices for each half of the queries on the
    other half.
    """

    strategy: Strategy
    hubness: bool
    scores: QueryScores
    encodes: int
    rows_changed: int
    fusion: Fusion | None = None

    @property
    def title(self) -> str:
        """The name, with ``+hubness`` where it is corrected."""
        return f"{self.strategy.name}+hubness" if self.hubness else self.strategy.name
