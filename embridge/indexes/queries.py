"""From given queries to those that are searched: projected, blended, or fused with queries of the old model."""

from __future__ import annotations

import numpy as np

from embridge.arrays import as_vectors, check_rows
from embridge.errors import ParameterError, SpaceMismatchError
from embridge.indexes.fusion import Fusion
from embridge.maps import Map
from embridge.maps.queries import blend, project_queries
from embridge.types import Metric, Space


def plain_queries(
    space: Space,
    queries: np.ndarray,
    via: Map | None,
    old_queries: np.ndarray | None,
    weight: float | None,
    *,
    has_bias: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Queries of one space, projected by a map and blended where that is wanted.

    Parameters
    ----------
    space : Space
        Of the rows.
    queries : ndarray of shape (n_queries, dim)
    via : LinearMap or KernelMap, optional
    old_queries : ndarray of shape (n_queries, space.dim), optional
    weight : float, optional
        Of the projected queries in a blend; default 0.5.
    has_bias : bool, default False
        The rows have a hubness bias.

    Returns
    -------
    queries : ndarray of shape (n_queries, space.dim)
    offset : ndarray of shape (n_queries,)
        To be added to the scores of each query.
    """
    given = as_vectors(queries, None if via else space.dim, "queries")
    cosine = space.metric == Metric.COSINE
    check_rows(given, range(len(given)), "queries", zero_is_bad=cosine)
    offset = np.zeros(len(given), np.float32)
    if via is not None:
        projected = project_queries(given, via, space)
        if space.metric == Metric.DOT and not via.target.same_as(space) and not has_bias:
            offset = np.asarray(given @ via.intercept, np.float32)
        given = projected
    if weight is not None and old_queries is None:
        raise ParameterError(
            f"weight {weight} belongs to a blend (old_queries, --old-queries), or to a search of a fused index. Hint: leave it out."
        )
    if old_queries is not None:
        if via is None:
            raise ParameterError("Blending needs a map (via) that projects the new queries into the space of the index.")
        old = _same_queries(old_queries, space, len(given), zero_is_bad=cosine)
        given, offset = blend(old, given, 0.5 if weight is None else weight, space.metric), np.zeros_like(offset)
    return given, offset


def fused_queries(
    fusion: Fusion,
    old_space: Space,
    space: Space,
    queries: np.ndarray,
    via: Map | None,
    old_queries: np.ndarray | None,
    *,
    has_bias: bool,
) -> np.ndarray:
    """Queries over fused rows, by inner product.

    Parameters
    ----------
    fusion : Fusion
    old_space, space : Space
        Of the old and of the new vectors.
    queries : ndarray of shape (n_queries, space.dim)
        By the new model.
    via : LinearMap or KernelMap, optional
        Projects them into the old space where there are no `old_queries`.
    old_queries : ndarray of shape (n_queries, old_space.dim), optional
        The same queries by the old model.
    has_bias : bool
        The rows were made with reference queries.

    Returns
    -------
    ndarray of shape (n_queries, width of the rows), float32

    Raises
    ------
    ParameterError
        Neither a map nor old queries are given, or both; as many old queries as new ones are needed.
    SpaceMismatchError
        The map is of other spaces, or queries have another width.
    """
    new = as_vectors(queries, space.dim, "queries")
    check_rows(new, range(len(new)), "queries", zero_is_bad=True)
    if old_queries is not None and via is not None:
        raise ParameterError(
            "The old side of a fused search takes old_queries, or a map (via) that projects the new queries. Got both instead."
        )
    if old_queries is not None:
        old = _same_queries(old_queries, old_space, len(new), zero_is_bad=True)
    elif via is not None:
        ends = ((via.source, via.target), (via.target, via.source))
        if not any(one.same_as(space) and other.same_as(old_space) for one, other in ends):
            names = (via.source.name, via.target.name)
            raise SpaceMismatchError.unrelated(names, space.name, old_space.name)
        old = project_queries(new, via, old_space)
        check_rows(old, range(len(old)), "projected queries", zero_is_bad=True)
    elif fusion.weight == 1:
        old = np.zeros((len(new), old_space.dim), np.float32)
    else:
        raise ParameterError(
            f"A fused search at weight {fusion.weight:g} needs queries of {old_space.name!r} too. Hint: give the same queries by "
            f"the old model (old_queries, --old-queries), a map between {space.name!r} and {old_space.name!r} that projects the "
            "new ones (via, --via), or weight 1."
        )
    return fusion.queries(old, new, has_bias=has_bias)


def _same_queries(old_queries: np.ndarray, space: Space, count: int, *, zero_is_bad: bool) -> np.ndarray:
    """The same queries by the old model, checked."""
    old = as_vectors(old_queries, space.dim, "old_queries")
    if len(old) != count:
        raise ParameterError.must_be("old_queries", f"as many as queries ({count:,})", len(old))
    check_rows(old, range(len(old)), "old_queries", zero_is_bad=zero_is_bad)
    return old


__all__ = ["fused_queries", "plain_queries"]
