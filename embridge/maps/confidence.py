"""Confidence: predicted errors of translated rows, and bounds with a guaranteed coverage."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from embridge.arrays import as_vectors
from embridge.errors import ParameterError, SpaceMismatchError
from embridge.records import ConfidenceCheck
from embridge.types import Metric, Space

ErrorKind = Literal["cosine", "l2"]
_CHUNK = 8192
_EXTREME = 1e30  # squares of anything beyond overflow float32
_LARGEST = {"cosine": 2.0, "l2": 3e38}
_ARRAYS = ("mean", "factor", "weights", "scores", "hashes")


def error_kind(target: Space) -> ErrorKind:
    """The kind of error in a space: ``cosine`` where only directions matter, else ``l2``."""
    return "cosine" if target.metric == Metric.COSINE or target.normalized else "l2"


def translation_errors(translated: np.ndarray, native: np.ndarray, target: Space) -> np.ndarray:
    """Error of each translated row against its native vector, shape (n,), float64.

    ``1 - cosine(translated, native)`` under cosine or where the target space is normalized, else ``||translated - native||``.
    """
    found, wanted = (side.astype(np.float64) for side in (translated, native))
    if error_kind(target) == "l2":
        return np.linalg.norm(found - wanted, axis=1)
    found, wanted = (side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-300) for side in (found, wanted))
    return 0.5 * ((found - wanted) ** 2).sum(1)  # 1 - cosine, exact to the last digit where it is near zero


@dataclass(frozen=True, eq=False)
class Confidence:
    """Predicts the error of a translated row from the row alone.

    With ``h(x) = 1/n + (x - mean)^T (Sxx/n + alpha v I)^-1 (x - mean) / n``, the leverage of a row over the n anchors under the
    regularized covariance (v the mean feature variance, alpha 0.1), and ``||W x + b||``, the length of its translation before
    normalization,

        ``predicted(x) = exp(w0 + w1 log h(x) + w2 log ||W x + b||)``,

    weights by least squares on the logarithms of the errors of rows that the map was not fitted on, w0 then such that predicted
    and true errors have one mean. ``bound(x) = predicted(x) * q``, q the ``ceil((m + 1) coverage)``-th smallest of the m ratios
    ``error / predicted`` of yet other rows (split conformal prediction with a normalized score: Vovk, Gammerman and Shafer
    2005; Papadopoulos 2008), so that ``P(error <= bound) >= coverage`` for rows exchangeable with these.

    Parameters
    ----------
    coef : ndarray of shape (dim_target, dim_source)
    intercept : ndarray of shape (dim_target,)
        Of the map.
    kind : {"cosine", "l2"}
        Kind of error (see `translation_errors`).
    anchors : int
        n.
    mean : ndarray of shape (dim_source,), float32
    factor : ndarray of shape (dim_source, dim_source), float32
        F with ``h(x) = 1/n + ||(x - mean) F||^2``.
    weights : ndarray of shape (3,)
        w0, w1, w2.
    scores : ndarray of shape (m,)
        Sorted ratios ``error / predicted``.
    hashes : ndarray of uint64
        Sorted hashes of the ids of all rows used for weights and scores, so that an evaluation can leave them out.
    """

    coef: np.ndarray
    intercept: np.ndarray
    kind: ErrorKind
    anchors: int
    mean: np.ndarray
    factor: np.ndarray
    weights: np.ndarray
    scores: np.ndarray
    hashes: np.ndarray

    def __post_init__(self) -> None:
        p = self.coef.shape[1]
        shapes = self.mean.shape == (p,), self.factor.shape == (p, p), self.weights.shape == (3,), self.scores.ndim == 1
        finite = all(np.isfinite(getattr(self, name)).all() for name in _ARRAYS[:4])
        ordered = finite and bool((np.diff(self.scores) >= 0).all())
        if not all(shapes) or not ordered or self.anchors < 1 or not len(self.scores) or self.kind not in _LARGEST:
            raise ParameterError(f"A confidence of {p} dimensions needs finite arrays of its shapes, anchors and sorted scores.")

    @property
    def rows(self) -> int:
        """Number of rows that it was calibrated on."""
        return len(self.hashes)

    def leverage(self, x: np.ndarray) -> np.ndarray:
        """h(x) of each row, shape (n,), float32."""
        return self.features(x)[0]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predicted error of each row's translation.

        Parameters
        ----------
        x : ndarray of shape (n, dim_source)

        Returns
        -------
        ndarray of shape (n,), float32

        Raises
        ------
        SpaceMismatchError
            Vectors of another width.
        """
        return self.combine(*self.features(x))

    def bound(self, x: np.ndarray, coverage: float = 0.9) -> np.ndarray:
        """A bound on the error of each row's translation that holds with probability of at least `coverage`.

        Parameters
        ----------
        x : ndarray of shape (n, dim_source)
        coverage : float, default 0.9
            In (0, 1), and at most ``m / (m + 1)`` for m scores.

        Returns
        -------
        ndarray of shape (n,), float32

        Raises
        ------
        ParameterError
            The coverage is out of range.
        """
        return self.widen(self.predict(x), coverage)

    def combine(self, leverage: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Predicted errors of rows from their leverage and the length of their translation before normalization."""
        w0, w1, w2 = self.weights
        h, length = (np.log(np.clip(side.astype(np.float64), 1 / _EXTREME, _EXTREME)) for side in (leverage, lengths))
        exponent = np.minimum(w0 + w1 * h + w2 * length, math.log(_LARGEST[self.kind]))
        return np.exp(exponent).astype(np.float32)

    def widen(self, predicted: np.ndarray, coverage: float) -> np.ndarray:
        """Bounds on errors from predicted ones."""
        with np.errstate(over="ignore"):
            bounds = predicted.astype(np.float64) * self.quantile(coverage)
        return np.minimum(bounds, _LARGEST[self.kind]).astype(np.float32)

    def quantile(self, coverage: float) -> float:
        """The ``ceil((m + 1) coverage)``-th smallest score."""
        m = len(self.scores)
        if not 0 < coverage <= m / (m + 1):
            few = f" ({m:,} rows of calibration allow no more)" if 0 < coverage < 1 else ""
            raise ParameterError.must_be("The coverage of a confidence", f"above 0 and at most {m / (m + 1):.4g}{few}", coverage)
        # A product such as 0.9 * 10 may be above its whole number by rounding.
        return float(self.scores[math.ceil((m + 1) * coverage - 1e-9) - 1])

    def tensors(self, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """`mean` and `factor` on a device."""
        return torch.tensor(self.mean, device=device), torch.tensor(self.factor, device=device)

    def features(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs of `combine`: the leverage of each row, and the length of its translation; shape (n,) each, float32."""
        x = as_vectors(x, what="vectors")
        if x.shape[1] != len(self.mean):
            raise SpaceMismatchError.width("The confidence", len(self.mean), x.shape[1])
        leverage, lengths = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
        with np.errstate(over="ignore"):
            for start in range(0, len(x), _CHUNK):
                rows = x[start : start + _CHUNK].astype(np.float32, copy=False)
                spread = (rows - self.mean) @ self.factor
                leverage[start : start + _CHUNK] = np.einsum("ij,ij->i", spread, spread) + 1 / self.anchors
                lengths[start : start + _CHUNK] = np.linalg.norm(rows @ self.coef.T + self.intercept, axis=1)
        return leverage, lengths

    def check(self, x: np.ndarray, errors: np.ndarray, level: float = 0.9) -> ConfidenceCheck:
        """Compare it with the true errors of rows that it was not calibrated on.

        Parameters
        ----------
        x : ndarray of shape (n, dim_source)
        errors : ndarray of shape (n,)
            See `translation_errors`.
        level : float, default 0.9
            Coverage of the bound.
        """
        predicted = self.predict(x)
        tenth, mean = max(1, len(errors) // 10), float(errors.mean()) or 1.0
        highest = errors[np.argsort(-predicted, kind="stable")[:tenth]]
        worst, spread = float(highest.mean()) / mean, 1.96 * float(highest.std()) / mean / tenth**0.5
        oracle = float(np.sort(errors)[-tenth:].mean()) / mean
        held = float((errors <= self.widen(predicted, level)).mean())
        return ConfidenceCheck(len(errors), worst, (worst - spread, worst + spread), oracle, level, held)

    @property
    def fingerprint(self) -> str:
        """Content hash: 32 hexadecimal digits."""
        digest = hashlib.blake2b(json.dumps([self.kind, self.anchors]).encode(), digest_size=16)
        for name in ("coef", "intercept", *_ARRAYS):
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()

    def to_file(self) -> tuple[dict[str, np.ndarray], str]:
        """Tensors and metadata for the file of a map."""
        tensors = {f"confidence.{name}": np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        return tensors, json.dumps({"kind": self.kind, "anchors": self.anchors, "fingerprint": self.fingerprint})

    @classmethod
    def from_file(cls, tensors: Mapping[str, np.ndarray], metadata: str, coef: np.ndarray, intercept: np.ndarray) -> Confidence:
        """The inverse of `to_file`, for the map with these coefficients.

        Raises
        ------
        ParameterError
            Its content does not match its fingerprint.
        """
        facts = json.loads(metadata)
        arrays = {name: np.array(tensors[f"confidence.{name}"]) for name in _ARRAYS}
        found = cls(coef, intercept, facts["kind"], int(facts["anchors"]), **arrays)
        if found.fingerprint != facts["fingerprint"]:
            raise ParameterError("The confidence in the file was altered: its content does not match its fingerprint.")
        return found
