"""The store ``lancedb://``: tables of LanceDB in a local folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.arrays import as_vectors
from embridge.errors import (
    EmbridgeError,
    InterruptedOutputError,
    MissingDependencyError,
    MissingFileError,
    OutputError,
    ParameterError,
    UnreadableFileError,
)
from embridge.files import writing
from embridge.stores.arrow import ArrowCollection
from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.store import Layout, Note, Store, Writer, check_finished
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Hits, Metric, Space

try:
    import lancedb
except ImportError as error:
    raise MissingDependencyError.of("lancedb", "lancedb://", "lancedb") from error

_NOTE = "embridge"  # key in the metadata of the vector column
_CAPABILITIES = Capabilities(keeps_repeated_ids=True, has_snapshot=True, supports_second_vector=True, dtypes=("float32", "float16"))


class LanceCollection(ArrowCollection):
    """Rows of a table at the version that was the latest when it was opened: ``lancedb:///path?id=id&vector=vector#table``."""

    kind = "lancedb"
    capabilities = _CAPABILITIES
    fetches = opens_further = True

    def __init__(
        self,
        location: Location,
        *,
        space: Space | DeclaredSpace | str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> None:
        self.path, self._location = location.uri, location
        location.check_options("id", "vector")
        with _reading(self.path):
            table = _open(location)
            self._version, schema = table.version, table.schema
            written = next(entry for entry in table.list_versions() if entry["version"] == self._version)
            self._mark = f"{os.path.realpath(location.path)} {location.part} {self._version} {written['timestamp']}"
            self._rows = table.count_rows()
        column, note = _note_of(schema, self.path)
        check_finished(note, self.name)
        known = note.columns if note else {}
        columns = location.column("id", id_column, known.get("id", "id")), location.column("vector", vector_column, column)
        with _reading(location.uri):
            metric = _metric_of(table, columns[1]) if columns[1] in schema.names else None
        self._describe(schema, columns, space, note=note, metric=metric)

    def _pinned(self) -> Any:
        """The table at the version that was opened; a handle of its own, which nothing else can move."""
        table = _open(self._location)
        table.checkout(self._version)
        return table

    def _record_batches(self, columns: list[str], batch_rows: int, after: str | int | None = None) -> Iterator[pa.RecordBatch]:
        with _reading(self._location.uri):
            for batch in self._pinned().search().select(columns).to_batches(batch_rows):
                yield batch.select(columns)

    def _fetch(self, ids: pa.Array) -> Batch:
        values = ", ".join(f"'{i}'" if isinstance(i, str) else str(i) for i in map(_escaped, ids.to_pylist()))
        columns = [self.id_column, self.vector_column]
        with _reading(self._location.uri):
            query = self._pinned().search().where(f"`{self.id_column}` IN ({values})").select(columns)
            return self._gathered(batch.select(columns) for batch in query.to_batches(len(ids)))

    def __len__(self) -> int:
        return self._rows

    @property
    def files(self) -> list[str]:
        return [_folder(self._location)]

    def fingerprint(self) -> str:
        """Of the version of the table, which LanceDB never changes."""
        return hashlib.blake2b(self._mark.encode(), digest_size=16).hexdigest()

    def search(self, queries: np.ndarray, k: int = 10) -> Hits:
        """The k nearest rows, through the table's vector index where it has one (see `Searchable`)."""
        metric = self.stated_space.metric
        rows = np.ascontiguousarray(as_vectors(queries, self.stated_space.dim, "queries"), np.float32)
        ids = np.full((len(rows), k), None if pa.types.is_string(self.id_type) else -1, object)
        scores = np.full((len(rows), k), -np.inf, np.float32)
        with _reading(self._location.uri):
            table = self._pinned()
            for i, query in enumerate(rows):
                found = table.search(query, vector_column_name=self.vector_column).distance_type(metric.value).limit(k)
                held = found.select([self.id_column, "_distance"]).to_arrow()
                distances = held["_distance"].to_numpy()
                ids[i, : len(held)] = held[self.id_column].to_pylist()
                scores[i, : len(held)] = -distances if metric == Metric.L2 else 1 - distances
        return Hits(ids if pa.types.is_string(self.id_type) else ids.astype(np.int64), scores)


class LanceWriter(Writer):
    """Adds rows to a table, and after each addition the note, which is a version of its own."""

    def __init__(self, location: Location, layout: Layout, table: Any) -> None:
        self._where, self._layout, self._table = location.uri, layout, table
        cursor = layout.cursor
        with _writing(self._where):
            rows = table.count_rows()
            if cursor is not None and rows > cursor.written and table.version > 1:  # the note of the last addition is missing
                table.checkout(table.version - 1)
                table.restore()
                rows = table.count_rows()
        if cursor is not None and rows != cursor.written:
            fault = f"it has {rows:,} rows, and its note counts {cursor.written:,}"
            raise InterruptedOutputError.altered(self._where, fault)

    def write(self, batch: Batch, note: str) -> None:
        schema = _schema(self._layout)
        vectors = np.ascontiguousarray(batch.vectors, self._layout.dtype).reshape(-1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors), type=schema.field(1).type)
        with _writing(self._where):
            self._table.add(pa.record_batch([batch.ids, column, *batch.payload.columns], schema=schema))
            self.finish(note)

    def finish(self, note: str) -> None:
        with _writing(self._where):
            self._table.update_field_metadata({"path": self._layout.vector_column, "metadata": {_NOTE: note}})


class LanceStore(Store):
    """LanceDB in a local folder."""

    form = "lancedb:///path#table"

    def open(
        self, location: Location, *, space: Space | DeclaredSpace | str | None, id_column: str | None, vector_column: str | None
    ) -> LanceCollection:
        return LanceCollection(location, space=space, id_column=id_column, vector_column=vector_column)

    def capabilities(self, metric: Metric) -> Capabilities:
        return _CAPABILITIES

    def refuses(self, field: pa.Field) -> str | None:
        try:
            held = lancedb.connect("memory://").create_table("t", schema=pa.schema([field])).schema.field(0).type
        except Exception as e:  # LanceDB has no class of its own for a type it cannot hold
            return str(e).split(", /")[0].splitlines()[0]
        return None if _bare(held) == _bare(field.type) else f"it would come back as {held}"

    def note(self, location: Location) -> Note | None:
        with _reading(location.uri):
            return _note_of(_open(location).schema, location.uri)[1]

    def create(self, location: Location, layout: Layout) -> Writer:
        with _writing(location.uri):
            table = lancedb.connect(location.path).create_table(location.part, schema=_schema(layout))
            writer = LanceWriter(location, layout, table)
            writer.finish(layout.note(layout.cursor))
            return writer

    def resume(self, location: Location, layout: Layout) -> Writer:
        with _reading(location.uri):
            table = _open(location)
        return LanceWriter(location, layout, table)

    def drop(self, location: Location) -> None:
        with _writing(location.uri):
            lancedb.connect(location.path).drop_table(location.part)


def _folder(location: Location) -> str:
    return os.path.join(location.path, f"{location.part}.lance")


def _open(location: Location) -> Any:
    if location.host or not location.path or not location.part:
        raise ParameterError(f"{location.uri!r} does not name a local table. Hint: write {LanceStore.form}.")
    if not os.path.isdir(_folder(location)):  # connecting would create the folder
        raise MissingFileError.at(_folder(location))
    return lancedb.connect(location.path).open_table(location.part)


def _escaped(value: str | int) -> str | int:
    return value.replace("'", "''") if isinstance(value, str) else value


def _schema(layout: Layout) -> pa.Schema:
    vectors = pa.list_(pa.from_numpy_dtype(np.dtype(layout.dtype)), layout.space.dim)
    ids = pa.field(layout.id_column, layout.id_type, False)
    return pa.schema([ids, pa.field(layout.vector_column, vectors, False), *layout.payload_schema])


def _bare(kind: pa.DataType) -> pa.DataType:
    """A type without the names and the nullability of the items of lists, which LanceDB does not keep."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_bare(kind.value_type), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(_bare(kind.value_type))
    return pa.struct([(f.name, _bare(f.type)) for f in kind]) if pa.types.is_struct(kind) else kind


def _note_of(schema: pa.Schema, where: str) -> tuple[str, Note | None]:
    """The column with a note of embridge, and the note; ``vector`` and None where there is none."""
    for column in schema:
        if (note := Note.loads((column.metadata or {}).get(_NOTE.encode()), where)) is not None:
            return column.name, note
    return "vector", None


def _metric_of(table: Any, column: str) -> Metric | None:
    """The metric of the index over a column of vectors; None where it has none."""
    for index in table.list_indices():
        if column in index.columns and (stats := table.index_stats(index.name)) is not None and stats.distance_type:
            return Metric(stats.distance_type)
    return None


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except EmbridgeError:
        raise
    except Exception as e:  # LanceDB raises RuntimeError, ValueError and OSError alike
        raise UnreadableFileError.at(where, "a LanceDB table", str(e).split(", /")[0]) from e


@contextlib.contextmanager
def _writing(where: str) -> Iterator[None]:
    try:
        with writing(where):
            yield
    except EmbridgeError:
        raise
    except Exception as e:
        raise OutputError(f"{where!r} cannot be written: {str(e).splitlines()[0]}") from e
