"""Scores of a map for its role, on rows that it was not fitted on, and on real queries where given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from embridge.anchors.fold_moments import FoldMoments
from embridge.anchors.moments import Moments
from embridge.arrays import unit
from embridge.errors import ParameterError
from embridge.neighbors import overlap, rankings, top_k
from embridge.stores.ids import hash_ids
from embridge.translators.base import Translator
from embridge.types import Metric, Space

Role = Literal["documents", "queries", "decode"]
_K = 10
_STAND_INS = 300  # queries per fold; they rank all rows of the fold's sample
_ENOUGH = 900  # stand-in queries
FAR = 4.0  # standard errors behind: such a method is not scored on further folds
_MOST_QUERIES = 1500


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

    def at(self, some: slice) -> QueryPairs:
        """Some of the queries."""
        return QueryPairs(self.x[some], self.y[some], self.relevant[some])


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


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """Rows that maps were not fitted on, and stand-in queries with their neighbors among the native rows.

    Attributes
    ----------
    queries : ndarray of shape (n_queries, dim_target)
    truth : ndarray of shape (n_queries, k)
    target : Space
    """

    queries: np.ndarray
    truth: np.ndarray
    target: Space

    @classmethod
    def of(cls, y: np.ndarray, mean_y: np.ndarray, role: Role, target: Space) -> HeldOutRows:
        """The rows themselves stand in for ``decode``; for ``documents`` the rows minus the mean of the anchors.

        The latter where only directions matter: real queries have another mean than documents, so it must not dominate.

        Parameters
        ----------
        y : ndarray of shape (n, dim_target)
            Native vectors of the rows.
        mean_y : ndarray of shape (dim_target,)
            Mean of the anchors.
        """
        own = np.arange(min(len(y), _STAND_INS))
        queries = y[own]
        if role == "documents" and is_cosine(target):
            queries = (unit(queries) if target.metric == Metric.COSINE else queries) - mean_y.astype(np.float32)
        k = list_size(len(y))
        truth = top_k(queries, y, k, target.metric, exclude=own).ids if k else np.empty((len(own), 0), np.int64)
        return cls(queries, truth, target)

    def scores(self, translated: np.ndarray) -> np.ndarray:
        """Overlap@k of the neighbors among translated rows with those among native ones; shape (n_queries,)."""
        n, k = self.truth.shape
        if not k:
            return np.zeros(n)
        rows = unit(translated) if self.target.normalized else translated
        return overlap(rankings(self.queries, rows, k, self.target.metric, exclude=np.arange(n))[0], self.truth)


def midpoints(x: np.ndarray, source: Space) -> np.ndarray:
    """Stand-ins for queries of the source space: midpoints of two rows, which like real queries are not documents.

    Any vector of the source space can be one, since the truth is the ranking in that space.
    """
    n, m = len(x), min(len(x), _STAND_INS)
    rows = unit(x) if is_cosine(source) else x
    queries = (rows[:m] + rows[(np.arange(m) + n // 2) % n]) / 2
    return unit(queries) if source.normalized else queries


def fold_scores(methods: Sequence[Translator], folds: FoldMoments, role: Role, *, behind: float = np.inf) -> np.ndarray:
    """Scores of methods on folds, higher is better; shape (methods, units). A unit is a stand-in query.

    Each method is fitted on all folds but one and scored on that one, until there are `_ENOUGH` units. A method that is more than
    `behind` standard errors below the leader after a fold is not scored on the others: NaN.
    """
    columns: list[np.ndarray] = []
    left = np.arange(len(methods))
    for number, part in enumerate(folds.parts):
        moments, (x, y) = folds.without(number), folds.samples[number]
        some = [methods[i] for i in left.tolist()]
        if role == "queries":
            found = _projection_scores(some, moments, x, y)
        else:
            rows = HeldOutRows.of(y, moments.mean_y, role, part.target)
            found = np.array([rows.scores(method.translate(moments, x)) for method in some])
        columns.append(np.full((len(methods), found.shape[1]), np.nan))
        columns[-1][left] = found
        scores = np.concatenate(columns, axis=1)
        if scores.shape[1] >= _ENOUGH:
            break
        if np.isfinite(behind) and scores.shape[1] >= _STAND_INS:
            deficits, errors = deficits_to_best(scores[left])
            left = left[deficits <= behind * errors]
    return np.concatenate(columns, axis=1)


def deficits_to_best(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean paired differences of the best row to each row, and their standard errors, over the units that both have.

    The best is one that was scored on all units.
    """
    differences = scores[int(np.argmax(np.nan_to_num(scores.mean(axis=1), nan=-np.inf)))] - scores
    units = np.isfinite(differences).sum(axis=1)
    return np.nanmean(differences, axis=1), np.nanstd(differences, axis=1, ddof=1) / np.sqrt(units)


def comparable_means(scores: np.ndarray) -> np.ndarray:
    """Mean scores; of a method that was not scored on all units, the best mean less the paired deficit to it."""
    means = scores.mean(axis=1)
    return np.where(np.isnan(means), np.nanmax(means) - deficits_to_best(scores)[0], means)


def _projection_scores(methods: Sequence[Translator], moments: Moments, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Overlap@k of the neighbors of projected stand-ins among native rows with those in their own space."""
    queries, k = midpoints(x, moments.source), list_size(len(x))
    if not k:
        return np.zeros((len(methods), len(queries)))
    truth = top_k(queries, x, k, moments.source.metric).ids
    metric = moments.target.metric
    return np.array([overlap(top_k(method.translate(moments, queries), y, k, metric).ids, truth) for method in methods])


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


def real_scores(methods: Sequence[Translator], folds: FoldMoments, role: Role, queries: QueryPairs) -> QueryScores:
    """Scores of methods on real queries that rank the sampled rows of all folds, each row by a map that was not fitted on it.

    For ``documents`` the rows are translated; for ``queries`` they stay native, and the query is projected once for each fold. Over
    rows that it was fitted on, the map that overfits most would win. A method whose overlap on the first queries is far below the
    best (see `FAR`) is not scored on the others: NaN.
    """
    search = _Search.of(folds, role)
    first = search.scores(methods, queries.at(slice(_STAND_INS)))
    deficits, errors = deficits_to_best(first.overlap)
    kept = np.flatnonzero(deficits <= FAR * errors)
    more = queries.at(slice(_STAND_INS, _MOST_QUERIES))
    if not len(more.x):
        return first
    found = search.scores([methods[i] for i in kept.tolist()], more)
    parts = []
    for before, after in ((first.overlap, found.overlap), (first.recall, found.recall)):
        added = np.full((len(methods), after.shape[1]), np.nan)
        added[kept] = after
        parts.append(np.concatenate([before, added], axis=1))
    return QueryScores(*parts)


def overlap_of_queries(queries: QueryPairs, y: np.ndarray, translations: Iterable[np.ndarray], target: Space) -> np.ndarray:
    """Overlap@k of queries' neighbors among each translation of some rows with those among native ones.

    Shape (translations, n_queries).
    """
    own, k = queries.y[:_MOST_QUERIES], list_size(len(y))
    truth = top_k(own, y, k, target.metric).ids
    return np.array([overlap(_nearest(own, rows, k, target), truth) for rows in translations])


def _nearest(queries: np.ndarray, translated: np.ndarray, k: int, target: Space) -> np.ndarray:
    """Positions of the k nearest rows; under cosine their lengths do not count."""
    rows = unit(translated) if target.normalized and target.metric != Metric.COSINE else translated
    return rankings(queries, rows, k, target.metric)[0]


@dataclass(frozen=True, eq=False)
class _Search:
    """The sampled rows of all folds, each searched by or for a map that was fitted without its fold."""

    folds: FoldMoments
    left: tuple[Moments, ...]
    role: Role

    @classmethod
    def of(cls, folds: FoldMoments, role: Role) -> _Search:
        return cls(folds, folds.each_without(), role)

    def scores(self, methods: Sequence[Translator], queries: QueryPairs) -> QueryScores:
        """Scores on these queries."""
        side = 0 if self.role == "queries" else 1
        rows = np.concatenate([sample[side] for sample in self.folds.samples])
        k = list_size(len(rows))
        own, space = ((queries.x, self.left[0].source), (queries.y, self.left[0].target))[side]
        truth = top_k(own, rows, k, space.metric).ids
        relevant = _positions(queries.relevant, self.folds)
        search = self._by_projections if self.role == "queries" else self._of_translations
        found = [search(method, own, k) for method in methods]
        recalls = [_recall(ids, relevant) for ids in found]
        return QueryScores(np.array([overlap(ids, truth) for ids in found]), np.array(recalls))

    def _of_translations(self, method: Translator, queries: np.ndarray, k: int) -> np.ndarray:
        pairs = zip(self.left, self.folds.samples, strict=True)
        rows = np.concatenate([method.translate(moments, x) for moments, (x, _) in pairs])
        return _nearest(queries, rows, k, self.left[0].target)

    def _by_projections(self, method: Translator, queries: np.ndarray, k: int) -> np.ndarray:
        start, ids, scores = 0, [], []
        for moments, (_, y) in zip(self.left, self.folds.samples, strict=True):
            vectors = method.translate(moments, queries)
            # Else the scores of different folds would not be comparable.
            vectors = unit(vectors) if is_cosine(moments.target) else vectors
            hits = top_k(vectors, y, min(k, len(y)), moments.target.metric)
            ids.append(hits.ids + start)
            scores.append(hits.scores)
            start += len(y)
        order = np.argsort(-np.concatenate(scores, axis=1), axis=1, kind="stable")[:, :k]
        return np.take_along_axis(np.concatenate(ids, axis=1), order, axis=1)


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
    counts = np.array([len(wanted) for wanted in relevant], np.int64)
    if not counts.any():
        return np.empty(0)
    queries = np.repeat(np.arange(len(relevant)), counts)
    hits = (found[queries] == np.concatenate(relevant)[:, None]).any(1)
    return (np.bincount(queries, hits, minlength=len(relevant)) / np.maximum(counts, 1))[counts > 0]
