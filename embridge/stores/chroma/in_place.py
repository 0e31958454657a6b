"""Migrations in place: a shadow of the collection, with which it changes names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.errors import CollectionError, OutputExistsError, ParameterError, n_rows
from embridge.stores.batch import Batch
from embridge.stores.chroma.client import (
    MIGRATION,
    at,
    collection_name,
    collection_of,
    connect,
    listed,
    note_of,
    reading,
    requests_of,
    storing,
)
from embridge.stores.chroma.collection import SPACES, TEXTS, ChromaCollection
from embridge.stores.in_place import InPlace, MigrationNote, Mode, Preview
from embridge.stores.json_collection import NOTE
from embridge.stores.json_columns import JsonColumns, Row
from embridge.stores.store import Note
from embridge.stores.uri import Location
from embridge.types import Space

_ORIGINAL, _WAS_LIVE = f"{NOTE}_original", f"{NOTE}_was_live"  # in the metadata of a shadow: id of the other; it was in use
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
_SCHEMA = pa.schema([(name, pa.string()) for name in ("metadata", *TEXTS)])
_CHANGES = "Changes of metadata, documents and URIs of rows that were copied are not noticed either."


class LiveRows(ChromaCollection):
    """Rows of a collection as they are now, or some of them by their ids; the payload is all that Chroma keeps of them."""

    is_live = True

    def __init__(self, location: Location, space: Space, keys: list[str] | None = None, *, payload: bool = True) -> None:
        super().__init__(location, space=space)
        self.columns = JsonColumns(_SCHEMA if payload else pa.schema([]))
        if keys is not None:
            self._sorted, self._rows = keys, len(keys)

    def _migrated(self, note: Note | None, migration: MigrationNote | None) -> Note | None:
        return None  # the space is given, and a shadow is read while it is filled

    def _check_count(self, rows: int) -> None:
        self._rows = rows

    def fingerprint(self) -> str:
        """None: these rows have no one state."""
        return ""

    def _read(self, batch_rows: int, *, payload: bool, **options: Any) -> Iterator[Batch]:
        return super()._read(batch_rows, payload=payload and bool(self.payload_schema.names), **options)

    def _row(self, found: Any, place: int) -> Row:
        fields = found["metadatas"][place] if found["metadatas"] else None
        try:
            row = {"metadata": json.dumps(fields or {})}
        except TypeError as e:
            raise CollectionError(f"{self.name} has metadata that a shadow cannot keep: {e}") from e
        return row | {name: found[part][place] if found[part] else None for name, part in TEXTS.items()}


class ChromaInPlace(InPlace):
    """Migrations in place of one collection.

    The note is in the metadata of the shadow, which keeps the id of the original: their names say how far a swap came.
    """

    def __init__(self, location: Location) -> None:
        self._location, self._name = location, collection_name(location)
        with reading(location):
            self._client = connect(location)
        if self.note() is None:
            self._held(self._name)

    def _held(self, name: str) -> Any:
        with reading(self._location):
            return collection_of(self._client, at(self._location, name))

    def _sides(self) -> tuple[Any, Any]:
        """The shadow, and its original where that is still there; None for both where there is no migration.

        They are as a listing shows them: with names, ids and metadata.
        """
        with reading(self._location):
            every = {str(held.id): held for held in listed(self._client)}
        finished = None
        for shadow in every.values():
            note = note_of(shadow)
            if note is not None and note.name == self._name:
                if (original := every.get(shadow.metadata[_ORIGINAL])) is not None:
                    return shadow, original
                finished = shadow if shadow.name == self._name else finished
        return finished, None

    def note(self) -> MigrationNote | None:
        shadow, original = self._sides()
        note = note_of(shadow)
        if note is None or original is None:
            return note and note.at("finished")
        if original.name == self._name:
            return note.at("ready") if note.is_live else note
        return note.at("live")  # both renamed, or the original alone: then a swap is completed by the next

    def names(self, mode: Mode, vector_column: str, into: str | None) -> tuple[str, str, str]:
        return self._name, into or f"{self._name}_new", f"{self._name}_old"

    def check(self, note: MigrationNote) -> Preview:
        with reading(self._location):
            taken = {held.name for held in listed(self._client)}
        for name in (note.into, note.aside):
            if not _NAME.fullmatch(name):
                raise ParameterError.must_be("into", "a name of 3 to 512 letters, digits and . _ - between letters or digits", name)
            if name in taken:
                raise OutputExistsError(
                    f"{self._location.uri!r}: there is a collection {name!r} already. Hint: {_free(note, name)}."
                )
        original = self._held(self._name)
        with reading(self._location):
            rows = original.count()
        kind, settings = _index_of(original)
        steps = (
            f"A collection {note.into!r} is created ({note.new.dim} dimensions, {note.new.metric}), with the {kind} settings "
            f"{', '.join(f'{name}={value}' for name, value in settings.items() if name != 'space')}.",
            "Rows are copied into it with new vectors, in the order of their ids, with documents, metadata and URIs. Chroma "
            "builds the index as they are written.",
            f"A cutover renames {note.name!r} to {note.aside!r}, then {note.into!r} to {note.name!r}; for a moment there is no "
            f"{note.name!r}.",
            "Until the cutover, pause changes of existing rows: Chroma does not show them. Added and deleted rows are found.",
        )
        return Preview(steps, rows * (4 * note.new.dim + 8 * settings.get("max_neighbors", 16)))

    def start(self, note: MigrationNote) -> None:
        if self._sides()[1] is not None:
            return self._keep(note)
        original = self._held(self._name)
        kind, settings = _index_of(original)
        kept = {key: value for key, value in (original.metadata or {}).items() if not key.startswith(("hnsw:", MIGRATION))}
        if NOTE in kept:
            kept[NOTE] = json.dumps(json.loads(kept[NOTE]) | {"space": note.new.to_dict()})
        kept = {key: value for key, value in kept.items() if key not in (_ORIGINAL, _WAS_LIVE)}
        metadata = kept | {MIGRATION: note.dumps(), _ORIGINAL: str(original.id)}
        configuration: Any = {kind: settings | {"space": SPACES[note.new.metric]}}
        with storing(self._location):
            self._client.create_collection(note.into, configuration=configuration, metadata=metadata, embedding_function=None)
        return None

    def old_rows(self, note: MigrationNote, *, missing: bool = False) -> LiveRows | None:
        shadow, original = self._sides()
        if missing:
            keys = self._lacking(original, shadow)
            return LiveRows(at(self._location, original.name), note.old, keys) if keys else None
        name = self._name if original is None else original.name  # there is no shadow before `start`
        return LiveRows(at(self._location, name), note.old) if self._held(name).count() else None

    def new_rows(self, note: MigrationNote) -> LiveRows | None:
        name = self._sides()[0].name
        return LiveRows(at(self._location, name), note.new, payload=False) if self._held(name).count() else None

    def _lacking(self, side: Any, other: Any) -> list[str]:
        """Ids of one side that the other has not, in order."""
        with reading(self._location):
            found, others = (self._held(held.name).get(include=[])["ids"] for held in (side, other))
            return sorted(set(found).difference(others))

    def write(self, batch: Batch, note: MigrationNote) -> int:
        shadow = self._held(self._sides()[0].name)
        for part in requests_of(batch, self._client.get_max_batch_size()):
            texts = {kept: part.payload.column(name).to_pylist() for name, kept in TEXTS.items()}
            texts = {kept: values for kept, values in texts.items() if any(value is not None for value in values)}
            fields = [json.loads(text) or None for text in part.payload.column("metadata").to_pylist()]
            metadata = {"metadatas": fields} if any(fields) else {}
            vectors = np.ascontiguousarray(part.vectors, np.float32)
            with storing(self._location):
                shadow.upsert(ids=[str(value) for value in part.ids.to_pylist()], embeddings=vectors, **metadata, **texts)
        self._keep(note)
        return len(batch)

    def _keep(self, note: MigrationNote, **changes: str) -> None:
        shadow = self._held(self._sides()[0].name)
        with storing(self._location):
            shadow.modify(metadata=shadow.metadata | changes | {MIGRATION: note.dumps()})

    def finish(self, note: MigrationNote) -> list[str]:
        remarks = self._prune(note)
        self._keep(note)
        return [*remarks, f"Chroma built the index of {note.into!r} while rows were written.", _CHANGES]

    def _prune(self, note: MigrationNote) -> list[str]:
        """Remove rows of the shadow whose originals are gone; once it was in use, they may be new ones, and stay."""
        shadow, original = self._sides()
        gone = self._lacking(shadow, original)
        if gone and _WAS_LIVE in shadow.metadata:
            return [
                f"{n_rows(len(gone))} of {note.new_name!r} are not in {note.old_name!r}: they were written after a cutover, or "
                "deleted since. They stay."
            ]
        held, rows = self._held(shadow.name), self._client.get_max_batch_size()
        with storing(self._location):
            for start in range(0, len(gone), rows):
                held.delete(ids=gone[start : start + rows])
        return []

    def swap(self, note: MigrationNote, *, missing: int = 0) -> list[str]:
        remarks = []
        if note.is_live and self._sides()[1].name == self._name:
            remarks = self._prune(note.at("ready"))
            self._keep(note.at("ready"), **{_WAS_LIVE: "true"})
        self._rename(note)
        self._keep(note)
        now, other = (note.new, note.aside) if note.is_live else (note.old, note.into)
        return [
            *remarks,
            f"{note.name!r} holds vectors of {now.name!r}, and alone takes what is written from now on; the other is {other!r}.",
            f"Applications that are running use the other until they call get_collection({note.name!r}) again. Queries by text "
            f"need the embedding function of {now.name!r}.",
        ]

    def _rename(self, note: MigrationNote) -> None:
        """Give the side that is in use at the stage of a note the name; a second call completes an interrupted one."""
        shadow, original = self._sides()
        steps = [(original, note.aside), (shadow, note.name)] if note.is_live else [(shadow, note.into), (original, note.name)]
        for side, name in steps:
            if side.name != name:
                held = self._held(side.name)
                with reading(self._location):
                    taken = next((other for other in listed(self._client) if other.name == name), None)
                if taken is not None:
                    raise CollectionError(
                        f"{self._location.uri!r}: another program has made a collection {name!r} ({n_rows(taken.count())}) "
                        "meanwhile. Hint: rename or remove it, and repeat."
                    )
                with storing(self._location):
                    held.modify(name=name)

    def drop(self, note: MigrationNote) -> None:
        if note.is_live:
            self._rename(note)
        shadow, original = self._sides()
        with storing(self._location):
            self._client.delete_collection(original.name if note.is_live else shadow.name)
        if note.is_live:
            self._keep(note.at("finished"))


def _index_of(collection: Any) -> tuple[str, dict[str, Any]]:
    """Kind and settings of the index of a collection."""
    configuration = collection.configuration_json or {}
    kind = "hnsw" if configuration.get("hnsw") else "spann" if configuration.get("spann") else "hnsw"
    return kind, dict(configuration.get(kind) or {})


def _free(note: MigrationNote, name: str) -> str:
    return "--into another name" if name == note.into else "rename or remove it; the old vectors get this name at the cutover"
