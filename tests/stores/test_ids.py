import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embridge.errors import BadIdsError
from embridge.stores import MemoryCollection, ParquetCollection
from embridge.stores.ids import check_unique, count_repeated, hash_ids, match_rows
from embridge.types import Space


def stored(path, ids, space="m"):
    """A Parquet collection, which (unlike one in memory) may hold repeated and null ids."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2 * len(ids), np.float32)), 2)
    pq.write_table(pa.table({"id": ids, "vector": vectors}), path, row_group_size=50)
    return ParquetCollection(path, space=space)


def in_memory(ids, name="m"):
    return MemoryCollection(ids, np.ones((len(ids), 2), np.float32), Space(name, 2))


def as_kind(numbers, kind):
    return [f"é-{i}" for i in numbers] if kind == "string" else [int(i) for i in numbers]


@pytest.mark.parametrize("kind", ["string", "int64"])
@pytest.mark.parametrize(("n_source", "n_target"), [(300, 90), (90, 300), (200, 200)])
def test_match_rows_agrees_with_a_dictionary(kind, n_source, n_target):
    rng = np.random.default_rng(n_source)
    source = as_kind(rng.permutation(400)[:n_source], kind)
    target = as_kind(rng.permutation(400)[:n_target] - 50, kind)
    place = {i: row for row, i in enumerate(target)}
    expected = [(row, place[i]) for row, i in enumerate(source) if i in place]
    assert 10 < len(expected) < min(n_source, n_target)
    source_rows, target_rows = match_rows(in_memory(source), in_memory(target, "n"))
    assert source_rows.dtype == target_rows.dtype == np.int64
    assert list(zip(source_rows.tolist(), target_rows.tolist(), strict=True)) == expected


def test_match_rows_of_nothing_shared_is_empty():
    source_rows, target_rows = match_rows(in_memory([1, 2]), in_memory([3], "n"))
    assert source_rows.shape == target_rows.shape == (0,)
    assert source_rows.dtype == np.int64


def test_ids_are_compared_as_they_are():
    source_rows, _ = match_rows(in_memory(["a", "A", "a ", "é", "e\u0301", ""]), in_memory(["A", "é"], "n"))
    assert source_rows.tolist() == [1, 3]


def test_extreme_integers_match():
    ids = [-(2**63), 2**63 - 1, 0, -1]
    assert match_rows(in_memory(ids), in_memory(ids[::-1], "n"))[1].tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("is_small", [True, False])
@pytest.mark.parametrize("kind", ["string", "int64"])
def test_a_repeated_shared_id_is_refused_on_its_side(tmp_path, side, is_small, kind):
    repeated = stored(tmp_path / "repeated.parquet", as_kind([5, 1, 2, 5, 3, 1], kind))
    other = stored(tmp_path / "other.parquet", as_kind(range(100 if is_small else 4), kind), "n")
    pair = (repeated, other) if side == "source" else (other, repeated)
    with pytest.raises(BadIdsError, match=r"repeated.parquet' holds ids more than once: ") as e:
        match_rows(*pair)
    expected = as_kind([1, 5] if is_small else [1], kind)
    assert ", ".join(map(repr, expected)) + "." in str(e.value)


def test_repeated_ids_that_are_not_shared_do_no_harm(tmp_path):
    source = stored(tmp_path / "a.parquet", [5, 1, 5])
    assert [rows.tolist() for rows in match_rows(source, in_memory([1, 2], "n"))] == [[1], [0]]


def test_null_ids_match_nothing(tmp_path):
    source = stored(tmp_path / "a.parquet", pa.array([None, 1, None], pa.int64()))
    target = stored(tmp_path / "b.parquet", pa.array([None, None, 7, 1], pa.int64()), "n")
    assert [rows.tolist() for rows in match_rows(source, target)] == [[1], [3]]


def test_ids_of_two_types_cannot_be_matched():
    with pytest.raises(BadIdsError, match=r"Ids of the collection in memory are string, ids of .* are int64; .*Hint: cast one"):
        match_rows(in_memory(["1"]), in_memory([1], "n"))


@pytest.mark.parametrize("kind", ["string", "int64"])
def test_repeated_ids_are_counted(tmp_path, kind):
    ids = as_kind([*range(300), 7, 7, 250, 3], kind)
    collection = stored(tmp_path / "a.parquet", ids)
    count, examples = count_repeated(collection)
    assert count == 3
    assert sorted(examples) == sorted(as_kind([3, 7, 250], kind))
    with pytest.raises(BadIdsError, match=r"a.parquet' holds ids more than once: .*Hint: ids must be unique"):
        check_unique(collection)


def test_many_repeated_ids_are_counted_but_not_listed(tmp_path):
    count, examples = count_repeated(stored(tmp_path / "a.parquet", [*range(150), *range(150)]))
    assert (count, examples) == (150, list(range(100)))


def test_nulls_are_no_repetition(tmp_path):
    assert count_repeated(stored(tmp_path / "a.parquet", pa.array([None, None, 1], pa.int64()))) == (0, [])


def test_hashes_never_change():
    """Which rows are held out, and which a map was fitted on, is stored: these values are for ever."""
    assert hash_ids(np.array([0, 1, -5])).tolist() == [10288537681850712419, 776605022374018630, 468348153073059920]
    assert hash_ids(np.array(["é", ""], object), "split", 3).tolist() == [5766332272952789017, 1115271518864856339]
    for purpose, seed, i in (("", 0, "x"), ("split", 7, "y")):
        digest = hashlib.blake2b(i.encode(), digest_size=8, person=purpose.encode(), key=str(seed).encode()).digest()
        assert hash_ids(np.array([i], object), purpose, seed).tolist() == [int.from_bytes(digest, "little")]


def test_hashes_differ_by_purpose_and_seed():
    ids = np.arange(1000)
    hashes = [hash_ids(ids, purpose, seed) for purpose in ("split", "sample", "fold") for seed in (0, 1)]
    assert len(np.unique(np.concatenate(hashes))) == 6000
    assert all(h.dtype == np.uint64 and h.shape == (1000,) for h in hashes)


def test_hashes_are_spread_evenly():
    share = (hash_ids(np.arange(20_000), "split") < np.uint64(2**62)).mean()
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 20_000)


def test_an_integer_and_its_text_are_one_id():
    np.testing.assert_array_equal(hash_ids(np.array([7])), hash_ids(np.array(["7"], object)))


def test_hashes_of_nothing():
    assert hash_ids(np.array([], np.int64)).shape == (0,)
