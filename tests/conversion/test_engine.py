"""The engine of a conversion: the same values whatever the pieces, precision, memory, CUDA."""

import collections

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import embridge as eb
from embridge.conversion.engine import Engine, TranslateOptions, chunks
from embridge.device import Product, as_tensor
from embridge.types import Metric, Space

CPU = torch.device("cpu")
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
cuda = pytest.param("cuda", marks=gpu)


def cut(array, data):
    """The rows of an array in pieces, some of them empty."""
    places = sorted(data.draw(st.lists(st.integers(0, len(array)), max_size=8)))
    return np.split(array, places)


def map_of(p=6, q=9, seed=0, scale=1.0, metric=Metric.COSINE, normalized=False):
    rng = np.random.default_rng(seed)
    coef, intercept = scale * rng.normal(size=(q, p)), scale * rng.normal(size=q)
    return eb.LinearMap(coef, intercept, Space("old", p), Space("new", q, metric, normalized))


# The engine


@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_chunks_begin_at_multiples_whatever_the_pieces(rows, size, data):
    found = list(chunks(cut(np.arange(rows)[:, None], data), size))
    assert [start for start, _ in found] == list(range(0, rows, size))
    for start, parts in found:
        assert np.concatenate(parts)[:, 0].tolist() == list(range(start, min(start + size, rows)))
        assert all(len(part) for part in parts)


def run(engine, pieces, dtype=np.float32):
    out = np.full((sum(map(len, pieces)), engine.translation.target.dim), 7, dtype)
    return out, *engine.run(pieces, out)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@given(data=st.data())
def test_the_same_bits_whatever_the_pieces(dtype, data):
    x = np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32)
    engine = Engine(map_of(), CPU, 16)
    whole, *_ = run(engine, [x], dtype)
    pieces, *_ = run(engine, cut(x, data), dtype)
    assert pieces.tobytes() == whole.tobytes()


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("normalized", [False, True])
def test_an_engine_does_what_a_map_does(stored, dtype, normalized):
    x = np.random.default_rng(1).normal(size=(1000, 6)).astype(stored)
    translation = map_of(normalized=normalized)
    found, zero, not_finite = run(Engine(translation, CPU, 64), [x[:100], x[100:]], dtype)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, translation.apply(x), atol=1e-5 if dtype == np.float32 else 5e-3)
    assert not len(zero)
    assert not len(not_finite)


def test_pieces_of_several_types_make_one_chunk():
    """Files of a folder may store their vectors differently."""
    x = np.random.default_rng(1).normal(size=(90, 6)).astype(np.float16)
    translation = map_of()
    found, *_ = run(Engine(translation, CPU, 64), [x[:30], x[30:60].astype(np.float32), x[60:].astype(np.float64)])
    np.testing.assert_allclose(found, translation.apply(x), atol=1e-5)


class Seen(TorchDispatchMode):
    """Notes the types of all tensors that operations of torch make."""

    def __init__(self):
        super().__init__()
        self.dtypes = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.dtypes[tensor.dtype] += 1
        return out


@pytest.mark.parametrize(("stored", "wide"), [(np.float16, False), (np.float32, False), (np.float64, True)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_no_float64_where_none_came_in(stored, wide, dtype):
    x = np.random.default_rng(1).normal(size=(100, 6)).astype(stored)
    engine = Engine(map_of(normalized=True), CPU, 64)
    with Seen() as seen:
        run(engine, [x[:50], x[50:]], dtype)
    assert seen.dtypes[torch.float32]
    assert (torch.float64 in seen.dtypes) == wide


def test_memory_is_shared_with_torch_in_both_directions():
    """What Arrow decoded is read where it lies, also where Arrow says that it must not be written."""
    array = pa.array(np.ones(12, np.float32)).to_numpy().reshape(4, 3)
    assert not array.flags.writeable
    tensor = as_tensor(array)
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor.dtype == torch.float32
    out = np.empty((2, 3), np.float16)
    as_tensor(out).fill_(3)
    assert (out == 3).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_out_of_memory_halves_the_chunk_for_good(monkeypatch, dtype):
    x = np.random.default_rng(1).normal(size=(100, 6)).astype(np.float32)
    translation, sizes = map_of(), []
    product = Product.__call__

    def small(self, rows):
        sizes.append(len(rows))
        if len(rows) > 10:
            raise torch.OutOfMemoryError("that was too much")
        return product(self, rows)

    engine, expected = Engine(translation, CPU, 64), translation.apply(x)
    monkeypatch.setattr(Product, "__call__", small)
    found, *_ = run(engine, [x[:33], x[33:]], dtype)
    np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == np.float32 else 5e-3)
    assert (engine.chunk_rows, sizes[:4]) == (8, [64, 32, 16, 8])
    sizes.clear()
    run(engine, [x], dtype)
    assert max(sizes) == 8


def test_out_of_memory_for_a_single_row_is_reported(monkeypatch):
    def none(*args, **kwargs):
        raise torch.OutOfMemoryError("nothing left")

    engine = Engine(map_of(), CPU, 8)
    monkeypatch.setattr(Product, "__call__", none)
    with pytest.raises(torch.OutOfMemoryError, match="nothing left"):
        run(engine, [np.ones((20, 6), np.float32)])
    assert engine.chunk_rows == 1


@pytest.mark.parametrize(
    ("precision", "coarser", "finer"),
    [("float32", 1e-6, 0), pytest.param("tf32", 2e-3, 0, id="tf32"), ("bfloat16", 2e-2, 1e-4)],
)
@pytest.mark.parametrize("device", ["cpu", cuda])
def test_precision_of_the_products(precision, coarser, finer, device):
    """bfloat16 has 8 bits: errors of 2^-9 a factor, averaged over 384 products. tf32 is CUDA's; elsewhere it is float32."""
    x = np.random.default_rng(1).normal(size=(500, 384)).astype(np.float32)
    translation = map_of(384, 64, scale=384**-0.5)
    exact = x.astype(np.float64) @ translation.coef.T.astype(np.float64) + translation.intercept
    found, *_ = run(Engine(translation, torch.device(device), 128, TranslateOptions(precision=precision)), [x])
    error = np.abs(found - exact).max() / np.linalg.norm(exact, axis=1).max()
    assert finer <= error < coarser


@pytest.mark.parametrize(
    ("vector", "dtype", "expected"),
    [
        ([1, 0], np.float32, None),
        ([0, 0], np.float32, "zero"),
        ([0, 0], np.float16, "zero"),
        ([1e-7, 0], np.float16, None),  # the least float16 is 6e-8
        ([2e-8, 0], np.float16, "zero"),
        ([2e-8, 0], np.float32, None),
        ([65504, 0], np.float16, None),
        ([65504, 65504], np.float16, None),
        ([65520, 0], np.float16, "not finite"),
        ([65520, 0], np.float32, None),
        ([1e20, 0], np.float32, "not finite"),  # its square is
        ([np.inf, 0], np.float32, "not finite"),
        ([np.nan, 0], np.float32, "not finite"),
        ([np.nan, 0], np.float16, "not finite"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", cuda])
def test_rows_that_cannot_be_written_are_found(vector, dtype, expected, device):
    identity = eb.LinearMap(np.eye(2), np.zeros(2), Space("old", 2, Metric.DOT), Space("new", 2, Metric.DOT))
    x = np.ones((10, 2), np.float32)
    x[7] = vector
    with np.errstate(over="ignore"):
        _, zero, not_finite = run(Engine(identity, torch.device(device), 4), [x], dtype)
    assert zero.tolist() == ([7] if expected == "zero" else [])
    assert not_finite.tolist() == ([7] if expected == "not finite" else [])


def test_a_row_of_length_zero_stays_so_under_unit_length():
    zero_map = eb.LinearMap(np.zeros((2, 2)), np.zeros(2), Space("old", 2), Space("new", 2, normalized=True))
    found, zero, not_finite = run(Engine(zero_map, CPU, 4), [np.ones((3, 2), np.float32)])
    assert not found.any()
    assert (zero.tolist(), not_finite.tolist()) == ([0, 1, 2], [])


# CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
class TestCuda:
    @pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_cuda_equals_cpu(self, stored, dtype):
        x = np.random.default_rng(1).normal(size=(5000, 384)).astype(stored)
        translation = map_of(384, 768, scale=384**-0.5)
        found, expected = (
            run(Engine(translation, torch.device(d), 512), np.split(x, [7, 2000]), dtype)[0] for d in ("cuda", "cpu")
        )
        np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == np.float32 else 2e-3)

    def test_pieces_of_several_types_make_one_chunk(self):
        x = np.random.default_rng(1).normal(size=(90, 6)).astype(np.float32) * 1e5  # beyond float16
        translation = map_of()
        found, *_ = run(Engine(translation, torch.device("cuda"), 64), [np.ones((30, 6), np.float16), x])
        np.testing.assert_allclose(found[30:], translation.apply(x), rtol=1e-5, atol=1)

    def test_pinned_buffers_are_made_once(self):
        x = np.random.default_rng(1).normal(size=(5000, 6)).astype(np.float32)
        engine = Engine(map_of(), torch.device("cuda"), 512)
        run(engine, [x])
        slots = list(engine._slots)
        pinned = [slot._ins[torch.float32][0] for slot in slots] + [slot._outs[torch.float32][0] for slot in slots]
        assert len(slots) == 2
        assert all(buffer.is_pinned() for buffer in pinned)
        run(engine, [x])
        assert engine._slots == slots
        assert [s._ins[torch.float32][0] for s in slots] + [s._outs[torch.float32][0] for s in slots] == pinned

    def test_out_of_memory_halves_the_chunk(self, monkeypatch):
        x = np.random.default_rng(1).normal(size=(1000, 6)).astype(np.float32)
        translation, product = map_of(), Product.__call__

        def small(self, rows):
            if len(rows) > 100:
                raise torch.OutOfMemoryError("that was too much")
            return product(self, rows)

        engine, expected = Engine(translation, torch.device("cuda"), 512), translation.apply(x)
        monkeypatch.setattr(Product, "__call__", small)
        found, *_ = run(engine, [x])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert engine.chunk_rows == 64

    def test_tf32_is_as_it_was_afterwards(self):
        before = torch.backends.cuda.matmul.allow_tf32
        run(Engine(map_of(), torch.device("cuda"), 64, TranslateOptions(precision="tf32")), [np.ones((100, 6), np.float32)])
        assert torch.backends.cuda.matmul.allow_tf32 == before
