"""Time, memory and disk of the verbs at 10^5, 10^6 and 10^7 rows, with their growth, and what larger collections would take.

`python -m tests.benchmarks.scale [--rows 100000 1000000] [--folder DIR] [--only convert ...] [--out scale.json]`. Every verb is a
process of its own: wall time, CPU time of all its threads, its peak resident memory (which counts pages of mapped files), and
the peak of the memory that is its own (sampled every 20 ms).

Collections are made from real vectors (`../shared/data/wordnet`, MiniLM-L6 and MPNet): row i is ``unit(u + w v + 0.05 e)`` with u
row i of the real ones (modulo their number), v another one drawn at random, w uniform in [0.1, 1] and e a normal vector of expected
length one; u, v and w are those of both models, so that rows belong together as real ones do. 384 and 768 values of float16.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(os.environ.get("EMBRIDGE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "wordnet"
ROOT = Path(__file__).resolve().parents[2]
VERBS = ("convert", "killed", "verify", "fit", "index", "search", "plan", "rollout", "store")
GROUP = 20_000  # rows of a row group
ANCHORS, PLANNED, QUERIES = 100_000, 20_000, 1_000
MEMORY_MB = 800  # a conversion of any size needs less
SPACES = ("--source-space", "old", "--target-space", "new")
_NODES = (1, 10, 100)


def real(name: str) -> np.ndarray:
    column = pq.read_table(DATA / f"{name}.parquet", columns=["vector"])["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)


def make(path: Path, name: str, rows: int, seed: int) -> None:
    """A collection of one model's vectors; the same seed gives rows that belong together."""
    base, drawn = real(name), np.random.default_rng(seed)
    noise = np.random.default_rng([seed, base.shape[1]])
    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float16(), base.shape[1]))])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=["id"]) as writer:
        for start in range(0, rows, GROUP):
            number = np.arange(start, min(start + GROUP, rows))
            others, weight = drawn.integers(len(base), size=GROUP), drawn.uniform(0.1, 1, GROUP).astype(np.float32)
            x = base[number % len(base)] + weight[: len(number), None] * base[others[: len(number)]]
            x += noise.standard_normal(x.shape, dtype=np.float32) * np.float32(0.05 / np.sqrt(x.shape[1]))
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            values = pa.FixedSizeListArray.from_arrays(pa.array(x.astype(np.float16).reshape(-1)), x.shape[1])
            writer.write_table(pa.table([pa.array([f"doc-{i:010d}" for i in number]), values], schema=schema))


def prepare(folder: Path, rows: int) -> None:
    make(folder / "old.parquet", "minilm-l6", rows, 0)
    make(folder / "sample.parquet", "mpnet", min(rows, ANCHORS), 0)
    make(folder / "small.parquet", "mpnet", min(rows, PLANNED), 0)
    for name, model in (("q-old", "minilm-l6.queries"), ("q-new", "mpnet.queries")):
        pq.write_table(pq.read_table(DATA / f"{model}.parquet").slice(0, QUERIES), folder / f"{name}.parquet")
    run(folder, "fit", "old.parquet", "sample.parquet", "-o", "map.safetensors", "--method", "bridge", *SPACES)


def commands(rows: int) -> dict[str, tuple[str, ...]]:
    """The arguments of each verb; an index has about 4 sqrt(n) lists."""
    lists = 1 << int(np.log2(4 * np.sqrt(rows)))
    half = ("--dtype", "float16", "--space", "old")
    queries = ("--queries", "q-old.parquet", "q-new.parquet")
    return {
        "convert": ("convert", "old.parquet", "map.safetensors", "new.parquet", *half),
        "killed": ("convert", "old.parquet", "map.safetensors", "killed.parquet", *half, "--resume"),
        "verify": ("verify", "new.parquet", "--source", "old.parquet", "--map", "map.safetensors", "--space", "old"),
        "fit": ("fit", "old.parquet", "sample.parquet", "-o", "auto.safetensors", "--keep-affine", *SPACES),
        "index": ("index", "new.parquet", "new.faiss", "--factory", f"IVF{lists},SQ8", "--on-disk"),
        "search": ("search", "new.faiss", "q-new.parquet", "--space", "new", "-o", "hits.parquet"),
        "plan": ("plan", "old.parquet", "small.parquet", *queries, *SPACES),
        "rollout": ("rollout", "start", "old.parquet", "small.parquet", "-o", "rollout", *queries, *SPACES),
        "store": ("copy", "new.parquet", "lancedb://{folder}/lance#new"),
    }


def run(folder: Path, *arguments: str, kill_after: int | None = None) -> dict[str, float]:
    """One verb as a process: seconds, CPU seconds, peak memory in MB. With `kill_after` it is killed at so many bytes of output."""
    given = [argument.format(folder=folder) for argument in arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    with open(folder / "log", "wb") as log:
        command = [sys.executable, "-m", "embridge.cli.main", *given]
        child = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment)
        partial, own = folder / "killed.parquet.partial", 0.0
        while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            own = max(own, _own_memory(child.pid))
            if kill_after is not None and partial.exists() and partial.stat().st_size >= kill_after:
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode and kill_after is None:
        raise RuntimeError(f"{' '.join(given)}: {(folder / 'log').read_text()[-2000:]}")
    found = _figures(time.perf_counter() - started, used) | {"own_mb": own}
    return found | {"killed": float(child.returncode == -signal.SIGKILL)}


def _own_memory(pid: int) -> float:
    """Memory of a process in MB without pages of files, which the system can drop at any time."""
    with open(f"/proc/{pid}/status") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(("RssAnon", "RssShmem"))) / 1e3


def _figures(seconds: float, used: resource.struct_rusage) -> dict[str, float]:
    return {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1e3}


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(folder: Path, rows: int, only: tuple[str, ...]) -> list[dict[str, Any]]:
    found = []
    for verb, arguments in commands(rows).items():
        if verb not in only:
            continue
        before = disk(folder)
        if verb == "killed":
            half = (folder / "new.parquet").stat().st_size // 2
            first = run(folder, *arguments, kill_after=half)
            row = run(folder, *arguments)
            same = filecmp.cmp(folder / "killed.parquet", folder / "new.parquet", shallow=False)
            if not (first["killed"] and same):
                raise RuntimeError("the conversion was not killed, or resumed it differs")
            row |= {name: row[name] + first[name] for name in ("seconds", "cpu")}
            row |= {name: max(row[name], first[name]) for name in ("peak_mb", "own_mb")}
            written = disk(folder) - before
            (folder / "killed.parquet").unlink()
        else:
            row, written = run(folder, *arguments), disk(folder) - before
        line = {"rows": rows, "verb": verb, **row, "disk_mb": written / 1e6}
        print("  ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()), flush=True)
        found.append(line)
    return found


def growth(lines: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Slopes of the logarithms of CPU time and of memory against that of rows, by verb, where several sizes were measured."""
    out = {}
    for verb in dict.fromkeys(line["verb"] for line in lines):
        mine = [line for line in lines if line["verb"] == verb]
        if len(mine) > 1:
            n = np.log([line["rows"] for line in mine])
            out[verb] = {
                name: float(np.polyfit(n, np.log([line[name] for line in mine]), 1)[0]) for name in ("cpu", "peak_mb", "own_mb")
            }
    return out


def predicted(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hours of 10^8 and 10^9 rows on some nodes, computed: linear from the largest size, shared evenly; nobody ran this."""
    out = []
    for verb in ("convert", "verify", "index", "store"):
        mine = max((line for line in lines if line["verb"] == verb), key=lambda line: line["rows"], default=None)
        for rows in (10**8, 10**9) if mine else ():
            hours = mine["seconds"] * rows / mine["rows"] / 3600
            out.append({"verb": verb, "rows": rows, **{f"hours on {nodes}": hours / nodes for nodes in _NODES}})
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6])
    parser.add_argument("--only", nargs="+", choices=VERBS, default=VERBS)
    parser.add_argument("--folder", type=Path, help="where collections are made (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path("scale.json"))
    parser.add_argument("--make", nargs=2, metavar=("FOLDER", "ROWS"), help="make the collections and the map, and end")
    options = parser.parse_args(arguments)
    if options.make:
        prepare(Path(options.make[0]), int(options.make[1]))
        return
    lines: list[dict[str, Any]] = []
    for rows in options.rows:
        folder = Path(tempfile.mkdtemp(prefix="embridge-scale-", dir=options.folder))
        try:
            # Another process: the peak memory of a child begins with that of its parent.
            subprocess.run([sys.executable, "-m", "tests.benchmarks.scale", "--make", str(folder), str(rows)], check=True, cwd=ROOT)
            lines += measure(folder, rows, tuple(options.only))
        finally:
            shutil.rmtree(folder)
    largest = max((line["peak_mb"] for line in lines if line["verb"] in ("convert", "killed")), default=0.0)
    report = {"lines": lines, "growth": growth(lines), "computed, not measured": predicted(lines)}
    report["conversions within 800 MB"] = largest < MEMORY_MB
    print(json.dumps({key: value for key, value in report.items() if key != "lines"}, indent=2))
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
