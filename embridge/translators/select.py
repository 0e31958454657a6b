"""Chooses a method for a role: on real queries where given, else on folds with stand-in queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from embridge.anchors import Anchors
from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.errors import ParameterError
from embridge.maps import KernelMap, Map
from embridge.records import Candidate
from embridge.translators.base import Solution, Translator, total
from embridge.translators.bridge import Bridge, Ridge
from embridge.translators.kernel import Kernel
from embridge.translators.paper import Ortho
from embridge.translators.projection import Projection
from embridge.translators.rigid import Isometry, Rotation
from embridge.translators.scoring import (
    FAR,
    QueryPairs,
    QueryScores,
    Role,
    as_role,
    comparable_means,
    deficits_to_best,
    fold_scores,
    is_cosine,
    real_scores,
)
from embridge.types import Space

_ALPHAS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_SHARES = (0.5, 0.75, 1.0)
_MEAN = 1.5  # weight of the target's mean for documents where it is most of each row
_LEAST_ROWS = 500  # to compare translations by: of fewer rows the ten nearest to a query are not near
_LEAST_JUDGED = 100  # queries with a relevant row among the anchors, to exclude methods by recall
_CLEARLY = 2.0  # standard errors
_ROUNDING = 2e-3  # of overlap: equal maps differ by a tie here and there


class Auto:
    """Chooses the best method for a role, on the anchors or on real queries.

    Candidates are `Rotation`, `Isometry` and `Ortho` (not for documents without queries, where it was never the best); and

    - for ``documents`` and ``decode`` `Bridge` over alpha and s; where only directions matter and the target's mean is more than
      half of the mean squared length of its rows (an anisotropic encoder), documents get 1.5 times the weight of that mean;
    - for ``queries`` `Projection` over alpha and the weight of the mean.

    Without queries each is fitted on all folds but one and scored on that one (`HeldOutRows`, `midpoints`). Documents as
    stand-in queries do not determine the shrinkage, since queries are farther from documents than these are from each other. So
    among the candidates within one standard error of the best (paired differences), those with the smallest s are preferred
    for ``documents`` where only directions matter, and those with the largest (isometry-like) for ``decode`` and L2, and those
    with the largest alpha (isometry-like too) for ``queries``; of these the best is chosen.

    With `queries` candidates are compared on them, over the anchors (`real_scores`); for documents and decoders not with fewer than
    500 anchors, where the ten nearest of all rows are not near. Where at least 100 of them have a relevant row
    there, those whose recall is below the best by more than two standard errors are excluded. Of the others the one with the
    highest overlap is chosen: overlap is based on ten rows per query, recall on one or two.

    For documents, with rows available and without `keep_affine`, `Kernel` is chosen if its gain over the largest penalty on folds,
    for `queries` where given, is above one standard error. It takes alpha and s of the affine choice without queries.

    Parameters
    ----------
    role : {"documents", "queries", "decode"}, default "documents"
    keep_affine : bool, default False
        True where the map has to be affine: to migrate an index, to project queries, to predict errors.
    queries : QueryPairs, optional
        Queries encoded by both models.
    """

    name: ClassVar[str] = "auto"

    def __init__(self, role: Role = "documents", keep_affine: bool = False, queries: QueryPairs | None = None) -> None:
        self.role: Role = role
        self.keep_affine = keep_affine
        self.queries = queries

    def fit(
        self,
        anchors: Anchors | Moments | FoldMoments,
        *,
        device: str | torch.device | None = "cpu",
        moments: FoldMoments | None = None,
    ) -> Map:
        """Fit the map from the source to the target of the anchors.

        Parameters
        ----------
        anchors : Anchors or FoldMoments
            FoldMoments have no rows to fit `Kernel` on, so the map is affine.
        device : str, default "cpu"
        moments : FoldMoments, optional
            Those of the anchors, where they are known; for ``queries`` full ones.

        Returns
        -------
        LinearMap, or KernelMap where `Kernel` is chosen

        Raises
        ------
        ParameterError
            An unknown role.
        TooFewAnchorsError
            Too few anchors for folds, or moments without folds.
        """
        role = as_role(self.role)
        chooser = _AutoAffine(role, self.queries)
        if role != "documents" or self.keep_affine or not isinstance(anchors, Anchors):
            return chooser.fit(anchors, device=device, moments=moments)
        folds = moments or anchors.folds(device=device)
        affine = chooser.fit(anchors, device=device, moments=folds)
        # Real queries prefer more shrinkage than a kernel needs.
        queries = self.queries if affine.record.chosen_by == "queries" else None
        standing = affine if queries is None else _AutoAffine(role, None).fit(anchors, device=device, moments=folds)
        linear = standing.record.parameters
        if "alpha" not in linear:  # a map without parameters: the next best
            linear = max((c for c in standing.record.candidates if "alpha" in c.parameters), key=lambda c: c.score).parameters
        share, weight = linear.get("shrinkage_target_weight", 0.0), linear.get("mean_weight", 1.0)
        kernel = Kernel(alpha=linear["alpha"], shrinkage_target_weight=share, mean_weight=weight)
        penalty, candidates = kernel.contest(anchors, device, queries)
        record = replace(affine.record, candidates=affine.record.candidates + candidates)
        if penalty is None:
            return replace(affine, record=record)
        fitted: KernelMap = replace_penalty(kernel, penalty).fit(anchors, device=device, moments=folds)
        seconds = affine.record.seconds + fitted.record.seconds
        return fitted.recorded(candidates=record.candidates, seconds=seconds, role=role, chosen_by=record.chosen_by)

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({values})"


def replace_penalty(kernel: Kernel, penalty: float) -> Kernel:
    """The same kernel method with a given penalty."""
    return Kernel(**{**vars(kernel), "penalty": penalty})


class _AutoAffine(Translator):
    """The affine part of `Auto`."""

    name = "auto"

    def __init__(self, role: Role, queries: QueryPairs | None) -> None:
        self.role: Role = role
        self.queries = queries

    def needs_folds(self) -> bool:
        return True

    def needs_full(self) -> bool:
        return self.role == "queries"

    def solve(self, data: Moments | FoldMoments) -> Solution:
        if not isinstance(data, FoldMoments):
            raise ParameterError("'auto' chooses on folds, which one set of moments does not have.")
        enough = self.role == "queries" or sum(len(x) for x, _ in data.samples) >= _LEAST_ROWS
        queries = self.queries if enough else None
        methods = candidates_for(self.role, total(data), real=queries is not None)
        if queries is None:
            scores = fold_scores(methods, data, self.role, behind=FAR)
            target = data.parts[0].target
            chosen, errors = _prefer(scores, methods, [_simplicity(method, self.role, target) for method in methods])
        else:
            found = real_scores(methods, data, self.role, queries)
            chosen, scores = _among_the_best(found), found.overlap
            errors = deficits_to_best(scores)[1]
        candidates = tuple(
            Candidate(method.name, _parameters(method), float(score), float(error))
            for method, score, error in zip(methods, comparable_means(scores), errors, strict=True)
        )
        solution = methods[chosen].solve(total(data))
        chosen_by = "documents" if queries is None else "queries"
        return replace(solution, candidates=candidates, method=methods[chosen].name, role=self.role, chosen_by=chosen_by)


def candidates_for(role: Role, moments: Moments, *, real: bool) -> list[Translator]:
    """The methods that are compared for a role; with `real` queries, which are more informative, in finer steps."""
    cosine = is_cosine(moments.target)
    plain: list[Translator] = [Rotation(), Isometry(), *([Ortho()] if role != "documents" or real else [])]
    if role == "queries":
        weights = (0.0, 1 / 3, 2 / 3, 1.0) if cosine else (1.0,)
        # Smaller ones increase overlap among documents, but decrease recall of real queries.
        alphas = (np.inf, 10.0, 3.0, *((1.0,) if real else ())) if moments.full else (np.inf,)
        return [*plain, *(Projection(alpha, weight) for alpha in alphas for weight in weights)]
    weights = (_mean_weight(moments),) if role == "documents" else (1.0,)
    if real and cosine and role == "documents":
        weights = (1.0, _MEAN)
    shares = (0.0, *_SHARES) if real else _SHARES
    grid = [(alpha, s, weight) for alpha in _ALPHAS[::-1] for s in shares for weight in weights]  # see `Scaled.mapped`
    return [*plain, *(Bridge(a, s, mean_weight=w) if s or w != 1 else Ridge(a) for a, s, w in grid)]


def _mean_weight(moments: Moments) -> float:
    """Weight of the target's mean in translated documents (see `Auto`)."""
    mean = float(moments.mean_y @ moments.mean_y)
    dominates = mean > float(moments.square_y.sum()) / moments.n
    return _MEAN if dominates and is_cosine(moments.target) else 1.0


def _parameters(method: Translator) -> dict[str, float]:
    return {k: v for k, v in vars(method).items() if k in ("alpha", "shrinkage_target_weight", "mean_weight") and v is not None}


def _prefer(scores: np.ndarray, methods: Sequence[Translator], simplicity: Sequence[float]) -> tuple[int, np.ndarray]:
    """The choice without real queries: the best of those that are simplest within one standard error of the best.

    Where a method without parameters is the best, it is chosen, or an earlier one that differs by rounding only: a rotation is
    more useful than an isometry.
    """
    means, order = comparable_means(scores), np.array(simplicity)
    deficits, errors = deficits_to_best(scores)
    within = deficits <= errors
    best = int(np.argmax(means))
    if not _parameters(methods[best]):
        return next(i for i in np.flatnonzero(deficits <= _ROUNDING).tolist() if not _parameters(methods[i])), errors
    within &= order == order[within].max()
    return int(np.flatnonzero(within)[np.argmax(means[within])]), errors


def _simplicity(method: Translator, role: Role, target: Space) -> float:
    """The preference for a method in the order of its role (see `Auto`), higher is simpler."""
    if role == "queries":
        return -np.inf if isinstance(method, Ortho) else getattr(method, "alpha", np.inf)
    share = getattr(method, "shrinkage_target_weight", 1.0)
    return -share if role == "documents" and is_cosine(target) else share


def _among_the_best(found: QueryScores) -> int:
    """The choice by real queries (see `Auto`)."""
    overlaps = found.overlap.mean(axis=1)
    possible = np.flatnonzero(np.isfinite(overlaps))
    if found.recall.shape[1] >= _LEAST_JUDGED:
        deficits, errors = deficits_to_best(found.recall[possible])
        possible = possible[deficits <= _CLEARLY * errors]
    return int(possible[np.argmax(overlaps[possible])])


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
    deficits, errors = deficits_to_best(scores)
    return int(np.flatnonzero(deficits <= errors)[0]), errors
