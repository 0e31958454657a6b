"""Convert one collection into one local file, with a journal; the file gets its name after it was checked."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from embridge.attempts import remove_work
from embridge.conversion.journal import Journal, bad_rows_of, discard, open_journal, rows_done
from embridge.conversion.log import partial_path
from embridge.conversion.pipeline import Bad, Group, translate_rows
from embridge.conversion.task import Task
from embridge.conversion.verify import Sample, check_sample
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    DiskFullError,
    InterruptedOutputError,
    MissingFileError,
    OutputError,
    OutputExistsError,
    n_rows,
)
from embridge.files import fingerprint, writing
from embridge.records import Conversion
from embridge.stores import Batch
from embridge.stores.parquet.collection import OLD_COLUMN
from embridge.stores.parquet.thrift import Struct
from embridge.stores.parquet.writer import CollectionWriter
from embridge.tables.rejected import is_bad_rows, write_bad_rows


def convert_file(task: Task, target: Path, *, bad_path: Path | None = None, may_be_empty: bool = False) -> Conversion:
    """Convert into one local file that the caller has claimed.

    Parameters
    ----------
    task : Task
    target : Path
    bad_path : Path, optional
        Where rows that are left out are listed. Default: ``OUT.bad.parquet``.
    may_be_empty : bool, default False
        The output may have no rows.
    """
    side = bad_rows_path(target) if bad_path is None else bad_path
    check_bad_rows(side)
    check_room(task, target)
    try:
        return make_file(task, target, side, may_be_empty=may_be_empty)
    except (BadVectorsError, BadIdsError) as e:
        if not (kept := rows_done(target)):
            raise
        hint = f"{kept:,} rows are done and kept: --resume --on-bad skip continues without bad ones, --overwrite starts again."
        raise type(e)(f"{e} {hint}") from e
    except DiskFullError as e:
        raise DiskFullError(
            f"The disk of {str(target)!r} is full; {n_rows(rows_done(target))} are done and kept. "
            "Hint: free some and run again with --resume."
        ) from e


def make_file(task: Task, target: Path, side: Path, *, may_be_empty: bool) -> Conversion:
    """`convert_file` into a place with room, with the list of bad rows at `side`; its errors do not say what is kept."""
    started = time.perf_counter()
    with writing(target), open_journal(target, task.plan, resume=task.resume, overwrite=task.overwrite) as journal:
        reused = journal.entries[-1].read if journal.entries else 0
        sample = Sample()
        bad = _write_groups(task, journal, sample)
        rows = len(task.source) - len(bad)
        if rows:
            _check_sample(task, partial_path(target), rows, sample)
        elif not may_be_empty:
            raise BadVectorsError.none_left(task.source.name, len(task.source))
        task.check_source()
        if bad:
            write_bad_rows(side, bad)
        else:  # a list of an earlier output would be mistaken for this one's
            side.unlink(missing_ok=True)
        journal.finish()
    return task.result(str(target), rows, len(bad), time.perf_counter() - started, fingerprint(target), reused)


def finished_file(task: Task, target: Path) -> Conversion | None:
    """The result of an earlier finished run of the same task; files that an interruption left beside it are removed."""
    found = task.already_done(target) if target.exists() else None
    if found is not None:
        discard(target)
        remove_work(target)
        if not found.skipped and is_bad_rows(bad_rows_path(target)):
            bad_rows_path(target).unlink()
    return found


def known_file(task: Task, path: Path, bad_path: Path, name: str, known: Mapping[str, str]) -> Conversion | None:
    """The result of a file of the output that a journal names as finished, with its mark; else None.

    Raises
    ------
    InterruptedOutputError
        It was altered since.
    """
    if name not in known or not os.path.lexists(path):
        return None
    if mark_of(path, bad_path) != known[name]:
        raise InterruptedOutputError.altered(str(path), "it, or its list of bad rows, does not match its fingerprint")
    return finished_file(task, path)


def mark_of(path: Path, bad_path: Path) -> str:
    """Fingerprint of a finished file and its list of bad rows."""
    return fingerprint(*(p for p in (path, bad_path) if os.path.isfile(p) and not os.path.islink(p)))


def bad_rows_path(target: Path) -> Path:
    """Where rows that were left out are listed."""
    return target.with_name(f"{target.name}.bad.parquet")


def check_bad_rows(path: Path) -> None:
    """Refuse to replace a file that has the name of the list of bad rows but is not one.

    Raises
    ------
    OutputExistsError
    """
    if os.path.lexists(path) and not is_bad_rows(path):
        raise OutputExistsError(f"{str(path)!r} is not a list of bad rows, so it is not replaced. Hint: move it away.")


def _write_groups(task: Task, journal: Journal, sample: Sample) -> list[Bad]:
    """Write every row group that is not yet in the journal, and the footer; returns the rows left out."""
    source = task.source
    writer = open_writer(task, journal.file, [entry.group for entry in journal.entries])
    bad = bad_rows_of(journal.entries)
    last = journal.entries[-1] if journal.entries else None

    def write(group: Group, vectors: np.ndarray) -> None:
        bad.extend(group.bad)
        if group.rows:
            sample.offer(writer.rows, group.parts[0])
            parts = [with_old(part, task) for part in group.parts] if task.keep_old else group.parts
            metadata = writer.append(parts, vectors, group.errors)
            journal.add(group.read, metadata, group.bad, group.parts[-1].ids[-1].as_py() if source.seeks else None)
        if task.progress is not None:
            task.progress(group.read, len(source))

    translate_rows(task, writer.group_rows, write, start=last.read if last else 0, after=last.after if last else None)
    writer.close()
    return bad


def open_writer(task: Task, file: io.FileIO, groups: Sequence[Struct] = ()) -> CollectionWriter:
    """The writer of the output, at the end of the row groups `groups`."""
    source = task.source
    return CollectionWriter(
        file,
        task.translation.target,
        source.id_type,
        payload_schema(task),
        columns=(source.id_column, source.vector_column),
        lineage=task.lineage,
        dtype=task.options.dtype,
        compact=task.compact,
        groups=groups,
        confidence=task.confidence,
        metadata=source.metadata,
        payload_spaces=task.payload_spaces,
    )


def payload_schema(task: Task) -> pa.Schema:
    """The columns of the output beside ids and translated vectors: those of the source, and with `keep_old` its vectors."""
    schema = task.source.payload_schema
    if not task.keep_old:
        return schema
    element = pa.field("element", pa.from_numpy_dtype(np.dtype(task.source.vector_type)), nullable=False)
    return schema.append(pa.field(OLD_COLUMN, pa.list_(element, task.source.stated_space.dim), nullable=False))


def with_old(part: Batch, task: Task) -> Batch:
    """The rows of the source with their vectors as one more column of the payload."""
    field = payload_schema(task).field(OLD_COLUMN)
    values = np.ascontiguousarray(part.vectors, np.dtype(task.source.vector_type))
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=field.type)
    return replace(part, payload=pa.record_batch([*part.payload.columns, column], schema=payload_schema(task)))


def _check_sample(task: Task, path: Path, rows: int, sample: Sample) -> None:
    options = task.options
    try:
        check_sample(
            path, rows, sample, task.translation, precision=options.precision, coverage=options.confidence, keep_old=task.keep_old
        )
    except MissingFileError as e:
        raise OutputError(f"{str(path)!r} cannot be written: the file or its folder was removed.") from e


def check_room(task: Task, target: Path) -> None:
    """Refuse an output that the disk has no room for.

    Raises
    ------
    DiskFullError
    """
    row_bytes = task.translation.target.dim * np.dtype(task.options.dtype).itemsize
    row_bytes += task.source.stated_space.dim * np.dtype(task.source.vector_type).itemsize if task.keep_old else 0
    required = len(task.source) * row_bytes
    there = partial_path(target)
    free = os.statvfs(target.parent)
    room = free.f_bavail * free.f_frsize + (there.stat().st_size if there.is_file() else 0)
    if required > room:
        raise DiskFullError(
            f"{str(target)!r} needs about {required / 1e9:.2f} GB, but {room / 1e9:.2f} GB are free there. "
            "Hint: free some, write elsewhere, or halve it with --dtype float16."
        )
