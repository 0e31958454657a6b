"""A rollout to the end by its verbs, on real embeddings: figures against an independent evaluation, orders compared, kills.

`python -m tests.benchmarks.rollout DATA --source minilm-l6 --target mpnet [--anchors 1000] [--percent 20] [--queries 5000]
[--kills 0] [--random]`, DATA a folder with NAME.parquet, NAME.queries.parquet and qrels.parquet. Every verb is a process; with
`--kills` so many of them are killed at a random moment and called again. `--random` adds rows in random order instead of that of
`rollout next`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

K = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    for name, default in (("source", "minilm-l6"), ("target", "mpnet")):
        parser.add_argument(f"--{name}", default=default)
    for name, default in (("anchors", 1000), ("percent", 20), ("queries", 5000), ("kills", 0), ("rows", 10**9), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--random", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        journey = Journey(options, Path(folder))
        stages = journey.run()
    print(json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, "stages": stages, "kills": journey.killed}))


class Journey:
    """One rollout from its start to its last row."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder, self.killed = options, folder, 0
        self.moments = random.Random(options.seed)
        self.ids = self.copy("source", "old.parquet", options.rows)
        self.new = self.copy("target", "new.parquet", options.rows)
        for side in ("source", "target"):
            self.copy(side, f"q-{side}.parquet", options.queries, ".queries")
        chosen = self.new.slice(0, options.anchors)
        pq.write_table(chosen, folder / "sample.parquet")
        self.order = np.random.default_rng(options.seed).permutation(np.arange(options.anchors, len(self.new)))

    def copy(self, side: str, name: str, rows: int, kind: str = "") -> pa.Table:
        table = pq.read_table(self.options.data / f"{getattr(self.options, side)}{kind}.parquet").slice(0, rows)
        pq.write_table(table, self.folder / name)
        return table

    def run(self) -> list[dict[str, object]]:
        spaces = ["--source-space", "old", "--target-space", "new"]
        queries = ["--queries", "q-source.parquet", "q-target.parquet", "--qrels", str(self.options.data / "qrels.parquet")]
        self.verb("start", "old.parquet", "sample.parquet", "-o", "rollout", *spaces, *queries, made=self.folder / "rollout")
        stages = []
        print("| native | keep-old | fused: status | evaluated again | new queries alone | forecast | new vectors alone |")
        print("|---|---|---|---|---|---|---|")
        while True:
            status = json.loads(self.output("status", "rollout"))
            again = evaluated(self.folder, status)
            past = status["history"][-1]
            stages.append(
                {name: status[name] for name in ("native", "stage", "weight", "hubness")} | {"again": again, "past": past}
            )
            stages[-1]["content"] = content(self.folder / "rollout")
            stages[-1] |= {name: status[name] for name in ("keep_old", "now", "new_queries", "new_space", "new_model")}
            now, (low, high) = status["now"]["recall"], status["now"]["recall_ci"]
            shown = "-" if past["forecast"] is None else f"{past['forecast']:.3f}"
            print(
                f"| {status['native']:,} | {status['keep_old']['recall']:.4f} | {now:.4f} [{low:.3f}, {high:.3f}] | {again:.4f} "
                f"| {status['new_queries']['recall']:.4f} | {shown} | {status['new_space']['recall']:.4f} |",
                flush=True,
            )
            if not status["translated"]:
                return stages
            self.step(status)

    def step(self, status: dict[str, object]) -> None:
        stage, count = status["stage"], len(self.new) * self.options.percent // 100
        ids, native = self.folder / f"ids-{stage}.parquet", self.folder / f"native-{stage}.parquet"
        if self.options.random:
            chosen, self.order = self.order[:count], self.order[count:]
            pq.write_table(self.new.take(np.sort(chosen)), native)
        else:
            self.verb("next", "rollout", "-n", str(count), "-o", ids.name, made=ids)
            wanted = set(pq.read_table(ids)["id"].to_pylist())
            pq.write_table(self.new.filter(pa.array([one in wanted for one in self.new["id"].to_pylist()])), native)
        self.verb("add", "rollout", native.name)

    def verb(self, *words: str, made: Path | None = None) -> None:
        """Run a verb until it ends; while kills are left it is killed at a random moment, at most four times, and called again."""
        attempt = 0
        while True:
            attempt += 1
            command = [sys.executable, "-m", "embridge.cli.main", "rollout", *words, "--no-catalog", "--json"]
            process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)
            if self.killed < self.options.kills and attempt <= 4:
                time.sleep(self.moments.uniform(0, 8))
                if process.poll() is None:
                    process.kill()
                    process.wait()
                    self.killed += 1
                    if made is not None and made.exists():  # the step was done, or the list written, before the kill
                        return
                    continue
            if process.wait() != 0:
                raise SystemExit(f"{words} failed")
            return

    def output(self, *words: str) -> str:
        command = [sys.executable, "-m", "embridge.cli.main", "rollout", *words, "--no-catalog", "--json"]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout


def content(rollout: Path) -> dict[str, str]:
    """Checksums of the state and of the collection, and the fingerprints of what the collection was made of."""
    state = json.loads((rollout / "state.json").read_text())
    path = rollout / state["folder"] / "collection.parquet"
    lineage = json.loads(pq.read_schema(path).metadata[b"embridge.lineage"])
    return {"state": state["checksum"], "collection": hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(), **lineage}


def evaluated(folder: Path, status: dict[str, object], name: str = "rollout") -> float:
    """recall@10 of the reported queries over the rows of the rollout, from the formula alone."""
    state = json.loads((folder / name / "state.json").read_text())
    stage = pq.read_table(folder / name / state["folder"] / "collection.parquet")
    place = {row: n for n, row in enumerate(stage["id"].to_pylist())}
    old, new = (unit(vectors(stage[name])) for name in ("old_vector", "vector"))
    queries = pq.read_table(folder / name / state["folder"] / "queries.parquet")
    half = np.array([halved(query) for query in queries["id"].to_pylist()])
    asked = [unit(vectors(queries[name])) for name in ("old_vector", "vector")]
    judged: dict[object, list[int]] = {}
    table = pq.read_table(folder / name / state["folder"] / "qrels.parquet").to_pydict()
    for query, document in zip(table["query_id"], table["doc_id"], strict=True):
        if document in place:
            judged.setdefault(query, []).append(place[document])
    references = [side[half == 0][:1500] for side in asked]
    weight, corrected = status["weight"], status["hubness"]
    biases = [
        bias(rows, given) / 2 if corrected in (name, "both") else 0
        for name, rows, given in zip(("old", "new"), (old, new), references, strict=True)
    ]
    recalls = []
    for n in np.flatnonzero(half == 1):
        wanted = judged.get(queries["id"][n].as_py())
        if wanted:
            score = (1 - weight) * (old @ asked[0][n] - biases[0]) + weight * (new @ asked[1][n] - biases[1])
            best = np.argpartition(-score, K)[:K]
            recalls.append(np.isin(wanted, best).mean())
    return float(np.mean(recalls))


def halved(query: object) -> int:
    digest = hashlib.blake2b(str(query).encode(), digest_size=8, person=b"half", key=b"0").digest()
    return int.from_bytes(digest, "little") % 2


def vectors(column: pa.ChunkedArray) -> np.ndarray:
    whole = column.combine_chunks()
    return whole.flatten().to_numpy().reshape(len(whole), -1).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def bias(rows: np.ndarray, references: np.ndarray) -> np.ndarray:
    return np.concatenate([np.sort(part @ references.T, axis=1)[:, -10:].mean(1) for part in np.array_split(rows, 20)])


if __name__ == "__main__":
    main()
