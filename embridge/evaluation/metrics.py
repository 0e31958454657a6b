"""Scores of lists of found rows: against native neighbors, against relevance judgments, by label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embridge.errors import ParameterError
from embridge.neighbors import overlap
from embridge.records import QrelsCoverage

DEPTH = 100
_BLOCK = 256  # queries
_EMPTY = -2  # never found: -1 is an empty place of the found rows

Qrels = Mapping[Any, Sequence[Any] | Mapping[Any, float]]


@dataclass(frozen=True, eq=False)
class QueryScores:
    """Scores of one strategy, by query: `overlap` and `candidates` of all; `recall`, `mrr` and `ndcg` of the judged ones."""

    overlap: np.ndarray
    candidates: np.ndarray
    recall: np.ndarray
    mrr: np.ndarray
    ndcg: np.ndarray


def candidate_depth(k: int, rows: int) -> int:
    """Number of candidates: 100, or all rows but one where there are fewer; at least k."""
    return max(k, min(DEPTH, rows - 1))


def query_scores(found: np.ndarray, truth: np.ndarray, relevant: Sequence[np.ndarray], grades: Sequence[np.ndarray]) -> QueryScores:
    """Scores of candidates, best first, where `truth` are the k nearest rows of the new model.

    Parameters
    ----------
    found : ndarray of shape (n_queries, depth)
        Candidate recall uses all of them, the other scores the first k.
    truth : ndarray of shape (n_queries, k)
    relevant, grades : sequence of ndarray
        As returned by `relevance`.
    """
    top = found[:, : truth.shape[1]]
    return QueryScores(overlap(top, truth), overlap(found, truth), *recall_and_mrr(top, relevant), ndcg(top, relevant, grades))


def relevance(corpus_ids: np.ndarray, query_ids: np.ndarray, qrels: Qrels | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each query the corpus positions of its relevant documents, and their grades; empty where nothing is judged.

    Documents named in a sequence have grade 1; in a mapping those with a grade above zero are relevant.

    Raises
    ------
    ParameterError
        A grade is infinite.
    """
    known = qrels or {}
    place = {i: n for n, i in enumerate(corpus_ids.tolist())} if known else {}
    relevant, grades = [], []
    for query in query_ids.tolist():
        kept = {place[d]: g for d, g in _graded(known.get(query, ())).items() if d in place}
        relevant.append(np.array(list(kept), np.int64))
        grades.append(np.array(list(kept.values()), np.float64))
        if not np.isfinite(grades[-1]).all():
            raise ParameterError.must_be(f"the grades of query {query!r}", "finite numbers", max(kept.values()))
    return relevant, grades


def qrels_coverage(corpus_ids: np.ndarray, query_ids: np.ndarray, qrels: Qrels) -> QrelsCoverage:
    """Counts of relevance judgments for these queries and rows."""
    return _coverage(set(corpus_ids.tolist()), query_ids, qrels)[0]


def check_qrels(corpus_ids: np.ndarray, query_ids: np.ndarray, qrels: Qrels) -> None:
    """Refuse relevance judgments without any of these queries or rows.

    Raises
    ------
    ParameterError
        No document is relevant, or none of the queries or documents is in the benchmark.
    """
    rows = set(corpus_ids.tolist())
    found, documents = _coverage(rows, query_ids, qrels)
    if not found.queries:
        raise ParameterError(f"The judgments (qrels) of {len(qrels):,} queries name no relevant document: no score is above 0.")
    if not found.queries_found:
        raise ParameterError(
            f"None of the {len(query_ids):,} queries is among the {found.queries:,} queries of the judgments (qrels). "
            "Hint: check whether both have their ids as strings or as integers."
        )
    if not found.documents_found:
        raise ParameterError(
            f"None of the {found.documents:,} documents that the judgments (qrels) name as relevant is among the {len(rows):,} "
            f"rows of the corpus. Ids are such as {min(documents, key=str)!r} in the judgments and {min(rows, key=str)!r} in the "
            "corpus. Hint: check whether both are strings or integers; rows that the map was fitted on are not in the corpus."
        )


def _coverage(rows: set[Any], query_ids: np.ndarray, qrels: Qrels) -> tuple[QrelsCoverage, set[Any]]:
    """Counts, and the relevant documents of the queries."""
    judged = {query: set(graded) for query, named in qrels.items() if (graded := _graded(named))}
    known = [query for query in query_ids.tolist() if query in judged]
    documents: set[Any] = set().union(*(judged[query] for query in known))
    return QrelsCoverage(len(judged), len(known), len(documents), len(documents & rows)), documents


def _graded(named: Sequence[Any] | Mapping[Any, float]) -> dict[Any, float]:
    """The relevant documents of a query and their grades."""
    graded = named if isinstance(named, Mapping) else dict.fromkeys(named, 1.0)
    return {document: float(grade) for document, grade in graded.items() if grade is not None and grade > 0}


def recall_and_mrr(found: np.ndarray, relevant: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Recall at k and reciprocal rank at k of each query that has a relevant row, in their order."""
    recalls, ranks = [np.empty(0)], [np.empty(0)]
    for rows, wanted in _blocks(relevant):
        hits = (found[rows][:, :, None] == wanted[:, None]).any(axis=2)
        recalls.append(hits.sum(axis=1) / (wanted != _EMPTY).sum(axis=1))
        ranks.append(hits.any(axis=1) / (1 + hits.argmax(axis=1)))
    return np.concatenate(recalls), np.concatenate(ranks)


def ndcg(found: np.ndarray, relevant: Sequence[np.ndarray], grades: Sequence[np.ndarray]) -> np.ndarray:
    """nDCG at k of each query that has a relevant row, in their order.

    The sum of grade / log2(rank + 1) over the k found rows, over that of the k rows with the highest grades (Järvelin
    and Kekäläinen 2002, with the linear gain of trec_eval).
    """
    discounts = 1 / np.log2(np.arange(2, found.shape[1] + 2))
    scores = [np.empty(0)]
    for rows, wanted in _blocks(relevant):
        gains = np.zeros(wanted.shape)
        gains[wanted != _EMPTY] = np.concatenate([grades[row] for row in rows])
        gained = ((found[rows][:, :, None] == wanted[:, None]) @ gains[:, :, None])[:, :, 0]
        best = -np.sort(-gains, axis=1)[:, : len(discounts)]
        scores.append(gained @ discounts / (best @ discounts[: best.shape[1]]))
    return np.concatenate(scores)


def _blocks(relevant: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Queries that have a relevant row, some at a time, and their relevant rows, filled up with -2."""
    counts = np.fromiter(map(len, relevant), np.int64, len(relevant))
    judged = np.flatnonzero(counts)
    for start in range(0, len(judged), _BLOCK):
        rows = judged[start : start + _BLOCK]
        filled = np.arange(counts[rows].max()) < counts[rows, None]
        out = np.full(filled.shape, _EMPTY)
        out[filled] = np.concatenate([relevant[row] for row in rows])
        yield rows, out


def by_hits(found: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows ordered by the number of queries that find them, and these numbers; both of shape (rows,).

    Parameters
    ----------
    found : ndarray of shape (n_queries, depth)
        Positions; negative ones are ignored.
    rows : int
    """
    counts = np.bincount(found[found >= 0], minlength=rows)
    return np.argsort(-counts, kind="stable"), counts


def members_of(labels: Sequence[Any]) -> dict[Any, np.ndarray]:
    """Positions by label, without None."""
    found: dict[Any, list[int]] = {}
    for place, label in enumerate(labels):
        if label is not None:
            found.setdefault(label.item() if isinstance(label, np.generic) else label, []).append(place)
    return {label: np.array(places) for label, places in found.items()}


def labels_of_queries(
    query_ids: np.ndarray, relevant: Sequence[np.ndarray], corpus_ids: np.ndarray, labels: Mapping[Any, Any]
) -> list[Any]:
    """The label of each query: that of its first labeled relevant row, else its own, else None.

    Relevant rows come first, since ids of queries and of rows may coincide by chance.

    Parameters
    ----------
    query_ids : ndarray of shape (n_queries,)
    relevant : sequence of ndarray
        Corpus positions of each query's relevant rows (`relevance`).
    corpus_ids : ndarray of shape (n,)
    labels : mapping of id to label

    Raises
    ------
    ParameterError
        No query has a label.
    """
    found = []
    for query, rows in zip(query_ids.tolist(), relevant, strict=True):
        known = (label for row in corpus_ids[rows].tolist() if (label := labels.get(row)) is not None)
        found.append(next(known, labels.get(query)))
    if all(label is None for label in found):
        raise ParameterError(
            f"None of the {len(query_ids):,} queries has a label: neither they nor their relevant rows are among the "
            f"{len(labels):,} labeled ids. "
            "Hint: check --id-column of the labels, and whether their ids are strings or integers."
        )
    return found
