"""Zero-shot stitching: a decoder trained on one encoder's space runs on vectors of another, translated by several methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.arrays import as_vectors, norms, unit
from embridge.errors import ParameterError, TooFewAnchorsError, n_rows
from embridge.evaluation.relative import relative
from embridge.records import Stitching, StitchingScore
from embridge.translators import METHODS, fit
from embridge.translators.paper import PaperTranslator, Scaling
from embridge.types import space_mismatch

METHODS_COMPARED = ("absolute", "relative", "affine", "linear", "l-ortho", "ortho", "ridge", "bridge")

TrainDecoder = Callable[[np.ndarray, int], Callable[[np.ndarray], float]]


def stitch(
    vectors: np.ndarray, anchors: Anchors, method: str = "auto", *, scaling: Scaling = "standard", **parameters: Any
) -> np.ndarray:
    """Source vectors as input for a decoder of the target space.

    Parameters
    ----------
    vectors : ndarray of shape (n, dim_source)
    anchors : Anchors
        Rows to fit a translator on.
    method : str, default "auto"
        ``absolute``: untranslated, zero-padded or cut to the target's width; it needs no anchors and shows the cost of not
        translating. ``relative``: their cosines to the anchors, for a decoder that was trained on `relative` vectors of the target.
        Else a translator of `fit`, for decoding.
    scaling : {"standard", "l2"}, default "standard"
        ``standard``: the paper's methods scale each feature. ``l2``: rows of both sides are scaled to unit length instead, before
        any method; the output has the mean length of the target's anchors, since the length of a row is unknown.
    **parameters
        Parameters of the translator.

    Returns
    -------
    ndarray of shape (n, dim_target), or (n, n_anchors) where relative; float32

    Raises
    ------
    ParameterError
        An unknown method, scaling or parameter.
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
    return fit(anchors, method, role="decode", **parameters).apply(vectors) * length


def compare_stitching(
    train: Anchors,
    test: Anchors,
    decoders: Mapping[str, TrainDecoder],
    *,
    methods: Sequence[str] = METHODS_COMPARED,
    anchors: int = 500,
    scaling: Scaling = "standard",
    seeds: Sequence[int] = (0,),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Stitching]:
    """Train decoders on the target's training rows, and score them on the source's test rows translated by each method.

    Parameters
    ----------
    train, test : Anchors
        Rows of both spaces, from one split: decoders are trained on ``train.y`` and `test` is only used to
        score them on ``test.x``.
    decoders : mapping of str to callable
        ``train_decoder(vectors, seed)`` trains on vectors of the training rows, in their order, and returns a function from
        vectors of the test rows, in theirs, to a score. It is called once per seed with ``train.y``, and where ``relative`` is
        compared once more with the relative vectors.
    methods : sequence of str, default all of the paper's, the baselines, ``ridge`` and ``bridge``
        See `stitch`.
    anchors : int, default 500
        Number of training rows to fit translators on, another sample for each seed; at most all of them.
    scaling : {"standard", "l2"}, default "standard"
        See `stitch`.
    seeds : sequence of int, default (0,)
        Of the anchors and of the decoders.
    progress : callable, optional
        Called with (methods done, methods in all), over all seeds.

    Returns
    -------
    dict of str to Stitching
        For each decoder ``no-stitching`` first (the target's own test rows), then the methods.

    Raises
    ------
    SpaceMismatchError
        Train and test are of different spaces.
    ParameterError
        A test row is in the training set, no seeds or decoders, or see `stitch`.
    TooFewAnchorsError
        Fewer anchors than a method needs, or no test rows.

    Examples
    --------
    ::

        def svm(vectors, seed):
            trained = LinearSVC(random_state=seed).fit(vectors, labels_train)
            return lambda rows: trained.score(rows, labels_test)


        print(compare_stitching(train, test, {"svm": svm}, anchors=500, seeds=range(5))["svm"])
    """
    for expected, found in ((train.source, test.source), (train.target, test.target)):
        if not expected.same_as(found):
            raise space_mismatch("The comparison", expected, "the test set", found)
    shared = int(np.isin(test.hashes(), train.hashes()).sum())
    if shared:
        raise ParameterError(
            f"{n_rows(shared)} of the test set {'is' if shared == 1 else 'are'} in the training set too, which would flatter every "
            "method. Hint: take both from one Anchors.split()."
        )
    seeds, names = tuple(seeds), ("no-stitching", *methods)
    for name, given in (("seeds", seeds), ("decoders", decoders)):
        if not given:
            raise ParameterError.must_be(name, "at least one", "none")
    if not len(test):
        raise TooFewAnchorsError.held_out(1, 0, len(train))
    scores: dict[str, dict[str, list[float]]] = {decoder: {name: [] for name in names} for decoder in decoders}
    done = 0
    for seed in seeds:
        chosen = train.sample(anchors, seed)
        trained = {decoder: train_decoder(train.y, seed) for decoder, train_decoder in decoders.items()}
        for name in names:
            rows = test.y if name == "no-stitching" else stitch(test.x, chosen, name, scaling=scaling)
            known = relative(train.y, chosen.y) if name == "relative" else None
            for decoder, train_decoder in decoders.items():
                score = trained[decoder] if known is None else train_decoder(known, seed)
                scores[decoder][name].append(float(score(rows)))
            done += 1
            if progress is not None:
                progress(done, len(names) * len(seeds))
    return {
        decoder: Stitching(min(anchors, len(train)), scaling, seeds, tuple(StitchingScore(n, tuple(v)) for n, v in found.items()))
        for decoder, found in scores.items()
    }


def _resized(vectors: np.ndarray, dim: int) -> np.ndarray:
    out = np.zeros((len(vectors), dim), np.float32)
    kept = min(dim, vectors.shape[1])
    out[:, :kept] = vectors[:, :kept]
    return out
