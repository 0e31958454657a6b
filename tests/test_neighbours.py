"""Exact neighbours: every metric against a brute force that shares nothing with the library."""

import numpy as np
import pytest
import torch

import embridge.neighbours
from embridge.errors import BadVectorsError, ParameterError, SpaceMismatchError
from embridge.neighbours import overlap, top_k
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
        asked = np.flatnonzero(exclude >= 0)
        scores[asked, exclude[asked]] = -np.inf
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
    monkeypatch.setattr(embridge.neighbours, "_QUERY_BLOCK", query_block)
    monkeypatch.setattr(embridge.neighbours, "_CORPUS_BLOCK", corpus_block)
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
def test_all_rows_can_be_asked_for(vectors, monkeypatch, metric):
    monkeypatch.setattr(embridge.neighbours, "_CORPUS_BLOCK", 7)
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


def test_a_zero_row_is_like_nothing_under_cosine(vectors):
    queries, corpus = vectors
    corpus[4] = 0
    hits = top_k(queries, corpus, N, Metric.COSINE)
    assert np.isfinite(hits.scores).all()
    assert not hits.scores[hits.ids == 4].any()


@pytest.mark.parametrize(("k", "exclude", "room"), [(0, False, N), (-1, False, N), (N + 1, False, N), (N, True, N - 1)])
def test_k_out_of_range(vectors, k, exclude, room):
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
