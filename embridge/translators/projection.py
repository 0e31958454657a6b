"""Maps that project queries: the transposed regression of the documents onto the query's space."""

from __future__ import annotations

import numpy as np

from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.errors import ParameterError
from embridge.translators.base import Solution, Translator, centered_factor, total
from embridge.translators.bridge import Scaled
from embridge.translators.scoring import is_cosine

_MEAN_WEIGHT = 1 / 3


class Projection(Translator):
    """The transpose of `Bridge` (s = 1) fitted from target to source, centered on both sides, at the target's scale.

    A query q of the source space should rank a document t of the target space like the document's own vector in the
    source space. The best estimate of that vector is the regression B of source on target, and <q, B t> = <B^T q, t>: queries
    are projected by the transpose of a map that is regularized on the documents' side. With V that transpose and
    ``c = sqrt(tr Syy / <V, Sxx V>)``,

        ``y = c (x - mean_x) V + mean_weight * mean_y``.

    ``alpha = inf`` is `Isometry` (with mean_weight 1). Queries have another mean than documents, so a smaller weight of the
    documents' mean is better for them.

    Parameters
    ----------
    alpha : float, default 3
        Above 0, as in `Bridge`; below infinity it needs full moments.
    mean_weight : float, optional
        At least 0. Default: 1/3 where only directions matter in the target space, else 1.
    """

    name = "projection"

    def __init__(self, alpha: float = 3.0, mean_weight: float | None = None) -> None:
        self.alpha = alpha
        self.mean_weight = mean_weight

    def needs_full(self) -> bool:
        return not np.isinf(self.alpha)

    def solve(self, data: Moments | FoldMoments) -> Solution:
        if not self.alpha > 0:
            raise ParameterError.must_be("alpha", "above 0", self.alpha)
        moments = total(data)
        share = self.mean_weight
        if share is None:
            share = _MEAN_WEIGHT if is_cosine(moments.target) else 1.0
        if not 0 <= share < np.inf:
            raise ParameterError.must_be("mean_weight", "at least 0 and finite", share)
        weight, rank = _weight(moments, self.alpha)
        parameters = {"alpha": self.alpha, "mean_weight": share, "rank": rank}
        return Solution(weight, share * moments.mean_y - moments.mean_x @ weight, parameters)


def _weight(moments: Moments, alpha: float) -> tuple[np.ndarray, int]:
    """The weight and the rank of the Procrustes solution, cached: many candidates are solved on the same moments."""
    cache = moments.__dict__.setdefault("_projections", {})
    if alpha not in cache:
        if np.isinf(alpha):
            weight, rank = centered_factor(moments)
        else:
            scaled = Scaled.of(_reversed(moments))
            weight, rank = scaled.family.weight(alpha, 1.0).T, scaled.family.rank
        spread = float(np.vdot(weight, moments.sxx @ weight))
        cache[alpha] = weight * (np.sqrt(float(moments.square_y.sum()) / spread) if spread > 0 else 0.0), rank
    return cache[alpha]


def _reversed(moments: Moments) -> Moments:
    """`Moments.reversed`, cached, with the same orthogonal factor, transposed."""
    cache = moments.__dict__.setdefault("_reversed", [])
    if not cache:
        factor, rank = centered_factor(moments)
        back = moments.reversed()
        back.__dict__["_factors"] = {"centered": (factor.T, rank)}
        cache.append(back)
    return cache[0]
