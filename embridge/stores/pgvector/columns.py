"""Columns of PostgreSQL as columns of Arrow, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg import sql

from embridge.errors import CollectionError

VIEW_HINT = "Hint: read a view of the table that casts the column or leaves it out."
_PLAIN = {
    "bool": pa.bool_(), "int2": pa.int16(), "int4": pa.int32(), "int8": pa.int64(), "float4": pa.float32(), "float8": pa.float64(),
    "text": pa.string(), "bytea": pa.binary(), "date": pa.date32(), "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"), "time": pa.time64("us"),
}  # fmt: skip
_TO = {kind: name for name, kind in _PLAIN.items()} | {
    pa.large_string(): "text", pa.string_view(): "text", pa.large_binary(): "bytea", pa.binary_view(): "bytea",
    pa.int8(): "int2", pa.uint8(): "int2", pa.uint16(): "int4", pa.uint32(): "int8", pa.float16(): "float4",
}  # fmt: skip
QUERY = (  # the columns of a table, with the type below a domain
    "WITH RECURSIVE base (type, real, modifier) AS (SELECT oid, oid, -1 FROM pg_type WHERE typtype <> 'd' UNION ALL "
    "SELECT d.oid, real, greatest(typtypmod, modifier) FROM pg_type d JOIN base ON type = typbasetype WHERE typtype = 'd') "
    "SELECT attname, typname, greatest(atttypmod, modifier), col_description(attrelid, attnum), attnum, attnotnull "
    "FROM pg_attribute JOIN base ON type = atttypid JOIN pg_type t ON t.oid = real "
    "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
)
VECTORS = {"vector": ">f4", "halfvec": ">f2"}  # and the type of their values on the wire


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name : str
    kind : str
        Name of its type in PostgreSQL.
    modifier : int
        Modifier of the type: the width of a vector, precision and scale of a numeric; -1 where it has none.
    comment : str, optional
    number : int
        Of the column in its table, which never changes.
    not_null : bool
    """

    name: str
    kind: str
    modifier: int
    comment: str | None = None
    number: int = 0
    not_null: bool = False

    @property
    def arrow(self) -> pa.DataType:
        """Its type in Arrow; types that have none there are read as text."""
        if self.kind in VECTORS:
            value = pa.float32() if self.kind == "vector" else pa.float16()
            return pa.list_(value, self.modifier) if self.modifier > 0 else pa.list_(value)
        if self.kind == "numeric" and 0 < (precision := (self.modifier - 4) >> 16) <= 38:
            scale = ((self.modifier - 4 & 0x7FF) ^ 0x400) - 0x400  # of 11 bits, signed
            return pa.decimal128(min(max(precision, scale), 38), scale)
        if self.kind.startswith("_") and self.kind[1:] in _PLAIN:
            return pa.list_(_PLAIN[self.kind[1:]])
        return _PLAIN.get(self.kind, pa.string())

    @property
    def wire(self) -> str:
        """The type in which it is copied out."""
        if self.kind in VECTORS:
            return "bytea"  # raw
        if pa.types.is_list(self.arrow):
            return f"{self.kind[1:]}[]"
        return self.kind if self.kind in _PLAIN or pa.types.is_decimal(self.arrow) else "text"

    @property
    def query(self) -> sql.Composable:
        """The expression that reads it."""
        name = sql.Identifier(self.name)
        return sql.SQL("{}::text").format(name) if self.wire == "text" and self.kind != "text" else name

    def array(self, values: tuple[Any, ...], where: str) -> pa.Array:
        """Values that were copied out, as an array.

        Raises
        ------
        CollectionError
            Its type in Arrow cannot hold one: arrays of several dimensions, numbers that are NaN.
        """
        if self.kind in VECTORS:
            return _vectors(self, values)
        try:
            return pa.array(values, self.arrow)
        except (pa.ArrowException, OverflowError, TypeError) as e:
            raise CollectionError(
                f"Column {self.name!r} of {where} has values that are not {self.arrow}: {str(e).splitlines()[0]}. {VIEW_HINT}"
            ) from e


def _vectors(column: Column, values: tuple[bytes | None, ...]) -> pa.Array:
    """Vectors on the wire are a width and a zero of two bytes each, then their values."""
    wire, value = np.dtype(VECTORS[column.kind]), column.arrow.value_type
    missing = np.fromiter((v is None for v in values), bool, len(values))
    if column.modifier > 0:
        row = np.dtype([("head", ">i4"), ("values", wire, column.modifier)])
        blank = bytes(row.itemsize)
        flat = np.frombuffer(b"".join(blank if v is None else v for v in values), row)["values"].astype(wire.newbyteorder("="))
        mask = pa.array(missing) if missing.any() else None
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), type=column.arrow, mask=mask)
    parts = [np.frombuffer(b"" if v is None else v[4:], wire) for v in values]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    flat = np.concatenate([np.empty(0, wire), *parts]).astype(wire.newbyteorder("="))
    starts = pa.array(offsets, pa.int32(), mask=np.append(missing, False)) if missing.any() else pa.array(offsets)
    return pa.ListArray.from_arrays(starts, pa.array(flat, value))


def type_for(kind: pa.DataType) -> str | None:
    """The type of PostgreSQL that holds every value of a type of Arrow; None where none does."""
    if pa.types.is_dictionary(kind):
        return type_for(kind.value_type)
    if pa.types.is_timestamp(kind) and kind.unit != "ns":
        return "timestamp" if kind.tz is None else "timestamptz"
    if pa.types.is_decimal(kind) and 0 <= kind.scale <= kind.precision <= 38:
        return f"numeric({kind.precision},{kind.scale})"
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) and kind.value_type in _TO:
        return f"{_TO[kind.value_type]}[]"
    return _TO.get(kind)


def to_wire(vectors: np.ndarray, kind: str) -> list[bytes]:
    """Vectors as PostgreSQL copies them in, one value a row."""
    rows = np.zeros(len(vectors), [("width", ">i2"), ("zero", ">i2"), ("values", VECTORS[kind], vectors.shape[1])])
    rows["width"], rows["values"] = vectors.shape[1], vectors
    raw, size = rows.tobytes(), rows.dtype.itemsize
    return [raw[start : start + size] for start in range(0, len(raw), size)]
