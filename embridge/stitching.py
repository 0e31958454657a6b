"""Zero-shot stitching: a decoder that was trained on one encoder's space, run over another's, by every method side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.arrays import as_vectors, norms, unit
from embridge.errors import ParameterError, SpaceMismatchError, TooFewAnchorsError
from embridge.records import Stitching, StitchingScore
from embridge.representations import relative
from embridge.translators import METHODS, fit
from embridge.translators.paper import PaperTranslator, Scaling

METHODS_COMPARED = ("absolute", "relative", "affine", "linear", "l-ortho", "ortho", "ridge", "bridge")

Score = Callable[[np.ndarray], float]


def stitch(
    vectors: np.ndarray, anchors: Anchors, method: str = "auto", *, scaling: Scaling = "standard", **parameters: Any
) -> np.ndarray:
    """Vectors of the source as a decoder of the target is to be given them.

    Parameters
    ----------
    vectors : ndarray of shape (n, dim_source)
    anchors : Anchors
        What a translator is fitted on.
    method : str, default "auto"
        ``absolute``: as they are, zero-padded or cut to the target's width, which needs no anchors and shows what not translating
        costs. ``relative``: their cosines to the anchors, for a decoder that was trained on `relative` vectors of the target.
        Else a translator of `fit`, for decoding.
    scaling : {"standard", "l2"}, default "standard"
        ``standard``: the paper's methods scale each feature. ``l2``: rows of both sides are scaled to unit length instead, before
        any method; what comes out has the mean length of the target's anchors, since a row's own length cannot be known.
    **parameters
        Of the translator.

    Returns
    -------
    ndarray of shape (n, dim_target), or (n, n_anchors) where relative; float32

    Raises
    ------
    ParameterError
        No such method, scaling or parameter.
    SpaceMismatchError
        Vectors of another width than the source's.
    TooFewAnchorsError
    """
    if scaling not in ("standard", "l2"):
        raise ParameterError.must_be("scaling", "'standard' or 'l2'", scaling)
    known = ("absolute", "relative", "auto", *METHODS)
    if method not in known:
        raise ParameterError.must_be("method", f"one of {', '.join(known)}", method)
    vectors = as_vectors(vectors, anchors.source.dim, "vectors")
    if method == "relative":
        return relative(vectors, anchors.x)
    length = np.float32(1)
    if scaling == "l2":
        if not anchors.target.normalized:
            length = norms(anchors.y).mean(dtype=np.float32)
        vectors, anchors = unit(vectors), anchors.unit()
        if method in METHODS and issubclass(METHODS[method], PaperTranslator):
            parameters["scaling"] = "l2"
    if method == "absolute":
        return _resized(vectors, anchors.target.dim) * length
    return fit(anchors, method, purpose="decode", **parameters).apply(vectors) * length


def compare_stitching(
    train: Anchors,
    test: Anchors,
    train_decoder: Callable[[np.ndarray, int], Score],
    *,
    methods: Sequence[str] = METHODS_COMPARED,
    anchors: int = 500,
    scaling: Scaling = "standard",
    seeds: Sequence[int] = (0,),
    progress: Callable[[int, int], None] | None = None,
) -> Stitching:
    """Train a decoder on the target's training rows, and score it on the source's test rows as each method hands them over.

    Parameters
    ----------
    train, test : Anchors
        Rows of both spaces, from one split: the decoder is trained on ``train.y`` and nothing of `test` is seen before it is
        scored on ``test.x``.
    train_decoder : callable
        ``train_decoder(vectors, seed)`` trains on vectors of the training rows, in their order, and returns a function from
        vectors of the test rows, in theirs, to a score. It is called once a seed with ``train.y``, and where ``relative`` is
        compared once more with the relative vectors.
    methods : sequence of str, default all of the paper's, the baselines, ``ridge`` and ``bridge``
        See `stitch`.
    anchors : int, default 500
        Training rows that translators are fitted on, another sample each seed; at most all of them.
    scaling : {"standard", "l2"}, default "standard"
        See `stitch`.
    seeds : sequence of int, default (0,)
        Of the anchors and of the decoder.
    progress : callable, optional
        Called with (scores taken, scores in all).

    Returns
    -------
    Stitching
        ``no-stitching`` first (the target's own test rows), then the methods.

    Raises
    ------
    SpaceMismatchError
        Train and test are of different spaces.
    ParameterError
        A test row is in the training set, no seeds, or see `stitch`.
    TooFewAnchorsError
        Fewer anchors than a method needs.

    Examples
    --------
    ::

        def train_decoder(vectors, seed):
            svm = LinearSVC(random_state=seed).fit(vectors, labels_train)
            return lambda rows: svm.score(rows, labels_test)


        print(compare_stitching(train, test, train_decoder, anchors=500, seeds=range(5)))
    """
    for expected, found in ((train.source, test.source), (train.target, test.target)):
        if not expected.same_as(found):
            raise SpaceMismatchError.between("The comparison", expected, "the test set", found)
    shared = int(np.isin(test.hashes(), train.hashes()).sum())
    if shared:
        raise ParameterError.shared_rows(shared)
    seeds = tuple(seeds)
    if not seeds:
        raise ParameterError.must_be("seeds", "at least one", "none")
    if not len(test):
        raise TooFewAnchorsError.held_out(1, 0, len(train))
    names = ("no-stitching", *methods)
    found: dict[str, list[float]] = {name: [] for name in names}
    for seed in seeds:
        chosen = train.sample(anchors, seed)
        score = train_decoder(train.y, seed)
        for name in names:
            if name == "no-stitching":
                value = score(test.y)
            elif name == "relative":
                value = train_decoder(relative(train.y, chosen.y), seed)(stitch(test.x, chosen, name, scaling=scaling))
            else:
                value = score(stitch(test.x, chosen, name, scaling=scaling))
            found[name].append(float(value))
            if progress is not None:
                progress(sum(map(len, found.values())), len(names) * len(seeds))
    scored = tuple(StitchingScore(name, tuple(scores)) for name, scores in found.items())
    return Stitching(min(anchors, len(train)), scaling, seeds, scored)


def _resized(vectors: np.ndarray, dim: int) -> np.ndarray:
    out = np.zeros((len(vectors), dim), np.float32)
    kept = min(dim, vectors.shape[1])
    out[:, :kept] = vectors[:, :kept]
    return out
