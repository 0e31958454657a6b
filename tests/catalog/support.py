"""Records of runs for the tests of the catalog, of these tests and of the processes that they start."""

import duckdb

from embridge.catalog import Catalog
from embridge.errors import DiskFullError as DiskFullError
from embridge.records import AnchorRecord, Artifact, Candidate, Conversion, Evaluation, FitRecord, Run, StrategyScore
from embridge.types import Metric, Space

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
