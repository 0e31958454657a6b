"""Collections in Parquet: a file, a folder or a glob, local or in object storage, and the writer of new ones."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    CollectionError,
    SpaceMismatchError,
    UndeclaredSpaceError,
)
from embridge.stores.collection import Batch, Collection, Needed, declare_space, id_type_of, normalise_ids
from embridge.stores.locations import find_files, fingerprint_files, inner_path
from embridge.stores.memory import empty_payload
from embridge.stores.parquet_file import ParquetFile, vectors_of
from embridge.types import DeclaredSpace, Mixture, Space

SPACE_KEY, LINEAGE_KEY, COLUMNS_KEY = b"embridge.space", b"embridge.lineage", b"embridge.columns"
CONFIDENCE_KEY = b"embridge.confidence"
ERROR_COLUMNS = ("predicted_error", "error_bound")  # what a conversion with confidence adds
MIXTURE_KEY = b"embridge.mixture"


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
        self._fs, names, self._base = find_files(self.path)
        self._files = [ParquetFile(self._fs, name, self._display(name, names), self._base) for name in names]
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
        self.mixture = self._common_mixture()
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

    def _common_mixture(self) -> Mixture | None:
        """What merged files say of themselves. Calibrated apart, or beside files that are not, their scores do not go together."""
        found = [_mixture(file) for file in self._files]
        if other := next((file for file, mixture in zip(self._files, found, strict=True) if mixture != found[0]), None):
            raise CollectionError.calibrated_apart(self.name, self._files[0].name, other.name)
        return found[0]

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
                return dim, vectors_of(column, dim, file.name, 0, lenient=True)
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
                    values = vectors_of(
                        batch.column(self.vector_column), self.space.dim, file.name, start - offset, lenient=lenient
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
                column = batch.column(field.name)
                arrays.append(column if column.type == field.type else column.cast(field.type))
            else:  # a folder's value, or null where this file has no such column
                arrays.append(pa.repeat(pa.scalar(file.partition.get(field.name), field.type), len(batch)))
        return pa.record_batch(arrays, schema=self.payload_schema)

    def fingerprint(self) -> str:
        return fingerprint_files(self._fs, [file.path for file in self._files])

    @property
    def is_many(self) -> bool:
        """True for a folder or a glob, of however many files."""
        return self._base is not None or self.paths != [inner_path(str(self.path))]

    @property
    def paths(self) -> list[str]:
        """Its files, in order."""
        return [file.path for file in self._files]

    def split_files(self) -> list[tuple[str, ParquetCollection]]:
        """Each file as a collection, with its path below the folder (its name, where a glob found it).

        Each has the columns that are in it: what ``key=value`` folders say stays with the folders.

        Raises
        ------
        CollectionError
            Two files of a glob have one name.
        """
        found = []
        for file in self._files:
            part = copy.copy(self)
            part._files, part._base, part.path = [file], None, file.path
            part.payload_schema = pa.schema([f for f in file.schema if f.name not in (self.id_column, self.vector_column)])
            found.append((file.path[len(self._base) :] if self._base else file.path.rpartition("/")[2], part))
        names = [name for name, _ in found]
        if len(set(names)) < len(names):
            raise CollectionError(f"{self.name} finds several files of one name. Hint: convert the folder above them.")
        return found

    @property
    def vector_type(self) -> str:
        """How the first file stores vectors: ``float16``, ``float32`` or ``float64``."""
        return str(self._files[0].schema.field(self.vector_column).type.value_type.to_pandas_dtype().__name__)

    @property
    def lineage(self) -> dict[str, str]:
        """Fingerprints of what the first file was made of, where it says so."""
        return _metadata(self._files[0].schema, LINEAGE_KEY) or {}

    @property
    def confidence(self) -> dict[str, Any] | None:
        """What the first file's columns of errors were made by (``coverage``, ``fingerprint``); None where it has none."""
        return _metadata(self._files[0].schema, CONFIDENCE_KEY)


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


def _mixture(file: ParquetFile) -> Mixture | None:
    values = _metadata(file.schema, MIXTURE_KEY)
    try:
        return Mixture(float(values["offset"]), int(values["k"]), str(values["column"])) if values else None
    except (KeyError, TypeError, ValueError) as e:
        raise CollectionError(f"The metadata {MIXTURE_KEY.decode()!r} of {file.name} is no mixture: {values!r}") from e
