"""Collections in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.arrays import as_vectors
from embridge.errors import BadIdsError, BadVectorsError, CollectionError
from embridge.stores.base import Batch, Collection, RowFilter
from embridge.stores.id_types import normalize_ids
from embridge.types import Space


class MemoryCollection(Collection):
    """Ids and vectors in memory.

    Parameters
    ----------
    ids : sequence of str or int, of length n
    vectors : array_like of shape (n, dim)
    space : Space
    payload : mapping of str to sequence, or pyarrow.Table, optional
        Other columns, n rows each.

    Raises
    ------
    BadIdsError
        Null or duplicate ids, or ids of a type other than string and int64.
    BadVectorsError, SpaceMismatchError
        Vectors of a wrong type or width. Values are checked when they are read.
    CollectionError
        No rows.
    """

    kind = "memory"
    is_exact = True

    def __init__(self, ids: Any, vectors: Any, space: Space, payload: Any = None) -> None:
        self.path = None
        self.space = space
        try:
            values = ids if isinstance(ids, pa.Array) else pa.array(ids if not isinstance(ids, np.ndarray) else ids.tolist())
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as e:
            raise BadIdsError.kind(self.name, f"values of several types, or out of range ({e})") from e
        if not len(values):
            raise CollectionError.empty(self.name)
        self._ids = normalize_ids(values, self.name)
        if self._ids.null_count:
            raise BadIdsError.null(self.name, self._ids.null_count)
        counts = self._ids.value_counts()
        repeated = [c["values"].as_py() for c in counts.filter(pa.array(counts.field("counts").to_numpy() > 1))]
        if repeated:
            raise BadIdsError.duplicate(self.name, repeated)
        self.id_type = self._ids.type
        self._vectors = as_vectors(vectors, space.dim, self.name)
        if len(self._ids) != len(self._vectors):
            raise BadVectorsError(f"{self.name} has {len(self._ids):,} ids, but {len(self._vectors):,} vectors.")
        try:
            self._payload = pa.table({} if payload is None else payload).combine_chunks()
        except (pa.ArrowException, OverflowError, TypeError, ValueError, AttributeError) as e:
            raise CollectionError(f"{self.name} has a payload that is not a table: {e}") from e
        if len(set(self._payload.column_names)) < self._payload.num_columns:
            raise CollectionError(f"{self.name} has repeated column names: {', '.join(self._payload.column_names)}.")
        if self._payload.num_columns and self._payload.num_rows != len(self._ids):
            raise CollectionError(f"{self.name} has {len(self._ids):,} ids, but {self._payload.num_rows:,} rows of payload.")
        self.payload_schema = self._payload.schema

    def __len__(self) -> int:
        return len(self._ids)

    def _read(
        self, batch_rows: int, *, payload: bool, vectors: bool, row_filter: RowFilter | None, validate: bool
    ) -> Iterator[Batch]:
        for start in range(0, len(self), batch_rows):
            rows = slice(start, start + batch_rows)
            if row_filter is not None and not row_filter(start, min(start + batch_rows, len(self))):
                continue
            ids = self._ids[rows]
            others = self._payload.slice(start, batch_rows).to_batches() if payload and self.payload_schema.names else None
            extra = others[0] if others else empty_payload(len(ids))
            yield Batch(start, ids, self._vectors[rows] if vectors else self._vectors[rows, :0], extra)

    @property
    def vector_type(self) -> str:
        return str(self._vectors.dtype)

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(repr(self._ids.to_pylist()).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self._vectors).tobytes())
        if self.payload_schema.names:
            digest.update(repr({name: _values(self._payload[name]) for name in self._payload.column_names}).encode())
        return digest.hexdigest()


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column; as text where Python has no such moments."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):  # beyond the years 1 to 9999, or nanoseconds without pandas
        return [chunk.to_string(window=len(chunk), skip_new_lines=True) for chunk in column.chunks]


def empty_payload(rows: int) -> pa.RecordBatch:
    """A record batch of `rows` rows and no columns."""
    return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))
