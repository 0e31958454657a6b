"""``POST /v1/translate``: what `map.apply` gives, in three media types; every bad row is named by its number."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest

import embridge as eb
from embridge.maps.queries import project_queries
from embridge.serving.media import ARROW, JSON, RAW, TYPES
from embridge.types import Space
from tests.serving.support import NEW, OLD, error_of, unit


@pytest.fixture
def client(client_of):
    return client_of("documents")


def table_of(vectors, kind="fixed", **columns):
    values = pa.array(vectors.ravel())
    if kind == "fixed":
        column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    else:
        column = pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, vectors.shape[1]), pa.int32()), values)
    return pa.table({"vector": column, **columns})


def stream_of(table, rows=None, compression=None):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue().to_pybytes()


def body_of(kind, vectors):
    if kind == JSON:
        return json.dumps({"vectors": vectors.tolist()}).encode()
    return vectors.astype("<f4").tobytes() if kind == RAW else stream_of(table_of(vectors))


def read(answer, dim=NEW.dim):
    assert answer.status_code == 200, answer.text
    kind = answer.headers["content-type"]
    if kind == JSON:
        return np.array(answer.json()["vectors"], np.float32)
    if kind == RAW:
        return np.frombuffer(answer.content, "<f4").reshape(-1, dim)
    column = pa.ipc.open_stream(answer.content).read_all().column("vector").combine_chunks()
    return column.flatten().to_numpy().reshape(-1, dim)


def post(client, kind, body, accept=None, **params):
    headers = {"content-type": kind} | ({} if accept is None else {"accept": accept})
    return client.post("/v1/translate", content=body, headers=headers, params=params)


@pytest.mark.parametrize(("given", "wanted"), list(itertools.product(TYPES, TYPES)))
def test_every_pair_of_media_types_gives_what_apply_gives(client, world, given, wanted):
    answer = post(client, given, body_of(given, world.old), accept=wanted)
    np.testing.assert_allclose(read(answer), world.documents.apply(world.old), atol=1e-5)
    assert answer.headers["x-embridge-map"] == "documents"
    assert answer.headers["x-embridge-fingerprint"] == world.documents.fingerprint
    assert (answer.headers["x-embridge-space"], answer.headers["x-embridge-dim"]) == ("new", "9")


@pytest.mark.parametrize("kind", TYPES)
def test_one_vector_comes_back_in_the_type_of_the_request(client, world, kind):
    answer = post(client, kind, body_of(kind, world.old[:1]), accept="*/*")
    assert answer.headers["content-type"] == kind
    np.testing.assert_allclose(read(answer), world.documents.apply(world.old[:1]), atol=1e-5)


def test_json_says_space_and_map(client, world):
    answer = post(client, "application/json; charset=utf-8", body_of(JSON, world.old[:2])).json()
    assert answer["space"] == {"name": "new", "dim": 9, "metric": "cosine", "normalized": True}
    assert answer["map"] == {"name": "documents", "fingerprint": world.documents.fingerprint}


def test_a_kernel_map_is_served_too(client_of, world, tmp_path):
    anchors = eb.match(world.old_rows, world.new_rows)
    kernel = eb.Kernel().fit(anchors)
    kernel.save(tmp_path / "kernel.safetensors")
    client = client_of(str(tmp_path / "kernel"))
    np.testing.assert_allclose(read(post(client, RAW, body_of(RAW, world.old))), kernel.apply(world.old), atol=1e-5)
    error = error_of(post(client, RAW, body_of(RAW, world.new), to="old"), 400)
    assert "no adjoint" in error["message"]


def test_queries_go_against_the_map_by_its_adjoint(client, world):
    answer = post(client, RAW, body_of(RAW, world.query_new), to="old")
    expected = unit(project_queries(world.query_new, world.documents, OLD))
    np.testing.assert_allclose(read(answer, OLD.dim), expected, atol=1e-5)


def test_rows_are_scaled_where_the_map_belongs_to_unit_length(client, world):
    answer = post(client, RAW, body_of(RAW, 3 * world.old))
    np.testing.assert_allclose(read(answer), world.documents.apply(world.old), atol=1e-5)


def test_of_several_maps_the_request_names_one(client_of, world):
    client = client_of("documents", "queries")
    error = error_of(post(client, RAW, body_of(RAW, world.old)), 400)
    assert (error["code"], error["param"]) == ("map_needed", "map")
    assert "'documents', 'queries'" in error["message"]
    answer = client.post("/v1/translate", json={"vectors": world.query_new.tolist(), "map": "queries"})
    np.testing.assert_allclose(read(answer), world.queries.apply(world.query_new), atol=1e-5)
    assert error_of(post(client, RAW, b"", map="nope"), 404)["code"] == "map_not_found"
    body = {"vectors": [[1.0] * 9], "map": "queries"}
    assert error_of(client.post("/v1/translate?map=documents", json=body), 400)["param"] == "map"


def test_other_columns_and_batches_of_a_stream_pass_through(client, world):
    table = table_of(world.old, "list", id=pa.array(world.ids), n=pa.array(range(200))).select(["id", "vector", "n"])
    body = stream_of(table, rows=33)
    made = pa.ipc.open_stream(post(client, ARROW, body).content).read_all()
    assert made.schema.names == ["id", "vector", "n"]
    assert made.column("id").to_pylist() == world.ids.tolist()
    assert made.schema.field("vector").type.list_size == NEW.dim
    assert json.loads(made.schema.metadata[b"embridge.space"])["name"] == "new"
    again = stream_of(table.rename_columns(["id", "e", "n"]))
    named = pa.ipc.open_stream(post(client, ARROW, again, column="e").content).read_all()
    assert named.column("e").to_pylist() == made.column("vector").to_pylist()


def test_a_stream_of_another_space_is_refused(client, world):
    table = table_of(world.old).replace_schema_metadata({"embridge.space": json.dumps(NEW.to_dict() | {"dim": 6})})
    assert error_of(post(client, ARROW, stream_of(table)), 400)["code"] == "space_mismatch"


@pytest.mark.parametrize("text", ["x", "[]", '{"name": 5}', "{"])
def test_a_stream_with_damaged_metadata_is_refused(client, world, text):
    table = table_of(world.old).replace_schema_metadata({"embridge.space": text})
    assert "'embridge.space'" in error_of(post(client, ARROW, stream_of(table)), 400)["message"]


def changed(row, value, rows=8):
    vectors = np.tile(np.linspace(0.1, 0.6, OLD.dim, dtype=np.float32), (rows, 1))
    vectors[row] = value
    return vectors


@pytest.mark.parametrize("kind", [RAW, ARROW])
@pytest.mark.parametrize(
    ("value", "fault"), [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (0, "only zeros, which have no direction")]
)
def test_a_bad_row_is_named(client, kind, value, fault):
    error = error_of(post(client, kind, body_of(kind, changed(5, value))), 400)
    assert (error["param"], error["code"]) == ("vectors[5]", "bad_vectors")
    assert f"Row 5 of vectors has {fault}" in error["message"]


BAD_JSON = {
    "wide": ("[[1,2,3,4,5,6],[1,2,3,4,5,6,7]]", "vectors[1]", "Row 1 of vectors has 7 values, and vectors of 'old' have 6"),
    "ragged": ("[[1,2,3,4,5,6],[1,2,3,4,5,6],[]]", "vectors[2]", "Row 2 of vectors has 0 values"),
    "zero": ("[[1,2,3,4,5,6],[0,0,0,0,0,0]]", "vectors[1]", "only zeros"),
    "text": ('[[1,2,3,4,5,6],[1,2,3,4,5,"6"]]', "vectors[1][5]", "valid number"),
    "true": ("[[1,2,3,4,5,true]]", "vectors[0][5]", "valid number"),
    "null": ("[[1,2,3,4,5,6],null]", "vectors[1]", "valid array"),
    "NaN": ("[[1,2,3,4,5,NaN]]", "vectors[0][5]", "finite"),
    "beyond float64": ("[[1,2,3,4,5,1e400]]", "vectors[0][5]", "finite"),
    "beyond float32": ("[[1,2,3,4,5,6],[1,2,3,4,5,1e39]]", "vectors[1]", "infinite"),
    "huge integer": (f"[[1,2,3,4,5,{10**400}]]", "vectors[0][5]", ""),
    "flat": ("[1,2,3,4,5,6]", "vectors[0]", "valid array"),
    "empty": ("[]", "vectors", "at least 1"),
    "no list": ('"x"', "vectors", "valid array"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_rows_are_named(client, case):
    rows, param, message = BAD_JSON[case]
    error = error_of(post(client, JSON, f'{{"vectors": {rows}}}'.encode()), 400)
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"\xff"', b"[" * 100_000, b'{"vectors": [[1,2,3,4,5,6]], "mapp": "x"}', b'{"map": "x"}']
)
def test_other_json_is_refused(client, body):
    assert error_of(post(client, JSON, body), 400)["type"] == "invalid_request_error"


def test_numbers_whose_translation_overflows_are_named(client_of, world, tmp_path):
    large = eb.LinearMap(np.full((2, 6), 1e30), np.zeros(2), Space("wide", 6), Space("out", 2, "dot"))
    large.save(tmp_path / "large.safetensors")
    client = client_of(str(tmp_path / "large"))
    error = error_of(post(client, RAW, body_of(RAW, changed(3, 1e20))), 400)
    assert error["param"] == "vectors[3]"
    assert "after the translation" in error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b"\0" * 25, "row 1 is incomplete"),
        (b"abc", "row 0 is incomplete"),
    ],
)
def test_raw_bytes_that_are_no_rows_are_refused(client, body, message):
    assert message in error_of(post(client, RAW, body), 400)["message"]


def streams():
    good = changed(0, 1)
    yield "nothing", b"", "not an Arrow IPC stream"
    yield "cut", stream_of(table_of(good))[:200], "not an Arrow IPC stream"
    yield "no column", stream_of(pa.table({"x": [1]})), "no column 'vector'"
    yield "numbers", stream_of(pa.table({"vector": [1.0]})), "not a list of floats"
    yield "integers", stream_of(pa.table({"vector": [[1, 2, 3, 4, 5, 6]]})), "not a list of floats"
    yield "null row", stream_of(pa.table({"vector": [[1.0] * 6, None]})), "row 1"
    yield "ragged", stream_of(pa.table({"vector": [[1.0] * 6, [1.0] * 6, [1.0]]})), "row 2 has 1 values"
    yield "null value", stream_of(pa.table({"vector": [[1.0, None, 1.0, 1.0, 1.0, 1.0]]})), "null values"
    yield "wide", stream_of(table_of(np.ones((2, 7), np.float32))), "row 0 has 7 values"
    yield "zstd", stream_of(table_of(good), compression="zstd"), "Compressed streams are not taken"
    yield "lz4", stream_of(table_of(good, id=pa.array(list("abcdefgh")).dictionary_encode()), compression="lz4"), "Compressed"
    yield "no rows", stream_of(table_of(good).slice(0, 0)), "empty"


@pytest.mark.parametrize(("body", "message"), [s[1:] for s in streams()], ids=[s[0] for s in streams()])
def test_streams_that_hold_no_vectors_are_refused(client, body, message):
    assert message in error_of(post(client, ARROW, body), 400)["message"]


@pytest.mark.parametrize("kind", TYPES)
def test_more_rows_than_the_limit_are_refused(client_of, world, kind):
    client = client_of("documents", max_rows=3)
    assert read(post(client, kind, body_of(kind, world.old[:3]))).shape == (3, 9)
    assert error_of(post(client, kind, body_of(kind, world.old[:4])), 400)["code"] == "too_many_rows"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_other_media_types_are_refused(client, world, kind):
    assert "application/octet-stream" in error_of(post(client, kind, body_of(JSON, world.old)), 415)["message"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/octet-stream", RAW),
        ("text/html, application/*;q=0.1", JSON),
        ("application/json;q=0.2, application/octet-stream;q=0.9, */*;q=0.1", RAW),
        ("application/json;q=0, */*", RAW),
        ("APPLICATION/JSON; q=1", JSON),
        ("application/octet-stream;q=x, application/json", JSON),
        ("text/html", None),
        ("*/*;q=0", None),
    ],
)
def test_accept_chooses_the_type_of_the_answer(client, world, accept, expected):
    answer = post(client, JSON, body_of(JSON, world.old[:1]), accept=accept)
    if expected is None:
        assert error_of(answer, 406)["code"] == "not_acceptable"
    else:
        assert answer.headers["content-type"] == expected
