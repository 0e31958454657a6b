"""Verifies a converted collection against its source and map: a sample of it, or all rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from embridge.arrays import unit
from embridge.conversion.engine import Precision
from embridge.conversion.identity import Identity
from embridge.errors import VerificationError
from embridge.maps import LinearMap, Map
from embridge.maps.confidence import Confidence
from embridge.stores import Batch, Collection, ParquetCollection, open_collection
from embridge.stores.ids import check_unique, match_rows
from embridge.stores.locations import beside
from embridge.stores.parquet.collection import ERROR_COLUMNS, OLD_COLUMN
from embridge.stores.parquet.file import vectors_of
from embridge.tables.rejected import read_bad_rows
from embridge.types import space_mismatch

_SAMPLE_GROUPS, _SAMPLE_ROWS = 8, 64
_BY_ID = 20_000  # rows that are recomputed of an output in another order
# Of the longest vector: float32 products in another order differ by about 1e-6, a float16 is off by 5e-4 of its value.
_TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "tf32": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Verification:
    """What was checked of an output.

    Attributes
    ----------
    path : str
    rows : int
        Rows, all readable, with unique ids.
    compared : int
        Rows that were recomputed from the source.
    max_error : float
        Largest difference of a value from its recomputation, in units of the longest vector.
    """

    path: str
    rows: int
    compared: int
    max_error: float


class Sample:
    """Source rows kept while an output is made: the first rows of a few of its row groups, drawn evenly from all of them.

    So the check needs no second reading of source or output, however large their row groups are.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[int, list, np.ndarray]] = []
        self._seen = 0
        self._rng = np.random.default_rng(0)

    def offer(self, row: int, part: Batch) -> None:
        """Offer the row group that begins at `row` of the output, with these rows of the source."""
        self._seen += 1
        place = len(self.kept) if len(self.kept) < _SAMPLE_GROUPS else int(self._rng.integers(self._seen))
        if place < _SAMPLE_GROUPS:
            kept = (row, part.ids[:_SAMPLE_ROWS].to_pylist(), part.vectors[:_SAMPLE_ROWS].copy())
            self.kept[place : place + 1] = [kept]


def check_sample(
    path: str | os.PathLike[str],
    expected: int,
    sample: Sample,
    translation: Map | Identity,
    *,
    precision: Precision,
    coverage: float | None = None,
    keep_old: bool = False,
) -> None:
    """Open a file that was just written, count its rows, and recompute some of them.

    Raises
    ------
    VerificationError
        Rows are missing, or ids or vectors are not those of the source.
    """
    made = ParquetCollection(path)
    if len(made) != expected:
        raise _failed(str(path), f"it has {len(made):,} rows instead of {expected:,}.")
    for row, ids, vectors in sample.kept:
        payload = coverage is not None or keep_old
        wanted = made.batches(len(ids), payload=payload, row_filter=lambda start, stop, row=row: start <= row < stop)
        found = next(wanted)
        if found.ids.to_pylist() != ids:
            raise _failed(str(path), f"ids near row {row:,} are not those of the source.")
        _compare(found.vectors, translation.apply(vectors), str(path), row, precision)
        if keep_old:
            _compare_kept(found, vectors, str(path))
        if isinstance(translation, LinearMap) and translation.confidence is not None and coverage is not None:
            errors, rows = _errors(found, str(path)), translation.scaled(vectors)
            _compare_errors(errors, rows, translation.confidence, coverage, str(path), row, precision)


def verify(
    path: str | os.PathLike[str],
    *,
    source: Collection | None = None,
    translation: Map | None = None,
    precision: Precision = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check a converted collection in full.

    Every row is read; values of all vector columns and the uniqueness of ids are checked. Given source and map, their fingerprints
    are compared with the lineage in the file's metadata, and every id and vector is recomputed. Predicted errors are recomputed
    too, where the file has them and the map has its confidence. Old vectors that the conversion kept are compared with the source.

    Parameters
    ----------
    path : str or path-like
        A Parquet collection, or the URI of a collection in a store. Where the store has an order of its own, ids are all compared,
        and the vectors of 20,000 rows are recomputed.
    source : Collection, optional
        What it was converted from. Rows of it that are not in the output must be listed in ``OUT.bad.parquet``; in a store, they
        must be unusable.
    translation : LinearMap or KernelMap, optional
    precision : {"float32", "tf32", "bfloat16"}
        Precision of the conversion, for the tolerance.
    progress : callable, optional
        Called with (rows done, rows in all).

    Returns
    -------
    Verification

    Raises
    ------
    VerificationError
        The lineage names another source or map, rows are missing or in excess, or ids, vectors or predicted errors differ.
    BadVectorsError, BadIdsError, UnreadableFileError
        The file itself is damaged.
    """
    made = open_collection(path)
    lineage = getattr(made, "lineage", {})
    for what, given in (("source", source and source.fingerprint()), ("map", translation and translation.fingerprint)):
        if given is not None and lineage.get(what) != given:
            raise _failed(str(path), f"its lineage names {what} {lineage.get(what)}, which is not {given}.")
    if translation is not None and not made.space.same_as(translation.target):
        raise space_mismatch("The output of the map", translation.target, made.name, made.space)
    stated = made.confidence if isinstance(made, ParquetCollection) else None
    known = translation and translation.confidence
    if stated is not None and known is not None and known.fingerprint != stated["fingerprint"]:
        raise _failed(str(path), f"its errors were predicted by {stated['fingerprint']}, not by {known.fingerprint}.")
    check_unique(made)
    for column in made.payload_spaces if isinstance(made, ParquetCollection) else ():
        for _ in ParquetCollection(path, id_column=made.id_column, vector_column=column).batches():
            pass  # reading checks the values
    if source is not None and not made.capabilities.keeps_order:
        compared, worst = _compare_by_id(made, source, translation, str(path), precision)
        for batch in made.batches():  # reading checks the values
            if progress is not None:
                progress(batch.start + len(batch), len(made))
        return Verification(str(path), len(made), compared, worst)
    is_kept = source is not None and OLD_COLUMN in made.payload_spaces and OLD_COLUMN not in source.payload_schema.names
    rows, compared, worst = 0, 0, 0.0
    skipped = read_bad_rows(beside(os.fspath(path), ".bad.parquet")) if isinstance(made, ParquetCollection) else None
    theirs = None if source is None else _Rows(source, skipped)
    for batch in made.batches(payload=stated is not None or is_kept):
        rows += len(batch)
        errors = None if stated is None else _errors(batch, str(path))
        if theirs is not None:
            ids, vectors = theirs.take(len(batch))
            if ids != batch.ids.to_pylist():
                raise _failed(str(path), f"ids between rows {batch.start:,} and {rows:,} are not those of the source.")
            if is_kept:
                _compare_kept(batch, vectors, str(path))
            if translation is not None:
                worst = max(worst, _compare(batch.vectors, translation.apply(vectors), str(path), batch.start, precision))
                compared += len(batch)
                if isinstance(translation, LinearMap) and known is not None and stated is not None and errors is not None:
                    _compare_errors(
                        errors, translation.scaled(vectors), known, stated["coverage"], str(path), batch.start, precision
                    )
        if progress is not None:
            progress(rows, len(made))
    if theirs is not None and (left := theirs.left()):
        raise _failed(str(path), f"{left:,} rows of the source are missing.")
    return Verification(str(path), rows, compared, worst)


def _failed(path: str, what: str) -> VerificationError:
    return VerificationError(f"{path!r} is not what it should be: {what}")


def _compare(found: np.ndarray, expected: np.ndarray, path: str, start: int, precision: Precision) -> float:
    longest = float(np.sqrt(np.einsum("ij,ij->i", expected, expected).max())) or 1.0
    error = np.abs(found.astype(np.float32) - expected).max(axis=1) / longest
    tolerance = max(_TOLERANCES[precision], _TOLERANCES["float16"] if found.dtype == np.float16 else 0.0)
    if not (error <= tolerance).all():
        row = start + int(np.argmax(~(error <= tolerance)))
        raise _failed(path, f"the vector in row {row:,} is not the translation of the source's.")
    return float(error.max(initial=0.0))


def _compare_by_id(
    made: Collection, source: Collection, translation: Map | None, path: str, precision: Precision
) -> tuple[int, float]:
    """Compare an output that has an order of its own: all ids, and the vectors of up to 20,000 rows, evenly spread."""
    rows, made_rows = match_rows(source, made)
    if len(rows) != len(made):
        raise _failed(path, f"{len(made) - len(rows):,} of its {len(made):,} rows are not in the source.")
    if len(made) != len(source):
        usable = sum(len(batch) - len(source.unusable(batch)) for batch in source.batches(validate=False))
        if usable != len(made):
            raise _failed(path, f"{usable - len(made):,} rows of the source are missing.")
    if translation is None:
        return 0, 0.0
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _BY_ID), dtype=np.int64))
    expected = translation.apply(source.take(rows[chosen]))
    order = np.argsort(made_rows[chosen])
    expected = expected if made.capabilities.keeps_lengths else unit(expected)
    return len(chosen), _compare(made.take(made_rows[chosen][order]), expected[order], path, 0, precision)


def _compare_kept(found: Batch, vectors: np.ndarray, path: str) -> None:
    """Compare the column of old vectors with the vectors of the source, value by value."""
    kept = vectors_of(found.payload.column(OLD_COLUMN), vectors.shape[1], repr(path), found.start, validate=True)
    if (wrong := (kept != vectors).any(axis=1)).any():
        row = found.start + int(np.argmax(wrong))
        raise _failed(path, f"the vector in column {OLD_COLUMN!r} of row {row:,} is not that of the source.")


def _errors(batch: Batch, path: str) -> np.ndarray:
    """The columns of errors, shape (2, n), checked for presence and range."""
    for name in ERROR_COLUMNS:
        if name not in batch.payload.schema.names:
            raise _failed(path, f"its metadata says that errors were predicted, but it lacks the column {name!r}.")
    columns = [batch.payload.column(name).to_numpy(zero_copy_only=False) for name in ERROR_COLUMNS]
    errors = np.stack(columns).astype(np.float64)
    if not (np.isfinite(errors) & (errors >= 0)).all():
        row = batch.start + int(np.argmin((np.isfinite(errors) & (errors >= 0)).all(0)))
        raise _failed(path, f"the predicted errors in row {row:,} are not finite numbers of at least 0.")
    return errors


def _compare_errors(
    found: np.ndarray, vectors: np.ndarray, confidence: Confidence, coverage: float, path: str, start: int, precision: Precision
) -> None:
    """`vectors` are rows as the map takes them."""
    predicted = confidence.predict(vectors)
    expected = np.stack([predicted, confidence.widen(predicted, coverage)]).astype(np.float64)
    # A relative error of leverage or length counts as often as its exponent says.
    allowed = max(1e-4, _TOLERANCES[precision]) * (1 + np.abs(confidence.weights[1:]).sum())
    wrong = ~(np.abs(found - expected) <= allowed * expected).all(0)
    if wrong.any():
        raise _failed(path, f"the predicted errors in row {start + int(np.argmax(wrong)):,} are not those of its source.")


class _Rows:
    """The rows of a source that should be in the output, read in pieces: all but those `skipped`, or all that are usable."""

    def __init__(self, source: Collection, skipped: np.ndarray | None) -> None:
        self._batches, self._source = source.batches(validate=False), source
        self._skipped = skipped
        self._dim = source.stated_space.dim
        self._held: list[tuple[list, np.ndarray]] = []

    def take(self, count: int) -> tuple[list, np.ndarray]:
        ids: list = []
        vectors = [np.empty((0, self._dim), np.float32)]
        while len(ids) < count and self._fill():
            held_ids, held = self._held.pop(0)
            part = count - len(ids)
            ids += held_ids[:part]
            vectors.append(held[:part])
            if part < len(held_ids):
                self._held.insert(0, (held_ids[part:], held[part:]))
        return ids, np.concatenate(vectors)

    def left(self) -> int:
        found = 0
        while self._fill():
            found += len(self._held.pop(0)[0])
        return found

    def _fill(self) -> bool:
        while not self._held:
            batch: Batch | None = next(self._batches, None)
            if batch is None:
                return False
            if self._skipped is None:
                kept = np.delete(np.arange(len(batch)), list(self._source.unusable(batch)))
            else:
                kept = np.flatnonzero(~np.isin(np.arange(batch.start, batch.start + len(batch)), self._skipped))
            if len(kept):
                self._held.append((batch.ids.take(kept).to_pylist(), batch.vectors[kept]))
        return True
