"""Points of a collection as they are now, for migrations in place; they may be added and deleted meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from embridge.stores.in_place import MigrationNote
from embridge.stores.json_columns import JsonColumns, Row
from embridge.stores.qdrant.client import models
from embridge.stores.qdrant.collection import QdrantCollection, vectors_of
from embridge.stores.store import Note
from embridge.stores.uri import Location
from embridge.types import Space

POINT = pa.field("point", pa.string())  # payload and other vectors of a point, as JSON


def at(location: Location, name: str) -> Location:
    """The location of another collection on the same server or in the same folder, without options that name fields."""
    place = {"path": f"/{name}"} if location.host else {"part": name}
    kept = {option: value for option, value in location.options.items() if option not in ("id", "vector")}
    return replace(location, options=kept, **place)


def having(vector: str, without: str | None = None) -> Any:
    """The condition that a point has one vector, and lacks another."""
    lacks = None if without is None else models.HasVectorCondition(has_vector=without)
    return models.Filter(must=models.HasVectorCondition(has_vector=vector), must_not=lacks)


def using_of(note: MigrationNote, info: Any) -> str:
    """The name of the new vector; the unnamed one has the name ''."""
    return note.into if note.mode == "column" else next(iter(vectors_of(info)))


def index_of(note: MigrationNote, info: Any) -> dict[str, Any]:
    """Settings of the index of the old vectors that are their own, and its number of edges."""
    vectors = vectors_of(info)
    old = vectors[note.name] if note.mode == "column" else next(iter(vectors.values()))
    own = old.hnsw_config.model_dump(exclude_none=True) if old.hnsw_config else {}
    return {"m": info.config.hnsw_config.m} | own


def count(client: Any, name: str, condition: Any) -> int:
    """Points for which a condition holds."""
    return client.count(name, count_filter=condition, exact=True).count


class LiveRows(QdrantCollection):
    """Ids and one vector of the points for which a condition holds, without payload."""

    def __init__(self, location: Location, space: Space, vector: str | None, condition: Any, rows: int) -> None:
        self._condition: Any = None
        super().__init__(location, space=space, vector_column=vector)
        self._condition, self._rows, self.columns = condition, rows, JsonColumns(pa.schema([]))

    def _migrated(self, note: Note | None, migrations: list[MigrationNote]) -> Note | None:
        return None  # the space is given, and a shadow is read while it is filled

    def fingerprint(self) -> str:
        """None: these rows have no one state."""
        return ""

    def _scroll(self, **options: Any) -> tuple[list[Any], Any]:
        return super()._scroll(**{"scroll_filter": self._condition} | options)

    def _read(self, batch_rows: int, *, payload: bool, **options: Any) -> Iterator[Any]:
        return super()._read(batch_rows, payload=payload and bool(self.payload_schema.names), **options)


class WholeRows(LiveRows):
    """The same with all that a point holds: its payload and its other vectors."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.columns = JsonColumns(pa.schema([POINT]))

    def _wanted(self, vectors: bool) -> bool | list[str]:
        return vectors

    def _payload_of(self, record: Any) -> Row:
        return {POINT.name: dumps(record, self._using or "")}


class ChosenRows(WholeRows):
    """The same of some points by their ids, but for those that were deleted meanwhile."""

    def __init__(self, location: Location, space: Space, points: list[Any]) -> None:
        self._points: list[Any] | None = None
        super().__init__(location, space, None, None, len(points))
        self._points = points

    def _scroll(self, *, limit: int, offset: Any = None, **options: Any) -> tuple[list[Any], Any]:
        if self._points is None:
            return super()._scroll(limit=limit, offset=offset, **options)
        start, stop = offset or 0, (offset or 0) + limit  # positions, which only this method reads
        records = retrieved(self._client, self._name, self._points[start:stop], **options)
        return records, stop if stop < len(self._points) else None


def retrieved(client: Any, name: str, points: list[Any], **options: Any) -> list[Any]:
    """Those of some points that are there, in the order of their ids."""
    found = {record.id: record for record in client.retrieve(name, points, **{"with_payload": False} | options)}
    return [found[point] for point in points if point in found]


def dumps(record: Any, vector: str) -> str:
    """The payload of a point and its vectors but for one, as JSON."""
    held = record.vector if isinstance(record.vector, dict) else {}
    others = {name: value.model_dump() if hasattr(value, "model_dump") else value for name, value in held.items() if name != vector}
    return json.dumps({"payload": record.payload, "vectors": others})
