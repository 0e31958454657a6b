"""Bridge plus a Gaussian kernel, fitted on the same anchors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from embridge.anchors import Anchors
from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.device import resolve_device, unit_rows
from embridge.errors import ParameterError, TooFewAnchorsError
from embridge.maps import KernelMap, LinearMap
from embridge.maps.kernel import gaussian
from embridge.records import Candidate, FitRecord
from embridge.stores.ids import hash_ids
from embridge.translators.base import total
from embridge.translators.bridge import Bridge
from embridge.translators.rigid import Isometry
from embridge.translators.scoring import HeldOutRows, QueryPairs, Role, as_role, overlap_of_queries
from embridge.types import Space

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 100.0)  # with the last one the kernel has almost no effect
_CHUNK = 4096
_CHOSEN_ON = 1500  # rows: the ratio of two variances does not depend on their number
_FOLDS = 3
_JITTER = 1e-8  # of a kernel whose diagonal is one: equal landmarks make it singular


class Kernel:
    """Kernel ridge regression on top of `Bridge`: ``y = W x + b + sum_j w_j exp(-gamma |x/|x| - z_j|^2)``.

    W and w jointly minimize

        ``sum |y - W x - b - sum_j w_j k_j(x)|^2 + n alpha v |W - s c Q|^2 + penalty tr(w^T K w)``

    where b maps the mean of x to that of y; alpha, s, c and Q are as in `Bridge`, v is the mean feature variance and K the
    kernel matrix of the landmarks z. It is a Gaussian process whose mean is the scaled Procrustes solution and whose covariance
    is a linear plus a Gaussian kernel (Rasmussen and Williams 2006, chapter 2). gamma is 2 over the mean squared distance of
    the landmarks' directions, so it is 1 where these are spread evenly. With no more anchors than landmarks the solution is
    exact; with more, a sample of the anchors are the landmarks (Nystroem: Williams and Seeger 2001), and moments of the
    features are computed in one pass.

    Translating a row costs ``m (dim_source + dim_target)`` multiplications more than an affine map with m landmarks. The
    result is a `KernelMap`.

    Parameters
    ----------
    landmarks : int, default 5000
        Largest number of landmarks.
    penalty : float, optional
        Variance of the noise over that of the kernel term; above 0. Default: chosen on three folds of at most 1,500 anchors.
    alpha, shrinkage_target_weight : float, optional
        As in `Bridge`; default: chosen on folds.
    role : {"documents", "queries", "decode"}, default "documents"
        Role that these are chosen for. The penalty is chosen for documents, whatever the role.
    seed : int, default 0
        Seed of the sample of landmarks.
    mean_weight : float, default 1
        As in `Bridge`.
    """

    name: ClassVar[str] = "kernel"

    def __init__(
        self,
        landmarks: int = 5000,
        penalty: float | None = None,
        alpha: float | None = None,
        shrinkage_target_weight: float | None = None,
        role: Role = "documents",
        seed: int = 0,
        mean_weight: float = 1.0,
    ) -> None:
        self.landmarks = landmarks
        self.penalty = penalty
        self.alpha = alpha
        self.shrinkage_target_weight = shrinkage_target_weight
        self.role: Role = role
        self.seed = seed
        self.mean_weight = mean_weight

    def fit(
        self, anchors: Anchors, *, device: str | torch.device | None = "cpu", moments: Moments | FoldMoments | None = None
    ) -> KernelMap:
        """Fit the map from the source to the target of the anchors.

        Parameters
        ----------
        anchors : Anchors
            The rows themselves: moments of them do not determine the features.
        device : str, default "cpu"
            Device for products and solves, in float64.
        moments : Moments or FoldMoments, optional
            Those of the anchors, where they are known.

        Returns
        -------
        KernelMap

        Raises
        ------
        ParameterError
            A parameter out of its range.
        TooFewAnchorsError
            Fewer than two, or too few for folds where alpha or s is to be chosen.
        """
        started = time.perf_counter()
        for name, value in (("landmarks", self.landmarks), ("penalty", self.penalty)):
            if value is not None and not 0 < value < np.inf:
                raise ParameterError.must_be(name, "above 0", value)
        if self.landmarks != int(self.landmarks):
            raise ParameterError.must_be("landmarks", "a whole number", self.landmarks)
        role = as_role(self.role)
        if self.alpha is not None and not 0 < self.alpha < np.inf:
            raise ParameterError.must_be("alpha", "above 0 and finite", self.alpha)
        if self.shrinkage_target_weight is not None and not 0 <= self.shrinkage_target_weight <= 1:
            raise ParameterError.must_be("shrinkage_target_weight", "in [0, 1]", self.shrinkage_target_weight)
        if len(anchors) < 2:
            raise TooFewAnchorsError.for_method(self.name, 2, len(anchors))
        alpha, s = self.alpha, self.shrinkage_target_weight
        candidates: tuple[Candidate, ...] = ()
        if moments is None:
            moments = anchors.folds(device=device) if alpha is None or s is None else anchors.moments(device, full=False)
        if alpha is None or s is None:
            chosen = Bridge(alpha, s, role).fit(anchors, device=device, moments=moments).record
            alpha, s, candidates = chosen.parameters["alpha"], chosen.parameters["shrinkage_target_weight"], chosen.candidates
        place, penalty = resolve_device(device), self.penalty
        if penalty is None:
            scores = self._scores(anchors, alpha, s, place)
            penalty = PENALTIES[int(np.argmax(scores.mean(axis=1)))]
            candidates += self._candidates(scores)
        problem = _Problem.of(total(moments), alpha, s, anchors.sample(self.landmarks, self.seed).x, place)
        solution = problem.exact(anchors, penalty) if len(anchors) <= self.landmarks else problem.nystroem(anchors, penalty)
        weight, features = (found.cpu().numpy() for found in solution)
        mean_x, mean_y = (mean.cpu().numpy() for mean in (problem.mean_x, problem.mean_y))
        record = FitRecord(
            self.name,
            {"alpha": float(alpha), "shrinkage_target_weight": float(s), "penalty": float(penalty), "gamma": problem.gamma}
            | {"landmarks": len(problem.landmarks)}
            | ({"mean_weight": float(self.mean_weight)} if self.mean_weight != 1 else {}),
            len(anchors),
            anchors.record.held_out,
            time.perf_counter() - started,
            str(place),
            (anchors.record.source, anchors.record.target),
            candidates,
            role=role if candidates else "",
            chosen_by="documents" if candidates else "",
        )
        hashes = np.sort(anchors.hashes())
        affine = LinearMap(weight.T, self.mean_weight * mean_y - mean_x @ weight, anchors.source, anchors.target, record, hashes)
        return KernelMap(affine, problem.landmarks.cpu().numpy(), features, problem.gamma)

    def contest(
        self, anchors: Anchors, device: str | torch.device | None, queries: QueryPairs | None = None
    ) -> tuple[float | None, tuple[Candidate, ...]]:
        """The best penalty, or None where its gain over the largest penalty is within one standard error on folds.

        With `queries` penalties are compared on them (overlap), else on stand-ins.

        Raises
        ------
        ParameterError
            alpha or s is not given.
        """
        if self.alpha is None or self.shrinkage_target_weight is None:
            raise ParameterError("Penalties are compared at one alpha and one s. Hint: give both.")
        scores = self._scores(anchors, self.alpha, self.shrinkage_target_weight, resolve_device(device), queries)
        best = int(np.argmax(scores.mean(axis=1)))
        gains = scores[best] - scores[-1]
        is_better = gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)) and best < len(PENALTIES) - 1
        return PENALTIES[best] if is_better else None, self._candidates(scores)

    def _candidates(self, scores: np.ndarray) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(self.name, {"penalty": value}, float(score.mean())) for value, score in zip(PENALTIES, scores, strict=True)
        )

    def _scores(
        self, anchors: Anchors, alpha: float, s: float, place: torch.device, queries: QueryPairs | None = None
    ) -> np.ndarray:
        """Scores of every penalty on folds (see `HeldOutRows` and `overlap_of_queries`), shape (penalties, units)."""
        rows, role = anchors.sample(_CHOSEN_ON, self.seed), as_role(self.role)
        rows = rows.at(np.argsort(hash_ids(rows.ids, "kernel fold", self.seed)))  # the same choice in any order of anchors
        fold = np.arange(len(rows)) % _FOLDS
        translated = np.empty((len(PENALTIES), *rows.y.shape), np.float32)
        units = []
        for number in range(_FOLDS):
            train, out = rows.at(fold != number), fold == number
            problem = _Problem.of(train.moments(place, full=False), alpha, s, train.x, place)
            for i, centered in enumerate(problem.translations(train, rows.x[out], PENALTIES)):
                translated[i, out] = (centered + self.mean_weight * problem.mean_y).to(torch.float32).cpu().numpy()
            if queries is None:
                held_out = HeldOutRows.of(rows.y[out], problem.mean_y.cpu().numpy(), role, rows.target)
                units.append(np.array([held_out.scores(translated[i, out]) for i in range(len(PENALTIES))]))
        return np.concatenate(units, axis=1) if queries is None else overlap_of_queries(queries, rows.y, translated, rows.target)

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({values})"


@dataclass(frozen=True, eq=False)
class _Problem:
    """The part shared by both solvers: float64 tensors on one device.

    `toward` is s c Q, and `strength` is n alpha v.
    """

    mean_x: torch.Tensor
    mean_y: torch.Tensor
    toward: torch.Tensor
    landmarks: torch.Tensor
    gamma: float
    strength: float

    @classmethod
    def of(cls, moments: Moments, alpha: float, s: float, landmarks: np.ndarray, place: torch.device) -> _Problem:
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
        x, rest = self._centered(anchors)
        system = self._linear(x, x).add_(self.kernel(_double(anchors.x, x.device)), alpha=1 / penalty)
        system.diagonal().add_(1)
        dual = torch.cholesky_solve(rest, torch.linalg.cholesky(system))
        return self.toward + x.T @ dual / self.strength, dual / penalty

    def translations(self, anchors: Anchors, rows: np.ndarray, penalties: Sequence[float]) -> Iterator[torch.Tensor]:
        """Translations, less the mean, of a few rows by `exact` for each penalty, without W and w."""
        x, rest = self._centered(anchors)
        z = _double(rows, x.device)
        kernel, across = self.kernel(_double(anchors.x, x.device)), self.kernel(z)
        z = z - self.mean_x
        linear, linear_across, pulled = self._linear(x, x), self._linear(z, x), z @ self.toward
        linear.diagonal().add_(1)
        for penalty in penalties:
            factor = torch.linalg.cholesky(torch.add(linear, kernel, alpha=1 / penalty))
            smoother = torch.cholesky_solve(torch.add(linear_across, across, alpha=1 / penalty).T, factor).T
            yield pulled + smoother @ rest

    def _centered(self, anchors: Anchors) -> tuple[torch.Tensor, torch.Tensor]:
        """Centered x, and what the Procrustes part leaves of centered y."""
        x, y = (_double(side, self.mean_x.device) for side in (anchors.x, anchors.y))
        x = x - self.mean_x
        return x, y - self.mean_y - x @ self.toward

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
