"""Reading and searching a collection of Qdrant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.arrays import unit
from embridge.errors import BadIdsError, CollectionError, InterruptedOutputError, MissingFileError
from embridge.stores.base import RowFilter
from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.in_place import MigrationNote
from embridge.stores.json_collection import NOTE, JsonCollection
from embridge.stores.json_columns import Row
from embridge.stores.qdrant.client import collection_name, connect, models, point_of, reading
from embridge.stores.store import Note
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Metric, Space

DISTANCES = {Metric.COSINE: models.Distance.COSINE, Metric.DOT: models.Distance.DOT, Metric.L2: models.Distance.EUCLID}
_PAGE, _PAGE_BYTES = 1024, 4 << 20  # rows with vectors of one request, and their bytes as float32
_ID_PAGE = 8192  # rows without vectors
_SIGN = 1 << 63
_MIGRATION = f"{NOTE}_migration:"  # keys in the metadata of a collection, followed by `MigrationNote.into`


def capabilities_of(metric: Metric | None) -> Capabilities:
    """Of a collection: under cosine, vectors are stored with unit length."""
    rest = {"dtypes": ("float32", "float16"), "supports_second_vector": True, "supports_alias": True}
    rest |= {"in_place_modes": ("column", "shadow"), "finds_missing": True, "largest_batch": 4096}  # rows with their payload
    return Capabilities(keeps_lengths=metric != Metric.COSINE, keeps_order=False, **rest)


class QdrantCollection(JsonCollection):
    """Points of a collection in the order of their ids: numbers, then UUIDs."""

    kind = "qdrant"

    def __init__(
        self,
        location: Location,
        *,
        space: Space | DeclaredSpace | str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> None:
        self.path, self._location, self._name = location.uri, location, collection_name(location)
        with reading(location):
            info, metadata = describe(self._client, self._name, location)
            note, id_type = self._recall(metadata)
        known = note.columns if note else {}
        migrations = migrations_of(metadata, self.name)
        vector, params = self._vector(info, location.column("vector", vector_column, ""), known.get("vector", ""), migrations)
        self._using = vector or None
        self.vector_column = vector or "vector"
        with reading(location):
            self._identify(known.get("id", "id"), id_type, location.column("id", id_column, ""))
        metric = next((metric for metric, distance in DISTANCES.items() if distance == params.distance), None)
        self.capabilities = capabilities_of(metric)
        note = self._migrated(note, migrations)
        self._settle(space, note, params.size, metric, params.distance.value)

    @property
    def _client(self) -> Any:
        self._held = connect(self._location)  # clients are closed once nobody holds them
        return self._held

    def _vector(self, info: Any, named: str, known: str, migrations: list[MigrationNote]) -> tuple[str, Any]:
        """Name and parameters of the vector; the unnamed one has the name ''.

        It is the one that the caller names, else the only one that is in use, else the one that embridge wrote.
        """
        vectors = vectors_of(info)
        moved = [note for note in migrations if note.mode == "column"]
        idle = {note.old_name if note.is_live else note.new_name for note in moved}
        used = [name for name in vectors if name not in idle]
        current = next((note.new_name for note in moved if note.is_live and note.old_name == known), known)
        name = named or (used[0] if len(used) == 1 else current)
        if name not in vectors:
            names = ", ".join(repr(other) for other in vectors if other) or "none with a name"
            raise CollectionError(f"{self.name} has no vector {name!r}. Vectors: {names}. Hint: write ?vector=NAME in its URI.")
        if vectors[name].multivector_config is not None:
            raise CollectionError(f"{self.name} holds several vectors a row under {name!r}; embridge reads one.")
        return name, vectors[name]

    def _migrated(self, note: Note | None, migrations: list[MigrationNote]) -> Note | None:
        """The note of embridge as migrations in place left it for the vector.

        Raises
        ------
        InterruptedOutputError
            The collection is the shadow of another, and lacks rows of it.
        """
        for found in migrations:
            if found.mode == "column":
                space = found.space_of(self.vector_column)
            elif found.into != real_name(self._client, self._name):
                space = found.old
            elif found.stage == "filling":
                raise InterruptedOutputError(f"{self.name} is the unfinished shadow of {found.name!r}. Hint: open {found.name!r}.")
            else:
                space = found.new
            if space is not None:
                columns = {"id": self.id_column, "vector": self.vector_column}
                return Note(space, columns, {}, payload_spaces=note.payload_spaces if note else {})
        return note

    def _identify(self, own: str, recorded: pa.DataType | None, field: str) -> None:
        """Find what the ids are: a field of the payload, numbers, or the text of points' ids."""
        self.id_column = field or own
        self._is_signed = False
        if recorded is not None and self.id_column == own:
            self.id_type, self._is_signed = recorded, pa.types.is_integer(recorded)
            self._id_field = None if self._is_signed else own
        else:
            self._id_field, self.columns = field or None, None
            # All ids of points are numbers below 2^63 where none comes after them.
            numbers = pa.string() if self._scroll(offset=_SIGN, limit=1)[0] else pa.int64()
            self.id_type = self._type_of_field(field) if field else numbers
        # A field of somebody else does not say which point has it.
        self.seeks = self.fetches = self._id_field is None or self.columns is not None
        self.ignored = () if self._id_field is None else (self._id_field,)

    def _vectors(self, rows: list[Any] | np.ndarray, start: int, *, validate: bool) -> np.ndarray:
        values = super()._vectors(rows, start, validate=validate)
        return values if self.capabilities.keeps_lengths else unit(values)  # local mode keeps lengths on the disk

    def _type_of_field(self, field: str) -> pa.DataType:
        value = (self._scroll(limit=1, with_payload=True)[0][0].payload or {}).get(field)
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise BadIdsError.kind(f"The field {field!r} of {self.name}", type(value).__name__)
        return pa.int64() if isinstance(value, int) else pa.string()

    def _scroll(self, **options: Any) -> tuple[list[Any], Any]:
        return self._client.scroll(self._name, **{"with_payload": False, "with_vectors": False} | options)

    def _pages(self, rows: int, offset: Any = None, **options: Any) -> Iterator[list[Any]]:
        while True:
            with reading(self._location):
                records, offset = self._scroll(limit=rows, offset=offset, **options)
            if records:
                yield records
            if offset is None:
                return

    def _count(self) -> int:
        with reading(self._location):
            return self._client.count(self._name, exact=True).count

    def _keys(self) -> Iterator[list[Any]]:
        return ([record.id for record in records] for records in self._pages(_ID_PAGE))

    def _fields(self) -> Iterator[list[Row]]:
        return ([record.payload or {} for record in records] for records in self._pages(_PAGE, with_payload=True))

    def _by_key(self, keys: list[Any]) -> dict[Any, tuple[Sequence[float] | None, Row]]:
        with reading(self._location):
            records = self._client.retrieve(self._name, keys, with_payload=True, with_vectors=self._wanted(True))
        return {record.id: (self._vector_of(record), record.payload or {}) for record in records}

    def _fetch(self, ids: pa.Array) -> Batch:
        points = [self.point(value) for value in ids.to_pylist()]
        options = {"with_payload": self._id_fields(), "with_vectors": self._wanted(True)}
        records = []
        for start in range(0, len(points), page := self._page_rows()):
            with reading(self._location):
                records += self._client.retrieve(self._name, points[start : start + page], **options)
        return self._batch(0, self._ids(records), [self._vector_of(record) for record in records], None, validate=False)

    def _page_rows(self) -> int:
        return max(1, min(_PAGE, _PAGE_BYTES // (4 * self.stated_space.dim)))

    def _wanted(self, vectors: bool) -> bool | list[str]:
        return [self._using] if vectors and self._using else vectors

    def _payload_of(self, record: Any) -> Row:
        return record.payload or {}

    def _vector_of(self, record: Any) -> Any:
        return record.vector.get(self._using or "") if isinstance(record.vector, dict) else record.vector

    def _read(
        self,
        batch_rows: int,
        *,
        payload: bool,
        vectors: bool,
        row_filter: RowFilter | None,
        validate: bool,
        first: str | int | None = None,
    ) -> Iterator[Batch]:
        page = min(batch_rows, self._page_rows() if vectors else _ID_PAGE)
        fields = True if payload else self._id_fields()
        start, offset = 0, first
        while True:
            stop = max(start + 1, min(start + page, self._rows))
            is_wanted = row_filter is None or row_filter(start, stop)
            options = {"with_payload": fields, "with_vectors": self._wanted(vectors)} if is_wanted else {}
            with reading(self._location):
                records, offset = self._scroll(limit=page, offset=offset, **options)
            if records and first is not None and not start and records[0].id == first:
                records = records[1:]
            if records and is_wanted:
                rows = [self._payload_of(record) for record in records] if payload else None
                found = [self._vector_of(record) for record in records] if vectors else None
                yield self._batch(start, self._ids(records), found, rows, validate=validate)
            start += len(records)
            if offset is None:
                return

    def _read_after(self, after: str | int, batch_rows: int, *, row_filter: RowFilter | None, **options: bool) -> Iterator[Batch]:
        if not self.seeks:
            return super()._read_after(after, batch_rows, row_filter=row_filter, **options)
        return self._read(batch_rows, row_filter=row_filter, first=self.point(after), **options)

    def point(self, value: str | int) -> str | int:
        """The id of the point of a row."""
        if self._id_field is not None or isinstance(value, int):
            return point_of(value)
        return int(value) if value.isdigit() else value

    def _id_fields(self) -> bool | list[str]:
        return False if self._id_field is None else [f'"{self._id_field}"']  # without quotes, a dot would lead into an object

    def _ids(self, records: Sequence[Any]) -> pa.Array:
        if self._id_field is not None:
            values = [(record.payload or {}).get(self._id_field) for record in records]
        elif pa.types.is_integer(self.id_type):
            values = [self._number(record.id) for record in records]
        else:
            values = [str(record.id) for record in records]
        try:
            return pa.array(values, self.id_type)
        except (pa.ArrowException, TypeError, OverflowError) as e:
            raise BadIdsError(f"{self.name} has ids that are not all {self.id_type}: {str(e).splitlines()[0]}") from None

    def _number(self, point: Any) -> Any:
        """The id of a point with a number; text, which is refused then, if it is none of int64."""
        if self._is_signed and isinstance(point, int) and point >= _SIGN:
            return point - 2 * _SIGN
        return point

    def _nearest(self, queries: np.ndarray, k: int) -> list[tuple[pa.Array, np.ndarray]]:
        rest = {"using": self._using, "limit": k, "with_payload": self._id_fields()}
        with reading(self._location):
            requests = [models.QueryRequest(query=row, **rest) for row in queries.tolist()]
            found = [response.points for response in self._client.query_batch_points(self._name, requests)]
        scores = [np.array([point.score for point in points], np.float32) for points in found]
        scores = [-(held**2) for held in scores] if self.stated_space.metric == Metric.L2 else scores
        return [(self._ids(points), held) for points, held in zip(found, scores, strict=True)]


def describe(client: Any, name: str, location: Location) -> tuple[Any, dict[str, Any]]:
    """What Qdrant says about a collection, and its metadata.

    Raises
    ------
    MissingFileError
        There is none.
    """
    if not client.collection_exists(name):
        raise MissingFileError(f"There is no collection {name!r} at {location.uri!r}.")
    info = client.get_collection(name)
    return info, getattr(info.config, "metadata", None) or {}


def vectors_of(info: Any) -> dict[str, Any]:
    """Parameters of the dense vectors of a collection; the unnamed one has the name ''."""
    found = info.config.params.vectors or {}
    return found if isinstance(found, dict) else {"": found}


def migrations_of(metadata: Mapping[str, Any], where: str) -> list[MigrationNote]:
    """The migrations in place that the metadata of a collection record.

    Raises
    ------
    CollectionError
        A note is damaged.
    """
    found = [MigrationNote.loads(metadata[key], where) for key in sorted(metadata) if key.startswith(_MIGRATION)]
    return [note for note in found if note is not None]


def key_of(note: MigrationNote) -> str:
    """Where the metadata of a collection keep the note of a migration."""
    return f"{_MIGRATION}{note.into}"


def real_name(client: Any, name: str) -> str:
    """The name of the collection that a name leads to, which may be an alias."""
    return next((held.collection_name for held in client.get_aliases().aliases if held.alias_name == name), name)
