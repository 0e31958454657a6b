"""The map in front of an index: which searches and additions it is right for."""

import faiss
import numpy as np
import pytest

import embridge as eb
from embridge.errors import (
    BadIdsError,
    FaissIndexError,
    MigrationRefusedError,
    SpaceMismatchError,
)
from embridge.types import Metric, Space
from tests.migration.support import GENERAL, INTS, STRINGS, TURN, K, N, P, Q, X, a_map, best, queries, space

# The map in front


def test_a_map_into_the_space_of_the_index_wraps_it(build, tmp_path):
    """Fitted from new to old: queries are translated by it, and so are vectors that are added."""
    old = build("HNSW16")
    translation = eb.LinearMap(GENERAL.T, np.full(P, 0.1), space(Metric.COSINE, "new", Q), space(Metric.COSINE))
    done = eb.migrate(old, translation, tmp_path / "new.faiss")
    new_queries = queries()
    assert (done.mode, done.exact) == ("wrap", True)
    hits, applied = (
        eb.open_index(tmp_path / "new.faiss").search(new_queries, K),
        eb.open_index(old).search(translation.apply(new_queries), K),
    )
    assert (hits.ids == applied.ids).mean() > 0.999
    np.testing.assert_allclose(hits.scores, applied.scores, atol=1e-5)
    for mode in ("rewrite", "rebuild"):
        with pytest.raises(MigrationRefusedError, match="leads from 'new' to the index's 'old'"):
            eb.migrate(old, translation, tmp_path / "other.faiss", mode=mode)
    index = eb.open_index(tmp_path / "new.faiss")
    index.add(eb.MemoryCollection([5, 6], new_queries[:2], index.space))
    assert index.search(new_queries[:2], 1).ids.ravel().tolist() == [5, 6]


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("ids", [INTS, STRINGS], ids=["int64", "string"])
@pytest.mark.parametrize("factory", ["HNSW16", "IVF4,Flat"])
def test_new_vectors_go_through_a_map_that_is_right_for_them(build, tmp_path, metric, ids, factory):
    translation = a_map("isometry" if metric == Metric.L2 else "rotation", metric, P)
    old = build(factory, metric, ids)
    eb.migrate(old, translation, tmp_path / "new.faiss", mode="wrap")
    index, fresh = eb.open_index(tmp_path / "new.faiss"), 3 * queries(P, 3)
    names = np.array(["a", "b", "c"], object) if ids is STRINGS else np.array([1, 2, 3])
    index.add(eb.MemoryCollection(names, fresh, index.space))
    for opened in (index, eb.open_index(tmp_path / "new.faiss")):
        hits = opened.search(fresh, 1)
        assert hits.ids.ravel().tolist() == names.tolist()
        expected = {Metric.L2: [0, 0, 0], Metric.COSINE: [1, 1, 1], Metric.DOT: (fresh**2).sum(1)}[metric]
        np.testing.assert_allclose(hits.scores.ravel(), expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(BadIdsError, match="holds ids more than once"):
        index.add(eb.MemoryCollection(names, fresh, index.space))
    with pytest.raises(SpaceMismatchError, match="The index expects"):
        index.add(eb.MemoryCollection(names, fresh, space(metric)))
    assert len(eb.open_index(tmp_path / "new.faiss")) == N + 3


@pytest.mark.parametrize(
    ("kind", "metric", "dim"),
    [("general", Metric.DOT, P), ("rotation", Metric.DOT, Q), ("general", Metric.COSINE, P), ("isometry", Metric.L2, Q)],
)
def test_new_vectors_are_refused_where_the_map_is_right_for_queries_alone(build, tmp_path, kind, metric, dim):
    eb.migrate(build("Flat", metric), a_map(kind, metric, dim), tmp_path / "new.faiss", mode="wrap")
    index = eb.open_index(tmp_path / "new.faiss")
    with pytest.raises(FaissIndexError, match="accepts no new vectors: the map in front of it is valid for queries only"):
        index.add(eb.MemoryCollection([1, 2], queries(dim, 2), index.space))
    assert len(index) == N


def test_maps_in_front_of_maps(build, tmp_path):
    """A rotation in front of a rotation; where scores were corrected for the first map, a second is refused."""
    old, one = build("Flat"), a_map("rotation", dim=P)
    two = a_map("rotation", source="new", target="third")
    eb.migrate(old, one, tmp_path / "one.faiss", mode="wrap")
    done = eb.migrate(tmp_path / "one.faiss", two, tmp_path / "two.faiss", mode="wrap")
    order, scores = best(queries(), one.then(two).apply(X), Metric.COSINE)
    hits = eb.open_index(tmp_path / "two.faiss").search(queries(), K)
    assert done.exact
    assert hits.ids.tolist() == INTS[order].tolist()
    np.testing.assert_allclose(hits.scores, scores, atol=1e-5)
    old = build("Flat", Metric.L2, name="l2.faiss")
    eb.migrate(old, a_map("isometry", Metric.L2), tmp_path / "one.faiss", mode="wrap", overwrite=True)
    again = eb.LinearMap(TURN, np.zeros(Q), space(Metric.L2, "new", Q), space(Metric.L2, "third", Q))
    with pytest.raises(MigrationRefusedError, match=r"it already has a map in front; combine the maps \(LinearMap.then\)"):
        eb.migrate(tmp_path / "one.faiss", again, tmp_path / "three.faiss", mode="wrap")


def test_an_l2_index_of_unit_vectors_gives_cosines(tmp_path):
    rows = X / np.linalg.norm(X, axis=1, keepdims=True)
    index = faiss.IndexHNSWFlat(P, 16)
    index.add(rows)
    faiss.write_index(index, str(tmp_path / "old.faiss"))
    order, scores = best(queries(), a_map().apply(rows), Metric.COSINE)
    for mode in ("wrap", "rewrite"):
        old_space = Space("old", P, Metric.COSINE, normalized=True)
        done = eb.migrate(tmp_path / "old.faiss", a_map(), tmp_path / f"{mode}.faiss", mode=mode, space=old_space)
        hits = eb.open_index(tmp_path / f"{mode}.faiss").search(queries(), K, parameters="efSearch=400")
        assert done.exact
        assert hits.ids.tolist() == order.tolist()
        np.testing.assert_allclose(hits.scores[:, 0], scores[:, 0], atol=1e-5)
