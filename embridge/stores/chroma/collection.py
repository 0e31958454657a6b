"""Reading and searching a collection of Chroma."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.errors import BadIdsError, ChangedSourceError, CollectionError, InterruptedOutputError
from embridge.stores.base import RowFilter
from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.chroma.client import collection_name, collection_of, connect, note_of, reading
from embridge.stores.in_place import MigrationNote
from embridge.stores.json_collection import JsonCollection
from embridge.stores.json_columns import Row
from embridge.stores.store import Note
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Metric, Space

SPACES = {Metric.COSINE: "cosine", Metric.DOT: "ip", Metric.L2: "l2"}
TEXTS = {"document": "documents", "uri": "uris"}  # columns that Chroma keeps beside the metadata of a row
CAPABILITIES = Capabilities(keeps_order=False, in_place_modes=("shadow",), finds_missing=True, largest_batch=4096)
_PAGE = 1024  # rows of one request


class ChromaCollection(JsonCollection):
    """Rows of a collection in the order of their ids as text.

    All ids are read when rows are first needed, and the rows by their ids: paging by number would leave rows out after deletions.

    Attributes
    ----------
    is_live : bool
        Rows that are deleted while they are read are left out; else they are an error.
    """

    kind = "chroma"
    is_live = False
    capabilities = CAPABILITIES
    seeks = fetches = True

    def __init__(
        self,
        location: Location,
        *,
        space: Space | DeclaredSpace | str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> None:
        self.path, self._location = location.uri, location
        collection_name(location)
        with reading(location):
            self._client = connect(location)
            self._collection = collection_of(self._client, location)
            note, id_type = self._recall(self._collection.metadata or {}, is_flat=True)
            first = self._collection.get(limit=1, include=["embeddings"])["embeddings"]
            configuration = self._collection.configuration_json or {}
        known = note.columns if note else {}
        for option, given in (("id", id_column), ("vector", vector_column)):
            column, own = location.column(option, given, known.get(option, option)), known.get(option, option)
            if column != own:
                raise CollectionError.no_column(self.name, column, [own], f"?{option}={own}")
        self.id_column, self.vector_column = known.get("id", "id"), known.get("vector", "vector")
        self.id_type = id_type or pa.string()
        index = configuration.get("hnsw") or configuration.get("spann") or {}
        metric = next((metric for metric, name in SPACES.items() if name == index.get("space", "l2")), None)
        note = self._migrated(note, note_of(self._collection))
        self._settle(space, note, len(first[0]), metric, index.get("space"))
        self._sorted: list[str] | None = None

    def _migrated(self, note: Note | None, migration: MigrationNote | None) -> Note | None:
        """The note of embridge as a migration in place left it.

        Raises
        ------
        InterruptedOutputError
            The collection is the shadow of another, and lacks rows of it.
        """
        if migration is None:
            return note
        if migration.stage == "filling":
            raise InterruptedOutputError(
                f"{self.name} is the unfinished shadow of {migration.name!r}. Hint: open {migration.name!r}."
            )
        columns = {"id": self.id_column, "vector": self.vector_column}
        return Note(migration.new, columns, {}, payload_spaces=note.payload_spaces if note else {})

    def _count(self) -> int:
        with reading(self._location):
            return self._collection.count()

    def _list(self) -> list[str]:
        with reading(self._location):
            return sorted(self._collection.get(include=[])["ids"])

    @property
    def _all(self) -> list[str]:
        if self._sorted is None:
            self._sorted = self._list()
            self._check_count(len(self._sorted))
        return self._sorted

    def check_unchanged(self) -> None:
        super().check_unchanged()
        if self._sorted is not None and self._list() != self._sorted:
            raise ChangedSourceError.of(self.name, "rows were added and removed")

    def _keys(self) -> Iterator[list[Any]]:
        found = self._list()
        return (found[start : start + _PAGE] for start in range(0, len(found), _PAGE))

    def _fields(self) -> Iterator[list[Row]]:
        return ([row for _, row in self._rows_of(keys, vectors=False).values()] for keys in self._keys())

    def _by_key(self, keys: list[Any]) -> dict[Any, tuple[Sequence[float] | None, Row]]:
        return self._rows_of(keys)

    def _fetch(self, ids: pa.Array) -> Batch:
        keys = list(map(str, ids.to_pylist()))
        found = self._rows_of(keys, payload=False)
        return self._batch(0, ids, [found[key][0] for key in keys], None, validate=False)

    def _rows_of(self, keys: list[str], *, vectors: bool = True, payload: bool = True) -> dict[Any, tuple[Any, Row]]:
        """Vectors and fields of rows by their ids, in the order of `keys`.

        Raises
        ------
        ChangedSourceError
            Some are not there any more.
        """
        include = [*(["embeddings"] if vectors else []), *(["metadatas", *TEXTS.values()] if payload else [])]
        with reading(self._location):
            found = self._collection.get(ids=keys, include=include)
        places = {key: place for place, key in enumerate(found["ids"])}
        if not self.is_live and (missing := [key for key in keys if key not in places]):
            raise ChangedSourceError.of(self.name, f"{len(missing):,} rows were removed, the first {missing[0]!r}")
        order = {key: places[key] for key in keys if key in places}
        held = found["embeddings"] if vectors else None
        return {
            key: (None if held is None else held[place], self._row(found, place) if payload else {}) for key, place in order.items()
        }

    def _row(self, found: Any, place: int) -> Row:
        row = dict((found["metadatas"] or {})[place] or {}) if found["metadatas"] else {}
        for name, part in TEXTS.items():
            if (text := found[part][place] if found[part] else None) is not None:
                if name in row:
                    raise CollectionError(
                        f"{self.name} has rows with a {name} and a field {name!r} as well. Hint: rename the field."
                    )
                row[name] = text
        return row

    def _read(
        self, batch_rows: int, *, payload: bool, vectors: bool, row_filter: RowFilter | None, validate: bool, first: int = 0
    ) -> Iterator[Batch]:
        keys = self._all
        page = min(batch_rows, _PAGE)
        for low in range(first, len(keys), page):
            part = keys[low : low + page]
            start = low - first
            if row_filter is not None and not row_filter(start, start + len(part)):
                continue
            rows = self._rows_of(part, vectors=vectors, payload=payload) if vectors or payload else dict.fromkeys(part, (None, {}))
            found, fields = [vector for vector, _ in rows.values()], [row for _, row in rows.values()]
            ids = self._ids(list(rows))
            yield self._batch(start, ids, found if vectors else None, fields if payload else None, validate=validate)

    def _read_after(self, after: str | int, batch_rows: int, *, row_filter: RowFilter | None, **options: bool) -> Iterator[Batch]:
        return self._read(batch_rows, row_filter=row_filter, first=bisect.bisect_right(self._all, str(after)), **options)

    def _ids(self, keys: list[str]) -> pa.Array:
        try:
            return pa.array(keys, pa.string()).cast(self.id_type)
        except pa.ArrowException as e:
            raise BadIdsError(f"{self.name} has ids that are not all {self.id_type}: {str(e).splitlines()[0]}") from None

    def _nearest(self, queries: np.ndarray, k: int) -> list[tuple[pa.Array, np.ndarray]]:
        with reading(self._location):
            found = self._collection.query(query_embeddings=queries, n_results=k, include=["distances"])
        distances = [np.array(row, np.float32) for row in found["distances"]]
        scores = [-row if self.stated_space.metric == Metric.L2 else 1 - row for row in distances]
        return [(self._ids(keys), held) for keys, held in zip(found["ids"], scores, strict=True)]
