"""Search parameters belong to one call, whatever the type and whoever else searches."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import embridge as eb
from embridge.errors import FaissIndexError
from embridge.indexes.describe import settings_of
from embridge.types import Space

N, DIM, K = 2000, 8, 10
RNG = np.random.default_rng(0)
X, QUERIES = RNG.normal(size=(N, DIM)).astype(np.float32), RNG.normal(size=(64, DIM)).astype(np.float32)
CASES = {
    "IVF32,Flat": ["", "nprobe=1", "nprobe=2", "nprobe=4", "nprobe=8", "nprobe=32", "nprobe=3,max_codes=50", "max_codes=40"],
    "HNSW4": ["", "efSearch=10", "efSearch=12", "efSearch=16", "efSearch=24", "efSearch=64", "efSearch=400", "efSearch=1"],
    "IVF32_HNSW4,Flat": ["", "nprobe=2", "efSearch=1", "quantizer_efSearch=40,nprobe=4", "nprobe=8", "nprobe=1,efSearch=2",
                         "nprobe=16", "efSearch=3"],
    "IVF32,PQ4x4": ["", "nprobe=4", "ht=5", "nprobe=8,ht=8", "nprobe=32", "ht=100", "nprobe=2,ht=3", "nprobe=16"],
    "IVF32,SQ8": ["", "nprobe=2", "nprobe=4", "nprobe=8", "nprobe=16", "nprobe=32", "nprobe=1", "nprobe=5"],
    "PQ4": ["", "ht=2", "ht=4", "ht=6", "ht=8", "ht=10", "ht=100", "ht=1"],
    "IVF32,PQ4x4fs": ["", "nprobe=2", "nprobe=4", "nprobe=8", "nprobe=16", "nprobe=32", "nprobe=1", "nprobe=5"],
    "IVF32,RaBitQ": ["", "nprobe=2", "nprobe=4", "nprobe=8", "nprobe=16", "nprobe=32", "nprobe=1", "nprobe=5"],
    "IVF32,PQ4x4np,RFlat": ["", "nprobe=4", "k_factor_rf=4", "nprobe=8,k_factor_rf=8", "k_factor_rf=20", "nprobe=32",
                            "nprobe=2", "nprobe=1"],
    "PCA6,IVF32,Flat": ["", "nprobe=2", "nprobe=4", "nprobe=8", "nprobe=16", "nprobe=32", "nprobe=1", "nprobe=5"],
    "IVF32,PQ4+4": ["", "nprobe=2", "k_factor=1", "k_factor=20", "nprobe=8,k_factor=2", "nprobe=32", "nprobe=4", "k_factor=9"],
    "IVF32,RQ4x4fs_32_Nrq2x4": ["", "nprobe=2", "nprobe=4", "nprobe=8", "nprobe=16", "nprobe=32", "nprobe=1", "nprobe=5"],
}  # fmt: skip


@pytest.mark.parametrize("ids", [np.arange(N) * 3, np.array([f"d{i}" for i in range(N)], object)], ids=["int64", "string"])
@pytest.mark.parametrize("factory", CASES)
def test_eight_threads_with_parameters_of_their_own(tmp_path, factory, ids):
    index = eb.build_index(eb.MemoryCollection(ids, X, Space("old", DIM, "l2")), tmp_path / "a.faiss", factory)
    parameters = CASES[factory]
    settings = settings_of(index._file.index)
    alone = [eb.open_index(tmp_path / "a.faiss").search(QUERIES, K, parameters=text) for text in parameters]
    assert (
        len({hits.ids.tobytes() if ids.dtype != object else str(hits.ids.tolist()) for hits in alone}) > 2
    )  # they make a difference
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = list(pool.map(lambda text: index.search(QUERIES, K, parameters=text), parameters))
            for one, other in zip(alone, together, strict=True):
                assert one.ids.tolist() == other.ids.tolist()
                np.testing.assert_array_equal(one.scores, other.scores)
    assert settings_of(index._file.index) == settings
    plain = index.search(QUERIES, K)  # and nothing stays in force
    assert plain.ids.tolist() == alone[0].ids.tolist()


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [("IVF4,Flat", "efSearch=3"), ("IVF4,Flat", "nprobe=nan"), ("IVF4,Flat", "nprobe=inf"), ("HNSW4", "efSearch=2000000000"),
     ("HNSW4", "efConstruction=3"), ("HNSW4", "=3"), ("IVF4,PQ4x4np,RFlat", "k_factor_rf=1e9"), ("IVF4,PQ4+4", "k_factor=1e9"),
     ("Flat", "verbose=1"), ("IVF4,Flat", "quantizer_nprobe=2"), ("IVF4,RQ4x4fs_32_Nrq2x4", "nprobe=x")],
)  # fmt: skip
def test_parameters_without_a_meaning_are_refused(tmp_path, factory, parameters):
    index = eb.build_index(eb.MemoryCollection(np.arange(N), X, Space("old", DIM, "l2")), tmp_path / "a.faiss", factory)
    settings = settings_of(index._file.index)
    with pytest.raises(FaissIndexError, match=f"does not accept the search parameters '{parameters}' on this index: "):
        index.search(QUERIES, K, parameters=parameters)
    assert settings_of(index._file.index) == settings
