"""What is refused. Each case makes what is opened and says what the message must say."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

import embridge as eb
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    CollectionError,
    MissingFileError,
    SpaceMismatchError,
    UnreadableFileError,
)
from embridge.stores import MemoryCollection, ParquetCollection, open_collection
from embridge.stores.locations import find_files
from embridge.types import Space

ROWS, DIM = 20, 4
VECTORS = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float16)


def with_column(table_of, name, column):
    table = table_of(range(3), VECTORS[:3])
    return table.set_column(table.schema.names.index(name), name, column)


def listed(rows, kind=None):
    return pa.array(rows, kind or pa.list_(pa.float32()))


BAD_VECTORS = {
    "ragged": (
        listed([[1, 2], [1, 2, 3], [1, 2]]),
        BadVectorsError,
        "is ragged: vectors are 2-dimensional, but row 1 has 3 values",
    ),
    "empty list": (listed([[1, 2], [1, 2], []]), BadVectorsError, "row 2 has 0 values"),
    "null vector": (listed([[1, 2], None, None]), BadVectorsError, r"has 2 rows without a vector \(null\), the first at row 1"),
    "null and ragged": (listed([[1, 2], None, [1]]), BadVectorsError, "has 1 row without a vector"),
    "null fixed vector": (
        listed([[1, 2], None, [1, 2]], pa.list_(pa.float32(), 2)),
        BadVectorsError,
        "has 1 row without a vector",
    ),
    "no vector at all": (listed([None, [], None]), BadVectorsError, "has 3 rows, all without a vector"),
    "null value": (listed([[1, 2], [1, None], [1, 2]]), BadVectorsError, "has null values within vectors, between rows 0 and 3"),
    "null float16 value": (
        listed([[1, 2], [1, None], [1, 2]], pa.list_(pa.float16(), 2)),
        BadVectorsError,
        "has null values within vectors",
    ),
    "integers": (listed([[1], [2], [3]], pa.list_(pa.int8())), BadVectorsError, r"must hold float16.*Got list<.*int8> instead"),
    "strings": (pa.array(["1,2", "1,2", "1,2"]), BadVectorsError, "must hold float16.*Got string instead"),
    "nested lists": (listed([[[1.0]]] * 3, pa.list_(pa.list_(pa.float32()))), BadVectorsError, "must hold float16.*Got list<"),
    "dictionary": (
        listed([["a"]] * 3, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        BadVectorsError,
        "must hold float16, float32 or float64",
    ),
    "beyond float32": (listed([[1e300, 1], [1, 1], [1, 1]], pa.list_(pa.float64())), BadVectorsError, "NaN or infinite.*ids 0"),
}


@pytest.mark.parametrize("case", BAD_VECTORS)
def test_bad_vector_columns_are_refused(tmp_path, case, table_of, write):
    column, error, message = BAD_VECTORS[case]
    path = write(tmp_path / "bad.parquet", with_column(table_of, "vector", column))
    with pytest.raises(error, match=message) as e:
        list(open_collection(path, space="m").batches())
    assert "bad.parquet" in str(e.value)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([[1, 2], [3, None], None, [5], [], [6, 7, 8], [9, 10]], pa.list_(pa.float32())),
        ([[1, 2], [3, None], None, [5], [], [6, 7, 8], [9, 10]], pa.large_list(pa.float64())),
        ([[1, 2], [3, None], None, [5], [], [6, 7, 8], [9, 10]], pa.list_(pa.float16())),
    ],
    ids=["float32", "float64", "float16"],
)
def test_reading_without_validation_gives_missing_and_ragged_vectors_as_nan(tmp_path, rows, kind, write):
    table = pa.table({"id": pa.array([0, 1, 2, 3, None, 5, 6]), "vector": pa.array(rows, kind)})
    collection = open_collection(write(tmp_path / "a.parquet", table), space="m")
    nan = np.nan
    expected = [[1, 2], [3, nan], [nan, nan], [nan, nan], [nan, nan], [nan, nan], [9, 10]]
    for batch_rows in (3, 100):
        batches = list(collection.batches(batch_rows, validate=False))
        np.testing.assert_array_equal(np.concatenate([b.vectors for b in batches]), expected)
        assert [i for b in batches for i in b.ids.to_pylist()] == [0, 1, 2, 3, None, 5, 6]
    np.testing.assert_array_equal(collection.take(np.array([0, 6])), [[1, 2], [9, 10]])


def test_ids_must_not_be_null(tmp_path, table_of, write):
    path = write(tmp_path / "bad.parquet", with_column(table_of, "id", pa.array(["a", None, None])))
    with pytest.raises(BadIdsError, match=r"bad.parquet' has 2 rows without an id \(null\)"):
        list(open_collection(path, space="m").batches())


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([0.5, 1, 2]), "must have ids of type string or int64. Got double instead"),
        (pa.array([b"a", b"b", b"c"]), "Got binary instead"),
        (pa.array([1, 2, 2**63], pa.uint64()), "has ids that are not int64"),
    ],
    ids=["float", "binary", "too large"],
)
def test_ids_must_be_strings_or_integers(tmp_path, column, message, table_of, write):
    path = write(tmp_path / "bad.parquet", with_column(table_of, "id", column))
    with pytest.raises(BadIdsError, match=message) as e:
        open_collection(path, space="m").read()
    assert "bad.parquet" in str(e.value)


@pytest.mark.parametrize(("column", "option"), [("id", "--id-column"), ("vector", "--vector-column")])
def test_missing_columns_are_reported_with_the_option(tmp_path, column, option, table_of, write):
    path = write(tmp_path / "a.parquet", table_of(range(3), VECTORS[:3], {"text": ["x"] * 3}).drop_columns(column))
    with pytest.raises(CollectionError, match=f"has no column '{column}'. Columns: .*text.* Hint: name it with {option}"):
        open_collection(path, space="m")


def test_a_file_without_rows_is_refused(tmp_path, table_of, write):
    path = write(tmp_path / "empty.parquet", table_of(range(3), VECTORS[:3]).slice(0, 0))
    with pytest.raises(CollectionError, match=r"empty.parquet' holds no rows"):
        open_collection(path, space="m")


def test_a_file_without_rows_among_others_does_no_harm(tmp_path, table_of, write):
    table = table_of(range(ROWS), VECTORS, kind="list")
    write(tmp_path / "a.parquet", table.slice(0, 0))
    write(tmp_path / "b.parquet", table)
    write(tmp_path / "c.parquet", table.slice(0, 0))
    assert ParquetCollection(tmp_path, space="m").read()[0].tolist() == list(range(ROWS))


@pytest.mark.parametrize("name", ["a.parquet", "no/such/folder", "a.faiss", "no*.parquet"])
def test_nothing_there(tmp_path, name):
    with pytest.raises(CollectionError if "*" in name else MissingFileError, match=r"holds no Parquet files|There is no file"):
        open_collection(tmp_path / name, space="m")


def test_a_folder_without_parquet_files(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CollectionError, match="holds no Parquet files"):
        open_collection(tmp_path, space="m")


def test_a_location_of_an_unknown_kind():
    with pytest.raises(UnreadableFileError, match="'gopher://x/y' cannot be read as a location"):
        find_files("gopher://x/y")


FOREIGN = {"text": b"id,vector\n1,2\n" * 50, "PNG": b"\x89PNG\r\n\x1a\n" + bytes(200), "a few bytes": b"PAR1", "nothing": b""}


@pytest.mark.parametrize("suffix", ["parquet", "faiss", "index"])
@pytest.mark.parametrize("content", FOREIGN)
def test_foreign_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(FOREIGN[content])
    kind = "Parquet" if suffix == "parquet" else "a FAISS index"
    with pytest.raises(UnreadableFileError, match=f"a.{suffix}' cannot be read as {kind}: .*Hint: it may be truncated"):
        open_collection(path, space="m")


def test_one_kind_under_the_name_of_the_other(tmp_path, table_of, index_of, write):
    parquet = write(tmp_path / "p.parquet", table_of(range(3), VECTORS[:3]))
    faiss.write_index(index_of("Flat", VECTORS.astype(np.float32)), str(tmp_path / "f.faiss"))
    Path(parquet).rename(tmp_path / "p.faiss")
    (tmp_path / "f.faiss").rename(tmp_path / "f.parquet")
    with pytest.raises(UnreadableFileError, match=r'cannot be read as a FAISS index: Index type .*"PAR1". not recognized'):
        open_collection(tmp_path / "p.faiss", space="m")
    with pytest.raises(UnreadableFileError, match="cannot be read as Parquet"):
        open_collection(tmp_path / "f.parquet", space="m")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_parquet_is_refused(tmp_path, share, table_of, write):
    path = Path(write(tmp_path / "a.parquet", table_of(range(ROWS), VECTORS)))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UnreadableFileError, match=r"a.parquet' cannot be read as Parquet"):
        open_collection(path, space="m")


# Collections in memory.


@pytest.mark.parametrize(
    ("ids", "vectors", "payload", "error", "message"),
    [
        ([], np.empty((0, 4)), None, CollectionError, "holds no rows"),
        ([1, 2], VECTORS[:3], None, BadVectorsError, "has 2 ids, but 3 vectors"),
        ([1, 2, 2, 1], VECTORS[:4], None, BadIdsError, "holds ids more than once: 1, 2|holds ids more than once: 2, 1"),
        (["a", None], VECTORS[:2], None, BadIdsError, "has 1 row without an id"),
        ([0.5, 1.5], VECTORS[:2], None, BadIdsError, "Got double instead"),
        (["a", 1], VECTORS[:2], None, BadIdsError, "Got values of several types"),
        ([1, 2], VECTORS[:2, :3], None, SpaceMismatchError, "expects 4-dimensional vectors. Got 3 dimensions"),
        ([1, 2], [[1, 2, 3, 4], [1, 2]], None, BadVectorsError, "must be vectors of shape"),
        ([1, 2], VECTORS[:2], {"label": [1]}, CollectionError, "has 2 ids, but 1 rows of payload"),
        ([1, 2], VECTORS[:2], {"label": [1, 2], "word": ["a"]}, CollectionError, "payload that is not a table"),
    ],
    ids=["empty", "lengths", "duplicates", "null", "float", "mixed", "width", "ragged", "payload", "payload lengths"],
)
def test_memory_refuses(ids, vectors, payload, error, message):
    with pytest.raises(error, match=message):
        MemoryCollection(ids, vectors, Space("m", 4), payload)


@pytest.mark.parametrize(
    "ids", [np.arange(3, dtype=np.int32), range(3), pa.chunked_array([[0], [1, 2]])], ids=["array", "range", "chunked"]
)
def test_memory_takes_ids_of_many_kinds(ids):
    collection = MemoryCollection(ids, VECTORS[:3], Space("m", 4))
    assert collection.id_type == pa.int64()
    assert collection.read()[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.timestamp("s"), pa.duration("ns"), pa.list_(pa.timestamp("us", "UTC"))])
def test_a_fingerprint_includes_moments_that_python_does_not_have(kind):
    def mark(number):
        numbers = pa.array([number, None, 1], pa.int64())
        held = pa.array([[i] for i in numbers.to_pylist()], pa.list_(pa.int64())) if pa.types.is_list(kind) else numbers
        return eb.MemoryCollection(range(3), np.ones((3, 2)), eb.Space("a", 2), pa.table({"t": held.cast(kind)})).fingerprint()

    assert mark(2**61 + 1) == mark(2**61 + 1)
    assert len({mark(2**61 + 1), mark(2**61 + 2), mark(1)}) == 3
