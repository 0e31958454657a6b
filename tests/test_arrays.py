import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embridge.arrays import as_vectors, bad_rows, check_rows, norms, unit
from embridge.errors import BadVectorsError, EmbridgeError, SpaceMismatchError

DTYPES = st.sampled_from([np.float16, np.float32, np.float64])
# What breaks shortcuts: values whose sums or squares overflow, vanish or cancel, and those that are no numbers.
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf]
AT_THE_EDGE = {
    np.float16: [65504.0, -65504.0, 6e-8],
    np.float32: [3.4e38, -3.4e38, 1e-45, -1e-45, 1e30, 1e-30],
    np.float64: [3.4e38, -3.4e38, 1e-45, 1e300, -1e300, 1e-300],
}


@st.composite
def vectors(draw, special=True):
    dtype = draw(DTYPES)
    n, dim = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    plain = st.floats(-100, 100, width=16)
    values = st.one_of(plain, st.sampled_from(SPECIAL + AT_THE_EDGE[dtype])) if special else plain
    rows = draw(st.lists(st.lists(values, min_size=dim, max_size=dim), min_size=n, max_size=n))
    return np.array(rows, dtype).reshape(n, dim)


@given(vectors(), st.booleans())
def test_bad_rows_agrees_with_looking_at_every_value(rows, zero_is_bad):
    with np.errstate(over="ignore"):
        used = rows.astype(np.float32)  # as which vectors are used
    not_finite, zero = bad_rows(rows, zero_is_bad=zero_is_bad)
    assert not_finite.tolist() == [i for i, row in enumerate(used) if not np.isfinite(row).all()]
    assert zero.tolist() == ([i for i, row in enumerate(used) if (row == 0).all()] if zero_is_bad else [])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bad_rows_finds_one_bad_value_in_many(dtype):
    rows = np.random.default_rng(0).normal(size=(5000, 64)).astype(dtype)
    assert [len(found) for found in bad_rows(rows, zero_is_bad=True)] == [0, 0]
    rows[4321, 63], rows[17, 0], rows[99] = np.nan, -np.inf, 0
    not_finite, zero = bad_rows(rows, zero_is_bad=True)
    assert not_finite.tolist() == [17, 4321]
    assert zero.tolist() == [99]


def test_check_rows_names_the_first_ids():
    rows = np.ones((1500, 2), np.float32)
    rows[100:1300] = np.nan
    with pytest.raises(BadVectorsError) as e:
        check_rows(rows, [f"d{i}" for i in range(1500)], "'a.parquet'", zero_is_bad=True)
    assert str(e.value) == (
        "'a.parquet' has 1,200 rows with NaN or infinite values: ids 'd100', 'd101', 'd102', 'd103', 'd104', ... (1,200 in all). "
        "Hint: remove or re-encode them."
    )
    assert isinstance(e.value, EmbridgeError)
    assert isinstance(e.value, ValueError)


def test_check_rows_lets_good_rows_pass():
    check_rows(np.ones((3, 2), np.float16), [1, 2, 3], "x", zero_is_bad=True)
    check_rows(np.zeros((3, 2), np.float16), [1, 2, 3], "x", zero_is_bad=False)
    with pytest.raises(BadVectorsError, match="x has 1 row with a zero vector, which has no direction under cosine: ids 2"):
        check_rows(np.array([[1.0, 0], [0, 0]]), [1, 2], "x", zero_is_bad=True)


@given(vectors())
@settings(max_examples=200)
def test_unit_rows_have_unit_length_and_their_direction(rows):
    found = unit(rows)
    assert found.dtype == np.float32
    assert found.shape == rows.shape
    for row, result in zip(rows.astype(np.longdouble), found, strict=True):
        if not np.isfinite(row).all():
            assert np.isnan(result).any()
        elif not row.any():
            assert not result.any()
        else:
            exact = row / np.abs(row).max()
            exact = exact / np.sqrt((exact * exact).sum())
            np.testing.assert_allclose(result, exact.astype(np.float64), rtol=1e-6, atol=1e-6)


@given(vectors())
@settings(max_examples=200)
def test_norms_neither_overflow_nor_vanish(rows):
    found = norms(rows)
    assert found.dtype == (np.float64 if rows.dtype == np.float64 else np.float32)
    for row, length in zip(rows.astype(np.longdouble), found, strict=True):
        exact = np.sqrt((row * row).sum())
        if np.isnan(exact):
            assert np.isnan(length)
        elif exact > np.finfo(found.dtype).max:
            assert not np.isfinite(length)
        else:
            np.testing.assert_allclose(length, float(exact), rtol=1e-6, atol=1e-44)


@given(vectors(special=False))
def test_as_vectors_takes_floats_as_they_are(rows):
    assert as_vectors(rows, rows.shape[1]) is rows
    if rows.size:
        np.testing.assert_array_equal(as_vectors(rows.tolist()), rows)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, np.bool_])
def test_as_vectors_makes_floats_of_integers(dtype):
    found = as_vectors(np.array([[0, 1], [1, 1]], dtype))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[0, 1], [1, 1]])


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", "<f4"])
def test_as_vectors_gives_values_in_native_order(dtype):
    found = as_vectors(np.array([[1.5, -2]], dtype))
    assert found.dtype.isnative
    assert found.dtype.itemsize == np.dtype(dtype).itemsize
    np.testing.assert_array_equal(found, [[1.5, -2]])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([1.0, 2.0], BadVectorsError, r"queries must be vectors of shape \(n, dim\). Got shape \(2,\) instead"),
        (np.zeros((2, 3, 4)), BadVectorsError, r"Got shape \(2, 3, 4\) instead"),
        (3.0, BadVectorsError, r"Got shape \(\) instead"),
        ([], BadVectorsError, r"Got shape \(0,\) instead"),
        ([[1.0, 2.0], [1.0]], BadVectorsError, r"must be vectors of shape \(n, dim\): .*inhomogeneous"),
        ([["a", "b", "c"]], BadVectorsError, "must hold float16, float32 or float64 values. Got <U1 instead"),
        ([[None, 1.0, 1.0]], BadVectorsError, "Got object instead"),
        (np.zeros((1, 3), complex), BadVectorsError, "Got complex128 instead"),
        (np.zeros((2, 4), np.float32), SpaceMismatchError, "queries expects 3-dimensional vectors. Got 4 dimensions instead"),
        (np.zeros((0, 4), np.float32), SpaceMismatchError, "Got 4 dimensions instead"),
    ],
)
def test_as_vectors_refuses(values, error, message):
    with pytest.raises(error, match=message):
        as_vectors(values, 3, "queries")
