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
from embridge.conversion.journal import Entry, Journal, bad_rows_of, open_journal, partial_path, rows_done
from embridge.conversion.schedule import schedule
from embridge.conversion.stream import Bad, Group, OnBad, row_groups, translate_groups
from embridge.conversion.verify import Sample, check_sample
from embridge.device import free_memory
from embridge.errors import BadIdsError, BadVectorsError, DiskFullError, EmbridgeError
from embridge.feature_maps import Map
from embridge.files import fingerprint
from embridge.records import Conversion
from embridge.stores import Collection, ParquetCollection
from embridge.stores.tables import write_bad_rows
from embridge.stores.writer import CollectionWriter
from embridge.types import Metric

Progress = Callable[[int, int], None]


def plan_of(source: Collection, translation: Map, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that determines the bytes of an output."""
    return {
        "format": "embridge.convert.1",
        "source": options["origin"],
        "rows": len(source),
        "map": translation.fingerprint,
        "columns": [source.id_column, source.vector_column],
        "dtype": options["dtype"],
        "compact": options["compact"],
        "precision": options["precision"],
        "device": options["devices"][0].type,
        "confidence": confidence_of(translation, options["confidence"]),
    }


def confidence_of(translation: Map, coverage: float | None) -> dict[str, Any] | None:
    """What determines the columns of errors; the map's fingerprint does not."""
    if coverage is None or translation.confidence is None:
        return None
    return {"coverage": coverage, "fingerprint": translation.confidence.fingerprint}


def already_done(path: str | os.PathLike[str], source: Collection, translation: Map, options: dict[str, Any]) -> Conversion | None:
    """What a run that ended just before it could say so had made at `path`; None where that was made of something else."""
    try:
        found = ParquetCollection(path)
    except EmbridgeError:
        return None
    origin = options["origin"]
    if found.lineage != {"source": origin, "map": translation.fingerprint} or found.vector_type != options["dtype"]:
        return None
    if found.confidence != confidence_of(translation, options["confidence"]):
        return None
    device = str(options["devices"][0])
    skipped = len(source) - len(found)
    return Conversion(str(path), len(found), 0.0, device, origin, translation.fingerprint, found.fingerprint(), skipped)


def convert_file(
    source: Collection,
    translation: Map,
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
    origin: str,
    confidence: float | None,
    bad_path: Path | None = None,
    may_be_empty: bool = False,
) -> Conversion:
    """Convert into one local file whose name was checked; see `convert`.

    `origin` is the fingerprint of what is converted (a whole folder, of which `source` may be a file), `bad_path` where rows that
    are left out are listed (default: ``OUT.bad.parquet``); `may_be_empty` lets an output have no rows.
    """
    started = time.perf_counter()
    options = {"origin": origin, "devices": devices, "dtype": dtype, "compact": compact, "precision": precision}
    options["confidence"] = confidence
    plan = plan_of(source, translation, options)
    check_room(source, translation, target, dtype)
    side = Path(f"{target}.bad.parquet") if bad_path is None else bad_path
    try:
        with open_journal(target, plan, resume=resume, overwrite=overwrite) as journal:
            sample = Sample()
            bad = _write_groups(source, translation, journal, devices, plan, on_bad, batch_rows, sample, progress)
            rows = len(source) - len(bad)
            if rows:
                check_sample(partial_path(target), rows, sample, translation, precision=precision, coverage=confidence)
            elif not may_be_empty:
                raise BadVectorsError.none_left(source.name, len(source))
            if bad:
                write_bad_rows(side, bad)
            else:  # one of an earlier output of that name would speak of this one
                side.unlink(missing_ok=True)
            journal.finish()
    except (BadVectorsError, BadIdsError) as e:
        if not (kept := rows_done(target)):
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
    translation: Map,
    journal: Journal,
    devices: list[torch.device],
    plan: dict[str, Any],
    on_bad: OnBad,
    batch_rows: int | None,
    sample: Sample,
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
        confidence=plan["confidence"],
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
    told = {"precision": plan["precision"], "coverage": plan["confidence"] and plan["confidence"]["coverage"]}
    engines = [Engine(translation, device, held.chunk_rows, **told) for device in devices]
    group_rows = min(writer.group_rows, len(source))
    buffers = [np.empty((group_rows, translation.target.dim), writer.dtype) for _ in range(held.buffers)]
    bad = bad_rows_of(journal.entries)
    start = journal.entries[-1].read if journal.entries else 0

    def write(group: Group, vectors: np.ndarray) -> None:
        bad.extend(group.bad)
        if group.rows:
            sample.offer(writer.rows, group.parts[0])
            metadata = writer.append(group.parts, vectors, group.errors)
            journal.add(Entry(group.read, journal.file.tell(), metadata, group.bad))
        if progress is not None:
            progress(group.read, len(source))

    groups = row_groups(source, writer.group_rows, batch_rows or held.batch_rows, start=start, on_bad=on_bad)
    zero_is_bad = translation.target.metric == Metric.COSINE
    translate_groups(groups, engines, buffers, write, source.name, zero_is_bad=zero_is_bad)
    writer.close()
    return bad


def check_room(source: Collection, translation: Map, target: Path, dtype: str) -> None:
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
