"""Moving an HNSW index by a rotation (`--mode rewrite`) against building it again: CPU seconds and wall time in one process.

`python -m tests.benchmarks.moving [--rows 200000] [--folder DIR]`. Rows are those of `tests.benchmarks.scale`. The old
index is built once; the rebuild is `--mode rebuild` of the same index. Building takes 0.15 to 0.5 ms of CPU a row at 200,000 rows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import embridge as eb
from tests.benchmarks.scale import make


def timed(call: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.moving", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="embridge-moving-", dir=options.folder) as name:
        folder = Path(name)
        make(folder / "old.parquet", "minilm-l6", options.rows, 0)
        old = eb.open(folder / "old.parquet", space="old")
        dim = old.space.dim
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0]
        new = eb.Space("new", dim, old.space.metric, old.space.normalized)
        translation = eb.LinearMap(turn, np.zeros(dim), old.space, new)
        index = folder / "old.faiss"
        built = timed(lambda: eb.build_index(old, index, "HNSW32"))
        moved = [timed(lambda n=n: eb.migrate(index, translation, folder / f"moved{n}.faiss", mode="rewrite")) for n in range(2)]
        again = timed(lambda: eb.migrate(index, translation, folder / "again.faiss", mode="rebuild"))
    best = tuple(min(times) for times in zip(*moved, strict=True))
    found = {"rows": options.rows, "build cpu": built[0], "rewrite cpu": best[0], "rebuild cpu": again[0]}
    found |= {
        "rebuild / rewrite, cpu": again[0] / best[0],
        "rebuild / rewrite, wall": again[1] / best[1],
        "rewrite seconds": best[1],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
