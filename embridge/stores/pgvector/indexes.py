"""Indexes over the vectors of a table: those of one column, built again over another."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from embridge.errors import CollectionError
from embridge.stores.arrow import ArrowCollection
from embridge.stores.in_place import MigrationNote
from embridge.stores.pgvector.collection import CLASSES, one, table_of
from embridge.stores.store import Cursor
from embridge.stores.uri import Location

_LARGEST = {"vector": 2_000, "halfvec": 4_000}  # dimensions of an index
_METHODS = ("hnsw", "ivfflat")
_LOCK_TIMEOUT = "60s"
_PAUSE = 0.5  # seconds


@dataclass(frozen=True)
class VectorIndex:
    """An index that depends on a column.

    Attributes
    ----------
    name, definition : str
    method, schema, operators : str
        Access method; schema and name of the operator class.
    options : tuple of str
        ``m=16`` ...
    condition : str or None
        Of a partial index.
    is_plain : bool
        It is over the column itself.
    is_valid : bool
    bytes : int
    """

    name: str
    definition: str
    method: str
    schema: str
    operators: str
    options: tuple[str, ...]
    condition: str | None
    is_plain: bool
    is_valid: bool
    bytes: int

    @property
    def settings(self) -> tuple[Any, ...]:
        """What two indexes have in common that answer the same queries in the same way."""
        return self.method, self.operators, tuple(sorted(self.options)), self.condition

    def __str__(self) -> str:
        options = f", {', '.join(self.options)}" if self.options else ""
        return f"{self.method} ({self.operators}{options})"


def indexes_of(connection: psycopg.Connection[Any], location: Location, column: str) -> list[VectorIndex]:
    """The indexes that depend on a column."""
    query = (
        "SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid), m.amname, n.nspname, o.opcname, "
        "coalesce(c.reloptions, '{}'), pg_get_expr(i.indpred, i.indrelid), i.indnatts = 1 AND i.indkey[0] = a.attnum, "
        "i.indisvalid, pg_relation_size(c.oid) "
        "FROM pg_attribute a JOIN pg_index i ON i.indrelid = a.attrelid JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_am m ON m.oid = c.relam JOIN pg_opclass o ON o.oid = i.indclass[0] JOIN pg_namespace n ON n.oid = o.opcnamespace "
        "WHERE a.attrelid = %s::regclass AND a.attname = %s AND EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND "
        "d.classid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum) ORDER BY c.oid"
    )
    rows = connection.execute(query, [table_of(location).as_string(connection), column]).fetchall()
    return [VectorIndex(*row[:5], tuple(row[5]), *row[6:]) for row in rows]


def planned(found: VectorIndex, note: MigrationNote, kind: str) -> VectorIndex | str:
    """The same index over the new column, or why there is none."""
    column = note.old_name
    if not found.is_plain or found.method not in _METHODS or column in (found.condition or ""):
        return (
            f"The index {found.name} is not built over the new vectors, since it is not over the column alone: {found.definition}."
        )
    if note.new.dim > _LARGEST[kind]:
        other = f" Hint: --dtype float16 allows {_LARGEST['halfvec']:,}." if kind == "vector" and note.new.dim <= 4_000 else ""
        return (
            f"No index is built: {found.method} takes {kind} of up to {_LARGEST[kind]:,} dimensions, and {note.new.name!r} has "
            f"{note.new.dim:,}.{other}"
        )
    _, metric, _ = found.operators.rsplit("_", 2)
    if note.new.metric != note.old.metric:
        metric = next(name for name, value in CLASSES.items() if value == note.new.metric)
    operators = f"{kind}_{metric}_ops"
    return VectorIndex("", "", found.method, found.schema, operators, found.options, found.condition, True, True, 0)


def build_indexes(connection: psycopg.Connection[Any], location: Location, note: MigrationNote, kind: str) -> list[str]:
    """Build the indexes of the old column over the new one, unless they are there."""
    name = table_of(location).as_string(connection)
    while connection.execute("SELECT FROM pg_stat_progress_create_index WHERE relid = %s::regclass", [name]).fetchone():
        time.sleep(_PAUSE)  # the server goes on with an index whose client was killed
    there = indexes_of(connection, location, note.new_name)
    for index in there:
        if not index.is_valid:  # its building was interrupted
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.SQL(index.name)))
    there_settings = [index.settings for index in there if index.is_valid]
    remarks = []
    for index in indexes_of(connection, location, note.old_name):
        wanted = planned(index, note, kind)
        if isinstance(wanted, str):
            remarks.append(wanted)
        elif index.is_valid and wanted.settings not in there_settings:
            _build(connection, location, note.new_name, wanted)
            remarks.append(f"Built {wanted} over {note.new_name!r}, as over {note.old_name!r}.")
    return remarks or [f"{note.old_name!r} has no index that {note.new_name!r} lacks."]


def build_like(
    connection: psycopg.Connection[Any], other: ArrowCollection, location: Location, collection: ArrowCollection
) -> None:
    """Build the indexes of one collection's vectors over those of another one, which has none."""
    spaces, names = (other.stated_space, collection.stated_space), (other.vector_column, collection.vector_column)
    note = MigrationNote("column", "ready", *spaces, other.id_column, *names, "", "", "float32", Cursor(""))
    for index in indexes_of(connection, Location.parse(str(other.path)), other.vector_column):
        wanted = planned(index, note, "vector")
        if index.is_valid and index.condition is None and not isinstance(wanted, str):
            _build(connection, location, collection.vector_column, wanted)


def _build(connection: psycopg.Connection[Any], location: Location, column: str, index: VectorIndex) -> None:
    """Build an index; without keeping writers out, where no older transaction would make that wait for its end."""
    name = table_of(location).as_string(connection)
    query = (
        "SELECT relkind = 'r' AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND "
        "pid <> pg_backend_pid() AND datname = current_database()) FROM pg_class WHERE oid = %s::regclass"
    )
    mode = "CONCURRENTLY" if one(connection, query, name)[0] else ""
    options = [sql.SQL("{} = {}").format(sql.Identifier(key), sql.Literal(value)) for key, _, value in map(_pair, index.options)]
    statement = sql.SQL("CREATE INDEX {} ON {} USING {} ({} {}){}{}").format(
        sql.SQL(mode), table_of(location), sql.Identifier(index.method), sql.Identifier(column),
        sql.Identifier(index.schema, index.operators),
        sql.SQL(" WITH ({})").format(sql.SQL(", ").join(options)) if options else sql.SQL(""),
        sql.SQL(f" WHERE {index.condition}") if index.condition else sql.SQL(""),
    )  # fmt: skip
    connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
    try:
        connection.execute(statement)
    except psycopg.errors.LockNotAvailable as e:
        raise CollectionError(
            f"The index over {column!r} of {location.uri!r} waits for a transaction that did not end in {_LOCK_TIMEOUT}. "
            "Hint: end it (see pg_stat_activity), and run again with --resume."
        ) from e
    finally:
        connection.execute("RESET lock_timeout")


def _pair(option: str) -> tuple[str, str, str]:
    return option.partition("=")
