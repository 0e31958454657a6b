"""Columns of small tables, streamed from Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from embridge.errors import BadIdsError, CollectionError
from embridge.stores.id_types import normalize_ids
from embridge.stores.parquet.file import ParquetFiles


def scan(path: str | os.PathLike[str], columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """Stream some columns of a Parquet file, folder or glob.

    Raises
    ------
    MissingFileError, UnreadableFileError
        The file is missing or damaged.
    CollectionError
        A required column is missing.
    ChangedSourceError
        A file changed while it was read.
    """
    files = ParquetFiles(os.fspath(path)).files
    for file in files:
        for column in columns:
            if column not in file.schema.names:
                raise CollectionError(f"{file.name} has no column {column!r}. Columns: {', '.join(file.schema.names)}.")
    for file in files:
        yield from file.batches([*columns, *(n for n in optional if n in file.schema.names)], 1 << 16)


def ids_of(batch: pa.RecordBatch, column: str, where: str) -> list[Any]:
    """Ids of a batch as Python values.

    Raises
    ------
    BadIdsError
        Null ids, or ids of a type other than string and int64.
    """
    ids = normalize_ids(batch.column(column), f"Column {column!r} of {where}")
    if ids.null_count:
        raise BadIdsError.null(f"Column {column!r} of {where}", ids.null_count)
    return ids.to_pylist()
