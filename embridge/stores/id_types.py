"""The two types of ids: string and int64."""

from __future__ import annotations

import pyarrow as pa

from embridge.errors import BadIdsError


def normalize_ids(ids: pa.Array | pa.ChunkedArray, where: str) -> pa.Array:
    """Ids as string or int64; other string and integer types are cast.

    Raises
    ------
    BadIdsError
        Ids of another kind, or integers beyond int64.
    """
    kind = id_type_of(ids.type, where)
    if ids.type == kind:
        return ids
    try:
        return ids.cast(kind)
    except pa.ArrowException as e:
        raise BadIdsError(f"{where} has ids that are not {kind}: {str(e).splitlines()[0]}") from None


def id_type_of(kind: pa.DataType, where: str) -> pa.DataType:
    """The type (string or int64) of ids of type `kind`."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_integer(kind):
        return pa.int64()
    raise BadIdsError.kind(where, kind)
