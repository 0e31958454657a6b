"""Measures a decoder of one space on translated vectors of another, compared with the alternatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.decoders import Decoder
from embridge.decoders.retrain import retrain
from embridge.errors import ParameterError, SpaceMismatchError, TooFewAnchorsError
from embridge.maps import Map
from embridge.records import DecoderEvaluation, DecoderStrategy
from embridge.types import decoder_mismatch, space_mismatch

_RESAMPLES = 1000
_LEAST = 10

Labels = Mapping[Any, Any] | Sequence[Any] | np.ndarray


def evaluate_decoder(
    decoder: Decoder,
    anchors: Anchors,
    labels: Labels,
    *,
    via: Map,
    train: Anchors | None = None,
    exclude: Sequence[Any] | np.ndarray = (),
    estimator: Any = None,
    retrained: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DecoderEvaluation:
    """Measure a decoder on translated vectors, on labeled rows that the map was not fitted on.

    Parameters
    ----------
    decoder : Decoder
        Of the space that the map leads into.
    anchors : Anchors
        Rows of both spaces. Rows that the map was fitted on are left out, so all matched rows may be given.
    labels : mapping of id to label, or array_like of shape (n,) or (n, n_outputs)
        Labels of the anchors (an array: one per row, in their order); rows without a label are ignored. Classes, numbers, or
        for kind ``output`` the vectors to be reconstructed.
    via : LinearMap or KernelMap
    train : Anchors, optional
        Rows to train the ``retrained`` decoder on, whose labels are in the mapping `labels`. Default: the anchors that the map was
        fitted on; if there are none, half of the rest by a hash of the id. They are not in the test set.
    exclude : sequence of ids, optional
        Further rows to leave out of the test set: those that the decoder was trained on.
    estimator : scikit-learn estimator, optional
        Estimator to train for ``retrained``. Default: the decoder's own; else logistic regression behind a standard scaler, or
        ridge regression.
    retrained : bool, default True
        False leaves that strategy out; then scikit-learn is not needed.
    seed : int, default 0
    progress : callable, optional
        Called with (strategies done, strategies in all).

    Returns
    -------
    DecoderEvaluation
        Strategies ``native`` (the decoder on vectors of its own space), ``translated``, ``no-translation`` (on untranslated
        source vectors; where widths differ padded with zeros or cut, as in the paper: `padded`) and ``retrained``. Accuracy and
        macro-F1 (mean over the classes among labels and predictions, as in scikit-learn), R2 (mean over outputs) and MSE (mean over
        rows and outputs), each with a 95 % percentile bootstrap interval over rows.

    Raises
    ------
    SpaceMismatchError
        The spaces of anchors, map and decoder differ, or labels have another width than the decoder's outputs.
    TooFewAnchorsError
        Fewer than 10 labeled rows remain.
    ParameterError
        Labels of another length or kind.
    """
    for expected, found in ((via.source, anchors.source), (via.target, anchors.target)):
        if not expected.same_as(found):
            raise space_mismatch("The map", expected, "the evaluation's data", found)
    if not via.target.same_as(decoder.space):
        raise decoder_mismatch(decoder.name, decoder.space, "the map's target", via.target)
    known = _by_id(anchors, labels)
    labeled = anchors.at(np.array([i in known for i in anchors.ids.tolist()], bool))
    rest = labeled.without(via.anchor_hashes)
    if train is None and retrained:
        train = labeled.at(np.isin(labeled.hashes(), via.anchor_hashes))
        if len(train) < _LEAST:
            train, rest = rest.split(0.5, seed)
    apart = set(np.asarray(exclude).tolist()) | (set(train.ids.tolist()) if train is not None else set())
    rows = rest.at(np.array([i not in apart for i in rest.ids.tolist()], bool))
    if len(rows) < _LEAST:
        raise TooFewAnchorsError.held_out(_LEAST, len(rows), len(anchors))
    truth = _labels(rows, known, decoder)
    ways = list(_ways(decoder, rows, via))
    if train is not None:
        train = train.at(np.array([i in known for i in train.ids.tolist()], bool))
        if len(train) < _LEAST:
            raise TooFewAnchorsError(f"Retraining needs at least {_LEAST} labeled rows. Got {len(train)} instead.")
        own = retrain(decoder, estimator, train.x, _labels(train, known, decoder), via.source)
        ways.append(("retrained", lambda: own.decode(rows.x)))
    found = []
    for number, (name, run) in enumerate(ways):
        found.append(_score(name, decoder, run(), truth, seed))
        if progress is not None:
            progress(number + 1, len(ways))
    padded = via.target.dim - via.source.dim
    trained_on = 0 if train is None else len(train)
    return DecoderEvaluation(decoder.kind, len(rows), trained_on, padded, tuple(found), decoder.fingerprint, via.fingerprint)


def _ways(decoder: Decoder, rows: Anchors, via: Map) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The strategies that use the decoder unchanged: name and function."""
    yield "native", lambda: decoder.decode(rows.y)
    yield "translated", lambda: decoder.decode(via.apply(rows.x))
    fitted = np.zeros((len(rows), decoder.space.dim), np.float32)
    width = min(via.source.dim, decoder.space.dim)
    fitted[:, :width] = rows.x[:, :width]
    yield "no-translation", lambda: decoder.decode(fitted)


def _by_id(anchors: Anchors, labels: Labels) -> Mapping[Any, Any]:
    if isinstance(labels, Mapping):
        return labels
    if len(labels) != len(anchors):
        raise ParameterError(f"labels must be one per row of the {len(anchors):,} anchors. Got {len(labels):,} instead.")
    values = labels if isinstance(labels, np.ndarray) and labels.ndim > 1 else np.asarray(labels).tolist()
    return dict(zip(anchors.ids.tolist(), values, strict=True))


def _labels(rows: Anchors, known: Mapping[Any, Any], decoder: Decoder) -> np.ndarray:
    """Labels of rows: shape (n,) for a classifier, else (n, n_outputs)."""
    values = [known[i] for i in rows.ids.tolist()]
    if decoder.kind == "classifier":
        array = np.array(values, dtype=object if isinstance(values[0], str) else None)
        if array.ndim != 1 or array.dtype.kind not in "iubO":
            raise ParameterError.must_be("labels", "one string, integer or boolean per row", array.dtype)
        return array
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as e:
        raise ParameterError(f"labels of a {decoder.kind} must be numbers: {e}") from None
    if not np.isfinite(array).all():
        raise ParameterError("labels must be finite numbers.")
    return array.reshape(len(array), -1)


def _score(name: str, decoder: Decoder, found: Any, truth: np.ndarray, seed: int) -> DecoderStrategy:
    if decoder.kind == "classifier":
        values, intervals = _classification(found.prediction, truth, seed)
    else:
        given = found.prediction if found.output is None else found.output
        given = given.reshape(len(given), -1).astype(np.float64)
        if given.shape != truth.shape:
            raise SpaceMismatchError.width("Labels against the decoder's outputs", given.shape[1], truth.shape[1])
        values, intervals = _regression(given, truth, seed, r2=decoder.kind == "regressor")
    return DecoderStrategy(name, values, intervals)


def _classification(found: np.ndarray, truth: np.ndarray, seed: int) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Accuracy and macro-F1, from the cells of the confusion matrix: resampling rows is drawing the counts of the cells."""
    names, codes = np.unique(np.concatenate([truth, found]).astype(str), return_inverse=True)
    size, n = len(names), len(truth)
    cells, counts = np.unique(codes[:n] * size + codes[n:], return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=_RESAMPLES)
    scores = _of_cells(cells, np.vstack([counts[None], drawn]), size)
    names_of = ("accuracy", "macro_f1")
    values = {m: float(s[0]) for m, s in zip(names_of, scores, strict=True)}
    return values, {m: _interval(s[1:]) for m, s in zip(names_of, scores, strict=True)}


def _of_cells(cells: np.ndarray, counts: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and macro-F1 for each row of `counts`, of the confusion cells (true * size + predicted) that are not empty."""
    true, found = np.divmod(cells, size)
    hit = np.zeros((len(counts), size))
    total = np.zeros((len(counts), size))
    for column, (t, f) in enumerate(zip(true.tolist(), found.tolist(), strict=True)):
        total[:, t] += counts[:, column]
        total[:, f] += counts[:, column]
        if t == f:
            hit[:, t] = counts[:, column]
    there = total > 0  # a class missing from a resample is ignored there
    f1 = np.divide(2 * hit, total, out=np.zeros_like(hit), where=there).sum(axis=1) / there.sum(axis=1)
    return hit.sum(axis=1) / counts.sum(axis=1), f1


def _regression(
    found: np.ndarray, truth: np.ndarray, seed: int, *, r2: bool
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """MSE, and R2 against the mean of the (resampled) labels."""
    rng, n = np.random.default_rng(seed), len(truth)
    errors = (found - truth) ** 2
    centered = truth - truth.mean(axis=0)
    drawn = [np.arange(n), *(rng.integers(n, size=n) for _ in range(_RESAMPLES))]
    per_row = errors.mean(axis=1)
    scores = {"mse": np.array([per_row[rows].mean() for rows in drawn])}
    if r2:
        scores = {"r2": np.array([_r2(errors[rows], centered[rows]) for rows in drawn])} | scores
    return {m: float(s[0]) for m, s in scores.items()}, {m: _interval(s[1:]) for m, s in scores.items()}


def _r2(errors: np.ndarray, truth: np.ndarray) -> float:
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    ratio = np.divide(errors.sum(axis=0), spread, out=np.ones(len(spread)), where=spread > 0)
    return float(1 - ratio.mean())


def _interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
