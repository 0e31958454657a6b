"""The base of translators: estimators that return an immutable LinearMap."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from embridge.anchors import Anchors
from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.device import resolve_device
from embridge.errors import TooFewAnchorsError
from embridge.maps import LinearMap
from embridge.records import Candidate, FitRecord
from embridge.translators.solvers import orthogonal_factor


@dataclass(frozen=True, eq=False)
class Solution:
    """The result of a solver: ``y = x @ weight + intercept`` in float64.

    Attributes
    ----------
    weight : ndarray of shape (dim_source, dim_target)
    intercept : ndarray of shape (dim_target,)
    parameters : dict
        Chosen or computed values (alpha, rank, ...).
    candidates : tuple of Candidate
    method : str, optional
        The chosen method, where a translator chooses among methods.
    role, chosen_by : str, optional
        Role, and whether candidates were compared on real queries or on documents.
    """

    weight: np.ndarray
    intercept: np.ndarray
    parameters: dict[str, Any] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    method: str = ""
    role: str = ""
    chosen_by: str = ""


class Translator(ABC):
    """An estimator of a map between two spaces.

    The constructor only stores parameters; `fit` returns a LinearMap and does not change the translator.

    Attributes
    ----------
    name : str
        The method's name.
    minimum : int
        Least number of anchors.
    """

    name: ClassVar[str]
    minimum: ClassVar[int] = 2

    @abstractmethod
    def solve(self, data: Moments | FoldMoments) -> Solution:
        """Solve for the map, in closed form or by iteration over moments."""

    def translate(self, data: Moments, x: np.ndarray) -> np.ndarray:
        """Rows of shape (n, dim_source) by the map of these moments, in float32, as candidates are compared.

        Methods that share a decomposition with others translate without their weights.
        """
        found = self.solve(data)
        return x @ found.weight.astype(np.float32) + found.intercept.astype(np.float32)

    def needs_folds(self) -> bool:
        """True where parameters have to be chosen; then `solve` takes FoldMoments."""
        return False

    def needs_full(self) -> bool:
        """True where `solve` reads all of Syy (see `Moments.full`)."""
        return False

    def fit(
        self,
        anchors: Anchors | Moments | FoldMoments,
        *,
        device: str | torch.device | None = "cpu",
        moments: Moments | FoldMoments | None = None,
    ) -> LinearMap:
        """Fit the map from the source to the target of the anchors.

        Parameters
        ----------
        anchors : Anchors, Moments or FoldMoments
            Moments are sufficient for methods without parameters to choose.
        device : str, default "cpu"
            Device to compute moments of anchors on. Solving is in float64 on the CPU.
        moments : Moments or FoldMoments, optional
            Those of the anchors, where they are known.

        Returns
        -------
        LinearMap

        Raises
        ------
        TooFewAnchorsError
            Fewer anchors than the method needs, or too few for folds.
        """
        started = time.perf_counter()
        n = anchors.total().n if isinstance(anchors, FoldMoments) else anchors.n if isinstance(anchors, Moments) else len(anchors)
        if n < self.minimum:
            raise TooFewAnchorsError.for_method(self.name, self.minimum, n)
        data = anchors if moments is None else moments
        if isinstance(data, Anchors):
            full = self.needs_full()
            data = data.folds(device=device, full=full) if self.needs_folds() else data.moments(device, full=full)
        elif isinstance(data, FoldMoments) and not self.needs_folds():
            data = total(data)
        elif isinstance(data, Moments) and self.needs_folds():
            raise TooFewAnchorsError(
                f"{self.name!r} chooses its parameters on folds, which one set of moments does not have. "
                "Hint: give Anchors or FoldMoments, or set the parameters."
            )
        found = self.solve(data)
        spaces = data.parts[0] if isinstance(data, FoldMoments) else data
        is_rows = isinstance(anchors, Anchors)
        record = FitRecord(
            found.method or self.name,
            {k: v.item() if isinstance(v, np.generic) else v for k, v in found.parameters.items()},  # plain values for JSON
            n,
            anchors.record.held_out if is_rows else 0,
            time.perf_counter() - started,
            str(resolve_device(device)),
            (anchors.record.source, anchors.record.target) if is_rows else (),
            found.candidates,
            role=found.role,
            chosen_by=found.chosen_by,
        )
        hashes = np.sort(anchors.hashes()) if is_rows else np.empty(0, np.uint64)
        if isinstance(anchors, FoldMoments):
            hashes = anchors.anchor_hashes
        return LinearMap(found.weight.T, found.intercept, spaces.source, spaces.target, record, hashes)

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({values})"


def total(data: Moments | FoldMoments) -> Moments:
    """Moments of all rows; those of folds are cached, and with them what is cached of moments."""
    return data.total() if isinstance(data, FoldMoments) else data


def centered_factor(moments: Moments) -> tuple[np.ndarray, int]:
    """The orthogonal factor of Sxy and its rank, cached: many candidates are solved on the same moments."""
    cache = moments.__dict__.setdefault("_factors", {})
    if "centered" not in cache:
        cache["centered"] = orthogonal_factor(moments.sxy)
    return cache["centered"]


def uncentered_factor(moments: Moments) -> tuple[np.ndarray, int]:
    """The orthogonal factor of the cross product ``x^T y`` and its rank, cached."""
    cache = moments.__dict__.setdefault("_factors", {})
    if "uncentered" not in cache:
        cache["uncentered"] = orthogonal_factor(moments.sxy + moments.n * np.outer(moments.mean_x, moments.mean_y))
    return cache["uncentered"]
