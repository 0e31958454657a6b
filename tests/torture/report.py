"""What torture found: counts, and every failure with the command that shows it again."""

from __future__ import annotations

import collections
import dataclasses
import sys
import time


class BrokenLawError(Exception):
    """Something that must hold does not."""


@dataclasses.dataclass
class Report:
    """Counts of one kind of torture.

    Attributes
    ----------
    kind : str
        ``kills``, ``mutations``, ``races`` or ``disks``: the word of the command line.
    counts : Counter
        How many of what was done.
    failures : list of (command that shows it again, what is wrong)
    """

    kind: str
    verbose: bool = False
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    failures: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    started: float = dataclasses.field(default_factory=time.monotonic)

    def fail(self, again: str, what: str) -> None:
        """Print and keep a failure; `again` are the arguments that show it again."""
        self.failures.append((again, what))
        print(f"FAILED  python -m tests.torture {self.kind} {again}\n        {what}", flush=True)

    def note(self, text: str) -> None:
        """Say how far it is, where a person watches."""
        if self.verbose:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> int:
        """Print the counts; how many failures there were."""
        done = ", ".join(f"{number:,} {what}" for what, number in sorted(self.counts.items()))
        seconds = time.monotonic() - self.started
        print(f"{self.kind}: {done or 'nothing done'}; {len(self.failures):,} failures; {seconds:,.0f} s", flush=True)
        return len(self.failures)
