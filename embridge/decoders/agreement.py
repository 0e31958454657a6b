"""Checks that a linear head predicts like the estimator it was made from, on rows generated for this.

Equal scores are not equal predictions: an estimator may move its threshold, vote between pairs, or give several labels at once. The
rows cover every class, lie on both sides of every boundary, from a millionth of a unit to a hundred units away from it, and have
lengths from 0.01 to 1,000.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from embridge.decoders.base import Decoded, as_labels
from embridge.errors import DecoderError, EmbridgeError

Link = Literal["softmax", "sigmoid"]

_LENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_DISTANCES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
_EXACT = 1e-6  # relative to the summed terms: closer to a boundary, either label is right
_SINGLE = 1e-3  # distance to a boundary beyond which float32 coefficients must predict like float64 ones
_STEPS, _INSIDE = 30, 0.1


def make_rows(coef: np.ndarray, intercept: np.ndarray) -> list[np.ndarray]:
    """Test rows for a model with these scores, in float32 batches of shape (m, dim).

    Parameters
    ----------
    coef : ndarray of shape (n_outputs, dim)
    intercept : ndarray of shape (n_outputs,)
    """
    return [rows.astype(np.float32) for rows in _batches(coef, intercept)]


def _batches(coef: np.ndarray, intercept: np.ndarray) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    plain = _unit(rng.normal(size=(48, coef.shape[1])))
    along = _unit(coef)
    for length in _LENGTHS:
        yield length * np.vstack([plain, along, -along])
    weights, offsets = (np.vstack([np.zeros_like(coef), coef]), np.append(0, intercept)) if len(coef) == 1 else (coef, intercept)
    starts = np.vstack([_inside_each(weights, offsets), plain])
    scores = starts @ weights.T + offsets
    order = np.argsort(-scores, axis=1, kind="stable")[:, :2]
    normal = weights[order[:, 0]] - weights[order[:, 1]]
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    starts, normal, order, length = (part[length[:, 0] > 0] for part in (starts, normal, order, length))
    scores = np.einsum("ij,ij->i", starts, normal) + offsets[order[:, 0]] - offsets[order[:, 1]]
    normal = normal / length
    on = starts - (scores[:, None] / length) * normal
    for distance in _DISTANCES:
        yield np.vstack([on + distance * normal, on - distance * normal])


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; zero rows are dropped."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def _inside_each(weights: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """For each class a row where it has the largest score, if there is one: Agmon's relaxation, towards the strongest rival."""
    rows = _unit(weights - weights.mean(axis=0))
    todo = np.arange(len(weights))
    for _ in range(_STEPS):
        scores = rows[todo] @ weights.T + offsets
        own = scores[np.arange(len(todo)), todo].copy()
        scores[np.arange(len(todo)), todo] = -np.inf
        rival = scores.argmax(axis=1)
        normal = weights[todo] - weights[rival]
        square = np.einsum("ij,ij->i", normal, normal)
        missing = _INSIDE * np.sqrt(square) - (own - scores[np.arange(len(todo)), rival])
        moving = (missing > 0) & (square > 0)
        if not moving.any():
            break
        todo = todo[moving]
        rows[todo] += (1.2 * missing[moving] / square[moving])[:, None] * normal[moving]
    return rows


def check_decisions(
    estimator: Any,
    batches: list[np.ndarray],
    coef: np.ndarray,
    intercept: np.ndarray,
    classes: np.ndarray,
    decode: Callable[[np.ndarray], Decoded],
) -> None:
    """Refuse a head whose predictions differ from those of the classifier.

    Parameters
    ----------
    estimator : fitted classifier
    batches : list of ndarray
        Of `make_rows`.
    coef, intercept : ndarray
        Of its scores, in float64.
    classes : ndarray of shape (n_classes,)
    decode : callable
        The head in float32, as a function of rows.

    Raises
    ------
    DecoderError
    """
    name = type(estimator).__name__
    for single in batches:
        rows = single.astype(np.float64)
        given = np.asarray(quietly(estimator.predict, rows, name))
        if given.shape[1:] not in ((), (1,)):
            raise DecoderError(
                f"{name} gives several labels at once, which a linear head cannot do. Hint: save one classifier per label."
            )
        given = as_labels(given)
        scores = rows @ coef.T + intercept
        scores = np.hstack([np.zeros_like(scores), scores]) if len(coef) == 1 else scores
        largest = np.partition(scores, -2, axis=1)[:, -2:]
        margin = largest[:, 1] - largest[:, 0]
        summed = np.linalg.norm(rows, axis=1) * np.linalg.norm(coef, axis=1).max() + np.abs(intercept).max()
        expected = classes[np.where(margin > 0, scores.argmax(axis=1), 0)]
        if wrong := int(((expected != given) & (margin > _EXACT * summed)).sum()):
            raise DecoderError(
                f"{name} does not predict the class of the largest score: on {wrong:,} of {len(rows):,} rows near its boundaries "
                "it predicts differently (a threshold or votes), so it is not a linear head. "
                "Hint: save it with eb.save_decoder(..., 'X.skops')."
            )
        clear = margin > _SINGLE * np.linalg.norm(coef, axis=1).max()
        if wrong := int(((decode(single).prediction != given) & clear).sum()):
            raise _inexact(name, wrong, len(rows))


def check_values(
    estimator: Any,
    batches: list[np.ndarray],
    function: Callable[[np.ndarray], Any],
    coef: np.ndarray,
    intercept: np.ndarray,
    decode: Callable[[np.ndarray], np.ndarray] | None,
) -> None:
    """Refuse coefficients whose results differ from those of `function`, in float64 or in float32.

    Raises
    ------
    DecoderError
    """
    name = type(estimator).__name__
    for single in batches:
        rows = single.astype(np.float64)
        expected = columns(quietly(function, rows, name))
        spread = np.abs(expected - intercept).max(initial=1e-30)
        summed = np.linalg.norm(rows, axis=1).max(initial=0) * np.linalg.norm(coef, axis=1).max() + np.abs(intercept).max()
        allowed = max(1e-4 * spread, 1e-9 * summed)
        if not np.isfinite(spread) or np.abs(rows @ coef.T + intercept - expected).max(initial=0) > allowed:
            raise DecoderError.not_linear(name)
        if decode is not None:
            wrong = np.abs(decode(single) - expected).max(axis=1, initial=0) > 1e-3 * max(spread, np.abs(coef).max(initial=0))
            if wrong.any():
                raise _inexact(name, int(wrong.sum()), len(rows))


def link_of(estimator: Any, batches: list[np.ndarray], coef: np.ndarray, intercept: np.ndarray) -> Link | None:
    """The link that turns the estimator's scores into its probabilities; None without probabilities or for another link."""
    if not hasattr(estimator, "predict_proba"):
        return None
    for single in batches:
        rows = single.astype(np.float64)
        scores = rows @ coef.T + intercept
        own = columns(quietly(estimator.predict_proba, rows, type(estimator).__name__))
        scores = np.hstack([np.zeros_like(scores), scores]) if len(coef) == 1 else scores  # sigmoid(s) is softmax(0, s)
        grown = np.exp(scores - scores.max(axis=1, keepdims=True))
        if own.shape != grown.shape or not np.allclose(own, grown / grown.sum(axis=1, keepdims=True), atol=1e-5):
            return None
    return "sigmoid" if len(coef) == 1 else "softmax"


def _inexact(name: str, wrong: int, rows: int) -> DecoderError:
    return DecoderError(
        f"{name} cannot be a linear head: with coefficients of 32 bits, {wrong:,} of {rows:,} rows are decoded differently, since "
        "its intercept is much larger than its coefficients. Hint: center the vectors, or use eb.save_decoder(..., 'X.skops')."
    )


def columns(values: Any) -> np.ndarray:
    """Values of one or several outputs, as float64 of shape (n, n_outputs)."""
    array = np.asarray(values, np.float64)
    return array.reshape(len(array), -1)


def quietly(function: Callable[[np.ndarray], Any], rows: np.ndarray, name: str) -> Any:
    """The results of an estimator for rows, without warnings about unusual rows.

    Raises
    ------
    DecoderError
        It fails.
    """
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return function(rows)
    except EmbridgeError:
        raise
    except Exception as e:  # an estimator may raise anything
        raise DecoderError.fails(f"The estimator {name}", e) from e
