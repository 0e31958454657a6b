"""Products that several fused searches use: candidates are the same as when each search multiplies for itself."""

import numpy as np
import pytest

from embridge.anchors.moments import Moments
from embridge.arrays import unit
from embridge.evaluation.fusion import CandidateSearch
from embridge.evaluation.rows import QueriedRows, held
from embridge.neighbors.products import Changed, Named, Products
from embridge.translators import Ridge
from embridge.types import Space

RNG = np.random.default_rng(0)
N, Q, OLD, NEW, DEPTH = 1_000, 150, 6, 9, 12
OLD_ROWS, NATIVE, TRANSLATED = (RNG.normal(size=(N, dim)).astype(np.float32) for dim in (OLD, NEW, NEW))
QUERIES = RNG.normal(size=(Q, OLD)).astype(np.float32), RNG.normal(size=(Q, NEW)).astype(np.float32)
BIASES = tuple(RNG.uniform(size=N).astype(np.float32) for _ in range(2))


def candidates(new, known=None, exclude=None, depth=DEPTH):
    search = CandidateSearch(*QUERIES, depth)
    search.offer(OLD_ROWS, new, np.arange(N), BIASES, exclude, known)
    return search.candidates()


def named(products, new, changed=None):
    return Named(products, "old"), Named(products, new, changed)


def parts(found):
    """By query the candidates in order of their position: (row, old, new)."""
    order = np.argsort(found.rows, axis=1)
    return [np.take_along_axis(part, order, 1) for part in (found.rows, found.old, found.new)]


@pytest.mark.parametrize("limit", [1 << 30, 700_000, 0], ids=["all kept", "some kept", "none kept"])
def test_known_products_give_the_same_candidates(limit):
    products = Products(limit)
    for new, name in ((NATIVE, "native"), (TRANSLATED, "translated"), (NATIVE, "native")):
        found = candidates(new, named(products, name))
        for one, other in zip(parts(found), parts(candidates(new)), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rows_that_differ_from_the_named_ones_are_multiplied_again(share):
    products = Products(1 << 30)
    candidates(NATIVE, named(products, "native"))
    changed = np.flatnonzero(RNG.uniform(size=N) < share)
    new = NATIVE.copy()
    new[changed] = TRANSLATED[changed]
    others = Changed(changed, TRANSLATED[changed], QUERIES[1])
    found, expected = candidates(NATIVE, named(products, "native", others)), candidates(new)
    for one, other in zip(parts(found), parts(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    again = candidates(NATIVE, named(products, "native"))  # what is kept was not changed
    for one, other in zip(parts(again), parts(candidates(NATIVE)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_long_collection_keeps_the_nearest_of_every_fusion():
    """Above 16 times the depth candidates are first cut by a lower limit."""
    exclude = RNG.integers(-1, N, Q)
    found = candidates(NATIVE, exclude=exclude)
    old, new = QUERIES[0] @ OLD_ROWS.T, QUERIES[1] @ NATIVE.T
    for scores in (old, new, (old + new) / 2, old - BIASES[0], new - BIASES[1], (old + new - sum(BIASES)) / 2):
        scores[np.flatnonzero(exclude >= 0), exclude[exclude >= 0]] = -np.inf
        best = np.argsort(-scores, axis=1)[:, :DEPTH]
        assert all(set(mine) <= set(rows) for mine, rows in zip(best.tolist(), found.rows.tolist(), strict=True))
    assert found.rows.shape[1] <= 6 * DEPTH
    assert not (found.rows == exclude[:, None])[exclude >= 0].any()


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("dim_source", "dim_target"), [(OLD, NEW), (NEW, OLD)], ids=["wider", "narrower"])
def test_products_with_translated_rows_need_only_the_smaller_width(metric, normalized, dim_source, dim_target):
    source, target = (
        Space("old", dim_source, metric, normalized=normalized),
        Space("new", dim_target, metric, normalized=normalized),
    )
    x, y = unit(RNG.normal(size=(N, dim_source))), unit(RNG.normal(size=(N, dim_target)))
    y[:, : min(dim_source, dim_target)] += x[:, : min(dim_source, dim_target)]
    y = unit(y) if normalized else y
    translation = Ridge(0.1).fit(Moments.from_rows(x, y, source, target))
    queries = unit(RNG.normal(size=(Q, dim_target)))
    found = QueriedRows.of(translation, x)
    assert found.rows.shape[1] == min(dim_source + 1, dim_target)
    expected = queries @ held(translation.apply(x), metric).T
    np.testing.assert_allclose(found.queries(queries) @ found.rows.T, expected, atol=1e-5)
