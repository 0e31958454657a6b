"""What torture found: counts, and every failure with the command that shows it again."""

from __future__ import annotations

import collections
import dataclasses
import re
import signal
import sys
import time

SHOWN = 3  # failures of one class that are printed in full


class BrokenLawError(Exception):
    """Something that must hold does not: `fact`, and `where` it was seen."""

    def __init__(self, fact: str, where: str = "") -> None:
        super().__init__(f"{where}: {fact}" if where else fact)
        self.fact = fact


@dataclasses.dataclass
class Report:
    """Counts of one kind of torture.

    Attributes
    ----------
    kind : str
        ``kills``, ``mutations``, ``races`` or ``disks``: the word of the command line.
    chosen : str
        Options that a seed depends on, ``--only ...`` or ``--sample``.
    counts : Counter
        How many of what was done.
    failures : dict
        By class (the message without its numbers): the arguments that show each again, with the message.
    """

    kind: str
    chosen: str = ""
    verbose: bool = False
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    failures: dict[str, list[tuple[str, str]]] = dataclasses.field(default_factory=dict)
    started: float = dataclasses.field(default_factory=time.monotonic)

    def fail(self, seed: int, fact: str, where: str, *, chosen: str = "") -> None:
        """Keep a failure, and print it with what shows it again, unless enough of its class were."""
        again = f"{chosen or self.chosen} --seed {seed}".strip()
        same = self.failures.setdefault(class_of(fact), [])
        same.append((again, f"{where}: {fact}"))
        if len(same) <= SHOWN or self.verbose:
            print(f"FAILED  python -m tests.torture {self.kind} {again}\n        {where}: {fact}", flush=True)

    def note(self, text: str) -> None:
        """Say how far it is, where a person watches."""
        if self.verbose:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> int:
        """Print the counts, and the seeds of every class of failures; how many failures there were."""
        for what, same in sorted(self.failures.items(), key=lambda item: -len(item[1])):
            print(f"{len(same):5,} x {what[:200]}\n        {'; '.join(again for again, _ in same[:20])}")
        failed = sum(map(len, self.failures.values()))
        done = ", ".join(f"{number:,} {what}" for what, number in sorted(self.counts.items()))
        seconds = time.monotonic() - self.started
        print(f"{self.kind}: {done or 'nothing done'}; {failed:,} failures; {seconds:,.0f} s", flush=True)
        return failed


def class_of(fact: str) -> str:
    """A fact without its numbers, paths and names of temporary files."""
    first = re.sub(r"status -(\d+)", lambda found: f"signal {signal.Signals(int(found[1])).name}", fact.splitlines()[0])
    return re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|\.+\S+\.\d+-[0-9a-f]+\.tmp|\.tmp\w+|[0-9a-f]{8,}|\d+", "_", first)[:300]
