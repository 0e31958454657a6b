"""Queries of one space made into queries for rows of another, and mixed with queries of the rows' own model."""

from __future__ import annotations

import numpy as np

from embridge.arrays import as_vectors, unit
from embridge.errors import ParameterError, SpaceMismatchError
from embridge.maps.loading import Map
from embridge.types import Metric, Space


def project_queries(queries: np.ndarray, via: Map, space: Space) -> np.ndarray:
    """Queries of the other end of a map, made into queries for rows of `space`.

    A map into `space` is applied; a map out of `space` is pulled back (`LinearMap.pull_back`: the adjoint, or under L2 the
    inverse of an isometry).

    Parameters
    ----------
    queries : ndarray of shape (n_queries, dim of the other end)
    via : LinearMap or KernelMap
    space : Space

    Returns
    -------
    ndarray of shape (n_queries, space.dim)

    Raises
    ------
    SpaceMismatchError
        The map neither starts nor ends in `space`.
    MapError
        Under L2 the map is no isometry.
    """
    if via.target.same_as(space):
        return via.apply(as_vectors(queries, via.source.dim, f"queries of {via.source.name!r}"))
    if via.source.same_as(space):
        return via.pull_back(queries)
    raise SpaceMismatchError.unrelated((via.source.name, via.target.name), "?", space.name)


def blend(old: np.ndarray, projected: np.ndarray, weight: float = 0.5, metric: Metric = Metric.COSINE) -> np.ndarray:
    """``(1 - weight) unit(old) + weight unit(projected)``: queries of the old model mixed with projected ones of the new.

    Under L2, where lengths have a meaning, as they are: ``(1 - weight) old + weight projected``.

    Parameters
    ----------
    old, projected : ndarray of shape (n_queries, dim)
    weight : float, default 0.5
        In [0, 1].
    metric : Metric, default "cosine"
        Of the rows that are searched.
    """
    if not 0 <= weight <= 1:
        raise ParameterError.must_be("weight", "in [0, 1]", weight)
    if metric == Metric.L2:
        return (1 - np.float32(weight)) * old + np.float32(weight) * projected
    return (1 - np.float32(weight)) * unit(old) + np.float32(weight) * unit(projected)


__all__ = ["blend", "project_queries"]
