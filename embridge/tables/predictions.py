"""Predictions of a decoder as Parquet: ids, payload, and columns of predictions; no vectors."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embridge.errors import CollectionError
from embridge.files import whole_or_absent
from embridge.stores.base import Batch, Collection
from embridge.stores.parquet.collection import LINEAGE_KEY

COLUMNS = ("prediction", "probability", "output")


class PredictionWriter:
    """Appends rows to a Parquet file of predictions; the first rows determine the columns.

    Parameters
    ----------
    path : path-like
    source : Collection
        Collection whose ids and payload are written.
    lineage : dict
        Fingerprints of its inputs, written as metadata ``embridge.lineage``.

    Attributes
    ----------
    columns : tuple of str
        Columns written in addition to ids and payload.
    """

    def __init__(self, path: os.PathLike[str], source: Collection, lineage: dict[str, str]) -> None:
        self._path, self._lineage = path, lineage
        self._fields = [pa.field(source.id_column, source.id_type, nullable=False), *source.payload_schema]
        self.columns: tuple[str, ...] = ()
        self._writer: pq.ParquetWriter | None = None

    def write(self, batch: Batch, found: dict[str, np.ndarray | None]) -> None:
        """Write the rows of a batch beside `found`: arrays by column name, one row each; two-dimensional ones as lists."""
        columns = {name: _column(values) for name, values in found.items() if values is not None}
        if self._writer is None:
            self.columns = tuple(columns)
            fields = [*self._fields, *(pa.field(name, column.type, nullable=False) for name, column in columns.items())]
            schema = pa.schema(fields, {LINEAGE_KEY: json.dumps(self._lineage)})
            lists = [name for name, column in columns.items() if pa.types.is_fixed_size_list(column.type)]
            plain = [name for name in schema.names if name not in lists]  # no dictionary for floats, which rarely repeat
            self._writer = pq.ParquetWriter(self._path, schema, use_dictionary=plain, write_statistics=plain)
        arrays = [batch.ids, *batch.payload.columns, *columns.values()]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._writer.schema), row_group_size=len(batch))

    def close(self) -> None:
        """Write the footer."""
        if self._writer is not None:
            self._writer.close()


def check_payload(source: Collection) -> None:
    """Refuse a collection that already has a column of the predictions.

    Raises
    ------
    CollectionError
    """
    for name in (source.id_column, *source.payload_schema.names):
        if name in COLUMNS:
            raise CollectionError.reserved_column(source.name, name)


@contextlib.contextmanager
def write_predictions(path: str | os.PathLike[str], source: Collection, lineage: dict[str, str]) -> Iterator[PredictionWriter]:
    """Open a new file of predictions; it appears at `path` when the block ends without error."""
    with whole_or_absent(path) as temporary:
        writer = PredictionWriter(temporary, source, lineage)
        try:
            yield writer
        finally:
            writer.close()


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values, pa.string() if values.dtype == object else None)
    element = pa.field("element", pa.from_numpy_dtype(values.dtype), nullable=False)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(element, values.shape[1]))
