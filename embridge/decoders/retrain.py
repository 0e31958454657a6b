"""Retraining a decoder like another one: the baseline for translating vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from embridge.decoders.base import Decoder, Kind
from embridge.decoders.declaration import Declaration
from embridge.decoders.skops_decoder import SklearnDecoder
from embridge.errors import DecoderError, EmbridgeError, MissingDependencyError
from embridge.types import Space


def retrain(like: Decoder, estimator: Any, vectors: np.ndarray, labels: np.ndarray, space: Space) -> Decoder:
    """Train a decoder on vectors of `space`.

    Parameters
    ----------
    like : Decoder
        Gives the kind, and the estimator where it is scikit-learn's.
    estimator : scikit-learn estimator or None
        Estimator to clone and fit. Default: the decoder's own, else logistic regression behind a standard scaler (classifiers)
        or ridge regression (otherwise).
    vectors : ndarray of shape (n, dim)
    labels : ndarray of shape (n,) or (n, n_outputs)

    Returns
    -------
    Decoder

    Raises
    ------
    MissingDependencyError
        scikit-learn is not installed.
    DecoderError
        The estimator cannot be trained on the labels.
    """
    try:
        from sklearn.base import clone
    except ImportError as e:
        raise MissingDependencyError.of("scikit-learn", "Retraining a decoder", "decoders") from e
    if estimator is None and isinstance(like, SklearnDecoder):
        estimator = like.estimator
    model = clone(_default(like.kind) if estimator is None else estimator)
    targets = labels.astype(str) if labels.dtype == object else labels
    try:
        return SklearnDecoder(model.fit(vectors, targets), Declaration(space, like.kind), "retrained", "")
    except EmbridgeError:
        raise
    except Exception as e:  # such as labels of one class only
        raise DecoderError(
            f"A {type(model).__name__} cannot be trained on {len(targets):,} labeled rows: {str(e).strip() or type(e).__name__}. "
            "Hint: skip it with --no-retrain (retrained=False)."
        ) from e


def _default(kind: Kind) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "classifier":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return Ridge(alpha=1.0)
