"""Records of outputs: converted, migrated, merged and decoded collections, registered decoders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from embridge.errors import CatalogError
from embridge.records.artifacts import Artifact, absolute
from embridge.records.rows import Row, columns_of
from embridge.types import Space


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
        Fingerprints of its inputs, and its own.
    reused : int
        Rows of the source that an earlier, interrupted run had done already, bad rows included.
    """

    path: str
    rows: int
    seconds: float
    device: str
    source: str
    map: str
    fingerprint: str
    skipped: int = 0
    reused: int = 0

    @property
    def rows_per_second(self) -> float:
        """Rows per second, including reading and writing."""
        return self.rows / self.seconds if self.seconds else float("inf")

    def to_rows(self) -> Iterator[Row]:
        """Rows of the catalog's tables."""
        columns = columns_of(self, leave_out=("reused",), map="translator", fingerprint="output")
        yield "conversion", columns | {"path": absolute(self.path)}


@dataclass(frozen=True)
class Migration:
    """A FAISS index that was migrated to another space.

    Attributes
    ----------
    path : str
    mode : str
        ``wrap``, ``rewrite`` or ``rebuild``.
    exact : bool
        True where the index returned, for queries of the new space, the ids that the old one returns for the
        projected queries (a rebuild: those of brute force).
    verified_overlap : float
        Mean share of the 10 true neighbors (by brute force over translated rows) that it finds.
    queries_verified : int
    seconds : float
        Including verification and writing.
    reason : str
        Why this mode was chosen, and the measurements.
    rows : int
    own_overlap : float or None
        Overlap of the old index in its own space, measured where the map is not exact.
    agreement : float or None
        Mean share of the old index's results for projected queries.
    source, map, fingerprint : str
        Fingerprints of its inputs, and its own.
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

    def to_rows(self) -> Iterator[Row]:
        """Rows of the catalog's tables."""
        columns = columns_of(self, leave_out=("source_space", "space"), map="translator", fingerprint="output")
        yield "index_migration", columns | {"path": absolute(self.path)}


@dataclass(frozen=True)
class Merge:
    """Native and translated rows of one space in one collection.

    Shares and overlaps are over the k nearest rows of `queries` queries, none of them used to estimate the offset; None where
    they could not be measured.

    Attributes
    ----------
    path : str
    rows, native, translated : int
    replaced : int
        Translated rows replaced by a native row.
    offset : float
        Added to scores of translated rows (see `Provenance`); 0 where it could not be estimated.
    reason : str
        How it was estimated, or why not.
    k, queries : int
    pairs : int
        Rows with a native and a translated vector used to estimate it.
    share_before, share_after : float or None
        Share of translated rows among the k nearest, without and with the offset.
    share_truth : float or None
        Estimated share if all rows were native: where a pair is found as a native row r times as often
        as translated, a share of s becomes rs / (rs + 1 - s).
    overlap_before, overlap_after : float or None
        Share of the native places of pairs in which the same row is also found translated.
    seconds : float
    native_source, translated_source, fingerprint : str
        Fingerprints of its inputs, and its own.
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

    def to_rows(self) -> Iterator[Row]:
        """Rows of the catalog's tables."""
        columns = columns_of(self, fingerprint="output", offset="score_offset")
        yield "merge", columns | {"path": absolute(self.path)}

    def __str__(self) -> str:
        def shown(value: float | None) -> str:
            return "     -" if value is None else f"{value:>6.3f}"

        taken = f", {self.replaced:,} of them replacing translated ones" if self.replaced else ""
        return (
            f"{self.path}: {self.native:,} native rows{taken}, and {self.translated:,} translated rows\n"
            f"offset {self.offset:+.4f}: {self.reason}\n"
            f"{'':<38}  before   after   all native\n"
            f"{f'translated rows among the {self.k} nearest':<38}  {shown(self.share_before)}  {shown(self.share_after)}"
            f"       {shown(self.share_truth)}\n"
            f"{'overlap, over rows on both sides':<38}  {shown(self.overlap_before)}  {shown(self.overlap_after)}        1.000"
        )


@dataclass(frozen=True)
class Decoding:
    """A collection that was decoded.

    Attributes
    ----------
    path : str
    rows : int
    columns : tuple of str
        Columns written in addition to ids and payload: ``prediction``, ``probability``, ``output``.
    folded : bool
        True where decoder and map were combined into one matrix.
    seconds : float
    device : str
    source, decoder, fingerprint : str
        Fingerprints of its inputs, and its own.
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
        """Rows per second, including reading and writing."""
        return self.rows / self.seconds if self.seconds else float("inf")

    def to_rows(self) -> Iterator[Row]:
        """Rows of the catalog's tables."""
        columns = columns_of(self, map="translator", fingerprint="output")
        yield "decoding", columns | {"path": absolute(self.path), "translator": self.map or None}


@dataclass(frozen=True)
class DecoderRecord:
    """A decoder that was registered.

    Attributes
    ----------
    name : str
        Name of the decoder.
    format, kind : str
        ``linear``, ``skops``, ``onnx`` or ``pt2``; ``classifier``, ``regressor`` or ``output``.
    classes : tuple
        Labels of a classifier that names them.
    """

    name: str
    format: str
    kind: str
    classes: tuple[str | int | bool, ...] = ()

    def to_rows(self, made: Artifact) -> Iterator[Row]:
        """Rows of the catalog's tables; `made` is the decoder.

        Raises
        ------
        CatalogError
            It does not name its space.
        """
        if made.space is None:
            raise CatalogError(f"The decoder {made.path!r} that was registered does not name its space.")
        where = {"fingerprint": made.fingerprint, "path": absolute(made.path), "space": made.space.name, "dim": made.space.dim}
        yield "decoder", where | columns_of(self)
