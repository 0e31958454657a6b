"""The result of a comparison of stitching methods."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StitchingScore:
    """Scores of a decoder of the target space on source rows translated by one method.

    Attributes
    ----------
    method : str
        ``no-stitching`` (the target's own rows), ``absolute``, ``relative`` or a translator's name.
    scores : tuple of float
        One for each seed.
    """

    method: str
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds (n - 1); zero for a single one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True)
class Stitching:
    """Scores of every method of stitching.

    Attributes
    ----------
    anchors : int
        Rows that the translators were fitted on.
    scaling : str
        ``standard`` or ``l2``.
    seeds : tuple of int
    methods : tuple of StitchingScore
    """

    anchors: int
    scaling: str
    seeds: tuple[int, ...]
    methods: tuple[StitchingScore, ...]

    def __getitem__(self, method: str) -> StitchingScore:
        for score in self.methods:
            if score.method == method:
                return score
        raise KeyError(method)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        head = f"{'method':<14} {'mean':>7} {'dev':>7}  ({self.anchors:,} anchors, {self.scaling} scaling, {len(self.seeds)} seeds)"
        return "\n".join([head, *(f"{s.method:<14} {s.mean:>7.3f} {s.deviation:>7.3f}" for s in self.methods)])
