"""Verifies a converted collection against its source and map: a sample of it, or all rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from embridge.arrays import unit
from embridge.conversion.compare import TOLERANCES, Verification, compare, failed
from embridge.conversion.engine import Precision
from embridge.conversion.identity import Identity
from embridge.conversion.in_place.verify import verify_in_place
from embridge.conversion.source_rows import SourceRows
from embridge.errors import ParameterError
from embridge.maps import LinearMap, Map
from embridge.maps.confidence import Confidence
from embridge.ray import Backend, as_backend
from embridge.stores import Batch, Collection, ParquetCollection, open_collection
from embridge.stores.ids import check_unique, match_rows
from embridge.stores.locations import beside
from embridge.stores.parquet.collection import ERROR_COLUMNS, OLD_COLUMN
from embridge.stores.parquet.file import vectors_of
from embridge.tables.rejected import read_bad_rows
from embridge.types import space_mismatch

_SAMPLE_GROUPS, _SAMPLE_ROWS = 8, 64
_BY_ID = 20_000  # rows that are recomputed of an output in another order


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
        raise failed(str(path), f"it has {len(made):,} rows instead of {expected:,}.")
    for row, ids, vectors in sample.kept:
        payload = coverage is not None or keep_old
        wanted = made.batches(len(ids), payload=payload, row_filter=lambda start, stop, row=row: start <= row < stop)
        found = next(wanted)
        if found.ids.to_pylist() != ids:
            raise failed(str(path), f"ids near row {row:,} are not those of the source.")
        compare(found.vectors, translation.apply(vectors), str(path), row, precision)
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
    sample: int | None = None,
    backend: Backend = "local",
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check a converted collection in full, or the new vectors of a migration in place.

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
        Without a source, of a migration in place: every new vector is recomputed from the old one beside it, and rows that lack
        one are an error.
    precision : {"float32", "tf32", "bfloat16"}
        Precision of the conversion, for the tolerance.
    sample : int, optional
        Rows of a migration in place that are recomputed, evenly spread. Default: all.
    backend : {"local", "ray"} or RayBackend, default "local"
        With Ray one task compares about 128 MiB of vectors; both sides are Parquet, and all nodes can read them.
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
    if source is None and translation is not None:
        beside_old = verify_in_place(os.fspath(path), translation, precision=precision, sample=sample, progress=progress)
        if beside_old is not None:
            return beside_old
    if sample is not None:
        raise ParameterError(
            f"{os.fspath(path)!r} has no migration in place, and of other outputs all rows are checked; leave sample out."
        )
    made = open_collection(path)
    lineage = getattr(made, "lineage", {})
    for what, given in (("source", source and source.fingerprint()), ("map", translation and translation.fingerprint)):
        if given is not None and lineage.get(what) != given:
            raise failed(str(path), f"its lineage names {what} {lineage.get(what)}, which is not {given}.")
    if translation is not None and not made.space.same_as(translation.target):
        raise space_mismatch("The output of the map", translation.target, made.name, made.space)
    stated = made.confidence if isinstance(made, ParquetCollection) else None
    known = translation and translation.confidence
    if stated is not None and known is not None and known.fingerprint != stated["fingerprint"]:
        raise failed(str(path), f"its errors were predicted by {stated['fingerprint']}, not by {known.fingerprint}.")
    check_unique(made)
    if (ray := as_backend(backend)) is not None:
        from embridge.conversion.verify_ray import verify_on_ray  # calls `compare_rows`

        rows, compared, worst = verify_on_ray(ray, made, source, translation, precision, progress)
        return Verification(str(path), rows, compared, worst)
    for column in made.payload_spaces if isinstance(made, ParquetCollection) else ():
        for _ in ParquetCollection(path, id_column=made.id_column, vector_column=column).batches():
            pass  # reading checks the values
    if source is not None and not made.capabilities.keeps_order:
        compared, worst = _compare_by_id(made, source, translation, str(path), precision)
        for batch in made.batches():  # reading checks the values
            if progress is not None:
                progress(batch.start + len(batch), len(made))
        return Verification(str(path), len(made), compared, worst)
    skipped = read_bad_rows(beside(os.fspath(path), ".bad.parquet")) if isinstance(made, ParquetCollection) else None
    rows, compared, worst = compare_rows(made, source, translation, skipped, str(path), precision, progress)
    return Verification(str(path), rows, compared, worst)


def compare_rows(
    made: Collection,
    source: Collection | None,
    translation: Map | None,
    skipped: np.ndarray | None,
    path: str,
    precision: Precision,
    progress: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> tuple[int, int, float]:
    """Compare an output, or the rows of one from `first` on, with its source in order; see `verify`.

    Parameters
    ----------
    skipped : ndarray of int64, optional
        Positions in the source of rows that were left out; None where they are those that are unusable.

    Returns
    -------
    rows, compared, max_error
        As those of a `Verification`.
    """
    stated = made.confidence if isinstance(made, ParquetCollection) else None
    known = translation and translation.confidence
    is_kept = source is not None and OLD_COLUMN in made.payload_spaces and OLD_COLUMN not in source.payload_schema.names
    rows, compared, worst = 0, 0, 0.0
    theirs = None if source is None else SourceRows(source, skipped)
    for batch in made.batches(payload=stated is not None or is_kept):
        rows, batch = rows + len(batch), replace(batch, start=first + batch.start)
        errors = None if stated is None else _errors(batch, path)
        if theirs is not None:
            ids, vectors = theirs.take(len(batch))
            if ids != batch.ids.to_pylist():
                raise failed(path, f"ids between rows {batch.start:,} and {first + rows:,} are not those of the source.")
            if is_kept:
                _compare_kept(batch, vectors, path)
            if translation is not None:
                worst = max(worst, compare(batch.vectors, translation.apply(vectors), path, batch.start, precision))
                compared += len(batch)
                if isinstance(translation, LinearMap) and known is not None and stated is not None and errors is not None:
                    scaled = translation.scaled(vectors)
                    _compare_errors(errors, scaled, known, stated["coverage"], path, batch.start, precision)
        if progress is not None:
            progress(rows, len(made))
    if theirs is not None and (left := theirs.left()):
        raise failed(path, f"{left:,} rows of the source are missing.")
    return rows, compared, worst


def _compare_by_id(
    made: Collection, source: Collection, translation: Map | None, path: str, precision: Precision
) -> tuple[int, float]:
    """Compare an output that has an order of its own: all ids, and the vectors of up to 20,000 rows, evenly spread."""
    rows, made_rows = match_rows(source, made)
    if len(rows) != len(made):
        raise failed(path, f"{len(made) - len(rows):,} of its {len(made):,} rows are not in the source.")
    if len(made) != len(source):
        usable = sum(len(batch) - len(source.unusable(batch)) for batch in source.batches(validate=False))
        if usable != len(made):
            raise failed(path, f"{usable - len(made):,} rows of the source are missing.")
    if translation is None:
        return 0, 0.0
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _BY_ID), dtype=np.int64))
    expected = translation.apply(source.take(rows[chosen]))
    order = np.argsort(made_rows[chosen])
    expected = expected if made.capabilities.keeps_lengths else unit(expected)
    return len(chosen), compare(made.take(made_rows[chosen][order]), expected[order], path, 0, precision)


def _compare_kept(found: Batch, vectors: np.ndarray, path: str) -> None:
    """Compare the column of old vectors with the vectors of the source, value by value."""
    kept = vectors_of(found.payload.column(OLD_COLUMN), vectors.shape[1], repr(path), found.start, validate=True)
    if (wrong := (kept != vectors).any(axis=1)).any():
        row = found.start + int(np.argmax(wrong))
        raise failed(path, f"the vector in column {OLD_COLUMN!r} of row {row:,} is not that of the source.")


def _errors(batch: Batch, path: str) -> np.ndarray:
    """The columns of errors, shape (2, n), checked for presence and range."""
    for name in ERROR_COLUMNS:
        if name not in batch.payload.schema.names:
            raise failed(path, f"its metadata says that errors were predicted, but it lacks the column {name!r}.")
    columns = [batch.payload.column(name).to_numpy(zero_copy_only=False) for name in ERROR_COLUMNS]
    errors = np.stack(columns).astype(np.float64)
    if not (np.isfinite(errors) & (errors >= 0)).all():
        row = batch.start + int(np.argmin((np.isfinite(errors) & (errors >= 0)).all(0)))
        raise failed(path, f"the predicted errors in row {row:,} are not finite numbers of at least 0.")
    return errors


def _compare_errors(
    found: np.ndarray, vectors: np.ndarray, confidence: Confidence, coverage: float, path: str, start: int, precision: Precision
) -> None:
    """`vectors` are rows as the map takes them."""
    predicted = confidence.predict(vectors)
    expected = np.stack([predicted, confidence.widen(predicted, coverage)]).astype(np.float64)
    # A relative error of leverage or length counts as often as its exponent says.
    allowed = max(1e-4, TOLERANCES[precision]) * (1 + np.abs(confidence.weights[1:]).sum())
    wrong = ~(np.abs(found - expected) <= allowed * expected).all(0)
    if wrong.any():
        raise failed(path, f"the predicted errors in row {start + int(np.argmax(wrong)):,} are not those of its source.")
