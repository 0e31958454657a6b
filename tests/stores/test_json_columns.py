"""Payload as JSON: what would not come back is refused before it is written."""

import numpy as np
import pyarrow as pa
import pytest

from embridge.errors import CollectionError
from embridge.stores.batch import Batch
from embridge.stores.json_columns import JsonColumns, requests_of


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize(
    ("kind", "number"), [(pa.timestamp("us"), 10**18), (pa.timestamp("us", "UTC"), -(10**18)), (pa.date32(), 10**7)]
)
def test_moments_that_text_does_not_keep_are_refused(is_flat, kind, number):
    """Arrow writes some as '<value out of range>', and others as a text that it does not read again."""
    numbers = pa.int32() if pa.types.is_date(kind) else pa.int64()
    far = pa.record_batch({"m": pa.array([number], numbers).cast(kind)})
    columns = JsonColumns(far.schema, is_flat)
    with pytest.raises(CollectionError, match=r"Column 'm' has .* values that cannot be kept as text"):
        columns.encode(far)
    near = pa.record_batch({"m": pa.array([1, None], numbers).cast(kind)})
    assert columns.decode(columns.encode(near), "here").equals(near)


def test_booleans_among_numbers_are_no_numbers_at_any_depth():
    rows = [{"a": [1.0, True], "b": {"c": [[2, False]]}, "d": [True], "e": [1, 2.5]}]
    columns = JsonColumns.infer([rows])
    assert columns.mixed == {"a", "b"}
    found = columns.decode(rows, "here")
    assert found.to_pylist() == [{"a": "[1.0, true]", "b": '{"c": [[2, false]]}', "d": [True], "e": [1.0, 2.5]}]


def test_requests_are_sized_by_all_that_they_hold():
    texts = pa.array(["a" * 500, None, "b" * 500, "c" * 5000, "d"])
    others = [pa.array([["x" * 90], [], None, [], []]), pa.array(["e", "e" * 300, "e", "e", "e"]).dictionary_encode()]
    payload = pa.record_batch([texts, *others], names=["text", "tags", "kind"])
    batch = Batch(0, pa.array([f"d{i}" for i in range(5)]), np.zeros((5, 4), np.float32), payload)
    parts = list(requests_of(batch, 10, 1200))
    assert [part.ids.to_pylist() for part in parts] == [["d0"], ["d1", "d2"], ["d3"], ["d4"]]
    assert [len(part) for part in requests_of(batch, 2, 1 << 20)] == [2, 2, 1]
    assert pa.Table.from_batches([part.payload for part in parts]).equals(pa.table(payload))
