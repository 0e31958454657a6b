"""Files of every format are damaged and read in forked processes: each is read, or refused by an EmbridgeError."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import random
import resource
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.torture.laws import Torturer
from tests.torture.processes import PROCESSES
from tests.torture.report import Report

MEMORY = 1 << 30  # bytes that a process may take beyond what it takes with sound files
CPU_SECONDS, SECONDS = 20.0, 240.0  # for one file; the clock is only for a process that waits for ever
BATCH = 400


@dataclasses.dataclass(frozen=True)
class ReadResult:
    """What became of one damaged file: ``read``, ``refused``, or what is wrong with it."""

    seed: int
    verdict: str
    what: str = ""
    how: str = ""


def damaged(seed: int, kind: Any, samples: Sequence[Any]) -> tuple[Any, dict[str, bytes], str, bool]:
    """The sample of this seed, its files of which one is damaged, in words how, and whether checksums were made right again."""
    chance = random.Random(f"{kind.name} {seed}")
    sample = samples[seed % len(samples)]
    name = chance.choice(sample.damaged)
    before = sample.files[name]
    other = chance.choice(samples).files
    spliced = other.get(name, next(iter(other.values())))
    damage = chance.choice(kind.damages)
    after = damage(chance, before, spliced)
    files, how = sample.files | {name: after}, f"{damage.__name__} in {name} of {sample.name}"
    if kind.mend is not None and chance.random() < 0.5:
        return sample, kind.mend(files), f"{how}, mended", True
    return sample, files, how, False


def lay_out(folder: Path, files: dict[str, bytes]) -> Path:
    """Write the files into an emptied folder; the path of the first."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / next(iter(files))


def work(to: Connection, name: str, samples_path: str, world: str, folder: str, seeds: Sequence[int]) -> None:
    """Read damaged files, one a seed; says before each that it begins, and after each what became of it."""
    from embridge.errors import EmbridgeError
    from tests.torture.formats import BY_NAME

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if not os.environ.get("TORTURE_STDERR"):
        os.dup2(null, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kind, samples = BY_NAME[name], pickle.loads(Path(samples_path).read_bytes())  # noqa: S301 (our own, of a moment ago)
    place, inputs = Path(folder) / "sample", Path(world)
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    expected: dict[str, Any] = {}
    for sample in samples:
        with contextlib.suppress(*([EmbridgeError] if sample.name in kind.refused else [])):
            expected[sample.name] = kind.read(lay_out(place, sample.files), inputs)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    for seed in seeds:
        to.send((seed, None))
        to.send((seed, try_one(seed, kind, samples, place, inputs, expected)))
    to.send(None)


def try_one(seed: int, kind: Any, samples: Sequence[Any], place: Path, inputs: Path, expected: dict[str, Any]) -> ReadResult:
    """Damage, read, compare."""
    from embridge.errors import EmbridgeError

    sample, files, how, mended = damaged(seed, kind, samples)
    first = lay_out(place, files)
    try:
        found = kind.read(first, inputs)
    except EmbridgeError:
        return ReadResult(seed, "refused")
    except BaseException as e:  # whatever comes out of it is what is looked for
        ours = [f for f in traceback.extract_tb(e.__traceback__) if f"{os.sep}embridge{os.sep}" in f.filename]
        at = f"{Path(ours[-1].filename).stem}.{ours[-1].name}" if ours else "?"
        if os.environ.get("TORTURE_STDERR"):
            traceback.print_exc()
        return ReadResult(seed, type(e).__name__, f"{type(e).__name__} at {at}: {str(e)[:300]}", how)
    if kind.equal and not mended and found != expected.get(sample.name) and sample.files != files:
        return ReadResult(seed, "changed", "accepted, but it now means something else", how)
    return ReadResult(seed, "read")


def read_results(kind: Any, samples: Path, world: Path, folder: Path, seeds: Sequence[int]) -> Iterator[ReadResult]:
    """What becomes of every seed, in processes of many seeds each; one that dies is followed by another one."""
    left = list(seeds)
    while left:
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=work, args=(theirs, kind.name, str(samples), str(world), str(folder), left[:BATCH]))
        process.start()
        theirs.close()
        begun: int | None = None
        try:
            while (said := _next(ours, process)) is not None:
                begun, result = said
                if result is not None:
                    left.remove(begun)
                    begun = None
                    yield result
            process.join(20)
        except (EOFError, TimeoutError) as e:
            process.kill() if isinstance(e, TimeoutError) else process.join(20)
            process.join()
            if begun is None:
                raise RuntimeError(f"{kind.name}: the undamaged samples cannot be read: exit status {process.exitcode}") from e
            left.remove(begun)
            ends = "hang" if isinstance(e, TimeoutError) else f"the process ended with status {process.exitcode}"
            how = damaged(begun, kind, pickle.loads(samples.read_bytes()))[2]  # noqa: S301
            yield ReadResult(begun, ends, ends, how)
        finally:
            process.close()
            ours.close()


def _next(ours: Connection, process: Any) -> Any:
    """What the process says next.

    Raises
    ------
    EOFError
        It has ended.
    TimeoutError
        It takes too long.
    """
    begun, before = time.monotonic(), _cpu(process.pid)
    while not ours.poll(1.0):
        if _cpu(process.pid) - before > CPU_SECONDS or time.monotonic() - begun > SECONDS:
            raise TimeoutError
    return ours.recv()


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def torture(torturer: Torturer, report: Report, *, seeds: Sequence[int], only: Sequence[str] = ()) -> None:
    """Damage as many files as there are seeds, shared among the formats; with one format its seeds are these."""
    from tests.torture.formats import FORMATS

    kinds = [kind for kind in FORMATS if not only or kind.name in only]
    total = sum(kind.weight for kind in kinds)
    for kind in kinds:
        begun = time.monotonic()
        samples = torturer.box.notes / f"{kind.name}.samples"
        samples.write_bytes(pickle.dumps(kind.samples(torturer.world)))
        share = seeds if len(seeds) == 1 else range(seeds[0], seeds[0] + max(1, round(len(seeds) * kind.weight / total)))
        found: dict[str, int] = {}
        for result in read_results(kind, samples, torturer.world, torturer.box.folder / kind.name, share):
            found[result.verdict] = found.get(result.verdict, 0) + 1
            report.counts["mutations"] += 1
            report.counts[result.verdict if result.verdict in ("read", "refused") else "wrong"] += 1
            if result.what:
                report.fail(result.seed, result.what, f"{kind.name}, {result.how}", chosen=f"--only {kind.name}")
        report.note(f"{kind.name}: {found} in {time.monotonic() - begun:.0f} s")
    torturer.check_inputs()
