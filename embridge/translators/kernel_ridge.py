"""Solvers of kernel ridge regression on top of `Bridge`: exact, by landmarks, and for a few rows and many penalties."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from embridge.anchors import Anchors
from embridge.anchors.moments import Moments
from embridge.device import unit_rows
from embridge.maps.kernel import gaussian
from embridge.translators.rigid import Isometry
from embridge.types import Space

_CHUNK = 4096
_SMALL_TRACE = 1e5  # of a system of which every eigenvalue is at least one
_JITTER = 1e-8  # of a kernel whose diagonal is one: equal landmarks make it singular


@dataclass(frozen=True, eq=False)
class Smoother:
    """Translations of some rows, less the mean, for any penalty: ``pulled + (L' + K'/penalty) (L + K/penalty)^-1 rest``.

    L is the identity plus the linear kernel of n rows and K their Gaussian kernel, shape (n, n); L' and K', named across, are those
    between the translated rows and the n.
    """

    linear: torch.Tensor
    kernel: torch.Tensor
    linear_across: torch.Tensor
    across: torch.Tensor
    rest: torch.Tensor
    pulled: torch.Tensor

    def translations(self, penalty: float) -> torch.Tensor:
        """Shape (rows, dim_target)."""
        factor = torch.linalg.cholesky(torch.add(self.linear, self.kernel, alpha=1 / penalty))
        smoother = torch.cholesky_solve(torch.add(self.linear_across, self.across, alpha=1 / penalty).T, factor).T
        return torch.addmm(self.pulled, smoother, self.rest)


@dataclass(frozen=True, eq=False)
class KernelRidge:
    """The system of `Kernel`: float64 tensors on one device.

    `toward` is s c Q, and `strength` is n alpha v.
    """

    mean_x: torch.Tensor
    mean_y: torch.Tensor
    toward: torch.Tensor
    landmarks: torch.Tensor
    gamma: float
    strength: float

    @classmethod
    def of(cls, moments: Moments, alpha: float, s: float, landmarks: np.ndarray, place: torch.device) -> KernelRidge:
        variance = float(np.trace(moments.sxx)) / (moments.n * len(moments.sxx)) or 1.0
        toward = s * Isometry().solve(moments).weight if s else np.zeros_like(moments.sxy)
        mean_x, mean_y, held = (_double(a, place) for a in (moments.mean_x, moments.mean_y, toward))
        z = unit_rows(_double(landmarks, place))
        m = len(z)
        # The mean squared distance of distinct unit vectors, computed from their sum.
        distance = 2 * (m * m - float(z.sum(0).square().sum())) / (m * (m - 1)) if m > 1 else 0.0
        gamma = 2 / distance if distance > 1e-9 else 1.0
        return cls(mean_x, mean_y, held, z, gamma, moments.n * alpha * variance)

    def kernel(self, x: torch.Tensor) -> torch.Tensor:
        """k(x), shape (n, m)."""
        return gaussian(unit_rows(x) @ self.landmarks.T, self.gamma)

    def exact(self, anchors: Anchors, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """W and w where every anchor is a landmark: one system of n equations."""
        x, rest = self._centered(anchors.x, anchors.y)
        system = self._linear(x, x).add_(self.kernel(_double(anchors.x, x.device)), alpha=1 / penalty)
        system.diagonal().add_(1)
        dual = torch.cholesky_solve(rest, torch.linalg.cholesky(system))
        return self.toward + x.T @ dual / self.strength, dual / penalty

    def smoother(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray, least: float) -> Smoother:
        """What translations of some rows by the exact solution for x and y need for every penalty from `least` on.

        In float32 on a CPU where all eigenvalues of the systems are within five orders of magnitude.
        """
        place = self.mean_x.device
        inputs, rest = self._centered(x, y)
        outputs = _double(rows, place) - self.mean_x
        parts = inputs, rest, outputs, outputs @ self.toward, *(self.kernel(_double(side, place)) for side in (x, rows))
        trace = float(inputs.square().sum()) / self.strength + len(x) / least
        if place.type == "cpu" and trace < _SMALL_TRACE:
            parts = (part.to(torch.float32) for part in parts)
        inputs, rest, outputs, pulled, kernel, across = parts
        linear = self._linear(inputs, inputs)
        linear.diagonal().add_(1)
        return Smoother(linear, kernel, self._linear(outputs, inputs), across, rest, pulled)

    def _centered(self, x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Centered x, and what the Procrustes part leaves of centered y."""
        centered = _double(x, self.mean_x.device) - self.mean_x
        return centered, _double(y, self.mean_x.device) - self.mean_y - centered @ self.toward

    def _linear(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b.T / self.strength

    def nystroem(self, anchors: Anchors, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """W and w with fewer landmarks than anchors: ridge on [x, L^-1 k(x)], L the Cholesky factor of K, from moments."""
        place, p, m = self.mean_x.device, len(self.mean_x), len(self.landmarks)
        inner = self.kernel(self.landmarks)
        inner.diagonal().add_(_JITTER)
        factor = torch.linalg.cholesky(inner)

        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, len(anchors), _CHUNK):
                x = _double(anchors.x[start : start + _CHUNK], place)
                features = torch.linalg.solve_triangular(factor, self.kernel(x).T, upper=False).T
                rows = torch.cat([x - self.mean_x, features], 1)
                yield rows.cpu().numpy(), anchors.y[start : start + _CHUNK]

        space = Space(anchors.source.name, p + m, anchors.source.metric, False)
        moments = Moments.from_chunks(chunks(), space, anchors.target, device=place, full=False)
        square, across, mean = (_double(a, place) for a in (moments.sxx, moments.sxy, moments.mean_x))
        square.addr_(mean, mean, alpha=moments.n)  # the features are not centered, as in `exact`
        across -= square[:, :p] @ self.toward
        square.diagonal()[:p].add_(self.strength)
        square.diagonal()[p:].add_(penalty)
        found = torch.cholesky_solve(across, torch.linalg.cholesky(square))
        return found[:p] + self.toward, torch.linalg.solve_triangular(factor.T, found[p:], upper=True)


def _double(array: np.ndarray, place: torch.device) -> torch.Tensor:
    return torch.tensor(array, device=place).to(torch.float64)
