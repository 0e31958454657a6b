"""Ids and payload of Qdrant's points, which are 64-bit integers or UUIDs and JSON, as ids and columns of embridge."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pyarrow as pa

from embridge.errors import BadIdsError, CollectionError

_IDS = uuid.UUID("6f0f7c1e-5f0a-5d0c-9c40-0f5a8a1f6a3e")  # of the UUIDs made of text ids; never changes
_SAMPLE_TYPES = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_null)


def point_id(given: str | int) -> str | int:
    """The point of a row: its integer, its UUID, or for any other text the UUID (version 5) made of it.

    Raises
    ------
    BadIdsError
        A negative integer.
    """
    if isinstance(given, int):
        if given < 0:
            raise BadIdsError(f"Qdrant has no negative ids, such as {given}. Hint: cast the ids to text.")
        return given
    return given if _is_uuid(given) else str(uuid.uuid5(_IDS, given))


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def ids_of(points: list[Any], kind: pa.DataType, key: str | None, where: str) -> pa.Array:
    """Ids of points: the payload under `key` where there is one, else integers, or UUIDs as text.

    Raises
    ------
    BadIdsError
        Integers beside UUIDs, or beyond int64.
    """
    values = [(p.payload or {}).get(key, p.id) if key else p.id for p in points]
    if other := next((v for v in values if isinstance(v, str) != pa.types.is_string(kind)), None):
        raise BadIdsError(f"{where} has ids of several types: {other!r} is not {kind}. Hint: name a payload key with ?id=.")
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError) as e:
        raise BadIdsError(f"{where} has ids beyond int64 ({e}). Hint: name a payload key with ?id=.") from e


def infer(points: list[Any], without: str | None) -> pa.Schema:
    """Columns of the payload of some points; values of no common type, and nested ones, are JSON text."""
    keys = dict.fromkeys(key for p in points for key in p.payload or {} if key != without)
    return pa.schema([(key, _type_of([(p.payload or {}).get(key) for p in points])) for key in keys])


def _type_of(values: list[Any]) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return pa.string()
    inner = kind.value_type if pa.types.is_list(kind) else kind
    return kind if any(test(inner) for test in _SAMPLE_TYPES) and not pa.types.is_null(kind) else pa.string()


def column_of(points: list[Any], field: pa.Field, where: str) -> pa.Array:
    """One column of the payload.

    Raises
    ------
    CollectionError
        A value of another type than in the first points.
    """
    values = [(p.payload or {}).get(field.name) for p in points]
    if pa.types.is_string(field.type):
        values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as e:
        raise CollectionError(
            f"The payload {field.name!r} of {where} is {field.type} in its first points, and not in all: {str(e).splitlines()[0]}. "
            "Hint: ?payload=json reads the whole payload as one column of text."
        ) from e


def check_keys(points: list[Any], known: set[str], where: str) -> None:
    """Refuse payload that is in no column.

    Raises
    ------
    CollectionError
    """
    if other := next((key for p in points for key in p.payload or {} if key not in known), None):
        raise CollectionError(
            f"{where} has a payload {other!r} that its first points lack. "
            "Hint: ?payload=json reads the whole payload as one column of text."
        )


def refuses(kind: pa.DataType) -> str | None:
    """Why values of a type do not survive JSON; None where they do."""
    if pa.types.is_dictionary(kind):
        return refuses(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return refuses(kind.value_type)
    if pa.types.is_struct(kind):
        return next((reason for i in range(kind.num_fields) if (reason := refuses(kind.field(i).type))), None)
    plain = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind)
    whole = pa.types.is_integer(kind) and kind != pa.uint64()
    return None if plain or whole else "the payload of Qdrant is JSON, which has no such values"
