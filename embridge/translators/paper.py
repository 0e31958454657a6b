"""The four methods of Maiorca et al. 2023, "Latent Space Translation via Semantic Alignment", from moments alone.

All of them scale both sides, estimate a matrix between the scaled sides (the narrower one zero-padded, the result cut, which
only changes the fan-in of `affine`'s start), and undo the scaling with the target's statistics. Standard scaling gives each
feature zero mean and unit (unbiased) standard deviation over the anchors; the paper's alternative keeps rows of unit
length unchanged. The whole chain is one affine map.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.errors import ParameterError
from embridge.translators.base import Solution, Translator, total
from embridge.translators.solvers import least_squares, orthogonal_factor

Scaling = Literal["standard", "l2"]
_DEAD = 1e-5  # a feature whose scale is below this share of its side's largest is noise


@dataclass(frozen=True, eq=False)
class Scaled:
    """Moments of the scaled sides, dead features left out.

    Attributes
    ----------
    n : int
    zxx, zxy : ndarray
        ``z_x^T z_x`` and ``z_x^T z_y``.
    mean_x, mean_y : ndarray
        Zero under standard scaling.
    """

    n: int
    zxx: np.ndarray
    zxy: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray


class PaperTranslator(Translator):
    """Scales both sides and estimates the matrix between them.

    A feature whose scale is under 1e-5 of its side's largest is dead: left out on the source, constant at its mean on the
    target. (The paper's code divides by 1 there, which adds noise.)

    Parameters
    ----------
    scaling : {"standard", "l2"}, default "standard"
        ``standard``: zero mean and unit standard deviation per feature. ``l2``: rows of unit length, neither centered nor scaled by
        feature; both spaces must be normalized (`Anchors.unit` does this; then the map expects unit rows).
    """

    def __init__(self, scaling: Scaling = "standard") -> None:
        self.scaling = scaling

    def solve(self, data: Moments | FoldMoments) -> Solution:
        moments = total(data)
        if self.scaling == "l2":
            return self._solve_unit(moments)
        if self.scaling != "standard":
            raise ParameterError.must_be("scaling", "'standard' or 'l2'", self.scaling)
        scale_x, scale_y = (np.sqrt(s / (moments.n - 1)) for s in (np.diag(moments.sxx), moments.square_y))
        alive_x, alive_y = (scale > _DEAD * scale.max() for scale in (scale_x, scale_y))
        sx, sy = scale_x[alive_x], scale_y[alive_y]
        zxx = moments.sxx[np.ix_(alive_x, alive_x)] / np.outer(sx, sx)
        zxy = moments.sxy[np.ix_(alive_x, alive_y)] / np.outer(sx, sy)
        core, bias, parameters = self.estimate(Scaled(moments.n, zxx, zxy, np.zeros(len(sx)), np.zeros(len(sy))))
        weight = np.zeros_like(moments.sxy)
        weight[np.ix_(alive_x, alive_y)] = core * sy / sx[:, None]
        offset = np.zeros_like(moments.mean_y)
        offset[alive_y] = bias * sy
        return Solution(weight, moments.mean_y + offset - moments.mean_x @ weight, {"scaling": "standard"} | parameters)

    def _solve_unit(self, moments: Moments) -> Solution:
        for space in (moments.source, moments.target):
            if not space.normalized:
                raise ParameterError(
                    f"L2 scaling needs rows of unit length, and space {space.name!r} is not normalized. "
                    "Hint: fit on anchors.unit(), and pass unit rows to the map."
                )
        n, mean_x, mean_y = moments.n, moments.mean_x, moments.mean_y
        zxx, zxy = moments.sxx + n * np.outer(mean_x, mean_x), moments.sxy + n * np.outer(mean_x, mean_y)
        weight, bias, parameters = self.estimate(Scaled(n, zxx, zxy, mean_x, mean_y))
        return Solution(weight, bias + np.zeros_like(mean_y), {"scaling": "l2"} | parameters)

    @abstractmethod
    def estimate(self, scaled: Scaled) -> tuple[np.ndarray, np.ndarray | float, dict[str, Any]]:
        """Matrix and bias between the scaled sides, and further computed values."""


class Linear(PaperTranslator):
    """Least squares without bias between the scaled sides, of minimum norm: ``pinv(z_x) z_y``."""

    name = "linear"

    def estimate(self, scaled: Scaled) -> tuple[np.ndarray, float, dict[str, Any]]:
        weight, rank = least_squares(scaled.zxx, scaled.zxy)
        return weight, 0.0, {"rank": rank}


class LOrtho(PaperTranslator):
    """The orthogonal matrix nearest to the least-squares one: ``U V^T`` of its singular value decomposition."""

    name = "l-ortho"

    def estimate(self, scaled: Scaled) -> tuple[np.ndarray, float, dict[str, Any]]:
        weight, rank = orthogonal_factor(least_squares(scaled.zxx, scaled.zxy)[0])
        return weight, 0.0, {"rank": rank}


class Ortho(PaperTranslator):
    """Orthogonal Procrustes between the scaled sides: ``U V^T`` of ``z_x^T z_y``, reflections allowed."""

    name = "ortho"

    def estimate(self, scaled: Scaled) -> tuple[np.ndarray, float, dict[str, Any]]:
        weight, rank = orthogonal_factor(scaled.zxy)
        return weight, 0.0, {"rank": rank}


class Affine(PaperTranslator):
    """The paper's affine map: a linear layer with bias, full-batch Adam on the mean squared error.

    The gradient is a function of the moments, ``2 ((z_xx W - z_xy) / n + mean_x b^T) / m`` with m the wider side's width and
    ``2 (W^T mean_x + b - mean_y) / m`` for the bias, so a step costs the same at any number of anchors. With standard scaling
    the optimum is `Linear`; the gain in the paper comes from early stopping, for which `Ridge` is the exact equivalent. It is
    included for comparison.

    Parameters
    ----------
    learning_rate : float, default 1e-3
    steps : int, default 300
    seed : int, default 0
        Seed of the start, uniform in +-1/sqrt(m) as in torch's linear layer.
    scaling : {"standard", "l2"}, default "standard"
        See `PaperTranslator`.
    """

    name = "affine"

    def __init__(self, learning_rate: float = 1e-3, steps: int = 300, seed: int = 0, scaling: Scaling = "standard") -> None:
        super().__init__(scaling)
        self.learning_rate = learning_rate
        self.steps = steps
        self.seed = seed

    def estimate(self, scaled: Scaled) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        if self.steps < 1:
            raise ParameterError.must_be("steps", "at least 1", self.steps)
        if not self.learning_rate > 0:
            raise ParameterError.must_be("learning_rate", "above 0", self.learning_rate)
        zxx, zxy, mean_x, mean_y = map(torch.from_numpy, (scaled.zxx, scaled.zxy, scaled.mean_x, scaled.mean_y))
        p, q = zxy.shape
        wide = max(p, q)
        generator = torch.Generator().manual_seed(self.seed)
        bound = wide**-0.5
        start = torch.empty(wide, wide, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
        weight = start[:q, :p].T.contiguous()
        bias = torch.empty(wide, dtype=torch.float64).uniform_(-bound, bound, generator=generator)[:q].clone()
        optimizer = torch.optim.Adam([weight, bias], lr=self.learning_rate)
        for _ in range(self.steps):
            weight.grad = ((zxx @ weight - zxy) / scaled.n + torch.outer(mean_x, bias)) * (2 / wide)
            bias.grad = (mean_x @ weight + bias - mean_y) * (2 / wide)
            optimizer.step()
        return weight.numpy(), bias.numpy(), {"learning_rate": self.learning_rate, "steps": self.steps, "seed": self.seed}
