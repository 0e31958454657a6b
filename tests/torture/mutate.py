"""How a file is damaged: its bytes, and what it says in JSON, Parquet, safetensors, zip or ONNX, with checks that still pass."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Damage = Callable[[random.Random, bytes, bytes], bytes]
_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF)


def _place(chance: random.Random, size: int) -> int:
    """An offset, often near the beginning or the end, where structure stands."""
    if not size:
        return 0
    near = min(size, chance.choice((16, 64, 512)))
    return chance.choice((chance.randrange(size), chance.randrange(near), size - 1 - chance.randrange(near)))


def flip_bits(chance: random.Random, data: bytes, _: bytes) -> bytes:
    out = bytearray(data)
    for _number in range(chance.choice((1, 1, 2, 8))):
        if out:
            out[_place(chance, len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def set_bytes(chance: random.Random, data: bytes, _: bytes) -> bytes:
    out = bytearray(data)
    at = _place(chance, len(out))
    size = chance.choice((1, 1, 2, 4, 8, 64))
    fill = chance.choice((*_BYTES, None))
    out[at : at + size] = chance.randbytes(size) if fill is None else bytes([fill]) * size
    return bytes(out[: len(data)])


def maximize_number(chance: random.Random, data: bytes, _: bytes) -> bytes:
    """A little-endian number of 2, 4 or 8 bytes becomes one that is out of all bounds, or just next to what it was."""
    out = bytearray(data)
    width = chance.choice((2, 4, 8, 8))
    at = _place(chance, max(1, len(out) - width))
    if chance.random() < 0.7:
        at -= at % 4
    before = int.from_bytes(out[at : at + width], "little")
    top = 1 << 8 * width
    values = (top - 1, top // 2 - 1, top // 2, 0, before + 1, before - 1, 2 * before, before << 8, 1 << 20, 1 << 31, len(data))
    out[at : at + width] = (chance.choice(values) % top).to_bytes(width, "little")
    return bytes(out)


def truncate(chance: random.Random, data: bytes, _: bytes) -> bytes:
    return data[: chance.choice((_place(chance, len(data)), chance.randrange(9), max(0, len(data) - chance.randrange(1, 9))))]


def extend(chance: random.Random, data: bytes, _: bytes) -> bytes:
    size = chance.choice((1, 8, 100, 5000))
    return data + chance.choice((bytes(size), chance.randbytes(size), data[:size], data[-size:], data))


def move_blocks(chance: random.Random, data: bytes, _: bytes) -> bytes:
    """A block is doubled, removed, or changes places with another."""
    size = chance.choice((1, 4, 8, 64, 512, max(1, len(data) // 4)))
    a, b = sorted((_place(chance, len(data)), _place(chance, len(data))))
    block = data[a : a + size]
    return chance.choice((data[:a] + block + data[a:], data[:a] + data[a + size :], data[:b] + block + data[b + size :]))


def splice(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one file, the end of another."""
    at = _place(chance, len(data))
    return data[:at] + other[chance.choice((at, _place(chance, len(other)))) :]


GENERIC: tuple[Damage, ...] = (
    flip_bits,
    flip_bits,
    set_bytes,
    maximize_number,
    maximize_number,
    truncate,
    extend,
    move_blocks,
    splice,
)
_EVIL: tuple[Callable[[random.Random], Any], ...] = (
    lambda c: None, lambda c: [], lambda c: {}, lambda c: "", lambda c: -1, lambda c: 0, lambda c: 1, lambda c: True,
    lambda c: 0.5, lambda c: 10**c.choice((9, 18, 19, 40, 400)), lambda c: -(10**c.choice((9, 19))), lambda c: float("nan"),
    lambda c: float("inf"), lambda c: "x" * c.choice((1, 10_000)), lambda c: "\ud800", lambda c: "\0", lambda c: "../../etc/passwd",
    lambda c: "é" * 7,
    lambda c: ["a", 1, None], lambda c: {"name": 3}, lambda c: [[]] * 50, lambda c: "1", lambda c: "-0", lambda c: 1e308,
)  # fmt: skip


def change_json(chance: random.Random, value: Any) -> Any:
    """A parsed document with one node replaced, removed or renamed, in place."""
    nodes: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        for key in keys:
            nodes.append((node, key))
            stack.append(node[key])
    if not nodes or chance.random() < 0.05:
        return chance.choice(_EVIL)(chance)
    node, key = chance.choice(nodes)
    what = chance.random()
    if what < 0.65:
        old = node[key]
        number = isinstance(old, int | float) and chance.random() < 0.4
        node[key] = old + chance.choice((-1, 1, 1 << 31)) if number else chance.choice(_EVIL)(chance)
    elif what < 0.8:
        del node[key]
    elif isinstance(node, dict):
        node[chance.choice((f"{key}x", "", "dim", "name", "format"))] = node.pop(key)
    else:
        node.insert(key, node[key])
    return value


def json_text(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """A JSON document that says something else, or is no JSON that a reader should survive by chance."""
    what = chance.random()
    if what < 0.06:
        depth = chance.choice((900, 100_000))
        return chance.choice((b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth))
    if what < 0.1:
        return chance.choice((b"", b"null", b"NaN", b"\xff\xfe", b"\xef\xbb\xbf" + data, b"9" * 5000, b'"\\ud800"', data + data))
    try:
        value = json.loads(data)
    except ValueError:
        return flip_bits(chance, data, other)
    return json.dumps(change_json(chance, value)).encode("utf-8", "surrogatepass")


def json_lines(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """One line of a journal says something else, or lines are left out, doubled or change places."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    what = chance.random()
    if what < 0.6:
        lines[at] = json_text(chance, lines[at], other)
    elif what < 0.7:
        del lines[at]
    elif what < 0.8:
        lines.insert(at, lines[at])
    elif what < 0.9:
        chance.shuffle(lines)
    else:
        lines[at] = chance.choice((b"", b"{}", b"[]", b"null", chance.randbytes(40)))
    return b"\n".join(lines)


def tensors(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """A safetensors file whose header says something else, or whose numbers are no numbers; its lengths agree."""
    size = int.from_bytes(data[:8], "little")
    head, body = data[8 : 8 + size], bytearray(data[8 + size :])
    if chance.random() < 0.7:
        value = json.loads(head)
        part = value.get("__metadata__", value)
        if chance.random() < 0.7 and part:
            key = chance.choice(list(part))
            if isinstance(part[key], str):
                part[key] = json_text(chance, part[key].encode(), other).decode("utf-8", "replace")
            else:
                change_json(chance, part[key])
        else:
            value = change_json(chance, value)
        head = json.dumps(value).encode("utf-8", "surrogatepass")
    elif body:
        width = chance.choice((4, 8))
        at = chance.randrange(0, max(1, len(body) - width), width)
        number = np.array(chance.choice((np.nan, np.inf, -np.inf, 1e30, 0, -1)), f"<f{width}")
        body[at : at + width] = number.tobytes()
    return len(head).to_bytes(8, "little") + head + bytes(body)


def members(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """A zip archive with a member changed, doubled, left out or renamed; its checksums agree."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = [(info.filename, info.compress_type, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, ValueError):
        return flip_bits(chance, data, other)
    at = chance.randrange(len(parts))
    name, packing, body = parts[at]
    change = json_text if body[:1] in (b"{", b"[") and chance.random() < 0.8 else chance.choice(GENERIC)
    what = chance.random()
    if what < 0.7:
        parts[at] = (name, packing, change(chance, body, other))
    elif what < 0.8:
        parts.insert(chance.randrange(len(parts) + 1), (name, packing, change(chance, body, other)))
    elif what < 0.9:
        del parts[at]
    else:
        parts[at] = (chance.choice((f"{name}x", f"../{name}", f"/{name}", name.upper(), parts[0][0])), packing, body)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, packing, body in parts:
            archive.writestr(zipfile.ZipInfo(name), body, chance.choice((packing, packing, zipfile.ZIP_DEFLATED)))
    return out.getvalue()


def table(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """A Parquet file that is sound, with columns, values or metadata that are not what they should be."""
    try:
        found = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError):
        return flip_bits(chance, data, other)
    what = chance.random()
    metadata = dict(found.schema.metadata or {})
    if what < 0.25 and metadata:
        key = chance.choice(list(metadata))
        metadata[key] = json_text(chance, metadata[key], other)
        found = found.replace_schema_metadata(metadata)
    else:
        at = chance.randrange(found.num_columns)
        name, kept = found.column_names[at], found.schema.metadata
        if what < 0.75:
            column = _column(chance, found.column(at))
            found = found.set_column(at, name, column)
        elif what < 0.85:
            found = found.append_column(chance.choice((name, "id", "vector", "vector.list.element", "")), found.column(at))
        elif what < 0.92:
            found = found.remove_column(at)
        else:
            found = found.slice(0, chance.choice((0, 1, len(found) // 2)))
        found = found.replace_schema_metadata(kept)
    out = io.BytesIO()
    try:
        pq.write_table(found, out, row_group_size=chance.choice((7, 1000)), compression=chance.choice(("none", "zstd", "snappy")))
    except (pa.ArrowException, ValueError):  # Parquet cannot say it
        return flip_bits(chance, data, other)
    return out.getvalue()


def _column(chance: random.Random, column: pa.ChunkedArray) -> pa.Array:
    """A column of as many rows whose values or type are wrong somewhere."""
    n, values = len(column), column.to_pylist()
    some = chance.sample(range(n), min(n, chance.choice((1, 3))))
    if values and isinstance(values[0], list) and chance.random() < 0.6:
        width = len(values[0])
        fills = (float("nan"), 0.0, 1e38, float("inf"), None)
        odd = chance.choice(([], None, [1.0] * (width + 1), *([fill] * width for fill in fills)))
        return pa.array([odd if row in some else value for row, value in enumerate(values)])
    noise = pa.array([b"\xff%03d" % (row % 1000) for row in range(n)])
    small = (pa.int8(), pa.float64()) if n < 128 else (pa.float32(), pa.int32())
    kinds: tuple[Callable[[], pa.Array], ...] = (
        lambda: pa.nulls(n),
        lambda: pa.array([None if row in some else value for row, value in enumerate(values)], column.type),
        lambda: pa.array([values[0]] * n, column.type),
        lambda: pa.array(list(range(n)), chance.choice((pa.uint64(), *small))),
        lambda: pa.array([2**63 + row for row in range(n)], pa.uint64()),
        lambda: pa.array([-(2**63) + row for row in range(n)], pa.int64()),
        lambda: pa.array([f"x{row}" for row in range(n)]).dictionary_encode(),
        lambda: noise,
        lambda: pa.StringArray.from_buffers(n, *noise.buffers()[1:]),  # no UTF-8
        lambda: pa.array([[row] for row in range(n)]),
        lambda: pa.array([{"a": row} for row in range(n)]),
        lambda: pa.array(list(range(n)), pa.timestamp(chance.choice(("ns", "us", "s")))),
        lambda: pa.array([float("nan")] * n),
        lambda: pa.array([True] * n),
        lambda: pa.array([str(value) * chance.choice((1, 50)) for value in values], pa.large_string()),
        lambda: pa.array([[0.0] * (1 + row % 3) for row in range(n)]),
        lambda: pa.array([[float(row)] * 12 for row in range(n)]),
    )
    return chance.choice(kinds)()


def program(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """An ONNX program whose graph says something else."""
    import onnx

    try:
        model = onnx.load_from_string(data)
    except Exception:  # protobuf's DecodeError is of a module that changes its name
        return flip_bits(chance, data, other)
    graph = model.graph
    what = chance.randrange(8)
    if what == 0 and graph.node:
        chance.choice(graph.node).op_type = chance.choice(
            ("Loop", "If", "Scan", "Identity", "MatMul", "Reshape", "Nothing", "Tile")
        )
    elif what == 1 and graph.initializer:
        tensor = chance.choice(graph.initializer)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=chance.choice(("/etc/passwd", "../old.parquet", "none", "")))
    elif what == 2 and graph.initializer:
        tensor = chance.choice(graph.initializer)
        tensor.dims[:] = [chance.choice((-1, 0, 1 << 20, 1 << 40, 1 << 62)) for _ in range(chance.choice((1, 2)))]
    elif what == 3 and graph.input:
        dims = chance.choice(graph.input).type.tensor_type.shape.dim
        for dim in dims:
            dim.dim_value = chance.choice((-1, 0, 1 << 40, 3))
    elif what == 4 and graph.node:
        node = chance.choice(graph.node)
        names = [*node.input, *node.output] or [""]
        (node.input or node.output)[0] = chance.choice((*names, "", "none"))
    elif what == 5:
        model.metadata_props.add(
            key="embridge.space", value=json_text(chance, b'{"name": "new", "dim": 16}', other).decode("utf-8", "replace")
        )
    elif what == 6 and graph.node:
        node = chance.choice(graph.node)
        for attribute in node.attribute:
            attribute.i, attribute.f = chance.choice((-1, 1 << 40, 0)), chance.choice((float("nan"), 0.0))
    else:
        model.ir_version = chance.choice((0, 1, 1 << 30))
    return model.SerializeToString()
