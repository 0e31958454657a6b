"""The plan of a migration in place: what is checked before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from embridge.conversion.engine import Precision, TranslateOptions
from embridge.conversion.task import OnBad, Progress, Task
from embridge.errors import CollectionError, InterruptedOutputError, OutputExistsError, ParameterError
from embridge.maps import Map
from embridge.stores import Collection, open_collection
from embridge.stores.in_place import InPlace, MigrationNote, Mode
from embridge.stores.parquet import writer
from embridge.stores.registry import store_of
from embridge.stores.store import Cursor, Store
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Metric, Space


@dataclass(frozen=True)
class InPlaceOptions:
    """The options of `migrate_in_place`, which explains them."""

    mode: str | None = None
    into: str | None = None
    metric: Metric | str | None = None
    space: Space | DeclaredSpace | str | None = None
    id_column: str | None = None
    vector_column: str | None = None
    dtype: str | None = None
    mark_changed: bool = False
    on_bad: OnBad = "stop"
    device: str | None = None
    precision: Precision = "float32"
    batch_rows: int | None = None


@contextmanager
def opened(uri: str, vector_column: str | None = None) -> Iterator[tuple[Store, Location, InPlace]]:
    """The store of a collection, and its side of a migration in place of one of its vectors.

    Raises
    ------
    ParameterError
        It is a file, or a store that has no migrations in place.
    """
    store = store_of(uri)
    if store is None:
        raise ParameterError(
            f"{uri!r} is a file, which is not changed in place. "
            "Hint: embridge convert (for a collection), or embridge migrate (for an index), writes a new one."
        )
    location = Location.parse(uri)
    if vector_column is not None:
        location = replace(location, options=location.options | {"vector": location.column("vector", vector_column, "")})
    with closing(store.in_place(location)) as change:
        yield store, location, change


def new_note(
    store: Store, location: Location, change: InPlace, source: Collection, translation: Map, options: InPlaceOptions
) -> MigrationNote:
    """The note of a migration that begins.

    Raises
    ------
    ParameterError
        The store has no such mode, type or metric.
    """
    old = source.space
    metric = Metric(options.metric) if options.metric is not None else old.metric
    held = store.capabilities(metric)
    mode = _mode(location, held.in_place_modes, options.mode)
    if metric not in held.metrics:
        raise ParameterError(f"{location.uri!r} has no metric {metric}. Metrics: {', '.join(held.metrics)}.")
    if options.mark_changed and not held.marks_changed:
        raise ParameterError(
            f"{location.uri!r} cannot mark rows whose vector changes. "
            "Hint: pause writes to existing rows from the start to the cutover."
        )
    dtype = options.dtype or (source.vector_type if source.vector_type in held.dtypes else "float32")
    if dtype not in held.dtypes:
        raise ParameterError(f"{location.uri!r} holds vectors of {' or '.join(held.dtypes)}, not of {dtype}.")
    target = translation.target
    new = Space(target.name, target.dim, metric, target.normalized or not held.keeps_lengths)
    name, into, aside = change.names(mode, source.vector_column, options.into)
    if len({name, into, aside}) < 3:
        raise ParameterError.must_be("into", f"another name than {name!r} and {aside!r}", into)
    note = MigrationNote(
        mode,
        "filling",
        old,
        new,
        source.id_column,
        name,
        into,
        aside,
        translation.fingerprint,
        dtype,
        Cursor(""),
        options.mark_changed,
    )
    return replace(note, cursor=Cursor(_plan(note, options.precision)))


def _mode(location: Location, modes: tuple[str, ...], asked: str | None) -> Mode:
    if not modes:
        raise ParameterError(f"{location.uri!r} cannot be migrated in place. Hint: convert it into a new collection.")
    if asked is not None and asked not in modes:
        why = {
            "column": "its rows have one vector only",
            "shadow": "its rows take a second vector, which keeps keys, constraints and other columns as they are",
        }.get(asked, "there is no such mode")
        raise ParameterError(f"{location.uri!r} cannot be migrated with --mode {asked}: {why}. Hint: --mode {modes[0]}.")
    return asked or modes[0]  # type: ignore[return-value]


def _plan(note: MigrationNote, precision: str) -> str:
    """The fingerprint of all that determines the new vectors."""
    values = [note.map, note.mode, note.new.to_dict(), note.id_column, note.name, note.into, note.dtype, precision]
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()


def check_found(found: MigrationNote | None, wanted: MigrationNote, uri: str, *, resume: bool) -> MigrationNote:
    """The note to go on with: the one that was found, where this run may continue it, else the one of the new migration.

    Raises
    ------
    OutputExistsError
        The cutover was done.
    InterruptedOutputError
        A migration is under way, and this run does not resume it, or has another map or other options.
    """
    if found is None or found.stage == "finished":
        return wanted
    if found.stage == "live":
        raise OutputExistsError(
            f"{uri!r} was cut over to {found.new.name!r}, and the old vectors are kept in {found.old_name!r}. "
            "Hint: embridge rollback, or embridge drop-vector URI old, then migrate."
        )
    if not resume:
        raise InterruptedOutputError(
            f"{uri!r} has a migration to {found.new.name!r} ({found.cursor.written:,} rows written, {found.stage}). "
            "Hint: --resume continues it; embridge drop-vector URI new removes it."
        )
    if found.cursor.plan != wanted.cursor.plan:
        what = f"with the map {found.map}, not {wanted.map}" if found.map != wanted.map else "with other options"
        raise InterruptedOutputError(
            f"The migration of {uri!r} to {found.new.name!r} was started {what}. "
            "Hint: repeat that run with --resume, or remove it: embridge drop-vector URI new."
        )
    return replace(found, marks_changed=found.marks_changed or wanted.marks_changed)


def task_of(source: Collection, translation: Map, note: MigrationNote, options: InPlaceOptions, progress: Progress | None) -> Task:
    """The translation of rows of a collection.

    Raises
    ------
    SpaceMismatchError
        The map starts in another space, or was fitted on lengths that the store does not keep.
    """
    translate = TranslateOptions(note.dtype, options.precision, None, options.device)
    rest = {"compact": False, "keep_old": False, "overwrite": False, "resume": False, "progress": progress}
    return Task.of(source, translation, translate, on_bad=options.on_bad, batch_rows=options.batch_rows, **rest)


def rows_of(change: InPlace, note: MigrationNote, uri: str) -> Collection:
    """All rows with an old vector.

    Raises
    ------
    CollectionError
        There are none.
    """
    found = change.old_rows(note)
    if found is None:
        raise CollectionError(f"{uri!r} has no row with a vector in {note.old_name!r}, so there is nothing to migrate.")
    return found


def rows_of_group(dim: int, dtype: np.dtype) -> int:
    """Rows of one write: 4 MiB of vectors, so that reading and translating overlap with writing in small collections too."""
    return max(1, writer.rows_of_group(dim, dtype) // 4)


def open_old(uri: str, options: InPlaceOptions) -> Collection:
    """The collection as it is before the migration."""
    return open_collection(uri, space=options.space, id_column=options.id_column, vector_column=options.vector_column)
