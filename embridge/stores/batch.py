"""Batches of rows, their ids as values, and columns cast to a common type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.errors import CollectionError


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive rows of a collection.

    Attributes
    ----------
    start : int
        Position of the first row in the collection.
    ids : pyarrow.Array
        string or int64.
    vectors : ndarray of shape (n, dim)
        float16, float32 or float64, as stored; without a copy where the store allows.
    payload : pyarrow.RecordBatch
        The other columns; empty where they were not requested.
    """

    start: int
    ids: pa.Array
    vectors: np.ndarray
    payload: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: np.ndarray) -> Batch:
        """Some of its rows, at least one, by sorted positions; consecutive ones without a copy."""
        first, count = int(rows[0]), len(rows)
        if rows[-1] - first == count - 1:
            span = slice(first, first + count)
            return Batch(self.start + first, self.ids[span], self.vectors[span], self.payload.slice(first, count))
        places = pa.array(rows)
        return Batch(self.start + first, self.ids.take(places), self.vectors[rows], self.payload.take(places))


class IdValues(Sequence[Any]):
    """Ids of an Arrow array as Python values, converted only when an error message needs them."""

    def __init__(self, ids: pa.Array) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, i: Any) -> Any:
        return self._ids[int(i)].as_py()


def cast_column(column: pa.Array, field: pa.Field, where: str) -> pa.Array:
    """A column cast to the common type of all files.

    Raises
    ------
    CollectionError
        A value would change: an integer beyond 2^53 as a float.
    """
    kind = field.type
    if column.type == kind:
        return column
    try:
        if pa.types.is_dictionary(kind) and not pa.types.is_dictionary(column.type):
            return column.cast(kind.value_type).dictionary_encode().cast(kind)
        return column.cast(kind)
    except pa.ArrowException as e:
        reason = str(e).splitlines()[0]
        raise CollectionError(
            f"Column {field.name!r} of {where} is {column.type}, in other files it is {kind}, and not every value can be kept: "
            f"{reason}. Hint: write the column with one type in all files."
        ) from e
