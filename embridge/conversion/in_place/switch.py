"""Put the new vectors of a migration in place into use, take them back, and remove one side."""

from __future__ import annotations

import time

from embridge.conversion.in_place.plan import opened
from embridge.errors import CollectionError, ParameterError, n_rows
from embridge.records.in_place import Swap
from embridge.stores.in_place import InPlace, MigrationNote
from embridge.stores.uri import without_password


def cutover(uri: str) -> Swap:
    """Put the new vectors of a collection into use: applications that name its vectors read the new ones from now on.

    The old vectors are kept, and `rollback` puts them back into use.

    Parameters
    ----------
    uri : str
        A collection that `migrate_in_place` has made ready.

    Returns
    -------
    Swap

    Raises
    ------
    CollectionError
        There is no migration, it is unfinished, or rows have no new vector yet. Nothing is changed.
    """
    started, uri = time.perf_counter(), without_password(uri)
    with opened(uri) as (_, _, change):
        note = _note(change, uri)
        if note.stage == "filling":
            raise CollectionError(
                f"The migration of {uri!r} to {note.new.name!r} is unfinished: {n_rows(note.cursor.written)} are written. "
                "Hint: repeat embridge migrate with --resume."
            )
        missing = 0
        if note.stage == "ready":
            missing, bad = count_missing(change, note)
            if missing > bad:
                raise CollectionError(
                    f"{uri!r} has {n_rows(missing - bad)} without a new vector, which were added or changed since they were "
                    "translated. Hint: embridge migrate with --resume translates them."
                )
        remarks = change.swap(note.at("live"), missing=missing)
    if missing:
        remarks = [f"{n_rows(missing)} have no new vector, since the old one cannot be translated.", *remarks]
    return Swap(uri, "live", note.new, tuple(remarks), time.perf_counter() - started)


def rollback(uri: str) -> Swap:
    """Put the old vectors of a collection back into use. The new ones are kept, and `cutover` puts them into use again.

    Parameters
    ----------
    uri : str
        A collection after `cutover`.

    Returns
    -------
    Swap

    Raises
    ------
    CollectionError
        There was no cutover, or the old vectors were removed.
    """
    started, uri = time.perf_counter(), without_password(uri)
    with opened(uri) as (_, _, change):
        note = _note(change, uri)
        if note.stage == "filling":
            raise CollectionError(f"{uri!r} was not cut over to {note.new.name!r}; the old vectors are in use.")
        remarks = change.swap(note.at("ready"))
    return Swap(uri, "ready", note.old, tuple(remarks), time.perf_counter() - started)


def drop_vector(uri: str, side: str) -> Swap:
    """Remove the vectors of a collection that are not in use, for good.

    Parameters
    ----------
    uri : str
        A collection with a migration in place.
    side : {"old", "new"}
        ``old`` after the cutover, which completes the migration; ``new`` before it, which abandons it.

    Returns
    -------
    Swap

    Raises
    ------
    CollectionError
        There is no migration, or these vectors are in use.
    """
    if side not in ("old", "new"):
        raise ParameterError.must_be("side", "old or new", side)
    started, uri = time.perf_counter(), without_password(uri)
    with opened(uri) as (_, _, change):
        note = _note(change, uri)
        if (side == "new") == note.is_live:
            hint = "embridge rollback" if note.is_live else "embridge cutover"
            raise CollectionError(f"The {side} vectors of {uri!r} are in use, so they are not removed. Hint: {hint} first.")
        change.drop(note)
    stage, space = ("finished", note.new) if note.is_live else ("none", note.old)
    return Swap(uri, stage, space, (), time.perf_counter() - started)


def _note(change: InPlace, uri: str) -> MigrationNote:
    note = change.note()
    if note is None:
        raise CollectionError(f"{uri!r} has no migration in place. Hint: embridge migrate URI MAP starts one.")
    if note.stage == "finished":
        raise CollectionError(f"The migration of {uri!r} to {note.new.name!r} is finished: the old vectors were removed.")
    return note


def count_missing(change: InPlace, note: MigrationNote) -> tuple[int, int]:
    """Rows without a new vector, and how many of them cannot have one."""
    source = change.old_rows(note, missing=True)
    if source is None:
        return 0, 0
    rows = bad = 0
    for batch in source.batches(validate=False):
        rows, bad = rows + len(batch), bad + len(source.unusable(batch))
    return rows, bad
