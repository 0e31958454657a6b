"""Parquet files put together by hand: the Thrift codec, the pages of vectors, and readers that must not notice."""

import io
import itertools
import struct

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embridge.stores import Batch, MemoryCollection
from embridge.stores.parquet import row_groups, thrift
from embridge.stores.parquet import writer as writer_module
from embridge.stores.parquet.row_groups import MAGIC, Encoder
from embridge.stores.parquet.thrift import BINARY, DOUBLE, FALSE, I8, I16, I32, I64, LIST, SET, STRUCT, TRUE
from embridge.stores.parquet.writer import CollectionWriter, write_collection
from embridge.types import Metric, Space

# Thrift


def signed(bits):
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)


def fields_of(inner):
    """A struct as the codec has it: field numbers (not in order, perhaps) to (type, value)."""
    return st.lists(st.tuples(signed(16), inner), max_size=20, unique_by=lambda field: field[0]).map(dict)


SCALARS = {
    I8: signed(8),
    I16: signed(16),
    I32: signed(32),
    I64: signed(64),
    DOUBLE: st.floats(allow_nan=False),
    BINARY: st.binary(max_size=140),
}
SCALAR = st.one_of(*(st.tuples(st.just(kind), values) for kind, values in SCALARS.items()))
BOOLEAN = st.booleans().map(lambda value: (TRUE if value else FALSE, value))
LISTS = st.one_of(
    *(st.tuples(st.just(kind), st.lists(values, max_size=20)) for kind, values in SCALARS.items()),
    st.tuples(st.sampled_from([TRUE, FALSE]), st.lists(st.booleans(), max_size=20)),
)
FIELD = st.recursive(
    st.one_of(SCALAR, BOOLEAN, st.tuples(st.sampled_from([LIST, SET]), LISTS)),
    lambda inner: st.one_of(
        st.tuples(st.just(STRUCT), fields_of(inner)),
        st.tuples(st.just(LIST), st.tuples(st.just(STRUCT), st.lists(fields_of(inner), max_size=3))),
    ),
    max_leaves=12,
)
STRUCTS = fields_of(FIELD)


@given(STRUCTS)
@example({})
@example({1: (LIST, (I32, list(range(14))))})
@example({1: (LIST, (I32, list(range(15))))})
@example({1: (LIST, (TRUE, [True, False]))})
@example({-1: (I64, -(1 << 63)), 15: (BINARY, b""), 31: (I64, (1 << 63) - 1), 2: (TRUE, True)})
def test_what_is_written_is_read(value):
    data = thrift.dumps(value)
    assert thrift.loads(data) == value
    assert thrift.loads(data + b"what follows") == value
    assert thrift.dumps(thrift.loads(data)) == data


@given(STRUCTS, st.data())
def test_truncated_data_is_reported(value, data):
    whole = thrift.dumps(value)
    with pytest.raises(ValueError, match="truncated"):
        thrift.loads(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(st.binary(max_size=100))
def test_noise_is_a_struct_or_a_value_error(data):
    try:
        value = thrift.loads(data)
    except ValueError:
        return
    assert thrift.loads(thrift.dumps(value)) == value


@pytest.mark.parametrize("kind", [0, 11, 13, 15])
def test_types_that_parquet_lacks_are_reported(kind):
    with pytest.raises(ValueError, match=f"unknown Thrift type {kind}"):
        thrift.dumps({1: (kind, 0)})
    if kind:
        with pytest.raises(ValueError, match=f"unknown Thrift type {kind}"):
            thrift.loads(bytes([0x10 | kind, 1, 1, 0]))


@pytest.mark.parametrize(
    ("value", "expected"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\1"), (300, b"\xac\2"), (1 << 35, b"\x80" * 5 + b"\1")]
)
def test_varints(value, expected):
    assert thrift.varint(value) == expected


PAYLOADS = {
    "none": {},
    "words": {"word": pa.array([None if i % 7 == 0 else f"wörd {i % 5}" for i in range(100)])},
    "numbers": {"n": pa.array(range(100), pa.int16()), "when": pa.array(range(100), pa.timestamp("us", "UTC"))},
    "nested": {
        "tags": pa.array([None if i % 11 == 0 else [str(i)] * (i % 4) for i in range(100)]),
        "place": pa.array([None if i % 13 == 0 else {"x": i, "y": None if i % 5 else [0.5, None]} for i in range(100)]),
        "map": pa.array([[(str(i), i)] for i in range(100)], pa.map_(pa.string(), pa.int64())),
    },
    "dictionary": {
        "kind": pa.array(["ab"[i % 2] for i in range(100)]).dictionary_encode(),
        "ordered": pa.DictionaryArray.from_arrays(pa.array([i % 3 for i in range(100)], pa.int8()), ["s", "m", "l"], ordered=True),
        "holes": pa.DictionaryArray.from_arrays(pa.array([None, 0] * 50, pa.int32()), ["x"]),
    },
    "nulls": {"nothing": pa.nulls(100), "none": pa.nulls(100, pa.string()), "empty": pa.array([[]] * 100, pa.list_(pa.int8()))},
    "bytes": {"blob": pa.array([bytes([i]) * i for i in range(100)]), "fixed": pa.array([b"abc"] * 100, pa.binary(3))},
    "odd names": {
        "a.b": pa.array(range(100)),
        "list": pa.array([[1]] * 100),
        "element": pa.array([True, None] * 50),
        "": pa.array(range(100)),
    },
}
PYARROW = {"compression": "zstd", "use_dictionary": False, "write_page_index": True, "version": "1.0"}


def footer_of(data):
    return data[-8 - struct.unpack("<I", data[-8:-4])[0] : -8]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize(
    "options", [{}, {"compression": "zstd", "use_dictionary": False, "write_page_index": True, "version": "1.0"}]
)
def test_footers_of_pyarrow_come_out_byte_for_byte(payload, options):
    sink = io.BytesIO()
    table = pa.table({"id": range(100), "vector": pa.array([[0.5, 1]] * 100), **PAYLOADS[payload]})
    pq.write_table(table.replace_schema_metadata({"k": "v"}), sink, row_group_size=30, **options)
    footer = footer_of(sink.getvalue())
    assert thrift.dumps(thrift.loads(footer)) == footer
    assert len(thrift.loads(footer)[4][1][1]) == 4  # row groups


# Files


def memory_of(dim, rows=100, payload=None, kind="int64", seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float16).astype(np.float32)
    ids = list(range(rows)) if kind == "int64" else [f"d{i:05}" for i in range(rows)]
    return MemoryCollection(ids, vectors, Space("m", dim, Metric.DOT), payload)


def write_all(path, memory, batch_rows=None, **options):
    with write_collection(path, memory.space, memory.id_type, memory.payload_schema, **options) as writer:
        for batch in memory.batches(batch_rows, payload=True):
            writer.write(batch)
    return path


@pytest.fixture
def small_groups(monkeypatch):
    """``small_groups(dim)``: row groups of 33 rows in pages of 10."""

    def shrink(dim, rows=33, page=10, itemsize=4):
        monkeypatch.setattr(writer_module, "GROUP_BYTES", itemsize * dim * rows)
        monkeypatch.setattr(row_groups, "_PAGE_BYTES", itemsize * dim * page)

    return shrink


OPTIONS = {"plain": {}, "compact": {"compact": True}, "float16": {"dtype": "float16"}}


@pytest.mark.parametrize("dim", [1, 3, 8, 384])  # both ways to write levels: one run a page, two runs a row
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["int64", "string"])
def test_polars_reads_what_is_written(tmp_path, small_groups, dim, options, kind):
    polars = pytest.importorskip("polars")
    small_groups(dim)
    memory = memory_of(dim, payload=PAYLOADS["words"], kind=kind)
    path = write_all(tmp_path / "a.parquet", memory, **OPTIONS[options])
    found = polars.read_parquet(path)
    ids, vectors = memory.read()
    assert found["id"].to_list() == ids.tolist()
    np.testing.assert_array_equal(np.stack(found["vector"].to_numpy()).astype(np.float32), vectors)
    assert found["word"].to_list() == PAYLOADS["words"]["word"].to_pylist()
    some = polars.scan_parquet(path).filter(polars.col("id") == ids[70]).collect()  # with statistics
    assert some["word"].to_list() == [PAYLOADS["words"]["word"][70].as_py()]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("options", OPTIONS)
def test_any_payload_is_read_by_pyarrow_and_duckdb(tmp_path, small_groups, payload, options):
    small_groups(8)
    path = write_all(tmp_path / "a.parquet", memory_of(8, payload=PAYLOADS[payload]), batch_rows=17, **OPTIONS[options])
    table = pq.read_table(path)
    assert table.column_names == ["id", "vector", *PAYLOADS[payload]]
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), memory_of(8).read()[1])
    table.validate(full=True)
    for name, column in PAYLOADS[payload].items():
        assert table[name].type == column.type
        assert table[name].to_pylist() == column.to_pylist()
    with duckdb.connect() as connection:
        relation = connection.sql(f"SELECT * FROM '{path}'")
        found = relation.to_arrow_table()
    assert found["id"].to_pylist() == list(range(100))
    assert found["vector"].to_pylist() == table["vector"].to_pylist()
    for name, column in PAYLOADS[payload].items():
        if not pa.types.is_null(column.type) and name:
            assert found[name].to_pylist() == column.to_pylist()


@pytest.mark.parametrize("place", [0, 1, 3, 5])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_vectors_may_stand_anywhere_among_columns_of_many_leaves(place, compact, dtype):
    dim = 8
    vectors = np.random.default_rng(0).normal(size=(100, dim)).astype(dtype)
    others = pa.table({"id": range(100), **PAYLOADS["nested"], **PAYLOADS["words"]})
    element = pa.field("element", pa.from_numpy_dtype(vectors.dtype), nullable=False)
    schema = others.schema.insert(place, pa.field("vector", pa.list_(element, dim), nullable=False))
    encoder = Encoder(schema, "vector", compact=compact)
    out, groups = bytearray(MAGIC), []
    for start in (0, 60):
        part = slice(start, start + 60)
        group = encoder.encode(others.slice(start, 60), np.ascontiguousarray(vectors[part]), len(out), len(groups))
        assert group.size == sum(memoryview(b).nbytes for b in group.buffers)
        for buffer in group.buffers:
            out += buffer
        groups.append(group.metadata)
    out += encoder.footer(groups)
    table = pq.read_table(pa.BufferReader(bytes(out)))
    assert table.schema.names == schema.names
    assert table.drop_columns("vector").to_pydict() == others.to_pydict()
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), vectors)


def test_statistics_of_ids_find_a_row_group(tmp_path, small_groups):
    small_groups(3)
    path = write_all(tmp_path / "a.parquet", memory_of(3, kind="string", payload=PAYLOADS["words"]))
    with pq.ParquetFile(path) as file:
        ranges = [file.metadata.row_group(i).column(0).statistics for i in range(4)]
        assert [(s.min, s.max, s.null_count) for s in ranges] == [
            (f"d{start:05}", f"d{min(start + 32, 99):05}", 0) for start in (0, 33, 66, 99)
        ]
        nulls = [file.metadata.row_group(i).column(2).statistics.null_count for i in range(4)]
        assert sum(nulls) == PAYLOADS["words"]["word"].null_count
    assert pq.read_table(path, filters=[("id", "=", "d00070")])["id"].to_pylist() == ["d00070"]


def test_metadata_adds_up(tmp_path, small_groups):
    small_groups(3)
    path = write_all(tmp_path / "a.parquet", memory_of(3, payload=PAYLOADS["nested"]))
    data, metadata = path.read_bytes(), pq.read_metadata(path)
    assert data[:4] == data[-4:] == MAGIC
    assert metadata.num_rows == 100
    ends = len(MAGIC)
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        columns = [group.column(j) for j in range(group.num_columns)]
        assert group.total_byte_size == sum(c.total_uncompressed_size for c in columns)
        starts = [c.dictionary_page_offset or c.data_page_offset for c in columns]
        for start, column in sorted(zip(starts, columns, strict=True), key=lambda pair: pair[0]):
            assert start == ends  # chunks lie one behind the other, without gaps
            ends = start + column.total_compressed_size
    assert data[ends:-8] == footer_of(data)
    ordinals = [thrift_group[7][1] for thrift_group in thrift.loads(footer_of(data))[4][1][1]]
    assert ordinals == list(range(metadata.num_row_groups))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("payload", [*PAYLOADS, "nested dictionary"])
def test_a_file_is_the_same_whatever_the_batches(tmp_path, small_groups, options, payload):
    """Dictionaries of each batch may differ in order and content."""
    small_groups(8)
    others = PAYLOADS.get(payload) or {
        "kinds": pa.ListArray.from_arrays(range(101), pa.array(["ab"[i % 2] for i in range(100)]).dictionary_encode())
    }
    if payload == "none":
        others = {}
    memory = memory_of(8, payload=others)
    files = set()
    for batch_rows in (1, 7, 33, 34, 100):
        path = tmp_path / f"{batch_rows}.parquet"
        with write_collection(path, memory.space, memory.id_type, memory.payload_schema, **OPTIONS[options]) as writer:
            for batch in memory.batches(batch_rows, payload=True):
                writer.write(Batch(batch.start, batch.ids, batch.vectors, own_dictionaries(batch.payload)))
        files.add(path.read_bytes())
    assert len(files) == 1
    assert pq.read_table(path).select(list(others)).to_pydict() == pa.table(others).to_pydict()


def own_dictionaries(batch):
    """The batch as a reader gives it: dictionaries of its own rows alone, the last value first."""
    columns = []
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            plain = column.dictionary_decode()
            values = plain.unique().drop_null()
            order = values[::-1]
            indices = pa.array(
                [None if v is None else order.to_pylist().index(v) for v in plain.to_pylist()], column.type.index_type
            )
            column = pa.DictionaryArray.from_arrays(indices, order, ordered=column.type.ordered)
        columns.append(column)
    return pa.record_batch(columns, schema=batch.schema)


def test_row_groups_are_appended_to_a_file_that_has_some(tmp_path, small_groups):
    """What resuming rests on: the metadata of the groups so far is all that is needed."""
    small_groups(3)
    memory = memory_of(3, payload=PAYLOADS["dictionary"])
    once = write_all(tmp_path / "once.parquet", memory).read_bytes()
    path, kept = tmp_path / "parts.parquet", []
    for part in range(4):
        with open(path, "ab", buffering=0) as file:
            writer = CollectionWriter(file, memory.space, memory.id_type, memory.payload_schema, groups=kept)
            assert writer.rows == 33 * part
            (batch,) = memory.batches(100, payload=True)
            batch = batch.at(np.arange(33 * part, min(33 * (part + 1), 100)))
            metadata = writer.append([batch], np.ascontiguousarray(batch.vectors))
            kept = [*kept, thrift.loads(thrift.dumps(metadata))]
            if part == 3:
                writer.close()
    assert path.read_bytes() == once


@pytest.mark.parametrize("dim", [1, 7, 384])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pages_are_about_a_mebibyte(tmp_path, dim, dtype):
    """With the real sizes: more values than one page holds, fewer than a row group."""
    itemsize = np.dtype(dtype).itemsize
    rows = 5 * (1 << 19) // (dim * itemsize) + 1  # two and a half pages
    memory = memory_of(dim, rows=rows)
    path = write_all(tmp_path / "a.parquet", memory, dtype=dtype)
    np.testing.assert_array_equal(np.concatenate([v for _, v in vectors_of(path)]).astype(np.float32), memory.read()[1])
    data, chunk = path.read_bytes(), pq.read_metadata(path).row_group(0).column(1)
    at, values, pages = chunk.data_page_offset, 0, []
    while values < chunk.num_values:
        header = thrift.loads(data[at : at + 200])
        at += len(thrift.dumps(header)) + header[3][1]
        pages.append(header[5][1][1][1])
        values += pages[-1]
    assert values == rows * dim
    assert at == chunk.data_page_offset + chunk.total_compressed_size
    assert len(pages) == 3
    assert (1 << 20) - dim * itemsize < max(pages) * itemsize <= 1 << 20
    assert all(count % dim == 0 for count in pages)


def vectors_of(path):
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1000, columns=["vector"]):
            yield len(batch), np.stack(batch.column(0).to_numpy(zero_copy_only=False))


def test_many_row_groups(tmp_path, small_groups):
    """More than the 32,767 that the optional field for their number can hold."""
    small_groups(1, rows=1, page=1)
    path = tmp_path / "a.parquet"
    rows = (1 << 15) + 2
    space = Space("m", 1, Metric.DOT)
    with write_collection(path, space, pa.int64()) as writer:
        (batch,) = memory_of(1, rows=1).batches()
        group = writer.append([batch], np.ones((1, 1), np.float32))
        # The group again and again, as if there were so many: the file may say that they all lie in the same place.
        writer.groups = [{**group, 7: (I16, i)} if i < 1 << 15 else {k: v for k, v in group.items() if k != 7} for i in range(rows)]
    assert pq.read_metadata(path).num_row_groups == rows
    with pq.ParquetFile(path) as file:
        assert file.read_row_group(rows - 1)["vector"].to_pylist() == [[1.0]]
    encoder = Encoder(writer.schema, "vector", compact=False)
    table = pa.table({"id": pa.array([1])}, schema=pa.schema([pa.field("id", pa.int64(), False)]))
    for ordinal, kept in (((1 << 15) - 1, True), (1 << 15, False)):
        assert (7 in encoder.encode(table, np.ones((1, 1), np.float32), 4, ordinal).metadata) == kept


@given(st.integers(1, 70), st.integers(1, 40), st.sampled_from(["<f4", "<f2"]))
def test_levels_of_any_width(dim, rows, dtype):
    """A row group in one page, read back by pyarrow."""
    vectors = np.arange(rows * dim).reshape(rows, dim).astype(dtype)
    element = pa.field("element", pa.from_numpy_dtype(vectors.dtype), nullable=False)
    schema = pa.schema([pa.field("id", pa.int64(), False), pa.field("vector", pa.list_(element, dim), False)])
    encoder = Encoder(schema, "vector", compact=False)
    table = pa.table({"id": range(rows)}, schema=schema.remove(1))
    group = encoder.encode(table, vectors, 4, 0)
    data = b"".join(itertools.chain([MAGIC], group.buffers, [encoder.footer([group.metadata])]))
    found = pq.read_table(pa.BufferReader(data))
    assert found["vector"].combine_chunks().flatten().to_numpy().tolist() == vectors.ravel().tolist()
    assert len(found) == rows
