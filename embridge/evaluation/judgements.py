"""What a list of found rows is worth to a query: beside native neighbours, beside relevance judgements, by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embridge.errors import ParameterError
from embridge.neighbors import overlap

DEPTH = 100

Qrels = Mapping[Any, Sequence[Any] | Mapping[Any, float]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one strategy found, by query: overlap and candidate recall of all; recall, reciprocal rank and nDCG of the judged."""

    overlap: np.ndarray
    candidates: np.ndarray
    recall: np.ndarray
    ranks: np.ndarray
    ndcg: np.ndarray


def candidate_depth(k: int, rows: int) -> int:
    """How many found rows are candidates: 100, or all rows but one where there are fewer; k at least."""
    return max(k, min(DEPTH, rows - 1))


def outcome_of(found: np.ndarray, truth: np.ndarray, relevant: Sequence[np.ndarray], grades: Sequence[np.ndarray]) -> Outcome:
    """What candidates are worth, best first, where `truth` are the k nearest rows of the new model.

    Parameters
    ----------
    found : ndarray of shape (n_queries, depth)
        Candidate recall looks at all of them, everything else at the first k.
    truth : ndarray of shape (n_queries, k)
    relevant, grades : sequence of ndarray
        Of `judgements`.
    """
    top = found[:, : truth.shape[1]]
    return Outcome(overlap(top, truth), overlap(found, truth), *judge(top, relevant), ndcg(top, relevant, grades))


def judgements(corpus_ids: np.ndarray, query_ids: np.ndarray, qrels: Qrels | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each query the corpus positions of its relevant documents, and their grades; none where there are no judgements.

    Documents named in a sequence have grade 1; in a mapping those with a grade above zero are relevant.

    Raises
    ------
    ParameterError
        A grade is infinite.
    """
    known = qrels or {}
    if known and not any(query in known for query in query_ids.tolist()):
        raise ParameterError.no_judgements(len(query_ids), len(known))
    place = {i: n for n, i in enumerate(corpus_ids.tolist())} if known else {}
    relevant, grades = [], []
    for query in query_ids.tolist():
        named = known.get(query, ())
        graded = named if isinstance(named, Mapping) else dict.fromkeys(named, 1.0)
        kept = {place[d]: float(g) for d, g in graded.items() if d in place and g is not None and g > 0}
        relevant.append(np.array(list(kept), np.int64))
        grades.append(np.array(list(kept.values()), np.float64))
        if not np.isfinite(grades[-1]).all():
            raise ParameterError.must_be(f"the grades of query {query!r}", "finite numbers", max(kept.values()))
    return relevant, grades


def judge(found: np.ndarray, relevant: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Recall at k and reciprocal rank at k of each query that has a relevant row, in their order."""
    recalls, ranks = [], []
    for row, wanted in enumerate(relevant):
        if len(wanted):
            hits = np.flatnonzero((found[row][:, None] == wanted).any(1))  # a tenth of the time of np.isin
            recalls.append(len(hits) / len(wanted))
            ranks.append(1 / (hits[0] + 1) if len(hits) else 0.0)
    return np.array(recalls), np.array(ranks)


def ndcg(found: np.ndarray, relevant: Sequence[np.ndarray], grades: Sequence[np.ndarray]) -> np.ndarray:
    """nDCG at k of each query that has a relevant row, in their order.

    The sum of grade / log2(rank + 1) over the k found rows, over that of the k rows of the highest grades that there are (Järvelin
    and Kekäläinen 2002, with the linear gain of trec_eval).
    """
    discounts = 1 / np.log2(np.arange(2, found.shape[1] + 2))
    scores = []
    for row, (wanted, gains) in enumerate(zip(relevant, grades, strict=True)):
        if len(wanted):
            best = np.sort(gains)[::-1][: len(discounts)]
            gained = (found[row][:, None] == wanted) @ gains
            scores.append(gained @ discounts / (best @ discounts[: len(best)]))
    return np.array(scores)


def positions_of(asked_ids: np.ndarray, corpus_ids: np.ndarray) -> np.ndarray:
    """Where in the corpus each query is, all of them being rows of it."""
    order = np.argsort(corpus_ids, kind="stable")
    return order[np.searchsorted(corpus_ids, asked_ids, sorter=order)]


def members_of(labels: Sequence[Any]) -> dict[Any, np.ndarray]:
    """Positions by label, None left out."""
    found: dict[Any, list[int]] = {}
    for place, label in enumerate(labels):
        if label is not None:
            found.setdefault(label.item() if isinstance(label, np.generic) else label, []).append(place)
    return {label: np.array(places) for label, places in found.items()}


def labels_of_queries(
    asked_ids: np.ndarray, relevant: Sequence[np.ndarray], corpus_ids: np.ndarray, labels: Mapping[Any, Any]
) -> list[Any]:
    """The label of each query: that of the first of its relevant rows that has one, else its own, else None.

    Relevant rows come first, since ids of queries and of rows may be alike and mean other things.

    Parameters
    ----------
    asked_ids : ndarray of shape (n_queries,)
    relevant : sequence of ndarray
        Corpus positions of each query's relevant rows (`judgements`).
    corpus_ids : ndarray of shape (n,)
    labels : mapping of id to label
    """
    found = []
    for query, rows in zip(asked_ids.tolist(), relevant, strict=True):
        known = (label for row in corpus_ids[rows].tolist() if (label := labels.get(row)) is not None)
        found.append(next(known, labels.get(query)))
    return found
