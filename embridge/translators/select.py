"""Choosing among methods on folds: the simplest that is not measurably worse than the best."""

from __future__ import annotations

import numpy as np

from embridge.errors import ParameterError
from embridge.folds import Folds
from embridge.moments import Moments
from embridge.records import Candidate
from embridge.translators.base import Solution, Translator, total
from embridge.translators.bridge import ALPHAS, SHARES, Bridge, Purpose, Ridge, grid_scores, neighbours_kept
from embridge.translators.paper import Ortho
from embridge.translators.rigid import Isometry, Rotation

# What is simpler comes first: a rotation keeps every index exact, an isometry keeps L2; `ortho` stretches single features.
_SIMPLE: tuple[type[Translator], ...] = (Rotation, Isometry, Ortho)


class Auto(Translator):
    """The simplest method that folds cannot tell from the best: the one-standard-error rule (Breiman et al. 1984), paired.

    Candidates are, from simple to general, `Rotation`, `Isometry`, `Ortho`, and `Bridge` over its grid of alpha and s from
    strong to weak (`Ridge` where s is zero). Each is fitted on all folds but one and judged by that one. With d the differences
    between the best candidate's scores and another's over the same held-out units, the first candidate with
    ``mean(d) <= std(d) / sqrt(units)`` is taken and fitted on all anchors.

    Parameters
    ----------
    purpose : {"search", "decode"}, default "search"
        ``search``: units are held-out rows, at most 1,000 a fold, and the score is the overlap@10 of their neighbours.
        ``decode``: units are folds and the score is minus the held-out squared error, exactly, from moments alone; the cost
        does not depend on the number of anchors.
    """

    name = "auto"

    def __init__(self, purpose: Purpose = "search") -> None:
        self.purpose = purpose

    def needs_folds(self) -> bool:
        return True

    def solve(self, data: Moments | Folds) -> Solution:
        if self.purpose not in ("search", "decode"):
            raise ParameterError.must_be("purpose", "'search' or 'decode'", self.purpose)
        if not isinstance(data, Folds):
            raise ParameterError("'auto' chooses on folds, which one set of moments does not have.")
        translators: list[Translator] = [cls() for cls in _SIMPLE]
        scores = [simple_scores(translator, data, self.purpose) for translator in translators]
        alphas, shares = ALPHAS[::-1], SHARES[::-1]
        grid = grid_scores(data, self.purpose, alphas, shares)
        for i, alpha in enumerate(alphas):
            for j, s in enumerate(shares):
                translators.append(Bridge(alpha, s) if s else Ridge(alpha))
                scores.append(grid[i, j])
        chosen, errors = one_standard_error(np.array(scores))
        candidates = tuple(
            Candidate(t.name, {k: v for k, v in vars(t).items() if k in ("alpha", "s")}, float(score.mean()), float(error))
            for t, score, error in zip(translators, scores, errors, strict=True)
        )
        found = translators[chosen].solve(total(data))
        parameters = found.parameters | {"purpose": self.purpose}
        return Solution(found.weight, found.intercept, parameters, candidates, translators[chosen].name)


def one_standard_error(scores: np.ndarray) -> tuple[int, np.ndarray]:
    """The first row whose mean is within one standard error of the best row's, over paired differences.

    Parameters
    ----------
    scores : ndarray of shape (candidates, units)
        Simplest candidate first; higher is better.

    Returns
    -------
    chosen : int
    errors : ndarray of shape (candidates,)
        Standard errors of the mean differences to the best.

    Examples
    --------
    >>> one_standard_error(np.array([[0.0, 0.0], [0.9, 1.1], [1.1, 1.0]]))[0]
    1
    """
    deficits = scores[np.argmax(scores.mean(axis=1))] - scores
    errors = deficits.std(axis=1, ddof=1) / np.sqrt(scores.shape[1])
    return int(np.flatnonzero(deficits.mean(axis=1) <= errors)[0]), errors


def simple_scores(translator: Translator, folds: Folds, purpose: Purpose) -> np.ndarray:
    """What folds say of a method without parameters, shape (units,) as in `grid_scores`."""
    out = []
    for number, part in enumerate(folds.parts):
        found = translator.solve(folds.without(number))
        if purpose == "decode":
            out.append(np.array([-part.squared_error(found.weight, found.intercept) / part.n]))
            continue
        x, y = folds.samples[number]
        out.append(neighbours_kept((x @ found.weight + found.intercept).astype(np.float32), y, part.target.metric))
    return np.concatenate(out)
