"""Payload as JSON: what would not come back is refused before it is written."""

import pyarrow as pa
import pytest

from embridge.errors import CollectionError
from embridge.stores.json_columns import JsonColumns


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
