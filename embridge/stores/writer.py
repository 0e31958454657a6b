"""Writing a new Parquet collection: whole or absent, vectors without dictionary, ids and payload as they came."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embridge.errors import CollectionError, ParameterError
from embridge.files import whole_or_absent
from embridge.stores.collection import Batch
from embridge.stores.parquet import COLUMNS_KEY, LINEAGE_KEY, SPACE_KEY
from embridge.types import Space

_GROUP_BYTES = 64 << 20  # of vectors in a row group: a reader holds one, so this bounds what it needs


class CollectionWriter:
    """Takes batches and writes row groups of at most 64 MiB of vectors. Made by `write_collection`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        space: Space,
        id_type: pa.DataType,
        payload_schema: pa.Schema,
        *,
        columns: tuple[str, str],
        lineage: dict[str, str],
        dtype: str,
        compact: bool,
    ) -> None:
        if dtype not in ("float16", "float32"):
            raise ParameterError.must_be("dtype", "'float32' or 'float16'", dtype)
        id_column, vector_column = columns
        for column in columns:
            if column in payload_schema.names:
                raise CollectionError.reserved_column(f"The output {os.fspath(path)!r}", column)
        self._dtype = np.dtype(dtype)
        element = pa.field("element", pa.from_numpy_dtype(self._dtype), nullable=False)
        self._vector_type = pa.list_(element, space.dim)
        metadata = {
            SPACE_KEY: json.dumps(space.to_dict()),
            COLUMNS_KEY: json.dumps({"id": id_column, "vector": vector_column}),
            LINEAGE_KEY: json.dumps(lineage),
        }
        self.schema = pa.schema(
            [pa.field(id_column, id_type, False), pa.field(vector_column, self._vector_type, False), *payload_schema], metadata
        )
        flat = [f.name for f in payload_schema if not pa.types.is_nested(f.type)]
        leaf = f"{vector_column}.list.element"
        # Floats of an embedding do not compress, and a dictionary of them only costs; split into byte planes the exponents do.
        split = compact and self._dtype == np.float32
        with pa.BufferOutputStream() as probe, pq.ParquetWriter(probe, self.schema) as empty:
            empty.write_table(self.schema.empty_table())
        leaves = [c.path for c in _leaves(pa.BufferReader(probe.getvalue()))]
        self._writer = pq.ParquetWriter(
            os.fspath(path),
            self.schema,
            use_dictionary=flat,
            write_statistics=[id_column, *flat],
            compression={name: "zstd" if name != leaf or split else "none" for name in leaves},
            compression_level={name: 1 for name in leaves if name != leaf or split},
            column_encoding={leaf: "BYTE_STREAM_SPLIT"} if split else None,
        )
        self._group_rows = max(1, _GROUP_BYTES // (self._dtype.itemsize * space.dim))
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self.rows = 0

    def write(self, batch: Batch) -> None:
        """Append the rows of a batch; its vectors are cast to the output's dtype."""
        values = np.ascontiguousarray(batch.vectors, dtype=self._dtype).reshape(-1)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), type=self._vector_type)
        self._held.append(pa.record_batch([batch.ids, vectors, *batch.payload.columns], schema=self.schema))
        self._held_rows += len(batch)
        self.rows += len(batch)
        while self._held_rows >= self._group_rows:
            table = pa.Table.from_batches(self._held)
            self._writer.write_table(table.slice(0, self._group_rows), self._group_rows)
            rest = table.slice(self._group_rows)
            self._held, self._held_rows = rest.to_batches(), rest.num_rows

    def close(self) -> None:
        """Write what is left, and the footer."""
        if self._held_rows:
            self._writer.write_table(pa.Table.from_batches(self._held), self._group_rows)
        self._held = []
        self._writer.close()


def _leaves(source: pa.BufferReader) -> Iterator[pq.ColumnSchema]:
    schema = pq.ParquetFile(source).schema
    return (schema.column(i) for i in range(len(schema)))


@contextlib.contextmanager
def write_collection(
    path: str | os.PathLike[str],
    space: Space,
    id_type: pa.DataType,
    payload_schema: pa.Schema | None = None,
    *,
    columns: tuple[str, str] = ("id", "vector"),
    lineage: dict[str, str] | None = None,
    dtype: str = "float32",
    compact: bool = False,
) -> Iterator[CollectionWriter]:
    """Open a new Parquet collection; the file appears at `path`, replacing one that is there, when the block ends without error.

    Parameters
    ----------
    path : str or path-like
        A local file.
    space : Space
        Written as metadata ``embridge.space``.
    id_type : pyarrow.DataType
        string or int64.
    payload_schema : pyarrow.Schema, optional
        The other columns of the batches to come.
    columns : tuple of str, default ("id", "vector")
        Names of the id and the vector column, kept in metadata ``embridge.columns``.
    lineage : dict, optional
        Fingerprints of what it is made of, kept as ``embridge.lineage``.
    dtype : {"float32", "float16"}
    compact : bool, default False
        Byte stream split and zstd 1 for float32 vectors: smaller files, slower to read. float16 is left plain, since DuckDB
        cannot read it split.
    """
    with whole_or_absent(path) as temporary:
        schema = pa.schema([]) if payload_schema is None else payload_schema
        writer = CollectionWriter(
            temporary, space, id_type, schema, columns=columns, lineage=lineage or {}, dtype=dtype, compact=compact
        )
        try:
            yield writer
        finally:
            writer.close()
