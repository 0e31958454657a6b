"""Relative representations: vectors as cosines to anchors, comparable across encoders without a map."""

from __future__ import annotations

import numpy as np

from embridge.arrays import as_vectors, unit
from embridge.errors import ParameterError


def relative(vectors: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Vectors as their cosines to some anchors of their own space (Moschella et al. 2023).

    ``r(x)_j = <x, a_j> / (|x| |a_j|)``. With the same items as anchors on both sides, two spaces that differ by a rotation and a
    scale have the same relative representation, so a decoder that was trained on relative vectors of one takes those of the
    other. It is a baseline, not a map: a decoder trained on the vectors themselves cannot be used.

    Parameters
    ----------
    vectors : ndarray of shape (n, dim)
    anchors : ndarray of shape (n_anchors, dim)
        Anchors of the same encoder; row j on both sides must be the same item.

    Returns
    -------
    ndarray of shape (n, n_anchors), float32
        A zero vector has cosine zero to everything.

    Raises
    ------
    ParameterError
        No anchors.
    SpaceMismatchError
        Vectors and anchors of different widths.

    Examples
    --------
    >>> relative(np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([[1.0, 0.0], [0.0, -2.0]])).tolist()
    [[1.0, 0.0], [0.0, -1.0]]
    """
    anchors = as_vectors(anchors, what="anchors")
    vectors = as_vectors(vectors, anchors.shape[1], "vectors")
    if not len(anchors):
        raise ParameterError.must_be("anchors", "at least one row", "none")
    return unit(vectors) @ unit(anchors).T
