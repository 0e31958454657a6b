"""Key-value metadata of Parquet files: that of embridge as JSON objects, and that of others, where valid for an output."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from embridge.errors import CollectionError
from embridge.types import Provenance, Space

SPACE_KEY, LINEAGE_KEY, COLUMNS_KEY = b"embridge.space", b"embridge.lineage", b"embridge.columns"
PLAN_KEY = b"embridge.plan"  # of the run that wrote an array
CONFIDENCE_KEY, PROVENANCE_KEY = b"embridge.confidence", b"embridge.provenance"
_OURS, _ARROW = b"embridge.", b"ARROW:schema"
_PANDAS, _HUGGINGFACE = b"pandas", b"huggingface"

Value = TypeVar("Value")


def parse_object(text: bytes | str) -> dict[str, Any]:
    """Parse a JSON object; raises ValueError for other values, repeated names, and too deep nesting."""
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"it must be a JSON object, not {str(values)[:60]!r}")  # noqa: TRY004 (one type for all faults)
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is repeated")
    return found


def read_object(schema: pa.Schema, key: bytes, where: str) -> dict[str, Any] | None:
    """The JSON object under a key of a file's metadata; None where there is no such key.

    Raises
    ------
    CollectionError
        It is not a JSON object.
    """
    text = (schema.metadata or {}).get(key, b"null")
    try:
        return None if text == b"null" else parse_object(text)
    except ValueError as e:
        raise CollectionError(f"The metadata {key.decode()!r} of {where} is not a JSON object: {e}") from e


def read_texts(schema: pa.Schema, key: bytes, where: str) -> dict[str, str]:
    """`read_object` for an object of texts; empty where there is no such key."""
    values = read_object(schema, key, where) or {}
    if other := next((value for value in values.values() if not isinstance(value, str)), None):
        raise CollectionError(f"The metadata {key.decode()!r} of {where} must hold text only. Got {str(other)[:60]!r} instead.")
    return values


def main_column(schema: pa.Schema, where: str) -> str:
    """The vector column whose space is ``embridge.space``: the one that the file names, else ``vector``."""
    return read_texts(schema, COLUMNS_KEY, where).get("vector", "vector")


def space_key(schema: pa.Schema, column: str, where: str) -> bytes:
    """The metadata key of the space of a vector column: ``embridge.space``, for a further column ``embridge.space.COLUMN``.

    A file that lacks its main column (another tool wrote it) names the space of the column that is there.
    """
    further = further_space_key(column)
    main = main_column(schema, where)
    if column == main or (main not in schema.names and further not in (schema.metadata or {})):
        return SPACE_KEY
    return further


def further_space_key(column: str) -> bytes:
    """The metadata key of the space of a vector column other than the main one."""
    return SPACE_KEY + b"." + column.encode()


def read_space(schema: pa.Schema, where: str, column: str) -> Space | None:
    """The space that a file names for a vector column."""
    return _made(schema, space_key(schema, column, where), where, "space", Space.from_dict)


def read_payload_spaces(schema: pa.Schema, where: str, vector_column: str) -> dict[str, Space]:
    """The spaces that a file names for its vector columns other than `vector_column`, by column, in the file's order."""
    main, metadata = main_column(schema, where), schema.metadata or {}
    others = [name for name in schema.names if name != vector_column]
    found = {name: read_space(schema, where, name) for name in others if name == main or further_space_key(name) in metadata}
    return {name: space for name, space in found.items() if space is not None}


def read_provenance(schema: pa.Schema, where: str) -> Provenance | None:
    """The provenance metadata of a file of native and translated rows."""
    return _made(schema, PROVENANCE_KEY, where, "provenance", Provenance.from_dict)


def _made(schema: pa.Schema, key: bytes, where: str, what: str, make: Callable[[dict[str, Any]], Value]) -> Value | None:
    values = read_object(schema, key, where)
    try:
        return make(values) if values else None
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise CollectionError(f"The metadata {key.decode()!r} of {where} is not a {what}: {str(values)[:200]}") from e


def foreign(schema: pa.Schema) -> dict[bytes, bytes]:
    """Metadata of the whole file: all keys except those of embridge and Arrow."""
    return {k: v for k, v in (schema.metadata or {}).items() if not k.startswith(_OURS) and k != _ARROW}


def fitted(metadata: dict[bytes, bytes], columns: list[str], vector_column: str) -> dict[bytes, bytes]:
    """Metadata of others, for an output with `columns`.

    Entries of pandas and Hugging Face for columns are kept for columns of the output. Hugging Face also states the
    width of vectors, which changes, so that entry is dropped. Unreadable entries are dropped.
    """
    found = dict(metadata)
    for key, fit in ((_PANDAS, _fit_pandas), (_HUGGINGFACE, _fit_huggingface)):
        if key in found:
            try:
                found[key] = json.dumps(fit(parse_object(found[key]), columns, vector_column)).encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                del found[key]
    return found


def _fit_pandas(values: dict[str, Any], columns: list[str], vector_column: str) -> dict[str, Any]:
    kept = [c for c in values["columns"] if (c.get("field_name") or c["name"]) in columns]
    index = [i for i in values.get("index_columns", []) if not isinstance(i, str) or i in columns]
    return values | {"columns": kept, "index_columns": index}


def _fit_huggingface(values: dict[str, Any], columns: list[str], vector_column: str) -> dict[str, Any]:
    features = values["info"]["features"]
    kept = {name: feature for name, feature in features.items() if name in columns and name != vector_column}
    return values | {"info": values["info"] | {"features": kept}}
