"""Hooks of schemathesis for the service of `tests.serving.world`: names and widths that lead past the first checks.

A document cannot say how wide a vector is or what a map is called, so nearly all generated requests would end there. Two of three
valid ones are completed; the others, and all that are meant to be invalid, stay as they were generated.
"""

from __future__ import annotations

import io
import json
import zlib

import numpy as np
import pyarrow as pa
import schemathesis
from hypothesis import strategies as st

WIDTHS = {"documents": 6, "queries": 9}
INDEXES = ("old", "fused", "both", "live")
MODELS = ("old/queries/query", "old/documents/query", "old/queries/document", "old")
FIELDS = ("vectors", "old_vectors")


def _stream(rows: int, width: int, seed: int) -> bytes:
    values = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    sink = io.BytesIO()
    table = pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width), "n": pa.array(range(rows))})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


streams = st.builds(_stream, st.integers(0, 5), st.sampled_from((1, 6, 9)), st.integers(0, 100))
schemathesis.openapi.media_type("application/vnd.apache.arrow.stream", st.one_of(streams, st.binary(max_size=300)))
rows = st.integers(0, 5).flatmap(lambda n: st.binary(min_size=24 * n, max_size=24 * n))
schemathesis.openapi.media_type("application/octet-stream", st.one_of(rows, st.binary(max_size=100)))


@schemathesis.hook
def before_call(context, case, kwargs):
    mode = case.meta.generation.mode if case.meta else None
    if mode is None or not mode.is_positive:
        return
    number = zlib.crc32(repr((case.path, case.body)).encode())
    if number % 3 == 0:
        return
    if case.path == "/v1/translate" and isinstance(case.query, dict):
        case.query = {"map": "documents", **({"to": "old"} if number % 5 == 0 else {})}
    if not isinstance(case.body, dict):
        return
    body = json.loads(json.dumps(case.body))
    if case.path == "/v1/translate":
        body |= {"map": "documents", "to": None}
        _fit(body, {"vectors": 6})
    elif case.path == "/v1/embeddings":
        body |= {"model": MODELS[number % len(MODELS)], "dimensions": (None, 6)[number % 2]}
    else:
        _complete(case.path, body, number)
    case.body = body


def _complete(path: str, body: dict, number: int) -> None:
    """Queries of a search, a comparison or the log."""
    widths = {"vectors": 9, "old_vectors": 6}
    if path == "/v1/search":
        body |= {"index": INDEXES[number % len(INDEXES)], "map": None, "space": None, "parameters": ""}
        if body.get("strategy") == "old-space" or (body.get("strategy") == "own-space" and body["index"] == "old"):
            widths["vectors"] = 6
    texts = body.get("texts") if number % 2 else None
    body["texts"] = texts[:1] if texts and path == "/v1/compare" else texts
    if texts:
        body |= dict.fromkeys(FIELDS)
        return
    body["vectors"] = body.get("vectors") or [[1.0]]
    _fit(body, widths)
    if path == "/v1/compare":
        body |= {name: body[name][:1] for name in FIELDS if body.get(name)}
    elif body.get("old_vectors") or path == "/v1/queries" or body.get("strategy") == "blended":
        old = body.get("old_vectors") or [[0.5] * 6]
        body["old_vectors"] = [old[i % len(old)] for i in range(len(body["vectors"]))]


def _fit(body: dict, widths: dict[str, int]) -> None:
    """Rows of the right width, with a number in front that keeps them from being zero."""
    for name, width in widths.items():
        if isinstance(body.get(name), list):
            body[name] = [([0.25, *row] + [0.0] * width)[:width] for row in body[name]]
