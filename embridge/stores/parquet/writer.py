"""Writes a new Parquet collection, row group by row group: ids and payload by pyarrow, vectors as their bytes."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.arrays import check_rows
from embridge.errors import CollectionError, ParameterError
from embridge.files import whole_or_absent
from embridge.stores.batch import Batch, IdValues
from embridge.stores.parquet.collection import ERROR_COLUMNS
from embridge.stores.parquet.metadata import (
    COLUMNS_KEY,
    CONFIDENCE_KEY,
    LINEAGE_KEY,
    PROVENANCE_KEY,
    SPACE_KEY,
    fitted,
    further_space_key,
)
from embridge.stores.parquet.row_groups import MAGIC, Encoder, moved_group, read_groups
from embridge.stores.parquet.thrift import Struct
from embridge.types import Metric, Provenance, Space

_BLOCK = 16 << 20
GROUP_BYTES = 16 << 20  # of vectors in a row group; a conversion holds about six row groups, a reader one


def rows_of_group(dim: int, dtype: np.dtype) -> int:
    """Rows of a full row group, which depends on width and dtype only."""
    return max(1, GROUP_BYTES // (dtype.itemsize * dim))


class CollectionWriter:
    """Appends row groups of at most 16 MiB of vectors to a file.

    Parameters
    ----------
    file : io.FileIO
        Open for writing, unbuffered: new and empty, or at the end of the row groups `groups`.
    space : Space
        Space, written as metadata ``embridge.space``.
    id_type : pyarrow.DataType
        string or int64.
    payload_schema : pyarrow.Schema
        The other columns.
    columns : tuple of str
        Names of the id and the vector column, written as metadata ``embridge.columns``.
    lineage : dict
        Fingerprints of its inputs, written as ``embridge.lineage``.
    provenance : Provenance, optional
        Written as ``embridge.provenance``.
    dtype : {"float32", "float16"}
    compact : bool
        Byte stream split and zstd 1 for float32 vectors; float16 is not split, since DuckDB cannot read it.
    groups : sequence of Struct
        Metadata of the row groups that are already in the file.
    confidence : dict, optional
        Add columns ``predicted_error`` and ``error_bound`` (float32), which are then arguments of `append`; written as metadata
        ``embridge.confidence``.
    metadata : dict of bytes to bytes, optional
        More metadata of the file, such as that of the source (`Collection.metadata`); entries are kept where they are valid for
        this file (`embridge.stores.parquet.metadata.fitted`).
    payload_spaces : dict of str to Space, optional
        The spaces of vector columns in the payload, written as metadata ``embridge.space.COLUMN``.

    Attributes
    ----------
    schema : pyarrow.Schema
        Of the file.
    group_rows : int
        Rows of a full row group, which depends on width and dtype only.
    rows : int
        Rows added so far.
    """

    def __init__(
        self,
        file: io.FileIO,
        space: Space,
        id_type: pa.DataType,
        payload_schema: pa.Schema,
        *,
        columns: tuple[str, str] = ("id", "vector"),
        lineage: dict[str, str] | None = None,
        provenance: Provenance | None = None,
        dtype: str = "float32",
        compact: bool = False,
        groups: Sequence[Struct] = (),
        confidence: dict[str, Any] | None = None,
        metadata: dict[bytes, bytes] | None = None,
        payload_spaces: dict[str, Space] | None = None,
    ) -> None:
        if dtype not in ("float16", "float32"):
            raise ParameterError.must_be("dtype", "'float32' or 'float16'", dtype)
        errors = () if confidence is None else ERROR_COLUMNS
        for column in (*columns, *errors):
            if column in payload_schema.names:
                raise CollectionError.reserved_column("The output", column)
        self.dtype, self.space = np.dtype(dtype), space
        element = pa.field("element", pa.from_numpy_dtype(self.dtype), nullable=False)
        ours = {
            SPACE_KEY: json.dumps(space.to_dict()),
            COLUMNS_KEY: json.dumps(dict(zip(("id", "vector"), columns, strict=True))),
            LINEAGE_KEY: json.dumps(lineage or {}),
        }
        ours |= {further_space_key(column): json.dumps(s.to_dict()) for column, s in (payload_spaces or {}).items()}
        if confidence is not None:
            ours[CONFIDENCE_KEY] = json.dumps(confidence)
        self._errors = [pa.field(name, pa.float32(), False) for name in errors]
        if provenance is not None:
            ours[PROVENANCE_KEY] = json.dumps(asdict(provenance))
        ids, vectors = pa.field(columns[0], id_type, False), pa.field(columns[1], pa.list_(element, space.dim), False)
        fields = [ids, vectors, *payload_schema, *self._errors]
        self.schema = pa.schema(fields, fitted(metadata or {}, [f.name for f in fields], columns[1]) | ours)
        self._others = pa.schema([ids, *payload_schema])
        self.group_rows = rows_of_group(space.dim, self.dtype)
        self._encoder = Encoder(self.schema, columns[1], compact=compact and self.dtype == np.float32)
        self._file = file
        self.groups = list(groups)
        self.rows = sum(group[3][1] for group in self.groups)
        if not self.groups:
            self._put(MAGIC)
        self._held: list[Batch] = []
        self._vectors = np.empty((0, space.dim), self.dtype)
        self._filled = 0

    def write(self, batch: Batch) -> None:
        """Add the rows of a batch; its vectors are cast to the output's dtype."""
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(batch.vectors, dtype=self.dtype)
        if values.dtype.itemsize < batch.vectors.dtype.itemsize or self.space.normalized:  # beyond 65,504 a float16 is infinite
            zero_is_bad, what = self.space.metric == Metric.COSINE, f"The output in {self.dtype}"
            check_rows(values, IdValues(batch.ids), what, zero_is_bad=zero_is_bad, unit_length=self.space.normalized)
        start = 0
        while start < len(values):
            if not len(self._vectors):
                self._vectors = np.empty((self.group_rows, self.space.dim), self.dtype)
            count = min(len(values) - start, self.group_rows - self._filled)
            self._vectors[self._filled : self._filled + count] = values[start : start + count]
            self._held.append(batch.at(np.arange(start, start + count)))
            self._filled += count
            start += count
            if self._filled == self.group_rows:
                self._flush()

    def append(self, parts: Sequence[Batch], vectors: np.ndarray, errors: np.ndarray | None = None) -> Struct:
        """Write one row group now; returns its metadata.

        Parameters
        ----------
        parts : sequence of Batch
            Ids and payload of its rows; their vectors are ignored.
        vectors : ndarray of shape (n, dim)
            Contiguous, of the output's dtype.
        errors : ndarray of shape (2, n), float32, optional
            Where the file has a confidence: predicted errors, and bounds.
        """
        table = _independent([pa.record_batch([p.ids, *p.payload.columns], schema=self._others) for p in parts], self._others)
        for field, values in zip(self._errors, () if errors is None else errors, strict=True):
            table = table.append_column(field, pa.array(values))
        group = self._encoder.encode(table, vectors, self._file.tell(), len(self.groups))
        for buffer in group.buffers:
            self._put(buffer)
        self.groups.append(group.metadata)
        self.rows += len(vectors)
        return group.metadata

    def append_file(self, path: str | os.PathLike[str]) -> None:
        """Append the row groups of a file that a writer of the same schema and options wrote, without decoding them."""
        groups, end = read_groups(path)
        shift = self._file.tell() - len(MAGIC)
        with open(path, "rb") as file:
            file.seek(len(MAGIC))
            while block := file.read(min(_BLOCK, end - file.tell())):
                self._put(block)
        for group in groups:
            self.groups.append(moved_group(group, shift, len(self.groups)))
            self.rows += group[3][1]

    def close(self) -> None:
        """Write the remaining rows, and the footer. The file stays open."""
        self._flush()
        self._put(self._encoder.footer(self.groups))

    def _flush(self) -> None:
        if self._filled:
            self.append(self._held, self._vectors[: self._filled])
            self._held, self._filled = [], 0

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


def _independent(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """The same rows with one chunk per column, dictionaries in the order of first appearance.

    So the bytes of a row group depend on its rows only, not on the batches.
    """
    columns = []
    for column, field in zip(pa.Table.from_batches(batches, schema).columns, schema, strict=True):
        if pa.types.is_dictionary(field.type):
            plain = pa.chunked_array([c.dictionary_decode() for c in column.chunks], field.type.value_type)
            found = plain.combine_chunks().dictionary_encode()
            column = pa.DictionaryArray.from_arrays(
                found.indices.cast(field.type.index_type), found.dictionary, ordered=field.type.ordered
            )
        else:
            column = column.combine_chunks()
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


@contextlib.contextmanager
def write_collection(
    path: str | os.PathLike[str], space: Space, id_type: pa.DataType, payload_schema: pa.Schema | None = None, **options: object
) -> Iterator[CollectionWriter]:
    """Open a new Parquet collection; the file appears at `path`, and replaces an existing one, when the block ends without error.

    Parameters
    ----------
    path : str or path-like
        A local file.
    space, id_type, payload_schema, **options
        As for `CollectionWriter`.
    """
    schema = pa.schema([]) if payload_schema is None else payload_schema
    with whole_or_absent(path) as temporary, open(temporary, "wb", buffering=0) as file:
        writer = CollectionWriter(file, space, id_type, schema, **options)  # type: ignore[arg-type]
        yield writer
        writer.close()
