"""Collections in Parquet: a file, a folder or a glob, local or in object storage, and the writer of new ones."""

from __future__ import annotations

import collections
import copy
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    CollectionError,
    ParameterError,
)
from embridge.stores.base import RowFilter
from embridge.stores.batch import Batch, cast_column
from embridge.stores.declared import DeclaredCollection
from embridge.stores.filesystems import shown
from embridge.stores.id_types import id_type_of, normalize_ids
from embridge.stores.locations import is_remote
from embridge.stores.memory import empty_payload
from embridge.stores.parquet.file import ParquetFile, ParquetFiles, row_lengths, vectors_of
from embridge.stores.parquet.metadata import (
    COLUMNS_KEY,
    CONFIDENCE_KEY,
    LINEAGE_KEY,
    PROVENANCE_KEY,
    SPACE_KEY,
    foreign,
    read_object,
    read_texts,
    space_key,
)
from embridge.stores.parquet.spaces import common_provenance, known_space, payload_spaces
from embridge.types import DeclaredSpace, Space

__all__ = [
    "COLUMNS_KEY",
    "CONFIDENCE_KEY",
    "ERROR_COLUMNS",
    "LINEAGE_KEY",
    "OLD_COLUMN",
    "PROVENANCE_KEY",
    "SPACE_KEY",
    "ParquetCollection",
]

ERROR_COLUMNS = ("predicted_error", "error_bound")  # columns that a conversion with confidence adds
OLD_COLUMN = "old_vector"  # the column of a conversion that keeps the old vectors


class ParquetCollection(DeclaredCollection):
    """Rows of one or many Parquet files.

    Parameters
    ----------
    path : str or path-like
        A file, a folder (read recursively; ``key=value`` folders become columns), a glob, or any of these behind ``s3://`` or
        ``gs://``. Files are read in the order of their names.
    space : Space, DeclaredSpace or str, optional
        Required where the files do not name it (see `embridge.open`).
    id_column, vector_column : str, optional
        Default: the columns in the file's metadata, else ``id`` and ``vector``. Vectors are list, large_list or fixed_size_list of
        float16, float32 or float64. A further vector column (``old_vector`` of a two-vector collection) has its own space; the
        provenance and the predicted errors of the file are not about it.

    Raises
    ------
    MissingFileError, UnreadableFileError, CollectionError, BadIdsError, BadVectorsError
        Missing; not Parquet; a missing column or no rows; ids or vectors of another type.
    UndeclaredSpaceError, SpaceMismatchError
        The space is unknown, or two sources contradict each other.
    """

    kind = "parquet"
    _span: tuple[int, int] | None = None  # of rows, where it is a part of the files

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        space: Space | DeclaredSpace | str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._files = ParquetFiles(self.path)
        first = self._files.files[0]
        columns = read_texts(first.schema, COLUMNS_KEY, first.name)
        self.id_column = id_column or columns.get("id", "id")
        self.vector_column = vector_column or columns.get("vector", "vector")
        if self.id_column == self.vector_column:
            raise ParameterError.must_be("vector_column", "another column than that of the ids", self.vector_column)
        dims = {}
        for file in self._files.files:
            dims.setdefault(self._check_schema(file), file)
        widths = sorted(d for d in dims if d)
        if len(widths) > 1:
            one, other = widths[:2]
            raise BadVectorsError(
                f"{self.name} is ragged: {dims[one].name} holds {one}-dimensional vectors, {dims[other].name} {other}-dimensional."
            )
        self.id_type = id_type_of(first.schema.field(self.id_column).type, self.name)
        for file in self._files.files:
            other = id_type_of(file.schema.field(self.id_column).type, file.name)
            if other != self.id_type:
                raise BadIdsError.kinds_differ(first.name, str(self.id_type), file.name, str(other))
        self.payload_schema = self._common_payload()
        self._is_main = space_key(first.schema, self.vector_column, first.name) == SPACE_KEY
        self.provenance = common_provenance(self._files.files, self.name) if self._is_main else None
        if not len(self):
            raise CollectionError.empty(self.name)
        known = known_space(self._files.files, self.name, self.vector_column, is_declared=space is not None)
        dim = widths[0] if widths else self._width()
        self._declare(space, known, dim, None)

    @property
    def name(self) -> str:
        return repr(shown(self._files.path))

    @property
    def payload_spaces(self) -> dict[str, Space]:
        """As `Collection.payload_spaces`: the columns whose space all files name, and name alike."""
        return payload_spaces(self._files.files, self.name, self.vector_column)

    @property
    def old_side(self) -> ParquetCollection | None:
        """As `Collection.old_side`.

        Raises
        ------
        CollectionError
            It has several further vector columns.
        """
        columns = list(self.payload_spaces) if self._is_main else []
        if len(columns) > 1:
            raise CollectionError(
                f"{self.name} has {len(columns)} vector columns beside {self.vector_column!r}: {', '.join(columns)}. "
                "Hint: open the right one with vector_column=."
            )
        return ParquetCollection(self.path, id_column=self.id_column, vector_column=columns[0]) if columns else None

    def _check_schema(self, file: ParquetFile) -> int | None:
        """Width of the file's vectors if its type has one; checks that both columns exist with supported types."""
        for column, option in ((self.id_column, "--id-column"), (self.vector_column, "--vector-column")):
            if column not in file.schema.names:
                raise CollectionError.no_column(file.name, column, file.schema.names, option)
        id_type_of(file.schema.field(self.id_column).type, file.name)
        kind = file.schema.field(self.vector_column).type
        nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not nested or not pa.types.is_floating(kind.value_type):
            raise BadVectorsError.dtype(f"Column {self.vector_column!r} of {file.name}", kind)
        return kind.list_size if pa.types.is_fixed_size_list(kind) else None

    def _common_payload(self) -> pa.Schema:
        """The other columns of all files: a column that some files lack is null there, ``key=value`` folders are strings."""
        schemas = []
        for file in self._files.files:
            others = [f for f in file.schema if f.name not in (self.id_column, self.vector_column)]
            folders = [pa.field(k, pa.string()) for k in file.partition if k not in file.schema.names]
            schemas.append(pa.schema(others + folders))
        if all(schema.equals(schemas[0]) for schema in schemas):
            return schemas[0]
        try:
            merged = pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowException as e:
            raise CollectionError.columns_differ(self.name, e) from e
        shared = set(merged.names).intersection(*(schema.names for schema in schemas))
        return pa.schema([f if f.name in shared else f.with_nullable(True) for f in merged])

    def _width(self) -> int:
        """The width of vectors whose type has none: that of most rows. Rows of another width are reported when they are read."""
        counts: collections.Counter[int] = collections.Counter()
        most = 0
        for file in self._files.files:
            for batch in file.batches([self.vector_column], 1 << 12):
                lengths, rows = np.unique(row_lengths(batch.column(0)), return_counts=True)
                counts.update(dict(zip(lengths.tolist(), rows.tolist(), strict=True)))
                most = max((n for n in counts if n > 0), key=lambda n: (counts[n], n), default=0)
                # Footers state the number of values. Where it fits, no more rows need to be read.
                if counts.total() == len(batch) and most * len(self) == self._files.values(self.vector_column):
                    return most
        if not most:
            raise BadVectorsError(f"{self.name} has {len(self):,} rows, all without a vector.")
        return most

    def __len__(self) -> int:
        return len(self._files) if self._span is None else self._span[1] - self._span[0]

    def rows(self, start: int, stop: int) -> ParquetCollection:
        """The rows from `start` to `stop`, of the same files, as a collection; its fingerprint is that of the files."""
        part, first = copy.copy(self), 0 if self._span is None else self._span[0]
        part._span = (first + start, first + stop)
        return part

    def row_group_starts(self) -> list[int]:
        """The position of the first row of each row group of its files."""
        starts = np.cumsum([0, *(file.rows for file in self._files.files)])
        return [int(at + start) for at, file in zip(starts, self._files.files, strict=False) for start in file.group_starts]

    def _read(self, batch_rows: int, *, row_filter: RowFilter | None, **options: bool) -> Iterator[Batch]:
        if self._span is None:
            yield from self._read_files(batch_rows, row_filter=row_filter, **options)
            return
        low, high = self._span

        def wanted(start: int, stop: int) -> bool:
            start, stop = max(start, low), min(stop, high)
            return start < stop and (row_filter is None or row_filter(start - low, stop - low))

        for batch in self._read_files(batch_rows, row_filter=wanted, **options):
            rows = np.arange(max(low - batch.start, 0), min(high - batch.start, len(batch)))
            if len(rows):
                yield replace(part := batch.at(rows), start=part.start - low)

    def _read_files(
        self, batch_rows: int, *, payload: bool, vectors: bool, row_filter: RowFilter | None, validate: bool
    ) -> Iterator[Batch]:
        offset = 0
        for file in self._files.files:
            others = [n for n in self.payload_schema.names if n in file.schema.names] if payload else []
            columns = [self.id_column, *([self.vector_column] if vectors else []), *others]
            for start, batch in file.spans(columns, batch_rows, row_filter, offset):
                ids = normalize_ids(batch.column(self.id_column), file.name)
                if vectors:
                    values = vectors_of(
                        batch.column(self.vector_column), self._stated.dim, file.name, start - offset, validate=validate
                    )
                else:
                    values = np.empty((len(ids), 0), np.float32)
                yield Batch(start, ids, values, self._payload(file, batch) if payload else empty_payload(len(ids)))
            offset += file.rows

    def _payload(self, file: ParquetFile, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not self.payload_schema.names:
            return empty_payload(len(batch))
        arrays = []
        for field in self.payload_schema:
            if field.name in batch.schema.names:
                arrays.append(cast_column(batch.column(field.name), field, file.name))
            else:  # a folder's value, or null where this file has no such column
                arrays.append(pa.repeat(pa.scalar(file.partition.get(field.name), field.type), len(batch)))
        return pa.record_batch(arrays, schema=self.payload_schema)

    def fingerprint(self) -> str:
        return self._files.fingerprint()

    def check_unchanged(self) -> None:
        self._files.check_unchanged()

    @property
    def compared_fingerprint(self) -> str | None:
        return self._files.compared

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """Metadata of the whole file, without that of embridge and Arrow; for several files, the entries that all share."""
        found = [foreign(file.schema) for file in self._files.files]
        return {key: value for key, value in found[0].items() if all(other.get(key) == value for other in found[1:])}

    @property
    def is_many(self) -> bool:
        """True for a folder or a glob, whatever the number of files."""
        return self._files.base is not None

    @property
    def files(self) -> list[str]:
        return [] if is_remote(self._files.path) else [self._files.path, *self.paths]

    @property
    def paths(self) -> list[str]:
        """Its files, in order."""
        return [file.path for file in self._files.files]

    def split_files(self) -> list[tuple[str, ParquetCollection]]:
        """Each file as a collection, with its path below the folder, or below the part of a glob that has no wildcards.

        Each has the columns in the file, without those of ``key=value`` folders.
        """
        found = []
        for file in self._files.files:
            part = copy.copy(self)
            part._files, part.path = self._files.one(file), file.path
            part.payload_schema = pa.schema([f for f in file.schema if f.name not in (self.id_column, self.vector_column)])
            found.append((file.path[len(self._files.base or "") :] if self.is_many else file.path.rpartition("/")[2], part))
        return found

    @property
    def vector_type(self) -> str:
        """The type in which vectors are stored, the widest of all files: ``float16``, ``float32`` or ``float64``."""
        kinds = {file.schema.field(self.vector_column).type.value_type.to_pandas_dtype() for file in self._files.files}
        return str(np.result_type(*kinds))

    @property
    def lineage(self) -> dict[str, str]:
        """Fingerprints of the inputs of the first file, if it has them; no map for a column that was not translated."""
        found = read_texts(self._first.schema, LINEAGE_KEY, self._first.name)
        return found if self._is_main else {what: mark for what, mark in found.items() if what != "map"}

    @property
    def confidence(self) -> dict[str, Any] | None:
        """The origin of the first file's columns of errors (``coverage``, ``fingerprint``); None where it has none."""
        return read_object(self._first.schema, CONFIDENCE_KEY, self._first.name) if self._is_main else None

    @property
    def _first(self) -> ParquetFile:
        return self._files.files[0]
