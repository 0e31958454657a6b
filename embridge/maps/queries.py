"""Projecting queries into the space of the rows, and blending them with queries of the rows' own model."""

from __future__ import annotations

import numpy as np

from embridge.arrays import as_vectors, unit
from embridge.errors import ParameterError, SpaceMismatchError
from embridge.maps.loading import Map
from embridge.types import Metric, Space


def project_queries(queries: np.ndarray, via: Map, space: Space) -> np.ndarray:
    """Project queries of the other space of a map into `space`.

    A map into `space` is applied; of a map out of `space` the adjoint is applied (under L2 the
    inverse of an isometry; see `LinearMap.project_queries`).

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
        Under L2 the map is not an isometry.
    """
    if via.target.same_as(space):
        return via.apply(as_vectors(queries, via.source.dim, f"queries of {via.source.name!r}"))
    if via.source.same_as(space):
        return via.project_queries(queries)
    raise SpaceMismatchError.unrelated((via.source.name, via.target.name), "?", space.name)


def blend(old: np.ndarray, projected: np.ndarray, weight: float = 0.5, metric: Metric = Metric.COSINE) -> np.ndarray:
    """``(1 - weight) unit(old) + weight unit(projected)``: queries of the old model blended with projected queries of the new one.

    Under L2, where lengths matter, without scaling: ``(1 - weight) old + weight projected``.

    Parameters
    ----------
    old, projected : ndarray of shape (n_queries, dim)
    weight : float, default 0.5
        In [0, 1].
    metric : Metric, default "cosine"
        Metric of the rows that are searched.
    """
    if not 0 <= weight <= 1:
        raise ParameterError.must_be("weight", "in [0, 1]", weight)
    if metric == Metric.L2:
        return (1 - np.float32(weight)) * old + np.float32(weight) * projected
    return (1 - np.float32(weight)) * unit(old) + np.float32(weight) * unit(projected)


__all__ = ["blend", "project_queries"]
