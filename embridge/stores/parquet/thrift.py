"""Thrift's compact protocol, as far as Parquet's footers and page headers use it.

A struct is a dict of field number to (type, value), a list is (type of its items, items): everything read is written back
unchanged, including unknown fields. Source: the Thrift compact protocol specification, Apache Thrift project.
"""

from __future__ import annotations

import struct
from typing import Any

TRUE, FALSE, I8, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_INTEGERS = (I16, I32, I64)
_DEPTH = 64  # structs and lists within each other; Parquet has six

Struct = dict[int, tuple[int, Any]]


def varint(value: int) -> bytes:
    """An unsigned integer, seven bits per byte, least significant first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def dumps(value: Struct) -> bytes:
    """A struct as bytes."""
    out = bytearray()
    _write(out, STRUCT, value)
    return bytes(out)


def loads(data: bytes | memoryview) -> Struct:
    """A struct from bytes.

    Raises
    ------
    ValueError
        The bytes end too early, have an unknown type, or are nested too deeply.
    """
    try:
        return _Reader(memoryview(data).cast("B")).value(STRUCT, _DEPTH)
    except (IndexError, struct.error) as e:
        raise ValueError("truncated Thrift data") from e


def _write(out: bytearray, kind: int, value: Any) -> None:
    if kind in _INTEGERS:
        out += varint(value << 1 if value >= 0 else (-value << 1) - 1)  # zigzag
    elif kind == BINARY:
        out += varint(len(value))
        out += value
    elif kind == STRUCT:
        last = 0
        for number, (field, content) in value.items():
            delta = number - last
            if 0 < delta <= 15:
                out.append(delta << 4 | field)
            else:
                out.append(field)
                _write(out, I16, number)
            last = number
            if field not in (TRUE, FALSE):  # a boolean field is its type
                _write(out, field, content)
        out.append(0)
    elif kind in (LIST, SET):
        item, items = value
        out += bytes([len(items) << 4 | item]) if len(items) < 15 else bytes([0xF0 | item]) + varint(len(items))
        for one in items:
            _write(out, item, one)
    elif kind in (TRUE, FALSE):
        out.append(TRUE if value else FALSE)
    elif kind == I8:
        out += struct.pack("b", value)
    elif kind == DOUBLE:
        out += struct.pack("<d", value)
    else:
        raise ValueError(f"unknown Thrift type {kind}")


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _take(self, size: int) -> memoryview:
        if self._at + size > len(self._data):
            raise IndexError
        self._at += size
        return self._data[self._at - size : self._at]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a Thrift integer of more than 64 bits")

    def value(self, kind: int, depth: int) -> Any:
        if not depth:
            raise ValueError("Thrift data nested too deeply")
        if kind in _INTEGERS:
            raw = self._varint()
            return raw >> 1 if not raw & 1 else -((raw + 1) >> 1)
        if kind == BINARY:
            return bytes(self._take(self._varint()))
        if kind == STRUCT:
            fields: Struct = {}
            number = 0
            while header := self._byte():
                delta, field = header >> 4, header & 0x0F
                number = number + delta if delta else self.value(I16, depth)
                fields[number] = (field, field == TRUE if field in (TRUE, FALSE) else self.value(field, depth - 1))
            return fields
        if kind in (LIST, SET):
            header = self._byte()
            size, item = header >> 4, header & 0x0F
            size = self._varint() if size == 15 else size
            if size > len(self._data) - self._at:  # every item has at least one byte
                raise IndexError
            return item, [self.value(item, depth - 1) for _ in range(size)]
        if kind in (TRUE, FALSE):
            return self._byte() == TRUE
        if kind == I8:
            return struct.unpack("b", self._take(1))[0]
        if kind == DOUBLE:
            return struct.unpack("<d", self._take(8))[0]
        raise ValueError(f"unknown Thrift type {kind}")
