"""The parts of a conversion: the schedule, the engine, row groups of a source, reading ahead, and the order of it all."""

import collections
import contextlib
import threading
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import embridge as eb
from embridge.conversion import engine as engine_module
from embridge.conversion.engine import Engine, as_tensor, chunks
from embridge.conversion.pipeline import Group, readahead, row_groups, translate_groups
from embridge.conversion.schedule import schedule
from embridge.errors import BadIdsError, BadVectorsError
from embridge.types import Metric, Space

CPU = torch.device("cpu")
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
cuda = pytest.param("cuda", marks=gpu)


def map_of(p=6, q=9, seed=0, scale=1.0, metric=Metric.COSINE, normalized=False):
    rng = np.random.default_rng(seed)
    coef, intercept = scale * rng.normal(size=(q, p)), scale * rng.normal(size=q)
    return eb.LinearMap(coef, intercept, Space("old", p), Space("new", q, metric, normalized))


# The schedule

SIZES = {
    "free_bytes": st.integers(0, 1 << 40),
    "group_rows": st.integers(1, 1 << 24),
    "dim_source": st.integers(1, 1 << 14),
    "dim_target": st.integers(1, 1 << 14),
    "itemsize": st.sampled_from([2, 4]),
    "devices": st.integers(1, 8),
    "cuda_bytes": st.sampled_from([0, 1 << 20, 8 << 30, 80 << 30]),
}
BUDGET = 256 << 20


@given(**SIZES)
def test_a_schedule_is_within_its_bounds(**sizes):
    held = schedule(**sizes)
    assert held == schedule(**sizes)
    group_rows, least = sizes["group_rows"], min(256, sizes["group_rows"])
    assert least <= held.batch_rows <= group_rows
    assert 1 <= held.buffers <= sizes["devices"] + 1
    assert 256 <= held.chunk_rows <= max(256, group_rows)
    assert sizes["cuda_bytes"] or held.chunk_rows <= 2048


@given(**SIZES)
def test_buffers_are_within_the_budget_but_for_the_one_that_it_takes(**sizes):
    held, budget = schedule(**sizes), min(BUDGET, sizes["free_bytes"] // 4)
    assert held.buffers == 1 or held.buffers * sizes["group_rows"] * sizes["dim_target"] * sizes["itemsize"] <= budget
    if held.batch_rows > 256:  # a batch, which Arrow holds twice as it decodes it, in float32
        assert 2 * held.batch_rows * sizes["dim_source"] * 4 <= budget // 4
    if sizes["cuda_bytes"] and held.chunk_rows > 256:  # two slots
        assert 2 * held.chunk_rows * 4 * (sizes["dim_source"] + sizes["dim_target"]) <= sizes["cuda_bytes"]


@given(more=st.integers(0, 1 << 40), **SIZES)
def test_more_memory_is_never_less_work(more, **sizes):
    one, other = schedule(**sizes), schedule(**{**sizes, "free_bytes": sizes["free_bytes"] + more})
    assert one.batch_rows <= other.batch_rows
    assert one.buffers <= other.buffers
    assert one.chunk_rows == other.chunk_rows
    if sizes["cuda_bytes"]:
        assert one.chunk_rows <= schedule(**{**sizes, "cuda_bytes": sizes["cuda_bytes"] + more}).chunk_rows


# The engine


def cut(array, data):
    """The rows of an array in pieces, some of them empty."""
    places = sorted(data.draw(st.lists(st.integers(0, len(array)), max_size=8)))
    return np.split(array, places)


@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_chunks_begin_at_multiples_whatever_the_pieces(rows, size, data):
    found = list(chunks(cut(np.arange(rows)[:, None], data), size))
    assert [start for start, _ in found] == list(range(0, rows, size))
    for start, parts in found:
        assert np.concatenate(parts)[:, 0].tolist() == list(range(start, min(start + size, rows)))
        assert all(len(part) for part in parts)


def run(engine, pieces, dtype=np.float32):
    out = np.full((sum(map(len, pieces)), len(engine._intercept)), 7, dtype)
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
    translation, tried = map_of(), []
    product = torch.addmm

    def small(bias, rows, weight, out):
        tried.append(len(rows))
        if len(rows) > 10:
            raise torch.OutOfMemoryError("that was too much")
        return product(bias, rows, weight, out=out)

    engine = Engine(translation, CPU, 64)
    monkeypatch.setattr(engine_module.torch, "addmm", small)
    found, *_ = run(engine, [x[:33], x[33:]], dtype)
    np.testing.assert_allclose(found, translation.apply(x), atol=1e-5 if dtype == np.float32 else 5e-3)
    assert (engine.chunk_rows, tried[:4]) == (8, [64, 32, 16, 8])
    tried.clear()
    run(engine, [x], dtype)
    assert max(tried) == 8


def test_out_of_memory_for_a_single_row_is_told(monkeypatch):
    def none(*args, **kwargs):
        raise torch.OutOfMemoryError("nothing left")

    engine = Engine(map_of(), CPU, 8)
    monkeypatch.setattr(engine_module.torch, "addmm", none)
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
    found, *_ = run(Engine(translation, torch.device(device), 128, precision=precision), [x])
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
        translation, product = map_of(), torch.addmm

        def small(bias, rows, weight, out):
            if len(rows) > 100:
                raise torch.OutOfMemoryError("that was too much")
            return product(bias, rows, weight, out=out)

        engine = Engine(translation, torch.device("cuda"), 512)
        monkeypatch.setattr(engine_module.torch, "addmm", small)
        found, *_ = run(engine, [x])
        np.testing.assert_allclose(found, translation.apply(x), atol=1e-5)
        assert engine.chunk_rows == 64

    def test_tf32_is_as_it_was_afterwards(self):
        before = torch.backends.cuda.matmul.allow_tf32
        run(Engine(map_of(), torch.device("cuda"), 64, precision="tf32"), [np.ones((100, 6), np.float32)])
        assert torch.backends.cuda.matmul.allow_tf32 == before


# Row groups of a source


def source_of(vectors, metric=Metric.COSINE):
    n = len(vectors)
    return eb.MemoryCollection([f"d{i}" for i in range(n)], vectors, Space("old", 2, metric), {"n": list(range(n))})


def plain(group):
    """What a group says, without how its rows came."""
    ids = [i for part in group.parts for i in part.ids.to_pylist()]
    numbers = [i for part in group.parts for i in part.payload.column("n").to_pylist()]
    vectors = [part.vectors for part in group.parts]
    assert group.rows == len(ids) == sum(map(len, vectors))
    return ids, numbers, np.concatenate([np.empty((0, 2), np.float32), *vectors]).tolist(), group.read, group.bad


KINDS = st.lists(st.sampled_from(["good"] * 4 + ["nan", "zero"]), min_size=1, max_size=60)


def vectors_of(kinds):
    x = np.random.default_rng(len(kinds)).normal(size=(len(kinds), 2)).astype(np.float32)
    x[[k == "nan" for k in kinds], 1] = np.nan
    x[[k == "zero" for k in kinds]] = 0
    return x


REASONS = {"nan": "no vector, or NaN or infinite values", "zero": "zero vector"}


@given(KINDS, st.integers(1, 20), st.integers(1, 70))
def test_groups_depend_on_the_rows_alone(kinds, group_rows, batch_rows):
    source = source_of(vectors_of(kinds))
    found = [plain(g) for g in row_groups(source, group_rows, batch_rows, on_bad="skip")]
    good = [i for i, kind in enumerate(kinds) if kind == "good"]
    cut = [good[i : i + group_rows] for i in range(0, len(good), group_rows)]
    assert [numbers for _, numbers, *_ in found if numbers] == cut
    assert [i for ids, *_ in found for i in ids] == [f"d{i}" for i in good]
    assert [b for *_, bad in found for b in bad] == [(i, f"d{i}", REASONS[kind]) for i, kind in enumerate(kinds) if kind != "good"]
    reads = [read for *_, read, _ in found]
    assert reads == sorted(reads)
    assert reads[-1] == len(kinds)
    assert [b for *_, read, bad in found for b in bad if b[0] >= read] == []
    assert all(len(numbers) == group_rows for _, numbers, *_ in found[:-2])
    assert found == [plain(g) for g in row_groups(source, group_rows, len(kinds), on_bad="skip")]


@given(KINDS, st.integers(1, 20), st.integers(1, 70), st.data())
def test_groups_go_on_from_any_of_them(kinds, group_rows, batch_rows, data):
    """From where a group ends the others are the same, bad rows and all."""
    source = source_of(vectors_of(kinds))
    whole = [plain(g) for g in row_groups(source, group_rows, 7, on_bad="skip")]
    done = data.draw(st.integers(0, len(whole)))
    start = whole[done - 1][3] if done else 0
    assert [plain(g) for g in row_groups(source, group_rows, batch_rows, start=start, on_bad="skip")] == whole[done:]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 70))
def test_without_bad_rows_stop_and_skip_are_the_same(rows, group_rows, batch_rows):
    source = source_of(vectors_of(["good"] * rows))
    one, other = ([plain(g) for g in row_groups(source, group_rows, batch_rows, on_bad=on_bad)] for on_bad in ("stop", "skip"))
    assert one == other
    assert [read for *_, read, _ in one] == [*range(group_rows, rows, group_rows), rows]


def test_bad_rows_stop_where_they_are_not_to_be_skipped():
    source = source_of(vectors_of(["good"] * 10 + ["nan"] + ["good"] * 10))
    groups = row_groups(source, 4, 4)
    assert [next(groups).read, next(groups).read] == [4, 8]
    with pytest.raises(BadVectorsError, match="ids 'd10'"):
        next(groups)
    assert [g.read for g in row_groups(source, 4, 4, start=12)] == [16, 20, 21]


def test_a_zero_vector_is_bad_under_cosine_only():
    kinds = ["good", "zero", "good"]
    for metric, left in ((Metric.COSINE, [0, 2]), (Metric.DOT, [0, 1, 2]), (Metric.L2, [0, 1, 2])):
        (group,) = row_groups(source_of(vectors_of(kinds), metric), 4, 4, on_bad="skip")
        assert plain(group)[1] == left


class Nameless(eb.MemoryCollection):
    """Rows without an id, as a file may have them."""

    def _read(self, *args, **kwargs):
        for batch in super()._read(*args, **kwargs):
            ids = [None if i in ("d1", "d3") else i for i in batch.ids.to_pylist()]
            yield type(batch)(batch.start, pa.array(ids, pa.string()), batch.vectors, batch.payload)


def test_rows_without_an_id_are_bad():
    source = Nameless(
        [f"d{i}" for i in range(5)], vectors_of(["good", "good", "good", "zero", "good"]), Space("old", 2), {"n": range(5)}
    )
    with pytest.raises(BadIdsError, match="2 rows without an id"):
        list(row_groups(source, 4, 8))
    (group,) = row_groups(source, 4, 8, on_bad="skip")
    assert plain(group)[1] == [0, 2, 4]
    assert group.bad == [(1, None, "no id"), (3, None, "no id")]


# Reading ahead


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("embridge")]


@given(st.lists(st.integers(), max_size=30), st.integers(1, 4))
def test_what_is_read_ahead_comes_in_order(items, depth):
    assert list(readahead(iter(items), depth)) == items
    assert threads() == []


def test_an_error_comes_after_what_was_read_before_it():
    def items():
        yield 1
        yield 2
        raise LookupError("the third")

    ahead = readahead(items())
    assert (next(ahead), next(ahead)) == (1, 2)
    with pytest.raises(LookupError, match="the third"):
        next(ahead)
    assert threads() == []


def test_no_more_is_read_ahead_than_is_asked_for():
    read = []

    def items():
        for i in range(100):
            read.append(i)
            yield i

    ahead = readahead(items(), 2)
    assert next(ahead) == 0
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        assert len(read) <= 5  # one taken, two that wait, one in the hand
        time.sleep(0.01)
    assert len(read) >= 3
    ahead.close()
    assert threads() == []


def test_the_thread_ends_with_its_reader():
    """Whether the reader stops, fails, or never began."""
    with contextlib.closing(readahead(iter(range(100)))) as ahead:
        for item in ahead:
            if item == 3:
                break
        assert len(threads()) == 1
    assert threads() == []
    readahead(iter(range(3))).close()
    assert threads() == []


# All together


class Slow:
    """An engine whose products take as long as their rows say; vectors are copied."""

    predicts_errors = False

    def __init__(self, fails=()):
        self.ran, self._fails = [], fails

    def run(self, pieces, out, errors=None):
        rows = np.concatenate(pieces)
        time.sleep(float(rows[0, 1]))
        self.ran.append(int(rows[0, 0]))
        if self.ran[-1] in self._fails:
            raise ArithmeticError(f"group {self.ran[-1]}")
        out[:] = rows
        return np.empty(0, np.int64), np.empty(0, np.int64)


def groups_of(delays):
    for number, delay in enumerate(delays):
        vectors = np.float32([[number, delay]] * 3)
        yield Group(
            [SimpleNamespace(vectors=vectors, ids=pa.array([3 * number, 3 * number + 1, 3 * number + 2]))], 3, 3 * number + 3
        )


def translate(groups, engines, buffers, write, zero_is_bad=True):
    arrays = [np.empty((3, 2), np.float32) for _ in range(buffers)]
    translate_groups(groups, engines, arrays, write, "here", zero_is_bad=zero_is_bad)


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("buffers", [1, 2, 4])
def test_groups_are_written_in_order(engines, buffers):
    """However long each takes, and on whichever device."""
    delays, written, used = [0.02, 0, 0.01, 0, 0, 0.015, 0, 0.005], [], [Slow() for _ in range(engines)]

    def write(group, vectors):
        assert (vectors == group.parts[0].vectors).all()
        written.append(group.read)

    translate(groups_of(delays), used, buffers, write)
    assert written == [3 * i + 3 for i in range(len(delays))]
    assert sorted(i for engine in used for i in engine.ran) == list(range(len(delays)))
    if engines > 1 and buffers > 1:
        assert sum(1 for engine in used if engine.ran) > 1
    assert threads() == []


def test_a_group_is_translated_while_the_one_before_is_written():
    engine, seen = Slow(), []

    def write(group, vectors):
        end = time.monotonic() + 5
        while len(engine.ran) < min(len(seen) + 2, 4) and time.monotonic() < end:
            time.sleep(0.001)
        seen.append(len(engine.ran))

    translate(groups_of([0] * 4), [engine], 2, write)
    assert seen == [2, 3, 4, 4]


@pytest.mark.parametrize("engines", [1, 2])
@pytest.mark.parametrize("buffers", [1, 3])
def test_an_error_in_a_group_ends_with_the_one_before(engines, buffers):
    written, used = [], [Slow(fails=[3]) for _ in range(engines)]
    with pytest.raises(ArithmeticError, match="group 3"):
        translate(groups_of([0.01, 0, 0.01, 0, 0.01, 0, 0, 0, 0, 0]), used, buffers, lambda group, _: written.append(group.read))
    assert written == [3, 6, 9]
    assert max(i for engine in used for i in engine.ran) < 3 + buffers + engines
    assert threads() == []


def test_an_error_cancels_what_has_not_begun():
    engine = Slow(fails=[1])
    with pytest.raises(ArithmeticError, match="group 1"):
        translate(groups_of([0.1, 0, 0.2, 0, 0, 0]), [engine], 5, lambda group, _: None)
    assert engine.ran == [0, 1, 2]  # the last had begun


@pytest.mark.parametrize("error", [OSError("the disk"), KeyboardInterrupt()])
def test_an_error_in_writing_ends_it(error):
    written = []

    def write(group, _):
        if len(written) == 2:
            raise error
        written.append(group.read)

    with pytest.raises(type(error)):
        translate(groups_of([0.005] * 10), [Slow(), Slow()], 3, write)
    assert written == [3, 6]
    assert threads() == []


def test_an_error_in_reading_ends_it():
    def broken():
        yield from groups_of([0, 0])
        raise UnicodeError("the source")

    written = []
    with pytest.raises(UnicodeError, match="the source"):
        translate(broken(), [Slow()], 2, lambda group, _: written.append(group.read))
    assert written in ([], [3], [3, 6])
    assert threads() == []


@pytest.mark.parametrize(
    ("found", "zero_is_bad", "message"),
    [
        (([1], []), True, "a translation of length zero, which has no direction under cosine: ids 4"),
        (([1], []), False, None),
        (([], [0, 2]), False, "2 rows with a translation beyond the range of float32: ids 3, 5"),
    ],
)
def test_rows_that_cannot_be_written_are_told_by_their_ids(found, zero_is_bad, message):
    class Finding(Slow):
        def run(self, pieces, out, errors=None):
            super().run(pieces, out)
            return tuple(np.array(rows if self.ran[-1] == 1 else [], np.int64) for rows in found)

    written = []
    told = pytest.raises(BadVectorsError, match=f"here has .*{message}") if message else contextlib.nullcontext()
    with told:
        translate(groups_of([0, 0, 0]), [Finding()], 1, lambda group, _: written.append(group.read), zero_is_bad=zero_is_bad)
    assert written == ([3] if message else [3, 6, 9])
