"""Migrations in place: a second named vector of every point, or a shadow of the collection behind an alias."""

from __future__ import annotations

import time
from typing import Any

from embridge.errors import CollectionError, OutputError
from embridge.stores.batch import Batch
from embridge.stores.in_place import InPlace, MigrationNote, Mode, Preview
from embridge.stores.qdrant.checks import preview
from embridge.stores.qdrant.client import (
    UnexpectedResponse,
    collection_name,
    connect,
    models,
    reading,
    release,
    requests_of,
    storing,
)
from embridge.stores.qdrant.collection import DISTANCES, QdrantCollection, describe, key_of, migrations_of, real_name, vectors_of
from embridge.stores.qdrant.live import LiveRows, at, count, having, index_of, retrieved, using_of
from embridge.stores.qdrant.shadow import (
    complete_shadow,
    create_shadow,
    datatype,
    drop_collection,
    move_alias,
    names_of,
    renamed,
    shadow_rows,
    shadows_of,
)
from embridge.stores.uri import Location

_PAUSE, _PAUSES = 1.0, 600  # seconds between two looks at the optimizer, and looks


class QdrantInPlace(InPlace):
    """Migrations in place of one collection.

    The note is in the metadata of the collection that gets the new vectors; until a shadow is in use, also of the collection
    that it is made of, so that it is found from there.
    """

    def __init__(self, location: Location) -> None:
        self._location, self._name = location, collection_name(location)
        self._held: QdrantCollection | None = None
        self._describe()

    @property
    def _client(self) -> Any:
        self._connection = connect(self._location)  # clients are closed once nobody holds them
        return self._connection

    def _describe(self, name: str | None = None) -> tuple[Any, dict[str, Any]]:
        with reading(self._location):
            return describe(self._client, name or self._name, self._location)

    def note(self) -> MigrationNote | None:
        info, metadata = self._describe()
        held = [self._as_it_is(note, info) for note in migrations_of(metadata, repr(self._location.uri))]
        vector = self._location.options.get("vector")
        found = [note for note in held if note and (vector is None or note.mode == "shadow" or vector in (note.name, note.into))]
        unfinished = [note for note in found if note.is_open]
        if len(unfinished) > 1:
            names = ", ".join(repr(note.name) for note in unfinished)
            raise CollectionError(f"{self._location.uri!r} has migrations of {names}. Hint: write ?vector=NAME in its URI.")
        return (unfinished or found or [None])[-1]

    def _as_it_is(self, note: MigrationNote, info: Any) -> MigrationNote | None:
        """The note at the stage that was reached, whichever step was interrupted; None where no room was made."""
        if note.mode == "column":
            vectors = vectors_of(info)
            if note.into not in vectors:
                return None
            return note if note.name in vectors else note.at("finished")
        with reading(self._location):
            if not self._client.collection_exists(note.into):
                return None
            _, metadata = describe(self._client, note.into, self._location)
            kept = next((other for other in migrations_of(metadata, repr(note.into)) if other.into == note.into), note)
            if real_name(self._client, note.name) == note.into:
                return kept.at("live" if self._client.collection_exists(note.aside) else "finished")
        return kept.at("ready") if kept.is_live else kept

    def names(self, mode: Mode, vector_column: str, into: str | None) -> tuple[str, str, str]:
        if mode == "shadow":
            found = self.note()
            known = found if found and found.is_open and found.mode == "shadow" else None
            with reading(self._location):
                return names_of(self._client, self._location, self._name, into, known)
        return vector_column, into or f"{vector_column}_new", ""

    def check(self, note: MigrationNote) -> Preview:
        info, _ = self._describe()
        with reading(self._location):
            return preview(self._client, self._location, self._name, note, info)

    def _home(self, note: MigrationNote) -> str:
        """The collection of the new vectors."""
        return self._name if note.mode == "column" else note.into

    def _keep(self, note: MigrationNote, name: str, **changes: Any) -> None:
        self._client.update_collection(name, metadata=changes | {key_of(note): note.dumps()})

    def start(self, note: MigrationNote) -> None:
        info, _ = self._describe(note.aside or self._name)
        with storing(self._location):
            is_there = self._client.collection_exists(note.into) if note.mode == "shadow" else note.into in vectors_of(info)
            self._keep(note, self._home(note) if is_there else note.aside or self._name)
            if is_there:
                return
            if note.mode == "shadow":
                create_shadow(self._client, note, info)
            else:
                dense = models.DenseVectorConfig(size=note.new.dim, distance=DISTANCES[note.new.metric], datatype=datatype(note))
                self._client.create_vector_name(self._name, note.into, models.DenseVectorNameConfig(dense=dense))
            self._set_index(note, info, models.VectorParamsDiff(hnsw_config=models.HnswConfigDiff(m=0)))  # no index

    def _set_index(self, note: MigrationNote, info: Any, settings: Any) -> None:
        self._client.update_collection(self._home(note), vectors_config={using_of(note, info): settings})

    def old_rows(self, note: MigrationNote, *, missing: bool = False) -> LiveRows | None:
        if note.mode == "column":
            return self._rows(note, note.name, having(note.name, note.into if missing else None))
        info, _ = self._describe(note.aside)
        with reading(self._location):
            return shadow_rows(self._client, self._location, note, using_of(note, info), missing=missing)

    def new_rows(self, note: MigrationNote) -> LiveRows | None:
        info, _ = self._describe(self._home(note))
        using = using_of(note, info)
        return self._rows(note, using, having(using))

    def _rows(self, note: MigrationNote, vector: str, condition: Any) -> LiveRows | None:
        space = note.old if note.mode == "column" and vector == note.name else note.new
        with reading(self._location):
            rows = count(self._client, self._home(note), condition)
        return LiveRows(at(self._location, self._home(note)), space, vector or None, condition, rows) if rows else None

    def without_vector(self, note: MigrationNote) -> int:
        info, _ = self._describe(self._home(note))
        names = [note.name, note.into] if note.mode == "column" else [using_of(note, info)]
        lacking = models.Filter(must_not=[models.HasVectorCondition(has_vector=name) for name in names])
        with reading(self._location):
            return count(self._client, self._home(note), lacking)

    def write(self, batch: Batch, note: MigrationNote) -> int:
        info, _ = self._describe(self._home(note))
        using, start, written = using_of(note, info), 0, 0
        if self._held is None:  # the collection knows how ids of rows and of points belong together
            vector = note.name if note.mode == "column" else None
            self._held = QdrantCollection(at(self._location, self._name), space=note.old, vector_column=vector)
        points = [self._held.point(value) for value in batch.ids.to_pylist()]
        for part in requests_of(batch):
            ids = points[start : (start := start + len(part))]
            with storing(self._location):
                if note.mode == "shadow":
                    self._client.upsert(note.into, shadows_of(part, ids, using), wait=True)
                    written += len(part)
                else:
                    vectors = zip(ids, part.vectors.tolist(), strict=True)
                    written += self._update([models.PointVectors(id=i, vector={using: vector}) for i, vector in vectors])
        with storing(self._location):
            self._keep(note, self._home(note))
        return written

    def _update(self, points: list[Any]) -> int:
        """Write new vectors of the points that are still there. A server stops at the first that is not."""
        while points:
            try:
                self._client.update_vectors(self._name, points, wait=True)
                return len(points)
            except (KeyError, UnexpectedResponse) as e:
                if isinstance(e, UnexpectedResponse) and e.status_code != 404:
                    raise
                there = {record.id for record in retrieved(self._client, self._name, [point.id for point in points])}
                kept = [point for point in points if point.id in there]
                if len(kept) == len(points):
                    raise
                points = kept
        return 0

    def finish(self, note: MigrationNote) -> list[str]:
        info, _ = self._describe(note.aside or self._name)
        using, index = using_of(note, info), index_of(note, info)
        old = vectors_of(info)[note.name if note.mode == "column" else using]
        placed = {name: getattr(old, name) for name in models.VectorParamsDiff.model_fields if name != "hnsw_config"}
        with storing(self._location):
            remarks = []
            if note.mode == "shadow":
                remarks = [
                    *complete_shadow(self._client, note, info, using),
                    "Changes of the payload of copied points are not noticed.",
                ]
            self._set_index(note, info, models.VectorParamsDiff(hnsw_config=models.HnswConfigDiff(**index), **placed))
            remarks.append(self._wait(self._home(note), index["m"]))
            self._keep(note, self._home(note))
        return remarks

    def _wait(self, name: str, edges: int) -> str:
        """Wait until the optimizer has built the index."""
        for _ in range(_PAUSES):
            info = self._client.get_collection(name)
            if info.status == models.CollectionStatus.GREEN:
                return f"Qdrant has optimized {name!r}; the index of the new vectors has m={edges}, as that of the old ones."
            if info.status == models.CollectionStatus.RED:
                raise OutputError(f"Qdrant cannot optimize {name!r}: {getattr(info.optimizer_status, 'error', info.status)}")
            time.sleep(_PAUSE)
        return f"Qdrant still builds the index of {name!r}: wait until the status of the collection is green before the cutover."

    def swap(self, note: MigrationNote, *, missing: int = 0) -> list[str]:
        with storing(self._location):
            remarks = move_alias(self._client, note) if note.mode == "shadow" else []
            self._keep(note, self._home(note))
        if note.mode == "shadow":
            return remarks
        now, before = (note.into, note.name) if note.is_live else (note.name, note.into)
        space = note.new if note.is_live else note.old
        return [
            f"Qdrant cannot rename vectors, so only the note of embridge says that {now!r} is in use: applications must search "
            f"with using={now!r} in place of {before!r}, and write vectors of {space.name!r} there."
        ]

    def drop(self, note: MigrationNote) -> None:
        _, metadata = self._describe()
        with storing(self._location):
            if note.mode == "shadow":
                drop_collection(self._client, note.aside if note.is_live else note.into)
            else:
                self._client.delete_vector_name(self._name, note.name if note.is_live else note.into)
            if note.is_live:
                earlier = {key_of(other): None for other in migrations_of(metadata, "") if other.into == note.name}
                self._keep(note.at("finished"), self._home(note), **renamed(metadata, note), **earlier)
            else:
                self._client.update_collection(note.aside or self._name, metadata={key_of(note): None})

    def close(self) -> None:
        self._held = None
        release(self._location)
