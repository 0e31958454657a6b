"""One Parquet file: its footer, its row groups, and a list column as an array."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from embridge.errors import BadVectorsError, UnreadableFileError
from embridge.stores.collection import Needed

_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"


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


def vectors_of(column: pa.Array, dim: int, name: str, start: int, *, lenient: bool) -> np.ndarray:
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
