"""`make bench BENCH=ray`: weak scaling of conversions on Ray, one and two workers of one core, beside the local run in one session.

A worker always has `--rows` rows, so two of them have twice as many. Workers are started, and have imported everything, before
they are measured; what that takes is a figure of its own. Local runs, as by default, convert two files at a time.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import embridge as eb
from embridge.ray import Backend, RayBackend, connected
from tests.benchmarks.cases import _lists, _settings

P, Q, FILES = 384, 768, 4  # files a worker


def make(folder: Path, rows: int, files: int) -> None:
    """A folder of files of unit vectors."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(files):
        x = rng.standard_normal((rows // FILES, P), dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        ids = pa.array([f"doc-{number:03d}-{i:010d}" for i in range(len(x))])
        pq.write_table(pa.table([ids, _lists(x)], ["id", "vector"]), folder / f"{number}.parquet", **_settings())


def convert(folder: Path, name: str, translation: eb.LinearMap, backend: Backend) -> float:
    """Rows a second of one conversion, all checks included."""
    source = eb.open(folder / name, space="old")
    started = time.perf_counter()
    eb.convert(source, translation, folder / "out", backend=backend)
    seconds = time.perf_counter() - started
    shutil.rmtree(folder / "out")
    return len(source) / seconds


def run(arguments: list[str]) -> dict[str, object]:
    """Measure, and print as a table."""
    parser = argparse.ArgumentParser(prog="make bench BENCH='ray ...'", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="of a worker")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; medians are reported")
    options = parser.parse_args(arguments)
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    folder = Path(tempfile.mkdtemp(prefix="embridge-bench-"))
    rng = np.random.default_rng(1)
    spaces = (eb.Space(name, dim, eb.Metric.COSINE, True) for name, dim in (("old", P), ("new", Q)))
    translation = eb.LinearMap(rng.standard_normal((Q, P)) / np.sqrt(P), rng.standard_normal(Q) / 100, *spaces)
    report: dict[str, object] = {"machine": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        make(folder / "1", options.rows, FILES)
        make(folder / "2", options.rows, 2 * FILES)
        make(folder / "warm", 4 * FILES, FILES)
        with connected(RayBackend(cluster.address)):
            for workers in (1, 2):
                started = time.perf_counter()
                if workers == 2:
                    cluster.add_node(num_cpus=1)
                convert(folder, "warm", translation, "ray")
                report[f"{workers}: start, s"] = time.perf_counter() - started
                runs = [
                    [convert(folder, str(workers), translation, backend) for backend in ("local", "ray")]
                    for _ in range(options.repeat)
                ]
                local, ray = map(statistics.median, zip(*runs, strict=True))
                report |= {f"{workers}: rows": workers * options.rows, f"{workers}: local rows/s": local}
                report |= {f"{workers}: ray rows/s": ray, f"{workers}: ray / local": ray / local}
    finally:
        cluster.shutdown()
        shutil.rmtree(folder)
    one, two = (float(str(report[f"{workers}: ray rows/s"])) for workers in (1, 2))
    report["2 workers / 1 worker"] = two / one
    for name, value in report.items():
        print(f"{name:22} {value:,.3g}" if isinstance(value, float) and value < 100 else f"{name:22} {value}")
    return report
