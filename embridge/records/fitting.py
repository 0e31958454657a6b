"""Records of anchors and of fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from embridge.errors import CatalogError
from embridge.records.artifacts import Artifact, absolute
from embridge.records.rows import Row, columns_of
from embridge.types import Space

LEAST_CALIBRATED = 50  # held-out rows for a confidence: 25 for weights, 25 for scores, enough for a coverage of 0.96


@dataclass(frozen=True)
class Candidate:
    """One candidate that was scored on folds.

    Attributes
    ----------
    method : str
    parameters : dict
    score : float
        Mean overlap@10 over queries, higher is better.
    deficit_error : float or None
        Standard error of the paired difference to the best candidate's score, where methods were compared.
    """

    method: str
    parameters: dict[str, float]
    score: float
    deficit_error: float | None = None


@dataclass(frozen=True)
class FitRecord:
    """How a map was fitted.

    Attributes
    ----------
    method : str
        The translator's name; ``inverse`` or ``then`` for maps made from maps.
    parameters : dict
        Everything that determined the map, chosen values included.
    anchors, held_out : int
        Rows fitted on, and rows held out for evaluation.
    seconds : float
    device : str
    sources : tuple of str
        Fingerprints of its inputs: source and target collection, or other maps.
    candidates : tuple of Candidate
        Candidates scored on folds, where parameters were chosen.
    calibrated : int
        Held-out rows that its confidence was calibrated on.
    role : str
        Role: ``documents``, ``queries`` or ``decode``.
    chosen_by : str
        ``queries`` where candidates were compared on real queries, ``documents`` where on held-out documents, empty
        where nothing was chosen.
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
    role: str = ""
    chosen_by: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def to_rows(self, made: Artifact) -> Iterator[Row]:
        """Rows of the catalog's tables; `made` is the map.

        Raises
        ------
        CatalogError
            It does not name its spaces.
        """
        if made.space is None or made.source_space is None:
            raise CatalogError(f"The map {made.path!r} of a fit does not name its spaces.")
        source, target = made.source_space, made.space
        where: dict[str, Any] = {"fingerprint": made.fingerprint, "path": absolute(made.path)}
        where |= {"source_space": source.name, "source_dim": source.dim, "target_space": target.name, "target_dim": target.dim}
        candidates = [vars(candidate) for candidate in self.candidates]
        yield "translator", where | columns_of(self, leave_out=("sources",)) | {"candidates": candidates}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FitRecord:
        """The inverse of `to_dict`; fields of a later version are ignored."""
        known = {f.name for f in fields(cls)}
        kept = {k: v for k, v in values.items() if k in known}
        candidates = [
            Candidate(c.get("method", ""), c["parameters"], c["score"], c.get("deficit_error")) for c in kept.get("candidates", ())
        ]
        found = cls(**kept | {"sources": tuple(kept.get("sources", ())), "candidates": tuple(candidates)})
        found._check()
        return found

    def _check(self) -> None:
        """Raise TypeError or ValueError where a value from a file has the wrong type."""
        words = (self.method, self.device, self.role, self.chosen_by, *self.sources, *(c.method for c in self.candidates))
        tables = (self.parameters, *(c.parameters for c in self.candidates))
        counts = (self.anchors, self.held_out, self.calibrated)
        scores = [s for c in self.candidates for s in (c.score, c.deficit_error) if s is not None]
        if not all(isinstance(word, str) for word in words) or not all(isinstance(table, dict) for table in tables):
            raise TypeError("its record has values of wrong types")
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("its record has no row count")
        if not all(type(number) in (int, float) for number in (self.seconds, *scores)):
            raise TypeError("its record has values of wrong types")


@dataclass(frozen=True)
class FitReport:
    """The report of `fit` about a map.

    Attributes
    ----------
    path : str
    fingerprint : str
    source, target : Space
    record : FitRecord
    is_affine : bool
    """

    path: str
    fingerprint: str
    source: Space
    target: Space
    record: FitRecord
    is_affine: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `fit --json` prints them."""
        record = self.record
        return {
            "map": self.path,
            "role": record.role,
            "method": record.method,
            "parameters": record.parameters,
            "source": self.source.name,
            "target": self.target.name,
            "anchors": record.anchors,
            "held_out": record.held_out,
            "calibrated": record.calibrated,
            "fingerprint": self.fingerprint,
            "chosen_by": record.chosen_by or None,
            "candidates": [
                {"name": c.method, "parameters": c.parameters, "score": c.score, "standard_error": c.deficit_error}
                for c in record.candidates
            ],
        }

    def __str__(self) -> str:
        record, source, target = self.record, self.source, self.target
        needs = f"{2 * LEAST_CALIBRATED} rows held out" if self.is_affine else "an affine map"
        confidence = (
            f"confidence calibrated on {record.calibrated:,} of these" if record.calibrated else f"no confidence (it needs {needs})"
        )
        chosen = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.parameters.items())
        by = f", chosen by {record.chosen_by}" if record.chosen_by else ""
        return (
            f"{self.path}: {source.name} ({source.dim}) -> {target.name} ({target.dim}) for {record.role}, {record.method} "
            f"({chosen}){by}, {record.anchors:,} anchors, {record.held_out:,} held out, {confidence}"
        )


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

    def to_rows(self) -> Iterator[Row]:
        """Rows of the catalog's tables."""
        yield "anchor_set", columns_of(self)
