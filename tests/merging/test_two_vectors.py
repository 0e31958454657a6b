"""Merging native rows into a two-vector collection: every row keeps its old vector, or nothing is written."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.errors import BadIdsError, BadVectorsError, CollectionError, SpaceMismatchError
from embridge.types import Space

N, P, Q = 60, 4, 6
OLD, NEW = Space("old", P), Space("new", Q)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, P)).astype(np.float32), RNG.normal(size=(N, Q)).astype(np.float32)
IDS = [f"d{i}" for i in range(N)]
MAP = eb.LinearMap(RNG.normal(size=(Q, P)), RNG.normal(size=Q), OLD, NEW)


@pytest.fixture
def both(tmp_path):
    eb.convert(
        eb.MemoryCollection(IDS, X, OLD, {"title": [f"t{i}" for i in range(N)]}), MAP, tmp_path / "both.parquet", keep_old=True
    )
    return eb.open(tmp_path / "both.parquet")


def old_side(path):
    return eb.open(path, vector_column="old_vector")


def native(rows, payload=None):
    return eb.MemoryCollection([IDS[i] for i in rows], Y[rows], NEW, payload)


def test_native_rows_take_their_old_vectors_from_the_other_side(both, tmp_path):
    rows = [7, 3, 50]
    eb.merge(native(rows), both, tmp_path / "m.parquet")
    made = eb.open(tmp_path / "m.parquet")
    rest = [i for i in range(N) if i not in rows]
    assert made.payload_spaces == {"old_vector": OLD}
    ids, vectors = made.read()
    assert ids.tolist() == [IDS[i] for i in rows + rest]
    np.testing.assert_allclose(vectors, np.concatenate([Y[rows], MAP.apply(X)[rest]]), atol=1e-5)
    np.testing.assert_array_equal(old_side(tmp_path / "m.parquet").read()[1], X[rows + rest])
    assert old_side(tmp_path / "m.parquet").provenance is None
    eb.verify(tmp_path / "m.parquet")
    eb.merge(native([9]), made, tmp_path / "again.parquet")
    np.testing.assert_array_equal(old_side(tmp_path / "again.parquet").read()[1], X[[9, *rows, *(i for i in rest if i != 9)]])


def test_it_is_fused_and_searched(both, tmp_path):
    rows = list(range(0, N, 3))
    eb.merge(native(rows), both, tmp_path / "m.parquet")
    made = eb.open(tmp_path / "m.parquet")
    index = eb.build_index(made, tmp_path / "m.faiss", "Flat", fuse=made.old_side)
    new = MAP.apply(X)
    new[rows] = Y[rows]
    queries = RNG.normal(size=(5, P)), RNG.normal(size=(5, Q))
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (*queries, X, new)]
    expected = 0.7 * unit[0] @ unit[2].T + 0.3 * unit[1] @ unit[3].T
    hits = index.search(queries[1], 3, old_queries=queries[0], weight=0.3)
    assert hits.ids.tolist() == [[IDS[i] for i in row[:3]] for row in np.argsort(-expected, axis=1)]
    old_queries, new_queries = (eb.MemoryCollection(range(5), q, s) for q, s in zip(queries, (OLD, NEW), strict=True))
    found = eb.search(made, new_queries, 3, old_queries=old_queries, weight=0.3)[1]
    assert found.ids.tolist() == hits.ids.tolist()


def test_rows_without_an_old_vector_are_refused(both, tmp_path):
    more = eb.MemoryCollection(["d1", "x1", "x2"], Y[:3], NEW)
    with pytest.raises(BadIdsError, match=r"2 rows of .* would have no vector of 'old'.* ids 'x1', 'x2'"):
        eb.merge(more, both, tmp_path / "m.parquet")
    plain = eb.MemoryCollection(IDS, MAP.apply(X), NEW)
    two = tmp_path / "two.parquet"
    eb.convert(eb.MemoryCollection(IDS[:3], X[:3], OLD), MAP, two, keep_old=True)
    table = pq.read_table(two)
    metadata = {k: v for k, v in table.schema.metadata.items() if k != b"embridge.lineage"}  # as if the new model had made them
    pq.write_table(table.replace_schema_metadata(metadata), two)
    with pytest.raises(BadIdsError, match=r"57 rows of .* would have no vector"):
        eb.merge(eb.open(two), plain, tmp_path / "m.parquet")
    eb.merge(eb.open(two), both, tmp_path / "ok.parquet")  # both sides have the column
    np.testing.assert_array_equal(old_side(tmp_path / "ok.parquet").read()[1], X)
    null = pa.array([None, *X[1:3].tolist()], pa.list_(pa.float32(), P))
    pq.write_table(table.set_column(2, "old_vector", null).replace_schema_metadata(metadata), two)
    with pytest.raises(BadVectorsError, match="1 row would have no vector in column 'old_vector'"):
        eb.merge(eb.open(two), both, tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()


def test_old_vectors_of_two_spaces_are_refused(both, tmp_path):
    with pytest.raises(CollectionError, match=r"Column 'old_vector' of .* names no space"):
        eb.merge(native([1], {"old_vector": [[1.0] * P]}), both, tmp_path / "m.parquet")
    third = eb.LinearMap(MAP.coef, MAP.intercept, Space("third", P), NEW)
    eb.convert(eb.MemoryCollection(IDS[:3], X[:3], Space("third", P)), third, tmp_path / "t.parquet", keep_old=True)
    table = pq.read_table(tmp_path / "t.parquet")
    metadata = {k: v for k, v in table.schema.metadata.items() if k != b"embridge.lineage"}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "t.parquet")
    with pytest.raises(SpaceMismatchError, match="'third'"):
        eb.merge(eb.open(tmp_path / "t.parquet"), both, tmp_path / "m.parquet")
