"""Calibration of a merge: translated rows are found as often as if they were native."""

import numpy as np
import pytest

import embridge as eb
from embridge.errors import (
    FaissIndexError,
)
from embridge.indexes import hubness
from embridge.merging.calibration import Found, Nearest
from embridge.stores.provenance import translated_rows
from embridge.types import Metric, Provenance, Space
from tests.merging.support import DIM, IDS, N_QUERIES, NATIVE, ROWS, K, N, Q, Y, memory, of, translations

METRICS = [Metric.COSINE, Metric.DOT, Metric.L2]


def scores(queries, rows, metric):
    """By definition, in float64."""
    queries, rows = queries.astype(np.float64), rows.astype(np.float64)
    if metric == Metric.L2:
        return -((queries[:, None] - rows[None]) ** 2).sum(-1)
    if metric == Metric.COSINE:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return queries @ rows.T


def best(found):
    return np.argsort(-found, axis=1, kind="stable")[:, :K]


@pytest.fixture
def mixed(tmp_path):
    """``done, collection, is_translated, positions`` of a merge of planted rows."""

    def make(metric=Metric.COSINE, ids=IDS, **options):
        native = memory([ids[i] for i in ROWS], Y[ROWS], metric)
        translated = memory(ids, translations(metric), metric)
        options = {"queries": memory(range(N_QUERIES), Q[:N_QUERIES], metric)} | options
        done = eb.merge(native, translated, tmp_path / "mixed.parquet", **options)
        collection = eb.open(tmp_path / "mixed.parquet")
        place = {i: n for n, i in enumerate(ids)}
        at = np.array([place[i] for i in collection.read()[0].tolist()])
        return done, collection, translated_rows(collection, "provenance"), at

    return make


@pytest.mark.parametrize("metric", METRICS)
def test_translated_rows_come_up_as_often_as_if_they_were_native(mixed, metric):
    done, collection, flags, at = mixed(metric)
    fresh = Q[N_QUERIES:]  # none of those that the merge saw
    truth = best(scores(fresh, Y[at], metric))
    found = scores(fresh, collection.read()[1], metric)
    length = np.linalg.norm(fresh, axis=1, keepdims=True) if metric == Metric.DOT else 1
    before, after = flags[best(found)].mean(), flags[best(found + length * done.offset * flags)].mean()
    share = flags[truth].mean()
    assert before < share - 0.15
    assert abs(after - share) < 0.05
    # and what the record says of it is true
    assert done.share_before == pytest.approx(before, abs=0.05)
    assert done.share_after == pytest.approx(after, abs=0.05)
    assert done.share_truth == pytest.approx(share, abs=0.05)
    assert 0 <= done.overlap_before < done.overlap_after <= 1
    assert done.offset > 0


def test_translated_rows_that_crowd_native_ones_out_are_lowered(tmp_path):
    native, larger = memory([IDS[i] for i in ROWS], Y[ROWS], Metric.DOT), memory(IDS, 1.5 * Y, Metric.DOT)
    done = eb.merge(native, larger, tmp_path / "m.parquet", queries=memory(range(N_QUERIES), Q[:N_QUERIES], Metric.DOT))
    share = 1 - NATIVE / N
    assert done.offset < 0
    assert done.share_before > share + 0.1
    assert abs(done.share_after - share) < 0.05


def test_identical_translations_need_no_offset(tmp_path):
    done = eb.merge(memory([IDS[i] for i in ROWS], Y[ROWS]), memory(IDS, Y), tmp_path / "m.parquet")
    assert abs(done.offset) < 1e-3
    assert done.share_truth == pytest.approx(done.share_after, abs=0.02)
    assert done.overlap_after > 0.98


def test_without_queries_rows_are_queries_that_do_not_find_themselves(mixed):
    done, *_ = mixed(queries=None)
    assert "native rows as queries" in done.reason
    assert done.queries + int(done.reason.split()[1]) == NATIVE
    assert done.share_before < done.share_after
    assert done.overlap_before < 0.9  # a row that found itself would hold a place natively, and by its translation too


@pytest.mark.parametrize("k", [1, 3, 10])
def test_places_are_counted_as_if_one_pair_at_a_time_were_translated(k):
    rng = np.random.default_rng(5)
    y, t, fresh = rng.normal(size=(40, 4)), rng.normal(size=(60, 4)), rng.normal(size=(9, 4))
    y, t, fresh = (a.astype(np.float32) for a in (y, t, fresh))
    pairs = np.arange(0, 40, 3)
    nearest = [Nearest(fresh, count, Metric.DOT) for count in (k + 1, k + 1, 5 * k + 2)]
    for start in range(0, 40, 7):
        nearest[0].offer(y[start : start + 7], np.arange(start, min(start + 7, 40)))
    nearest[1].offer(t[40:], np.arange(20))
    nearest[2].offer(t[pairs], pairs)
    found = Found.of(k, *nearest, np.isin(nearest[0].rows, pairs))
    for offset in (-0.5, 0.0, 0.3):
        native = translated = both = held = 0
        for q in fresh:
            here = np.concatenate([y @ q, t[40:] @ q + offset])
            top = set(np.argsort(-here)[:k].tolist())
            held += sum(i >= 40 for i in top)
            for pair in pairs.tolist():
                instead = here.copy()
                instead[pair] = t[pair] @ q + offset
                now = pair in np.argsort(-instead)[:k]
                native += pair in top
                translated += bool(now)
                both += pair in top and bool(now)
        places = found.places(offset)
        assert (places.native, places.translated, places.both) == (native, translated, both)
        assert places.share == pytest.approx(held / (k * len(fresh)))


@pytest.mark.parametrize("ids", [IDS, list(range(5, 5 + 2 * N, 2))], ids=["string", "int64"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_an_index_agrees_with_brute_force_over_calibrated_scores(mixed, tmp_path, ids, metric, factory):
    done, collection, flags, _ = mixed(metric, ids)
    index = eb.build_index(collection, tmp_path / "m.faiss", factory)
    fresh = Q[N_QUERIES : N_QUERIES + 50]
    found_ids, vectors = collection.read()
    length = np.linalg.norm(fresh, axis=1, keepdims=True) if metric == Metric.DOT else 1
    expected = scores(fresh, vectors, metric) + length * done.offset * flags
    hits = eb.open_index(index.path).search(fresh, K, parameters="nprobe=4" if "IVF" in factory else "")
    order = best(expected)
    assert hits.ids.tolist() == found_ids[order].tolist()
    np.testing.assert_allclose(hits.scores, np.take_along_axis(expected, order, 1), rtol=1e-3, atol=1e-3)
    # the vectors are what they were, and the offset is no part of them
    assert eb.open(index.path).space.dim == DIM
    back = eb.open(index.path).read()
    assert sorted(back[0].tolist()) == sorted(found_ids.tolist())


def test_an_offset_below_zero_is_exact_under_l2_too(mixed, tmp_path):
    _, collection, flags, _ = mixed(Metric.L2)
    collection.provenance = Provenance(-0.7, K)
    hits = eb.build_index(collection, tmp_path / "m.faiss", "Flat").search(Q[:40], K)
    expected = scores(Q[:40], collection.read()[1], Metric.L2) - 0.7 * flags
    assert hits.ids.tolist() == collection.read()[0][best(expected)].tolist()
    np.testing.assert_allclose(hits.scores, -np.sort(-expected, axis=1)[:, :K], rtol=1e-3, atol=1e-3)


def test_it_goes_together_with_a_hubness_bias(mixed, tmp_path):
    done, collection, flags, _ = mixed()
    references = memory(range(200), Q[N_QUERIES : N_QUERIES + 200])
    index = eb.build_index(collection, tmp_path / "m.faiss", "Flat", hubness=references)
    fresh, vectors = Q[-30:], collection.read()[1]
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    r = hubness.bias(rows, references.read()[1])
    expected = 2 * scores(fresh, vectors, Metric.COSINE) - r + 2 * done.offset * flags
    hits = index.search(fresh, K)
    assert hits.ids.tolist() == collection.read()[0][best(expected)].tolist()
    np.testing.assert_allclose(hits.scores, -np.sort(-expected, axis=1)[:, :K], rtol=1e-4, atol=1e-4)


def test_the_calibration_can_be_left_out(mixed, tmp_path):
    _, collection, _, _ = mixed()
    hits = eb.build_index(collection, tmp_path / "m.faiss", "Flat", calibrated=False).search(Q[:20], K)
    expected = best(scores(Q[:20], collection.read()[1], Metric.COSINE))
    assert hits.ids.tolist() == collection.read()[0][expected].tolist()


def test_a_calibrated_index_refuses_what_would_undo_it(mixed, tmp_path):
    _, collection, _, _ = mixed()
    index = eb.build_index(collection, tmp_path / "m.faiss", "Flat")
    with pytest.raises(FaissIndexError, match="calibrated by whether they are native or translated"):
        index.add(memory(["x"], Y[:1]))
    turn = eb.LinearMap(np.eye(DIM), np.zeros(DIM), of(Metric.COSINE), Space("newer", DIM))
    with pytest.raises(FaissIndexError, match="calibrated in its own space"):
        eb.migrate(index.path, turn, tmp_path / "n.faiss")
    assert not (tmp_path / "n.faiss").exists()
