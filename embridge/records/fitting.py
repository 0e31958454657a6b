"""How anchors were chosen and maps came about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from embridge.errors import CatalogError
from embridge.records.artifacts import Artifact, absolute
from embridge.records.rows import Row, columns_of


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

    def to_rows(self) -> Iterator[Row]:
        """Rows of the catalog's tables."""
        yield "anchor_set", columns_of(self)
