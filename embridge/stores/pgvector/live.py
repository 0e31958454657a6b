"""Rows of a table as they are now, read in short transactions, so that nothing is held while they are rewritten."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
from psycopg import sql

from embridge.stores.arrow import ArrowCollection
from embridge.stores.pgvector.collection import CAPABILITIES, connect, table_of, translated
from embridge.stores.pgvector.columns import Column
from embridge.stores.uri import Location
from embridge.types import Space

VERSION = Column("xmin", "int8", -1)  # the transaction that wrote the row, which no other column can be called


class LiveRows(ArrowCollection):
    """Ids and one vector column of the rows that a condition holds for, batch by batch in the order of the index over the ids.

    The payload is one other column, such as the `VERSION` of each row, by which a writer notices that it was changed since.
    """

    kind = "postgresql"
    capabilities = replace(CAPABILITIES, has_snapshot=False)
    seeks = True

    def __init__(
        self, location: Location, columns: tuple[Column, Column, Column], space: Space, where: sql.Composable, rows: int
    ) -> None:
        self.path, self._location, self._table = location.uri, location, table_of(location)
        self._where, self._rows = where, rows
        self._columns = {column.name: column for column in columns}
        schema = pa.schema([(column.name, column.arrow) for column in self._columns.values()])
        self._describe(schema, (columns[0].name, columns[1].name), space, known=space)

    def __len__(self) -> int:
        return self._rows

    def fingerprint(self) -> str:
        """None: these rows have no one state."""
        return ""

    def _record_batches(self, columns: list[str], batch_rows: int, after: str | int | None = None) -> Iterator[pa.RecordBatch]:
        chosen, key = [self._columns[name] for name in columns], sql.Identifier(self.id_column)
        values = sql.SQL(", ").join(sql.SQL("xmin::text::int8") if c is VERSION else c.query for c in chosen)
        with translated(self._location), contextlib.closing(connect(self._location)) as connection:
            while True:
                where = self._where if after is None else sql.SQL("{} AND {} > {}").format(self._where, key, sql.Literal(after))
                query = sql.SQL("COPY (SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT {}) TO STDOUT (FORMAT BINARY)").format(
                    values, self._table, where, key, sql.Literal(batch_rows)
                )
                with connection.cursor() as cursor, cursor.copy(query) as copy:
                    copy.set_types([c.wire for c in chosen])
                    rows = list(copy.rows())
                if rows:
                    found = zip(chosen, zip(*rows, strict=True), strict=True)
                    yield pa.record_batch([column.array(values, self.name) for column, values in found], names=columns)
                    after = rows[-1][columns.index(self.id_column)]
                if len(rows) < batch_rows:
                    return
