"""Bridge plus a Gaussian kernel, fitted on the same anchors."""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np
import torch

from embridge.anchors import Anchors
from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.device import resolve_device
from embridge.errors import ParameterError, TooFewAnchorsError
from embridge.maps import KernelMap, LinearMap
from embridge.records import Candidate, FitRecord
from embridge.translators.base import total
from embridge.translators.bridge import Bridge
from embridge.translators.kernel_ridge import KernelRidge
from embridge.translators.penalties import PenaltyTrial
from embridge.translators.scoring import QueryPairs, Role, as_role


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
        Variance of the noise over that of the kernel term; above 0. Default: chosen on three folds of at most 1,500
        anchors, among six, from the middle in the direction in which scores rise.
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
            scores = PenaltyTrial.of(anchors, self.seed, alpha, s, self.mean_weight, role, place).compared()
            penalty = _best(scores)
            candidates += self._candidates(scores)
        problem = KernelRidge.of(total(moments), alpha, s, anchors.sample(self.landmarks, self.seed).x, place)
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
        place, role = resolve_device(device), as_role(self.role)
        alpha, s = self.alpha, self.shrinkage_target_weight
        scores = PenaltyTrial.of(anchors, self.seed, alpha, s, self.mean_weight, role, place, queries).compared()
        best, largest = _best(scores), max(scores)
        gains = scores[best] - scores[largest]
        is_better = gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)) and best < largest
        return best if is_better else None, self._candidates(scores)

    def _candidates(self, scores: dict[float, np.ndarray]) -> tuple[Candidate, ...]:
        return tuple(Candidate(self.name, {"penalty": penalty}, float(found.mean())) for penalty, found in scores.items())

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({values})"


def _best(scores: dict[float, np.ndarray]) -> float:
    return max(scores, key=lambda penalty: scores[penalty].mean())
