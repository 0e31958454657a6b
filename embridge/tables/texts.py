"""Reads texts from Parquet for an encoder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.errors import BadIdsError, CollectionError, ParameterError
from embridge.stores.batch import cast_column
from embridge.stores.filesystems import shown
from embridge.stores.id_types import id_type_of, normalize_ids
from embridge.stores.parquet.file import ParquetFile, ParquetFiles


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Consecutive rows: ids, texts, and all columns but the id (including the text)."""

    start: int
    ids: pa.Array
    texts: list[str]
    payload: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def joined(cls, batches: Sequence[TextBatch]) -> TextBatch:
        """Their rows as one batch."""
        if len(batches) == 1:
            return batches[0]
        payload = pa.Table.from_batches([batch.payload for batch in batches]).combine_chunks().to_batches()[0]
        texts = [text for batch in batches for text in batch.texts]
        return cls(batches[0].start, pa.concat_arrays([batch.ids for batch in batches]), texts, payload)

    def at(self, rows: np.ndarray) -> TextBatch:
        """Some of its rows."""
        places = pa.array(rows)
        texts = [self.texts[i] for i in rows.tolist()]
        return TextBatch(self.start, self.ids.take(places), texts, self.payload.take(places))


class TextTable:
    """Rows with an id and a text.

    Parameters
    ----------
    path : str or path-like
        A Parquet file, folder or glob, as for a collection.
    id_column, text_column : str

    Raises
    ------
    MissingFileError, UnreadableFileError, CollectionError, BadIdsError
        Missing, damaged, no rows, or a column that is missing or of another type.
    """

    def __init__(self, path: str | os.PathLike[str], *, id_column: str = "id", text_column: str = "text") -> None:
        self.path = os.fspath(path)
        self.id_column, self.text_column = id_column, text_column
        self._files = ParquetFiles(self.path)
        for file in self._files.files:
            for column, option in ((id_column, "--id-column"), (text_column, "--text-column")):
                if column not in file.schema.names:
                    raise CollectionError.no_column(file.name, column, file.schema.names, option)
            kind = file.schema.field(text_column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise CollectionError(f"Column {text_column!r} of {file.name} must hold strings. Got {kind} instead.")
        first = self._files.files[0].schema
        self.id_type = id_type_of(first.field(id_column).type, self.name)
        self.payload_schema = pa.schema([field for field in first if field.name != id_column])
        for file in self._files.files:
            if missing := set(self.payload_schema.names) - set(file.schema.names):
                raise CollectionError.columns_differ(self.name, f"{file.name} has no {', '.join(sorted(missing))}")
            if (kind := id_type_of(file.schema.field(id_column).type, file.name)) != self.id_type:
                raise BadIdsError.kinds_differ(self._files.files[0].name, str(self.id_type), file.name, str(kind))
        if not len(self):
            raise CollectionError.empty(self.name)

    @property
    def name(self) -> str:
        """Its name in messages."""
        return repr(shown(self.path))

    def __len__(self) -> int:
        return len(self._files)

    def check(self) -> None:
        """Read ids and texts once, so that a bad row is reported before hours of encoding.

        Raises
        ------
        BadIdsError, CollectionError
            Null ids or texts.
        """
        for file in self._files.files:
            for batch in file.batches([self.id_column, self.text_column], 1 << 14):
                self._check(file, normalize_ids(batch.column(self.id_column), file.name), batch.column(self.text_column))

    @staticmethod
    def _check(file: ParquetFile, ids: pa.Array, texts: pa.Array) -> None:
        if ids.null_count:
            raise BadIdsError.null(file.name, ids.null_count)
        if texts.null_count:
            missing = ids.filter(texts.is_null()).to_pylist()
            count = f"{len(missing):,} row{'' if len(missing) == 1 else 's'}"
            raise CollectionError(f"{file.name} has {count} without a text (null): ids {missing[:5]}.")

    def batches(self, batch_rows: int, span: tuple[int, int] | None = None) -> Iterator[TextBatch]:
        """Read all rows, or those of a span of positions, in order.

        Raises
        ------
        BadIdsError, CollectionError
            Null ids or texts.
        """
        low, high = span or (0, len(self))
        columns, offset = [self.id_column, *self.payload_schema.names], 0
        for file in self._files.files:
            for start, batch in file.spans(columns, batch_rows, lambda start, stop: start < high and stop > low, offset):
                ids = normalize_ids(batch.column(self.id_column), file.name)
                texts = batch.column(self.text_column)
                self._check(file, ids, texts)
                casted = [cast_column(batch.column(f.name), f, file.name) for f in self.payload_schema]
                found = TextBatch(start, ids, texts.to_pylist(), pa.record_batch(casted, schema=self.payload_schema))
                rows = np.arange(max(low - start, 0), min(high - start, len(found)))
                if len(rows):
                    yield found if len(rows) == len(found) else found.at(rows)
            offset += file.rows

    def chosen(self, only: np.ndarray) -> set[Any]:
        """Some ids as a set.

        Raises
        ------
        ParameterError, BadIdsError
            There are none, or the table does not have all of them.
        """
        wanted = set(only.tolist())
        if not wanted:
            raise ParameterError.must_be("only", "at least one id", [])
        missing = set(wanted)
        for batch in self.id_reader():
            missing.difference_update(batch.column(0).to_pylist())
        if missing:
            raise BadIdsError.unknown("The choice of ids", sorted(missing))
        return wanted

    def parts(self, part_rows: int, wanted: set[Any] | None, span: tuple[int, int] | None = None) -> Iterator[TextBatch]:
        """The wanted rows in parts of `part_rows`, also where a row group has few of them."""
        held: list[TextBatch] = []
        for batch in self.batches(part_rows, span):
            rest = batch if wanted is None else batch.at(np.flatnonzero([i in wanted for i in batch.ids.to_pylist()]))
            while len(rest) >= (room := part_rows - sum(map(len, held))):
                yield TextBatch.joined([*held, rest.at(np.arange(room))])
                held, rest = [], rest.at(np.arange(room, len(rest)))
            if len(rest):
                held.append(rest)
        if held:
            yield TextBatch.joined(held)

    def part_spans(self, part_rows: int, wanted: set[Any] | None) -> list[tuple[int, int]]:
        """The span of positions that each of `parts` is in."""
        rows = np.arange(len(self))
        if wanted is not None:
            found = [b.column(1).to_numpy()[[i in wanted for i in b.column(0).to_pylist()]] for b in self.id_reader()]
            rows = np.concatenate(found)
        return [(int(rows[i]), int(rows[min(i + part_rows, len(rows)) - 1]) + 1) for i in range(0, len(rows), part_rows)]

    def id_reader(self) -> pa.RecordBatchReader:
        """All ids with their positions, as a stream of columns ``id`` and ``row``."""
        schema = pa.schema([("id", self.id_type), ("row", pa.int64())])

        def stream() -> Iterator[pa.RecordBatch]:
            start = 0
            for file in self._files.files:
                for batch in file.batches([self.id_column], 1 << 16):
                    rows = pa.array(np.arange(start, start + len(batch)))
                    yield pa.record_batch([normalize_ids(batch.column(0), file.name), rows], schema=schema)
                    start += len(batch)

        return pa.RecordBatchReader.from_batches(schema, stream())

    def fingerprint(self) -> str:
        """Content hash."""
        return self._files.fingerprint()

    def check_unchanged(self) -> None:
        """As `embridge.stores.base.Collection.check_unchanged`."""
        self._files.check_unchanged()
