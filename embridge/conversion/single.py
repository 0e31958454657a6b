"""One collection into one local file: journalled, checked, and only then given its name."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embridge.conversion.engine import Engine, Precision
from embridge.conversion.journal import Entry, Journal, bad_rows_of, discard, open_journal, partial_path, rows_done
from embridge.conversion.schedule import schedule
from embridge.conversion.stream import Bad, Group, OnBad, row_groups, translate_groups
from embridge.conversion.verify import check_sample
from embridge.device import free_memory
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    DiskFullError,
    EmbridgeError,
    InterruptedOutputError,
    SpaceMismatchError,
)
from embridge.files import fingerprint
from embridge.maps import LinearMap
from embridge.records import Conversion
from embridge.stores import Collection
from embridge.stores.tables import write_bad_rows
from embridge.stores.writer import CollectionWriter
from embridge.types import Metric

Progress = Callable[[int, int], None]


def check_map(translation: LinearMap, source: Collection) -> None:
    """Refuse a map that does not start in the space of the collection.

    Raises
    ------
    SpaceMismatchError
    """
    if not translation.source.same_as(source.space):
        raise SpaceMismatchError.between("The map", translation.source, source.name, source.space)


def convert_file(
    source: Collection,
    translation: LinearMap,
    target: Path,
    *,
    devices: list[torch.device],
    dtype: str,
    compact: bool,
    precision: Precision,
    on_bad: OnBad,
    overwrite: bool,
    resume: bool,
    batch_rows: int | None,
    progress: Progress | None,
) -> Conversion:
    """Convert into one local file whose name was checked; see `convert`."""
    started = time.perf_counter()
    origin = source.fingerprint()
    plan: dict[str, Any] = {
        "format": "embridge.convert.1",
        "source": origin,
        "rows": len(source),
        "map": translation.fingerprint,
        "columns": [source.id_column, source.vector_column],
        "dtype": dtype,
        "compact": compact,
        "precision": precision,
        "device": devices[0].type,
    }
    check_room(source, translation, target, dtype)
    try:
        with open_journal(target, plan, resume=resume, overwrite=overwrite) as journal:
            bad = _write_groups(source, translation, journal, devices, plan, on_bad, batch_rows, progress)
            rows = check_sample(partial_path(target), source, translation, [b[0] for b in bad], precision=precision)
            if bad:
                write_bad_rows(f"{target}.bad.parquet", bad)
            journal.finish()
    except InterruptedOutputError:  # what is there is another run's
        raise
    except EmbridgeError as e:
        if not (kept := rows_done(target)):
            discard(target)
            raise
        if not isinstance(e, BadVectorsError | BadIdsError):
            raise
        hint = f"{kept:,} rows are done and kept: --resume --on-bad skip goes on without bad ones, --overwrite starts anew."
        raise type(e)(f"{e} {hint}") from e
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        raise DiskFullError.during(str(target), rows_done(target)) from e
    seconds = time.perf_counter() - started
    place = "+".join(str(device) for device in devices)
    return Conversion(str(target), rows, seconds, place, origin, translation.fingerprint, fingerprint(target), len(bad))


def _write_groups(
    source: Collection,
    translation: LinearMap,
    journal: Journal,
    devices: list[torch.device],
    plan: dict[str, Any],
    on_bad: OnBad,
    batch_rows: int | None,
    progress: Progress | None,
) -> list[Bad]:
    """Write every row group that the journal does not hold yet, and the footer; the rows left out."""
    writer = CollectionWriter(
        journal.file,
        translation.target,
        source.id_type,
        source.payload_schema,
        columns=(source.id_column, source.vector_column),
        lineage={"source": plan["source"], "map": plan["map"]},
        dtype=plan["dtype"],
        compact=plan["compact"],
        groups=[entry.group for entry in journal.entries],
    )
    held = schedule(
        free_bytes=free_memory(),
        group_rows=writer.group_rows,
        dim_source=source.space.dim,
        dim_target=translation.target.dim,
        itemsize=writer.dtype.itemsize,
        devices=len(devices),
        cuda_bytes=min(free_memory(device) for device in devices) if devices[0].type == "cuda" else 0,
    )
    engines = [Engine(translation, device, held.chunk_rows, precision=plan["precision"]) for device in devices]
    group_rows = min(writer.group_rows, len(source))
    buffers = [np.empty((group_rows, translation.target.dim), writer.dtype) for _ in range(held.buffers)]
    bad = bad_rows_of(journal.entries)
    start = journal.entries[-1].read if journal.entries else 0

    def write(group: Group, vectors: np.ndarray) -> None:
        bad.extend(group.bad)
        if group.rows:
            metadata = writer.append(group.parts, vectors)
            journal.add(Entry(group.read, journal.file.tell(), metadata, group.bad))
        if progress is not None:
            progress(group.read, len(source))

    groups = row_groups(source, writer.group_rows, batch_rows or held.batch_rows, start=start, on_bad=on_bad)
    zero_is_bad = translation.target.metric == Metric.COSINE
    translate_groups(groups, engines, buffers, write, source.name, zero_is_bad=zero_is_bad)
    if not writer.rows:
        raise BadVectorsError(f"{source.name} has {len(source):,} rows, and none of them can be translated.")
    writer.close()
    return bad


def check_room(source: Collection, translation: LinearMap, target: Path, dtype: str) -> None:
    """Refuse an output that the disk has no room for.

    Raises
    ------
    DiskFullError
    """
    needed = len(source) * translation.target.dim * np.dtype(dtype).itemsize
    there = partial_path(target)
    free = os.statvfs(target.parent)
    room = free.f_bavail * free.f_frsize + (there.stat().st_size if there.exists() else 0)
    if needed > room:
        raise DiskFullError.before(str(target), needed, room)
