"""Two writers of one output, and readers of an output that is replaced, interleaved at every file-system call: no clock decides."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from tests.torture.gate import Call
from tests.torture.laws import Torturer, check_end, reading
from tests.torture.processes import End, Run
from tests.torture.report import BrokenLawError, Report
from tests.torture.verbs import CASES, Case
from tests.torture.world import files_of

WAIT = 8.0  # seconds that a run which waits for a lock is given before the one that holds it goes on
KINDS = ("writers", "replacing", "reader", "reader-held")
_READ = ("fit", "convert", "convert-folder", "index", "index-numbers", "migrate", "merge")  # whose outputs are read in whole


@dataclasses.dataclass(frozen=True)
class Race:
    """One run is held before its n-th call while another one runs; what each is, see `race`."""

    case: Case
    kind: str
    turn: int


def plan(seed: int, cases: Sequence[Case]) -> Race:
    """Seeds go through the kinds of race, then through the cases that can be raced so."""
    turn, place = divmod(seed, len(KINDS))
    kind = KINDS[place]
    able = [case for case in cases if case.other and (not kind.startswith("reader") or case.name in _READ)]
    if not able:
        raise ValueError("none of the cases chosen can be raced")
    return Race(able[turn % len(able)], kind, turn // len(able))


def race(torturer: Torturer, planned: Race, report: Report) -> None:
    """Run it.

    ``writers``: two runs make one output, of different inputs; one is held. ``replacing``: the same with ``--overwrite``, over a
    third. ``reader``: a run that replaces an output is held while another reads it. ``reader-held``: a reader is held while a run
    replaces what it reads.

    Raises
    ------
    BrokenLawError
    """
    case, replacing = planned.case, planned.kind != "writers"
    report.counts[planned.kind] += 1
    report.counts["races"] += 1
    old = torturer.truth(case, other=True).files
    torturer.fresh(case, old if replacing else None)
    options = ["--overwrite"] if replacing else []
    chance = random.Random(f"{case.name} {planned.kind} {planned.turn}")
    if planned.kind == "reader-held":
        _held_reader(torturer, case, chance)
    else:
        calls = torturer.truth(case, replacing=replacing).calls
        point = chance.randint(1, calls)
        known = torturer.runs_recorded()
        with torturer.begin(case, *options) as one:
            held = advance(one, point)
            where = f"held before call {point}, {held or 'which did not occur'}"
            try:
                if planned.kind == "reader":
                    _reads_one_state(torturer, case, strict=True)
                    end = _resume(one, held)
                    check_end(end, allowed=(0,))
                    torturer.check_exact(case)
                else:
                    _two_writers(torturer, case, one, held, options, known)
            except BrokenLawError as e:
                raise BrokenLawError(e.fact, f"{planned.kind}, {where}") from e
    torturer.check_inputs()


def advance(one: Run, point: int) -> Call | None:
    """Let a run go on to the call with this number, and hold it there; None where it ended before."""
    for number, call in enumerate(one.calls(), 1):
        if number == point:
            return call
        call.allow()
    return None


def _resume(one: Run, held: Call | None) -> End:
    if held is not None:
        held.allow()
    return one.finish() or one.kill()


def _two_writers(torturer: Torturer, case: Case, one: Run, held: Call | None, options: list[str], known: int) -> None:
    with torturer.begin(case, *options, line=case.other) as other:
        second = other.finish(patience=WAIT)
        first = _resume(one, held)
        if second is None:
            second = other.finish() or other.kill()
    for end in (first, second):
        check_end(end, world=torturer.world, names=("out/", "cat/", "embridge.duckdb"))
    succeeded = [end for end in (first, second) if not end.status]
    if not succeeded:
        raise BrokenLawError(f"neither run succeeded: {first}; {second}")
    if not options and len(succeeded) == 2:
        raise BrokenLawError("both runs succeeded without --overwrite: one of their outputs is gone")
    torturer.check_whole(case, strict=True)
    expected = torturer.truth(case) if first in succeeded else torturer.truth(case, other=True)
    names = set(expected.files) if len(succeeded) == 1 else {n for f in torturer.states(case).values() for n in f}
    if stray := sorted(set(files_of(torturer.box.out)) - names):
        raise BrokenLawError(f"left behind: {', '.join(stray)}")
    if len(succeeded) == 1 and first in succeeded:
        torturer.check_exact(case)
    recorded = torturer.runs_recorded() - known
    if recorded != len(succeeded):
        raise BrokenLawError(f"{len(succeeded)} runs succeeded, {recorded} are in the catalog")


def _reads_one_state(torturer: Torturer, case: Case, *, strict: bool) -> None:
    """What is read now is what is read of one whole state."""
    with Run(reading(case, torturer.world), torturer.box.folder, torturer.box.notes) as reader:
        end = reader.finish() or reader.kill()
    _check_view(torturer, case, end, strict=strict)


def _check_view(torturer: Torturer, case: Case, end: End, *, strict: bool) -> None:
    check_end(end, allowed=(0,) if strict else (0, 1))
    if not end.status and end.stdout not in torturer.views(case).values():
        raise BrokenLawError("the reader saw neither what was there before nor what is there after")


def _held_reader(torturer: Torturer, case: Case, chance: random.Random) -> None:
    """A reader that opens some files before, and some after the output is replaced; it may say that the output has changed."""
    line = reading(case, torturer.world)
    with Run(line, torturer.box.folder, torturer.box.notes, reads=True) as reader:
        opened = 0
        for call in reader.calls():
            opened += 1
            call.allow()
        reader.end()
    point = chance.randint(1, max(1, opened))
    with Run(line, torturer.box.folder, torturer.box.notes, reads=True) as reader:
        held = advance(reader, point)
        end = torturer.run(case, "--overwrite")
        try:
            check_end(end, allowed=(0,))
            _check_view(torturer, case, _resume(reader, held), strict=False)
        except BrokenLawError as e:
            raise BrokenLawError(e.fact, f"reader-held before opening {point} of {opened}, {held}") from e
    torturer.check_exact(case)


def torture(torturer: Torturer, report: Report, *, seeds: Sequence[int], only: Sequence[str] = ()) -> None:
    """Races of many seeds."""
    cases = [case for case in CASES if not only or case.name in only]
    for seed in seeds:
        planned = plan(seed, cases)
        report.note(f"{seed}: {planned}")
        try:
            race(torturer, planned, report)
        except BrokenLawError as e:
            report.fail(seed, e.fact, f"{planned.case.name} {str(e).removesuffix(e.fact).rstrip(': ')}")
