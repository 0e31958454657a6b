"""Recompute the new vectors of a migration in place from the old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from embridge.arrays import unit
from embridge.conversion.compare import Verification, compare, failed
from embridge.conversion.engine import Precision
from embridge.conversion.in_place.switch import count_missing
from embridge.errors import ParameterError, n_rows
from embridge.maps import Map
from embridge.stores import Collection
from embridge.stores.ids import match_rows
from embridge.stores.in_place import InPlace, MigrationNote
from embridge.stores.parquet.file import vectors_of
from embridge.stores.registry import store_of
from embridge.stores.uri import Location, without_password

Pairs = Iterator[tuple[int, np.ndarray, np.ndarray]]


def verify_in_place(
    path: str, translation: Map, *, precision: Precision, sample: int | None, progress: Callable[[int, int], None] | None
) -> Verification | None:
    """Recompute all new vectors of a migration, or `sample` of them; None where there is none that can be checked.

    Raises
    ------
    VerificationError
        Another map was used, rows lack a new vector, or a new vector is not the translation of the old one.
    """
    store = store_of(path)
    if store is None:
        return None
    if sample is not None and sample < 1:
        raise ParameterError.must_be("sample", "at least 1", sample)
    uri = without_password(path)
    if not any(store.capabilities(metric).in_place_modes for metric in type(translation.target.metric)):
        return None
    change = store.in_place(Location.parse(uri))
    try:
        note = change.note()
        if note is None or not note.is_open:
            return None
        if note.map != translation.fingerprint:
            raise failed(uri, f"its new vectors are by the map {note.map}, not by {translation.fingerprint}.")
        missing, bad = count_missing(change, note)
        if missing > bad and not note.is_live:
            raise failed(uri, f"{n_rows(missing - bad)} have no new vector. Hint: embridge migrate with --resume translates them.")
        return _compare_rows(change, note, uri, translation, precision, sample, progress)
    finally:
        change.close()


def _compare_rows(
    change: InPlace,
    note: MigrationNote,
    uri: str,
    translation: Map,
    precision: Precision,
    sample: int | None,
    progress: Callable[[int, int], None] | None,
) -> Verification:
    made = change.new_rows(note)
    if made is None:
        raise failed(uri, "it has no new vectors.")
    compared, worst = 0, 0.0
    for row, found, old in _beside(made, note, uri) if note.old_name in made.payload_schema.names else _by_id(change, note, made):
        chosen = np.arange(len(found))
        if sample is not None:
            chosen = chosen[_is_chosen(row + chosen, len(made), sample)]
        if len(chosen):
            expected = translation.apply(old[chosen])
            expected = expected if made.capabilities.keeps_lengths else unit(expected)
            worst = max(worst, compare(found[chosen], expected, uri, row, precision))
            compared += len(chosen)
        if progress is not None:
            progress(row + len(found), len(made))
    return Verification(uri, len(made), compared, worst)


def _is_chosen(rows: np.ndarray, total: int, sample: int) -> np.ndarray:
    """Which positions are among `sample` evenly spread ones of `total`."""
    return (rows + 1) * sample // max(total, sample) > rows * sample // max(total, sample)


def _beside(made: Collection, note: MigrationNote, uri: str) -> Pairs:
    """New and old vectors that are read together; rows without an old one were written after the cutover, and are left out."""
    for batch in made.batches(payload=True):
        column = batch.payload.column(note.old_name)
        both = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        old = vectors_of(column.take(both), note.old.dim, uri, batch.start, validate=True)
        yield batch.start, batch.vectors[both], old


def _by_id(change: InPlace, note: MigrationNote, made: Collection) -> Pairs:
    """New and old vectors of two collections; of 20,000 rows at most, where their orders differ."""
    source = change.old_rows(note)
    if source is None:
        return
    rows, made_rows = match_rows(source, made)
    if (np.diff(made_rows) < 0).any():
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 20_000), dtype=np.int64))
        order = np.argsort(made_rows[chosen])
        yield 0, made.take(made_rows[chosen][order]), source.take(rows[chosen])[order]
        return
    start, size = 0, made.default_batch_rows()
    for found, old in zip(_cut(made, made_rows, size), _cut(source, rows, size), strict=True):
        yield start, found, old
        start += len(found)


def _cut(source: Collection, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The vectors of rows, `size` at a time."""
    held: list[np.ndarray] = []
    count = 0
    for _, piece in source.select(rows):
        part = piece
        while count + len(part) >= size:
            taken, part = part[: size - count], part[size - count :]
            yield np.concatenate([*held, taken])
            held, count = [], 0
        if len(part):
            held.append(part)
            count += len(part)
    if held:
        yield np.concatenate(held)
