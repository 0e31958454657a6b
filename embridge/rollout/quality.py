"""What a stage is measured by: its logged queries in two halves, one to choose by and one to report on.

Queries of the choosing half (by a hash of the id, as in `embridge.translators.fitting.query_pairs`) choose the method of the map
of queries, the weight and the hubness correction of the fused search, and the order in which rows are encoded. Every figure is from
the reported half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embridge.anchors import Anchors, ids_at
from embridge.arrays import unit
from embridge.errors import ParameterError
from embridge.evaluation.benchmark import REFERENCES
from embridge.evaluation.bootstrap import bootstrap_interval
from embridge.evaluation.fusion import LEAST_QUERIES, Candidates, CandidateSearch, choose_fusion
from embridge.evaluation.metrics import DEPTH, recall_and_mrr, relevance
from embridge.indexes.fusion import Fusion
from embridge.indexes.hubness import bias
from embridge.neighbors import overlap
from embridge.records.rollout import RolloutScore
from embridge.rollout.stage import Stage
from embridge.stores.base import Collection
from embridge.stores.ids import hash_ids
from embridge.types import Metric, Space

K = 10
MOST_QUERIES = 5000
STAND_INS = 2000  # rows used as queries where none are logged
DEFAULT = Fusion(0.5)
CHOOSING, REPORTED = 0, 1


@dataclass(frozen=True, eq=False)
class Logged:
    """Logged queries and the rows that are relevant to them.

    Attributes
    ----------
    queries : Anchors
        At most 5,000, those of smallest hash.
    half : ndarray of int64, shape (n_queries,)
        `CHOOSING` or `REPORTED`.
    relevant : list of ndarray of int64
        Positions of each query's relevant rows.
    """

    queries: Anchors
    half: np.ndarray
    relevant: list[np.ndarray]

    @classmethod
    def of(cls, queries: Anchors, qrels: dict[Any, dict[Any, float]], rows: Collection, seed: int) -> Logged:
        """The queries of a rollout over `rows`."""
        used = queries.sample(MOST_QUERIES, seed)
        half = (hash_ids(used.ids, "half", seed) % np.uint64(2)).astype(np.int64)
        wanted = {document for query in used.ids.tolist() for document in qrels.get(query, ())}
        ids, places = found_rows(rows, wanted)
        relevant = [places[found] for found in relevance(ids, used.ids, qrels)[0]]
        return cls(used, half, relevant)

    @property
    def judged(self) -> np.ndarray:
        """Which queries have a relevant row, shape (n_queries,), bool."""
        return np.array([len(rows) > 0 for rows in self.relevant], bool)

    def relevant_of(self, members: np.ndarray) -> list[np.ndarray]:
        """Relevant rows of some queries."""
        return [self.relevant[m] for m in members.tolist()]


def found_rows(rows: Collection, wanted: set[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the rows that are wanted, and their positions."""
    ids, places = [], []
    if wanted:
        for batch in rows.id_reader():
            for one, place in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                if one in wanted:
                    ids.append(one)
                    places.append(place)
    return np.array(ids, object), np.array(places, np.int64)


def check_judgments(queries: Anchors, qrels: dict[Any, dict[Any, float]], rows: Collection) -> None:
    """Refuse judgments of none of the queries, or of none of the rows.

    Raises
    ------
    ParameterError
    """
    wanted = {document for query in queries.ids.tolist() for document in qrels.get(query, ())}
    if not wanted:
        raise ParameterError(
            f"The judgments (qrels) of {len(qrels):,} queries name no relevant document of any of the {len(queries):,} logged "
            "queries. Hint: check whether both have their ids as strings or as integers."
        )
    if not len(found_rows(rows, wanted)[0]):
        raise ParameterError(
            f"None of the {len(wanted):,} documents that the judgments (qrels) name, such as {min(wanted, key=str)!r}, is a row of "
            f"{rows.name}. Hint: check whether both have their ids as strings or as integers."
        )


@dataclass(frozen=True, eq=False)
class Found:
    """Candidates of the queries of each half, with both queries and with those of the new model alone."""

    logged: Logged
    members: tuple[np.ndarray, ...]  # of either half
    both: tuple[Candidates, ...]
    alone: tuple[Candidates, ...]

    def recall(self, candidates: Candidates, half: int, fusion: Fusion) -> np.ndarray:
        """recall@10 of the judged queries of a half."""
        return recall_and_mrr(candidates.ranked(fusion, K), self.logged.relevant_of(self.members[half]))[0]

    def chosen(self, candidates: Sequence[Candidates]) -> Fusion:
        """The fusion chosen on the judged queries of the choosing half; weight 0.5 where there are fewer than 50."""
        own = self.members[CHOOSING]
        if self.logged.judged[own].sum() < LEAST_QUERIES:
            return DEFAULT
        return choose_fusion(candidates[CHOOSING], self.logged.relevant_of(own), K)


def reference_rows(half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the reference queries of either half of the queries, for hubness correction: queries of the other half.

    Searches use those of the reported half, so the figures are those of searches.
    """
    return tuple(np.flatnonzero(half != own)[:REFERENCES] for own in (CHOOSING, REPORTED))  # type: ignore[return-value]


def search_stage(stage: Stage, logged: Logged) -> Found:
    """Collect candidates of both ways of searching, in one pass over the rows."""
    x, y, projected = (unit(part) for part in (logged.queries.x, logged.queries.y, stage.projection.apply(logged.queries.y)))
    members = tuple(np.flatnonzero(logged.half == half) for half in (CHOOSING, REPORTED))
    references = reference_rows(logged.half)
    is_corrected = min(map(len, members)) > 0
    both, alone = ([CandidateSearch(old[m], y[m], corrected=is_corrected) for m in members] for old in (x, projected))
    for start, old_vectors, new_vectors in stage.pairs():
        old, new = side(old_vectors, stage.old.space), side(new_vectors, stage.new.space)
        places = np.arange(start, start + len(old))
        for half, own in enumerate(references):
            biases = (bias(old, x[own]) / 2, bias(new, y[own]) / 2) if is_corrected else None
            for search in (both[half], alone[half]):
                search.offer(old, new, places, biases)
    return Found(logged, members, *(tuple(search.candidates() for search in searches) for searches in (both, alone)))


def side(vectors: np.ndarray, space: Space) -> np.ndarray:
    """One side of fused rows (`embridge.indexes.fusion.fused_rows`)."""
    return unit(vectors) if space.metric == Metric.COSINE else vectors.astype(np.float32, copy=False)


def score(recall: np.ndarray, keep_old: np.ndarray, overlaps: np.ndarray, seed: int) -> RolloutScore:
    """Means and intervals of one way of searching."""
    values: dict[str, Any] = {}
    for name, scores in (("recall", recall), ("overlap", overlaps), ("gain", recall - keep_old)):
        if len(scores):
            values |= {name: float(scores.mean()), f"{name}_ci": bootstrap_interval(scores, seed=seed)}
    return RolloutScore(**values)


def overlaps(
    stage: Stage, logged: Logged, fusions: dict[str, Fusion], held_out: np.ndarray, reach: np.ndarray
) -> dict[str, np.ndarray]:
    """For the reported queries, the share of their 10 nearest rows by the new model that ways of searching find.

    Only held-out native rows are searched, for which native vectors and honest translations are known. The same share of them is
    native in the search as of all rows: those that most queries reach.

    Parameters
    ----------
    stage : Stage
    logged : Logged
    fusions : dict of str to Fusion
    held_out : ndarray of int64
        Positions.
    reach : ndarray of int32, shape (2, n)

    Returns
    -------
    dict of str to ndarray of shape (n_queries,)
        Empty arrays where there are fewer than 50 such rows.
    """
    if len(held_out) < 5 * K:
        return {name: np.empty(0) for name in fusions}
    rows = stage.anchors(held_out)
    share = stage.native.mean()
    first = np.lexsort((stage.ties[held_out], -reach[CHOOSING][held_out]))[: round(share * len(held_out))]
    mixed = np.asarray(stage.translation.apply(rows.x))
    mixed[first] = rows.y[first]
    some = np.flatnonzero(logged.half == REPORTED)
    x, y, places = unit(logged.queries.x[some]), unit(logged.queries.y[some]), np.arange(len(held_out))
    old, new = side(rows.x, rows.source), side(mixed, rows.target)
    native = CandidateSearch(x, y, K, corrected=False)
    native.offer(old, side(rows.y, rows.target), places)
    truth = native.candidates().ranked(Fusion(1.0), K)
    projected = unit(stage.projection.apply(logged.queries.y[some]))
    found = {}
    for name, fusion in fusions.items():
        search = CandidateSearch(projected if name == "new_queries" else x, y, corrected=False)
        search.offer(old, new, places)
        found[name] = overlap(search.candidates().ranked(Fusion(fusion.weight), K), truth)
    return found


def compare_models(stage: Stage, logged: Logged, seed: int) -> tuple[RolloutScore, int, int]:
    """The new model against the old one among the native rows: scores, rows, and judged queries of the reported half."""
    native = np.flatnonzero(stage.native)
    relevant = [rows[stage.native[rows]] for rows in logged.relevant]
    some = np.flatnonzero((logged.half == REPORTED) & np.array([len(rows) > 0 for rows in relevant], bool))
    if not len(some) or len(native) <= K:
        return RolloutScore(), len(native), 0
    search = CandidateSearch(unit(logged.queries.x[some]), unit(logged.queries.y[some]), K, corrected=False)
    for start, old, new in stage.pairs():
        mask = stage.native[start : start + len(old)]
        if mask.any():
            sides = side(old[mask], stage.old.space), side(new[mask], stage.new.space)
            search.offer(*sides, start + np.flatnonzero(mask))
    candidates = search.candidates()
    by_old, by_new = (candidates.ranked(Fusion(weight), K) for weight in (0.0, 1.0))
    old_recall, new_recall = (recall_and_mrr(found, [relevant[m] for m in some])[0] for found in (by_old, by_new))
    return score(new_recall, old_recall, overlap(by_old, by_new), seed), len(native), len(some)


def reach_of(found: Found, fusion: Fusion, rows: int) -> np.ndarray:
    """For each half and row the number of queries that have the row among their 100 nearest, shape (2, n), int32."""
    ranked = [candidates.ranked(fusion, DEPTH) for candidates in found.both]
    return np.stack([np.bincount(rank[rank >= 0], minlength=rows) for rank in ranked]).astype(np.int32)


def density_of(stage: Stage, seed: int) -> np.ndarray:
    """As `reach_of` where no query is logged: a sample of the rows are the queries, and do not find themselves."""
    count = len(stage.new)
    places = np.sort(np.argsort(hash_ids(ids_at(stage.new, np.arange(count)), "stand-ins", seed))[:STAND_INS])
    rows = stage.anchors(places)
    search = CandidateSearch(unit(rows.x), unit(rows.y), corrected=False)
    for start, old, new in stage.pairs():
        both = side(old, stage.old.space), side(new, stage.new.space)
        search.offer(*both, np.arange(start, start + len(old)), exclude=places)
    ranked = search.candidates().ranked(DEFAULT, DEPTH)
    return np.stack([np.bincount(ranked[ranked >= 0], minlength=count)] * 2).astype(np.int32)
