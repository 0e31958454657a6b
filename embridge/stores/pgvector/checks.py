"""What a migration in place needs of a table, checked before anything is written."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from embridge.errors import BadIdsError, CollectionError, OutputError, OutputExistsError, ParameterError
from embridge.stores.in_place import MigrationNote, Preview
from embridge.stores.pgvector.collection import one, table_of
from embridge.stores.pgvector.columns import Column
from embridge.stores.pgvector.indexes import indexes_of, planned
from embridge.stores.uri import Location

_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
_LONGEST = 63  # bytes of a name; PostgreSQL cuts longer ones
_WIDEST = 16_000  # dimensions of vector and halfvec


def check_table(
    connection: psycopg.Connection[Any], location: Location, note: MigrationNote, columns: dict[str, Column], kind: str
) -> Preview:
    """Refuse a table that cannot be migrated, and say what will happen to one that can.

    Raises
    ------
    CollectionError, BadIdsError, ParameterError, OutputExistsError, OutputError
    """
    name = table_of(location).as_string(connection)
    _check_kind(connection, location, name)
    _check_rights(connection, location, name)
    _check_ids(connection, location, name, columns[note.id_column])
    for column in (note.into, note.aside):
        if len(column.encode()) > _LONGEST:
            raise ParameterError(
                f"{column!r} is longer than the {_LONGEST} bytes of a name in PostgreSQL. Hint: name it with --into."
            )
        if column in columns:
            raise OutputExistsError(
                f"{location.uri!r} already has a column {column!r}, which the migration needs. Hint: --into NAME."
            )
    if note.new.dim > _WIDEST:
        raise CollectionError(f"pgvector holds up to {_WIDEST:,} dimensions, and {note.new.name!r} has {note.new.dim:,}.")
    query = "SELECT attgenerated <> '', atthasdef FROM pg_attribute WHERE attrelid = %s::regclass AND attname = %s"
    is_generated, has_default = one(connection, query, name, note.name)
    if is_generated:
        raise CollectionError(
            f"{note.name!r} of {location.uri!r} is a generated column, which PostgreSQL computes from others. "
            "Hint: migrate the column that it is computed from."
        )
    return _preview(connection, location, note, kind, has_default=has_default)


def _check_kind(connection: psycopg.Connection[Any], location: Location, name: str) -> None:
    query = "SELECT relkind, relispartition, relhassubclass, row_security_active(oid) FROM pg_class WHERE oid = %s::regclass"
    kind, is_partition, has_children, is_hidden = one(connection, query, name)
    if kind in _KINDS:
        raise CollectionError(
            f"{location.uri!r} is {_KINDS[kind]}, which has no column of its own. Hint: migrate the table behind it."
        )
    if is_partition:
        raise CollectionError(f"{location.uri!r} is one partition of a table. Hint: migrate the whole table.")
    if has_children and kind == "r":
        raise CollectionError(
            f"Other tables inherit from {location.uri!r}, so its ids need not be unique. Hint: migrate them one by one."
        )
    if is_hidden:
        raise CollectionError(
            f"Row-level security may hide rows of {location.uri!r} from this user. Hint: use the owner, or a role with BYPASSRLS."
        )


def _check_rights(connection: psycopg.Connection[Any], location: Location, name: str) -> None:
    query = (
        "SELECT pg_has_role(relowner, 'USAGE'), has_table_privilege(oid, 'SELECT'), has_table_privilege(oid, 'UPDATE'), "
        "has_schema_privilege(relnamespace, 'CREATE'), has_database_privilege(current_database(), 'TEMP'), "
        "NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off' FROM pg_class WHERE oid = %s::regclass"
    )
    needs = (
        "to own the table",
        "SELECT on it",
        "UPDATE on it",
        "CREATE on its schema",
        "TEMP on the database",
        "a writable server",
    )
    lacking = [need for need, has in zip(needs, one(connection, query, name), strict=True) if not has]
    if lacking:
        user = one(connection, "SELECT current_user")[0]
        raise OutputError(f"{user!r} may not migrate {location.uri!r}: it needs {', '.join(lacking)}. Nothing was written.")


def _check_ids(connection: psycopg.Connection[Any], location: Location, name: str, key: Column) -> None:
    query = (
        "SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass AND indisunique AND indisvalid AND indimmediate AND "
        "indpred IS NULL AND indnkeyatts = 1 AND indkey[0] = %s"
    )
    if not one(connection, query, name, key.number)[0]:
        raise BadIdsError(
            f"The column {key.name!r} of {location.uri!r} has no unique index of its own, by which rows are found again. "
            f"Hint: CREATE UNIQUE INDEX CONCURRENTLY ON {name} ({sql.Identifier(key.name).as_string(connection)}), "
            "or name the column of another key (?id=)."
        )
    if not key.not_null:
        count = one(
            connection, sql.SQL("SELECT count(*) FROM {} WHERE {} IS NULL").format(table_of(location), sql.Identifier(key.name))
        )[0]
        if count:
            raise BadIdsError.null(location.uri, count)


def _preview(
    connection: psycopg.Connection[Any], location: Location, note: MigrationNote, kind: str, *, has_default: bool
) -> Preview:
    name, width = table_of(location).as_string(connection), note.new.dim * (2 if kind == "halfvec" else 4)
    size, rows = one(
        connection,
        sql.SQL("SELECT pg_total_relation_size({}::regclass), count(*) FROM {}").format(sql.Literal(name), table_of(location)),
    )
    steps = [
        f"Add the column {note.into!r} of type {kind}({note.new.dim}), nullable, and keep the state in its comment.",
        f"Fill it for {rows:,} rows in batches, in the order of {note.id_column!r}; each batch is one transaction. "
        "Every row gets a new version, so the table grows until it is vacuumed.",
    ]
    query = (
        "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 16 <> 0"
    )
    if triggers := [row[0] for row in connection.execute(query, [name])]:
        steps.append(f"These triggers run for every row that is filled: {', '.join(triggers)}.")
    if note.marks_changed:
        steps.append(f"A trigger empties {note.into!r} in rows whose {note.name!r} changes, until the cutover.")
    else:
        steps.append(f"Changes of {note.name!r} in rows that were filled are not noticed (--mark-changed notices them).")
    found = indexes_of(connection, location, note.name)
    if any(index.method == "hnsw" for index in found):
        steps.append(f"Every new version of a row is also added to the index over {note.name!r}, which takes most of the time.")
    for index in found:
        wanted = planned(index, note, kind)
        steps.append(wanted if isinstance(wanted, str) else f"Build {wanted} over {note.into!r}, as over {note.name!r}.")
    if has_default:
        steps.append(f"The default of {note.name!r} stays with the old vectors.")
    steps.append(f"At the cutover {note.name!r} is renamed {note.aside!r}, and {note.into!r} is renamed {note.name!r}, at once.")
    if views := dependents(connection, location, note.name):
        steps.append(f"These keep reading the old vectors after the cutover, until they are defined again: {', '.join(views)}.")
    indexed = sum(index.bytes for index in found if index.method == "hnsw")
    scale = note.new.dim / note.old.dim
    return Preview(tuple(steps), int(size + rows * width + indexed * scale))


def dependents(connection: psycopg.Connection[Any], location: Location, column: str) -> list[str]:
    """Views and generated columns that read a column, whatever its name is."""
    query = (
        "SELECT DISTINCT coalesce(r.ev_class::regclass::text, pg_describe_object(d.classid, d.objid, d.objsubid)) "
        "FROM pg_attribute a JOIN pg_depend d ON d.refobjid = a.attrelid AND d.refobjsubid = a.attnum AND "
        "d.refclassid = 'pg_class'::regclass "
        "LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid "
        "LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid "
        "WHERE a.attrelid = %s::regclass AND a.attname = %s AND (r.oid IS NOT NULL OR f.adnum <> a.attnum) ORDER BY 1"
    )
    return [row[0] for row in connection.execute(query, [table_of(location).as_string(connection), column])]
