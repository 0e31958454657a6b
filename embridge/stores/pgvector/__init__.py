"""The store ``postgresql://``: tables of PostgreSQL with vector columns of pgvector."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import pyarrow as pa

from embridge.errors import CollectionError, InterruptedOutputError, MissingDependencyError, ParameterError, UnreadableFileError
from embridge.stores.base import Collection
from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.parquet.file import vectors_of
from embridge.stores.store import Layout, Note, Store, Writer
from embridge.stores.uri import Location, beside
from embridge.types import DeclaredSpace, Metric, Space

try:
    import psycopg
except ImportError as error:
    raise MissingDependencyError.of("psycopg", "postgresql://", "pgvector") from error

from psycopg import sql

from embridge.stores.pgvector.collection import (
    CAPABILITIES,
    PgCollection,
    columns_of,
    connect,
    note_of,
    one,
    table_of,
    translated,
    writing,
)  # fmt: skip
from embridge.stores.pgvector.columns import to_wire, type_for
from embridge.stores.pgvector.in_place import PgInPlace
from embridge.stores.pgvector.indexes import build_like

_LONGEST = 63  # bytes of a name
_LOCK = 0x656D6272  # of advisory locks, beside the number of a table


class PgWriter(Writer):
    """Copies rows in, in one transaction with the note that counts them."""

    def __init__(self, location: Location, layout: Layout) -> None:
        self._location, self._layout, self._table = location, layout, table_of(location)
        self._spaces = layout.payload_spaces
        self._vectors = "halfvec" if layout.dtype == "float16" else "vector"
        with translated(location):
            self._connection = connect(location)

    def create(self) -> None:
        """Create the table. Ids of text are ordered by code point, so that their index serves the order of reading."""
        layout = self._layout
        key = "bigint" if pa.types.is_integer(layout.id_type) else 'text COLLATE "C"'
        columns = [
            sql.SQL("{} {} PRIMARY KEY").format(sql.Identifier(layout.id_column), sql.SQL(key)),
            sql.SQL("{} {}({}) NOT NULL").format(
                sql.Identifier(layout.vector_column), sql.SQL(self._vectors), sql.Literal(layout.space.dim)
            ),
        ]
        columns += [
            sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(self._type(field))) for field in layout.payload_schema
        ]
        with writing(self._location), self._connection.transaction():
            self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            self._connection.execute(sql.SQL("CREATE TABLE {} ({})").format(self._table, sql.SQL(", ").join(columns)))
            self._put(layout.note(layout.cursor))
        self.lock()

    def lock(self) -> None:
        """Be the only writer, until this connection ends; that of a killed process ends a moment after it.

        Raises
        ------
        InterruptedOutputError
        """
        query = sql.SQL("SET lock_timeout = '5s'; SELECT pg_advisory_lock({}, {}::regclass::oid::int8::bit(32)::int4)").format(
            sql.Literal(_LOCK), sql.Literal(self._table.as_string(self._connection))
        )
        try:
            with translated(self._location):
                self._connection.execute(query)
                self._connection.execute("RESET lock_timeout")
        except UnreadableFileError as e:
            if not isinstance(e.__cause__, psycopg.errors.LockNotAvailable):
                raise
            raise InterruptedOutputError(
                f"Another process is writing {self._location.uri!r}. Hint: wait for it, or give another output."
            ) from e

    def write(self, batch: Batch, note: str) -> None:
        layout = self._layout
        names = [layout.id_column, layout.vector_column, *layout.payload_schema.names]
        kinds = ["int8" if pa.types.is_integer(layout.id_type) else "text", "bytea"]
        kinds += ["bytea" if f.name in self._spaces else str(type_for(f.type)).partition("(")[0] for f in layout.payload_schema]
        columns = [batch.ids.to_pylist(), to_wire(batch.vectors, self._vectors)]
        for field, column in zip(layout.payload_schema, batch.payload.columns, strict=True):
            if field.name in self._spaces:
                dim = self._spaces[field.name].dim
                columns.append(to_wire(vectors_of(column, dim, self._location.uri, 0, validate=True), "vector"))
            else:
                columns.append(_values(column, field, self._location))
        query = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
            self._table, sql.SQL(", ").join(map(sql.Identifier, names))
        )
        with writing(self._location), self._connection.transaction():
            with self._connection.cursor() as cursor, cursor.copy(query) as copy:
                copy.set_types(kinds)
                for row in zip(*columns, strict=True):
                    copy.write_row(row)
            self._put(note)

    def _type(self, field: pa.Field) -> str:
        """The type of a payload column; vectors of a space of their own are vectors of PostgreSQL."""
        space = self._spaces.get(field.name)
        return str(type_for(field.type)) if space is None else f"vector({space.dim})"

    def finish(self, note: str) -> None:
        with writing(self._location):
            self._put(note)

    def _put(self, note: str) -> None:
        column = sql.Identifier(self._layout.vector_column)
        self._connection.execute(sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(self._table, column, sql.Literal(note)))

    def close(self) -> None:
        self._connection.close()


class PgStore(Store):
    """PostgreSQL with pgvector."""

    form = "postgresql://user@host/db?table=docs&id=id&vector=embedding"

    def open(
        self, location: Location, *, space: Space | DeclaredSpace | str | None, id_column: str | None, vector_column: str | None
    ) -> PgCollection:
        return PgCollection(location, space=space, id_column=id_column, vector_column=vector_column)

    def capabilities(self, metric: Metric) -> Capabilities:
        return CAPABILITIES

    def refuses(self, field: pa.Field) -> str | None:
        return None if type_for(field.type) else "PostgreSQL has no type that keeps its values"

    def check(self, location: Location, layout: Layout) -> None:
        super().check(location, layout)
        names = (layout.id_column, layout.vector_column, *layout.payload_schema.names)
        for name in (location.options.get("schema", ""), location.options.get("table", ""), *names):
            if len(name.encode()) > _LONGEST:
                raise ParameterError(
                    f"{location.uri!r} cannot have the name {name!r}: PostgreSQL cuts names after {_LONGEST} bytes."
                )

    def note(self, location: Location) -> Note | None:
        with translated(location), contextlib.closing(connect(location)) as connection:
            return note_of(columns_of(connection, location), location)[1]

    def places(self, location: Location) -> set[str]:
        query = (
            "SELECT concat_ws(' ', system_identifier, d.oid, %s::regclass::oid) FROM pg_control_system(), pg_database d "
            "WHERE d.datname = current_database()"
        )
        with translated(location), contextlib.closing(connect(location)) as connection:
            return {one(connection, query, table_of(location).as_string(connection))[0]}

    def create(self, location: Location, layout: Layout) -> Writer:
        writer = PgWriter(location, layout)
        try:
            writer.create()
        except BaseException:
            writer.close()
            raise
        return writer

    def resume(self, location: Location, layout: Layout) -> Writer:
        writer = PgWriter(location, layout)
        try:
            writer.lock()
        except BaseException:
            writer.close()
            raise
        return writer

    def index_like(self, location: Location, other: Collection) -> None:
        made = PgCollection(location)
        with writing(location), contextlib.closing(connect(location)) as connection:
            for one, side in ((other, made), (other.old_side or other, made.old_side)):
                if isinstance(one, PgCollection) and side is not None:
                    build_like(connection, one, location, side)
            connection.execute(sql.SQL("ANALYZE {}").format(table_of(location)))

    def in_place(self, location: Location) -> PgInPlace:
        return PgInPlace(location)

    def beside(self, location: Location) -> Location:
        found = super().beside(location)
        if len(found.options["table"].encode()) <= _LONGEST:
            return found
        return Location.parse(beside(location.uri, _short, without=()))

    def replace(self, location: Location, by: Location) -> None:
        name = sql.Identifier(location.options["table"])
        with writing(location), contextlib.closing(connect(location)) as connection:
            connection.execute("SET lock_timeout = '10s'")  # readers that come later would wait behind it
            with connection.transaction():
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table_of(location)))
                connection.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(table_of(by), name))

    def drop(self, location: Location) -> None:
        with translated(location), contextlib.closing(connect(location)) as connection:
            connection.execute("SET lock_timeout = '10s'")  # readers that come later would wait behind it
            connection.execute(sql.SQL("DROP TABLE {}").format(table_of(location)))


def _short(name: str) -> str:
    return f"replacement_{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"


def _values(column: pa.Array, field: pa.Field, location: Location) -> list[Any]:
    """The Python values of a payload column."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError) as e:
        raise CollectionError(
            f"Column {field.name!r} has values that cannot be written to {location.uri!r}: dates and times outside the years 1 to "
            "9999. Hint: drop or cast it."
        ) from e
