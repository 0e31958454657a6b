"""Collections in Parquet: a file, a folder or a glob, local or in object storage, and the writer of new ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    CollectionError,
    SpaceMismatchError,
    UndeclaredSpaceError,
    UnreadableFileError,
)
from embridge.files import hash_content
from embridge.stores.collection import Batch, Collection, Needed, declare_space, id_type_of, normalise_ids
from embridge.stores.locations import find_files
from embridge.stores.memory import empty_payload
from embridge.types import DeclaredSpace, Space

_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
SPACE_KEY, LINEAGE_KEY, COLUMNS_KEY = b"embridge.space", b"embridge.lineage", b"embridge.columns"


class ParquetCollection(Collection):
    """Rows of one or many Parquet files.

    Parameters
    ----------
    path : str or path-like
        A file, a folder (read recursively; ``key=value`` folders become columns), a glob, or any of these behind ``s3://`` or
        ``gs://``. Files are read in the order of their names.
    space : Space, DeclaredSpace or str, optional
        Needed where the files do not name it (see `embridge.open`).
    id_column, vector_column : str, optional
        Default: what the file's metadata says, else ``id`` and ``vector``. Vectors are list, large_list or fixed_size_list of
        float16, float32 or float64.

    Raises
    ------
    MissingFileError, UnreadableFileError, CollectionError, BadIdsError, BadVectorsError
        Nothing there; not Parquet; a missing column or no rows; ids or vectors of another type.
    UndeclaredSpaceError, SpaceMismatchError
        The space is not known, or two sources contradict each other.
    """

    kind = "parquet"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        space: Space | DeclaredSpace | str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._fs, names, base = find_files(self.path)
        self._files = [ParquetFile(self._fs, name, self._display(name, names), base) for name in names]
        first = self._files[0]
        columns = _metadata(first.schema, COLUMNS_KEY) or {}
        self.id_column = id_column or columns.get("id", "id")
        self.vector_column = vector_column or columns.get("vector", "vector")
        dims = {}
        for file in self._files:
            dims.setdefault(self._check_schema(file), file)
        widths = sorted(d for d in dims if d)
        if len(widths) > 1:
            one, other = widths[:2]
            raise BadVectorsError(
                f"{self.name} is ragged: {dims[one].name} holds {one}-dimensional vectors, {dims[other].name} {other}-dimensional."
            )
        self.id_type = id_type_of(first.schema.field(self.id_column).type, self.name)
        for file in self._files:
            other = id_type_of(file.schema.field(self.id_column).type, file.name)
            if other != self.id_type:
                raise BadIdsError.kinds_differ(first.name, str(self.id_type), file.name, str(other))
        self.payload_schema = self._common_payload()
        if not len(self):
            raise CollectionError.empty(self.name)
        known = self._known_space(is_declared=space is not None)
        dim, sample = self._look(widths[0] if widths else None)
        self.space = declare_space(self.name, space, known, dim, None, sample)

    def _display(self, name: str, names: Sequence[str]) -> str:
        return repr(name if len(names) > 1 or not self.path else self.path)

    def _check_schema(self, file: ParquetFile) -> int | None:
        """Width of the file's vectors where its type tells; both columns must be there and of a known type."""
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
        """The other columns of all files: one that some files lack is null there, ``key=value`` folders are strings."""
        schemas = []
        for file in self._files:
            others = [f for f in file.schema if f.name not in (self.id_column, self.vector_column)]
            folders = [pa.field(k, pa.string()) for k in file.partition if k not in file.schema.names]
            schemas.append(pa.schema(others + folders))
        if all(schema.equals(schemas[0]) for schema in schemas):
            return schemas[0]
        try:
            merged = pa.unify_schemas(schemas, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as e:
            raise CollectionError.columns_differ(self.name, e) from e
        shared = set(merged.names).intersection(*(schema.names for schema in schemas))
        return pa.schema([f if f.name in shared else f.with_nullable(True) for f in merged])

    def _known_space(self, *, is_declared: bool) -> Space | None:
        """The space that the files name. Files that name two, or of which only some name one, must not be mixed silently."""
        spaces = [(file, _space(file)) for file in self._files]
        known = [(file, space) for file, space in spaces if space]
        if not known:
            return None
        first, space = known[0]
        for file, other in known[1:]:
            if not other.same_as(space) or other.metric != space.metric:
                raise SpaceMismatchError.mixed(self.name, first.name, space, file.name, other)
        if len(known) < len(spaces) and not is_declared:
            raise UndeclaredSpaceError.of(next(file.name for file, other in spaces if other is None))
        return replace(space, normalized=all(other.normalized for _, other in known))

    def _look(self, dim: int | None) -> tuple[int, np.ndarray]:
        """The width, and a sample of rows to see whether vectors have unit length."""
        for file in self._files:
            for batch in file.batches([self.vector_column], 1024):
                column = batch.column(0)
                if dim is None:
                    lengths = [len(v) for v in column if v.is_valid and len(v)]
                    if not lengths:
                        raise BadVectorsError(f"{self.name} begins with {len(column):,} rows without a vector.")
                    dim = lengths[0]
                return dim, _vectors(column, dim, file.name, 0, lenient=True)
        raise CollectionError.empty(self.name)

    def __len__(self) -> int:
        return sum(file.rows for file in self._files)

    def _read(self, batch_rows: int, *, payload: bool, vectors: bool, needed: Needed | None, lenient: bool) -> Iterator[Batch]:
        offset = 0
        for file in self._files:
            others = [n for n in self.payload_schema.names if n in file.schema.names] if payload else []
            columns = [self.id_column, *([self.vector_column] if vectors else []), *others]
            for start, batch in file.spans(columns, batch_rows, needed, offset):
                ids = normalise_ids(batch.column(self.id_column), file.name)
                if vectors:
                    values = _vectors(batch.column(self.vector_column), self.space.dim, file.name, start - offset, lenient=lenient)
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
                column = batch.column(field.name)
                arrays.append(column if column.type == field.type else column.cast(field.type))
            else:  # a folder's value, or null where this file has no such column
                arrays.append(pa.repeat(pa.scalar(file.partition.get(field.name), field.type), len(batch)))
        return pa.record_batch(arrays, schema=self.payload_schema)

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for file in self._files:
            with self._fs.open_input_file(file.path) as source:
                hash_content(source, source.size(), digest)
        return digest.hexdigest()

    @property
    def lineage(self) -> dict[str, str]:
        """Fingerprints of what the first file was made of, where it says so."""
        return _metadata(self._files[0].schema, LINEAGE_KEY) or {}


class ParquetFile:
    """One Parquet file: its footer is read when it is opened, its rows each time they are asked for."""

    def __init__(self, filesystem: fs.FileSystem, path: str, name: str, base: str | None) -> None:
        self._fs, self.path, self.name = filesystem, path, name
        with self._reading() as file:
            self.schema: pa.Schema = file.schema_arrow
            groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        self.rows = int(self._starts[-1])
        folders = path[len(base) :].split("/")[:-1] if base else []
        pairs = (f.split("=", 1) for f in folders if "=" in f)
        self.partition = {unquote(key): None if value == _NULL_FOLDER else unquote(value) for key, value in pairs}

    @contextlib.contextmanager
    def _reading(self) -> Iterator[pq.ParquetFile]:
        try:
            # Buffered reading without pre-buffering: a row group of any size is read in pieces (DESIGN, section 6).
            with (
                self._fs.open_input_file(self.path) as source,
                pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False) as file,
            ):
                yield file
        except (pa.ArrowException, OSError) as e:
            if isinstance(e, UnreadableFileError):
                raise
            raise UnreadableFileError.at(self.name.strip("'"), "Parquet", e) from e

    def spans(
        self, columns: list[str], batch_rows: int, needed: Needed | None, offset: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches with the position of their first row, `offset` added; row groups that are not needed are passed over."""
        with self._reading() as file:
            for group in range(len(self._starts) - 1):
                start, stop = int(self._starts[group]) + offset, int(self._starts[group + 1]) + offset
                if needed is not None and not needed(start, stop):
                    continue
                for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns):
                    yield start, batch
                    start += len(batch)

    def batches(self, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        for _, batch in self.spans(columns, batch_rows, None, 0):
            yield batch


def _metadata(schema: pa.Schema, key: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads((schema.metadata or {}).get(key, b"null"))
    except ValueError as e:
        raise CollectionError(f"The metadata {key.decode()!r} is not JSON: {e}") from e
    if values is not None and not isinstance(values, dict):
        raise CollectionError(f"The metadata {key.decode()!r} must be a JSON object. Got {values!r} instead.")
    return values


def _space(file: ParquetFile) -> Space | None:
    values = _metadata(file.schema, SPACE_KEY)
    try:
        return Space.from_dict(values) if values else None
    except (KeyError, TypeError, ValueError) as e:
        raise CollectionError(f"The metadata {SPACE_KEY.decode()!r} of {file.name} is no space: {values!r}") from e


def _vectors(column: pa.Array, dim: int, name: str, start: int, *, lenient: bool) -> np.ndarray:
    """Rows of a list column as an array of shape (n, dim), without a copy where every row has `dim` values."""
    if pa.types.is_fixed_size_list(column.type):
        lengths = np.full(len(column), column.type.list_size)
    else:
        lengths = np.diff(column.offsets.to_numpy())
    if column.null_count:
        lengths = np.where(column.is_null().to_numpy(zero_copy_only=False), -1, lengths)
    wrong = np.flatnonzero(lengths != dim)
    if wrong.size and not lenient:
        row = int(wrong[0])
        if lengths[row] < 0:
            raise BadVectorsError.missing(name, int((lengths < 0).sum()), start + row)
        raise BadVectorsError.ragged(name, dim, int(lengths[row]), start + row)
    values = column.flatten()  # takes slices into account and leaves null rows out, unlike .values
    if values.null_count:
        if not lenient:
            raise BadVectorsError(f"{name} has null values within vectors, between rows {start:,} and {start + len(column):,}.")
        values = values.fill_null(float("nan"))
    flat = values.to_numpy(zero_copy_only=False)
    if not wrong.size:
        return flat.reshape(-1, dim)
    kept = np.repeat(lengths == dim, np.maximum(lengths, 0))
    out = np.full((len(column), dim), np.nan, flat.dtype)
    out[lengths == dim] = flat[kept].reshape(-1, dim)
    return out


def scan_columns(path: str | os.PathLike[str], columns: Sequence[str], batch_rows: int = 1 << 16) -> Iterator[pa.RecordBatch]:
    """Stream some columns of Parquet files that hold no vectors: texts, relevance judgements.

    Raises
    ------
    CollectionError
        A column is missing.
    """
    filesystem, names, _ = find_files(os.fspath(path))
    files = [ParquetFile(filesystem, name, repr(name), None) for name in names]
    for file in files:
        for column in columns:
            if column not in file.schema.names:
                raise CollectionError.no_column(file.name, column, file.schema.names, "its option")
    for file in files:
        yield from file.batches(list(columns), batch_rows)
