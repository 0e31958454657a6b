"""Rows of a table with a vector column, read in one snapshot, in the order of their ids."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import sql

from embridge.arrays import UNIT_TOLERANCE, as_vectors
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    ChangedSourceError,
    CollectionError,
    DiskFullError,
    EmbridgeError,
    MissingFileError,
    OutputError,
    ParameterError,
    UndeclaredSpaceError,
    UnreadableFileError,
)
from embridge.stores.arrow import ArrowCollection
from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.in_place import note_to_open
from embridge.stores.pgvector.columns import QUERY, VECTORS, VIEW_HINT, Column
from embridge.stores.store import Note, check_finished
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Hits, Metric, Space

CAPABILITIES = Capabilities(
    keeps_order=False,
    keeps_repeated_ids=True,
    has_snapshot=True,
    supports_second_vector=True,
    dtypes=("float32", "float16"),
    in_place_modes=("column",),
    finds_missing=True,
    marks_changed=True,
)
_OPTIONS = ("table", "schema", "id", "vector")
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_OPERATORS = {Metric.COSINE: "<=>", Metric.DOT: "<#>", Metric.L2: "<->"}
CLASSES = {"cosine": Metric.COSINE, "ip": Metric.DOT, "l2": Metric.L2}
_TEXT = ("text", "varchar", "bpchar", "name", "citext", "uuid")  # types of ids that are read as text


class PgCollection(ArrowCollection):
    """Rows of a table: ``postgresql://user@host/db?table=docs&id=id&vector=embedding``.

    All readings see the snapshot of its opening, in ascending order of ids (of text by code point). Ids are text, integers, or
    UUIDs, which become their text.
    """

    kind = "postgresql"
    capabilities = CAPABILITIES
    seeks = fetches = opens_further = True

    def __init__(
        self,
        location: Location,
        *,
        space: Space | DeclaredSpace | str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> None:
        self.path, self._location, self._table = location.uri, location, table_of(location)
        with translated(location):
            held = connect(location)  # it holds the snapshot, but no lock, so that others can alter the table
            self._release = weakref.finalize(self, held.close)
            held.execute(_BEGIN)
            self._snapshot: str = one(held, "SELECT pg_export_snapshot()")[0]
            self._held, self._shape = held, None
            with self._reader() as reader:
                known = columns_of(reader, location)
                self._columns = {c.name: c for c in known}
                self._shape = self._shape_now(reader)
                vectors = [c.name for c in known if c.kind in VECTORS]
                default = vectors[0] if len(vectors) == 1 else "vector"
                note, name = note_to_open({c.name: c.comment for c in known}, location, vector_column, default)
                check_finished(note, self.name)
                metrics = _index_metrics(reader, location, name)
                self._rows = one(reader, sql.SQL("SELECT count(*) FROM {}").format(self._table))[0]
        named = note.columns if note else {}
        columns = location.column("id", id_column, named.get("id", "id")), name
        schema = pa.schema([(c.name, self._arrow(c, columns)) for c in known])
        self._describe(schema, columns, space, note=note, metric=min(metrics, default=None))
        declared = DeclaredSpace.parse(space) if isinstance(space, str) else space
        if len(metrics) > 1 and not self._is_settled and declared is not None and declared.metric is None:
            raise UndeclaredSpaceError(
                f"{self.name} has indexes of several metrics over {name!r}: {', '.join(sorted(metrics))}. Hint: name one with the "
                f"space: {self._stated.name}:{min(metrics)}."
            )

    def _arrow(self, column: Column, columns: tuple[str, str]) -> pa.DataType:
        if column.name == columns[0] and column.kind not in _TEXT and column.kind not in ("int2", "int4", "int8"):
            raise BadIdsError.kind(f"Column {column.name!r} of {self.name}", column.kind)
        if column.name == columns[1] and column.kind not in VECTORS:
            raise BadVectorsError(f"Column {column.name!r} of {self.name} is {column.kind}, not one of {', '.join(VECTORS)}.")
        return column.arrow

    def _record_batches(self, columns: list[str], batch_rows: int, after: str | int | None = None) -> Iterator[pa.RecordBatch]:
        where, order = sql.SQL(""), self._order()
        if after is not None:
            kind = "uuid" if self._columns[self.id_column].kind == "uuid" else "text" if isinstance(after, str) else "int8"
            value = sql.SQL("{}::{}").format(sql.Literal(after), sql.SQL(kind))
            where = sql.SQL("WHERE {} > {}").format(order, value)
        yield from self._copied(columns, batch_rows, sql.SQL("{} ORDER BY {}").format(where, order))
        if after is not None and not self._columns[self.id_column].not_null:  # they come last, and no comparison finds them
            yield from self._copied(columns, batch_rows, sql.SQL("WHERE {} IS NULL").format(sql.Identifier(self.id_column)))

    def _copied(self, columns: list[str], batch_rows: int, rest: sql.Composable) -> Iterator[pa.RecordBatch]:
        """Columns of the rows that the rest of a query selects."""
        chosen = [self._columns[name] for name in columns]
        query = sql.SQL("COPY (SELECT {} FROM {} {}) TO STDOUT (FORMAT BINARY)").format(
            sql.SQL(", ").join(c.query for c in chosen), self._table, rest
        )
        with translated(self._location), self._reader() as reader, reader.cursor() as cursor, cursor.copy(query) as copy:
            copy.set_types([c.wire for c in chosen])
            rows = copy.rows()
            while part := list(itertools.islice(rows, batch_rows)):
                found = zip(chosen, zip(*part, strict=True), strict=True)
                yield pa.record_batch([column.array(values, self.name) for column, values in found], names=columns)

    def _fetch(self, ids: pa.Array) -> Batch:
        column = self._columns[self.id_column]
        kind = "uuid" if column.kind == "uuid" else "text" if pa.types.is_string(ids.type) else "int8"
        name = column.query if column.wire == "text" and kind != "uuid" else sql.Identifier(column.name)
        where = sql.SQL("WHERE {} = ANY ({}::{}[])").format(name, sql.Literal(ids.to_pylist()), sql.SQL(kind))
        return self._gathered(self._copied([self.id_column, self.vector_column], len(ids), where))

    def _order(self) -> sql.Composable:
        """The expression that orders rows: text by code point, as Arrow and DuckDB do."""
        name = sql.Identifier(self.id_column)
        kind = self._columns[self.id_column].kind
        return sql.SQL('{}::text COLLATE "C"').format(name) if kind in _TEXT and kind != "uuid" else name

    @contextlib.contextmanager
    def _reader(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection that sees the snapshot."""
        with contextlib.closing(connect(self._location)) as reader:
            reader.execute(_BEGIN)
            try:
                reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self._snapshot)))
            except psycopg.Error as e:
                reason = f"its snapshot was lost with the connection that held it ({_fact(e)})"
                raise ChangedSourceError.of(self.name, reason) from e
            reader.execute(sql.SQL("SELECT FROM {} LIMIT 0").format(self._table))  # from here on nobody alters it
            if self._shape is not None and self._shape_now(reader) != self._shape:
                raise ChangedSourceError.of(self.name, "its columns were renamed or altered, or it was truncated")
            yield reader

    def _shape_now(self, reader: psycopg.Connection[Any]) -> Any:
        """The table, its file and its columns as they are now: a snapshot shows old rows, but under the new names."""
        numbers = [column.number for column in self._columns.values()]
        query = (
            "SELECT t.oid, pg_relation_filenode(t.oid), array(SELECT pg_describe_object(1259, t.oid, n) FROM unnest(%s::int[]) n) "
            "FROM (SELECT %s::regclass::oid) t (oid)"
        )
        return one(reader, query, numbers, self._table.as_string(reader))

    def __len__(self) -> int:
        return self._rows

    def _is_unit(self, *, zero_is_bad: bool) -> bool:
        column = self._columns[self.vector_column]
        length = sql.SQL("vector_norm" if column.kind == "vector" else "l2_norm")
        query = sql.SQL("SELECT bool_and(abs(length - 1) < {}) FROM (SELECT {}({}) AS length, {} AS v FROM {}) t WHERE {}").format(
            sql.Literal(UNIT_TOLERANCE), length, name := sql.Identifier(column.name), name, self._table,
            sql.SQL("vector_dims(v) = {} AND length >= {}").format(
                sql.Literal(self._stated.dim), sql.SQL("1e-38" if zero_is_bad else "0")
            ),
        )  # fmt: skip
        with translated(self._location), self._reader() as reader:
            return bool(one(reader, query)[0])

    def fingerprint(self) -> str:
        """Of the versions of all rows: PostgreSQL gives a changed row another transaction and place."""
        with translated(self._location), self._reader() as reader:
            name = self._table.as_string(reader)
            kind, oid = one(reader, "SELECT relkind, oid FROM pg_class WHERE oid = %s::regclass", name)
            row = "ctid::text, xmin::text, tableoid::text" if kind in ("r", "p", "m") else "t::text"
            query = "SELECT count(*), sum(hashtextextended(concat_ws(' ', {}), 0)), current_database() FROM {} t"
            found = one(reader, sql.SQL(query).format(sql.SQL(row), self._table))
        return hashlib.blake2b(repr((oid, found)).encode(), digest_size=16).hexdigest()

    def search(self, queries: np.ndarray, k: int = 10) -> Hits:
        """The k nearest rows, through the table's index where PostgreSQL uses it (see `Searchable`)."""
        metric, column = self.stated_space.metric, self._columns[self.vector_column]
        rows = as_vectors(queries, self.stated_space.dim, "queries")
        is_text = pa.types.is_string(self.id_type)
        ids = np.full((len(rows), k), None if is_text else -1, object)
        scores = np.full((len(rows), k), -np.inf, np.float32)
        name, own_id = sql.Identifier(column.name), self._columns[self.id_column].query
        head = sql.SQL("SELECT {}, {} {} ").format(own_id, name, sql.SQL(_OPERATORS[metric]))
        rest = sql.SQL("::{} AS d FROM {} WHERE {} IS NOT NULL ORDER BY d LIMIT {}").format(
            sql.SQL(column.kind), self._table, name, sql.Literal(k)
        )
        with translated(self._location), self._reader() as reader:
            reader.execute(f"SET LOCAL hnsw.ef_search = {min(max(k, 40), 1000)}")
            reader.execute("SET LOCAL hnsw.iterative_scan = strict_order")
            for i, row in enumerate(rows):
                found = reader.execute(head + sql.Literal(str(row.tolist())) + rest).fetchall()  # names may hold % signs
                ids[i, : len(found)] = [hit[0] for hit in found]
                distances = np.array([hit[1] for hit in found])
                scores[i, : len(found)] = {Metric.COSINE: 1 - distances, Metric.DOT: -distances, Metric.L2: -(distances**2)}[metric]
        return Hits(ids if is_text else ids.astype(np.int64), scores)


def connect(location: Location) -> psycopg.Connection[Any]:
    """A connection; credentials that the URI does not have come from the environment and the files of libpq."""
    known = [option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()]
    location.check_options(*_OPTIONS, *known)
    others = {name: value for name, value in location.options.items() if name not in _OPTIONS} | location.secrets
    place = {"host": location.host, "port": location.port, "user": location.user, "password": location.password}
    place |= {"dbname": location.path.strip("/")}
    found = psycopg.connect(**{name: value for name, value in place.items() if value} | others, autocommit=True)
    found.execute("SET TIME ZONE 'UTC'")
    return found


def table_of(location: Location) -> sql.Identifier:
    """The table that a URI names, quoted."""
    if not location.options.get("table"):
        raise ParameterError(f"{location.uri!r} names no table. Hint: postgresql://user@host/db?table=docs&id=id&vector=embedding.")
    schema = location.options.get("schema")
    return sql.Identifier(*([schema] if schema else []), location.options["table"])


def columns_of(connection: psycopg.Connection[Any], location: Location) -> list[Column]:
    """The columns of the table."""
    return [Column(*row) for row in connection.execute(QUERY, [table_of(location).as_string(connection)])]


def note_of(columns: list[Column], location: Location) -> tuple[str | None, Note | None]:
    """The vector column whose comment is a note of embridge, and the note."""
    notes = ((column.name, Note.loads(column.comment, location.uri)) for column in columns)
    return next((pair for pair in notes if pair[1] is not None), (None, None))


def one(connection: psycopg.Connection[Any], query: Any, *values: Any) -> Any:
    """The one row of a query."""
    return connection.execute(query, values or None).fetchone()


def _index_metrics(connection: psycopg.Connection[Any], location: Location, column: str) -> set[Metric]:
    """The metrics of the indexes over the column, or over an expression of it, such as a cast to halfvec."""
    query = (
        "SELECT o.opcname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid "
        "JOIN pg_opclass o ON o.oid = i.indclass[0] WHERE i.indrelid = %s::regclass AND a.attname = %s AND i.indisvalid AND "
        "(i.indkey[0] = a.attnum OR i.indkey[0] = 0 AND EXISTS (SELECT FROM pg_depend d WHERE d.objid = i.indexrelid AND "
        "d.classid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum))"
    )
    rows = connection.execute(query, [table_of(location).as_string(connection), column]).fetchall()
    names = (name.removesuffix("_ops").rpartition("_")[2] for (name,) in rows)
    return {CLASSES[name] for name in names if name in CLASSES}


@contextlib.contextmanager
def translated(location: Location) -> Iterator[None]:
    """Turn errors of the driver into errors of embridge."""
    try:
        yield
    except EmbridgeError:
        raise
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as e:
        raise MissingFileError(f"There is no table {location.options.get('table')!r} at {location.uri!r}.") from e
    except psycopg.DataError as e:
        raise CollectionError(f"{location.uri!r} has values that cannot be read: {_fact(e)}. {VIEW_HINT}") from e
    except psycopg.ProgrammingError as e:
        raise CollectionError(f"{location.uri!r} cannot be used: {_fact(e)}") from e
    except (psycopg.Error, OSError) as e:
        raise UnreadableFileError(f"{location.uri!r} cannot be reached or read: {_fact(e)}") from e


@contextlib.contextmanager
def writing(location: Location) -> Iterator[None]:
    """As `translated`, for statements that write."""
    try:
        yield
    except EmbridgeError:
        raise
    except psycopg.errors.UniqueViolation as e:
        raise BadIdsError(f"{location.uri!r} would hold ids more than once: {e.diag.message_detail}") from e
    except psycopg.errors.DiskFull as e:
        raise DiskFullError(f"The disk of {location.uri!r} is full. Hint: free some and run again with --resume.") from e
    except (psycopg.Error, OSError, ValueError, OverflowError) as e:
        raise OutputError(f"{location.uri!r} cannot be written: {_fact(e)}") from e


def _fact(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
