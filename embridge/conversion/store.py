"""Convert into a collection of a store, in batches; the store keeps the id of the last row, after which a later run continues."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from embridge.conversion.file import payload_schema, with_old
from embridge.conversion.pipeline import Group, translate_rows
from embridge.conversion.task import Task
from embridge.errors import (
    BadVectorsError,
    ChangedSourceError,
    EmbridgeError,
    InterruptedOutputError,
    MissingFileError,
    OutputExistsError,
    VerificationError,
)
from embridge.outputs import locked
from embridge.records import Conversion
from embridge.stores import Batch, Collection, open_collection
from embridge.stores.ids import check_unique
from embridge.stores.memory import empty_payload
from embridge.stores.parquet.collection import ERROR_COLUMNS
from embridge.stores.parquet.writer import rows_of_group
from embridge.stores.registry import store_of
from embridge.stores.store import Cursor, Layout, Note, Store, Writer
from embridge.stores.uri import Location

_LOG = logging.getLogger("embridge")


def convert_store(task: Task, uri: str) -> Conversion:
    """Convert into the collection that a URI names.

    It cannot be opened before it is finished. A run that was interrupted continues after the last id that the store has safely.

    Raises
    ------
    OutputExistsError, InterruptedOutputError
        The collection exists; it is unfinished, and of another run; embridge did not write it, and does not replace it; or another
        run on this machine (PostgreSQL: on any) is writing it.
    CollectionError, BadIdsError, ParameterError
        The store cannot hold it; nothing is written.
    """
    store, location = store_of(uri), Location.parse(uri)
    assert store is not None  # noqa: S101 (the caller looked)
    with _alone(location):
        return _convert(task, store, location)


def _convert(task: Task, store: Store, location: Location) -> Conversion:
    started, uri = time.perf_counter(), location.uri
    layout = _layout(task, location)
    store.check(location, layout)
    if not store.capabilities(layout.space.metric).keeps_lengths and not layout.space.normalized:
        _LOG.warning("%s scales vectors to unit length under %s: their lengths are not kept.", location.uri, layout.space.metric)
    plan = hashlib.blake2b(json.dumps([task.plan, layout.note(None)]).encode(), digest_size=16).hexdigest()
    layout = replace(layout, plan=plan)
    target = _target(task, store, location, layout)
    if target is None:
        rows = len(open_collection(uri))
        return _result(task, location, rows, len(task.source) - rows, started, len(task.source))
    check_unique(task.source)
    is_there, note = _find(store, target)
    cursor = None if note is None else note.cursor
    if cursor is None or cursor.after is None or not task.resume or cursor.plan != plan:
        cursor = Cursor(plan)
        if is_there:
            store.drop(target)
    done = _write(task, store, target, replace(layout, cursor=cursor))
    if target != location:
        store.replace(location, target)
    return _result(task, location, done.written, done.skipped, started, cursor.written + cursor.skipped)


def _alone(location: Location) -> AbstractContextManager[None]:
    """A lock of this machine for the collection: servers do not refuse a second writer, and would mix the rows of both."""
    path = location.path if location.host else os.path.realpath(location.path)
    place = [location.scheme, location.host, location.port, path, location.part]
    place += [location.options.get(name) for name in ("schema", "table", "tenant", "database")]
    name = hashlib.blake2b(json.dumps(place).encode(), digest_size=16).hexdigest()
    return locked(Path(tempfile.gettempdir()) / f"embridge-{os.getuid()}-{name}", location.uri)


def _write(task: Task, store: Store, location: Location, layout: Layout) -> Cursor:
    """Write all rows behind the cursor of the layout; how many there are then."""
    cursor = layout.cursor or Cursor(layout.plan)
    open_writer = store.create if cursor.after is None else store.resume
    group_rows = rows_of_group(layout.space.dim, np.dtype(layout.dtype))
    largest = store.capabilities(layout.space.metric).largest_batch or group_rows
    sink = None
    try:
        with contextlib.closing(open_writer(location, layout)) as writer:
            sink = _Sink(task, writer, layout, cursor)
            start = cursor.written + cursor.skipped
            translate_rows(task, min(group_rows, largest), sink.write, start=start, after=cursor.after)
            done = sink.cursor
            if not done.written:
                raise BadVectorsError.none_left(task.source.name, len(task.source))
            task.check_source()
            writer.finish(layout.note(None))
    except EmbridgeError as e:
        # Nothing to continue: no rows, or of a source that no later run can read.
        if sink is not None and (sink.cursor.after is None or isinstance(e, ChangedSourceError)):
            store.drop(location)
        raise
    if (rows := len(open_collection(location.uri))) != done.written:
        raise VerificationError(f"{location.uri!r} has {rows:,} rows, but {done.written:,} were written.")
    return done


def _target(task: Task, store: Store, location: Location, layout: Layout) -> Location | None:
    """Where rows are written: at `location`, or beside a finished collection until the new one replaces it; None if all is done.

    Raises
    ------
    OutputExistsError, InterruptedOutputError
    """
    is_there, note = _find(store, location)
    if is_there and store.places(location) & _places(task.source):
        raise OutputExistsError.is_input(location.uri)
    if is_there and note is None:
        raise OutputExistsError(f"{location.uri!r} was not written by embridge, so it is not replaced. Hint: give another name.")
    beside, waits, new = None, False, None
    if (task.overwrite or task.resume) and (note is None or note.cursor is None):
        with contextlib.suppress(MissingFileError):  # no folder or schema, and nothing to replace
            beside = store.beside(location)
            waits, new = _find(store, beside)
    if beside is not None and new is not None and new.plan == layout.plan:  # finished by a run that did not come to the exchange
        store.replace(location, beside)
        return None
    if note is None or note.cursor is not None:
        _check_existing(task, location, note, layout.plan)
        return location
    is_known = note.plan == layout.plan if note.plan else note.lineage == layout.lineage
    if task.resume and not task.overwrite and is_known:
        return None
    continues = task.resume and new is not None and new.cursor is not None and new.cursor.plan == layout.plan
    if beside is None or not (task.overwrite or continues):
        raise OutputExistsError.at(location.uri)
    if waits and (new is None or new.cursor is None):
        raise OutputExistsError(
            f"What replaces {location.uri!r} is written to {beside.uri!r} first, and that exists. Hint: rename or remove it."
        )
    return beside


def _layout(task: Task, location: Location) -> Layout:
    """What the collection holds."""
    source = task.source
    errors = [pa.field(name, pa.float32(), nullable=False) for name in ERROR_COLUMNS if task.options.confidence is not None]
    payload = pa.schema([*(field.remove_metadata() for field in payload_schema(task)), *errors])
    columns, spaces = (source.id_column, source.vector_column), task.payload_spaces
    found = Layout(task.translation.target, source.id_type, payload, *columns, task.options.dtype, spaces, task.lineage)
    return found.named(location)


def _places(source: Collection) -> set[str]:
    """What a source is kept in, as `Store.places` names it."""
    files = {os.path.realpath(path) for path in source.files}
    store = None if source.path is None else store_of(source.path)
    return files if store is None or source.path is None else files | store.places(Location.parse(source.path))


def _find(store: Store, location: Location) -> tuple[bool, Note | None]:
    """Whether there is a collection, and its note."""
    try:
        return True, store.note(location)
    except MissingFileError:
        return False, None


def _check_existing(task: Task, location: Location, note: Note | None, plan: str) -> None:
    """Refuse a finished collection, or an unfinished one of another run, without `overwrite` or `resume`."""
    if note is None or task.overwrite:
        return
    if note.cursor is None:
        raise OutputExistsError.at(location.uri)
    if not task.resume:
        raise InterruptedOutputError(
            f"An interrupted run left {location.uri!r} unfinished ({note.cursor.written:,} rows written). "
            "Hint: --resume continues it, --overwrite starts again."
        )
    if note.cursor.plan != plan:
        raise InterruptedOutputError(
            f"The unfinished {location.uri!r} was started with other inputs or options. "
            "Hint: repeat that run to finish it, or use --overwrite to start again."
        )


class _Sink:
    """Writes groups, and counts rows from a cursor on."""

    def __init__(self, task: Task, writer: Writer, layout: Layout, cursor: Cursor) -> None:
        self._task, self._writer, self._layout, self.cursor = task, writer, layout, cursor

    def write(self, group: Group, vectors: np.ndarray) -> None:
        """Write a group, with the cursor behind its last row."""
        skipped = self.cursor.skipped + len(group.bad)
        if group.rows:
            batch = _batch(self._task, group, vectors, self._layout)
            after, written = batch.ids[-1].as_py(), self.cursor.written + len(batch)
            cursor = replace(self.cursor, after=after, written=written, skipped=skipped)
            self._writer.write(batch, self._layout.note(cursor))
            self.cursor = cursor
        else:
            self.cursor = replace(self.cursor, skipped=skipped)
        if self._task.progress is not None:
            self._task.progress(group.read, len(self._task.source))


def _batch(task: Task, group: Group, vectors: np.ndarray, layout: Layout) -> Batch:
    """The rows of a group as one batch with the payload of the layout."""
    ids = pa.chunked_array([part.ids for part in group.parts]).combine_chunks()
    parts = [with_old(part, task) for part in group.parts] if task.keep_old else group.parts
    tables = [pa.Table.from_batches([part.payload]) for part in parts]
    payload = pa.concat_tables(tables).combine_chunks()
    columns = [column.chunk(0) for column in payload.columns]
    columns += [] if group.errors is None else [pa.array(values) for values in group.errors]
    if not columns:
        return Batch(0, ids, vectors, empty_payload(len(ids)))
    return Batch(0, ids, vectors, pa.record_batch(columns, schema=layout.payload_schema))


def _result(task: Task, location: Location, rows: int, skipped: int, started: float, reused: int) -> Conversion:
    mark = open_collection(location.uri).fingerprint()
    return task.result(location.uri, rows, skipped, time.perf_counter() - started, mark, reused)
