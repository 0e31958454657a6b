"""Scores of a map for its role, on rows that it was not fitted on, and on real queries where given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.arrays import unit
from embridge.errors import ParameterError
from embridge.neighbors import overlap, top_k
from embridge.stores.ids import hash_ids
from embridge.types import Metric, Space

Role = Literal["documents", "queries", "decode"]
_K = 10
_STAND_INS = 300  # queries per fold; they rank all rows of the fold's sample
_MOST_QUERIES = 1500


class Affine(Protocol):
    """Weight W and intercept b of ``y = x @ W + b``."""

    @property
    def weight(self) -> np.ndarray: ...
    @property
    def intercept(self) -> np.ndarray: ...


class Solver(Protocol):
    """An estimator of an affine map from moments."""

    def solve(self, data: Moments, /) -> Affine: ...


@dataclass(frozen=True, eq=False)
class QueryPairs:
    """Queries encoded by both models, used to choose a map.

    Attributes
    ----------
    x : ndarray of shape (n, dim_source)
    y : ndarray of shape (n, dim_target)
    relevant : tuple of ndarray, optional
        For each query the ids of its relevant documents.
    """

    x: np.ndarray
    y: np.ndarray
    relevant: tuple[np.ndarray, ...] = ()

    def reversed(self) -> QueryPairs:
        """The same queries with source and target exchanged."""
        return QueryPairs(self.y, self.x, self.relevant)


def as_role(role: str) -> Role:
    """The role with this name; ``search`` is an alias of ``documents``.

    Raises
    ------
    ParameterError
        An unknown role.
    """
    name = "documents" if role == "search" else role
    if name not in get_args(Role):
        raise ParameterError.must_be("role", "'documents', 'queries' or 'decode'", role)
    return name  # pyright: ignore[reportReturnType]


def is_cosine(space: Space) -> bool:
    """True where only directions matter."""
    return space.metric == Metric.COSINE or space.normalized


def list_size(rows: int) -> int:
    """The number of neighbors for a sample of n rows: 10, and at most half of the others.

    A list of all rows would be found by any map. Zero where there is no other row.
    """
    return min(_K, (rows - 1) // 2)


def row_scores(translated: np.ndarray, y: np.ndarray, mean_y: np.ndarray, role: Role, target: Space) -> np.ndarray:
    """Overlap@k of stand-in queries' neighbors among translated rows with those among native rows; shape (n_queries,).

    For ``decode`` the stand-ins are the rows themselves. For ``documents`` they are the rows minus the mean of the anchors,
    where only directions matter: real queries have another mean than documents, so the mean must not dominate.

    Parameters
    ----------
    translated, y : ndarray of shape (n, dim_target)
        Rows that the map was not fitted on, and their native vectors.
    mean_y : ndarray of shape (dim_target,)
        Mean of the anchors.
    """
    k, own = list_size(len(y)), np.arange(min(len(y), _STAND_INS))
    if k < 1:
        return np.zeros(len(own))
    queries = y[own]
    if role == "documents" and is_cosine(target):
        queries = (unit(queries) if target.metric == Metric.COSINE else queries) - mean_y.astype(np.float32)
    rows = unit(translated) if target.normalized else translated
    truth = top_k(queries, y, k, target.metric, exclude=own).ids
    return overlap(top_k(queries, rows, k, target.metric, exclude=own).ids, truth)


def projection_scores(found: Affine, x: np.ndarray, y: np.ndarray, source: Space, target: Space) -> np.ndarray:
    """Overlap@k of the neighbors of projected stand-in queries among native rows with those in their own space.

    The stand-ins are the midpoints of two rows, which like real queries are not documents; any vector of the source space
    can be one, since the truth is the ranking in that space.

    Parameters
    ----------
    found : Affine
        The map that projects queries.
    x, y : ndarray of shape (n, dim_source) and (n, dim_target)
        Rows that it was not fitted on.
    """
    n, m = len(x), min(len(x), _STAND_INS)
    k = list_size(n)
    if k < 1:
        return np.zeros(m)
    rows = unit(x) if is_cosine(source) else x
    queries = (rows[:m] + rows[(np.arange(m) + n // 2) % n]) / 2
    return _projected_overlap(found, unit(queries) if source.normalized else queries, x, y, source, target, k)


def _projected_overlap(
    found: Affine, queries: np.ndarray, x: np.ndarray, y: np.ndarray, source: Space, target: Space, k: int
) -> np.ndarray:
    truth = top_k(queries, x, k, source.metric).ids
    return overlap(top_k(_apply(found, queries), y, k, target.metric).ids, truth)


def _apply(found: Affine, x: np.ndarray) -> np.ndarray:
    return x @ found.weight.astype(np.float32) + found.intercept.astype(np.float32)


def fold_scores(solvers: Sequence[Solver], folds: FoldMoments, role: Role) -> np.ndarray:
    """Scores of methods on folds, higher is better; shape (methods, units). A unit is a stand-in query."""
    columns = []
    for number, part in enumerate(folds.parts):
        moments, (x, y) = folds.without(number), folds.samples[number]
        scores = []
        for solver in solvers:
            found = solver.solve(moments)
            if role == "queries":
                scores.append(projection_scores(found, x, y, part.source, part.target))
            else:
                scores.append(row_scores(_apply(found, x), y, moments.mean_y, role, part.target))
        columns.append(np.array(scores))
    return np.concatenate(columns, axis=1)


@dataclass(frozen=True, eq=False)
class QueryScores:
    """Scores of methods on real queries over the anchors.

    Attributes
    ----------
    overlap : ndarray of shape (methods, n_queries)
        Overlap with the ranking of the queries' own model.
    recall : ndarray of shape (methods, n_judged)
        Recall of queries with a relevant row among the anchors.
    """

    overlap: np.ndarray
    recall: np.ndarray


def real_scores(solvers: Sequence[Solver], folds: FoldMoments, role: Role, queries: QueryPairs) -> QueryScores:
    """Scores of methods on real queries that rank the sampled rows of all folds, each row by a map that was not fitted on it.

    For ``documents`` the rows are translated; for ``queries`` they stay native, and the query is projected once for each fold. Over
    rows that it was fitted on, the map that overfits most would win.
    """
    source, target = folds.parts[0].source, folds.parts[0].target
    left = [folds.without(number) for number in range(len(folds.parts))]
    queries_x, queries_y = queries.x[:_MOST_QUERIES], queries.y[:_MOST_QUERIES]
    own, metric = (queries_x, source.metric) if role == "queries" else (queries_y, target.metric)
    rows = np.concatenate([sample[0 if role == "queries" else 1] for sample in folds.samples])
    k = list_size(len(rows))
    truth = top_k(own, rows, k, metric).ids
    relevant = _positions(queries.relevant[:_MOST_QUERIES], folds)
    overlaps, recalls = [], []
    for solver in solvers:
        start, ids, scores = 0, [], []
        for moments, (x, y) in zip(left, folds.samples, strict=True):
            found = solver.solve(moments)
            if role == "queries":
                vectors, searched = _apply(found, queries_x), y
                vectors = unit(vectors) if is_cosine(target) else vectors  # else scores of different folds would not be comparable
            else:
                vectors, searched = queries_y, _apply(found, x)
                searched = unit(searched) if target.normalized else searched
            hits = top_k(vectors, searched, min(k, len(y)), target.metric)
            ids.append(hits.ids + start)
            scores.append(hits.scores)
            start += len(y)
        order = np.argsort(-np.concatenate(scores, axis=1), axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(np.concatenate(ids, axis=1), order, axis=1)
        overlaps.append(overlap(best, truth))
        recalls.append(_recall(best, relevant))
    return QueryScores(np.array(overlaps), np.array(recalls))


def _positions(relevant: Sequence[np.ndarray], folds: FoldMoments) -> list[np.ndarray]:
    """For each query the positions of its relevant documents among the sampled rows, matched by hashes."""
    known = np.concatenate(folds.sample_hashes) if folds.sample_hashes else np.empty(0, np.uint64)
    if not len(known):
        return []
    order = np.argsort(known)
    out = []
    for ids in relevant:
        hashes = hash_ids(ids, "fold", 0) // np.uint64(len(folds.parts)) if len(ids) else np.empty(0, np.uint64)
        place = order[np.minimum(np.searchsorted(known, hashes, sorter=order), len(known) - 1)]
        out.append(place[known[place] == hashes])
    return out


def _recall(found: np.ndarray, relevant: Sequence[np.ndarray]) -> np.ndarray:
    """Recall of the queries that have a relevant row."""
    return np.array([np.isin(wanted, ids).mean() for wanted, ids in zip(relevant, found, strict=False) if len(wanted)])
