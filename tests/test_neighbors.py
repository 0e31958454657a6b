"""Exact neighbors: every metric against a brute force that shares nothing with the library."""

import numpy as np
import pytest
import torch

import embridge.neighbors.scan
from embridge.errors import BadVectorsError, ParameterError, SpaceMismatchError
from embridge.neighbors import Nearest, overlap, top_k
from embridge.types import Metric

N, N_QUERIES, DIM, K = 53, 17, 6, 5


def similarities(queries, corpus, metric):
    """float64, pair by pair."""
    q, c = queries.astype(np.float64)[:, None], corpus.astype(np.float64)[None]
    if metric == Metric.L2:
        return -np.square(q - c).sum(-1)
    products = (q * c).sum(-1)
    return products if metric == Metric.DOT else products / np.linalg.norm(q, axis=-1) / np.linalg.norm(c, axis=-1)


def brute_force(queries, corpus, k, metric, exclude=None):
    scores = similarities(queries, corpus, metric)
    if exclude is not None:
        excluding = np.flatnonzero(exclude >= 0)
        scores[excluding, exclude[excluding]] = -np.inf
    ids = np.argsort(-scores, axis=1)[:, :k]
    return ids, np.take_along_axis(scores, ids, axis=1)


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    # Lengths differ, so that the three metrics rank differently.
    corpus = rng.normal(size=(N, DIM)) * rng.uniform(0.5, 3, size=(N, 1)) + 1
    return rng.normal(size=(N_QUERIES, DIM)).astype(np.float32), corpus.astype(np.float32)


def test_the_metrics_rank_these_vectors_differently(vectors):
    ids = {metric: top_k(*vectors, K, metric).ids.tolist() for metric in Metric}
    assert len({str(rows) for rows in ids.values()}) == 3


# Blocks that hold all rows, that end with a rest, that are smaller than k, and of one row.
@pytest.mark.parametrize(("query_block", "corpus_block"), [(1024, 16384), (17, 53), (4, 10), (5, 3), (1, 1)])
@pytest.mark.parametrize("with_exclude", [False, True])
@pytest.mark.parametrize("metric", Metric)
def test_it_agrees_with_brute_force(vectors, monkeypatch, metric, with_exclude, query_block, corpus_block):
    monkeypatch.setattr(embridge.neighbors.scan, "QUERY_BLOCK", query_block)
    monkeypatch.setattr(embridge.neighbors.scan, "CORPUS_BLOCK", corpus_block)
    queries, corpus = vectors
    exclude = None
    if with_exclude:  # every other query may not find its best row
        exclude = brute_force(queries, corpus, 1, metric)[0][:, 0]
        exclude[1::2] = -1
    ids, scores = brute_force(queries, corpus, K, metric, exclude)
    hits = top_k(queries, corpus, K, metric, exclude=exclude)
    np.testing.assert_array_equal(hits.ids, ids)
    np.testing.assert_allclose(hits.scores, scores, rtol=0, atol=1e-5 * np.abs(scores).max())
    assert hits.ids.dtype == np.int64
    assert hits.scores.dtype == np.float32


@pytest.mark.parametrize("metric", Metric)
def test_k_may_be_the_number_of_rows(vectors, monkeypatch, metric):
    monkeypatch.setattr(embridge.neighbors.scan, "CORPUS_BLOCK", 7)
    queries, corpus = vectors
    np.testing.assert_array_equal(top_k(queries, corpus, N, metric).ids, brute_force(queries, corpus, N, metric)[0])
    itself = np.arange(N)
    found = top_k(corpus, corpus, N - 1, metric, exclude=itself).ids
    np.testing.assert_array_equal(found, brute_force(corpus, corpus, N - 1, metric, itself)[0])
    assert not (found == itself[:, None]).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_kinds_of_floats(vectors, dtype):
    queries, corpus = (side.astype(dtype) for side in vectors)
    np.testing.assert_array_equal(top_k(queries, corpus, K, Metric.L2).ids, brute_force(queries, corpus, K, Metric.L2)[0])


def test_read_only_inputs_and_no_queries(vectors, tmp_path):
    queries, corpus = vectors
    np.save(tmp_path / "corpus.npy", corpus)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    nobody = np.broadcast_to(np.int64(-1), len(queries))
    np.testing.assert_array_equal(top_k(queries, mapped, K, exclude=nobody).ids, top_k(queries, corpus, K).ids)
    assert top_k(queries[:0], corpus, K).ids.shape == (0, K)


def exact(queries, corpus, metric):
    """float64 similarities, from differences under L2 and from directions that no square can overflow under cosine."""
    q, c = queries.astype(np.float64), corpus.astype(np.float64)
    if metric == Metric.L2:
        return np.stack([-np.square(c - row).sum(1) for row in q])
    if metric == Metric.COSINE:
        q, c = (side / np.abs(side).max(1, keepdims=True) for side in (q, c))
        q, c = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (q, c))
    return q @ c.T


ROWS = np.random.default_rng(3).normal(size=(900, 16))
SIDES = np.where(np.arange(900) % 2, 1.0, -1.0)[:, None]
HARD = {
    "a large common part": ROWS + 3000,
    "one large feature": ROWS + 1e6 * np.eye(16)[0],
    "two far clusters": ROWS + 1e5 * SIDES,
    "close together, in float64": 1e-3 * ROWS + 1e6,
    "tiny": 1e-14 * ROWS,
    "huge": 1e20 * ROWS,
    "of all lengths": ROWS * 10.0 ** np.linspace(-14, 20, 900)[:, None],
    "one outlier": np.vstack([ROWS[:-1], 1e20 * ROWS[-1:]]),
    "equal rows": np.repeat(ROWS[:9], 100, axis=0),
}


@pytest.mark.parametrize("block", [64, 16384])
@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("kind", HARD)
def test_it_equals_float64_brute_force_whatever_the_rows_are(monkeypatch, kind, metric, block):
    monkeypatch.setattr(embridge.neighbors.scan, "CORPUS_BLOCK", block)
    dtype = np.float64 if "float64" in kind else np.float32
    corpus = HARD[kind].astype(dtype)
    queries = np.concatenate([corpus[::90], HARD[kind][::90] * 1.001]).astype(dtype)
    similar = exact(queries, corpus, metric)
    if kind == "close together, in float64" and metric == Metric.COSINE:
        pytest.skip("cosines differ by less than float64 can say")
    order = np.argsort(-similar, axis=1, kind="stable")[:, :K]  # of equal rows the first
    hits = top_k(queries, corpus, np.int64(K), metric)
    expected = np.take_along_axis(similar, order, 1)
    np.testing.assert_allclose(np.take_along_axis(similar, hits.ids, 1), expected, rtol=1e-9)
    assert (hits.ids == order).mean() > 0.99
    limit = float(np.finfo(np.float32).max)
    np.testing.assert_allclose(hits.scores, np.clip(expected, -limit, limit), rtol=1e-6, atol=1e-37)
    assert np.isfinite(hits.scores).all()


def test_rows_a_unit_apart_at_ten_thousand():
    hits = top_k(np.array([[10001, 0]], "f4"), np.array([[10000, 0], [10001, 0], [10003, 4]], "f4"), 3, "l2")
    assert (hits.ids.tolist(), hits.scores.tolist()) == ([[1, 0, 2]], [[0, -1, -20]])


@pytest.mark.parametrize("side", ["queries", "corpus"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_values_that_no_metric_can_rank_are_refused(vectors, side, value):
    given = dict(zip(("queries", "corpus"), (v.astype(np.float64) for v in vectors), strict=True))
    given[side][7, 2] = value
    with pytest.raises(BadVectorsError, match=f"{side} has 1 row with NaN or infinite values: ids 7"):
        top_k(given["queries"], given["corpus"], K)


def test_negative_strides(vectors):
    queries, corpus = vectors
    np.testing.assert_array_equal(
        top_k(queries[::-1], corpus[::-1, ::-1], K).ids, top_k(queries[::-1], corpus[::-1, ::-1].copy(), K).ids
    )


@pytest.mark.parametrize("k", [2.0, "3", None])
def test_k_is_a_whole_number(vectors, k):
    with pytest.raises(ParameterError, match="k must be a whole number"):
        top_k(*vectors, k)


@pytest.mark.parametrize("metric", Metric)
def test_blocks_offered_one_by_one_are_one_corpus(vectors, metric):
    queries, corpus = vectors
    corpus = corpus + np.float32(3000)
    queries = queries + np.float32(3000)
    nearest = Nearest(queries, K, metric)
    for start in range(0, N, 10):
        nearest.offer(corpus[start : start + 10], np.arange(start, start + 10)[:N])
    order = np.argsort(-exact(queries, corpus, metric), axis=1, kind="stable")[:, :K]
    np.testing.assert_array_equal(nearest.rows, order)


def test_what_cannot_be_ranked_is_never_found():
    rows = np.array([[np.nan, 1], [1, 0], [np.inf, 0], [0, 1]], np.float32)
    nearest = Nearest(np.array([[1, 0], [np.nan, 0]], np.float32), 3, Metric.DOT)
    nearest.offer(rows[:1], np.array([5]))
    nearest.offer(rows[1:], np.array([6, 7, 8]))
    assert nearest.rows.tolist() == [[6, 8, -1], [-1, -1, -1]]
    assert overlap(nearest.rows, np.array([[6, 1, 2], [1, 2, 3]])).tolist() == [1 / 3, 0]


def test_a_zero_row_is_like_nothing_under_cosine(vectors):
    queries, corpus = vectors
    corpus[4] = 0
    hits = top_k(queries, corpus, N, Metric.COSINE)
    assert np.isfinite(hits.scores).all()
    assert not hits.scores[hits.ids == 4].any()


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one(vectors, k):
    with pytest.raises(ParameterError, match=f"k must be at least 1. Got {k} instead"):
        top_k(*vectors, k)


@pytest.mark.parametrize(("k", "exclude", "room"), [(N + 1, False, N), (N, True, N - 1)])
def test_k_beyond_the_corpus(vectors, k, exclude, room):
    queries, corpus = vectors
    with pytest.raises(ParameterError, match=f"k must be between 1 and {room} .* Got {k} instead"):
        top_k(queries, corpus, k, exclude=np.zeros(N_QUERIES, np.int64) if exclude else None)


def test_inputs_that_do_not_fit(vectors):
    queries, corpus = vectors
    with pytest.raises(SpaceMismatchError, match=f"queries expects {DIM}-dimensional vectors. Got {DIM - 1}"):
        top_k(queries[:, 1:], corpus, K)
    with pytest.raises(BadVectorsError, match="queries must be vectors of shape"):
        top_k(queries[0], corpus, K)


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_and_cpu_agree(vectors, metric):
    queries, corpus = vectors
    on_gpu, on_cpu = (top_k(queries, corpus, K, metric, device=device) for device in ("cuda", "cpu"))
    np.testing.assert_array_equal(on_gpu.ids, on_cpu.ids)
    np.testing.assert_allclose(on_gpu.scores, on_cpu.scores, rtol=0, atol=1e-5 * np.abs(on_cpu.scores).max())


def test_overlap_equals_set_arithmetic():
    rng = np.random.default_rng(0)
    found = np.array([rng.choice(30, 12, replace=False) for _ in range(40)])
    truth = np.array([rng.choice(30, 8, replace=False) for _ in range(40)])
    expected = [len(set(a) & set(b)) / 8 for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    np.testing.assert_array_equal(overlap(found, truth), expected)
    np.testing.assert_array_equal(overlap(truth, truth), 1)
    np.testing.assert_array_equal(overlap(truth + 30, truth), 0)
