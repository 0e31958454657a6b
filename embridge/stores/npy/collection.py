"""Vectors in an ``.npy`` file or ``.npz`` archive; ids and payload in a Parquet file, ids in another array, or positions as ids."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyarrow import fs

from embridge.arrays import as_vectors
from embridge.errors import BadVectorsError, ChangedSourceError, CollectionError, ParameterError
from embridge.files import fingerprint
from embridge.stores.base import RowFilter
from embridge.stores.batch import Batch
from embridge.stores.declared import DeclaredCollection
from embridge.stores.id_types import id_type_of, normalize_ids
from embridge.stores.locations import file_identity
from embridge.stores.memory import empty_payload
from embridge.stores.npy.arrays import ArrayFile, ids_of
from embridge.stores.parquet.file import ParquetFile
from embridge.stores.parquet.metadata import COLUMNS_KEY, LINEAGE_KEY, main_column, read_payload_spaces, read_space, read_texts
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Space


def ids_path(location: Location) -> str | None:
    """The file with the ids: the option ``ids``, relative to the folder of the vectors, else ``VECTORS.ids.parquet`` if any."""
    if (named := location.options.get("ids")) is not None:
        return os.path.join(os.path.dirname(location.path), named)
    beside = f"{location.path}.ids.parquet"
    return beside if os.path.exists(beside) else None


class NpyCollection(DeclaredCollection):
    """Rows of an array on disk.

    Parameters
    ----------
    location : Location
        ``npy:///path/vectors.npy`` with ``?ids=`` (a Parquet file, whose other columns are payload, or an ``.npy`` file), or
        ``npy:///path/arrays.npz`` with ``?vector=`` and ``?id=`` (names of arrays; default ``vectors``, and ``ids`` if any).
    space, id_column, vector_column
        As `embridge.open`.
    """

    kind = "npy"

    def __init__(
        self,
        location: Location,
        *,
        space: Space | DeclaredSpace | str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> None:
        self.path, path = location.uri, location.path
        is_archive = path.endswith(".npz")
        if vector_column and not is_archive:
            raise ParameterError(f"{self.path!r} is one array, which has no columns. Leave vector_column out.")
        self.lineage: dict[str, str] = {}
        self._further: dict[str, Space] = {}
        self._table: ParquetFile | None = None
        self._id_array: ArrayFile | None = None
        self.payload_schema, self.id_type, known = pa.schema([]), pa.int64(), None
        if is_archive:
            location.check_options("id", "vector")
            self._vectors = ArrayFile(path, location.column("vector", vector_column, "vectors"))
            name = location.column("id", id_column, "")
            if name or "ids" in _arrays(path):
                self._id_array = ArrayFile(path, name or "ids")
        else:
            location.check_options("id", "ids")
            self._vectors = ArrayFile(path)
            named = ids_path(location)
            if named is not None and named.endswith(".npy"):
                self._id_array = ArrayFile(named)
            elif named is not None:
                known = self._open_table(named, location, id_column)
        if len(self._vectors.shape) != 2:
            raise BadVectorsError(f"{self.name} must be an array of shape (n, dim). Got shape {self._vectors.shape} instead.")
        if not len(self):
            raise CollectionError.empty(self.name)
        if self._id_array is not None:
            with self._id_array.reading() as read:
                self.id_type = ids_of(read(0, 0), f"{self._id_array.path!r}").type
        rows = self._id_array.shape if self._id_array else (self._table.rows if self._table else len(self),)
        if rows != (len(self),):
            raise CollectionError(f"{self.name} has {len(self):,} vectors, but ids of shape {rows}.")
        self._identities = self._look()
        with self._vectors.reading() as read:
            as_vectors(read(0, 1), what=self.name)
        self._declare(space, known, self._vectors.shape[1], None)

    def _open_table(self, path: str, location: Location, id_column: str | None) -> Space | None:
        """Open the Parquet file with ids and payload; the space that it names."""
        self._table = table = ParquetFile(fs.LocalFileSystem(), path, repr(path), None)
        columns = read_texts(table.schema, COLUMNS_KEY, table.name)
        self.id_column = location.column("id", id_column, columns.get("id", "id"))
        if self.id_column not in table.schema.names:
            raise CollectionError.no_column(table.name, self.id_column, table.schema.names, "--id-column")
        self.id_type = id_type_of(table.schema.field(self.id_column).type, table.name)
        self.payload_schema = pa.schema([f for f in table.schema if f.name != self.id_column])
        self.lineage = read_texts(table.schema, LINEAGE_KEY, table.name)
        self._further = read_payload_spaces(table.schema, table.name, main_column(table.schema, table.name))
        return read_space(table.schema, table.name, main_column(table.schema, table.name))

    def __len__(self) -> int:
        return self._vectors.shape[0]

    def _read(
        self, batch_rows: int, *, payload: bool, vectors: bool, row_filter: RowFilter | None, validate: bool
    ) -> Iterator[Batch]:
        self.check_unchanged()
        with self._vectors.reading() as read:
            for start, ids, others in self._rows(batch_rows, payload=payload):
                if row_filter is None or row_filter(start, start + len(ids)):
                    values = np.empty((len(ids), 0), np.float32)
                    if vectors:
                        values = as_vectors(read(start, len(ids)), what=self.name)
                    yield Batch(start, ids, values, others)

    def _rows(self, batch_rows: int, *, payload: bool) -> Iterator[tuple[int, pa.Array, pa.RecordBatch]]:
        """Ids and payload, with the position of the first row."""
        if self._table is not None:
            names = self.payload_schema.names if payload else []
            for start, batch in self._table.spans([self.id_column, *names], batch_rows, None, 0):
                others = empty_payload(len(batch))
                if names:
                    others = pa.record_batch([batch.column(name) for name in names], schema=self.payload_schema)
                yield start, normalize_ids(batch.column(self.id_column), self._table.name), others
            return
        array = self._id_array or self._vectors
        with array.reading() as read:
            for start in range(0, len(self), batch_rows):
                count = min(batch_rows, len(self) - start)
                is_read = self._id_array is not None
                ids = ids_of(read(start, count), self.name) if is_read else pa.array(np.arange(start, start + count))
                yield start, ids, empty_payload(count)

    @property
    def payload_spaces(self) -> dict[str, Space]:
        return self._further

    @property
    def files(self) -> list[str]:
        held = (self._id_array, self._table)
        return [self._vectors.path, *(part.path for part in held if part is not None and part.path != self._vectors.path)]

    def fingerprint(self) -> str:
        try:
            return fingerprint(*self.files)
        except FileNotFoundError as e:
            raise ChangedSourceError.of(self.name, "a file is no longer there") from e

    def check_unchanged(self) -> None:
        if self._look() != self._identities:
            raise ChangedSourceError.of(self.name, "size or time of a file differs, or it is another file")

    def _look(self) -> list[tuple[object, ...]]:
        try:
            return [file_identity(fs.LocalFileSystem(), path) for path in self.files]
        except OSError:
            return []


def _arrays(path: str) -> list[str]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return list(archive.files)
    except (OSError, ValueError, EOFError):
        return []  # opening the array names the fault
