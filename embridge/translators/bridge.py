"""Ridge, and ridge that shrinks toward the Procrustes solution: one family, parameters chosen on folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from embridge.errors import ParameterError
from embridge.folds import Folds
from embridge.moments import Moments
from embridge.neighbors import overlap, top_k
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
            scores = grid_scores(data, self.purpose, alphas, shares).mean(axis=-1)
            # Of equal scores the last one: the strongest alpha and the largest share are the safest choice.
            a, b = np.unravel_index(scores.size - 1 - int(np.argmax(scores.ravel()[::-1])), scores.shape)
            alpha, s = alphas[a], shares[b]
            candidates = tuple(
                Candidate(self.name, {"alpha": float(alphas[i]), "s": float(shares[j])}, float(scores[i, j]))
                for i in range(len(alphas))
                for j in range(len(shares))
            )
        # `fit` gave Folds where one of them is to be chosen.
        assert alpha is not None
        assert s is not None
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
        scale_y = float(np.sqrt(m.square_y.mean() / m.n)) or 1.0
        total_y = float(m.square_y.sum()) / (m.n * scale_y**2)
        family = Shrinkage.of(m.sxx / (m.n * scale_x**2), m.sxy / (m.n * scale_x * scale_y), total_y)
        return cls(family, m.mean_x, m.mean_y, scale_x, scale_y)

    def unscale(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = weight * (self.scale_y / self.scale_x)
        return weight, self.mean_y - self.mean_x @ weight


def _negated_errors(folds: Folds, fold: int, alphas: tuple[float, ...], shares: tuple[float, ...]) -> np.ndarray:
    """Minus the held-out squared error a row of every candidate, shape (alphas, shares), exactly, from moments.

    In the eigenbasis W = D A + s E B with D and E diagonal, so <W, S W> is a quadratic form in their diagonals: three products
    of matrices serve every candidate.
    """
    train, test = _Scaled.of(folds.without(fold)), folds.parts[fold]
    v, a, b = train.family.vectors, train.family.cross, train.family.toward
    ratio = train.scale_y / train.scale_x
    # W maps x - train.mean_x to y - train.mean_y, so test moments are taken about the means of the training rows.
    dx, dy = test.mean_x - train.mean_x, test.mean_y - train.mean_y
    sxx = v.T @ (test.sxx + test.n * np.outer(dx, dx)) @ v
    sxy = v.T @ (test.sxy + test.n * np.outer(dx, dy))
    syy = float(test.square_y.sum()) + test.n * float(dy @ dy)
    aa, ab, bb = (sxx * (left @ right.T) for left, right in ((a, a), (a, b), (b, b)))
    along_a, along_b = ((sxy * side).sum(1) for side in (a, b))
    out = np.empty((len(alphas), len(shares)))
    s = np.array(shares)
    for i, alpha in enumerate(alphas):
        d, e = (ratio * diagonal for diagonal in train.family.gains(alpha))
        linear = d @ along_a + s * (e @ along_b)
        square = d @ aa @ d + 2 * s * (d @ ab @ e) + s**2 * (e @ bb @ e)
        out[i] = -(syy - 2 * linear + square) / test.n
    return out


def grid_scores(folds: Folds, purpose: Purpose, alphas: tuple[float, ...], shares: tuple[float, ...]) -> np.ndarray:
    """What folds say of every (alpha, s), shape (alphas, shares, units); higher is better.

    Units are the folds' sampled rows under ``search``, each with the overlap of its neighbours, and the folds themselves under
    ``decode``, each with minus its squared error a row.
    """
    found = [
        _overlaps(folds, fold, alphas, shares) if purpose == "search" else _negated_errors(folds, fold, alphas, shares)[..., None]
        for fold in range(len(folds.parts))
    ]
    return np.concatenate(found, axis=-1)


def list_size(rows: int) -> int:
    """How many neighbours a sample of so many rows is judged by: 10, and at most half of the others.

    A list of all of them would be found by any map. Zero where there is no other row.
    """
    return min(_K, (rows - 1) // 2)


def neighbours_kept(translated: np.ndarray, y: np.ndarray, metric: Metric) -> np.ndarray:
    """For each row of y the share of its nearest other rows that it finds among the translated ones; shape (n,)."""
    k, own = list_size(len(y)), np.arange(len(y))
    if k < 1:
        return np.zeros(len(y))
    near = top_k(y, translated, k, metric, exclude=own).ids
    return overlap(near, top_k(y, y, k, metric, exclude=own).ids)


def _overlaps(folds: Folds, fold: int, alphas: tuple[float, ...], shares: tuple[float, ...]) -> np.ndarray:
    """Overlap@k of every candidate with native neighbours among the fold's sampled rows, shape (alphas, shares, rows)."""
    x, y = folds.samples[fold]
    k = list_size(len(x))
    out = np.zeros((len(alphas), len(shares), len(x)))
    if k < 1:
        return out
    train, target = _Scaled.of(folds.without(fold)), folds.parts[fold].target
    truth = top_k(y, y, k, target.metric, exclude=np.arange(len(x))).ids
    queries, mean = (torch.tensor(side, dtype=torch.float32) for side in (y, train.mean_y))
    rotated = (x - train.mean_x) @ train.family.vectors * (train.scale_y / train.scale_x)
    sides = [torch.tensor(side, dtype=torch.float32) for side in (train.family.cross, train.family.toward)]
    for i, alpha in enumerate(alphas):
        gained, pulled = (torch.tensor(rotated * diagonal, dtype=torch.float32) for diagonal in train.family.gains(alpha))
        # Translated rows are base + s * step, so inner products and squared lengths are polynomials in s.
        base, step = gained @ sides[0] + mean, pulled @ sides[1]
        products = queries @ base.T, queries @ step.T
        squares = (base * base).sum(1), 2 * (base * step).sum(1), (step * step).sum(1)
        for j, s in enumerate(shares):
            scores = products[0] + s * products[1]
            square = squares[0] + s * squares[1] + s * s * squares[2]
            if target.metric == Metric.COSINE or target.normalized:
                scores *= square.clamp_min(1e-30).rsqrt()
            elif target.metric == Metric.L2:
                scores = 2 * scores - square
            found = scores.fill_diagonal_(-torch.inf).topk(k, dim=1).indices
            out[i, j] = overlap(found.numpy(), truth)
    return out
