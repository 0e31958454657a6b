"""Fixtures for all tests. They give functions, so that a test asks for the sizes it needs.

``make_space("minilm", 4, metric="l2")``, ``ids, x, y, W = planted(n=200, p=6, q=8, noise=0.1, seed=1)``,
``write(path, table_of(ids, x, space=...))`` and ``index_of("IVF4,Flat", x)``.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before FAISS and torch are loaded: the tests are small

import functools
import json
from collections.abc import Callable

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from embridge.stores.parquet.collection import SPACE_KEY
from embridge.types import Space

# Tests run beside others on small machines, where a deadline tells nothing; CI must not find something new in old code.
settings.register_profile("embridge", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("embridge")


def _make_space(name: str = "source", dim: int = 8, **kw) -> Space:
    return Space(name, dim, **kw)


def _planted(
    n: int = 200, p: int = 6, q: int = 8, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(p, q)) / np.sqrt(p)
    x = rng.normal(size=(n, p))
    y = x @ W + noise * rng.normal(size=(n, q))
    ids = rng.permutation(10 * n)[:n]
    return ids, x.astype(np.float32), y.astype(np.float32), W.astype(np.float32)


@pytest.fixture(scope="session")
def make_space() -> Callable[..., Space]:
    """``make_space(name="source", dim=8, metric=..., normalized=...)``."""
    return _make_space


@pytest.fixture(scope="session")
def planted() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """``ids, x, y, W = planted(n, p, q, noise, seed)`` with ``y = x @ W + noise * N(0, 1)``.

    ids (n,) are unique int64 in no order; x (n, p), y (n, q) and W (p, q) are float32; y has about unit variance a feature.
    """
    return _planted


def _table_of(ids, vectors, payload=None, *, space=None, kind="fixed", dtype=np.float32, names=("id", "vector"), id_type=None):
    """A table as a stranger may have made it, or (with `space`) as embridge writes it."""
    vectors = np.asarray(vectors, dtype)
    values = pa.array(vectors.ravel())
    if kind == "fixed":
        column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    else:
        offsets = np.arange(0, len(values) + 1, vectors.shape[1])
        column = (
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
            if kind == "list"
            else pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
        )
    table = pa.table({names[0]: pa.array(ids, id_type), names[1]: column, **(payload or {})})
    return table.replace_schema_metadata({SPACE_KEY: json.dumps(space.to_dict())}) if space else table


def _write(path, table, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **kw)
    return str(path)


@functools.cache
def _trained(factory, dim, metric):
    """An empty index, trained on enough rows that FAISS has no reason to warn."""
    index = faiss.index_factory(dim, factory, metric)
    if factory.startswith("OPQ"):
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter, rotation.niter_pq = 2, 2  # any rotation will do
    index.train(np.random.default_rng(0).normal(size=(10_000 if "OPQ" in factory else 1_000, dim)).astype(np.float32))
    return index


def _index_of(factory, vectors, labels=None, metric=faiss.METRIC_INNER_PRODUCT):
    """A FAISS index that holds these vectors."""
    index = faiss.clone_index(_trained(factory, vectors.shape[1], metric))
    if labels is None:
        index.add(vectors)
    else:
        index.add_with_ids(vectors, np.asarray(labels, np.int64))
    return index


@pytest.fixture(scope="session")
def table_of():
    """``table_of(ids, vectors, payload=None, space=None, kind=..., dtype=..., names=..., id_type=...)``: an Arrow table.

    `kind` is ``fixed``, ``list`` or ``large_list``; `names` those of the id and the vector column.
    """
    return _table_of


@pytest.fixture(scope="session")
def write():
    """``write(path, table, **options)`` of a Parquet file, with the folders above it; the path as a string."""
    return _write


@pytest.fixture(scope="session")
def index_of():
    """``index_of(factory, vectors, labels=None, metric=METRIC_INNER_PRODUCT)``, a FAISS index of them; trained once a factory."""
    return _index_of
