"""Moments: one pass, exact under any split, equal to the direct formulas, safe in a file."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import embridge.anchors.moments
from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.errors import (
    BadVectorsError,
    DeviceError,
    MissingFileError,
    OutputExistsError,
    SpaceMismatchError,
    UnreadableFileError,
)
from embridge.tensors import write_tensors
from embridge.types import Space

P, Q = 5, 7
SOURCE, TARGET = Space("source", P), Space("target", Q)
ARRAYS = ("mean_x", "mean_y", "sxx", "sxy", "syy")


def rows(n, offset=0.0, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, P)) * np.arange(1, P + 1) + offset
    y = x @ rng.normal(size=(P, Q)) + rng.normal(size=(n, Q))
    return x.astype(dtype), y.astype(dtype)


def direct(x, y):
    """Textbook formulas in extended precision, as float64."""
    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    x0, y0 = x - x.mean(0), y - y.mean(0)
    return [np.asarray(a, np.float64) for a in (x.mean(0), y.mean(0), x0.T @ x0, x0.T @ y0, y0.T @ y0)]


def assert_close(found, expected, rtol):
    """Agreement relative to the largest entry of each array, for that is what summation promises."""
    for name, want in zip(ARRAYS, expected, strict=True):
        np.testing.assert_allclose(getattr(found, name), want, rtol=0, atol=rtol * np.abs(want).max(), err_msg=name)


def arrays(moments):
    return [getattr(moments, name) for name in ARRAYS]


@settings(deadline=None, max_examples=60)
@given(cuts=st.lists(st.integers(0, 300), max_size=6), offset=st.sampled_from([0.0, 3.0, -100.0]), chunked=st.booleans())
def test_any_split_merges_to_the_same_moments(cuts, offset, chunked):
    x, y = rows(300, offset)
    bounds = [0, *sorted(cuts), 300]
    parts = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(bounds)]
    if chunked:  # one pass over chunks, empty ones among them
        merged = Moments.from_chunks(parts, SOURCE, TARGET)
    else:  # shards, each summed for itself
        first, *rest = (Moments.from_rows(*part, SOURCE, TARGET) for part in parts)
        merged = first
        for part in rest:
            merged = merged + part
    whole = Moments.from_rows(x, y, SOURCE, TARGET)
    assert merged.n == 300
    assert_close(merged, arrays(whole), 1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_they_equal_the_direct_formulas(dtype):
    x, y = rows(500, 2.0, dtype)
    moments = Moments.from_rows(x, y, SOURCE, TARGET)
    assert moments.n == 500
    assert all(array.dtype == np.float64 for array in arrays(moments))
    assert_close(moments, direct(x, y), 1e-13)


def test_a_large_mean_costs_no_accuracy(monkeypatch):
    # Means 10^6 standard deviations from zero: sums of raw squares would keep 4 digits of 16.
    monkeypatch.setattr(embridge.anchors.moments, "_CHUNK", 64)
    x, y = rows(1000, 1e6, np.float64)
    assert_close(Moments.from_rows(x, y, SOURCE, TARGET), direct(x, y), 1e-12)


def test_the_order_of_rows_does_not_matter():
    x, y = rows(400, 10.0)
    order = np.argsort(x[:, 0])  # the first chunk is then far from typical
    parts = ((x[order][i : i + 50], y[order][i : i + 50]) for i in range(0, 400, 50))
    assert_close(Moments.from_chunks(parts, SOURCE, TARGET), direct(x, y), 1e-12)


def test_no_rows_and_one_row():
    no_rows = np.empty((0, P)), np.empty((0, Q))
    nothing = Moments.from_rows(*no_rows, SOURCE, TARGET)
    for moments in (nothing, Moments.from_chunks([no_rows, no_rows], SOURCE, TARGET)):
        assert moments.n == 0
        assert all(not array.any() for array in arrays(moments))
    x, y = rows(1, 5.0)
    one = nothing + Moments.from_rows(x, y, SOURCE, TARGET)
    assert one.n == 1
    np.testing.assert_array_equal(one.mean_x, x[0])
    assert not one.sxx.any()
    assert (nothing + nothing).n == 0


def test_reversed_equals_the_moments_of_swapped_sides():
    x, y = rows(50, 1.0)
    back = Moments.from_rows(x, y, SOURCE, TARGET).reversed()
    assert (back.source, back.target) == (TARGET, SOURCE)
    assert_close(back, arrays(Moments.from_rows(y, x, TARGET, SOURCE)), 1e-13)


def test_squared_error_equals_the_direct_sum():
    x, y = rows(200, 3.0)
    rng = np.random.default_rng(1)
    weight, intercept = rng.normal(size=(P, Q)), rng.normal(size=Q)
    expected = np.square(x.astype(np.float64) @ weight + intercept - y).sum()
    assert Moments.from_rows(x, y, SOURCE, TARGET).squared_error(weight, intercept) == pytest.approx(expected, rel=1e-12)


def test_folds_leave_one_part_out():
    x, y = rows(90, 1.0)
    parts = tuple(Moments.from_rows(x[i::3], y[i::3], SOURCE, TARGET) for i in range(3))
    folds = FoldMoments(parts, ())
    assert folds.total().n == 90
    assert_close(folds.total(), direct(x, y), 1e-12)
    kept = np.arange(90) % 3 != 1
    assert folds.without(1).n == 60
    assert_close(folds.without(1), direct(x[kept], y[kept]), 1e-12)


def test_a_memory_map_is_read_as_it_is(tmp_path):
    x, y = rows(100)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert_close(Moments.from_rows(mapped, y, SOURCE, TARGET), direct(x, y), 1e-13)


@pytest.mark.parametrize(
    ("x_shape", "y_shape", "error", "message"),
    [
        ((4, P + 1), (4, Q), SpaceMismatchError, "x expects 5-dimensional vectors. Got 6"),
        ((4, P), (4, Q - 1), SpaceMismatchError, "y expects 7-dimensional vectors. Got 6"),
        ((4, P), (3, Q), BadVectorsError, "as many rows. Got 4 and 3"),
        ((P,), (1, Q), BadVectorsError, r"shape \(n, dim\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused(x_shape, y_shape, error, message):
    with pytest.raises(error, match=message):
        Moments.from_rows(np.zeros(x_shape), np.zeros(y_shape), SOURCE, TARGET)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused(value):
    x, y = rows(20)
    y[7, 2] = value
    with pytest.raises(BadVectorsError, match="NaN or infinite"):
        Moments.from_rows(x, y, SOURCE, TARGET)


def test_moments_of_different_spaces_do_not_merge():
    x, y = rows(20)
    one = Moments.from_rows(x, y, SOURCE, TARGET)
    with pytest.raises(SpaceMismatchError, match="'other'"):
        one + Moments.from_rows(x, y, SOURCE, Space("other", Q))


def test_a_device_that_is_not_there():
    with pytest.raises(DeviceError, match="cuda:99"):
        Moments.from_rows(*rows(3), SOURCE, TARGET, device="cuda:99")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_and_cpu_agree():
    x, y = rows(20_000, 10.0)
    moments = Moments.from_rows(x, y, SOURCE, TARGET, device="cuda")
    assert_close(moments, arrays(Moments.from_rows(x, y, SOURCE, TARGET, device="cpu")), 1e-12)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "some.moments.safetensors"
    moments = Moments.from_rows(*rows(50, 1.0), Space("source", P, "l2"), Space("target", Q, "dot", True))
    moments.save(path)
    return moments, path


def test_saved_moments_come_back_to_the_bit(saved, tmp_path):
    moments, path = saved
    loaded = Moments.load(path)
    assert (loaded.n, loaded.source, loaded.target) == (moments.n, moments.source, moments.target)
    for mine, theirs in zip(arrays(loaded), arrays(moments), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    loaded.reversed().save(tmp_path / "reversed.safetensors")  # its sxy is a transposed view
    np.testing.assert_array_equal(Moments.load(tmp_path / "reversed.safetensors").sxy, moments.sxy.T)


def test_an_output_that_exists_is_kept(saved):
    moments, path = saved
    before = path.read_bytes()
    with pytest.raises(OutputExistsError):
        moments.save(path)
    assert path.read_bytes() == before
    moments.save(path, overwrite=True)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved, keep):
    _, path = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableFileError, match="cannot be read as moments"):
        Moments.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "embridge.map.1"},
        {"n": "many"},
        {"source": "{}"},
        {"target": json.dumps(Space("target", Q + 1).to_dict())},
        {"source": json.dumps(SOURCE.to_dict() | {"metric": "taxicab"})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_foreign_or_altered_file_is_refused(saved, change):
    moments, path = saved
    spaces = {side: json.dumps(getattr(moments, side).to_dict()) for side in ("source", "target")}
    metadata = {"format": "embridge.moments.1", "n": "50", **spaces}
    tensors = {name: getattr(moments, name) for name in ARRAYS}
    write_tensors(path, tensors, metadata, overwrite=True)
    assert Moments.load(path).n == 50
    write_tensors(path, tensors, metadata | change, overwrite=True)
    with pytest.raises(UnreadableFileError, match="moments"):
        Moments.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.safetensors"):
        Moments.load(tmp_path / "nowhere.safetensors")
