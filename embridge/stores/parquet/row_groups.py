"""Encodes row groups of a Parquet file: pyarrow encodes all columns but the vectors, whose bytes are written directly.

pyarrow spends most of a conversion on the list levels of vectors, which for rows of one width are one short pattern repeated. So
the pages of the vector column are built here: the pattern, then the bytes of the array itself, without a copy. The other columns
are encoded by pyarrow into a small file in memory and moved over. Since row groups are appended one after the other and the footer
comes last, an interrupted file can be continued, which Parquet writers do not offer.

Sources: the Apache Parquet format specification (parquet.thrift; "RLE/bit-packed hybrid", "Data pages").
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embridge.stores.parquet import thrift
from embridge.stores.parquet.thrift import BINARY, I16, I32, I64, LIST, STRUCT, Struct

MAGIC = b"PAR1"
_PAGE_BYTES = 1 << 20
_PLAIN, _RLE = 0, 3  # Encoding
_FLOAT, _FIXED = 4, 7  # Type: FLOAT, FIXED_LEN_BYTE_ARRAY (of two bytes: float16)


@dataclass(frozen=True)
class RowGroup:
    """One encoded row group: its metadata (with offsets in the file) and its bytes."""

    metadata: Struct
    buffers: list[bytes | memoryview]
    size: int


class Encoder:
    """Encodes row groups of one schema.

    Parameters
    ----------
    schema : pyarrow.Schema
        With the vector column, a non-nullable fixed_size_list of non-nullable floats.
    vector_column : str
    compact : bool
        Let pyarrow encode the vectors too: byte stream split and zstd.
    """

    def __init__(self, schema: pa.Schema, vector_column: str, *, compact: bool) -> None:
        self._place = schema.names.index(vector_column)
        self._field = schema.field(vector_column)
        self._compact = compact
        self._encoded = schema.remove(self._place)
        flat = [f.name for f in schema.remove(self._place) if not pa.types.is_nested(f.type)]
        self._options = {
            "compression": "zstd",
            "compression_level": 1,
            # Ids are unique, so a dictionary is useless for them; floats need neither a dictionary nor statistics.
            "use_dictionary": [name for name in flat if name != schema.names[0]],
            "write_statistics": flat,
        }
        self._template = _read_footer(_empty_file(schema))
        # Nested columns before the vectors have several leaves each; column chunks are counted in leaves.
        before = pa.schema([schema.field(i) for i in range(self._place)])
        self._leaf = len(pq.ParquetFile(pa.BufferReader(_empty_file(before))).schema)

    def encode(self, table: pa.Table, vectors: np.ndarray, offset: int, ordinal: int) -> RowGroup:
        """One row group for the position `offset` in the file.

        Parameters
        ----------
        table : pyarrow.Table
            All columns but the vectors, in the order of the schema.
        vectors : ndarray of shape (n, dim)
            Contiguous, of the schema's float type; it must not change until the buffers are written.
        """
        columns, data = _encoded(table, self._encoded, self._options, offset)
        buffers: list[bytes | memoryview] = [data]
        size = len(data)
        if self._compact:
            (chunk,), data = self._split(vectors, offset + size)
            pages: list[bytes | memoryview] = [data]
        else:
            pages = _vector_pages(vectors)
            chunk = _vector_chunk(self._field.name, vectors, offset + size, _length(pages))
        columns.insert(self._leaf, chunk)
        buffers += pages
        size += _length(pages)
        uncompressed, compressed = (sum(chunk[3][1][part][1] for chunk in columns) for part in (6, 7))
        metadata: Struct = {
            1: (LIST, (STRUCT, columns)),
            2: (I64, uncompressed),
            3: (I64, len(vectors)),
            5: (I64, offset),
            6: (I64, compressed),
        } | _ordinal(ordinal)
        return RowGroup(metadata, buffers, size)

    def _split(self, vectors: np.ndarray, offset: int) -> tuple[list[Struct], memoryview]:
        """The vectors only, so that options for them cannot apply to a column whose name has dots."""
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=self._field.type)
        schema = pa.schema([self._field])
        options = {"compression": "zstd", "compression_level": 1, "use_dictionary": False, "write_statistics": False}
        options["column_encoding"] = {f"{self._field.name}.list.element": "BYTE_STREAM_SPLIT"}
        return _encoded(pa.Table.from_arrays([lists], schema=schema), schema, options, offset)

    def footer(self, groups: list[Struct]) -> bytes:
        """The end of the file: metadata of all row groups, its length, the magic bytes."""
        rows = sum(group[3][1] for group in groups)
        content = self._template | {3: (I64, rows), 4: (LIST, (STRUCT, groups))}
        data = thrift.dumps(dict(sorted(content.items())))
        return data + struct.pack("<I", len(data)) + MAGIC


def moved_group(group: Struct, shift: int, ordinal: int) -> Struct:
    """The metadata of a row group whose bytes were moved by `shift`, as number `ordinal` of another file."""
    columns = [_moved(chunk, shift) for chunk in group[1][1][1]]
    fields = group | {1: (LIST, (STRUCT, columns)), 5: (I64, group[5][1] + shift)}
    fields.pop(7, None)
    return fields | _ordinal(ordinal)


def _ordinal(number: int) -> Struct:
    """The optional field of a row group's number, which has 16 bits."""
    return {7: (I16, number)} if number < 1 << 15 else {}


def read_groups(path: str | os.PathLike[str]) -> tuple[list[Struct], int]:
    """Metadata of the row groups of a file that `Encoder` encoded, and where their bytes end."""
    with open(path, "rb") as file:
        size = file.seek(-8, os.SEEK_END) + 8
        end = size - 8 - struct.unpack("<I", file.read(4))[0]
        file.seek(end)
        return thrift.loads(file.read(size - 8 - end))[4][1][1], end


def _encoded(table: pa.Table, schema: pa.Schema, options: dict[str, Any], offset: int) -> tuple[list[Struct], memoryview]:
    """Column chunks and bytes of one row group encoded by pyarrow, for the position `offset`."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, **options) as writer:
        writer.write_table(table, table.num_rows)
    data = memoryview(sink.getvalue()).cast("B")  # an Arrow buffer's bytes are signed
    columns = [_moved(chunk, offset - len(MAGIC)) for chunk in _read_footer(data)[4][1][1][0][1][1][1]]
    return columns, data[len(MAGIC) : len(data) - _footer_length(data)]


def _length(buffers: list[bytes | memoryview]) -> int:
    return sum(b.nbytes if isinstance(b, memoryview) else len(b) for b in buffers)


def _empty_file(schema: pa.Schema) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    return sink.getvalue()


def _read_footer(data: pa.Buffer | memoryview) -> Struct:
    view = memoryview(data).cast("B")
    return thrift.loads(view[len(view) - _footer_length(view) : -8])


def _footer_length(view: memoryview) -> int:
    return struct.unpack("<I", view[-8:-4])[0] + 8


def _moved(chunk: Struct, shift: int) -> Struct:
    """A column chunk whose bytes were moved by `shift`."""
    metadata = dict(chunk[3][1])
    for field in (9, 10, 11):  # data_page_offset, index_page_offset, dictionary_page_offset
        if field in metadata:
            metadata[field] = (I64, metadata[field][1] + shift)
    return chunk | {3: (STRUCT, metadata)}


def _vector_chunk(name: str, vectors: np.ndarray, offset: int, length: int) -> Struct:
    metadata: Struct = {
        1: (I32, _FIXED if vectors.dtype == np.float16 else _FLOAT),
        2: (LIST, (I32, [_RLE, _PLAIN])),
        3: (LIST, (BINARY, [name.encode(), b"list", b"element"])),
        4: (I32, 0),  # not compressed
        5: (I64, vectors.size),
        6: (I64, length),
        7: (I64, length),
        9: (I64, offset),
    }
    return {2: (I64, 0), 3: (STRUCT, metadata)}


def _vector_pages(vectors: np.ndarray) -> list[bytes | memoryview]:
    """Data pages of about 1 MiB: for each a header and a view of the array."""
    dim = vectors.shape[1]
    values = vectors.view(np.uint16) if vectors.dtype == np.float16 else vectors  # memoryview does not support half floats
    step = max(1, _PAGE_BYTES // (dim * values.itemsize))
    headers: dict[int, bytes] = {}
    pages: list[bytes | memoryview] = []
    for start in range(0, len(values), step):
        part = values[start : start + step]
        if len(part) not in headers:
            headers[len(part)] = _page_header(len(part), dim, part.nbytes)
        pages += [headers[len(part)], memoryview(part).cast("B")]
    return pages


def _page_header(rows: int, dim: int, nbytes: int) -> bytes:
    """Page header and levels of `rows` vectors: repetition 0 begins a row, 1 continues it; every value is defined."""
    if dim % 8 == 0:  # one bit-packed run of the whole page, which readers unpack fastest
        repetition = thrift.varint((rows * dim // 8) << 1 | 1) + (b"\xfe" + b"\xff" * (dim // 8 - 1)) * rows
    else:
        repetition = (thrift.varint(1 << 1) + b"\0" + (thrift.varint((dim - 1) << 1) + b"\1" if dim > 1 else b"")) * rows
    definition = thrift.varint((rows * dim) << 1) + b"\1"
    levels = b"".join(struct.pack("<I", len(runs)) + runs for runs in (repetition, definition))
    size = len(levels) + nbytes
    data_page: Struct = {1: (I32, rows * dim), 2: (I32, _PLAIN), 3: (I32, _RLE), 4: (I32, _RLE)}
    return thrift.dumps({1: (I32, 0), 2: (I32, size), 3: (I32, size), 5: (STRUCT, data_page)}) + levels
