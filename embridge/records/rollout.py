"""Results of a rollout: what each of its verbs did, and its status."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

Interval = tuple[float, float]


@dataclass(frozen=True)
class RolloutScore:
    """Scores of one way of searching, over the queries that nothing was chosen on; None where they cannot be measured.

    Attributes
    ----------
    recall, recall_ci : float, tuple of float
        recall@10 of the judged queries.
    overlap, overlap_ci : float, tuple of float
        Share of each query's 10 nearest rows by the new model that are found among the held-out native rows.
    gain, gain_ci : float, tuple of float
        Paired difference in recall to ``keep_old``.
    """

    recall: float | None = None
    recall_ci: Interval | None = None
    overlap: float | None = None
    overlap_ci: Interval | None = None
    gain: float | None = None
    gain_ci: Interval | None = None

    @property
    def is_lossless(self) -> bool:
        """True where the whole interval of the gain is at zero or above: no loss against the old model is to be expected."""
        return self.gain_ci is not None and self.gain_ci[0] >= 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RolloutScore:
        """The inverse of `dataclasses.asdict` through JSON."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(frozen=True)
class RolloutForecast:
    """What the next rows are expected to bring.

    Attributes
    ----------
    percent : int
        Percentage of all rows.
    rows : int
        These rows, or those that are left.
    reached : float
        Share of the rows that queries reach, counted by query, that are native then.
    recall : float or None
        None where queries are not judged.
    """

    percent: int
    rows: int
    reached: float
    recall: float | None


@dataclass(frozen=True)
class RolloutStage:
    """A past stage: its rows, its recall, and the recall that was forecast for it at the stage before."""

    stage: int
    native: int
    recall: float | None
    forecast: float | None


@dataclass(frozen=True)
class RolloutStatus:
    """A rollout at one stage.

    Attributes
    ----------
    rows, native, translated : int
    stage : int
        Number of times that native rows were added since the start.
    weight, hubness : float, str
        Of the fused search, chosen on the judged queries of the half that is not reported.
    new_queries_weight, new_queries_hubness : float, str
        The same for queries of the new model alone.
    queries, judged : int
        Logged queries; those of the reported half with a relevant row.
    handed : int
        Rows that `next` has listed and that are not native yet.
    keep_old, now : RolloutScore
        The old model alone; the fused search.
    new_queries : RolloutScore
        The fused search with the old encoder gone: queries of the old side are those of the new model, projected.
    new_space : RolloutScore
        New vectors alone, as `finish` writes them.
    new_model : RolloutScore
        The new model against the old one among native rows alone; its overlap is that of the old model.
    new_model_rows, new_model_judged : int
        Rows and judged queries of that comparison.
    held_out : int
        Native rows that no map was fitted on: overlap is measured among them.
    forecast : tuple of RolloutForecast
    history : tuple of RolloutStage
    """

    rows: int
    native: int
    stage: int
    weight: float
    hubness: str
    new_queries_weight: float = 0.5
    new_queries_hubness: str = "none"
    queries: int = 0
    judged: int = 0
    handed: int = 0
    keep_old: RolloutScore = RolloutScore()
    now: RolloutScore = RolloutScore()
    new_queries: RolloutScore = RolloutScore()
    new_space: RolloutScore = RolloutScore()
    new_model: RolloutScore = RolloutScore()
    new_model_rows: int = 0
    new_model_judged: int = 0
    held_out: int = 0
    forecast: tuple[RolloutForecast, ...] = ()
    history: tuple[RolloutStage, ...] = ()

    @property
    def translated(self) -> int:
        """Rows whose new vector comes from a map."""
        return self.rows - self.native

    @property
    def old_model_needed(self) -> bool:
        """False where search with queries of the new model alone is measured to be no worse than the old model."""
        return not self.new_queries.is_lossless

    @property
    def new_model_is_worse(self) -> bool:
        """True where the interval of the new model's gain over the old one is below zero."""
        return self.new_model.gain_ci is not None and self.new_model.gain_ci[1] < 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        shown = {"translated": self.translated, "old_model_needed": self.old_model_needed}
        return asdict(self) | shown | {"new_model_is_worse": self.new_model_is_worse, "notes": list(self.notes())}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RolloutStatus:
        """The inverse of `dataclasses.asdict` through JSON."""
        scores = {name: RolloutScore.from_dict(values[name]) for name in _SCORES}
        forecast = tuple(RolloutForecast(**one) for one in values["forecast"])
        return cls(**values | scores | {"forecast": forecast, "history": tuple(RolloutStage(**one) for one in values["history"])})

    def notes(self) -> list[str]:
        """What a reader of the figures has to know, as sentences."""
        found = []
        if self.new_model_is_worse:
            found.append(
                f"The new model is worse than the old one on your queries: recall@10 {self.new_model.gain:+.3f} "
                f"{_interval(self.new_model.gain_ci)} among the {self.new_model_rows:,} native rows. "
                "Fused search does not lose by it, but the old model cannot be switched off without loss."
            )
        if not self.queries:
            found.append("No logged queries: rows are ordered by density, and nothing is measured. Hint: embridge rollout queries.")
        elif not self.judged:
            found.append(
                "No judgments (qrels): the weight is not chosen but 0.5, and at most overlap with the new model's ranking is "
                "measured. By construction it puts fused search at a disadvantage, which keeps neighbors of the old model."
            )
        if self.now.overlap is not None:
            found.append(f"Overlap is measured among {self.held_out:,} held-out native rows; in a larger corpus it is lower.")
        return found

    def __str__(self) -> str:
        share = f"{self.native / self.rows:.1%}"
        lines = [f"stage {self.stage}: {self.native:,} of {self.rows:,} rows native ({share}), {self.translated:,} translated"]
        if self.handed:
            lines[0] += f"; {self.handed:,} listed to be encoded"
        lines.append(f"fused search: weight of the new side {self.weight:g}, hubness correction {self.hubness}")
        named = {"keep-old": self.keep_old, "fused now": self.now, "  new queries alone": self.new_queries}
        named |= {"  new vectors alone": self.new_space}
        if any(score.recall is not None or score.overlap is not None for score in named.values()):
            lines.append(f"{'':<20}  recall@10                 against keep-old          overlap@10")
            lines += [_line(name, score) for name, score in named.items()]
        for one in self.forecast:
            recall = "" if one.recall is None else f" recall@10 {one.recall:.3f};"
            lines.append(f"next {one.percent:>2} % ({one.rows:,} rows):{recall} {one.reached:.0%} of what queries reach is native")
        for past in self.history:
            if past.forecast is not None and past.recall is not None:
                lines.append(f"stage {past.stage}: forecast {past.forecast:.3f}, came {past.recall:.3f} ({past.native:,} native)")
        lines.append(f"old model needed: {'yes' if self.old_model_needed else 'no'}")
        return "\n".join([*lines, *self.notes()])


_SCORES = ("keep_old", "now", "new_queries", "new_space", "new_model")


@dataclass(frozen=True)
class RolloutStep:
    """What one verb of a rollout did.

    Attributes
    ----------
    path : str
    verb : str
        ``start``, ``next``, ``add``, ``queries`` or ``finish``.
    rows : int
        Rows started with, listed, added or written; queries added.
    known : int
        Rows or queries of the input that the rollout had already, with the same vectors.
    map : str
        What happened to the map of rows: ``fitted``, ``refitted``, ``kept`` or empty.
    method : str
        Of the map of rows.
    index : str
        What happened to the index: ``built``, ``updated`` or empty.
    output : str
        The file written beside the rollout.
    fingerprint : str
        Of this file.
    seconds : float
    status : RolloutStatus
    """

    path: str
    verb: str
    rows: int
    status: RolloutStatus
    seconds: float = 0.0
    known: int = 0
    map: str = ""
    method: str = ""
    index: str = ""
    output: str = ""
    fingerprint: str = ""
    notes: tuple[str, ...] = field(default=())

    def timed(self, seconds: float) -> RolloutStep:
        """The same step with its duration."""
        return replace(self, seconds=seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"status": self.status.to_dict()}

    def __str__(self) -> str:
        done = {
            "start": f"started with {self.rows:,} native rows",
            "next": f"{self.output}: {self.rows:,} ids of rows to encode next",
            "add": f"added {self.rows:,} native rows" + (f" ({self.known:,} were there already)" if self.known else ""),
            "queries": f"added {self.rows:,} queries" + (f" ({self.known:,} were there already)" if self.known else ""),
            "finish": f"{self.output}: {self.rows:,} rows in the new space",
        }[self.verb]
        parts = [f"map {self.map} ({self.method})"] if self.map else []
        parts += [f"index {self.index}"] if self.index else []
        tail = "".join(f"; {part}" for part in parts)
        return "\n".join([f"{self.path}: {done}{tail}, {self.seconds:.1f} s", *self.notes])


def _interval(values: Interval | None) -> str:
    return "" if values is None else f"[{values[0]:+.3f}, {values[1]:+.3f}]"


def _line(name: str, score: RolloutScore) -> str:
    recall = (
        "-"
        if score.recall is None or score.recall_ci is None
        else f"{score.recall:.3f} [{score.recall_ci[0]:.3f}, {score.recall_ci[1]:.3f}]"
    )
    gain = "" if score.gain is None else f"{score.gain:+.3f} {_interval(score.gain_ci)}"
    overlap = (
        ""
        if score.overlap is None or score.overlap_ci is None
        else f"{score.overlap:.3f} [{score.overlap_ci[0]:.3f}, {score.overlap_ci[1]:.3f}]"
    )
    return f"{name:<20}  {recall:<24}  {gain:<24}  {overlap}".rstrip()
