"""The parts of a conversion: the schedule, row groups of a source, reading ahead, and the order of it all."""

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

import embridge as eb
from embridge.conversion.engine import Engine, TranslateOptions
from embridge.conversion.pipeline import Group, readahead, row_groups, translate_groups
from embridge.conversion.schedule import schedule
from embridge.errors import BadIdsError, BadVectorsError
from embridge.types import Metric, Space

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
    assert sizes["cuda_bytes"] or held.chunk_rows <= 1024


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


def test_read_ahead_is_bounded():
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


class Slow(Engine):
    """An engine whose products take as long as their rows say; vectors are copied."""

    def __init__(self, fails=(), metric="cosine"):
        spaces = Space("old", 2, metric), Space("new", 2, metric)
        options = TranslateOptions(validate=False, name="here")
        super().__init__(eb.LinearMap(np.eye(2), np.zeros(2), *spaces), torch.device("cpu"), 3, options)
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


def translate(groups, engines, buffers, write):
    translate_groups(groups, engines, [np.empty((3, 2), np.float32) for _ in range(buffers)], write)


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
    ("found", "metric", "message"),
    [
        (([1], []), "cosine", "a translation of length zero, which has no direction under cosine: ids 4"),
        (([1], []), "l2", None),
        (([], [0, 2]), "l2", "2 rows with a translation beyond the range of float32: ids 3, 5"),
    ],
)
def test_rows_that_cannot_be_written_are_reported_by_id(found, metric, message):
    class Finding(Slow):
        def run(self, pieces, out, errors=None):
            super().run(pieces, out)
            return tuple(np.array(rows if self.ran[-1] == 1 else [], np.int64) for rows in found)

    written = []
    expected = pytest.raises(BadVectorsError, match=f"here has .*{message}") if message else contextlib.nullcontext()
    with expected:
        translate(groups_of([0, 0, 0]), [Finding(metric=metric)], 1, lambda group, _: written.append(group.read))
    assert written == ([3] if message else [3, 6, 9])
