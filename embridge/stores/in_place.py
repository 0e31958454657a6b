"""The contract of migrations in place: a second vector of every row in the collection itself, or a shadow of the collection.

The engine, `embridge.conversion.in_place`, is written once: it reads old vectors, translates them, counts, continues and refuses. A
store supplies the steps that only it can do, as an `InPlace`, and states in its `Capabilities` which modes it has
(``in_place_modes``), whether it finds rows that have no new vector (``finds_missing``), and whether it can mark rows whose old
vector changes (``marks_changed``).

The life of a migration is the `stage` of its note:

``filling``
    `InPlace.start` made room. Rows are written in order; `cursor.after` is the id of the last one. The old vector is in use.
``ready``
    Every row that can be translated has a new vector, and `InPlace.finish` built the index. The old vector is in use.
``live``
    After `InPlace.swap`: the new vector is in use, and the old one is kept. A swap back leads to ``ready``.
``finished``
    `InPlace.drop` removed the old vector. The note still names the space. In ``filling`` and ``ready``, `drop` removes the new
    vector and the note.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from embridge.errors import CollectionError
from embridge.stores.base import Collection
from embridge.stores.batch import Batch
from embridge.stores.store import Cursor, Note, parse_note
from embridge.stores.uri import Location
from embridge.types import Space

Mode = Literal["column", "shadow"]
Stage = Literal["filling", "ready", "live", "finished"]
STAGES = ("filling", "ready", "live", "finished")


@dataclass(frozen=True)
class MigrationNote:
    """What a store keeps about the migration of a collection, as text.

    Attributes
    ----------
    mode : {"column", "shadow"}
        A second vector of every row, or a shadow of the whole collection.
    stage : {"filling", "ready", "live", "finished"}
    old, new : Space
    id_column : str
    name : str
        What applications use: the vector column, or in mode ``shadow`` the collection.
    into, aside : str
        The name of the new side before the cutover, and of the old side after it. An empty `aside` says that nothing is renamed:
        the old side is always `name`, the new one always `into`, and only the note says which is in use.
    map : str
        Fingerprint of the map.
    dtype : {"float32", "float16"}
        Of the new vectors.
    cursor : Cursor
        Its `plan` is the fingerprint of all that determines the new vectors.
    marks_changed : bool
        Rows whose old vector changes lose their new one, so that they are translated again.
    """

    mode: Mode
    stage: Stage
    old: Space
    new: Space
    id_column: str
    name: str
    into: str
    aside: str
    map: str
    dtype: str
    cursor: Cursor
    marks_changed: bool = False

    @property
    def old_name(self) -> str:
        """Where the old vectors are now."""
        return self.aside if self.is_live and self.aside else self.name

    @property
    def new_name(self) -> str:
        """Where the new vectors are now."""
        return self.name if self.is_live and self.aside else self.into

    @property
    def is_live(self) -> bool:
        """The new vectors are in use."""
        return self.stage in ("live", "finished")

    @property
    def is_open(self) -> bool:
        """Both vectors are there."""
        return self.stage != "finished"

    def space_of(self, name: str) -> Space | None:
        """The space of a vector column (or collection) by its present name; None for any other."""
        return {self.new_name: self.new, self.old_name: self.old if self.is_open else None}.get(name)

    def at(self, stage: Stage) -> MigrationNote:
        """The same at another stage."""
        return replace(self, stage=stage)

    def dumps(self) -> str:
        """The text that a store keeps."""
        values = asdict(self) | {"old": self.old.to_dict(), "new": self.new.to_dict()}
        return json.dumps({"embridge": 1, "migration": values})

    @classmethod
    def loads(cls, text: str | bytes | None, where: str) -> MigrationNote | None:
        """Parse it; None where there is none, or another text.

        Raises
        ------
        CollectionError
            It is damaged.
        """
        values = parse_note(text)
        if values is None or "migration" not in values:
            return None
        try:
            found: dict[str, Any] = dict(values["migration"])
            found["old"], found["new"] = Space.from_dict(found["old"]), Space.from_dict(found["new"])
            found["cursor"] = Cursor(**found["cursor"])
            note = cls(**found)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise CollectionError(f"The note of a migration in {where} is damaged: {e}. Note: {str(text)[:200]}") from e
        if note.mode not in ("column", "shadow") or note.stage not in STAGES:
            raise CollectionError(f"The note of a migration in {where} is damaged: {note.mode!r}, {note.stage!r}.")
        return note


def find_migration(texts: Mapping[str, str | bytes | None], where: str, vector: str | None) -> MigrationNote | None:
    """The note of a migration among those that a store keeps with columns, of a vector column where one is named.

    One that is under way, else one that is finished.
    """
    notes = [note for text in texts.values() if (note := MigrationNote.loads(text, where))]
    notes = [note for note in notes if vector in (None, note.name, note.into, note.aside)]
    return min(notes, key=lambda note: note.stage == "finished", default=None)


def note_to_open(
    texts: Mapping[str, str | bytes | None], location: Location, vector_column: str | None, default: str
) -> tuple[Note | None, str]:
    """The note that describes the vector column to open, and its name: without one that is named, the vectors in use.

    Parameters
    ----------
    texts : mapping of str to str
        What a store keeps with its columns, by column.
    location : Location
    vector_column : str, optional
        The column that the caller names.
    default : str
        The column to open where neither a note nor the caller names one.
    """
    kept = ((column, Note.loads(text, location.uri)) for column, text in texts.items())
    column, note = next((pair for pair in kept if pair[1] is not None), (None, None))
    migration = find_migration(texts, location.uri, location.options.get("vector", vector_column))
    name = location.column("vector", vector_column, migration.name if migration else column or default)
    if migration is not None and (space := migration.space_of(name)) is not None and (column != name or migration.is_live):
        is_new, old = name == migration.new_name, migration.space_of(migration.old_name)
        others = {migration.old_name: old} if is_new and old and migration.stage != "filling" else {}
        lineage = {"map": migration.map} if is_new else {}
        return Note(space, {"id": migration.id_column, "vector": name}, lineage, payload_spaces=others), name
    return note, name


@dataclass(frozen=True)
class Preview:
    """What a migration would do in a store.

    Attributes
    ----------
    steps : tuple of str
        One sentence each, in order: what is created, how rows are written, which index is built, what the swap renames, and what
        the user should know (triggers that will run, views that keep reading the old column).
    bytes : int
        Estimated size of what is added.
    """

    steps: tuple[str, ...]
    bytes: int


class InPlace(ABC):
    """The steps of a migration in place that only the store can do.

    `Store.in_place` opens one for a collection; it holds a connection, and `close` releases it. Notes are given by the caller and
    kept as they are. A killed process may leave any step half done: every step can be repeated, and `note` finds what is there.
    Until `swap`, nothing changes the old vectors or what applications read.
    """

    @abstractmethod
    def note(self) -> MigrationNote | None:
        """The note of the migration of this collection; None where there is none."""

    def names(self, mode: Mode, vector_column: str, into: str | None) -> tuple[str, str, str]:
        """`name`, `into` and `aside` of a new `MigrationNote`.

        Parameters
        ----------
        mode : {"column", "shadow"}
        vector_column : str
            Of the collection.
        into : str, optional
            What the user calls the new column or the shadow.
        """
        return vector_column, into or f"{vector_column}_new", f"{vector_column}_old"

    @abstractmethod
    def check(self, note: MigrationNote) -> Preview:
        """Refuse, before anything is written, what cannot be done; else say what will be.

        Names that are taken, missing permissions, ids that are not unique, what the store cannot hold or swap back.

        Raises
        ------
        CollectionError, ParameterError, BadIdsError, OutputExistsError
        """

    @abstractmethod
    def start(self, note: MigrationNote) -> None:
        """Make room for the new vectors (without an index) unless it is there, and keep the note.

        At once where the store has transactions. It is called when a migration begins, and when it is resumed.
        """

    @abstractmethod
    def old_rows(self, note: MigrationNote, *, missing: bool = False) -> Collection | None:
        """The rows that have an old vector, as they are now: ids and old vectors, in a stable order that `after` can continue.

        Mode ``column``: the payload is empty, or holds what `write` needs to recognize the row again (such as its version). Mode
        ``shadow``: the payload is that of the rows.

        Parameters
        ----------
        note : MigrationNote
        missing : bool, default False
            Only rows that have no new vector.

        Returns
        -------
        Collection or None
            None where there are no such rows.
        """

    @abstractmethod
    def new_rows(self, note: MigrationNote) -> Collection | None:
        """The rows that have a new vector, with it; None where there are none.

        A store that reads both vectors of a row at once gives the old one as the only column of the payload, under its name
        (`MigrationNote.old_name`); else they are matched by id.
        """

    def without_vector(self, note: MigrationNote) -> int:
        """Rows that have neither an old nor a new vector; they stay as they are."""
        return 0

    @abstractmethod
    def write(self, batch: Batch, note: MigrationNote) -> int:
        """Give rows their new vectors, by id, and keep the note: in one transaction, or the note after the rows are safe.

        Idempotent. A row that was deleted since it was read is left out, and one that changed is left without a new vector where
        the store can tell (`old_rows` finds it again).

        Parameters
        ----------
        batch : Batch
            Ids, new vectors, and the payload that `old_rows` gave.
        note : MigrationNote
            With the cursor behind these rows.

        Returns
        -------
        int
            Rows written.
        """

    @abstractmethod
    def finish(self, note: MigrationNote) -> list[str]:
        """Build the index of the new vectors with the settings of the old one, unless it is there, and keep the note.

        A shadow also loses the rows whose originals are gone.

        Returns
        -------
        list of str
            What was built, or why not; one sentence each.
        """

    @abstractmethod
    def swap(self, note: MigrationNote, *, missing: int = 0) -> list[str]:
        """Put the new side (stage ``live``) or the old one (stage ``ready``) into use, and keep the note.

        At once where the store can; else in steps that a second call completes, whichever were done.

        Parameters
        ----------
        note : MigrationNote
            At its new stage.
        missing : int
            Rows that may lack a new vector, since theirs cannot be translated. A store that can lock the collection counts again,
            and refuses if there are more.

        Returns
        -------
        list of str
            What the user should know: what becomes of rows written from now on, what still reads the other side.

        Raises
        ------
        CollectionError
            Rows were added since they were counted.
        """

    @abstractmethod
    def drop(self, note: MigrationNote) -> None:
        """Remove the side that is not in use, given the note at its present stage.

        After the cutover that is the old one, and the note is kept with the stage ``finished``; before, it is the new one, and the
        note goes too.
        """

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Release connections."""
