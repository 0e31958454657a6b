"""Fused search: a row is scored by its old and its new vector together, in one search over concatenated vectors.

``score = (1 - w) s_old + w s_new``, where a side's score s is ``cos(q, x)`` or, with hubness correction, ``cos(q, x) - r(x) / 2``
(half of the score of `embridge.indexes.hubness`, so that sides with and without correction have one scale). In an inner-product
space ``<unit(q), x>`` stands in the place of the cosine.

A row is stored as ``[x_old, x_new, r_old / 2, r_new / 2]`` and a query searched as
``[(1 - w) q_old, w q_new, -(1 - w), -w]``, with 0 for a side without correction. The weight and the correction are in the query, so
they may change from search to search.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from embridge.arrays import unit
from embridge.errors import ParameterError
from embridge.indexes.hubness import bias
from embridge.types import Metric, Space


class Hubness(StrEnum):
    """The sides of a fusion whose scores are corrected for hubness."""

    NONE = "none"
    OLD = "old"
    NEW = "new"
    BOTH = "both"


@dataclass(frozen=True)
class Fusion:
    """How the two sides of a fused search are weighted.

    Attributes
    ----------
    weight : float, default 0.5
        w, the weight of the new side, in [0, 1].
    hubness : Hubness or str, default "none"
        ``none``, ``old``, ``new`` or ``both``.

    Raises
    ------
    ParameterError
        A weight outside [0, 1], or an unknown value of hubness.
    """

    weight: float = 0.5
    hubness: Hubness = Hubness.NONE

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ParameterError.must_be("weight", "in [0, 1]", self.weight)
        try:
            object.__setattr__(self, "hubness", Hubness(self.hubness))
        except ValueError:
            raise ParameterError.must_be("hubness", "one of none, old, new, both", self.hubness) from None

    @classmethod
    def default(cls, *, has_bias: bool) -> Fusion:
        """Weight 0.5; both sides are corrected for hubness where rows are made with reference queries."""
        return cls(hubness=Hubness.BOTH if has_bias else Hubness.NONE)

    def changed(self, weight: float | None, hubness: Hubness | str | None) -> Fusion:
        """The same with another weight or hubness; None keeps it."""
        return Fusion(self.weight if weight is None else weight, self.hubness if hubness is None else hubness)  # type: ignore[arg-type]

    def check(self, *, has_bias: bool) -> None:
        """Check that rows made with reference queries (`has_bias`), or without, can be scored.

        Raises
        ------
        ParameterError
            A side is corrected for hubness, but the rows were made without reference queries.
        """
        if not has_bias and self.hubness != Hubness.NONE:
            raise ParameterError(
                f"Hubness correction {self.hubness!s} needs rows that were made with reference queries. Hint: hubness none."
            )

    def queries(self, old: np.ndarray, new: np.ndarray, *, has_bias: bool) -> np.ndarray:
        """Queries over fused rows, by inner product; must not be scaled again.

        Parameters
        ----------
        old : ndarray of shape (n_queries, dim_old)
        new : ndarray of shape (n_queries, dim_new)
        has_bias : bool
            The rows were made with reference queries. Without, hubness must be "none".

        Returns
        -------
        ndarray of shape (n_queries, dim_old + dim_new + 2 * has_bias), float32
        """
        self.check(has_bias=has_bias)
        w = np.float32(self.weight)
        parts = [(1 - w) * unit(old), w * unit(new)]
        if has_bias:
            corrections = (
                (w - 1) * (self.hubness in (Hubness.OLD, Hubness.BOTH)),
                -w * (self.hubness in (Hubness.NEW, Hubness.BOTH)),
            )
            parts.append(np.tile(np.array(corrections, np.float32), (len(old), 1)))
        return np.concatenate(parts, axis=1)


def fused_rows(
    old: np.ndarray,
    new: np.ndarray,
    source: Space,
    target: Space,
    references: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Rows of a fused search, by inner product.

    Parameters
    ----------
    old : ndarray of shape (n, source.dim)
    new : ndarray of shape (n, target.dim)
        Native or translated vectors of the same rows.
    source, target : Space
        Cosine: vectors are scaled to unit length. Inner product: they are used unchanged.
    references : pair of ndarray, optional
        Reference queries of both sides, for hubness correction: the biases are two more columns.

    Returns
    -------
    ndarray of shape (n, source.dim + target.dim [+ 2]), float32

    Raises
    ------
    ParameterError
        A space is measured by L2, whose distances are on no common scale.
    """
    check_fusible(source, target)
    sides = [unit(x) if s.metric == Metric.COSINE else x.astype(np.float32, copy=False) for x, s in ((old, source), (new, target))]
    if references is not None:
        sides += [bias(side, queries)[:, None] / 2 for side, queries in zip(sides[:2], references, strict=True)]
    return np.concatenate(sides, axis=1, dtype=np.float32)


def reference_pair(old: np.ndarray | None, new: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Reference queries of both sides; None where there are none.

    Raises
    ------
    ParameterError
        Only one side has reference queries.
    """
    if old is not None and new is not None:
        return old, new
    if old is None and new is None:
        return None
    raise ParameterError(
        "Hubness correction of a fused search needs reference queries of both spaces, and those of the "
        f"{'old' if old is None else 'new'} one are missing. Hint: --hubness NEW_QUERIES --old-hubness OLD_QUERIES (hubness, "
        "old_hubness); each search chooses the sides."
    )


def check_fusible(source: Space, target: Space) -> None:
    """Check that the scores of two spaces can be added.

    Raises
    ------
    ParameterError
        A space is measured by L2.
    """
    for space in (source, target):
        if space.metric == Metric.L2:
            raise ParameterError(
                f"Fused search adds similarities, and space {space.name!r} is measured by L2. "
                "Hint: for vectors of unit length, declare cosine: the ranking is the same."
            )


__all__ = ["Fusion", "Hubness", "check_fusible", "fused_rows", "reference_pair"]
