"""Converts files as tasks on a Ray cluster: one task a file, or a span of row groups of a very large one."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from embridge.attempts import attempt, open_work, remove_work, work_folder
from embridge.conversion.file import bad_rows_path, check_bad_rows, check_room, known_file, make_file, mark_of, open_writer
from embridge.conversion.journal import begin
from embridge.conversion.log import append_to, journal_path, partial_path
from embridge.conversion.task import Task
from embridge.device import resolve_devices
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    ChangedSourceError,
    InterruptedOutputError,
    OutputError,
)
from embridge.files import fingerprint, sync_folder, whole_or_absent, writing
from embridge.maps import Map
from embridge.ray import run_tasks
from embridge.records import Conversion
from embridge.stores import ParquetCollection
from embridge.stores.locations import remove, upload
from embridge.stores.parquet.writer import rows_of_group

_SPAN_BYTES = 1 << 30  # of output vectors; larger files are converted in spans of about this size


@dataclass(frozen=True)
class Unit:
    """A file, or a span of its rows, that one task converts.

    Attributes
    ----------
    name : str
    task : Task
        Without the map, which all tasks share, and without progress.
    target, bad : str
        Where the output and the list of its bad rows go: paths or URIs.
    folder : str or None
        The working folder of attempts; None where the output is remote.
    may_be_empty : bool
        The output may have no rows.
    """

    name: str
    task: Task
    target: str
    bad: str
    folder: str | None
    may_be_empty: bool


@dataclass(frozen=True)
class Place:
    """A file of the output.

    Attributes
    ----------
    name : str
        In the journal and in messages.
    part : ParquetCollection
        What it is converted from.
    target, bad : str
        As those of a `Unit`.
    """

    name: str
    part: ParquetCollection
    target: str
    bad: str


def convert_unit(unit: Unit, translation: Map) -> tuple[Conversion, str]:
    """In a worker: convert, and rename the output when it is whole; its record, and its mark for the journal."""
    devices = tuple(resolve_devices(unit.task.devices[0]))
    task = replace(unit.task, translation=translation, devices=devices)
    with attempt(unit.folder) as folder:
        made, side = folder / "output.parquet", folder / "bad.parquet"
        check_room(task, made)
        done = make_file(task, made, side, may_be_empty=unit.may_be_empty)
        mark = mark_of(made, side)
        if unit.folder is None:
            if side.exists():
                upload(side, unit.bad)
            else:
                remove(unit.bad)
            upload(made, unit.target)
        else:
            with writing(unit.target):
                if side.exists():
                    os.replace(side, unit.bad)
                else:
                    Path(unit.bad).unlink(missing_ok=True)
                os.replace(made, unit.target)
                sync_folder(Path(unit.target).parent)
    return replace(done, path=unit.target), mark


def convert_file_on_ray(task: Task, target: Path) -> Conversion:
    """Convert into one local file that the caller has claimed. ``OUT.tasks`` holds the spans that are finished.

    Raises
    ------
    InterruptedOutputError
        An unfinished output exists and neither `resume` nor `overwrite` is given, or it is of another run.
    EmbridgeError
        As `convert_places`.
    """
    started, side = time.perf_counter(), bad_rows_path(target)
    check_bad_rows(side)
    check_room(task, target)
    if os.path.lexists(work_folder(target)) and not (task.resume or task.overwrite):
        raise InterruptedOutputError(
            f"An interrupted run left {str(target)!r} unfinished. Hint: --resume continues it, --overwrite starts again."
        )
    with writing(target):
        log = begin(target, task.plan | {"files": [target.name]}, resume=task.resume, overwrite=task.overwrite)
        if not log.files:
            remove_work(target)
        work, partial = open_work(target), partial_path(target)
        place = Place(target.name, cast(ParquetCollection, task.source), os.fspath(partial), os.fspath(work / "bad.parquet"))
        try:
            with append_to(target, log) as lines:
                earlier = known_file(task, partial, Path(place.bad), place.name, log.files)
                [done] = convert_places(task, [place], [earlier], work, log.files, lines.add_file, may_be_empty=False)
            task.check_source()
        except ChangedSourceError:
            _discard(target)
            raise
        if done.skipped:
            os.replace(place.bad, side)
        else:
            side.unlink(missing_ok=True)
        os.replace(partial, target)
        sync_folder(target.absolute().parent)
        _discard(target)
    return replace(done, path=os.fspath(target), seconds=time.perf_counter() - started)


def _discard(target: Path) -> None:
    """Remove what is left of an unfinished file; the journal last."""
    partial_path(target).unlink(missing_ok=True)
    remove_work(target)
    journal_path(target).unlink(missing_ok=True)


def convert_places(
    task: Task,
    places: Sequence[Place],
    earlier: Sequence[Conversion | None],
    work: Path | None,
    known: Mapping[str, str],
    keep: Callable[[str, str], None],
    *,
    may_be_empty: bool,
) -> list[Conversion]:
    """Convert files as tasks; their records, in order.

    Parameters
    ----------
    task : Task
        Of all files together.
    places : sequence of Place
    earlier : sequence of Conversion or None
        Records of the files that an earlier run has finished.
    work : Path, optional
        The working folder beside a local output; without it files are not converted in spans.
    known : mapping of str to str
        Marks of finished spans by name, from the journal.
    keep : callable
        Receives the name and the mark of each file and span that is finished now.
    may_be_empty : bool
        A file may have no rows.

    Raises
    ------
    EmbridgeError
        Of the first task that fails; the others are cancelled.
    """
    assert task.backend is not None  # noqa: S101 (the caller looked)
    done = list(earlier)
    plans = {n: _units(task, n, place, work, may_be_empty=may_be_empty) for n, place in enumerate(places) if done[n] is None}
    kept = {unit.name: len(unit.task.source) for units in plans.values() for unit in units if _is_known(unit, known)}
    waiting = {n: {unit.name for unit in units} - set(kept) for n, units in plans.items()}
    todo = [(n, unit) for n, units in plans.items() for unit in units if unit.name not in kept]
    rows = sum(kept.values()) + sum(c.reused for c in done if c is not None)

    def finish(n: int, conversion: Conversion | None) -> None:
        if waiting[n]:
            return
        spans = plans[n]
        if conversion is None or len(spans) > 1:
            conversion, mark = _join(task, places[n], spans, sum(kept.get(unit.name, 0) for unit in spans))
            keep(places[n].name, mark)
        done[n] = conversion

    for n in plans:
        finish(n, None)
    try:
        units, shared = [unit for _, unit in todo], [replace(task.translation)]
        with contextlib.closing(run_tasks(task.backend, convert_unit, units, shared)) as tasks:
            for i, (conversion, mark) in tasks:
                n, unit = todo[i]
                keep(unit.name, mark)
                waiting[n].remove(unit.name)
                finish(n, conversion)
                rows += conversion.rows + conversion.skipped
                if task.progress is not None:
                    task.progress(rows, len(task.source))
    except (BadVectorsError, BadIdsError) as e:
        if not (finished := sum(c is not None for c in done)):
            raise
        hint = f"{finished:,} of {len(places):,} files are done and kept"
        raise type(e)(f"{e} {hint}: --resume --on-bad skip continues without bad ones, --overwrite starts again.") from e
    return cast(list[Conversion], done)


def _units(task: Task, number: int, place: Place, work: Path | None, *, may_be_empty: bool) -> list[Unit]:
    """The tasks that make a file: one, or one a span of row groups."""
    part, folder = place.part, None if work is None else os.fspath(work)
    bare = replace(task, source=part, translation=None, progress=None, resume=False, overwrite=False, content="")
    cuts = [0, len(part)] if work is None or task.on_bad == "skip" else _cuts(task, part)
    if work is None or len(cuts) == 2:
        return [Unit(place.name, bare, place.target, place.bad, folder, may_be_empty)]
    found = []
    for start, stop in itertools.pairwise(cuts):
        path = os.fspath(work / f"{number}-{start}-{stop}.parquet")
        span = replace(bare, source=part.rows(start, stop))
        found.append(Unit(f"{place.name}#{start}-{stop}", span, path, f"{path}.bad", folder, may_be_empty))
    return found


def _cuts(task: Task, part: ParquetCollection) -> list[int]:
    """Where spans begin and end: behind a row group of the source, at a row group of the output.

    Row groups of the output begin at multiples of their size where no row is left out, so those of a span are those of the whole.
    """
    dim, dtype = task.translation.target.dim, np.dtype(task.options.dtype)
    group_rows = rows_of_group(dim, dtype)
    least = max(group_rows, _SPAN_BYTES // (dim * dtype.itemsize))
    cuts = [0]
    for start in part.row_group_starts():
        cut = -(-start // group_rows) * group_rows
        if cut - cuts[-1] >= least and len(part) - cut >= group_rows:
            cuts.append(cut)
    return [*cuts, len(part)]


def _is_known(unit: Unit, known: Mapping[str, str]) -> bool:
    """True for a span that an earlier run has finished."""
    if unit.name not in known or "#" not in unit.name or not os.path.isfile(unit.target):
        return False
    if fingerprint(unit.target) != known[unit.name]:
        raise InterruptedOutputError.altered(unit.target, "it does not match its fingerprint")
    return True


def _join(task: Task, place: Place, spans: Sequence[Unit], reused: int) -> tuple[Conversion, str]:
    """Join the spans of a file: their row groups one after the other are those of a conversion in one piece, byte for byte."""
    started, part = time.perf_counter(), replace(task, source=place.part)
    Path(place.bad).unlink(missing_ok=True)
    with whole_or_absent(place.target) as temporary, open(temporary, "wb", buffering=0) as file:
        writer = open_writer(part, file)
        for span in spans:
            writer.append_file(span.target)
        writer.close()
        if writer.rows != len(place.part):
            raise OutputError(f"{place.target!r} has {writer.rows:,} rows instead of {len(place.part):,}.")
    for span in spans:
        os.unlink(span.target)
    mark = fingerprint(place.target)
    return part.result(place.target, writer.rows, 0, time.perf_counter() - started, mark, reused), mark
