"""Vectors in the three media types of ``/v1/translate``: JSON, raw little-endian float32 rows, and an Arrow IPC stream."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from pydantic_core import to_json

from embridge.arrays import bad_rows
from embridge.errors import EmbridgeError
from embridge.serving.problems import Problem
from embridge.stores.parquet.file import vectors_of
from embridge.stores.parquet.metadata import read_space, space_key
from embridge.types import Metric, Space

JSON, RAW, ARROW = "application/json", "application/octet-stream", "application/vnd.apache.arrow.stream"
TYPES = (JSON, RAW, ARROW)
_LITTLE = np.dtype("<f4")
_DICTIONARY, _RECORDS = 2, 3  # kinds of messages of Arrow's IPC format


@dataclass(frozen=True, eq=False)
class Rows:
    """Vectors of a request.

    Attributes
    ----------
    vectors : ndarray of shape (n, dim)
    table : pyarrow.Table, optional
        The table that they came in.
    column : str
        Of its vectors.
    """

    vectors: np.ndarray
    table: pa.Table | None = None
    column: str = "vector"


def media_type(header: str | None) -> str:
    """The media type of a body, of `TYPES`.

    Raises
    ------
    Problem
        Another one, or none.
    """
    found = (header or "").partition(";")[0].strip().lower()
    if found not in TYPES:
        named = f"Content-Type {found!r}" if found else "No Content-Type"
        raise Problem(415, "unsupported_media_type", f"{named}. Supported: {', '.join(TYPES)}.")
    return found


def accepted(header: str | None, default: str) -> str:
    """The media type of the answer: the best that ``Accept`` allows, of equal ones first that of the request.

    Raises
    ------
    Problem
        It allows none of them.
    """
    if not (header or "").strip():
        return default
    weights: dict[str, tuple[float, int]] = dict.fromkeys(TYPES, (0.0, 0))  # weight, and how exactly it is named
    for part in (header or "").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((_weight(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
        for kind in TYPES:
            exact = {kind: 3, kind.partition("/")[0] + "/*": 2, "*/*": 1}.get(name, 0)
            if exact > weights[kind][1]:
                weights[kind] = (weight, exact)
    best = max((default, *TYPES), key=lambda kind: weights[kind][0])
    if not weights[best][0] > 0:
        raise Problem(406, "not_acceptable", f"Accept allows none of {', '.join(TYPES)}.")
    return best


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def from_json(rows: list[list[float]], space: Space, limit: int, name: str = "vectors") -> np.ndarray:
    """Rows of JSON as an array of shape (n, dim), float64; checked."""
    check_count(len(rows), limit, name)
    for i, row in enumerate(rows):
        if len(row) != space.dim:
            raise Problem.invalid(
                f"Row {i} of {name} has {len(row):,} values, and vectors of {space.name!r} have {space.dim:,}.",
                f"{name}[{i}]",
                "bad_vectors",
            )
    return checked(np.array(rows, np.float64), space, name)


def from_raw(body: bytes, space: Space, limit: int) -> Rows:
    """Raw little-endian float32 rows; checked."""
    width = 4 * space.dim
    if len(body) % width:
        raise Problem.invalid(
            f"{len(body):,} bytes are no whole number of rows: a vector of {space.name!r} has {width:,} bytes, so row "
            f"{len(body) // width} is incomplete.",
            f"vectors[{len(body) // width}]",
            "bad_vectors",
        )
    check_count(len(body) // width, limit)
    vectors = np.frombuffer(body, _LITTLE).reshape(-1, space.dim)
    return Rows(checked(vectors.astype(np.float32, copy=False), space))


def from_arrow(body: bytes, space: Space, limit: int, column: str = "vector") -> Rows:
    """A table as an Arrow IPC stream; its vectors are checked, and so is the space that its metadata name."""
    try:
        if any(_is_compressed(message.metadata.to_pybytes()) for message in pa.ipc.MessageReader.open_stream(body)):
            raise Problem.invalid("Compressed streams are not taken, as their size is unknown. Hint: write without compression.")
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, RecursionError, MemoryError, struct.error, IndexError) as e:
        raise Problem.invalid(
            f"The body is not an Arrow IPC stream: {str(e).splitlines()[0] if str(e) else type(e).__name__}."
        ) from e
    check_count(len(table), limit)
    names = table.schema.names
    if names.count(column) != 1:
        raise Problem.invalid(f"The stream has no column {column!r}. Columns: {', '.join(names)}. Hint: ?column=NAME.", "column")
    kind = table.schema.field(column).type
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not nested or not pa.types.is_floating(kind.value_type):
        raise Problem.invalid(f"Column {column!r} is {kind}, not a list of floats.", "column", "bad_vectors")
    known = read_space(table.schema, "The stream", column)
    if known is not None and known.name != space.name:
        message = f"The stream names its space, {known.name!r}, and vectors of {space.name!r} are expected."
        raise Problem.invalid(message, column, "space_mismatch")
    parts, start = [], 0
    for part in table.column(column).chunks:
        try:
            parts.append(vectors_of(part, space.dim, "The stream", start, validate=True))
        except EmbridgeError as e:
            raise Problem.invalid(str(e), column, "bad_vectors") from e
        start += len(part)
    return Rows(checked(np.concatenate(parts), space), table, column)


def _is_compressed(message: bytes) -> bool:
    """Whether the buffers of a message of Arrow's IPC format are compressed.

    The message is a flatbuffer, ``Message.fbs`` of the Arrow format. Its root has the kind of its header in field 1, and the header
    in field 2; a dictionary batch (2) has a record batch (3) in its field 1, and that one names its compression in field 3.
    """
    kind = message[_field(message, _at(message, 0), 1)]
    header = _at(message, _field(message, _at(message, 0), 2))
    if kind == _DICTIONARY:
        header = _at(message, _field(message, header, 1))
    return kind in (_DICTIONARY, _RECORDS) and _field(message, header, 3) != header


def _at(message: bytes, place: int) -> int:
    """Where an offset of a flatbuffer leads."""
    return place + struct.unpack_from("<I", message, place)[0]


def _field(message: bytes, table: int, number: int) -> int:
    """The place of a field of a table, or that of the table itself where the field is absent."""
    names = table - struct.unpack_from("<i", message, table)[0]
    size = struct.unpack_from("<H", message, names)[0]
    return table + (struct.unpack_from("<H", message, names + 4 + 2 * number)[0] if size > 4 + 2 * number else 0)


def check_count(count: int, limit: int, name: str = "vectors") -> None:
    """Refuse no rows, and more than the limit."""
    if not count:
        raise Problem.invalid(f"{name} is empty.", name, "empty")
    if count > limit:
        raise Problem.invalid(f"{name} has {count:,} rows. At most {limit:,} are taken at a time.", name, "too_many_rows")


def checked(vectors: np.ndarray, space: Space, name: str = "vectors", why: str = "") -> np.ndarray:
    """The vectors, if each is finite and, under cosine, not zero.

    Raises
    ------
    Problem
        With the number of the first row that is not.
    """
    cosine = space.metric == Metric.COSINE
    for rows, fault in zip(bad_rows(vectors, zero_is_bad=cosine), ("NaN or infinite values", "only zeros"), strict=True):
        if rows.size:
            others = f" ({rows.size:,} rows in all)" if rows.size > 1 else ""
            direction = ", which have no direction under cosine" if fault == "only zeros" else ""
            message = f"Row {rows[0]} of {name} has {fault}{why}{direction}{others}."
            raise Problem.invalid(message, f"{name}[{rows[0]}]", "bad_vectors")
    return vectors


def to_body(kind: str, rows: Rows, out: np.ndarray, space: Space, facts: Mapping[str, Any]) -> bytes:
    """Translated vectors as a media type; `facts` are the other fields of the JSON."""
    if kind == JSON:
        return to_json({"vectors": out.tolist(), **facts})
    if kind == RAW:
        return out.astype(_LITTLE, copy=False).tobytes()
    values = pa.array(np.ascontiguousarray(out).reshape(-1))
    element = pa.field("element", pa.float32(), nullable=False)
    vectors = pa.FixedSizeListArray.from_arrays(values, type=pa.list_(element, space.dim))
    field = pa.field(rows.column, vectors.type, nullable=False)
    table = pa.table([], schema=pa.schema([]))
    key = "embridge.space"
    if rows.table is None:
        table = pa.table([vectors], schema=pa.schema([field]))
    else:
        table = rows.table.set_column(rows.table.schema.names.index(rows.column), field, vectors)
        key = space_key(rows.table.schema, rows.column, "The stream")
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), key: json.dumps(space.to_dict())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def headers_of(name: str, fingerprint: str, space: Space) -> dict[str, str]:
    """The map and the space of an answer whose body does not name them; names are percent-encoded."""
    found = {"X-Embridge-Map": quote(name), "X-Embridge-Fingerprint": fingerprint, "X-Embridge-Space": quote(space.name)}
    return found | {"X-Embridge-Dim": str(space.dim)}


def as_base64(row: np.ndarray) -> str:
    """A vector as OpenAI's clients read it: little-endian float32 in base64."""
    return base64.b64encode(row.astype(_LITTLE, copy=False).tobytes()).decode()
