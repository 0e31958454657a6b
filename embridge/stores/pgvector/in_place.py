"""A second vector column beside the old one: written in batches, indexed, swapped by renaming, removed."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import replace

import psycopg
from psycopg import sql

from embridge.errors import CollectionError, n_rows
from embridge.stores.batch import Batch
from embridge.stores.in_place import InPlace, MigrationNote, Preview, find_migration
from embridge.stores.pgvector.checks import check_table, dependents
from embridge.stores.pgvector.collection import columns_of, connect, one, table_of, translated, writing
from embridge.stores.pgvector.columns import Column, to_wire
from embridge.stores.pgvector.indexes import build_indexes
from embridge.stores.pgvector.live import VERSION, LiveRows
from embridge.stores.uri import Location

_LOCK_TIMEOUT = "10s"  # for a lock that keeps readers out: they would queue behind it
_STAGED = sql.Identifier("pg_temp", "embridge_staged")
_STORAGE = {"p": "PLAIN", "e": "EXTERNAL", "x": "EXTENDED", "m": "MAIN"}
_LOCK = 0x656D62  # of a table that is being migrated; the first of the two numbers of an advisory lock
_TRIGGER = sql.Identifier("embridge_mark_changed")


class PgInPlace(InPlace):
    """Migrations in place of one table."""

    def __init__(self, location: Location) -> None:
        self._location, self._table, self._key = location, table_of(location), None
        with translated(location):
            self._connection = connect(location)

    def close(self) -> None:
        self._connection.close()

    def _columns(self) -> dict[str, Column]:
        return {column.name: column for column in columns_of(self._connection, self._location)}

    def note(self) -> MigrationNote | None:
        with translated(self._location):
            comments = {name: column.comment for name, column in self._columns().items()}
        return find_migration(comments, self._location.uri, self._location.options.get("vector"))

    def check(self, note: MigrationNote) -> Preview:
        with translated(self._location):
            return check_table(self._connection, self._location, note, self._columns(), _kind(note))

    def start(self, note: MigrationNote) -> None:
        with self._changing():
            query = "SELECT oid::int8 FROM pg_class WHERE oid = %s::regclass"
            [oid] = one(self._connection, query, self._table.as_string(self._connection))
            self._connection.execute("SELECT pg_advisory_lock(%s, %s)", [_LOCK, oid - (oid >> 31 << 32)])  # of this session
            if note.into not in self._columns():
                self._add_column(note)
            if note.marks_changed:
                self._mark_changed(note)
            self._keep(note)

    def _add_column(self, note: MigrationNote) -> None:
        """The new column, stored in the way of the old one."""
        query = "SELECT attstorage FROM pg_attribute WHERE attrelid = %s::regclass AND attname = %s"
        [storage] = one(self._connection, query, self._table.as_string(self._connection), note.name)
        add = sql.SQL("ALTER TABLE {} ADD COLUMN {} {}({})")
        into = sql.Identifier(note.into)
        self._connection.execute(add.format(self._table, into, sql.SQL(_kind(note)), sql.Literal(note.new.dim)))
        self._alter(note.into, sql.SQL("SET STORAGE {}").format(sql.SQL(_STORAGE[storage])))

    def old_rows(self, note: MigrationNote, *, missing: bool = False) -> LiveRows | None:
        where = sql.SQL("{} IS NOT NULL").format(sql.Identifier(note.old_name))
        if missing:
            where = sql.SQL("{} AND {} IS NULL").format(where, sql.Identifier(note.new_name))
        return self._rows(note, note.old_name, where, VERSION.name)

    def new_rows(self, note: MigrationNote) -> LiveRows | None:
        where = sql.SQL("{} IS NOT NULL").format(sql.Identifier(note.new_name))
        return self._rows(note, note.new_name, where, note.old_name)

    def without_vector(self, note: MigrationNote) -> int:
        return self._count(note, sql.SQL("{} IS NULL AND {} IS NULL"))

    def _rows(self, note: MigrationNote, column: str, where: sql.Composable, other: str) -> LiveRows | None:
        space = note.space_of(column)
        assert space is not None  # noqa: S101
        with translated(self._location):
            columns = self._columns() | {VERSION.name: VERSION}
            count = one(self._connection, sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self._table, where))[0]
        read = columns[note.id_column], columns[column], columns[other]
        return LiveRows(self._location, read, space, where, count) if count else None

    def _count(self, note: MigrationNote, where: sql.SQL) -> int:
        """Rows for which a condition on the old and the new vector holds."""
        condition = where.format(sql.Identifier(note.old_name), sql.Identifier(note.new_name))
        return one(self._connection, sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self._table, condition))[0]

    def write(self, batch: Batch, note: MigrationNote) -> int:
        key = self._columns()[note.id_column] if self._key is None else self._key
        ids = batch.ids.to_pylist()
        if key.kind == "uuid":
            ids = [uuid.UUID(value).bytes for value in ids]
        kinds = ["bytea" if key.kind == "uuid" else key.kind if key.kind in ("int2", "int4", "int8") else "text", "bytea", "int8"]
        columns = [ids, to_wire(batch.vectors, _kind(note)), batch.payload.column(0).to_pylist()]
        # Rows that were changed since they were read have another version, and stay without a new vector until they are read again.
        update = "UPDATE {} AS t SET {} = s.vector FROM {} AS s WHERE t.{} = s.id AND t.xmin::text::int8 = s.version"
        names = self._table, sql.Identifier(note.into), _STAGED, sql.Identifier(key.name)
        with writing(self._location):
            if self._key is None:
                self._stage(note)
                self._key = key
            with self._connection.transaction(), self._connection.cursor() as cursor:
                with cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(_STAGED)) as copy:
                    copy.set_types(kinds)
                    for row in zip(*columns, strict=True):
                        copy.write_row(row)
                written = cursor.execute(sql.SQL(update).format(*names)).rowcount
                self._keep(note)
        return written

    def _stage(self, note: MigrationNote) -> None:
        """A table of this session that batches are copied into; its ids are of the type and the collation of the table's."""
        made = sql.SQL(
            "CREATE TEMP TABLE embridge_staged ON COMMIT DELETE ROWS AS "
            "SELECT {} AS id, NULL::{}({}) AS vector, 0::int8 AS version FROM {} WITH NO DATA"
        )
        kind = sql.SQL(_kind(note)), sql.Literal(note.new.dim)
        self._connection.execute(made.format(sql.Identifier(note.id_column), *kind, self._table))
        self._connection.execute("SET enable_hashjoin = off")  # rows are found by the index over ids, not by reading the table
        self._connection.execute("SET enable_mergejoin = off")

    def finish(self, note: MigrationNote) -> list[str]:
        with writing(self._location):
            remarks = build_indexes(self._connection, self._location, note, _kind(note))
            self._keep(note)
        return remarks

    def swap(self, note: MigrationNote, *, missing: int = 0) -> list[str]:
        with self._changing():
            self._connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(self._table))
            now = self.note()
            if now is None or now.is_live == note.is_live:
                return []
            if note.is_live and (left := self._count(now, sql.SQL("{} IS NOT NULL AND {} IS NULL"))) > missing:
                raise CollectionError(
                    f"{self._location.uri!r} got {n_rows(left - missing)} without a new vector just now. "
                    "Hint: embridge migrate with --resume translates them; pause writes until the cutover."
                )
            parked = sql.SQL("{} IS NOT NULL AND {} IS NULL" if note.is_live else "{} IS NULL AND {} IS NOT NULL")
            alone = self._count(now, parked)
            remarks = self._move_not_null(now, note, alone)
            forth, back = [(note.name, note.aside), (note.into, note.name)], [(note.name, note.into), (note.aside, note.name)]
            for before, after in forth if note.is_live else back:
                names = sql.Identifier(before), sql.Identifier(after)
                self._connection.execute(sql.SQL("ALTER TABLE {} RENAME COLUMN {} TO {}").format(self._table, *names))
            self._unmark()
            self._keep(replace(note, marks_changed=False))
            parked_name = note.old_name if note.is_live else note.new_name
            if views := dependents(self._connection, self._location, parked_name):
                remarks.append(f"These still read {parked_name!r}, until they are defined again: {', '.join(views)}.")
        return remarks + _after(note, alone)

    def _move_not_null(self, now: MigrationNote, note: MigrationNote, alone: int) -> list[str]:
        """Take NOT NULL from the column that goes out of use, since new rows have no value there, and give it to the other."""
        leaves, comes = (now.old_name, now.new_name) if note.is_live else (now.new_name, now.old_name)
        if not self._columns()[leaves].not_null:
            return []
        self._alter(leaves, sql.SQL("DROP NOT NULL"))
        if alone:
            return [f"The column {note.name!r} is not NOT NULL any more, since {n_rows(alone)} have no vector there."]
        self._alter(comes, sql.SQL("SET NOT NULL"))
        return []

    def drop(self, note: MigrationNote) -> None:
        gone = note.old_name if note.is_live else note.into
        with self._changing():
            self._unmark()
            self._connection.execute(sql.SQL("ALTER TABLE {} DROP COLUMN IF EXISTS {}").format(self._table, sql.Identifier(gone)))
            if note.is_live:
                self._keep(note.at("finished"))

    def _alter(self, column: str, change: sql.Composable) -> None:
        self._connection.execute(sql.SQL("ALTER TABLE {} ALTER COLUMN {} {}").format(self._table, sql.Identifier(column), change))

    def _keep(self, note: MigrationNote) -> None:
        column = sql.Identifier(note.new_name)
        self._connection.execute(sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(self._table, column, sql.Literal(note.dumps())))

    def _mark_changed(self, note: MigrationNote) -> None:
        """Empty the new vector of a row whose old one changes, by a trigger."""
        function, name, into = self._function(), sql.Identifier(note.name), sql.Identifier(note.into)
        body = sql.SQL("BEGIN NEW.{} := NULL; RETURN NEW; END").format(into).as_string(self._connection)
        self._unmark()
        self._connection.execute(
            sql.SQL("CREATE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS {}").format(function, sql.Literal(body))
        )
        self._connection.execute(
            sql.SQL(
                "CREATE TRIGGER {} BEFORE UPDATE ON {} FOR EACH ROW WHEN (OLD.{} IS DISTINCT FROM NEW.{}) EXECUTE FUNCTION {}()"
            ).format(_TRIGGER, self._table, name, name, function)
        )

    def _unmark(self) -> None:
        self._connection.execute(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(_TRIGGER, self._table))
        self._connection.execute(sql.SQL("DROP FUNCTION IF EXISTS {}()").format(self._function()))

    def _function(self) -> sql.Identifier:
        query = "SELECT n.nspname, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s::regclass"
        schema, oid = one(self._connection, query, self._table.as_string(self._connection))
        return sql.Identifier(schema, f"embridge_mark_changed_{oid}")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """One transaction that changes the table, and does not wait long for those who use it."""
        with writing(self._location):
            try:
                with self._connection.transaction():
                    self._connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
                    yield
            except psycopg.errors.LockNotAvailable as e:
                raise CollectionError(
                    f"{self._location.uri!r} is used by another transaction, which did not end in {_LOCK_TIMEOUT}. "
                    "Nothing was changed. Hint: repeat when it has ended."
                ) from e


def _kind(note: MigrationNote) -> str:
    return "halfvec" if note.dtype == "float16" else "vector"


def _after(note: MigrationNote, alone: int) -> list[str]:
    """What becomes of rows that are written from now on."""
    if note.is_live:
        return [
            f"From now on {note.name!r} takes vectors of {note.new.name!r}; rows that are written now have none in {note.aside!r}, "
            "and a rollback does not find them."
        ]
    found = f"; {n_rows(alone)} have none" if alone else ""
    return [
        f"{note.name!r} takes vectors of {note.old.name!r} again. Rows written since the cutover keep the old vector that they had "
        f"then{found}."
    ]
