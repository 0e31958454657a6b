"""What a map is worth for its role on rows that it was not fitted on, and on real queries where there are some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from embridge.arrays import unit
from embridge.errors import ParameterError
from embridge.folds import Folds
from embridge.ids import hash_ids
from embridge.moments import Moments
from embridge.neighbours import overlap, top_k
from embridge.types import Metric, Space

Role = Literal["documents", "queries", "decode"]
_K = 10
_STAND_INS = 300  # queries of a fold; the rows they rank are all of the fold's sample
_MOST_QUERIES = 1500


class Affine(Protocol):
    """Weight W and intercept b of ``y = x @ W + b``."""

    @property
    def weight(self) -> np.ndarray: ...
    @property
    def intercept(self) -> np.ndarray: ...


class Solver(Protocol):
    """Whatever gives an affine map from moments."""

    def solve(self, data: Moments, /) -> Affine: ...


@dataclass(frozen=True, eq=False)
class QueryPairs:
    """Queries that both models encoded, to choose a map by.

    Attributes
    ----------
    x : ndarray of shape (n, dim_source)
    y : ndarray of shape (n, dim_target)
    relevant : tuple of ndarray, optional
        For each query the ids of the documents that are relevant to it.
    """

    x: np.ndarray
    y: np.ndarray
    relevant: tuple[np.ndarray, ...] = ()

    def reversed(self) -> QueryPairs:
        """The same queries with source and target exchanged."""
        return QueryPairs(self.y, self.x, self.relevant)


def as_role(role: str) -> Role:
    """The role of that name; ``search`` is another word for ``documents``.

    Raises
    ------
    ParameterError
        No such role.
    """
    name = "documents" if role == "search" else role
    if name not in get_args(Role):
        raise ParameterError.must_be("role", "'documents', 'queries' or 'decode'", role)
    return name  # pyright: ignore[reportReturnType]


def is_cosine(space: Space) -> bool:
    """True where only directions count."""
    return space.metric == Metric.COSINE or space.normalized


def list_size(rows: int) -> int:
    """How many neighbors a sample of so many rows is judged by: 10, and at most half of the others.

    A list of all of them would be found by any map. Zero where there is no other row.
    """
    return min(_K, (rows - 1) // 2)


def row_scores(translated: np.ndarray, y: np.ndarray, mean_y: np.ndarray, role: Role, target: Space) -> np.ndarray:
    """Overlap@k of stand-in queries' neighbors among translated rows with those among native rows; shape (n_queries,).

    Under ``decode`` the stand-ins are the rows themselves. Under ``documents`` they are the rows less the mean of the anchors,
    where only directions count: real queries lie elsewhere than documents, so that what all documents share must not decide.

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
    """Overlap@k of what projected stand-in queries find among native rows with what they find by their own model.

    The stand-ins are the midpoints of two rows, which lie off the documents as real queries do; any vector of the source space
    can be one, since the truth is the ranking of that space.

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


def fold_scores(solvers: Sequence[Solver], folds: Folds, role: Role) -> np.ndarray:
    """Scores of methods on folds, higher is better; shape (methods, units), the units being stand-in queries."""
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
    """What methods are worth on real queries over the anchors.

    Attributes
    ----------
    overlap : ndarray of shape (methods, n_queries)
        With the ranking of the model that the queries belong to.
    recall : ndarray of shape (methods, n_judged)
        Of queries with a relevant row among the anchors.
    """

    overlap: np.ndarray
    recall: np.ndarray


def real_scores(solvers: Sequence[Solver], folds: Folds, role: Role, queries: QueryPairs) -> QueryScores:
    """Scores of methods on real queries that rank the sampled rows of folds, by maps that were not fitted on these.

    For ``documents`` the rows of all folds are translated, each by the map that was fitted without its fold, and ranked together.
    For ``queries`` they stay native and are ranked fold by fold: over rows that it was fitted on, the map that follows them most
    closely would win.
    """
    source, target = folds.parts[0].source, folds.parts[0].target
    left = [folds.without(number) for number in range(len(folds.parts))]
    asked_x, asked_y = queries.x[:_MOST_QUERIES], queries.y[:_MOST_QUERIES]
    hashes = [_hashes(ids, len(folds.parts)) for ids in queries.relevant[:_MOST_QUERIES]]
    overlaps, recalls = [], []
    if role == "queries":
        parts = list(zip(left, folds.samples, folds.sample_hashes or [None] * len(left), strict=True))
        relevant = [_positions(hashes, known) for _, _, known in parts]
        truths = [top_k(asked_x, x, list_size(len(x)), source.metric).ids for _, (x, _), _ in parts]
        for solver in solvers:
            found = [
                top_k(_apply(solver.solve(moments), asked_x), y, truth.shape[1], target.metric).ids
                for (moments, (_, y), _), truth in zip(parts, truths, strict=True)
            ]
            overlaps.append(np.mean([overlap(ids, truth) for ids, truth in zip(found, truths, strict=True)], axis=0))
            recalls.append(np.concatenate([_recall(ids, wanted) for ids, wanted in zip(found, relevant, strict=True)]))
        return QueryScores(np.array(overlaps), np.array(recalls))
    y = np.concatenate([sample[1] for sample in folds.samples])
    wanted = _positions(hashes, np.concatenate(folds.sample_hashes) if folds.sample_hashes else None)
    truth = top_k(asked_y, y, list_size(len(y)), target.metric).ids
    for solver in solvers:
        rows = np.concatenate([_apply(solver.solve(part), x) for part, (x, _) in zip(left, folds.samples, strict=True)])
        ids = top_k(asked_y, unit(rows) if target.normalized else rows, truth.shape[1], target.metric).ids
        overlaps.append(overlap(ids, truth))
        recalls.append(_recall(ids, wanted))
    return QueryScores(np.array(overlaps), np.array(recalls))


def _recall(found: np.ndarray, relevant: Sequence[np.ndarray]) -> np.ndarray:
    """Recall of the queries that have a relevant row."""
    return np.array([np.isin(wanted, ids).mean() for wanted, ids in zip(relevant, found, strict=False) if len(wanted)])


def _hashes(ids: np.ndarray, parts: int) -> np.ndarray:
    """Hashes of documents, as folds know their sampled rows."""
    return hash_ids(ids, "fold", 0) // np.uint64(parts) if len(ids) else np.empty(0, np.uint64)


def _positions(relevant: Sequence[np.ndarray], known: np.ndarray | None) -> list[np.ndarray]:
    """For each query the positions of its relevant documents among rows of these hashes."""
    if known is None or not len(known):
        return []
    order = np.argsort(known)
    out = []
    for hashes in relevant:
        place = order[np.minimum(np.searchsorted(known, hashes, sorter=order), len(known) - 1)]
        out.append(place[known[place] == hashes])
    return out
