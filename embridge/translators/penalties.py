"""Scores of the penalties of `Kernel` on folds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from embridge.anchors import Anchors
from embridge.stores.ids import hash_ids
from embridge.translators.kernel_ridge import KernelRidge, Smoother
from embridge.translators.scoring import HeldOutRows, QueryPairs, Role, overlap_of_queries
from embridge.types import Space

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 100.0)  # with the last one the kernel has almost no effect
_FIRST = 2  # position of the penalty to start from
_ROWS = 1500  # to choose on: the ratio of two variances does not depend on their number
_FOLDS = 3


@dataclass(frozen=True, eq=False)
class PenaltyTrial:
    """Rows of several folds, each to be translated by the rows of the others and scored.

    Attributes
    ----------
    smoothers : tuple of Smoother
    means : tuple of Tensor
        The mean of the target that is added to translations of each fold.
    held_out : tuple of HeldOutRows
        Empty where there are queries.
    y : tuple of ndarray
        Native vectors of each fold's rows.
    """

    smoothers: tuple[Smoother, ...]
    means: tuple[torch.Tensor, ...]
    held_out: tuple[HeldOutRows, ...]
    y: tuple[np.ndarray, ...]
    queries: QueryPairs | None
    target: Space

    @classmethod
    def of(
        cls,
        anchors: Anchors,
        seed: int,
        alpha: float,
        s: float,
        mean_weight: float,
        role: Role,
        place: torch.device,
        queries: QueryPairs | None = None,
    ) -> PenaltyTrial:
        """At most 1,500 of the anchors in three folds."""
        rows = anchors.sample(_ROWS, seed)
        rows = rows.at(np.argsort(hash_ids(rows.ids, "kernel fold", seed)))  # the same choice in any order of anchors
        fold, target = np.arange(len(rows)) % _FOLDS, anchors.target
        smoothers, means, held_out, y = [], [], [], []
        for number in range(_FOLDS):
            train, out = rows.at(fold != number), rows.at(fold == number)
            # Not with moments of all anchors: with a Procrustes part from more rows than W, a kernel that weakens W looks better.
            problem = KernelRidge.of(train.moments(place, full=False), alpha, s, train.x, place)
            smoothers.append(problem.smoother(train.x, train.y, out.x, PENALTIES[0]))
            means.append(mean_weight * problem.mean_y)
            y.append(out.y)
            if queries is None:
                held_out.append(HeldOutRows.of(out.y, problem.mean_y.cpu().numpy(), role, target))
        return cls(tuple(smoothers), tuple(means), tuple(held_out), tuple(y), queries, target)

    def compared(self) -> dict[float, np.ndarray]:
        """`scores` of the largest penalty, and of others on the way to the best, by ascending penalty.

        From the middle of `PENALTIES` the way goes to the next one in either direction as long as the mean score rises: it has one
        maximum, up to noise.
        """
        scores = {at: self.scores(PENALTIES[at]) for at in (_FIRST, len(PENALTIES) - 1)}
        for step in (-1, 1):
            best = _FIRST
            while 0 <= best + step < len(PENALTIES) - 1:
                scores[best + step] = self.scores(PENALTIES[best + step])
                if scores[best + step].mean() <= scores[best].mean():
                    break
                best += step
            if best != _FIRST:  # it rises in this direction, so it falls in the other
                break
        return {PENALTIES[at]: scores[at] for at in sorted(scores)}

    def scores(self, penalty: float) -> np.ndarray:
        """Scores of `HeldOutRows`, or with `queries` of `overlap_of_queries`; shape (units,)."""
        pairs = zip(self.smoothers, self.means, strict=True)
        found = [(one.translations(penalty) + mean).to(torch.float32).cpu().numpy() for one, mean in pairs]
        if self.queries is None:
            return np.concatenate([rows.scores(translated) for rows, translated in zip(self.held_out, found, strict=True)])
        return overlap_of_queries(self.queries, np.concatenate(self.y), [np.concatenate(found)], self.target)[0]
