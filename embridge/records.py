"""What every verb leaves behind: frozen records, plain enough for JSON and for the catalog."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from embridge.types import Space


@dataclass(frozen=True)
class Artifact:
    """A file that a run read or wrote.

    Attributes
    ----------
    role : str
        What it was there: ``source``, ``target``, ``queries``, ``map``, ``output`` ...
    path, fingerprint : str
        Where it lies, and the hash of its content.
    kind : str
        ``parquet``, ``faiss``, ``map``, ``texts`` or ``table``.
    rows : int, optional
        Of a collection.
    space, source_space : Space, optional
        The space of its vectors; of a map, where it leads and where from.
    """

    role: str
    path: str
    fingerprint: str
    kind: str
    rows: int | None = None
    space: Space | None = None
    source_space: Space | None = None


@dataclass(frozen=True)
class Summary:
    """What is in a collection.

    Attributes
    ----------
    rows : int
    space : Space
    norm : dict
        ``mean``, ``std`` (over n), ``min`` and ``max`` of the vectors' lengths; NaN where no row has one.
    duplicate_ids : int
        Ids that occur more than once.
    bad_rows : int
    """

    rows: int
    space: Space
    norm: dict[str, float]
    duplicate_ids: int
    bad_rows: int


@dataclass(frozen=True)
class Candidate:
    """One choice that was tried on folds.

    Attributes
    ----------
    method : str
    parameters : dict
    score : float
        Mean over held-out rows (or folds), higher is better: neighbour overlap for search, minus the squared error a row for
        decoding.
    deficit_error : float or None
        Standard error of the paired difference to the best candidate's score, where methods were compared.
    """

    method: str
    parameters: dict[str, float]
    score: float
    deficit_error: float | None = None


@dataclass(frozen=True)
class FitRecord:
    """How a map came about.

    Attributes
    ----------
    method : str
        The translator's name, ``inverse`` or ``then`` for maps made of maps.
    parameters : dict
        Everything that determined the map, chosen values included.
    anchors, held_out : int
        Rows fitted on, and rows kept from the fit for evaluation.
    seconds : float
    device : str
    sources : tuple of str
        Fingerprints of what it was made of: source and target collection, or other maps.
    candidates : tuple of Candidate
        What was tried on folds, where parameters were chosen.
    calibrated : int
        Held-out rows that its confidence was calibrated on.
    """

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    anchors: int = 0
    held_out: int = 0
    seconds: float = 0.0
    device: str = "cpu"
    sources: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    calibrated: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FitRecord:
        """The inverse of `to_dict`; fields of a later version are ignored."""
        known = {f.name for f in fields(cls)}
        kept = {k: v for k, v in values.items() if k in known}
        kept["sources"] = tuple(kept.get("sources", ()))
        kept["candidates"] = tuple(
            Candidate(c.get("method", ""), c["parameters"], c["score"], c.get("deficit_error")) for c in kept.get("candidates", ())
        )
        return cls(**kept)


@dataclass(frozen=True)
class AnchorRecord:
    """A set of shared rows and how it was split."""

    source: str
    target: str
    shared: int
    anchors: int
    held_out: int
    test_size: float
    seed: int


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
        95 % bootstrap interval over queries.
    recall, mrr : float or None
        Recall at k and mean reciprocal rank at k against the relevance judgements, where given.
    """

    name: str
    overlap: float
    overlap_ci: tuple[float, float]
    recall: float | None = None
    mrr: float | None = None


@dataclass(frozen=True)
class ConfidenceCheck:
    """Whether a map's confidence is worth something, on rows that it was neither fitted nor calibrated on.

    Attributes
    ----------
    rows : int
    worst_tenth : float
        Mean error of the tenth of the rows foretold worst, over the mean error of all: 1 is no better than chance.
    worst_tenth_ci : tuple of float
        Its 95 % interval (normal approximation).
    oracle_tenth : float
        The same of the tenth that is worst in truth.
    level, coverage : float
        The coverage asked of the bound, and the share of rows whose error it holds for.
    """

    rows: int
    worst_tenth: float
    worst_tenth_ci: tuple[float, float]
    oracle_tenth: float
    level: float
    coverage: float

    def __str__(self) -> str:
        low, high = self.worst_tenth_ci
        chance = "; on these rows that is no better than chance" if low <= 1 else ""
        return (
            f"the tenth of the rows foretold worst has {self.worst_tenth:.2f} x the mean error [{low:.2f}, {high:.2f}] "
            f"(the worst in truth: {self.oracle_tenth:.2f} x){chance}; the {self.level:g} bound holds for {self.coverage:.3f} of "
            f"{self.rows:,} rows"
        )


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
        Queries with a relevant row in the corpus, over which recall and MRR are taken.
    confidence : ConfidenceCheck, optional
        Where the map has a confidence, and 50 rows at least are left that it was not calibrated on.
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

    def __getitem__(self, name: str) -> Strategy:
        for strategy in self.strategies:
            if strategy.name == name:
                return strategy
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(20, *(len(s.name) for s in self.strategies))
        lines = [f"{'strategy':<{width}} overlap@{self.k:<3} 95 % interval     recall@{self.k:<3}  MRR"]
        for s in self.strategies:
            low, high = s.overlap_ci
            judged = "" if s.recall is None else f"{s.recall:>10.3f} {s.mrr:>8.3f}"
            lines.append(f"{s.name:<{width}} {s.overlap:>10.3f}  [{low:.3f}, {high:.3f}] {judged}")
        return "\n".join(lines)


@dataclass(frozen=True)
class StitchingScore:
    """What a decoder of the target scores on source rows as one method hands them over.

    Attributes
    ----------
    method : str
        ``no-stitching`` (the target's own rows), ``absolute``, ``relative`` or a translator's name.
    scores : tuple of float
        One a seed.
    """

    method: str
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds (n - 1); zero for a single one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True)
class Stitching:
    """Every method of stitching a decoder side by side.

    Attributes
    ----------
    anchors : int
        Rows that translators were fitted on.
    scaling : str
        ``standard`` or ``l2``.
    seeds : tuple of int
    methods : tuple of StitchingScore
    """

    anchors: int
    scaling: str
    seeds: tuple[int, ...]
    methods: tuple[StitchingScore, ...]

    def __getitem__(self, method: str) -> StitchingScore:
        for score in self.methods:
            if score.method == method:
                return score
        raise KeyError(method)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        head = f"{'method':<14} {'mean':>7} {'dev':>7}  ({self.anchors:,} anchors, {self.scaling} scaling, {len(self.seeds)} seeds)"
        return "\n".join([head, *(f"{s.method:<14} {s.mean:>7.3f} {s.deviation:>7.3f}" for s in self.methods)])


@dataclass(frozen=True)
class Conversion:
    """A collection that was converted.

    Attributes
    ----------
    path : str
    rows, skipped : int
        Rows written, and bad rows left out.
    seconds : float
    device : str
    source, map, fingerprint : str
        Fingerprints of what it was made of, and its own.
    """

    path: str
    rows: int
    seconds: float
    device: str
    source: str
    map: str
    fingerprint: str
    skipped: int = 0

    @property
    def rows_per_second(self) -> float:
        """Rows a second, reading and writing included."""
        return self.rows / self.seconds if self.seconds else float("inf")


@dataclass(frozen=True)
class Migration:
    """A FAISS index that was moved to another space.

    Attributes
    ----------
    path : str
    mode : str
        ``wrap``, ``move`` or ``rebuild``.
    exact : bool
        True where the index was shown to return, for queries of the new space, the ids that the old one returns for the
        pulled-back queries (a rebuild: those of brute force).
    verified_overlap : float
        Mean share of the 10 true neighbours, by brute force over translated rows, that it finds.
    queries_verified : int
    seconds : float
        Verification and writing included.
    reason : str
        Why this mode, and what was measured.
    rows : int
    own_overlap : float or None
        What the old index finds in its own space, measured where the map is not exact.
    agreement : float or None
        Mean share of the old index's answers to pulled-back queries.
    source, map, fingerprint : str
        Fingerprints of what it was made of, and its own.
    source_space, space : Space
    """

    path: str
    mode: str
    exact: bool
    verified_overlap: float
    queries_verified: int
    seconds: float
    reason: str
    rows: int
    own_overlap: float | None
    agreement: float | None
    source: str
    map: str
    fingerprint: str
    source_space: Space
    space: Space

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Merge:
    """Native and translated rows of one space in one collection.

    Shares and overlaps are over the k nearest rows of `queries` queries, none of those that the offset was chosen on; None where
    they could not be measured.

    Attributes
    ----------
    path : str
    rows, native, translated : int
    replaced : int
        Rows of the translated side whose place a native row took.
    offset : float
        Added to scores of translated rows (see `Mixture`); 0 where nothing told which.
    reason : str
        How it was found, or why not.
    k, queries : int
    pairs : int
        Rows with a native and a translated vector that it was found by.
    share_before, share_after : float or None
        Share of translated rows among the k nearest, without and with the offset.
    share_truth : float or None
        What their share would be if all rows were native, as the pairs tell: where a row comes up as a native one r times as often
        as translated, a share of s would be rs / (rs + 1 - s).
    overlap_before, overlap_after : float or None
        Share of the places that pairs take as native rows in which the same row also comes up translated.
    seconds : float
    native_source, translated_source, fingerprint : str
        Fingerprints of what it was made of, and its own.
    """

    path: str
    rows: int
    native: int
    translated: int
    replaced: int
    offset: float
    reason: str
    k: int
    queries: int
    pairs: int
    share_before: float | None
    share_after: float | None
    share_truth: float | None
    overlap_before: float | None
    overlap_after: float | None
    seconds: float
    native_source: str
    translated_source: str
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        def told(value: float | None) -> str:
            return "     -" if value is None else f"{value:>6.3f}"

        taken = f", {self.replaced:,} of them in place of translated ones" if self.replaced else ""
        return (
            f"{self.path}: {self.native:,} native rows{taken}, and {self.translated:,} translated rows\n"
            f"offset {self.offset:+.4f}: {self.reason}\n"
            f"{'':<38}  before   after   all native\n"
            f"{f'translated rows among the {self.k} nearest':<38}  {told(self.share_before)}  {told(self.share_after)}"
            f"       {told(self.share_truth)}\n"
            f"{'overlap, over rows known both ways':<38}  {told(self.overlap_before)}  {told(self.overlap_after)}        1.000"
        )


@dataclass(frozen=True)
class Decoding:
    """A collection that was decoded.

    Attributes
    ----------
    path : str
    rows : int
    columns : tuple of str
        What was written beside ids and payload: ``prediction``, ``probability``, ``output``.
    folded : bool
        True where decoder and map ran as one matrix.
    seconds : float
    device : str
    source, decoder, fingerprint : str
        Fingerprints of what it was made of, and its own.
    map : str
        Fingerprint of the map, empty where none was used.
    """

    path: str
    rows: int
    columns: tuple[str, ...]
    folded: bool
    seconds: float
    device: str
    source: str
    decoder: str
    fingerprint: str
    map: str = ""

    @property
    def rows_per_second(self) -> float:
        """Rows a second, reading and writing included."""
        return self.rows / self.seconds if self.seconds else float("inf")


@dataclass(frozen=True)
class DecoderStrategy:
    """How one way of feeding a decoder does against labels.

    Attributes
    ----------
    name : str
        ``native`` (the decoder on vectors of its own space), ``translated`` (on translated source vectors), ``no-translation`` (on
        source vectors as they are) or ``retrained`` (a decoder trained on source vectors, on rows apart).
    values : dict of str to float
        ``accuracy`` and ``macro_f1`` of a classifier, ``r2`` and ``mse`` of a regressor, ``mse`` of kind ``output``.
    intervals : dict of str to tuple of float
        95 % bootstrap intervals over rows.
    """

    name: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class DecoderEvaluation:
    """A decoder on translated vectors beside what else could be done, on rows that the map was not fitted on.

    Attributes
    ----------
    kind : str
        Of the decoder.
    rows, trained_on : int
        Rows that every strategy is measured on; rows that ``retrained`` was trained on (0 where it was left out).
    padded : int
        Zero columns put behind the source vectors for ``no-translation``; negative: columns cut off; 0: the widths are equal.
    strategies : tuple of DecoderStrategy
    decoder, map : str
        Their fingerprints.
    """

    kind: str
    rows: int
    trained_on: int
    padded: int
    strategies: tuple[DecoderStrategy, ...]
    decoder: str = ""
    map: str = ""

    def __getitem__(self, name: str) -> DecoderStrategy:
        for strategy in self.strategies:
            if strategy.name == name:
                return strategy
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        metrics = list(self.strategies[0].values)
        lines = [f"{'strategy':<16}" + "".join(f"{name:>10}  {'95 % interval':<18}" for name in metrics)]
        for s in self.strategies:
            cells = [f"{s.values[m]:>10.4g}  {'[{:.4g}, {:.4g}]'.format(*s.intervals[m]):<18}" for m in metrics]
            lines.append(f"{s.name:<16}" + "".join(cells))
        return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True)
class DecoderRecord:
    """A decoder that was registered.

    Attributes
    ----------
    name : str
        What its users call it.
    format, kind : str
        ``linear``, ``skops``, ``onnx`` or ``pt2``; ``classifier``, ``regressor`` or ``output``.
    classes : tuple
        Of a classifier that names them.
    """

    name: str
    format: str
    kind: str
    classes: tuple[str | int | bool, ...] = ()


@dataclass(frozen=True)
class Run:
    """One verb that was carried out: what the catalog stores first of all."""

    verb: str
    parameters: dict[str, Any]
    seconds: float
    inputs: tuple[Artifact, ...] = ()
    outputs: tuple[Artifact, ...] = ()
    rows: int | None = None
    device: str | None = None
    details: tuple[FitRecord | AnchorRecord | Evaluation | Conversion | Decoding | DecoderEvaluation | DecoderRecord, ...] = ()
