"""The effect of a map on the rows and queries of an index, and where it is exact.

``exact`` means: for every query of the new space the migrated index returns the ids that the old one returns for the projected
query. With ``y = W x + b`` for the rows:

- inner product: ``<q, W x + b> = <W^T q, x> + <q, b>``, for any map;
- L2: ``|q - (s Q x + b)|^2 = s^2 |p - x|^2 + |q - b|^2 - s^2 |p|^2`` with ``p = Q^T (q - b) / s``, for an isometry only;
- cosine: needs ``1 / |W x + b|`` of each row, which is one number for all rows only where ``W = s Q`` and ``b = 0``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embridge.arrays import unit
from embridge.device import Product
from embridge.maps import LinearMap
from embridge.types import Metric, Space

_DEAD = 1e-5  # of the largest singular value, of a map or of the rows: directions below it are empty
_EXACT_SHARE, _CODED_SHARE = 1e-8, 1e-2  # of the rows' energy in directions that a map drops


@dataclass(frozen=True, eq=False)
class RowMap:
    """How stored rows are rewritten: ``coef @ x + intercept``, scaled to unit length where needed.

    Attributes
    ----------
    coef : ndarray of shape (dim_new, dim_old)
    intercept : ndarray of shape (dim_new,)
    normalize : bool
    """

    coef: np.ndarray
    intercept: np.ndarray
    normalize: bool

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """New rows, float32; columns beyond the map's width (a hubness bias) are kept."""
        width = self.coef.shape[1]
        out = Product(self.coef, self.intercept).of_array(rows[:, :width])
        out = unit(out) if self.normalize else out
        return np.ascontiguousarray(np.concatenate([out, rows[:, width:]], axis=1) if rows.shape[1] > width else out, np.float32)

    def linear(self) -> RowMap:
        """The same for differences of rows, such as residuals."""
        return RowMap(self.coef, np.zeros_like(self.intercept), normalize=False)


@dataclass(frozen=True, eq=False)
class QueryMap:
    """Projects queries for the old index: a linear step, then optional scaling to unit length and an optional bias column.

    Attributes
    ----------
    coef : ndarray of shape (dim_old, dim_new)
    intercept : ndarray of shape (dim_old,)
    normalize : bool
    """

    coef: np.ndarray
    intercept: np.ndarray
    normalize: bool

    def apply(self, queries: np.ndarray) -> np.ndarray:
        """Queries of the old space, float32."""
        out = queries @ self.coef.T + self.intercept
        return (unit(out) if self.normalize else out).astype(np.float32)

    def steps(self, *, biased: bool) -> list[tuple[np.ndarray, np.ndarray] | None]:
        """(matrix, offset) pairs, None for scaling to unit length; with a bias the last gives ``[2 p, -1]``."""
        steps: list[tuple[np.ndarray, np.ndarray] | None] = [(self.coef, self.intercept)]
        if self.normalize:
            steps.append(None)
        if biased:
            dim = len(self.coef)
            doubled = np.vstack([2 * np.eye(dim, dtype=np.float32), np.zeros((1, dim), np.float32)])
            last = np.append(np.zeros(dim, np.float32), np.float32(-1))
            steps = [*steps, (doubled, last)] if self.normalize else [(doubled @ self.coef, doubled @ self.intercept + last)]
        return steps


@dataclass(frozen=True, eq=False)
class Equivalence:
    """The effect of a map on an index of some space and metric.

    Attributes
    ----------
    space : Space
        Space of the migrated index.
    forward : bool
        True where the map leads out of the index's space, False where it leads into it.
    exact : bool
    reason : str
    rows : RowMap or None
        None where rows cannot be rewritten at all.
    queries : QueryMap or None
        None where queries cannot be projected.
    scores : dict
        Values that turn scores of projected queries into those of the translated rows: ``offset`` or ``scale`` and ``centre``.
    adds : bool
        True where the query map is also valid for vectors added through it.
    """

    space: Space
    forward: bool
    exact: bool
    reason: str
    rows: RowMap | None
    queries: QueryMap | None
    scores: dict[str, Any]
    adds: bool


@dataclass(frozen=True)
class Extent:
    """The effect of a map on the directions of the rows of an index.

    Attributes
    ----------
    scale : float or None
        s where it is an isometry up to the scale s on them, else None. Dead columns of an encoder are not directions of its rows,
        and a fitted rotation is not a rotation there.
    condition : float
        Largest over smallest singular value on them.
    whole : bool
        The rows span all directions.
    """

    scale: float | None
    condition: float
    whole: bool


def extent(translation: LinearMap, rows: Iterable[np.ndarray] | None, *, coded: bool = False) -> Extent:
    """The extent of a map over the rows of an index, from their second moments; over the whole space where they cannot be read.

    A rotation that was fitted on rows with dead columns has singular values s and 0. It is an isometry on rows without energy
    in the dropped directions: at most a share of 1e-8, or 1e-2 where rows are decoded, since codes scatter into dead columns.
    """
    if translation.isometry_scale is not None:
        return Extent(translation.isometry_scale, 1.0, whole=True)
    coef = translation.coef.astype(np.float64)
    dim = coef.shape[1]
    moments = np.eye(dim) if rows is None else np.zeros((dim, dim))
    for part in rows or ():
        moments += part.T @ part
    powers, directions = np.linalg.eigh(coef.T @ coef)
    live = powers > _DEAD**2 * powers[-1]
    lost = directions[:, ~live]
    share = np.trace(lost.T @ moments @ lost) / max(np.trace(moments), np.finfo(float).tiny)
    if share < (_CODED_SHARE if coded else _EXACT_SHARE) and (scale := _one_scale(powers[live])):
        return Extent(scale, 1.0, whole=False)
    energies, directions = np.linalg.eigh(moments)
    held = energies > _DEAD**2 * energies[-1]
    powers = np.linalg.eigvalsh((coef @ directions[:, held]).T @ (coef @ directions[:, held]))
    condition = float(np.sqrt(powers[-1] / powers[0])) if powers[0] > 0 else np.inf
    return Extent(_one_scale(powers), condition, whole=bool(held.all()))


def _one_scale(powers: np.ndarray) -> float | None:
    """s where all squared singular values are s^2, to float32 accuracy."""
    square = powers.mean()
    return float(np.sqrt(square)) if square > 0 and np.abs(powers - square).max() < 2e-5 * square else None


def equivalence(translation: LinearMap, space: Space, rows_extent: Extent, *, l2: bool) -> Equivalence:
    """The equivalence of an index of `space` (measured by L2 or by inner product) through a map that starts or ends there."""
    if not translation.source.same_as(space):
        return _backward(translation, space, l2=l2)
    target = translation.target
    coef, intercept, scale = translation.coef, translation.intercept, rows_extent.scale
    unit_rows = space.metric == Metric.COSINE or space.normalized
    whole_rows = space.metric != Metric.COSINE or space.normalized  # a cosine index has lost the lengths of its rows
    if not _same_measure(target, l2=l2, unit_rows=unit_rows):
        reason = f"the index measures by {'L2' if l2 else 'inner product'}, {target.name!r} by {target.metric}"
        return Equivalence(target, True, False, reason, None, None, {}, False)
    if l2 and target.metric == Metric.COSINE:
        target = replace(target, normalized=True)
    square = coef.shape[0] == coef.shape[1] and rows_extent.whole
    zero = np.zeros(len(coef[0]), np.float32)
    if target.metric == Metric.COSINE or target.normalized:
        if scale is not None and not intercept.any() and unit_rows:
            coef = (coef / np.float32(scale)).astype(np.float32)
            scores = {} if square or not l2 else {"scale": 1.0, "centre": [0.0] * len(coef)}
            rows, queries = RowMap(coef, intercept, normalize=False), QueryMap(coef.T, zero, normalize=False)
            return Equivalence(target, True, True, "a rotation keeps cosines", rows, queries, scores, square)
        rows = RowMap(coef, intercept, normalize=True)
        queries = QueryMap(coef.T, zero, normalize=False) if unit_rows or not l2 else None
        reason = "the map is not a rotation without offset, so cosines change: each row would need 1 / |W x + b|"
        return Equivalence(target, True, False, reason, rows, queries, {}, False)
    lost = "" if whole_rows else "; the index holds unit vectors, but the map was fitted on others"
    if not l2:
        scores = {"offset": intercept.tolist()} if intercept.any() else {}
        adds = square and scale is not None and abs(scale - 1) < 1e-5 and not scores
        rows, queries = RowMap(coef, intercept, normalize=False), QueryMap(coef.T, zero, normalize=False)
        reason = "inner products of translated rows are those of projected queries, plus one number per query" + lost
        return Equivalence(target, True, whole_rows, reason, rows, queries, scores, adds)
    rows = RowMap(coef, intercept, normalize=False)
    if scale is None:
        reason = "L2 queries can be projected by an isometry only, and the map is not one"
        return Equivalence(target, True, False, reason, rows, None, {}, False)
    back = (coef.T.astype(np.float64) / scale**2).astype(np.float32)
    queries = QueryMap(back, -(back @ intercept), normalize=False)
    scores = {} if square and abs(scale - 1) < 1e-6 else {"scale": scale**2, "centre": intercept.tolist()}
    return Equivalence(target, True, whole_rows, "an isometry keeps the order of distances" + lost, rows, queries, scores, square)


def _same_measure(target: Space, *, l2: bool, unit_rows: bool) -> bool:
    if l2:
        return target.metric == Metric.L2 or (target.metric == Metric.COSINE and unit_rows)
    return target.metric != Metric.L2


def _backward(translation: LinearMap, space: Space, *, l2: bool) -> Equivalence:
    """The map was fitted from the new space into that of the index: queries and added vectors are translated by it."""
    cosine = space.metric == Metric.COSINE
    queries = QueryMap(translation.coef, translation.intercept, normalize=cosine or translation.target.normalized)
    target = replace(translation.source, metric=space.metric, normalized=translation.source.normalized or (cosine and l2))
    reason = f"the map leads from {translation.source.name!r} to the index's {space.name!r}: queries are translated, rows are kept"
    return Equivalence(target, False, True, reason, None, queries, {}, True)
