"""What tests of several rooms share: data made to measure, and verbs run in this process."""

import functools
import json
import shlex
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from embridge.cli.main import main
from embridge.errors import DiskFullError as DiskFullError
from embridge.stores.parquet.collection import SPACE_KEY
from embridge.types import Space

ROOT = Path(__file__).parents[1]  # of the repository


def make_space(name: str = "source", dim: int = 8, **kw) -> Space:
    return Space(name, dim, **kw)


def planted(
    n: int = 200, p: int = 6, q: int = 8, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(p, q)) / np.sqrt(p)
    x = rng.normal(size=(n, p))
    y = x @ W + noise * rng.normal(size=(n, q))
    ids = rng.permutation(10 * n)[:n]
    return ids, x.astype(np.float32), y.astype(np.float32), W.astype(np.float32)


def table_of(ids, vectors, payload=None, *, space=None, kind="fixed", dtype=np.float32, names=("id", "vector"), id_type=None):
    """A table without metadata, or (with `space`) as embridge writes it."""
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


def write(path, table, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **kw)
    return str(path)


@functools.cache
def trained(factory, dim, metric):
    """An empty index, trained on enough rows that FAISS has no reason to warn."""
    index = faiss.index_factory(dim, factory, metric)
    if factory.startswith("OPQ"):
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter, rotation.niter_pq = 2, 2  # any rotation will do
    index.train(np.random.default_rng(0).normal(size=(10_000 if "OPQ" in factory else 1_000, dim)).astype(np.float32))
    return index


def index_of(factory, vectors, labels=None, metric=faiss.METRIC_INNER_PRODUCT):
    """A FAISS index that holds these vectors."""
    index = faiss.clone_index(trained(factory, vectors.shape[1], metric))
    if labels is None:
        index.add(vectors)
    else:
        index.add_with_ids(vectors, np.asarray(labels, np.int64))
    return index


def run(*arguments, cwd=None):
    """The verb, in this process; ``run("info old.parquet --json")`` or with one argument a word."""
    words = shlex.split(arguments[0]) if len(arguments) == 1 else [str(a) for a in arguments]
    with pytest.MonkeyPatch.context() as patch:
        if cwd is not None:
            patch.chdir(cwd)
        return CliRunner().invoke(main, words)


def strict(text):
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def run_json(*arguments, cwd=None):
    """What a verb prints with --json; nothing may be on stderr."""
    result = run(*arguments, cwd=cwd)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert result.stderr == ""
    return strict(result.stdout)
