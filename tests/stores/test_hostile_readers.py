"""Readers turn whatever is wrong with a file, or its name, into an error of embridge that names it."""

import contextlib
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embridge as eb
from embridge.errors import BadIdsError, BadVectorsError, CollectionError, EmbridgeError, MissingFileError, UnreadableFileError
from embridge.stores import ParquetCollection
from embridge.stores.ids import check_unique
from embridge.stores.parquet import thrift
from embridge.stores.parquet.metadata import COLUMNS_KEY, CONFIDENCE_KEY, LINEAGE_KEY, PROVENANCE_KEY, SPACE_KEY
from embridge.tables.ids import read_ids
from embridge.tables.labels import read_labels
from embridge.tables.qrels import read_graded_qrels
from embridge.tables.targets import read_targets
from embridge.tables.texts import TextTable

ROWS, DIM = 20, 4
VECTORS = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32)
SPACE = json.dumps(eb.Space("m", DIM).to_dict())


def strings(*values: bytes) -> pa.Array:
    """A string array of these bytes, UTF-8 or not."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"name": "m", "name": "n", "dim": 4, "metric": "cosine", "normalized": false}',
        '{"name": "m", "dim": Infinity, "metric": "cosine", "normalized": false}',
        '{"name": "m", "dim": 4.0, "metric": "cosine", "normalized": false}',
        '{"name": "m", "dim": 4, "metric": "cosine", "normalized": "false"}',
        '{"name": "\\ud800", "dim": 4, "metric": "cosine", "normalized": false}',
        '{"name": {"a": 1}, "dim": 4, "metric": "cosine", "normalized": false}',
        '{"name": "m", "dim": ' + "9" * 5000 + ', "metric": "cosine", "normalized": false}',
        "[1, 2]",
    ],
    ids=["deep list", "deep object", "twice", "infinite", "float", "text", "surrogate", "object", "digits", "list"],
)
@pytest.mark.parametrize("key", [SPACE_KEY, COLUMNS_KEY, PROVENANCE_KEY], ids=bytes.decode)
def test_metadata_that_is_not_what_it_should_be(tmp_path, key, text, table_of, write):
    table = table_of(range(ROWS), VECTORS).replace_schema_metadata({key: text})
    with pytest.raises(EmbridgeError, match=rf"The metadata {key.decode()!r} of .*a.parquet'"):
        ParquetCollection(write(tmp_path / "a.parquet", table), space="m")


@pytest.mark.parametrize(("key", "name"), [(LINEAGE_KEY, "lineage"), (CONFIDENCE_KEY, "confidence")])
@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "\xff"], ids=["deep", "list", "no JSON"])
def test_metadata_read_later_is_checked_then(tmp_path, key, name, text, table_of, write):
    table = table_of(range(ROWS), VECTORS).replace_schema_metadata({SPACE_KEY: SPACE, key: text})
    collection = ParquetCollection(write(tmp_path / "a.parquet", table))
    with pytest.raises(CollectionError, match=key.decode()):
        getattr(collection, name)


def test_columns_of_one_name_are_refused(tmp_path, table_of, write):
    table = table_of(range(ROWS), VECTORS)
    twice = pa.table([*table.columns, table["id"], table["id"]], names=["id", "vector", "score", "score"])
    with pytest.raises(CollectionError, match=r"a.parquet' has several columns named 'score'"):
        ParquetCollection(write(tmp_path / "a.parquet", twice), space="m")


@pytest.mark.parametrize("where", ["id", "text", "tags"])
def test_text_that_is_not_utf8_is_refused_with_its_column(tmp_path, where, table_of, write):
    good = strings(*[f"row {i}".encode() for i in range(ROWS)])
    bad = strings(*[b"\xd4\xff" if i == 3 else f"row {i}".encode() for i in range(ROWS)])
    tags = pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), bad if where == "tags" else good)
    columns = {"id": bad if where == "id" else good, "text": bad if where == "text" else good, "tags": tags}
    table = pa.table({**columns, "vector": table_of(range(ROWS), VECTORS)["vector"]})
    path = write(tmp_path / "a.parquet", table)
    with pytest.raises(CollectionError, match=f"Column '{where}' of .*a.parquet' holds invalid values between rows 0 and 20"):
        list(ParquetCollection(path, space="m").batches(payload=True))
    if where == "id":
        with pytest.raises(CollectionError, match="Column 'id'"):
            check_unique(ParquetCollection(path, space="m"))
        with pytest.raises(CollectionError, match="Column 'id'"):
            read_ids(path)
    if where != "tags":
        with pytest.raises(CollectionError, match=f"Column '{where}'"):
            TextTable(path).check()


def test_columns_whose_values_would_change_in_one_type_are_refused(tmp_path, table_of, write):
    write(tmp_path / "a.parquet", table_of([0], VECTORS[:1], {"tweet": pa.array([2**53 + 1])}))
    write(tmp_path / "b.parquet", table_of([1], VECTORS[:1], {"tweet": pa.array([1.0])}))
    collection = ParquetCollection(tmp_path, space="m")
    with pytest.raises(CollectionError, match=r"Column 'tweet' of .*a.parquet' is int64, in other files it is double"):
        list(collection.batches(payload=True))
    write(tmp_path / "a.parquet", table_of([0], VECTORS[:1], {"tweet": pa.array([2**53])}))
    kept = [v for b in ParquetCollection(tmp_path, space="m").batches(payload=True) for v in b.payload["tweet"].to_pylist()]
    assert kept == [2**53, 1.0]


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a", "b"], pa.large_string()).dictionary_encode(), ["a", "b"]),
        (pa.array([7, 8], pa.uint64()), [7, 8]),
        (pa.array([7, 8], pa.int8()).dictionary_encode(), [7, 8]),
        (pa.array([7, 2**63], pa.uint64()), BadIdsError),
        (pa.array([1.5, 2]), BadIdsError),
        (pa.array([1, 2]).cast(pa.decimal128(20, 0)), BadIdsError),
        (pa.array([b"a", b"b"]), BadIdsError),
        (pa.nulls(2), BadIdsError),
        (pa.array([None, 1]), BadIdsError),
        (pa.array([[1], [2]]), BadIdsError),
        (pa.array([{"a": 1}, {"a": 2}]), BadIdsError),
        (pa.array([1, 2], pa.timestamp("ns")), BadIdsError),
        (pa.array([True, False]), BadIdsError),
    ],
    ids=lambda v: str(v.type) if isinstance(v, pa.Array) else "",
)
def test_ids_of_every_type_are_read_or_refused(tmp_path, ids, kept, table_of, write):
    path = write(tmp_path / "a.parquet", pa.table({"id": ids, "vector": table_of([0, 1], VECTORS[:2])["vector"], "label": ids}))
    readers = [lambda: ParquetCollection(path, space="m").read()[0].tolist(), lambda: read_ids(path).tolist()]
    readers.append(lambda: list(read_labels(path)))
    for read in readers:
        if isinstance(kept, list):
            assert read() == kept
        else:
            with pytest.raises(kept):
                read()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query_id": pa.array([[1]]), "doc_id": pa.array([1])}, "Column 'query_id' of .*q.parquet' must have ids of type"),
        ({"query_id": pa.array([1]), "doc_id": pa.array([1], pa.timestamp("ns"))}, "Column 'doc_id' of .* must have ids of type"),
        ({"query_id": pa.array([None], pa.string()), "doc_id": pa.array([1])}, "1 row without an id"),
        ({"query_id": strings(b"\xff"), "doc_id": pa.array([1])}, "Column 'query_id' of .* holds invalid values"),
        ({"query_id": pa.array([1]), "doc_id": pa.array([1]), "score": pa.array([np.inf])}, "must hold finite numbers"),
        ({"query_id": pa.array([1]), "doc_id": pa.array([1]), "score": pa.array(["1"])}, "must hold numbers"),
        ({"query_id": pa.array([1])}, "has no column 'doc_id'"),
    ],
    ids=["list", "timestamp", "null", "no text", "infinite", "text", "missing"],
)
def test_qrels_that_cannot_be_read(tmp_path, columns, message, write):
    with pytest.raises(EmbridgeError, match=message):
        read_graded_qrels(write(tmp_path / "q.parquet", pa.table(columns)))


def test_targets_of_other_kinds_are_refused(tmp_path, write):
    path = write(tmp_path / "l.parquet", pa.table({"id": [1], "when": pa.array([1], pa.timestamp("ns")), "text": strings(b"\xff")}))
    for column, message in (("when", "must hold strings, numbers or lists"), ("text", "holds invalid values")):
        with pytest.raises(CollectionError, match=message):
            read_targets(path, column)


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.parquet")
    for path in (tmp_path / "pipe.parquet", "/dev/zero"):
        with pytest.raises(UnreadableFileError, match="neither a file nor a folder"):
            ParquetCollection(path, space="m")


@pytest.mark.parametrize(
    "path", ["a\0b", "a\udcff", "", "x" * 5000, "foo://x/y", "s3://", "gs://", "file://", "s3://b?x=1"], ids=ascii
)
def test_paths_that_name_nothing(path):
    with pytest.raises((MissingFileError, UnreadableFileError)):
        ParquetCollection(path, space="m")


def test_links_that_lead_nowhere_or_in_circles(tmp_path, table_of, write):
    (tmp_path / "loop.parquet").symlink_to("loop.parquet")
    with pytest.raises(MissingFileError):
        ParquetCollection(tmp_path / "loop.parquet", space="m")
    (tmp_path / "loop.parquet").unlink()
    write(tmp_path / "d" / "e" / "a.parquet", table_of(range(ROWS), VECTORS))
    for name in ("up", "here"):
        (tmp_path / "d" / "e" / name).symlink_to({"up": "../..", "here": "."}[name])
    for path in (tmp_path, f"{tmp_path}/**/*.parquet", f"{tmp_path}/d/*"):
        assert len(ParquetCollection(path, space="m")) == ROWS


def test_names_that_are_no_text_are_refused_by_name(tmp_path, table_of, write):
    path = write(tmp_path / "d" / "a.parquet", table_of(range(ROWS), VECTORS))
    os.rename(path, os.fsencode(path).replace(b"a.parquet", b"\xff.parquet"))
    with pytest.raises(UnreadableFileError, match=r"xff|udcff"):
        ParquetCollection(tmp_path / "d", space="m")


def test_object_storage_without_a_network_answers_within_ten_seconds():
    # Every name lookup fails, as without a network; proxies of the environment are left out.
    hide = {k: "" for k in os.environ if k.lower().endswith("_proxy")}
    unshare = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        unshare = []  # no rights to take the network away: this machine has none, or storage refuses
    with contextlib.ExitStack() as stack:  # all at once, as they wait more than they work
        running = []
        for path in ("gs://bucket/a.parquet", "s3://bucket/a.parquet", "s3://bucket/a.parquet?region=eu-west-1"):
            command = [*unshare, sys.executable, "-c", f"import embridge as eb; eb.open({path!r}, space='m')"]
            running.append(stack.enter_context(subprocess.Popen(command, env=os.environ | hide, stderr=subprocess.PIPE, text=True)))
        for process in running:
            stderr = process.communicate(timeout=40)[1]
            assert "UnreadableFileError" in stderr
            assert "bucket" in stderr.splitlines()[-1]


def test_credentials_of_a_location_are_not_shown():
    with pytest.raises(UnreadableFileError) as e:
        ParquetCollection("s3://KEY:SECRET@bucket/a.parquet?endpoint_override=127.0.0.1:1&scheme=http", space="m")
    assert "SECRET" not in str(e.value)
    assert "KEY" not in str(e.value)


def footer_of(data: bytes) -> tuple[bytes, dict]:
    """What stands before a file's footer, and the footer."""
    size = struct.unpack("<I", data[-8:-4])[0]
    return data[: -8 - size], thrift.loads(data[-8 - size : -8])


@pytest.mark.parametrize("rows", [2**40, 2**62, -1, ROWS + 1])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_footer_that_states_other_rows_than_there_are(tmp_path, rows, everywhere, table_of, write):
    path = tmp_path / "a.parquet"
    write(path, table_of(range(ROWS), VECTORS))
    before, footer = footer_of(path.read_bytes())
    footer[3] = (thrift.I64, rows)
    if everywhere:
        footer[4][1][1][0][3] = (thrift.I64, rows)
    data = thrift.dumps(footer)
    path.write_bytes(before + data + struct.pack("<I", len(data)) + b"PAR1")
    with pytest.raises(UnreadableFileError, match=r"a.parquet' cannot be read as Parquet"):
        ParquetCollection(path, space="m").read()


@pytest.mark.parametrize("size", [0, 3, 4, 8, 11, 100])
def test_truncated_files(tmp_path, size, table_of, write):
    path = tmp_path / "a.parquet"
    write(path, table_of(range(ROWS), VECTORS))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UnreadableFileError, match=r"a.parquet' cannot be read as Parquet"):
        ParquetCollection(path, space="m")


def test_encrypted_files(tmp_path, table_of):
    import pyarrow.parquet.encryption as pe

    class Keys(pe.KmsClient):
        def __init__(self, _):
            super().__init__()

        def wrap_key(self, key, _):
            return key

        def unwrap_key(self, key, _):
            return key

    factory, settings = pe.CryptoFactory(Keys), pe.KmsConnectionConfig()
    for plain in (True, False):
        chosen = pe.EncryptionConfiguration(
            footer_key="f", column_keys={"k": ["id", "vector.list.element"]}, plaintext_footer=plain
        )
        table = table_of(range(ROWS), VECTORS)
        properties = factory.file_encryption_properties(settings, chosen)
        with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, encryption_properties=properties) as writer:
            writer.write_table(table)
        with pytest.raises(UnreadableFileError, match=r"a.parquet' cannot be read as Parquet"):
            ParquetCollection(tmp_path / "a.parquet", space="m").read()


def test_more_rows_than_memory_holds_are_an_error_of_embridge():
    class Endless(eb.MemoryCollection):
        def __len__(self):
            return 2**50

    with pytest.raises(CollectionError, match="do not fit into memory"):
        Endless([1], VECTORS[:1], eb.Space("m", DIM)).read()


@given(st.binary(max_size=300))
def test_thrift_of_any_bytes_is_read_or_a_value_error(data):
    try:
        found = thrift.loads(data)
    except ValueError:
        return
    assert thrift.loads(thrift.dumps(found)) == found


@pytest.mark.parametrize(
    "data",
    [
        b"\x1c" * 100_000,
        b"\x19" + b"\x19" * 100_000,
        b"\x19\xfc" + b"\xff" * 9 + b"\x7f",
        b"\x16" + b"\xff" * 100_000,
        b"\x18\xff\xff\x7f",
    ],
    ids=["structs", "lists", "size", "integer", "binary"],
)
def test_thrift_that_would_take_all_there_is(data):
    with pytest.raises(ValueError, match=r"Thrift"):
        thrift.loads(data)


@pytest.mark.parametrize(
    "values",
    [
        VECTORS[::-1],
        VECTORS[:, ::-1],
        np.asfortranarray(VECTORS),
        VECTORS.astype(">f4"),
        np.broadcast_to(VECTORS[:1], (3, DIM)),
        np.zeros(3, np.dtype([("a", np.int8), ("v", np.float32, DIM)]))["v"],
    ],
    ids=["rows reversed", "columns reversed", "Fortran", "big-endian", "broadcast", "field"],
)
def test_arrays_of_any_layout_are_searched(values):
    found = eb.top_k(values + 1 if not values.any() else values, VECTORS, 2)
    assert found.ids.shape == (len(values), 2)


def test_masked_values_are_not_used():
    with pytest.raises(BadVectorsError, match="NaN"):
        list(
            eb.MemoryCollection(
                [1, 2], np.ma.masked_array(VECTORS[:2], mask=[[True] * DIM, [False] * DIM]), eb.Space("m", DIM)
            ).batches()
        )


@pytest.mark.parametrize("ids", [np.arange(3, dtype="u8") + 2**63, [2**70], ["\ud800"], [1, "a"], [object()], [[1], [2]]])
def test_ids_in_memory_that_no_type_holds(ids):
    with pytest.raises(BadIdsError):
        eb.MemoryCollection(ids, VECTORS[: len(ids)], eb.Space("m", DIM))
