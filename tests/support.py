"""What several test files share: data made to measure, and records of runs for the catalog and for processes that tests start."""

import functools
import json
from pathlib import Path

import duckdb
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embridge.catalog import Catalog
from embridge.errors import DiskFullError as DiskFullError
from embridge.records import AnchorRecord, Artifact, Candidate, Conversion, Evaluation, FitRecord, Run, StrategyScore
from embridge.stores.parquet.collection import SPACE_KEY
from embridge.types import Metric, Space

ROOT = Path(__file__).parents[1]  # of the repository


# Rows, tables and indexes


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


# Records of the catalog

OLD, NEW = Space("minilm", 384, Metric.COSINE, normalized=True), Space("mpnet", 768, Metric.DOT)


def catalog(path, *further, patience=0.2):
    """A catalog whose code knows `further` migrations beside those that ship."""
    made = Catalog(path, patience=patience)
    made._known = [*made._known, *further]
    return made


def contents(path):
    """Everything in a DuckDB file, by table."""
    with duckdb.connect(str(path), read_only=True) as connection:
        names = [row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()]
        return {name: connection.execute(f'FROM "{name}" ORDER BY ALL').fetchall() for name in names}


def fit_run(fingerprint="f1", path="a.safetensors", source=OLD, target=NEW, method="bridge"):
    sides = (
        Artifact("source", "old.parquet", "c-old", "parquet", 100, source),
        Artifact("target", "new.parquet", "c-new", "parquet", 50, target),
    )
    made = Artifact("map", path, fingerprint, "map", space=target, source_space=source)
    record = FitRecord(method, {"alpha": 0.1}, 40, 10, 1.5, "cpu", ("c-old", "c-new"), (Candidate("ridge", {"alpha": 0.1}, 0.5),))
    return Run("fit", {"seed": 3}, 2.0, sides, (made,), 40, "cpu", (AnchorRecord("c-old", "c-new", 50, 40, 10, 0.2, 3), record))


def evaluate_run(fingerprint="f1", overlap=0.5, recall=None, queries=20, sides=("c-old", "c-new")):
    strategies = (
        StrategyScore("keep-old", 0.3, (0.2, 0.4)),
        StrategyScore(
            "translate-documents", overlap, (overlap - 0.1, overlap + 0.1), recall, None if recall is None else recall / 2
        ),
    )
    found = Evaluation(10, queries, 30, strategies, 0.9, 0.4, fingerprint, 7)
    inputs = [Artifact("map", "a.safetensors", fingerprint, "map")]
    inputs += [Artifact(role, f"{side}.parquet", side, "parquet") for role, side in zip(("source", "target"), sides, strict=True)]
    return Run("evaluate", {}, 1.0, tuple(inputs), details=(found,))


def record_story(made):
    """Fit, evaluate, convert, index, of records alone."""
    old = Artifact("source", "old.parquet", "c-old", "parquet", 100, OLD)
    translator = Artifact("map", "a.safetensors", "f1-and-more", "map", space=NEW, source_space=OLD)
    made.record(fit_run("f1-and-more"))
    made.record(evaluate_run("f1-and-more", overlap=0.7))
    done = Conversion("out.parquet", 100, 1.0, "cpu", "c-old", "f1-and-more", "c-out")
    output = Artifact("output", "out.parquet", "c-out", "parquet", 100, NEW)
    made.record(Run("convert", {}, 1.0, (old, translator), (output,), 100, "cpu", (done,)))
    index = Artifact("index", "out.faiss", "12345678ab", "faiss", 100, NEW)
    source = Artifact("source", "out.parquet", "c-out", "parquet", 100, NEW)
    made.record(Run("index", {"factory": "Flat"}, 1.0, (source,), (index,)))
    return made
