"""A disk that fills at any write, a file system of any small size, an output folder that vanishes: a clear error, nothing torn."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.torture.laws import Torturer, check_end
from tests.torture.processes import End
from tests.torture.report import BrokenLawError, Report
from tests.torture.verbs import CASES, Case
from tests.torture.world import files_of

KINDS = ("full", "broken", "small", "vanished")
_GROWING = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "ftruncate", "fallocate", "mkdir",
            "mkdirat", "open", "openat", "fsync", "fdatasync")  # fmt: skip
_RESUMED = ("convert", "encode")  # these keep what is done, to go on with
_NAMES = ("out", "cat/", "embridge.duckdb")


def full(torturer: Torturer, case: Case, chance: random.Random, error: int) -> str:
    """From the n-th call on, every call that needs room (or any, where the disk is broken) fails; see `check_full_disk`."""
    calls = torturer.truth(case).calls
    point = chance.randint(1, calls)
    failed = ""
    with torturer.begin(case) as one:
        for number, call in enumerate(one.calls(), 1):
            if number >= point and call.name in _GROWING:
                failed = failed or f"{errno.errorcode[error]} from call {number} on, {call}"
                call.fail(error)
            else:
                call.allow()
        end = one.end()
    check_full_disk(torturer, case, end, failed, sized=error == errno.ENOSPC)
    return failed


def small(torturer: Torturer, case: Case, chance: random.Random) -> str:
    """The folder of the output is a file system of a size that is often too small."""
    required = sum(map(len, torturer.truth(case).files.values())) // 1024 + 4
    taken = sum((torturer.world / name).stat().st_size for name in case.copies) // 1024 + 4
    place = torturer.box.folder / _place(case)
    if _place(case) == "cat":
        required = 1500
    size = taken + chance.choice((4, 8, chance.randint(4, 12 + required // 2), chance.randint(4, 12 + required), 2 * required))
    if _place(case) == "out":
        torturer.views(case)  # learned now, since what is mounted cannot be put aside
    with _mounted(place, size):
        for name in case.copies:
            shutil.copy(torturer.world / name, place / name)
        check_full_disk(torturer, case, torturer.run(case), f"a disk of {size} KiB", sized=True, resize=place)
    return f"{size} KiB"


def _place(case: Case) -> str:
    return "out" if " out/" in case.line else "cat"


def vanished(torturer: Torturer, case: Case, chance: random.Random) -> str:
    """The folder of the output goes away before the n-th call."""
    point = chance.randint(1, torturer.truth(case).calls)
    out, gone = torturer.box.folder / _place(case), torturer.box.folder / "gone"
    where = ""
    with torturer.begin(case) as one:
        for number, call in enumerate(one.calls(), 1):
            if number == point:
                where = f"vanished before call {number}, {call}"
                out.rename(gone)
            call.allow()
        end = one.end()
    try:
        check_end(end, world=torturer.world, names=_NAMES)
        torturer.check_inputs()
        torturer.runs_recorded()
    except BrokenLawError as e:
        raise BrokenLawError(e.fact, where) from e
    return where


def check_full_disk(torturer: Torturer, case: Case, end: End, how: str, *, sized: bool, resize: Path | None = None) -> None:
    """The run succeeded in full, or says what failed and leaves nothing torn; with room it then succeeds.

    Raises
    ------
    BrokenLawError
    """
    try:
        check_end(end, world=torturer.world, names=_NAMES)
        if sized and end.status and not any(word in f"{end.kind} {end.message}".lower() for word in ("full", "space", "room")):
            raise BrokenLawError(f"a full disk is called something else: {end}")
        torturer.check_whole(case, strict=not end.status)
        torturer.check_inputs()
        if not case.name.startswith(_RESUMED):
            allowed = set(torturer.truth(case).files)
            if stray := sorted(set(files_of(torturer.box.out)) - allowed):
                raise BrokenLawError(f"left behind: {', '.join(stray)}")
        if resize:
            subprocess.run(["mount", "-o", "remount,size=64m", str(resize)], check=True)
        torturer.runs_recorded()
        check_end(torturer.run(case, *case.again.split()), allowed=(0,))
        torturer.check_exact(case)
    except BrokenLawError as e:
        raise BrokenLawError(e.fact, how) from e


@contextlib.contextmanager
def _mounted(place: Path, size: int) -> Iterator[None]:
    """An empty file system of so many KiB in a folder."""
    for path in place.iterdir():
        path.unlink()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(place)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def cannot_mount(place: Path) -> str:
    """Why no file system can be mounted here, or nothing."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        with _mounted(place, 64):
            return ""
    except (subprocess.CalledProcessError, FileNotFoundError) as e:
        return (getattr(e, "stderr", b"") or b"").decode().strip() or str(e)


def torture(torturer: Torturer, report: Report, *, seeds: Sequence[int], only: Sequence[str] = ()) -> None:
    """Disks of many seeds: kinds in turn, then cases."""
    cases = [case for case in CASES if not only or case.name in only]
    reason = cannot_mount(torturer.box.folder.parent / "disk")
    if reason:
        print(f"skipped: small file systems: {reason}")
    for seed in seeds:
        turn, place = divmod(seed, len(KINDS))
        kind, case = KINDS[place], cases[turn % len(cases)]
        if kind == "small" and reason:
            continue
        chance = random.Random(f"{kind} {case.name} {turn // len(cases)}")
        report.counts[kind] += 1
        try:
            torturer.fresh(case)
            if kind in ("full", "broken"):
                how = full(torturer, case, chance, errno.ENOSPC if kind == "full" else errno.EIO)
            else:
                how = (small if kind == "small" else vanished)(torturer, case, chance)
            report.note(f"{seed}: {kind} {case.name}: {how}")
        except BrokenLawError as e:
            report.fail(seed, e.fact, f"{case.name} {kind} {str(e).removesuffix(e.fact).rstrip(': ')}")
