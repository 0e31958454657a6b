"""Payload columns as JSON values, for stores whose rows have fields instead of columns."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embridge.errors import CollectionError
from embridge.stores.batch import Batch
from embridge.stores.memory import empty_payload

Row = Mapping[str, Any]


@dataclass(frozen=True)
class JsonColumns:
    """Columns, and how their values are kept as JSON.

    Booleans, integers, floats and strings are JSON values. Dates, times, timestamps and decimals are text. NaN and infinite values
    are the texts ``nan``, ``inf`` and ``-inf``. A null is a JSON null.

    Attributes
    ----------
    schema : pyarrow.Schema
    is_flat : bool
        The store has no lists, no objects and no unsigned 64-bit integers: they are kept as text, lists and objects as JSON text.
    mixed : frozenset of str
        Columns whose values have no common type in the store; they are read as JSON text.
    """

    schema: pa.Schema
    is_flat: bool = False
    mixed: frozenset[str] = field(default_factory=frozenset)

    def encode(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        """The rows of a batch as dictionaries of JSON values."""
        if not batch.num_columns:
            return [{} for _ in range(batch.num_rows)]
        columns = [self._values(column, name) for name, column in zip(batch.schema.names, batch.columns, strict=True)]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]

    def _values(self, column: pa.Array, name: str) -> list[Any]:
        carrier = _carrier(column.type, self.is_flat)
        held = column if carrier == column.type else column.cast(carrier)
        if pa.types.is_temporal(column.type) and not _is_same(held, column):
            raise CollectionError(f"Column {name!r} has {column.type} values that cannot be kept as text. Hint: drop or cast it.")
        values = held.to_pylist()
        if pa.types.is_nested(carrier):
            plain = [_finite(value) for value in values]
            return [None if value is None else json.dumps(value) for value in plain] if self.is_flat else plain
        return [_finite(value) for value in values] if pa.types.is_floating(carrier) else values

    def decode(self, rows: Sequence[Row], where: str, ignored: Iterable[str] = ()) -> pa.RecordBatch:
        """Rows of the store as a batch; missing fields are null.

        Raises
        ------
        CollectionError
            A value of another type than its column, or a field that is not in the schema, nor `ignored`.
        """
        known = {*self.schema.names, *ignored}
        if other := next((name for row in rows for name in row if name not in known), None):
            raise CollectionError(
                f"{where} has a field {other!r} that was not there when embridge wrote it. Hint: read the types of its fields "
                "anew, with the option columns=inferred of its URI."
            )
        if not self.schema.names:
            return empty_payload(len(rows))
        return pa.record_batch([self._column(column, rows, where) for column in self.schema], schema=self.schema)

    def _column(self, column: pa.Field, rows: Sequence[Row], where: str) -> pa.Array:
        values = [row.get(column.name) for row in rows]
        kind = column.type
        carrier = _carrier(kind, self.is_flat)
        try:
            if column.name in self.mixed:
                values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
            elif pa.types.is_nested(kind):
                texts = self.is_flat
                values = [_parsed(json.loads(v) if texts and isinstance(v, str) else v, kind) for v in values]
            elif pa.types.is_floating(kind):
                values = [_parsed(value, kind) for value in values]
            found = pa.array(values, carrier)
            if pa.types.is_dictionary(kind):
                found = found.cast(kind.value_type).dictionary_encode()
            return found if found.type == kind else found.cast(kind)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as e:
            raise CollectionError(
                f"{where} has a field {column.name!r} with values that are not {kind}: {str(e).splitlines()[0]}. "
                "Hint: read the types of its fields anew, with the option columns=inferred of its URI."
            ) from e

    def dumps(self) -> str:
        """The schema as text, which `loads` reads."""
        return base64.b64encode(self.schema.serialize().to_pybytes()).decode()

    @classmethod
    def loads(cls, text: str, where: str, *, is_flat: bool = False) -> JsonColumns:
        """Read a schema again.

        Raises
        ------
        CollectionError
            It is damaged.
        """
        try:
            return cls(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True))), is_flat)
        except (ValueError, pa.ArrowException, OSError) as e:
            raise CollectionError(f"The schema that embridge keeps in {where} is damaged: {e}") from e

    @classmethod
    def infer(cls, pages: Iterable[Sequence[Row]], *, is_flat: bool = False) -> JsonColumns:
        """The columns of rows that embridge did not write, from all of them; those without a common type are read as JSON text."""
        kinds: dict[str, pa.DataType | None] = {}
        for rows in pages:
            for name in dict.fromkeys(name for row in rows for name in row):
                kinds[name] = _common(kinds.get(name, pa.null()), [row.get(name) for row in rows])
        mixed = frozenset(name for name, kind in kinds.items() if kind is None or not _is_held(kind))
        fields = [(name, pa.string() if kind is None or name in mixed else kind) for name, kind in sorted(kinds.items())]
        return cls(pa.schema(fields), is_flat, mixed)


def _is_same(texts: pa.Array, values: pa.Array) -> bool:
    """Whether texts are read as the values they were made from: not outside the years 0 to 9999."""
    try:
        return texts.cast(values.type).equals(values)
    except pa.ArrowException:
        return False


def requests_of(batch: Batch, rows: int, size: int) -> Iterator[Batch]:
    """Parts of a batch that one request each takes: of at most `rows` rows, and of about `size` bytes as JSON, or of one row."""
    lengths = 20 * batch.vectors.shape[1] + _lengths(batch.ids)  # digits of a vector
    for name, column in zip(batch.payload.schema.names, batch.payload.columns, strict=True):
        lengths += len(name) + 24 + _lengths(column)
    start, held = 0, 0
    for row, length in enumerate(lengths.tolist()):
        if row > start and (row - start == rows or held + length > size):
            yield batch.at(np.arange(start, row))
            start, held = row, 0
        held += length
    if start < len(batch):
        yield batch.at(np.arange(start, len(batch)))


def _lengths(column: pa.Array) -> np.ndarray:
    """About how long the values of a column are as text, beyond a number."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        return np.array([len(str(value)) for value in column.to_pylist()])
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.zeros(len(column), np.int64)


def refusal(kind: pa.DataType) -> str | None:
    """Why a column of this type cannot be kept as JSON; None where it can."""
    try:
        carrier = _carrier(kind, is_flat=False)
        pa.nulls(1, kind).cast(carrier).cast(kind.value_type if pa.types.is_dictionary(kind) else kind)
    except (pa.ArrowException, TypeError) as e:
        return str(e).splitlines()[0]
    return None


def _carrier(kind: pa.DataType, is_flat: bool) -> pa.DataType:
    """The type whose Python values are the JSON values of a column.

    Raises
    ------
    TypeError
        The type has no JSON form.
    """
    types = pa.types
    if types.is_dictionary(kind):
        if types.is_nested(kind.value_type):
            raise TypeError("it has no JSON form")
        return _carrier(kind.value_type, is_flat)
    if types.is_float16(kind):
        return pa.float32()
    is_text = types.is_large_string(kind) or types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind)
    if is_text or types.is_decimal(kind) or (is_flat and types.is_uint64(kind)):
        return pa.string()
    if _is_json(kind):
        return kind
    raise TypeError("it has no JSON form")


def _is_json(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    if types.is_struct(kind):
        return all(_is_json(kind.field(i).type) for i in range(kind.num_fields))
    is_number = types.is_boolean(kind) or types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)
    return is_number or types.is_string(kind) or types.is_null(kind)


def _is_held(kind: pa.DataType) -> bool:
    """Parquet can hold it: it has no struct without fields."""
    if pa.types.is_struct(kind):
        return bool(kind.num_fields) and all(_is_held(kind.field(i).type) for i in range(kind.num_fields))
    return not pa.types.is_list(kind) or _is_held(kind.value_type)


def _common(known: pa.DataType | None, values: list[Any]) -> pa.DataType | None:
    """The type of values of a known type and of others; None where there is none."""
    if known is None or _mixes_booleans(values):
        return None
    try:
        schemas = [pa.schema([("x", known)]), pa.schema([("x", pa.array(values).type)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowException, OverflowError, TypeError):
        return None


def _mixes_booleans(values: list[Any]) -> bool:
    """Booleans are among values of other types, at any depth; Arrow would take True for 1.0."""
    if {bool} < {type(value) for value in values if value is not None}:
        return True
    items = [item for value in values if isinstance(value, list) for item in value]
    fields = [value for value in values if isinstance(value, dict)]
    names = dict.fromkeys(name for value in fields for name in value)
    return (bool(items) and _mixes_booleans(items)) or any(_mixes_booleans([value.get(n) for value in fields]) for n in names)


def _finite(value: Any) -> Any:
    """A value in which floats that JSON does not have are text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return {name: _finite(item) for name, item in value.items()} if isinstance(value, dict) else value


def _parsed(value: Any, kind: pa.DataType) -> Any:
    """The inverse of `_finite` for values of a type."""
    if value is None:
        return None
    if pa.types.is_floating(kind):
        if isinstance(value, bool):
            raise TypeError(f"got {value}")
        return float(value) if isinstance(value, str) else value
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _parsed(value.get(kind.field(i).name), kind.field(i).type) for i in range(kind.num_fields)}
    return [_parsed(item, kind.value_type) for item in value] if pa.types.is_nested(kind) else value
