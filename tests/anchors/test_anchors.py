import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embridge.anchors import Anchors, match, sample_rows
from embridge.anchors.moments import Moments
from embridge.errors import BadIdsError, BadVectorsError, NoSharedIdsError, ParameterError, SpaceMismatchError, TooFewAnchorsError
from embridge.records import AnchorRecord
from embridge.stores import MemoryCollection, ParquetCollection
from embridge.stores.ids import hash_ids
from embridge.testing.translators import planted_anchors
from embridge.types import Metric, Space

OLD, NEW = Space("old", 6), Space("new", 8)


def as_kind(numbers, kind):
    return [f"d{i}" for i in numbers] if kind == "string" else [int(i) for i in numbers]


def store(kind, path, ids, vectors, space):
    if kind == "memory":
        return MemoryCollection(ids, vectors, space)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(pa.table({"id": ids, "vector": column}), path, row_group_size=17)
    return ParquetCollection(path, space=space.name)


@pytest.fixture
def some(planted):
    """Anchors of planted rows, made without `match`."""

    def some(n=400, seed=0, first=0, p=6, q=8):
        _, x, y, _ = planted(n, p, q, noise=0.1, seed=seed)
        return Anchors(np.arange(first, first + n), x, y, Space("old", p), Space("new", q), AnchorRecord("s", "t", n, n, 0, 0.0, 0))

    return some


@pytest.fixture(params=[False, True], ids=["in memory", "mapped"])
def mapped(request, monkeypatch):
    """Whether arrays of anchors lie in a temporary file, as those over 1 GiB do."""
    if request.param:
        monkeypatch.setattr("embridge.anchors.matching._IN_MEMORY", 100)
    return request.param


def same(one, other):
    return one.ids.tolist() == other.ids.tolist() and np.array_equal(one.x, other.x) and np.array_equal(one.y, other.y)


# Matching.


@pytest.mark.parametrize("kind", ["string", "int64"])
@pytest.mark.parametrize("kept", ["memory", "parquet"])
@pytest.mark.parametrize(("n_source", "n_target"), [(150, 40), (40, 150)])
def test_match_pairs_rows_by_id_in_any_order(tmp_path, planted, mapped, kind, kept, n_source, n_target):
    ids, x, y, _ = planted(200, 6, 8, seed=1)
    rng = np.random.default_rng(2)
    rows_s, rows_t = rng.permutation(200)[:n_source], rng.permutation(200)[:n_target]
    source = store(kept, tmp_path / "s.parquet", as_kind(ids[rows_s], kind), x[rows_s], OLD)
    target = store(kept, tmp_path / "t.parquet", as_kind(ids[rows_t], kind), y[rows_t], NEW)
    found = match(source, target)
    expected = [row for row in rows_s if row in set(rows_t.tolist())]  # in the order of the source
    assert 10 < len(expected) < 40
    assert found.ids.tolist() == as_kind(ids[expected], kind)
    assert found.ids.dtype == (object if kind == "string" else np.int64)
    np.testing.assert_array_equal(found.x, x[expected])
    np.testing.assert_array_equal(found.y, y[expected])
    assert found.x.dtype == found.y.dtype == np.float32
    assert isinstance(found.x, np.memmap) == isinstance(found.y, np.memmap) == mapped
    assert (found.source.name, found.target.name) == ("old", "new")
    n = len(expected)
    assert found.record == AnchorRecord(source.fingerprint(), target.fingerprint(), n, n, 0, 0.0, 0)
    assert repr(found) == f"Anchors({n} rows, 'old' (6) -> 'new' (8))"


def test_match_with_sides_swapped_is_the_reverse(planted):
    ids, x, y, _ = planted(50)
    source, target = MemoryCollection(ids, x, OLD), MemoryCollection(ids[::-1], y[::-1], NEW)
    there, back = match(source, target), match(target, source).reversed()
    order = np.argsort(back.ids), np.argsort(there.ids)
    assert same(back.at(order[0]), there.at(order[1]))
    assert (back.source, back.target) == (there.source, there.target)
    assert (back.record.source, back.record.target) == (there.record.source, there.record.target)


def test_without_a_shared_id_both_sides_are_shown(planted):
    _, x, y, _ = planted(5)
    with pytest.raises(NoSharedIdsError, match=r"share no id\. First ids: 'a', 'b' and 'c', 'd'\."):
        match(MemoryCollection(["a", "b", "x"], x[:3], OLD), MemoryCollection(["c", "d", "y"], y[:3], NEW))


def test_ids_of_two_types_are_refused(planted):
    _, x, y, _ = planted(5)
    with pytest.raises(BadIdsError, match=r"are int64, ids of .* are string; they cannot be matched"):
        match(MemoryCollection([1], x[:1], OLD), MemoryCollection(["1"], y[:1], NEW))


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_shared_id_must_not_be_repeated(tmp_path, planted, side):
    _, x, y, _ = planted(5)
    ids = {"source": [1, 2, 3], "target": [1, 2, 3]} | {side: [1, 2, 2]}
    source = store("parquet", tmp_path / "source.parquet", ids["source"], x[:3], OLD)
    target = store("parquet", tmp_path / "target.parquet", ids["target"], y[:3], NEW)
    with pytest.raises(BadIdsError, match=rf"{side}.parquet' holds ids more than once: 2\. Hint"):
        match(source, target)


def test_one_space_on_both_sides_is_refused(planted):
    ids, x, _, _ = planted(5)
    with pytest.raises(SpaceMismatchError, match="Source and target are both of space 'old'; there is nothing to translate"):
        match(MemoryCollection(ids, x, OLD), MemoryCollection(ids, x, Space("old", 6, Metric.DOT)))


@pytest.mark.parametrize("kept", ["memory", "parquet"])
def test_only_shared_rows_must_be_usable(tmp_path, planted, kept):
    _, x, y, _ = planted(5)
    x[0], x[3], y[4] = np.nan, 0, np.inf
    target = MemoryCollection([11, 12, 99, 98, 97], y, NEW)
    assert match(store(kept, tmp_path / "s.parquet", [10, 11, 12, 13, 14], x, OLD), target).ids.tolist() == [11, 12]
    with pytest.raises(
        BadVectorsError, match="has 1 row with NaN or infinite values, or without a vector of the right width: ids 11"
    ):
        match(store(kept, tmp_path / "s.parquet", [11, 10, 12, 13, 14], x, OLD), target)
    with pytest.raises(BadVectorsError, match=r"has 1 row with a zero vector.*: ids 12"):
        match(store(kept, tmp_path / "s.parquet", [10, 11, 14, 12, 13], x, OLD), target)
    with pytest.raises(
        BadVectorsError, match="has 1 row with NaN or infinite values, or without a vector of the right width: ids 97"
    ):
        match(store(kept, tmp_path / "s.parquet", [10, 11, 14, 13, 97], x, OLD), target)


# Splitting.


@pytest.mark.parametrize("test_size", [0, 0.2, 0.5, 0.99])
def test_a_split_is_a_partition(some, mapped, test_size):
    anchors = some(1000)
    train, held_out = anchors.split(test_size, seed=3)
    assert sorted([*train.ids, *held_out.ids]) == anchors.ids.tolist()
    for part in (train, held_out):
        assert (np.diff(part.ids) > 0).all()  # in the order they had
        np.testing.assert_array_equal(part.x, anchors.x[part.ids])
        np.testing.assert_array_equal(part.y, anchors.y[part.ids])
        assert part.record == AnchorRecord("s", "t", 1000, len(train), len(held_out), test_size, 3)
    assert abs(len(held_out) - 1000 * test_size) <= 5 * np.sqrt(1000 * test_size * (1 - test_size))


def test_a_row_stays_on_its_side_when_the_data_grow(some):
    train, held_out = some(200, first=100).split(0.3, seed=1)
    more_train, more_held_out = some(500).split(0.3, seed=1)
    assert set(train.ids) <= set(more_train.ids)
    assert set(held_out.ids) <= set(more_held_out.ids)
    assert len(held_out)


def test_a_larger_test_size_only_adds(some):
    held_out = [set(some().split(size, seed=1)[1].ids.tolist()) for size in (0.1, 0.2, 0.5)]
    assert held_out[0] < held_out[1] < held_out[2]


def test_the_order_of_rows_does_not_matter_to_a_split(some):
    anchors = some()
    shuffled = anchors.at(np.random.default_rng(0).permutation(len(anchors)))
    assert sorted(shuffled.split(seed=5)[1].ids) == anchors.split(seed=5)[1].ids.tolist()


def test_seeds_split_differently(some):
    one, other = (set(some().split(0.5, seed)[1].ids.tolist()) for seed in (0, 1))
    assert 0.3 < len(one & other) / len(one) < 0.7


@pytest.mark.parametrize("test_size", [1, -0.1, 1.5, float("nan")])
def test_a_test_size_is_a_share(some, test_size):
    with pytest.raises(ParameterError, match=r"test_size must be in \[0, 1\)"):
        some().split(test_size)


# Choosing.


def test_rows_are_chosen_by_position_or_mask(some, mapped):
    anchors = some(50)
    found = anchors.at(np.array([4, 1, 4]))
    assert found.ids.tolist() == [4, 1, 4]
    np.testing.assert_array_equal(found.x, anchors.x[[4, 1, 4]])
    assert isinstance(found.y, np.memmap) == (mapped and found.y.nbytes > 100)
    assert same(anchors.at(anchors.ids >= 40), anchors.at(np.arange(40, 50)))
    assert len(anchors.at(np.zeros(50, bool))) == 0


def test_a_sample_is_stable_and_nested(some):
    anchors = some()
    found = anchors.sample(50, seed=2)
    assert len(found) == 50
    assert (np.diff(found.ids) > 0).all()
    np.testing.assert_array_equal(found.x, anchors.x[found.ids])
    assert set(found.ids) < set(anchors.sample(120, seed=2).ids)
    shuffled = anchors.at(np.random.default_rng(0).permutation(len(anchors)))
    assert set(shuffled.sample(50, seed=2).ids) == set(found.ids)
    assert set(anchors.sample(50, seed=3).ids) != set(found.ids)
    assert same(anchors.sample(10_000), anchors)
    with pytest.raises(ParameterError, match=r"n must be at least 1. Got 0 instead"):
        anchors.sample(0)


def test_a_sample_says_nothing_about_the_split(some):
    anchors = some(2000)
    held_out = set(anchors.split(0.25)[1].ids.tolist())
    share = np.mean([i in held_out for i in anchors.sample(400).ids.tolist()])
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 400)


def test_anchors_that_a_map_was_fitted_on_can_be_left_out(some):
    anchors = some(100)
    train, held_out = anchors.split(0.3)
    assert same(anchors.without(train.hashes()), held_out)
    assert same(anchors.without(np.array([], np.uint64)), anchors)


def test_reversed_twice_is_the_same(some):
    anchors = some(20)
    back = anchors.reversed()
    assert back.x is anchors.y
    assert (back.source, back.target, back.record.source) == (anchors.target, anchors.source, "t")
    assert same(back.reversed(), anchors)


# FoldMoments.


def test_folds_part_the_rows_by_hash(some, mapped):
    anchors = some(300).at(np.arange(300))
    folds = anchors.folds(4, rows=20, seed=1)
    assert [len(x) for x, _ in folds.samples] == [20] * 4
    number = (hash_ids(anchors.ids, "fold", 1) % np.uint64(4)).astype(int)
    for i, (part, (x, y)) in enumerate(zip(folds.parts, folds.samples, strict=True)):
        members = np.flatnonzero(number == i)
        assert part.n == len(members)
        np.testing.assert_allclose(part.mean_x, anchors.x[members].mean(axis=0, dtype=np.float64), rtol=1e-12, atol=1e-12)
        places = [np.flatnonzero((anchors.x == row).all(axis=1)).item() for row in x]
        assert set(places) <= set(members.tolist())
        np.testing.assert_array_equal(y, anchors.y[places])
    assert sum(part.n for part in folds.parts) == 300


def test_folds_do_not_depend_on_the_order_of_rows(some):
    anchors = some(300)
    shuffled = anchors.at(np.random.default_rng(0).permutation(300))
    for (x, y), (other_x, other_y) in zip(anchors.folds(rows=15).samples, shuffled.folds(rows=15).samples, strict=True):
        order, other_order = np.lexsort(x.T), np.lexsort(other_x.T)
        np.testing.assert_array_equal(x[order], other_x[other_order])
        np.testing.assert_array_equal(y[order], other_y[other_order])


def test_folds_need_rows(some):
    with pytest.raises(TooFewAnchorsError, match="3 anchors are too few for 5 folds"):
        some(3).folds(5)
    with pytest.raises(ParameterError, match=r"n_folds must be at least 2. Got 1 instead"):
        some(30).folds(1)


def test_moments_are_those_of_the_rows(some, mapped):
    anchors = some(100).at(np.arange(100))
    found = anchors.moments()
    x, y = anchors.x.astype(np.float64), anchors.y.astype(np.float64)
    assert (found.n, found.source, found.target) == (100, anchors.source, anchors.target)
    np.testing.assert_allclose(found.sxy, (x - x.mean(0)).T @ (y - y.mean(0)), rtol=1e-10, atol=1e-10)
    assert isinstance(found, Moments)


# Which rows to re-encode.


@pytest.fixture
def clusters():
    """Four tight clusters of very unequal size, as a collection under some metric; and the cluster of each row."""

    def clusters(metric, dim=8):
        rng = np.random.default_rng(0)
        cluster = np.repeat(np.arange(4), [900, 80, 15, 5])
        vectors = 10 * np.eye(4, dim)[cluster] + rng.normal(scale=0.1, size=(1000, dim))
        order = rng.permutation(1000)
        return MemoryCollection(range(1000), vectors[order].astype(np.float32), Space("old", dim, metric)), cluster[order]

    return clusters


@pytest.mark.parametrize("strategy", ["uniform", "kmeans"])
@pytest.mark.parametrize("n", [1, 4, 50, 999, 1000])
def test_sampled_rows_are_distinct_and_sorted(clusters, strategy, n):
    collection, _ = clusters(Metric.COSINE)
    rows = sample_rows(collection, n, strategy=strategy, seed=1)
    assert rows.shape == (n,)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < 1000
    np.testing.assert_array_equal(sample_rows(collection, n, strategy=strategy, seed=1), rows)
    if n in (4, 50):
        assert sample_rows(collection, n, strategy=strategy, seed=2).tolist() != rows.tolist()


@pytest.mark.parametrize("strategy", ["uniform", "kmeans"])
def test_repeated_vectors_do_not_make_repeated_rows(strategy):
    collection = MemoryCollection(range(60), np.tile(np.eye(3, dtype=np.float32), (20, 1)), Space("old", 3))
    rows = sample_rows(collection, 10, strategy=strategy)
    assert len(set(rows.tolist())) == 10


def test_a_uniform_sample_is_uniform(clusters):
    collection, _ = clusters(Metric.COSINE)
    counts = sum(np.bincount(sample_rows(collection, 100, seed=seed) // 250, minlength=4) for seed in range(40))
    assert (np.abs(counts - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75)).all()


@pytest.mark.parametrize("metric", list(Metric))
def test_kmeans_covers_sparse_regions(clusters, metric):
    collection, cluster = clusters(metric)
    counts = np.bincount(cluster[sample_rows(collection, 40, strategy="kmeans")], minlength=4)
    assert (counts > 0).all()
    assert counts[3] > 40 * 5 / 1000  # more than its share


@pytest.mark.parametrize("metric", list(Metric))
def test_kmeans_takes_the_row_nearest_to_each_center(metric):
    """One cluster round a mean: the row that is chosen is the one nearest to it, not the farthest."""
    vectors = np.random.default_rng(3).normal(size=(200, 5)).astype(np.float32) + 2
    collection = MemoryCollection(range(200), vectors, Space("old", 5, metric))
    if metric != Metric.L2:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    if metric != Metric.L2:
        distance = -(vectors @ vectors.mean(axis=0))
    assert sample_rows(collection, 1, strategy="kmeans").tolist() == [int(distance.argmin())]


@pytest.mark.parametrize(
    ("n", "strategy", "message"),
    [
        (0, "uniform", r"n must be between 1 and 1,000 \(the rows of the collection in memory\). Got 0 instead"),
        (1001, "kmeans", "Got 1001 instead"),
        (5, "random", "strategy must be 'uniform' or 'kmeans'. Got 'random' instead"),
    ],
)
def test_sampling_refuses(clusters, n, strategy, message):
    with pytest.raises(ParameterError, match=message):
        sample_rows(clusters(Metric.COSINE)[0], n, strategy=strategy)


def test_unit_scales_rows_of_both_sides_and_says_so():
    anchors = planted_anchors(20, 4, 5)
    found = anchors.unit()
    np.testing.assert_allclose(found.x, anchors.x / np.linalg.norm(anchors.x, axis=1, keepdims=True), rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.y, axis=1), 1, rtol=0, atol=1e-6)
    assert found.source.normalized
    assert found.target.normalized
    assert found.source.same_as(anchors.source)
    assert found.ids is anchors.ids


@pytest.mark.parametrize("strategy", ["uniform", "kmeans"])
def test_any_seed_that_is_not_negative_chooses_rows(clusters, strategy):
    collection = clusters(Metric.COSINE)[0]
    for seed in (0, np.int64(7), 2**31, 2**40):
        assert len(sample_rows(collection, np.int64(10), strategy=strategy, seed=seed)) == 10
    with pytest.raises(ParameterError, match=r"seed must be at least 0. Got -1 instead"):
        sample_rows(collection, 10, strategy=strategy, seed=-1)
