"""Verifies a converted collection as tasks on a Ray cluster: each compares a span of its rows with those of the source."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from embridge.conversion.engine import Precision
from embridge.conversion.verify import compare_rows
from embridge.errors import ParameterError
from embridge.maps import Map
from embridge.ray import RayBackend, run_tasks
from embridge.stores import Collection, ParquetCollection
from embridge.stores.locations import beside
from embridge.tables.rejected import read_bad_rows

_SPAN_BYTES = 128 << 20  # of float32 vectors in a task


@dataclass(frozen=True)
class Unit:
    """Rows of an output and of its source that one task compares; `name`, `first` and `skipped` as in `compare_rows`."""

    name: str
    made: ParquetCollection
    source: ParquetCollection | None
    skipped: np.ndarray
    first: int
    precision: Precision


def compare_unit(unit: Unit, translation: Map | None) -> tuple[int, int, float]:
    """In a worker: compare."""
    return compare_rows(unit.made, unit.source, translation, unit.skipped, unit.name, unit.precision, first=unit.first)


def verify_on_ray(
    backend: RayBackend,
    made: Collection,
    source: Collection | None,
    translation: Map | None,
    precision: Precision,
    progress: Callable[[int, int], None] | None,
) -> tuple[int, int, float]:
    """`compare_rows` for all rows, and a check of the values of further vector columns.

    Raises
    ------
    ParameterError
        A side is not in Parquet.
    """
    for side in (made, source):
        if side is not None and not isinstance(side, ParquetCollection):
            raise ParameterError(f"{side.name} is not in Parquet, which the backend 'ray' reads. Hint: leave the backend out.")
    assert isinstance(made, ParquetCollection)  # noqa: S101 (checked above, for the type checker)
    assert source is None or isinstance(source, ParquetCollection)  # noqa: S101
    units = [Unit(os.fspath(made.path), *span, precision) for span in _spans(made, source)]
    for column in made.payload_spaces:
        other = ParquetCollection(made.path, id_column=made.id_column, vector_column=column)
        units += [Unit(other.path, *span, precision) for span in _spans(other, None)]
    rows, compared, worst = 0, 0, 0.0
    with contextlib.closing(run_tasks(backend, compare_unit, units, [translation])) as tasks:
        for number, found in tasks:
            if units[number].made.vector_column != made.vector_column:
                continue
            rows, compared, worst = rows + found[0], compared + found[1], max(worst, found[2])
            if progress is not None:
                progress(rows, len(made))
    return rows, compared, worst


def _spans(
    made: ParquetCollection, source: ParquetCollection | None
) -> list[tuple[ParquetCollection, ParquetCollection | None, np.ndarray, int]]:
    """Rows of the output, the rows of the source that belong to them, those of these that were left out, and the first row."""
    least = max(1, _SPAN_BYTES // (4 * made.stated_space.dim))
    cuts = [0]
    for start in made.row_group_starts():
        if start - cuts[-1] >= least:
            cuts.append(start)
    cuts.append(len(made))
    skipped = np.unique(read_bad_rows(beside(os.fspath(made.path), ".bad.parquet")))
    shifted = skipped - np.arange(len(skipped))  # the row of the output before which each was left out
    found = []
    for start, stop in itertools.pairwise(cuts):
        if source is None:
            found.append((made.rows(start, stop), None, skipped[:0], start))
            continue
        low = start + int(np.searchsorted(shifted, start, side="right")) if start else 0
        high = stop + int(np.searchsorted(shifted, stop, side="right")) if stop < len(made) else len(source)
        low, high = min(low, len(source)), min(high, len(source))
        own = skipped[(skipped >= low) & (skipped < high)] - low
        found.append((made.rows(start, stop), source.rows(low, high), own, start))
    return found
