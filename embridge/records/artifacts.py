"""Files that runs read and wrote, and what is in a collection."""

from __future__ import annotations

from dataclasses import dataclass

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
        ``parquet``, ``faiss``, ``map``, ``texts``, ``table`` or ``report``.
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
    mean_cosine : float
        Of pairs of different rows; near zero where directions are used evenly, NaN below two rows.
    effective_rank : float
        How many dimensions the rows fill (see `Isotropy`); NaN where they do not differ.
    """

    rows: int
    space: Space
    norm: dict[str, float]
    duplicate_ids: int
    bad_rows: int
    mean_cosine: float
    effective_rank: float
