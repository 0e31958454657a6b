"""The content of a FAISS index file and its sidecars."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from embridge.errors import FaissIndexError
from embridge.types import Space


@dataclass(frozen=True, eq=False)
class IndexFile:
    """A FAISS index as read from its file and sidecars.

    Attributes
    ----------
    index : faiss.Index
    space : Space or None
        From the sidecar; None for a bare file.
    ids : pyarrow.Array or None
        By the index's own int64 label, where the index does not hold the ids itself.
    lineage : dict
    notes : dict
        Other fields of the sidecar: how to correct scores (``scores``), that a hubness bias is stored (``hubness``), that
        translated rows have an offset (``calibration``), that rows hold vectors of two spaces (``fusion``), whether vectors may be
        added (``adds``), how it was migrated (``migration``).
    bound : bool
        The sidecars name the fingerprint of this index, so their statements about all rows are valid.
    identity : tuple
        Of the file that was read (`file_identity`).
    """

    index: Any
    space: Space | None
    ids: pa.Array | None
    lineage: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    bound: bool = True
    identity: tuple[int, ...] = ()

    @property
    def biased(self) -> bool:
        """True where the index's own last column is added to scores (hubness, calibration): then `Space.dim` is not ``index.d``."""
        return (
            ("hubness" in self.notes or "calibration" in self.notes)
            and self.space is not None
            and self.index.d == self.space.dim + 1
        )

    @property
    def old_space(self) -> Space | None:
        """The old space of a fused index, whose rows are concatenated vectors of two spaces; None for a plain index."""
        return Space.from_dict(self.notes["fusion"]["old_space"]) if "fusion" in self.notes else None

    @property
    def dim(self) -> int:
        """Width of the vectors of `space`, without a bias."""
        old = self.old_space
        if old is not None:
            return self.index.d - old.dim - 2 * (self.notes["fusion"]["references"] is not None)
        return self.index.d - self.biased

    def check_plain(self, where: str) -> None:
        """Check that its rows are vectors of one space.

        Raises
        ------
        FaissIndexError
            It is a fused index.
        """
        if self.old_space is not None and self.space is not None:
            raise FaissIndexError(
                f"{where} is a fused index: a row holds its vectors of {self.old_space.name!r} and {self.space.name!r} together, "
                "so it can only be searched. Hint: use the collection that it was built from."
            )
