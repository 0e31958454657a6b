"""What must hold of every output, however the run that made it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.torture.processes import End, Run, run
from tests.torture.report import BrokenLawError
from tests.torture.verbs import Case, Sandbox, digest_of, plain
from tests.torture.world import files_of

_UNFINISHED = (".tmp", ".partial", ".journal", ".lock", ".parts", ".old")
Files = dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Truth:
    """An undisturbed run: the files that it leaves, and the file-system calls that it makes."""

    files: Files
    calls: int
    end: End


class Torturer:
    """A folder of inputs, a sandbox, and what undisturbed runs of each case do.

    Parameters
    ----------
    base : path
        A folder for everything.
    world : path
        The inputs, which no run may change.
    """

    def __init__(self, base: Path, world: Path) -> None:
        self.world = world
        self.box = Sandbox(base)
        self._inputs = digest_of(world)
        self._catalog = (world / "catalog.duckdb").read_bytes()

    def fresh(self, case: Case, start: Files | None = None) -> None:
        """The sandbox as it is before a run: `start` are the files that stand there."""
        new_catalog = case.name in ("catalog", "record")
        self.box.fresh(case, self.world, start, catalog=None if new_catalog else self._catalog)

    def begin(self, case: Case, *options: str, line: str = "", reads: bool = False) -> Run:
        """Start a run of the case in the sandbox as it is."""
        return Run(case.command(self.world, *options, line=line), self.box.folder, self.box.notes, reads=reads)

    def run(self, case: Case, *options: str, line: str = "") -> End:
        """Run the case undisturbed in the sandbox as it is."""
        return run(case.command(self.world, *options, line=line), self.box.folder, self.box.notes)

    @functools.cache  # noqa: B019 (one torturer a process)
    def truth(self, case: Case, *, replacing: bool = False, other: bool = False) -> Truth:
        """What an undisturbed run does, into an empty folder or in place of the other output.

        Raises
        ------
        BrokenLawError
            It fails, or leaves something unfinished.
        """
        start = self.truth(case, other=True).files if replacing else None
        calls = 0
        options = ["--overwrite"] if replacing else []
        with self._aside():
            self.fresh(case, start)
            with self.begin(case, *options, line=case.other if other else "") as one:
                for call in one.calls():
                    calls += 1
                    call.allow()
                end = one.end()
            files = files_of(self.box.out)
        if end.status:
            raise BrokenLawError(f"{case.name}, undisturbed: {end}\n{end.trace}")
        if left := [name for name in files if name.endswith(_UNFINISHED)]:
            raise BrokenLawError(f"{case.name}, undisturbed, leaves {', '.join(left)}")
        return Truth(files, calls, end)

    def states(self, case: Case) -> dict[str, Files]:
        """The whole outputs that there may be."""
        found = {"new": self.truth(case).files}
        return found | ({"old": self.truth(case, other=True).files} if case.other else {})

    def check_inputs(self) -> None:
        """No input was changed."""
        if digest_of(self.world) != self._inputs:
            raise BrokenLawError("an input was changed")

    def check_whole(self, case: Case, *, strict: bool = False) -> None:
        """Every output is whole: that of one undisturbed run, or absent; with `strict` it is there."""
        found, states = files_of(self.box.out), self.states(case)
        for group in groups(case, states):
            there = {name: found[name] for name in found if in_group(name, group)}
            main = [name for name in there if name == group[0] or name.startswith(f"{group[0]}/")]
            if not main:
                if strict:
                    raise BrokenLawError(f"{group[0]} is absent")
                continue
            expected = [{n: f[n] for n in f if in_group(n, group)} for f in states.values()]
            if f"{group[0]}.journal" in found:  # a list of rejected rows may be the new one while the journal names it unfinished
                alone = {name: there[name] for name in main}
                if any(same(alone, {n: f[n] for n in f if n in main}) for f in states.values()):
                    continue
            if not any(same(there, files) for files in expected) and not self._reads_whole(case, group[0]):
                raise BrokenLawError(f"{group[0]} is neither whole nor absent: {self._differences(there, states, group)}")

    def check_exact(self, case: Case) -> None:
        """Exactly the files of an undisturbed run are there."""
        found, expected = files_of(self.box.out), self.truth(case).files
        if stray := sorted(set(found) - set(expected)):
            raise BrokenLawError(f"left behind: {', '.join(stray)}")
        if missing := sorted(set(expected) - set(found)):
            raise BrokenLawError(f"missing: {', '.join(missing)}")
        if wrong := [name for name in found if not same_file(name, found[name], expected[name])]:
            raise BrokenLawError(f"not as an undisturbed run leaves it: {', '.join(wrong)}")

    def runs_recorded(self) -> int:
        """Runs in the catalog, which must be usable; 0 where there is none."""
        import embridge as eb

        path = self.box.folder / "cat" / "embridge.duckdb"
        if not path.exists() or not path.stat().st_size:  # an empty file is absent: its maker was killed
            return 0
        try:
            catalog = eb.Catalog(path)
            catalog.check()
            tables = catalog.sql("SELECT table_name FROM duckdb_tables() WHERE table_name = 'run'")
            return int(catalog.sql("SELECT count(*) AS n FROM run")[0]["n"]) if tables else 0
        except Exception as e:
            raise BrokenLawError(f"the catalog cannot be used: {type(e).__name__}: {e}") from e

    def _reads_whole(self, case: Case, name: str) -> bool:
        """An index is whole too where search answers as from one whole state, however its files are laid out."""
        return name.endswith(".faiss") and self.view(case) in self.views(case).values()

    def view(self, case: Case) -> str | None:
        """What a reader of the output sees now; None where it is refused."""
        end = run(reading(case, self.world), self.box.folder, self.box.notes)
        return end.stdout if end.status == 0 else None

    @functools.cache  # noqa: B019
    def views(self, case: Case) -> dict[str, str | None]:
        """What a reader sees of each whole state."""
        states, found = self.states(case), {}
        with self._aside():
            for name, files in states.items():
                self.fresh(case, files)
                found[name] = self.view(case)
        return found

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """The sandbox for something else for a while; then it is as it was."""
        kept = self.box.folder.with_name(f"kept-{time.monotonic_ns()}")
        if self.box.folder.exists():
            self.box.folder.rename(kept)
        try:
            yield
        finally:
            shutil.rmtree(self.box.folder, ignore_errors=True)
            if kept.exists():
                kept.rename(self.box.folder)

    def _differences(self, there: Files, states: dict[str, Files], group: tuple[str, ...]) -> str:
        lines = []
        for state, files in states.items():
            names = {n for n in (*files, *there) if in_group(n, group)}
            differ = [n for n in sorted(names) if n not in there or n not in files or not same_file(n, there[n], files[n])]
            lines.append(f"against {state}: {', '.join(differ)}")
        return "; ".join(lines)


def reading(case: Case, world: Path) -> list[str]:
    """A command line that reads the output of a case and prints what it finds."""
    name = case.line.split(" out/")[1].split()[0]
    if name.endswith(".faiss"):
        queries = "queries-new" if case.name.startswith("migrate") else "queries-old"
        return ["search", f"out/{name}", f"{world}/{queries}.parquet", "-k", "3", "--json", "--no-catalog"]
    if name.endswith(".safetensors"):
        queries = f"{world}/queries-new.parquet"
        return ["search", f"{world}/old.faiss", queries, "--via", f"out/{name}", "-k", "3", "--json", "--no-catalog"]
    return ["info", f"out/{name}", "--json", "--no-catalog"]


def groups(case: Case, states: dict[str, Files]) -> list[tuple[str, ...]]:
    """Outputs that belong together, the main one first: an index and its sidecars, an output and its list of bad rows."""
    names = {name.split("/")[0] for files in states.values() for name in files if name not in case.copies}
    mains = sorted(n for n in names if not any(n != m and n.startswith(f"{m}.") for m in names))
    return [(main, *sorted(n for n in names if n != main and n.startswith(f"{main}."))) for main in mains]


def in_group(name: str, group: tuple[str, ...]) -> bool:
    """True of a file, or a file of a folder, that belongs to the group."""
    return name in group or name.startswith(f"{group[0]}/")


def same(one: Files, other: Files) -> bool:
    """True where the same names hold the same."""
    return one.keys() == other.keys() and all(same_file(name, one[name], other[name]) for name in one)


def same_file(name: str, one: bytes, other: bytes) -> bool:
    """True of the same bytes, or of the same content where times are part of a file."""
    if one == other:
        return True
    try:
        return bool(plain(name, one) == plain(name, other))
    except ValueError:  # cut short
        return False


def check_end(end: End, *, allowed: tuple[int, ...] = (0, 1), world: Path | None = None, names: tuple[str, ...] = ()) -> None:
    """A run ends by itself, with an error that embridge raises on purpose, or with none.

    Parameters
    ----------
    end : End
    allowed : tuple of int
        Exit statuses.
    world : path, optional
        The inputs, which the error must not blame.
    names : tuple of str, optional
        The error must name one of these.
    """
    if end.status not in allowed or (end.status and not end.known):
        raise BrokenLawError(f"{end}{_place(end)}")
    if end.status and world is not None and str(world) in end.message and not any(n in end.message for n in names):
        raise BrokenLawError(f"an input is blamed: {end}")
    if end.status and names and not any(name in end.message for name in names):
        raise BrokenLawError(f"the error names none of {', '.join(names)}: {end}")


def _place(end: End) -> str:
    """The last function of ours in a trace."""
    found = re.findall(r'File "[^"]*/embridge/[^"]*?(\w+)\.py", line \d+, in (\w+)', end.trace)
    return f" (in {'.'.join(found[-1])})" if found else ""
