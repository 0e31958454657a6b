"""Maps that keep distances: Procrustes without scaling of single features."""

from __future__ import annotations

import numpy as np

from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.translators.base import Solution, Translator, centered_factor, total, uncentered_factor


class Rotation(Translator):
    """Orthogonal Procrustes on unscaled vectors: ``W = U V^T`` of ``x^T y``, no intercept (Schoenemann 1966).

    Reflections are allowed. It keeps L2, inner product and cosine exactly where dim_source <= dim_target and the rank is full
    (``W W^T = I``), so an existing index stays exact. Into a narrower space it is the transpose of the reverse fit, a
    projection. With fewer anchors than dimensions it is a partial isometry; the map's record has its rank.
    """

    name = "rotation"
    minimum = 1

    def solve(self, data: Moments | FoldMoments) -> Solution:
        weight, rank = uncentered_factor(total(data))
        return Solution(weight, np.zeros(weight.shape[1]), {"rank": rank})


class Isometry(Translator):
    """Centered Procrustes with one scalar: ``y = c (x - mean_x) Q + mean_y``.

    Q is ``U V^T`` of ``Sxy`` and ``c = sqrt(tr Syy / <Q, Sxx Q>)`` matches the total variances. (The least-squares scalar
    shrinks toward the mean, which makes the ranking worse.) It keeps L2 exactly up to c where dim_source <= dim_target; because
    of the offset it keeps cosine and inner-product neighbors only approximately.
    """

    name = "isometry"

    def solve(self, data: Moments | FoldMoments) -> Solution:
        moments = total(data)
        q, rank = centered_factor(moments)
        spread = float(np.vdot(q, moments.sxx @ q))
        scale = float(np.sqrt(moments.square_y.sum() / spread)) if spread > 0 else 0.0
        weight = scale * q
        return Solution(weight, moments.mean_y - moments.mean_x @ weight, {"rank": rank, "scale": scale})
