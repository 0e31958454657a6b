"""Rankings for several offsets at once: the first pass in float32 decides nothing that float64 would decide otherwise."""

import numpy as np
import pytest
import torch

import embridge.neighbors.scan
from embridge.neighbors import rankings, top_k
from embridge.neighbors.products import Changed, Named, Products
from embridge.neighbors.screening import contenders, screen
from embridge.types import Metric

DIM, N, K = 24, 700, 12


def exact(queries, corpus, k, metric, offset, exclude):
    q, x = queries.astype(np.float64), corpus.astype(np.float64)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    if metric == Metric.COSINE:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = q @ x.T - (0 if offset is None else offset)
    for number, row in enumerate(exclude):
        if row >= 0:
            scores[number, row] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("block", [8192, 100])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT])
def test_each_offset_has_its_own_exact_ranking(monkeypatch, metric, dtype, block):
    monkeypatch.setattr(embridge.neighbors.scan, "CORPUS_BLOCK", block)
    rng = np.random.default_rng(1)
    corpus = (rng.normal(size=(N, DIM)) * rng.uniform(0.5, 2, (N, 1))).astype(dtype)
    queries = (rng.normal(size=(40, DIM)) * rng.uniform(0.1, 9, (40, 1))).astype(dtype)
    offset, exclude = rng.uniform(0, 0.4, N), rng.integers(-1, N, 40)
    found = rankings(queries, corpus, K, metric, offsets=(None, offset, offset / 3), exclude=exclude)
    for ids, each in zip(found, (None, offset, offset / 3), strict=True):
        np.testing.assert_array_equal(ids, exact(queries, corpus, K, metric, each, exclude))
    np.testing.assert_array_equal(found[0], top_k(queries, corpus, K, metric, exclude=exclude).ids)


@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["kept", "not kept"])
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT])
def test_rankings_by_known_products_are_exact(metric, limit):
    """Also where some rows have other vectors, and lengths, than those under the name."""
    rng = np.random.default_rng(3)
    named, corpus = (rng.normal(size=(N, DIM)).astype(np.float32) for _ in range(2))
    queries, places = rng.normal(size=(40, DIM)).astype(np.float32), np.sort(rng.choice(N, N // 4, replace=False))
    corpus *= 3
    mixed = named.copy()
    mixed[places] = corpus[places]
    offset, exclude, products = rng.uniform(0, 0.4, N), rng.integers(-1, N, 40), Products(limit)
    changed = Named(products, "name", Changed(places, corpus[places]), named)
    for rows, known in ((named, Named(products, "name")), (mixed, changed), (named, Named(products, "name"))):
        found = rankings(queries, rows, K, metric, offsets=(None, offset), exclude=exclude, known=known)
        for ids, each in zip(found, (None, offset), strict=True):
            np.testing.assert_array_equal(ids, exact(queries, rows, K, metric, each, exclude))


@pytest.mark.parametrize("step", [1e-9, 1e-7, 1e-5])
def test_rows_that_float32_cannot_tell_apart_are_ranked_by_float64(step):
    """Rows along an arc about the query, whose cosines differ by far less than float32 keeps, in random order."""
    rng = np.random.default_rng(2)
    angles = rng.permutation(N) * np.sqrt(step) + 0.3
    basis = np.linalg.qr(rng.normal(size=(DIM, 2)))[0]
    corpus = (np.cos(angles)[:, None] * basis[:, 0] + np.sin(angles)[:, None] * basis[:, 1]).astype(np.float32)
    query = basis[None, :, 0].astype(np.float32)
    expected = exact(query, corpus, K, Metric.COSINE, None, [-1])
    np.testing.assert_array_equal(rankings(query, corpus, K, Metric.COSINE)[0], expected)
    hits = top_k(query, corpus, K, Metric.COSINE)
    np.testing.assert_array_equal(hits.ids, expected)


def test_equal_rows_come_in_the_order_of_the_corpus():
    corpus = np.tile(np.eye(DIM, dtype=np.float32)[:2], (N // 2, 1))
    ids = rankings(np.eye(DIM, dtype=np.float32)[:1], corpus, K, Metric.COSINE, offsets=(np.zeros(N),))[0]
    np.testing.assert_array_equal(ids, [np.arange(0, 2 * K, 2)])


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_lengths_beyond_float32_are_left_to_float64(scale):
    rng = np.random.default_rng(3)
    corpus, queries = (rng.normal(size=(n, DIM)).astype(np.float32) for n in (N, 5))
    blocks = {"query_block": 1024, "corpus_block": 8192}
    assert screen(queries, corpus * np.float32(scale), K, cosine=True, **blocks) is None
    found = rankings(queries, corpus * np.float32(scale), K, Metric.COSINE)[0]
    np.testing.assert_array_equal(found, exact(queries, corpus, K, Metric.COSINE, None, [-1] * 5))


def test_the_error_of_the_first_pass_is_within_its_bound():
    rng = np.random.default_rng(4)
    corpus, queries = (np.abs(rng.normal(size=(n, 1000))).astype(np.float32) for n in (N, 30))  # sums of one sign
    (found,) = screen(queries, corpus, N, cosine=True, query_block=16, corpus_block=256) or [None]
    q, x = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True) for v in (queries, corpus))
    exact_scores = np.take_along_axis(q @ x.T, found.ids, axis=1)
    assert 0 < np.abs(found.scores - exact_scores).max() <= found.error < 1e-4


@pytest.mark.parametrize("crowded", [False, True])
def test_contenders_hold_the_largest_values_of_every_row(crowded):
    rng = np.random.default_rng(5)
    scores = torch.from_numpy(rng.normal(size=(9, 400)).astype(np.float32))
    if crowded:
        scores[:] = 1.0
    values, columns = contenders(scores, 7)
    np.testing.assert_array_equal(values.topk(7).values, scores.topk(7).values)
    held = torch.isfinite(values)
    np.testing.assert_array_equal(scores.gather(1, columns)[held], values[held])
    least = scores.topk(3).values[:, -1:]
    above = contenders(scores, 7, least)[0]
    np.testing.assert_array_equal(above.topk(3).values, scores.topk(3).values)
