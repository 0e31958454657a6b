"""Ridge, and ridge that shrinks toward the Procrustes solution: one family, parameters chosen on folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from embridge.arrays import unit
from embridge.errors import ParameterError
from embridge.moments import Folds, Moments
from embridge.neighbours import overlap, top_k
from embridge.records import Candidate
from embridge.translators.base import Solution, Translator, total
from embridge.translators.solvers import Shrinkage
from embridge.types import Metric

ALPHAS = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_K = 10
Purpose = Literal["search", "decode"]


class Bridge(Translator):
    """Ridge regression that shrinks toward the scaled Procrustes solution instead of toward zero.

    With x and y centred and each scaled by ``sqrt(tr S / (n dim))``, Q the orthogonal factor of ``Sxy`` and c the scalar that
    matches total variances (see `Isometry`),

        ``W = (Sxx/n + alpha I)^-1 (Sxy/n + alpha s c Q)``,

    so alpha is in units of the mean feature variance. ``s = 0`` is ridge, ``alpha -> inf`` with ``s = 1`` is `Isometry`,
    ``alpha -> 0`` is least squares. The intercept is not penalised.

    Parameters
    ----------
    alpha : float, optional
        Strength in [0, inf]; default: chosen on folds.
    s : float, optional
        Share of the Procrustes solution in [0, 1]; default: chosen on folds.
    purpose : {"search", "decode"}, default "search"
        What folds choose by: ``search`` by the mean overlap@10 of native neighbours within at most 1,000 held-out rows a fold,
        ``decode`` by the exact held-out squared error, a function of the moments. Ranking likes shares near one, squared
        error always chooses a share of zero.
    """

    name = "bridge"

    def __init__(self, alpha: float | None = None, s: float | None = None, purpose: Purpose = "search") -> None:
        self.alpha = alpha
        self.s = s
        self.purpose = purpose

    def needs_folds(self) -> bool:
        return self.alpha is None or self.s is None

    def solve(self, data: Moments | Folds) -> Solution:
        if self.alpha is not None and not self.alpha >= 0:
            raise ParameterError.must_be("alpha", "at least 0", self.alpha)
        if self.s is not None and not 0 <= self.s <= 1:
            raise ParameterError.must_be("s", "in [0, 1]", self.s)
        if self.purpose not in ("search", "decode"):
            raise ParameterError.must_be("purpose", "'search' or 'decode'", self.purpose)
        candidates: tuple[Candidate, ...] = ()
        alpha, s = self.alpha, self.s
        if isinstance(data, Folds) and (alpha is None or s is None):
            alphas = ALPHAS if alpha is None else (alpha,)
            shares = SHARES if s is None else (s,)
            score = _overlaps if self.purpose == "search" else _negated_errors
            scores = np.mean([score(data, fold, alphas, shares) for fold in range(len(data.parts))], axis=0)
            a, b = np.unravel_index(int(np.argmax(scores)), scores.shape)
            alpha, s = alphas[a], shares[b]
            candidates = tuple(
                Candidate({"alpha": alphas[i], "s": shares[j]}, float(scores[i, j]))
                for i in range(len(alphas))
                for j in range(len(shares))
            )
        assert alpha is not None and s is not None  # `fit` gave Folds where one of them is to be chosen
        scaled = _Scaled.of(total(data))
        parameters = {"alpha": alpha, "s": s, "rank": scaled.family.rank}
        if candidates:
            parameters["purpose"] = self.purpose
        return Solution(*scaled.unscale(scaled.family.weight(alpha, s)), parameters, candidates)


class Ridge(Bridge):
    """Ridge regression, the intercept unpenalised: ``W = (Sxx/n + alpha v I)^-1 Sxy/n`` with v the mean feature variance.

    Parameters
    ----------
    alpha : float, optional
        In units of v; default: chosen on folds.
    purpose : {"search", "decode"}, default "search"
        What folds choose by, see `Bridge`.
    """

    name = "ridge"

    def __init__(self, alpha: float | None = None, purpose: Purpose = "search") -> None:
        super().__init__(alpha, 0.0, purpose)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """The family fitted on moments of sides that are centred and scaled to a mean feature variance of one."""

    family: Shrinkage
    mean_x: np.ndarray
    mean_y: np.ndarray
    scale_x: float
    scale_y: float

    @classmethod
    def of(cls, m: Moments) -> _Scaled:
        # A side without any variance is left as it is: its moments are zero, and so is the map.
        scale_x = float(np.sqrt(np.trace(m.sxx) / (m.n * len(m.sxx)))) or 1.0
        scale_y = float(np.sqrt(np.trace(m.syy) / (m.n * len(m.syy)))) or 1.0
        total_y = float(np.trace(m.syy)) / (m.n * scale_y**2)
        family = Shrinkage.of(m.sxx / (m.n * scale_x**2), m.sxy / (m.n * scale_x * scale_y), total_y)
        return cls(family, m.mean_x, m.mean_y, scale_x, scale_y)

    def unscale(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = weight * (self.scale_y / self.scale_x)
        return weight, self.mean_y - self.mean_x @ weight


def _negated_errors(folds: Folds, fold: int, alphas: tuple[float, ...], shares: tuple[float, ...]) -> np.ndarray:
    """Minus the held-out squared error a row of every candidate, shape (alphas, shares), exactly, from moments.

    In the eigenbasis W = D (A + alpha s B) with D diagonal, so <W, S W> is a quadratic form in the diagonal of D: three
    products of matrices serve every candidate.
    """
    train, test = _Scaled.of(folds.without(fold)), folds.parts[fold]
    v, a, b = train.family.vectors, train.family.cross, train.family.toward
    ratio = train.scale_y / train.scale_x
    # W maps x - train.mean_x to y - train.mean_y, so test moments are taken about the means of the training rows.
    dx, dy = test.mean_x - train.mean_x, test.mean_y - train.mean_y
    sxx = v.T @ (test.sxx + test.n * np.outer(dx, dx)) @ v
    sxy = v.T @ (test.sxy + test.n * np.outer(dx, dy))
    syy = float(np.trace(test.syy)) + test.n * float(dy @ dy)
    quadratic = [sxx * (left @ right.T) for left, right in ((a, a), (a, b), (b, b))]
    linear = [(sxy * side).sum(1) for side in (a, b)]
    out = np.empty((len(alphas), len(shares)))
    for i, alpha in enumerate(alphas):
        d = train.family.gain(alpha) * ratio
        for j, s in enumerate(shares):
            t = alpha * s
            square = d @ (quadratic[0] + 2 * t * quadratic[1] + t * t * quadratic[2]) @ d
            out[i, j] = -(syy - 2 * d @ (linear[0] + t * linear[1]) + square) / test.n
    return out


def _overlaps(folds: Folds, fold: int, alphas: tuple[float, ...], shares: tuple[float, ...]) -> np.ndarray:
    """Mean overlap@10 of every candidate with native neighbours among the fold's sampled rows, shape (alphas, shares)."""
    train = _Scaled.of(folds.without(fold))
    x, y = folds.samples[fold]
    k = min(_K, len(x) - 1)
    out = np.zeros((len(alphas), len(shares)))
    if k < 1:
        return out
    target = folds.parts[fold].target
    itself = np.arange(len(x))
    truth = top_k(y, y, k, target.metric, exclude=itself).ids
    queries = unit(y) if target.metric == Metric.COSINE else y
    for i, alpha in enumerate(alphas):
        for j, s in enumerate(shares):
            weight, intercept = train.unscale(train.family.weight(alpha, s))
            found = x @ weight.astype(np.float32) + intercept.astype(np.float32)
            found = unit(found) if target.normalized else found
            out[i, j] = overlap(top_k(queries, found, k, target.metric, exclude=itself).ids, truth).mean()
    return out
