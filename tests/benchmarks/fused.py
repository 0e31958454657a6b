"""Fused indexes against the exact fused ranking and a plain index: `python -m tests.benchmarks.fused` prints Markdown.

The first 5,000 rows of wordnet (MiniLM-L6 -> MPNet) are anchors of a `bridge` map; the other 15,000 are translated and indexed. The
first 1,000 queries search, one thread, all indexes in turn (CPU time, median); the others are reference queries of hubness
correction.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

import embridge as eb
from embridge.indexes.fusion import Hubness
from tests.benchmarks.quality import DATA, PAIRS, Pair

K, ANCHORS, QUERIES, WEIGHTS = 10, 5000, 1000, (0.25, 0.5)
FACTORIES = (  # of a plain and a fused index, and search parameters
    ("HNSW32", "HNSW32", "efSearch=64"),
    ("IVF128,Flat", "IVF128,Flat", "nprobe=16"),
    ("IVF128,PQ96np", "IVF128,PQ96np", "nprobe=16"),  # equal bytes a row
    ("IVF128,PQ96np", "IVF128,PQ144np", "nprobe=16"),  # equal width of a part
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fused", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--repeat", type=int, default=5, help="timed searches of each index; the median is reported")
    parser.add_argument("--resident", metavar="INDEX", help="print the memory that an opened index takes, in MB")
    options = parser.parse_args()
    if options.resident:
        print(_resident(options.resident))
        return
    show(options.data, options.repeat)


def show(data: Path, repeat: int = 5) -> list[str]:
    """Print the lines as they are measured, and return them."""
    lines = []
    for line in run(data, repeat):
        print(line, flush=True)
        lines.append(line)
    return lines


def run(data: Path, repeat: int = 5) -> Iterator[str]:
    """Lines of a table in Markdown, as they are measured."""
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="embridge-bench-") as folder:
        yield from _run(Path(folder), Pair.read(data, *PAIRS["wordnet MiniLM -> MPNet"]), repeat)


def _run(folder: Path, pair: Pair, repeat: int) -> Iterator[str]:
    old, new = pair.spaces
    translation = eb.fit(pair.anchors(ANCHORS), "bridge")
    source = eb.MemoryCollection(pair.ids[ANCHORS:], pair.x[ANCHORS:].astype(np.float16), old)
    eb.convert(source, translation, folder / "plain.parquet")
    eb.convert(source, translation, folder / "both.parquet", keep_old=True)
    rows, old_rows = eb.open(folder / "both.parquet"), eb.open(folder / "both.parquet", vector_column="old_vector")
    asked, others = slice(QUERIES), slice(QUERIES, None)
    queries = {"queries": pair.query_y[asked], "old_queries": pair.query_x[asked]}
    references = {
        "hubness": eb.MemoryCollection(pair.query_ids[others], pair.query_y[others], new),
        "old_hubness": eb.MemoryCollection(pair.query_ids[others], pair.query_x[others], old),
    }
    sizes = " and ".join(f"{(folder / name).stat().st_size / 1e6:.0f}" for name in ("plain.parquet", "both.parquet"))
    yield f"collection with one and with both vectors: {sizes} MB"
    yield ""
    yield "| index | weight, correction | overlap@10 with exact | us a query | against plain | file, MB | in memory, MB |"
    yield "|---|---|---|---|---|---|---|"
    truth: dict[object, np.ndarray] = {}
    for number, (plain_factory, fused_factory, parameters) in enumerate(FACTORIES):
        paths = {name: folder / f"{number}-{name}.faiss" for name in ("plain", "fused", "fused, biased")}
        factories = (plain_factory, fused_factory, fused_factory)
        given = ({}, {"fuse": old_rows}, {"fuse": old_rows, **references})
        indexes = {
            name: eb.build_index(rows, path, factory, **options)
            for (name, path), factory, options in zip(paths.items(), factories, given, strict=True)
        }
        cases = [("plain", None, Hubness.NONE), *(("fused", w, Hubness.NONE) for w in WEIGHTS)]
        cases += [("fused, biased", w, h) for w in WEIGHTS for h in (Hubness.NONE, Hubness.BOTH)]
        options = {case: _options(case, queries, parameters) for case in cases}
        times: dict[object, list[float]] = {case: [] for case in cases}
        found = {}
        for _ in range(repeat):
            for case in cases:
                started = time.process_time()
                found[case] = indexes[case[0]].search(**options[case]).ids
                times[case].append((time.process_time() - started) / QUERIES * 1e6)
        plain_time = statistics.median(times[cases[0]])
        for case in cases:
            name, weight, hubness = case
            key = (weight, hubness)
            if key not in truth:
                truth[key] = _exact(case, rows, old_rows, pair, references)
            took = statistics.median(times[case])
            factory = plain_factory if name == "plain" else fused_factory
            share = np.mean([len(set(a) & set(b)) for a, b in zip(found[case].tolist(), truth[key].tolist(), strict=True)]) / K
            size = sum(p.stat().st_size for p in folder.glob(f"{paths[name].name}*")) / 1e6
            what = "" if weight is None else f"{weight}, {hubness}"
            resident = _resident_of(paths[name])
            yield (
                f"| {name} {factory}, {parameters} | {what} | {share:.3f} | {took:.0f} | {took / plain_time:.2f} | {size:.1f} | "
                f"{resident:.0f} |"
            )


def _options(case: tuple[str, float | None, Hubness], queries: dict[str, np.ndarray], parameters: str) -> dict[str, Any]:
    name, weight, hubness = case
    if name == "plain":
        return {"queries": queries["queries"], "k": K, "parameters": parameters}
    return queries | {"k": K, "parameters": parameters, "weight": weight, "hubness": hubness}


def _exact(
    case: tuple[str, float | None, Hubness], rows: eb.Collection, old_rows: eb.Collection, pair: Pair, references: dict[str, object]
) -> np.ndarray:
    """The exact ranking, by the search of the collection itself."""
    _, weight, hubness = case
    old, new = (
        eb.MemoryCollection(pair.query_ids[:QUERIES], side[:QUERIES], space)
        for side, space in zip((pair.query_x, pair.query_y), pair.spaces, strict=True)
    )
    if weight is None:
        ids, vectors = rows.read()
        return ids[eb.top_k(new.read()[1], vectors, K).ids]
    options = {} if hubness == Hubness.NONE else {"references": references["hubness"], "old_references": references["old_hubness"]}
    return eb.search(rows, new, K, fuse=old_rows, old_queries=old, weight=weight, hubness=hubness, **options)[1].ids


def _resident_of(path: Path) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.fused", "--resident", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return float(done.stdout)


def _resident(path: str) -> float:
    """Growth of the resident memory when an index is opened, in MB."""
    eb.Index  # noqa: B018 (loads FAISS and torch before the measurement)
    before = _now()
    index = eb.open_index(path)
    return (_now() - before) / 1e3 if len(index) else 0.0


def _now() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


if __name__ == "__main__":
    main()
