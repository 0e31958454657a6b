"""``python -m tests.torture [kills | mutations | races | disks] [--count N] [--seed N] ...``; exit status 1 on any failure.

``python -m tests.torture in-place [--rows N] [--kills N]`` is another kind, which is not in the default.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any library is loaded: processes are forked, and compared bit by bit
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("EMBRIDGE_CATALOG", None)

COUNTS = {"kills": 500, "mutations": 20_000, "races": 120, "disks": 300}
SAMPLE = {"kills": 6, "mutations": 150, "races": 4, "disks": 4}  # in about a minute, for `make check`
SLOW = ("encode", "fit-kernel", "plan", "parts", "onnx", "provenance")  # cases and formats that a sample leaves out


def main() -> int:
    """Run the requested kinds."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="kills, mutations, races, disks (default: all), or in-place")
    parser.add_argument("--count", type=int, help=f"how many of each kind; default: {COUNTS}")
    parser.add_argument("--sample", action="store_true", help=f"a minute of it: {SAMPLE}, without {', '.join(SLOW)}")
    parser.add_argument("--seed", type=int, help="only this one, as a failure names it")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a case, or a format of mutations")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work here and leave it; default: a temporary folder")
    parser.add_argument("--verbose", action="store_true", help="say on stderr what is done")
    parser.add_argument("--rows", type=int, default=200_000, help="in-place: rows of the table")
    parser.add_argument("--kills", type=int, default=20, help="in-place: how often the migration is killed")
    options = parser.parse_args()
    if options.kinds == ["in-place"]:
        from tests.torture import in_place

        return in_place.main(options.rows, options.kills, options.seed or 0, verbose=options.verbose)
    kinds = options.kinds or list(COUNTS)
    if unknown := set(kinds) - set(COUNTS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    from tests.torture import gate

    if len(kinds) > 1 or kinds != ["mutations"]:
        reason = gate.why_not()
        if reason:
            print(f"skipped: kills, races, disks: {reason}")
            kinds = [kind for kind in kinds if kind == "mutations"]
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        base = options.keep or Path(temporary)
        return int(_all(kinds, options, base) > 0)


def _all(kinds: list[str], options: argparse.Namespace, base: Path) -> int:
    from tests.torture import processes
    from tests.torture.formats import BY_NAME as FORMATS
    from tests.torture.laws import Torturer
    from tests.torture.report import Report
    from tests.torture.verbs import BY_NAME as CASES
    from tests.torture.world import make_world

    processes.preload(*([] if options.sample else ["sentence_transformers"]))
    world = base / "in"
    base.mkdir(parents=True, exist_ok=True)
    make_world(world, processes.must(base, base / "notes"))
    quick = [name for name in (*CASES, *FORMATS) if name not in SLOW] if options.sample else []
    only = options.only or quick
    failures = 0
    for kind in kinds:
        report = Report(kind, "--sample" if options.sample else " ".join(f"--only {name}" for name in only), options.verbose)
        count = options.count if options.count is not None else (SAMPLE if options.sample else COUNTS)[kind]
        seeds = [options.seed] if options.seed is not None else range(options.first, options.first + count)
        torture = importlib.import_module(f"tests.torture.{kind}").torture
        torture(Torturer(base / kind, world), report, seeds=seeds, only=only)
        failures += report.close()
    return failures


if __name__ == "__main__":
    sys.exit(main())
