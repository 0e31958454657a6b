"""Provenance of rows: reads the column, and joins native and translated rows of two collections into one stream."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.errors import CollectionError
from embridge.stores.base import Collection
from embridge.stores.batch import Batch, cast_column
from embridge.stores.parquet.collection import ERROR_COLUMNS

NATIVE, TRANSLATED = "native", "translated"
_KIND = pa.dictionary(pa.int8(), pa.string())


def translated_rows(collection: Collection, column: str) -> np.ndarray:
    """Mask of the translated rows of a merged collection, shape (n,), bool.

    Raises
    ------
    CollectionError
        The column is missing, or has other values than ``native`` and ``translated``.
    """
    if column not in collection.payload_schema.names:
        raise CollectionError.no_column(collection.name, column, collection.payload_schema.names, "merging again")
    kind = collection.payload_schema.field(column).type
    if (kind.value_type if pa.types.is_dictionary(kind) else kind) not in (pa.string(), pa.large_string(), pa.string_view()):
        raise CollectionError(f"Column {column!r} of {collection.name} must be 'native' or 'translated'. Got {kind} instead.")
    narrow = with_payload(collection, pa.schema([collection.payload_schema.field(column)]))
    found = np.empty(len(collection), bool)
    for batch in narrow._read(1 << 16, payload=True, vectors=False, row_filter=None, validate=False):
        values = np.asarray(batch.payload.column(column).cast(pa.string()).to_pylist(), object)
        native, translated = values == NATIVE, values == TRANSLATED
        if not (native | translated).all():
            other = values[~(native | translated)][0]
            raise CollectionError(
                f"Column {column!r} of {collection.name} must be 'native' or 'translated'. Got {other!r} instead."
            )
        found[batch.start : batch.start + len(batch)] = translated
    return found


class MixedRows:
    """The rows of two collections as one stream: all native ones, then the translated ones that no native row replaces.

    A native row that replaces a translated one keeps the columns that only the translated side has; a column that one side lacks
    is null in its other rows. Kept values of replaced rows are stored in a temporary file, so memory is that of a batch.

    Parameters
    ----------
    native, translated : Collection
    native_rows, translated_rows : ndarray of int64, shape (n_shared,)
        Positions of rows that share an id, by position on the native side (`embridge.stores.ids.match_rows`).
    is_translated : ndarray of bool, shape (len(translated),)
        False for native rows of a merged collection.
    column : str
        Name of the column for the provenance.

    Attributes
    ----------
    payload_schema : pyarrow.Schema

    Raises
    ------
    CollectionError
        A column has incompatible types on the two sides, or the name of the provenance column.
    """

    def __init__(
        self,
        native: Collection,
        translated: Collection,
        native_rows: np.ndarray,
        translated_rows: np.ndarray,
        is_translated: np.ndarray,
        column: str,
    ) -> None:
        self._native, self._translated, self._is_translated = native, translated, is_translated
        self._native_rows = native_rows
        self._replaced = np.sort(translated_rows)
        self._kept_at = np.searchsorted(self._replaced, translated_rows)
        theirs = translated.payload_schema
        if translated.provenance is not None and translated.provenance.column in theirs.names:
            theirs = theirs.remove(theirs.names.index(translated.provenance.column))
        for side, schema in ((native, native.payload_schema), (translated, theirs)):
            for name in (column, native.id_column, native.vector_column):
                if name in schema.names:
                    raise CollectionError.reserved_column(side.name, name)
        self._theirs = theirs
        try:
            both = pa.unify_schemas(
                [native.payload_schema.remove_metadata(), theirs.remove_metadata()], promote_options="permissive"
            )
        except pa.ArrowException as e:
            raise CollectionError.columns_differ(f"{native.name} and {translated.name}", e) from e
        shared = set(native.payload_schema.names) & set(theirs.names)
        self._both = pa.schema([f if f.name in shared else f.with_nullable(True) for f in both])
        # The predicted error belongs to the translation, which a native row replaces.
        apart = {*native.payload_schema.names, *ERROR_COLUMNS}
        self._only_theirs = pa.schema([f for f in self._both if f.name not in apart])
        self.payload_schema = self._both.append(pa.field(column, _KIND, False))

    def __len__(self) -> int:
        return len(self._native) + len(self._translated) - len(self._replaced)

    def batches(self, batch_rows: int | None = None) -> Iterator[Batch]:
        """Checked rows, in order."""
        start = 0
        with tempfile.TemporaryDirectory(prefix="embridge-") as folder:
            kept = _Kept(Path(folder) / "kept.arrow", _plain(self._only_theirs), self._translated.name)
            if self._only_theirs.names and len(self._replaced):
                kept.write(self._rows_replaced(batch_rows))
            for batch in self._native.batches(batch_rows, payload=True):
                low, high = np.searchsorted(self._native_rows, (batch.start, batch.start + len(batch)))
                places = self._native_rows[low:high] - batch.start
                more = kept.at(self._kept_at[low:high]) if self._only_theirs.names and len(places) else None
                yield Batch(start, batch.ids, batch.vectors, self._payload(batch, more, places, np.zeros(len(batch), bool)))
                start += len(batch)
            kept.close()
            for batch in with_payload(self._translated, self._theirs).batches(batch_rows, payload=True):
                low, high = np.searchsorted(self._replaced, (batch.start, batch.start + len(batch)))
                rows = np.delete(np.arange(len(batch)), self._replaced[low:high] - batch.start)
                if len(rows):
                    part = batch.at(rows)
                    flags = self._is_translated[batch.start + rows]
                    yield Batch(start, part.ids, part.vectors, self._payload(part, None, rows[:0], flags))
                    start += len(part)

    def _rows_replaced(self, batch_rows: int | None) -> Iterator[pa.RecordBatch]:
        """Values of replaced rows in columns that the native side lacks, in the order of the translated side."""

        def row_filter(start: int, stop: int) -> bool:
            return bool(np.searchsorted(self._replaced, start) < np.searchsorted(self._replaced, stop))

        rows = batch_rows or self._translated.default_batch_rows()
        narrow = with_payload(self._translated, pa.schema([self._theirs.field(name) for name in self._only_theirs.names]))
        for batch in narrow._read(rows, payload=True, vectors=False, row_filter=row_filter, validate=False):
            low, high = np.searchsorted(self._replaced, (batch.start, batch.start + len(batch)))
            if low < high:
                yield batch.payload.select(narrow.payload_schema.names).take(pa.array(self._replaced[low:high] - batch.start))

    def _payload(self, batch: Batch, more: pa.Table | None, places: np.ndarray, flags: np.ndarray) -> pa.RecordBatch:
        arrays, where = [], f"{self._native.name} and {self._translated.name}"
        for field in self._both:
            if field.name in batch.payload.schema.names:
                arrays.append(cast_column(batch.payload.column(field.name), field, where))
            elif more is not None and field.name in more.column_names:
                taken = np.zeros(len(batch), np.int64)
                taken[places] = np.arange(len(places))
                absent = np.ones(len(batch), bool)
                absent[places] = False
                column = more.column(field.name).combine_chunks().take(pa.array(taken, mask=absent))
                arrays.append(cast_column(column, field, where))
            else:
                arrays.append(pa.nulls(len(batch), field.type))
        names = pa.DictionaryArray.from_arrays(pa.array(flags.astype(np.int8)), pa.array([NATIVE, TRANSLATED]))
        return pa.record_batch([*arrays, names], schema=self.payload_schema)


class _Kept:
    """Rows in a temporary Arrow file, read by position without reading all of it."""

    def __init__(self, path: Path, schema: pa.Schema, where: str) -> None:
        self._path, self._schema, self._where = path, schema, where
        self._source: Any = None
        self._parts: list[pa.RecordBatch] = []
        self._starts = np.zeros(1, np.int64)

    def write(self, batches: Iterator[pa.RecordBatch]) -> None:
        with pa.OSFile(str(self._path), "wb") as sink, pa.ipc.new_file(sink, self._schema) as writer:
            for batch in batches:
                writer.write_batch(
                    pa.record_batch(
                        [cast_column(c, f, self._where) for c, f in zip(batch, self._schema, strict=True)], self._schema
                    )
                )
        self._source = pa.memory_map(str(self._path))
        reader = pa.ipc.open_file(self._source)
        self._parts = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in self._parts], dtype=np.int64)])

    def at(self, rows: np.ndarray) -> pa.Table:
        order = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[order], self._starts)
        parts = [
            part.take(pa.array(rows[order][low:high] - begin))
            for part, begin, low, high in zip(self._parts, self._starts[:-1], ends[:-1], ends[1:], strict=True)
            if low < high
        ]
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return pa.Table.from_batches(parts, self._schema).take(pa.array(back))

    def close(self) -> None:
        self._parts = []
        if self._source is not None:
            self._source.close()


def with_payload(collection: Collection, schema: pa.Schema) -> Collection:
    """The same collection with fewer columns, which are then not read."""
    if schema.names == collection.payload_schema.names:
        return collection
    narrow = copy.copy(collection)
    narrow.payload_schema = schema
    return narrow


def _plain(schema: pa.Schema) -> pa.Schema:
    """Dictionary columns as their values: an Arrow file has one dictionary per column, but batches have their own."""
    return pa.schema([f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in schema])
