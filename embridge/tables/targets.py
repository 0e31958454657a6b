"""Labels that a decoder is evaluated on: classes, numbers or vectors."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from embridge.errors import CollectionError
from embridge.stores.id_types import normalize_ids
from embridge.tables.scan import scan


def read_targets(path: str | os.PathLike[str], column: str, id_column: str = "id") -> dict[Any, Any]:
    """Labels of rows, by id: strings, integers or numbers; a list column gives vectors.

    Raises
    ------
    CollectionError
        A column is missing or has another type, or there are no rows with a label.
    BadIdsError
        Ids of a type other than string and int64.
    """
    where = repr(os.fspath(path))
    found: dict[Any, Any] = {}
    for batch in scan(path, [id_column, column]):
        kind = batch.schema.field(column).type
        if not _is_label(kind):
            raise CollectionError(
                f"Column {column!r} of {where} must hold strings, numbers or lists of numbers. Got {kind} instead."
            )
        ids = normalize_ids(batch.column(id_column), where).to_pylist()
        pairs = zip(ids, batch.column(column).to_pylist(), strict=True)
        found.update((i, label) for i, label in pairs if i is not None and label is not None)
    if not found:
        raise CollectionError.empty(f"{where} (rows with a {column!r})")
    return found


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
        return pa.types.is_integer(kind) or pa.types.is_floating(kind)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return is_text or is_number or pa.types.is_null(kind)
