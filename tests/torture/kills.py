"""A run is killed before its n-th file-system call; then it is repeated, and everything must be as if nothing had happened."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from tests.torture.laws import Torturer, check_end
from tests.torture.report import BrokenLawError, Report
from tests.torture.verbs import CASES, Case


@dataclasses.dataclass(frozen=True)
class Kill:
    """What one seed does: the case, whether it replaces another output, and the calls before which it is killed, in turn."""

    case: Case
    replacing: bool
    points: tuple[int, ...]
    calls: tuple[str, ...] = ()


def plan(seed: int, torturer: Torturer, cases: Sequence[Case]) -> Kill:
    """Seeds go through the cases in turn, and through the calls of each in an order by chance, until all were killed once.

    Later seeds kill twice or three times in a row, at any call.
    """
    round_, place = divmod(seed, len(cases))
    case = cases[place]
    replacing = bool(case.other) and round_ % 2 == 1
    turn = round_ // 2 if case.other else round_
    calls = torturer.truth(case, replacing=replacing).calls
    order = list(range(1, calls + 1))
    random.Random(f"{case.name} {replacing}").shuffle(order)
    if turn < calls:
        return Kill(case, replacing, (order[turn],))
    chance = random.Random(f"{case.name} {replacing} {turn}")
    return Kill(case, replacing, tuple(chance.randint(1, calls) for _ in range(chance.choice((2, 3)))))


def kill(torturer: Torturer, planned: Kill, report: Report) -> None:
    """Run it.

    Raises
    ------
    BrokenLawError
    """
    case = planned.case
    torturer.fresh(case, torturer.truth(case, other=True).files if planned.replacing else None)
    known = torturer.runs_recorded()
    again = [*case.again.split(), *(["--overwrite"] if planned.replacing and case.again != "--overwrite" else [])]
    first = ["--overwrite"] if planned.replacing else []
    at = ""
    for turn, point in enumerate(planned.points):
        options = again if turn else first
        where = _killed(torturer, case, options, point)
        report.counts["kills" if where else "runs that ended before"] += 1
        at = f"after a kill before call {point}, {where or 'which did not occur'}"
        try:
            torturer.check_inputs()
            torturer.check_whole(case)
            torturer.runs_recorded()
        except BrokenLawError as e:
            raise BrokenLawError(e.fact, at) from e
    try:
        end = torturer.run(case, *again)
        check_end(end, allowed=(0,))
        torturer.check_exact(case)
        torturer.check_inputs()
        if case.catalog and not known < torturer.runs_recorded() <= known + len(planned.points) + 1:
            raise BrokenLawError(f"the catalog holds {torturer.runs_recorded()} runs")
    except BrokenLawError as e:
        raise BrokenLawError(e.fact, f"repeated with {' '.join(again) or 'the same command'} {at}") from e


def _killed(torturer: Torturer, case: Case, options: Sequence[str], point: int) -> str:
    """Run until the call with this number and kill; the call, or nothing where the run ended before."""
    with torturer.begin(case, *options) as one:
        for number, call in enumerate(one.calls(), 1):
            if number == point:
                one.kill()
                return str(call)
            call.allow()
        check_end(one.end(), allowed=(0, 1))
    return ""


def torture(torturer: Torturer, report: Report, *, seeds: Sequence[int], only: Sequence[str] = ()) -> None:
    """Kills of many seeds."""
    cases = [case for case in CASES if not only or case.name in only]
    for seed in seeds:
        try:
            planned = plan(seed, torturer, cases)
            report.note(f"{seed}: {planned.case.name}{' replacing' * planned.replacing} at {planned.points}")
            kill(torturer, planned, report)
        except BrokenLawError as e:
            report.fail(seed, e.fact, f"{cases[seed % len(cases)].name} {str(e).removesuffix(e.fact).rstrip(': ')}")
