"""Records of migrations in place: what was done, what would be done, which side is in use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from embridge.types import Space


@dataclass(frozen=True)
class InPlaceMigration:
    """New vectors beside the old ones in one collection.

    Attributes
    ----------
    path : str
    mode : {"column", "shadow"}
    stage : str
        ``ready``: every row that can be translated has a new vector.
    into : str
        Name of the new vector column, or of the shadow.
    source_space, space : Space
        Of the old and the new vectors.
    rows : int
        Rows that have a new vector from this migration.
    skipped : int
        Rows whose old vector cannot be translated (zero under cosine, not finite); they have no new one.
    without_vector : int
        Rows without an old vector; they have no new one either.
    seconds : float
        Of this run.
    remarks : tuple of str
        The index that was built, and what to know before the cutover.
    source, map, fingerprint : str
        Fingerprints of the collection before this run, of the map, and of the collection after it.
    """

    path: str
    mode: str
    stage: str
    into: str
    source_space: Space
    space: Space
    rows: int
    skipped: int
    without_vector: int
    seconds: float
    remarks: tuple[str, ...]
    source: str
    map: str
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class MigrationPreview:
    """What a migration in place would do.

    Attributes
    ----------
    path : str
    mode : {"column", "shadow"}
    into : str
    source_space, space : Space
    steps : tuple of str
        In order, one sentence each.
    rows : int
        Rows to translate.
    seconds : float
        Estimate for reading and translating them, from the first rows; writing and the index come on top.
    bytes : int
        Estimated size of what is added.
    """

    path: str
    mode: str
    into: str
    source_space: Space
    space: Space
    steps: tuple[str, ...]
    rows: int
    seconds: float
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Swap:
    """Which vectors of a collection are in use, after a cutover, a rollback, or the removal of one side.

    Attributes
    ----------
    path : str
    stage : str
        ``live``: the new vectors are in use, the old ones are kept; ``ready``: the reverse; ``finished``: the old ones were
        removed; ``none``: the new ones were.
    space : Space
        Of the vectors in use.
    remarks : tuple of str
        What becomes of rows written from now on, and what still reads the other vectors.
    seconds : float
    """

    path: str
    stage: str
    space: Space
    remarks: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
