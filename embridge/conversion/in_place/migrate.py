"""`migrate_in_place`: translate every row of a collection into a second vector beside the old one."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.conversion.batch import prepare
from embridge.conversion.in_place.plan import (
    InPlaceOptions,
    check_found,
    new_note,
    open_old,
    opened,
    rows_of,
    rows_of_group,
    task_of,
)
from embridge.conversion.pipeline import Group, translate_rows
from embridge.conversion.task import Progress, Task
from embridge.errors import BadVectorsError, CollectionError, n_rows
from embridge.maps import Map
from embridge.records.in_place import InPlaceMigration, MigrationPreview
from embridge.stores import Collection
from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.in_place import InPlace, MigrationNote, Preview
from embridge.stores.memory import empty_payload
from embridge.stores.uri import without_password

_PASSES = 3  # over rows that stay without a new vector although they can be translated, before this is an error
_SAMPLE = 2_000  # rows that an estimate reads and translates


def migrate_in_place(
    uri: str, translation: Map, *, resume: bool = False, progress: Progress | None = None, **options: Any
) -> InPlaceMigration:
    """Translate every row of a collection in a store into a second vector beside the old one, which stays in use.

    The new vectors come into use with `cutover`, and go out of use with `rollback`; the old ones are removed by `drop_vector` only.
    A run that was interrupted at any point leaves the collection as usable as it was, and continues with `resume`.

    Rows are read in the order of their ids and written in batches, each with a note of how far the migration is. Then rows that
    have no new vector, since they were added meanwhile, are translated until none is left, and an index is built over the new
    vectors with the settings of the old one.

    Parameters
    ----------
    uri : str
        A collection of a store that has migrations in place.
    translation : LinearMap or KernelMap
        From the space of the collection.
    resume : bool, default False
        Continue a migration with the same map and options. One that is ready takes in the rows that were added since.
    progress : callable, optional
        Called with (rows done, rows in all).
    mode : {"column", "shadow"}, optional
        A second vector of every row, or a shadow of the whole collection. Default: what the store has.
    into : str, optional
        Name of the new column, or of the shadow. Default: that of the old one with ``_new``.
    metric : Metric or str, optional
        Of the new vectors and their index. Default: that of the old ones, so that queries of applications stay as they are.
    space : Space, DeclaredSpace or str, optional
        Space of the old vectors, where the store does not name it.
    id_column, vector_column : str, optional
    dtype : {"float32", "float16"}, optional
        Of the new vectors. Default: that of the old ones.
    mark_changed : bool, default False
        Rows whose old vector changes lose their new one until the cutover, so that they are translated again (PostgreSQL: a
        trigger).
    on_bad : {"stop", "skip"}
        What to do about rows whose vector cannot be translated: stop, or leave them without a new vector.
    device, precision, batch_rows : optional
        As for `embridge.convert`.

    Returns
    -------
    InPlaceMigration

    Raises
    ------
    ParameterError, CollectionError, BadIdsError, OutputExistsError
        The store cannot do it: no such mode, a name that is taken, no permission, ids that are not unique. Nothing is written.
    SpaceMismatchError
        The map starts in another space, or was fitted on lengths that the store does not keep.
    InterruptedOutputError
        A migration is under way and `resume` is False, or it has another map or other options.
    BadVectorsError
        Rows that cannot be translated.
    """
    started, uri = time.perf_counter(), without_password(uri)
    chosen = InPlaceOptions(**options)
    with opened(uri, chosen.vector_column) as (store, location, change):
        source = open_old(uri, chosen)
        found = change.note()
        wanted = new_note(store, location, change, source, translation, chosen)
        note = check_found(found, wanted, uri, resume=resume)
        mark = source.fingerprint()
        del source  # it may hold a snapshot
        if note is wanted:
            change.check(note)
        task = task_of(rows_of(change, note, uri), translation, note, chosen, progress)
        held = store.capabilities(note.new.metric)
        change.start(note)
        sink = _Sink(change, note, task, held)
        remarks = sink.fill()
        rows, skipped = _count(change.new_rows(note)), _count(change.old_rows(note, missing=True))
        empty = change.without_vector(note)
    after = open_old(uri, chosen).fingerprint()
    return InPlaceMigration(
        uri, note.mode, "ready", note.into, note.old, note.new, rows, skipped, empty, time.perf_counter() - started,
        tuple(remarks), mark, note.map, after,
    )  # fmt: skip


class _Sink:
    """Writes groups of translated rows, and moves the cursor of the note behind them."""

    def __init__(self, change: InPlace, note: MigrationNote, task: Task, held: Capabilities) -> None:
        self._change, self.note, self._task, self._held = change, note, task, held
        self._is_first, self._found = True, 0

    def fill(self) -> list[str]:
        """Translate all rows, build the index, and translate what was added meanwhile."""
        if self.note.stage == "filling":
            self._translate(self._task.source, first=True)
            self._translate_missing()
            if not self.note.cursor.written:
                self._change.drop(self.note)
                raise BadVectorsError.none_left(self._task.source.name, len(self._task.source))
        self.note = self.note.at("ready")
        remarks = self._change.finish(self.note)
        self._translate_missing()
        if not self._held.finds_missing:
            remarks.append("Rows that are added from now on are not found: pause writes until the cutover.")
        if not self.note.marks_changed:
            hint = ", or use --mark-changed" if self._held.marks_changed else ""
            remarks.append(
                f"Changes of old vectors in rows that were translated are not noticed: pause them until the cutover{hint}."
            )
        return remarks

    def _translate(self, source: Collection, *, first: bool = False) -> None:
        """Translate the rows of a collection; those of the first pass move the cursor."""
        cursor = self.note.cursor
        self._is_first = first
        task = replace(self._task, source=source)
        start, after = (cursor.written + cursor.skipped, cursor.after) if first else (0, None)
        rows = rows_of_group(self.note.new.dim, np.dtype(self.note.dtype))
        translate_rows(task, min(rows, self._held.largest_batch or rows), self._write, start=start, after=after)

    def _translate_missing(self) -> None:
        """Translate rows without a new vector until none is left that can be.

        Raises
        ------
        CollectionError
            Rows stay without one, although they are written.
        """
        idle, name = 0, self._task.source.name
        while self._held.finds_missing and idle < _PASSES:
            source = self._change.old_rows(self.note, missing=True)
            if source is None:
                return
            before, self._found = self.note.cursor.written, 0
            self._translate(source)
            if not self._found:
                return
            idle = 0 if self.note.cursor.written > before else idle + 1
        if not idle:
            return
        raise CollectionError(
            f"{name} keeps {n_rows(self._found)} without a new vector, although they were written {_PASSES} times. "
            "Hint: a trigger or a row-level policy may prevent it."
        )

    def _write(self, group: Group, vectors: np.ndarray) -> None:
        if group.rows:
            batch = _batch(group, vectors)
            cursor, self._found = self.note.cursor, self._found + len(batch)
            after = batch.ids[-1].as_py() if self._is_first else cursor.after
            skipped = cursor.skipped + len(group.bad) if self._is_first else cursor.skipped
            note = replace(self.note, cursor=replace(cursor, after=after, written=cursor.written + len(batch), skipped=skipped))
            written = self._change.write(batch, note)
            # The note counted what was sent; rows that were deleted or changed meanwhile are counted when they are found again.
            self.note = replace(note, cursor=replace(note.cursor, written=cursor.written + written))
        if self._task.progress is not None and self._is_first:
            self._task.progress(min(group.read, len(self._task.source)), len(self._task.source))


def _batch(group: Group, vectors: np.ndarray) -> Batch:
    """The rows of a group as one batch."""
    ids = pa.concat_arrays([part.ids for part in group.parts])
    if not group.parts[0].payload.num_columns:
        return Batch(0, ids, vectors, empty_payload(len(ids)))
    table = pa.Table.from_batches([part.payload for part in group.parts]).combine_chunks()
    return Batch(0, ids, vectors, table.to_batches()[0])


def _count(rows: Collection | None) -> int:
    return 0 if rows is None else len(rows)


def preview_in_place(uri: str, translation: Map, *, resume: bool = False, **options: Any) -> MigrationPreview:
    """What `migrate_in_place` would do; nothing is written.

    Parameters
    ----------
    uri, translation, resume, **options
        As for `migrate_in_place`.

    Returns
    -------
    MigrationPreview
        Its time is estimated from the first 2,000 rows.

    Raises
    ------
    EmbridgeError
        As `migrate_in_place` would, before it writes.
    """
    uri, chosen = without_password(uri), InPlaceOptions(**options)
    with opened(uri, chosen.vector_column) as (store, location, change):
        wanted = new_note(store, location, change, open_old(uri, chosen), translation, chosen)
        note = check_found(change.note(), wanted, uri, resume=resume)
        is_new = note is wanted
        found = change.check(note) if is_new else Preview((f"Continue: {n_rows(note.cursor.written)} are written.",), 0)
        source = rows_of(change, note, uri) if is_new else change.old_rows(note, missing=True)
        rows = _count(source)
        seconds = 0.0 if source is None else _seconds(task_of(source, translation, note, chosen, None))
    return MigrationPreview(uri, note.mode, note.into, note.old, note.new, found.steps, rows, seconds, found.bytes)


def _seconds(task: Task) -> float:
    """Estimated time to read and translate all rows."""
    engine = prepare(task.translation, replace(task.options, device=str(task.devices[0])))  # type: ignore[arg-type]
    started, rows = time.perf_counter(), 0
    for batch in itertools.islice(task.source.batches(_SAMPLE, validate=False), 1):
        usable = np.delete(np.arange(len(batch)), list(task.source.unusable(batch)))
        out = np.empty((len(usable), task.translation.target.dim), task.options.dtype)
        if len(usable):
            engine.run([batch.vectors[usable]], out, None)
        rows += len(batch)
    return (time.perf_counter() - started) * len(task.source) / max(rows, 1)
