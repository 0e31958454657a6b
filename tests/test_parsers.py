"""Every parser of ours, given anything: what it reads is right, and all else is an EmbridgeError (a ValueError within a room)."""

import base64
import json
import shutil
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import embridge as eb
from embridge.conversion import journal
from embridge.errors import EmbridgeError
from embridge.stores.parquet import thrift, writer
from embridge.stores.parquet.thrift import BINARY, I32, LIST, STRUCT
from embridge.types import DeclaredSpace, Space
from tests.torture import mend

OLD, NEW = Space("old", 4), Space("new", 3)
# The same examples every time, as CI must find nothing new in old code; folders are emptied by each example itself.
bounded = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(codec=None, exclude_categories=[]), max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from([10**400, -1, 2**63, "cosine", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DEEP = "[" * 100_000
DEEP_OBJECT = '{"a":' * 100_000


def result_of(read, *arguments, **options):
    """What a reader gives, or None where it refuses."""
    try:
        return read(*arguments, **options)
    except EmbridgeError:
        return None


@st.composite
def altered(draw, document):
    """The text of a JSON document one of whose values, at any depth, is something else, or is left out."""
    value = json.loads(json.dumps(document))
    if not isinstance(value, dict | list) or not value:
        return json.dumps(draw(VALUE))
    parent = node = value
    key: Any = None
    while isinstance(node, dict | list) and node:
        parent, key = node, draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        node = parent[key]
        if draw(st.booleans()):
            break
    if draw(st.booleans()) and isinstance(parent, dict):
        del parent[key]
    else:
        parent[key] = draw(VALUE)
    return json.dumps(value)


# Thrift


@bounded
@given(st.binary(max_size=300), st.binary(max_size=20))
@example(b"\x1c" * 100_000, b"")  # structs in structs
@example(b"\x19\x19" * 100_000, b"")  # lists of lists
@example(b"\x19" + b"\xf9" * 50_000, b"")
@example(b"\x16" + b"\x80" * 100_000 + b"\x01\x00", b"")  # a number that never ends
def test_thrift_reads_anything_or_says_what_is_wrong(head, tail):
    try:
        value = thrift.loads(head + tail)
    except ValueError:
        return
    assert thrift.loads(thrift.dumps(value)) == value


@bounded
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_thrift_with_one_bit_wrong(place, bit):
    data = bytearray(thrift.dumps({1: (LIST, (STRUCT, [{1: (I32, n), 3: (BINARY, b"x" * n)} for n in range(40)])), 4: (I32, 7)}))
    data[place % len(data)] ^= 1 << bit
    try:
        value = thrift.loads(bytes(data))
    except ValueError:
        return
    assert thrift.loads(thrift.dumps(value)) == value


# Names of spaces


@bounded
@given(TEXT | st.sampled_from(["", ":", "a:", ":dot", "a:b:c", "a:cosine", " "]))
def test_declared_spaces(text):
    found = result_of(DeclaredSpace.parse, text)
    assert found is None or text in (found.name, f"{found.name}:{found.metric}")


# Sidecars of indexes


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    eb.build_index(eb.MemoryCollection([f"d{i}" for i in range(30)], x, OLD), folder / "i.faiss", "Flat")
    return folder / "i.faiss"


@pytest.fixture(scope="module")
def sidecar(index):
    return json.loads((index.parent / "i.faiss.json").read_text())


def search(index, text):
    (index.parent / "i.faiss.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    found = eb.open_index(index)
    return found.search(np.ones((1, found.space.dim), np.float32), 3).ids.tolist()


@bounded
@given(st.data())
def test_sidecars_of_indexes(index, sidecar, data):
    found = result_of(search, index, data.draw(altered(sidecar)))
    assert found is None or len(found[0]) == 3


@pytest.mark.parametrize("text", ["", "null", "[]", "9" * 5000, '"\ud800"', DEEP, DEEP_OBJECT, "{}", '{"space": {}}'])
def test_sidecars_of_indexes_that_are_none(index, text):
    with pytest.raises(EmbridgeError, match=r"i\.faiss"):
        search(index, text)


# Metadata of Parquet files


@bounded
@given(st.data())
@example(DEEP)
@example(DEEP_OBJECT)
@example('{"name": "old", "dim": Infinity, "metric": "cosine", "normalized": false}')
@example('{"name": "old", "dim": 4, "metric": [], "normalized": 1e400}')
def test_metadata_of_collections(tmp_path, data):
    text = data if isinstance(data, str) else data.draw(altered(OLD.to_dict()))
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(12, np.float32)), 4)
    table = pa.table({"id": [1, 2, 3], "vector": column})
    metadata = {"embridge.space": text.encode("utf-8", "surrogatepass")}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "c.parquet")
    found = result_of(eb.open, tmp_path / "c.parquet")
    assert found is None or len(found.read()[0]) == 3


# Maps


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "map.safetensors"
    eb.LinearMap(np.random.default_rng(0).normal(size=(3, 4)), np.zeros(3), OLD, NEW).save(path)
    return path, path.read_bytes()


def applied(path):
    found = eb.load_map(path)
    return found.apply(np.ones((2, 4), np.float32)).tolist()


@bounded
@given(st.data())
def test_headers_of_maps(saved, data):
    path, whole = saved
    path.write_bytes(whole)
    expected = applied(path)
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    if data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(header["__metadata__"])))
        try:
            said = data.draw(altered(json.loads(header["__metadata__"][key]))) if data.draw(st.booleans()) else data.draw(TEXT)
        except ValueError:  # plain text
            said = data.draw(TEXT)
        header["__metadata__"][key] = said
        text = json.dumps(header)
    else:
        text = data.draw(altered(header))
    head = text.encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + whole[8 + size :])
    found = result_of(applied, path)
    assert found is None or found == expected


@bounded
@given(st.integers(0, 1 << 20), st.integers(0, 7))
def test_maps_with_one_bit_wrong(saved, place, bit):
    path, whole = saved
    path.write_bytes(whole)
    expected = applied(path)
    data = bytearray(whole)
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    found = result_of(applied, path)
    assert found is None or found == expected


# Journals


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A conversion that was stopped halfway: its source, its map, its folder, its files, and the output of one undisturbed run."""
    folder = tmp_path_factory.mktemp("journal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "GROUP_BYTES", 8 * 4 * 3)
        x = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
        x[[5, 30]] = np.nan
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4)
        table = pa.table({"id": [f"d{i}" for i in range(60)], "vector": column})
        pq.write_table(table.replace_schema_metadata({"embridge.space": json.dumps(OLD.to_dict())}), folder / "old.parquet")
        translation = eb.LinearMap(np.random.default_rng(0).normal(size=(3, 4)), np.zeros(3), OLD, NEW)
        source, out = eb.open(folder / "old.parquet"), folder / "out" / "o.parquet"

        def stop(done, _):
            if done >= 30:
                raise KeyboardInterrupt

        out.parent.mkdir()
        with pytest.raises(KeyboardInterrupt):
            eb.convert(source, translation, out, on_bad="skip", progress=stop)
        files = {path.name: path.read_bytes() for path in out.parent.iterdir()}
        eb.convert(source, translation, out, on_bad="skip", overwrite=True)
        yield source, translation, out, files, out.read_bytes()


def resumed(unfinished, files):
    source, translation, out, *_ = unfinished
    shutil.rmtree(out.parent)
    out.parent.mkdir()
    for name, data in files.items():
        (out.parent / name).write_bytes(data)
    assert journal.rows_done(out) >= 0
    eb.convert(source, translation, out, on_bad="skip", resume=True)
    return out.read_bytes()


@bounded
@given(st.data())
def test_journals_that_say_something_else(unfinished, data):
    *_, files, expected = unfinished
    lines = files["o.parquet.journal"].decode().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    mark, _, text = lines[at].partition(" ")
    lines[at] = f"{mark} {data.draw(altered(json.loads(text)))}"
    said = {"o.parquet.journal": ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")}
    assert result_of(resumed, unfinished, files | said) in (None, expected)
    result_of(resumed, unfinished, mend.journal(files | said))  # with forged checksums: read or refused


@pytest.mark.parametrize(
    "group",
    [b"\x1c" * 50_000, b"\x16" + b"\x80" * 50_000, b"", b"\x00", b"\xff" * 40],
    ids=["deep", "long", "no", "empty", "noise"],
)
def test_journals_with_row_groups_that_are_none(unfinished, group):
    *_, files, expected = unfinished
    *lines, last = files["o.parquet.journal"].splitlines()
    mark, _, text = last.partition(b" ")
    said = json.dumps(json.loads(text) | {"group": base64.b64encode(group).decode()}).encode()
    altered = files | {"o.parquet.journal": b"\n".join([*lines, mark + b" " + said, b""])}
    assert result_of(resumed, unfinished, altered) in (None, expected)
    assert result_of(resumed, unfinished, mend.journal(altered)) in (None, expected)


@bounded
@given(st.integers(0, 1 << 20), st.integers(0, 7))
def test_partial_files_with_one_bit_wrong(unfinished, place, bit):
    *_, files, expected = unfinished
    data = bytearray(files["o.parquet.partial"])
    data[place % len(data)] ^= 1 << bit
    assert result_of(resumed, unfinished, files | {"o.parquet.partial": bytes(data)}) in (None, expected)
