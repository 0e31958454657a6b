"""Ridge regression, and ridge regression that shrinks toward the Procrustes solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.errors import ParameterError
from embridge.records import Candidate
from embridge.translators.base import Solution, Translator, centered_factor, total
from embridge.translators.scoring import FAR, Role, as_role, comparable_means, fold_scores
from embridge.translators.solvers import Shrinkage

ALPHAS = (1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SHARES = (0.0, 0.5, 0.75, 1.0)


class Bridge(Translator):
    """Ridge regression that shrinks toward the scaled Procrustes solution instead of toward zero.

    With x and y centered and each scaled by ``sqrt(tr S / (n dim))``, Q the orthogonal factor of ``Sxy`` and c the scalar that
    matches total variances (see `Isometry`),

        ``W = (Sxx/n + alpha I)^-1 (Sxy/n + alpha s c Q)``,

    so alpha is in units of the mean feature variance. ``s = 0`` is ridge, ``alpha -> inf`` with ``s = 1`` is `Isometry`,
    ``alpha -> 0`` is least squares. The intercept is not penalized.

    Parameters
    ----------
    alpha : float, optional
        Regularization in [0, inf]; default: chosen on folds.
    shrinkage_target_weight : float, optional
        s, the weight of the Procrustes solution in [0, 1]; default: chosen on folds.
    role : {"documents", "queries", "decode"}, default "documents"
        Score on folds: the overlap@10 of neighbors among at most 1,000 held-out rows per fold, of stand-in queries
        (see `HeldOutRows` and `midpoints`). Squared error is not used for any role: it always chooses a
        weight of zero, which is worse for decoders too.
    mean_weight : float, default 1
        Weight of the target's mean in the intercept, ``mean_weight * mean_y - W^T mean_x``. Above one, translations are closer
        together; where only directions matter, that is equivalent to shrinking W.
    """

    name = "bridge"

    def __init__(
        self,
        alpha: float | None = None,
        shrinkage_target_weight: float | None = None,
        role: Role = "documents",
        mean_weight: float = 1.0,
    ) -> None:
        self.alpha = alpha
        self.shrinkage_target_weight = shrinkage_target_weight
        self.role: Role = role
        self.mean_weight = mean_weight

    def needs_folds(self) -> bool:
        return self.alpha is None or self.shrinkage_target_weight is None

    def solve(self, data: Moments | FoldMoments) -> Solution:
        if self.alpha is not None and not self.alpha >= 0:
            raise ParameterError.must_be("alpha", "at least 0", self.alpha)
        alpha, s = self.alpha, self.shrinkage_target_weight
        if s is not None and not 0 <= s <= 1:
            raise ParameterError.must_be("shrinkage_target_weight", "in [0, 1]", s)
        if not 0 <= self.mean_weight < np.inf:
            raise ParameterError.must_be("mean_weight", "at least 0 and finite", self.mean_weight)
        role = as_role(self.role)
        chosen: dict[str, Any] = {}
        if alpha is None or s is None:
            # `fit` passes FoldMoments where one of them is to be chosen.
            if not isinstance(data, FoldMoments):
                raise ParameterError(
                    f"{self.name!r} chooses its parameters on folds. Hint: give Anchors or FoldMoments, or set them."
                )
            grid = [(a, b) for a in (ALPHAS if alpha is None else (alpha,)) for b in (SHARES if s is None else (s,))]
            methods = [Bridge(*one, mean_weight=self.mean_weight) for one in grid]
            scores = comparable_means(fold_scores(methods, data, role, behind=FAR))
            # Of equal scores the last one: the largest alpha and weight are the safest choice.
            alpha, s = grid[scores.size - 1 - int(np.argmax(scores[::-1]))]
            candidates = tuple(
                Candidate(self.name, {"alpha": float(a), "shrinkage_target_weight": float(b)}, float(score))
                for (a, b), score in zip(grid, scores, strict=True)
            )
            chosen = {"candidates": candidates, "role": role, "chosen_by": "documents"}
        moments = total(data)
        scaled = Scaled.of(moments)
        weight, intercept = scaled.unscale(scaled.family.weight(alpha, s))
        parameters = {"alpha": alpha, "shrinkage_target_weight": s, "rank": scaled.family.rank}
        if self.mean_weight != 1:
            parameters["mean_weight"] = self.mean_weight
        return Solution(weight, intercept + (self.mean_weight - 1) * moments.mean_y, parameters, **chosen)

    def translate(self, data: Moments, x: np.ndarray) -> np.ndarray:
        if self.alpha is None or self.shrinkage_target_weight is None:
            return super().translate(data, x)
        mapped = Scaled.of(data).mapped(x, self.alpha, self.shrinkage_target_weight)
        return mapped + (self.mean_weight * data.mean_y).astype(np.float32)


class Ridge(Bridge):
    """Ridge regression, the intercept unpenalized: ``W = (Sxx/n + alpha v I)^-1 Sxy/n`` with v the mean feature variance.

    Parameters
    ----------
    alpha : float, optional
        In units of v; default: chosen on folds.
    role : {"documents", "queries", "decode"}, default "documents"
        Score on folds, see `Bridge`.
    """

    name = "ridge"

    def __init__(self, alpha: float | None = None, role: Role = "documents") -> None:
        super().__init__(alpha, 0.0, role)


@dataclass(frozen=True, eq=False)
class Scaled:
    """The solver on moments of sides that are centered and scaled to a mean feature variance of one."""

    family: Shrinkage
    mean_x: np.ndarray
    mean_y: np.ndarray
    scale_x: float
    scale_y: float

    @classmethod
    def of(cls, m: Moments) -> Scaled:
        """The solver of these moments, cached: many candidates are solved on the same moments."""
        cache = m.__dict__.setdefault("_scaled", [])
        if not cache:
            cache.append(cls._of(m))
        return cache[0]

    @classmethod
    def _of(cls, m: Moments) -> Scaled:
        # A side without variance is not scaled: its moments are zero, and so is the map.
        scale_x = float(np.sqrt(np.trace(m.sxx) / (m.n * len(m.sxx)))) or 1.0
        scale_y = float(np.sqrt(m.square_y.mean() / m.n)) or 1.0
        total_y = float(m.square_y.sum()) / (m.n * scale_y**2)
        family = Shrinkage.of(m.sxx / (m.n * scale_x**2), m.sxy / (m.n * scale_x * scale_y), total_y, centered_factor(m))
        return cls(family, m.mean_x, m.mean_y, scale_x, scale_y)

    def rotated(self, x: np.ndarray) -> np.ndarray:
        """Centered rows in the eigenbasis, in float32; those of the last x are cached."""
        cache = self.__dict__.setdefault("_rotated", [None, None])
        if cache[0] is not x:
            cache[:] = x, (x - self.mean_x.astype(np.float32)) @ self.family.vectors.astype(np.float32)
        return cache[1]

    def mapped(self, x: np.ndarray, alpha: float, s: float) -> np.ndarray:
        """Centered rows by the map of alpha and s, in float32.

        Both terms of W are applied once for each alpha and cached: candidates that differ only in s, or in the weight of the mean,
        share them.
        """
        rotated, cache = self.rotated(x), self.__dict__.setdefault("_mapped", [None, None])
        if cache[0] is None or cache[0][0] is not rotated or cache[0][1] != alpha:
            scale = self.scale_y / self.scale_x
            cache[:] = (rotated, alpha), [rotated @ (scale * term).astype(np.float32) for term in self.family.terms(alpha)]
        regression, toward = cache[1]
        return regression + np.float32(s) * toward

    def unscale(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = weight * (self.scale_y / self.scale_x)
        return weight, self.mean_y - self.mean_x @ weight
