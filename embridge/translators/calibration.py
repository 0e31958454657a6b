"""Calibration: estimates a map's errors from rows that it was not fitted on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from embridge.anchors import Anchors
from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.errors import MapError, TooFewAnchorsError
from embridge.maps import LinearMap
from embridge.maps.confidence import Confidence, error_kind, translation_errors
from embridge.records.fitting import LEAST_CALIBRATED as LEAST_ROWS
from embridge.stores.ids import hash_ids
from embridge.translators.base import total
from embridge.types import space_mismatch

_MOST_ROWS = 20_000
_ALPHA = 0.1  # of the leverage; between 0.01 and 0.3 the ranking of real rows is equal to 0.01 Spearman
_FLAT = 1e-3  # a logarithm that varies less than this over the rows (the length after a rotation) is rounding noise


def calibrate(
    translation: LinearMap,
    anchors: Anchors | Moments | FoldMoments,
    held_out: Anchors,
    *,
    seed: int = 0,
    device: str | torch.device | None = "cpu",
) -> LinearMap:
    """The same map with a `Confidence`, so that it can predict the error of each row.

    Half of the rows, by a hash of their id, give the weights of the prediction, the others the scores of the bound: with the
    same rows for both, the coverage would be too low.

    Parameters
    ----------
    translation : LinearMap
    anchors : Anchors, Moments or FoldMoments
        The anchors that it was fitted on.
    held_out : Anchors
        Rows that it was not fitted on. Anchors of the map among them are left out; more than 20,000 are sampled.
    seed : int, default 0
        Seed of the split into halves.
    device : str, default "cpu"
        Device to compute moments of anchors on.

    Returns
    -------
    LinearMap
        With `confidence`; coefficients, record (except `calibrated`) and fingerprint are those of the map.

    Raises
    ------
    TooFewAnchorsError
        Fewer than 50 rows remain.
    SpaceMismatchError
        Anchors or rows are of other spaces than the map.

    Examples
    --------
    >>> import embridge as eb
    >>> old, new = eb.open(eb.sample_path("minilm")), eb.open(eb.sample_path("mpnet"))
    >>> train, held_out = eb.match(old, new).split(0.5)
    >>> rotation = eb.calibrate(eb.fit(train, "rotation"), train, held_out)
    >>> rotation.confidence.predict(held_out.x[:3]).shape
    (3,)
    """
    if not isinstance(translation, LinearMap):
        raise MapError.not_affine("its errors cannot be predicted")
    moments = anchors.moments(device, full=False) if isinstance(anchors, Anchors) else total(anchors)
    for side in (moments, held_out):
        for expected, found in ((translation.source, side.source), (translation.target, side.target)):
            if not expected.same_as(found):
                raise space_mismatch("The map", expected, "the calibration's data", found)
    left = held_out.without(translation.anchor_hashes)
    if isinstance(anchors, Anchors):
        left = left.without(anchors.hashes())
    if len(left) < LEAST_ROWS:
        raise TooFewAnchorsError(
            f"A confidence is calibrated on at least {LEAST_ROWS} rows that the map was not fitted on. Got {len(left)} of "
            f"{len(held_out):,} instead. Hint: hold out more rows (--test-size), or re-encode more shared rows."
        )
    rows = left.sample(_MOST_ROWS, seed) if len(left) > _MOST_ROWS else left
    first, second = halves(rows.ids, seed)
    # Without weights it cannot predict yet, but computes the two features.
    blank = Confidence(
        translation.coef,
        translation.intercept,
        error_kind(translation.target),
        moments.n,
        moments.mean_x.astype(np.float32),
        leverage_factor(moments),
        np.zeros(3),
        np.ones(1),
        np.sort(rows.hashes()),
    )
    leverage, lengths = blank.features(rows.x)
    errors = translation_errors(translation.apply(rows.x), rows.y, translation.target)
    weighted = replace(blank, weights=_weights(leverage[first], lengths[first], errors[first]))
    scores = np.sort(errors[second] / weighted.combine(leverage[second], lengths[second]))
    record = replace(translation.record, calibrated=len(rows))
    return replace(translation, confidence=replace(weighted, scores=scores), record=record)


def halves(ids: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the half with the smaller hashes of their id, and of the other half."""
    order = np.argsort(hash_ids(ids, "confidence", seed), kind="stable")
    return np.sort(order[: len(ids) // 2]), np.sort(order[len(ids) // 2 :])


def leverage_factor(moments: Moments) -> np.ndarray:
    """F, shape (dim_source, dim_source), float32: ``||(x - mean) F||^2`` is the leverage of `Confidence` without its 1/n."""
    p, n = len(moments.sxx), moments.n
    variance = float(np.trace(moments.sxx)) / (n * p) or 1.0
    root = np.linalg.cholesky(moments.sxx / n + _ALPHA * variance * np.eye(p))
    return np.ascontiguousarray(np.linalg.inv(root).T / np.sqrt(n), dtype=np.float32)


def _weights(leverage: np.ndarray, lengths: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Least squares on logarithms; errors below 0.1 % of their mean are set to that, so that the smallest do not dominate."""
    level = max(float(errors.mean()), 1e-12)
    wanted = np.log(np.maximum(errors, 1e-3 * level))
    features = np.log(np.clip(np.stack([leverage, lengths], 1).astype(np.float64), 1e-30, 1e30))
    centered = features - features.mean(0)
    spread = centered.std(0)
    alive = spread > _FLAT
    slopes = np.zeros(2)
    slopes[alive] = np.linalg.lstsq(centered[:, alive] / spread[alive], wanted - wanted.mean(), rcond=1e-6)[0] / spread[alive]
    log_predicted = features @ slopes
    peak = log_predicted.max()
    return np.array([np.log(level) - peak - np.log(np.exp(log_predicted - peak).mean()), *slopes])
