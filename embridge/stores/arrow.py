"""Collections of stores that read rows as Arrow record batches."""

from __future__ import annotations

import collections
import copy
from abc import abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from embridge.errors import BadVectorsError, CollectionError, ParameterError
from embridge.stores.base import RowFilter
from embridge.stores.batch import Batch
from embridge.stores.declared import DeclaredCollection
from embridge.stores.id_types import id_type_of, normalize_ids
from embridge.stores.memory import empty_payload
from embridge.stores.parquet.file import row_lengths, vectors_of
from embridge.stores.store import Note
from embridge.types import DeclaredSpace, Metric, Space

_ROWS = 1 << 12  # rows of a batch when the width of vectors is looked for


class ArrowCollection(DeclaredCollection):
    """Rows that a store reads as Arrow record batches.

    A store sets `path`, implements `_record_batches`, `__len__` and `fingerprint`, and calls `_describe` when it is opened.

    Attributes
    ----------
    lineage : dict of str to str
        Fingerprints of the inputs that it was made from.
    """

    lineage: dict[str, str] = {}  # noqa: RUF012 (replaced, not changed)

    _further: dict[str, Space] = {}  # noqa: RUF012 (replaced, not changed)
    _main: ArrowCollection | None = None  # the collection whose old side this is

    @abstractmethod
    def _record_batches(self, columns: list[str], batch_rows: int, after: str | int | None = None) -> Iterator[pa.RecordBatch]:
        """All rows, or where the store `seeks` those after an id, in an order that stays the same; batches may have any size."""

    def _describe(
        self,
        schema: pa.Schema,
        columns: tuple[str, str],
        declared: Space | DeclaredSpace | str | None,
        *,
        note: Note | None = None,
        known: Space | None = None,
        metric: Metric | None = None,
    ) -> None:
        """Take ids, vectors, payload and space from the schema of the store.

        Raises
        ------
        CollectionError, BadIdsError, BadVectorsError, ParameterError
            A missing column, or one of another type; no rows.
        UndeclaredSpaceError, SpaceMismatchError
        """
        self.id_column, self.vector_column = columns
        self._schema = schema
        if note is not None:
            is_main = note.columns["vector"] == self.vector_column
            known = note.space if is_main else note.payload_spaces.get(self.vector_column)
            self.lineage, self._further = note.lineage, note.payload_spaces if is_main else {}
        if self.id_column == self.vector_column:
            raise ParameterError.must_be("vector_column", "another column than that of the ids", self.vector_column)
        for column, option in ((self.id_column, "--id-column"), (self.vector_column, "--vector-column")):
            if column not in schema.names:
                raise CollectionError.no_column(self.name, column, schema.names, option)
        self.id_type = id_type_of(schema.field(self.id_column).type, self.name)
        self.payload_schema = pa.schema([f.remove_metadata() for f in schema if f.name not in columns])
        kind = schema.field(self.vector_column).type
        nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not nested or not pa.types.is_floating(kind.value_type):
            raise BadVectorsError.dtype(f"Column {self.vector_column!r} of {self.name}", kind)
        self._value_type = str(kind.value_type.to_pandas_dtype().__name__)
        if not len(self):
            raise CollectionError.empty(self.name)
        dim = kind.list_size if pa.types.is_fixed_size_list(kind) else self._width()
        self._declare(declared, known, dim, metric, normalized=not self.capabilities.keeps_lengths)

    @property
    def payload_spaces(self) -> dict[str, Space]:
        return self._further

    @property
    def vector_type(self) -> str:
        return self._value_type

    @property
    def old_side(self) -> ArrowCollection | None:
        if not self.opens_further or len(self._further) != 1:
            return None
        [(column, space)] = self._further.items()
        side = copy.copy(self)  # of the same snapshot or version, which `self` holds
        side.__dict__.pop("space", None)
        side._main = self
        side._describe(self._schema, (self.id_column, column), None, known=space)
        side._further = {}
        return side

    def _width(self) -> int:
        """The width of most of the first rows that have a vector; rows of another width are reported when they are read."""
        for batch in self._record_batches([self.vector_column], _ROWS):
            lengths = collections.Counter(n for n in row_lengths(batch.column(0)).tolist() if n > 0)
            if lengths:
                return lengths.most_common(1)[0][0]
        raise BadVectorsError(f"{self.name} has {len(self):,} rows, all without a vector.")

    def _read(
        self, batch_rows: int, *, payload: bool, vectors: bool, row_filter: RowFilter | None, validate: bool
    ) -> Iterator[Batch]:
        yield from self._rows_from(None, batch_rows, payload=payload, vectors=vectors, row_filter=row_filter, validate=validate)

    def _read_after(self, after: str | int, batch_rows: int, *, row_filter: RowFilter | None, **options: bool) -> Iterator[Batch]:
        read = self._rows_from if self.seeks else super()._read_after
        yield from read(after, batch_rows, row_filter=row_filter, **options)

    def _rows_from(
        self,
        after: str | int | None,
        batch_rows: int,
        *,
        payload: bool,
        vectors: bool,
        row_filter: RowFilter | None,
        validate: bool,
    ) -> Iterator[Batch]:
        columns = [self.id_column, *([self.vector_column] if vectors else []), *(self.payload_schema.names if payload else [])]
        start = 0
        for whole in self._record_batches(columns, batch_rows, after):
            self._check_values(whole, start)
            for first in range(0, len(whole), batch_rows):
                batch = whole.slice(first, batch_rows)
                if row_filter is None or row_filter(start, start + len(batch)):
                    yield self._batch(start, batch, payload=payload, vectors=vectors, validate=validate)
                start += len(batch)

    def _batch(self, start: int, batch: pa.RecordBatch, *, payload: bool, vectors: bool, validate: bool) -> Batch:
        ids = normalize_ids(batch.column(self.id_column), self.name)
        values = np.empty((len(ids), 0), np.float32)
        if vectors:
            values = vectors_of(batch.column(self.vector_column), self._stated.dim, self.name, start, validate=validate)
        others = empty_payload(len(ids))
        if payload and self.payload_schema.names:
            others = pa.record_batch([batch.column(name) for name in self.payload_schema.names], schema=self.payload_schema)
        return Batch(start, ids, values, others)

    def _gathered(self, found: Iterable[pa.RecordBatch]) -> Batch:
        """Batches of ids and vectors as one, for `_fetch`."""
        parts = [self._batch(0, part, payload=False, vectors=True, validate=False) for part in found]
        ids = pa.chunked_array([part.ids for part in parts], self.id_type).combine_chunks()
        none = np.empty((0, self._stated.dim), np.float32)
        return Batch(0, ids, np.concatenate([none, *(part.vectors for part in parts)]), empty_payload(len(ids)))

    def _check_values(self, batch: pa.RecordBatch, start: int) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as e:
                rows = f"between rows {start:,} and {start + len(batch):,}"
                raise CollectionError(f"Column {name!r} of {self.name} holds invalid values {rows}: {e}") from e
