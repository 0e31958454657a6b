"""`make bench`: ratios measured in one run, each case in a process of its own, printed as a table and written as JSON.

`python -m tests.benchmarks [--only query kernel fit convert quality fused service] [--rows ...] [--anchors ...] [--repeat 3]
[--folder DIR] [--out FILE]`; 10,000,000 rows on request. `make bench BENCH=scale` (or `BENCH="scale --rows 10000000"`) is
`tests.benchmarks.scale`; `make bench BENCH=ray` is `tests.benchmarks.cluster`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import cluster, fused, quality, scale, service

WIDTHS = ((384, 768), (1024, 1024))
PARTS = ("query", "kernel", "fit", "convert", "quality", "fused", "service")


def case(name: str, folder: Path, *arguments: object) -> dict[str, float]:
    """Run one case in a new process; what it measured, with its peak memory in MB."""
    command = [sys.executable, "-m", "tests.benchmarks.cases", name, str(folder), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return json.loads(done.stdout.splitlines()[-1])


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def paired(repeat: int, folder: Path, names: tuple[str, ...], *arguments: object) -> dict[str, dict[str, float]]:
    """Cases in turn, A B A B ..., so that a machine that drifts drifts for all of them."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(repeat):
        for name in names:
            runs[name].append(case(name, folder, *arguments))
            for output in folder.glob("out*"):
                output.unlink()
    return {name: medians(found) for name, found in runs.items()}


def conversions(rows: list[int], repeat: int, folder: Path) -> list[dict[str, object]]:
    found = []
    for n in rows:
        for p, q in WIDTHS:
            case("make", folder, n, p, q)
            # Loading a whole collection of 10 M is what a user cannot do here; the comparison stays with what fits.
            names = ("copy", "convert", "gemm", *(("pandas",) if n * (p + q) * 4 * 4 < 16e9 else ()))
            result = paired(repeat, folder, names, n, p, q)
            ours = result["convert"]["seconds"]
            row: dict[str, object] = {"rows": n, "widths": f"{p} -> {q}", "seconds": ours}
            row["peak_mb"] = result["convert"]["peak_mb"]
            row |= {"/ pyarrow copy": ours / result["copy"]["seconds"], "/ bare GEMM": ours / result["gemm"]["seconds"]}
            if "pandas" in result:
                row |= {"/ load all": ours / result["pandas"]["seconds"], "load all peak_mb": result["pandas"]["peak_mb"]}
            if "cuda" in result["convert"]:
                row["cuda seconds"] = result["convert"]["cuda"]
            found.append(row)
            show(row)
            (folder / "source.parquet").unlink()
    return found


def fits(anchors: list[int], repeat: int, folder: Path) -> list[dict[str, object]]:
    found = []
    for n in anchors:
        result = medians([case("fit", folder, n, 384, 768) for _ in range(repeat)])
        row: dict[str, object] = {"anchors": n, "widths": "384 -> 768", "products": result["products"]}
        for method in ("linear", "ortho", "bridge", "bridge for decode", "auto", "auto, affine"):
            row[f"{method} / products"] = result[method] / result["products"]
        if "paper" in result:
            row["linear / NumPy paper"] = result["linear"] / result["paper"]
        found.append(row)
        show(row)
    return found


def kernels(repeat: int, folder: Path) -> list[dict[str, object]]:
    found = []
    for landmarks in (500, 5_000):
        result = medians([case("kernel", folder, 20_000, 384, 768, landmarks) for _ in range(repeat)])
        row: dict[str, object] = {"landmarks": landmarks, "widths": "384 -> 768", "rows a second": 20_000 / result["apply"]}
        row |= {"/ bare products": result["apply"] / result["bare"], "/ affine map": result["apply"] / result["affine"]}
        found.append(row)
        show(row)
    return found


def show(row: dict[str, object]) -> None:
    print("  ".join(f"{key} {_cell(value)}" for key, value in row.items()), flush=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    if sys.argv[1:2] == ["ray"]:
        cluster.run(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="of the collections converted")
    parser.add_argument("--anchors", type=int, nargs="+", default=[5_000, 100_000, 1_000_000], help="that are fitted from")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each case; medians are reported")
    parser.add_argument("--folder", type=Path, help="where collections are made (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="the JSON file to write")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="embridge-bench-"))
    try:
        report: dict[str, object] = {"machine": platform.platform(), "cores": os.cpu_count(), "repeat": options.repeat}
        report |= {"device": case("device", folder)["name"]}
        show(report)
        if "query" in options.only:
            report["query"] = medians([case("query", folder, 384, 768) for _ in range(options.repeat)])
            show(report["query"])
        if "kernel" in options.only:
            report["kernel"] = kernels(options.repeat, folder)
        if "fit" in options.only:
            report["fit"] = fits(options.anchors, options.repeat, folder)
        if "convert" in options.only:
            report["convert"] = conversions(options.rows, options.repeat, folder)
        if "quality" in options.only and quality.DATA.is_dir():
            report["quality"] = quality.run(quality.arguments([]))
        elif "quality" in options.only:
            print(f"quality: left out, since {quality.DATA} is not there", flush=True)
        if "fused" in options.only and quality.DATA.is_dir():
            report["fused"] = fused.show(quality.DATA)
        elif "fused" in options.only:
            print(f"fused: left out, since {quality.DATA} is not there", flush=True)
        if "service" in options.only:
            report["service"] = service.show()
        options.out.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written to {options.out}")
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["scale"]:
        scale.main(sys.argv[2:])
    else:
        main()
