"""Every way of answering new-space queries side by side, on rows that the map was not fitted on.

Nothing is reported alone: each result stands beside the old model left as it is and beside re-encoding everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embridge.anchors import Anchors
from embridge.arrays import as_vectors, unit
from embridge.confidence import translation_errors
from embridge.errors import MapError, ParameterError, SpaceMismatchError, TooFewAnchorsError
from embridge.feature_maps import Map
from embridge.indexes.hubness import augment, with_bias
from embridge.neighbours import overlap, top_k
from embridge.records import ConfidenceCheck, Evaluation, Strategy
from embridge.retrieval import blend, carry
from embridge.types import Metric

if TYPE_CHECKING:
    import torch

_RESAMPLES = 1000
_LEAST_ROWS = 50  # to tell whether errors are foretold

Qrels = Mapping[Any, Sequence[Any]]


def bootstrap_interval(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-query values (Efron 1979), 1,000 resamples of the queries.

    Parameters
    ----------
    values : ndarray of shape (n_queries,)
    level : float, default 0.95
    seed : int, default 0

    Returns
    -------
    low, high : float
    """
    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.array([values[rng.integers(n, size=n)].mean() for _ in range(_RESAMPLES)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def evaluate(
    translation: Map,
    held_out: Anchors,
    *,
    queries: Anchors | None = None,
    qrels: Qrels | None = None,
    k: int = 10,
    weight: float = 0.5,
    hubness: np.ndarray | None = None,
    max_queries: int = 5000,
    seed: int = 0,
    device: str | torch.device | None = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a map against leaving the old index alone and against re-encoding everything.

    Parameters
    ----------
    translation : LinearMap or FeatureMap
    held_out : Anchors
        Rows of both spaces. Those that the map was fitted on are left out, so the whole match may be given.
    queries : Anchors, optional
        Queries by both models. Default: rows of the corpus are the queries, and do not find themselves.
    qrels : mapping of query id to sequence of document ids, optional
        Relevance judgements, for recall@k and MRR@k. Only relevant documents that are in the corpus count, and only queries
        that have one.
    k : int, default 10
    weight : float, default 0.5
        Of the carried query in the blend.
    hubness : ndarray of shape (n, dim_target), optional
        Reference queries of the target space, none of those that ask: adds ``translate-documents+hubness`` and
        ``blend+hubness``, in which each row's mean similarity to its 10 nearest of them is subtracted. Not under L2.
    max_queries : int, default 5000
        More rows than these do not all ask; which do is chosen by `seed`.
    seed : int, default 0
    device : str, default "cpu"
    progress : callable, optional
        Called with (strategies done, strategies in all).

    Returns
    -------
    Evaluation
        Strategies, as far as they exist for the pair: ``keep-old`` (old queries, old rows), ``no-translation`` (new queries, old
        rows; equal widths), ``translate-documents``, ``translate-queries`` (new queries pulled back to old rows), ``blend`` (old
        and pulled-back queries mixed, old rows) and ``re-encode`` (new queries, new rows). The last two of the middle need, under
        L2, an isometry.

    Raises
    ------
    SpaceMismatchError
        Anchors or queries are of other spaces than the map.
    TooFewAnchorsError
        Not more than k rows are left that the map was not fitted on.
    """
    for what, pair in (("The map", held_out), ("The evaluation", queries)):
        if pair is None:
            continue
        for expected, found in ((translation.source, pair.source), (translation.target, pair.target)):
            if not expected.same_as(found):
                raise SpaceMismatchError.between(what, expected, "the evaluation's data", found)
    if k < 1:
        raise ParameterError.must_be("k", "at least 1", k)
    corpus = held_out.without(translation.anchor_hashes)
    if len(corpus) <= k:
        raise TooFewAnchorsError.held_out(k + 1, len(corpus), len(held_out))
    exclude = None
    if queries is None:
        asked = corpus.sample(max_queries, seed)
        order = np.argsort(corpus.ids, kind="stable")
        exclude = order[np.searchsorted(corpus.ids, asked.ids, sorter=order)]
    else:
        asked = queries.sample(max_queries, seed)
    if hubness is not None:
        hubness = as_vectors(hubness, translation.target.dim, "reference queries")
        if Metric.L2 in (translation.source.metric, translation.target.metric):
            raise ParameterError("A hubness bias needs cosine or inner product, and a space of the map is measured by L2.")
    relevant = relevant_positions(corpus.ids, asked.ids, qrels)

    translated = np.empty_like(corpus.y)
    for start in range(0, len(corpus), 8192):
        translated[start : start + 8192] = translation.apply(corpus.x[start : start + 8192])
    truth = top_k(asked.y, corpus.y, k, translation.target.metric, exclude=exclude, device=device).ids
    strategies = []
    plans = list(_strategies(translation, corpus, asked, translated, weight, hubness))
    for number, (name, vectors, rows, metric) in enumerate(plans):
        found = top_k(vectors, rows, k, metric, exclude=exclude, device=device).ids
        shares = overlap(found, truth)
        recalls, ranks = judge(found, relevant)
        recall, mrr = (float(recalls.mean()), float(ranks.mean())) if len(recalls) else (None, None)
        strategies.append(Strategy(name, float(shares.mean()), bootstrap_interval(shares, seed=seed), recall, mrr))
        if progress is not None:
            progress(number + 1, len(plans))
    cosines = np.einsum("ij,ij->i", unit(translated), unit(corpus.y))
    spread = np.linalg.norm(corpus.y - corpus.y.mean(0))
    residual = float(np.linalg.norm(translated - corpus.y) / spread) if spread else 0.0
    return Evaluation(
        k,
        len(asked),
        len(corpus),
        tuple(strategies),
        float(cosines.mean()),
        residual,
        translation.fingerprint,
        sum(len(rows) > 0 for rows in relevant),
        check_confidence(translation, corpus),
    )


def check_confidence(translation: Map, rows: Anchors) -> ConfidenceCheck | None:
    """How well the map foretells errors, on the rows that it was not calibrated on; None without a confidence, or with few rows."""
    if (known := translation.confidence) is None:
        return None
    left = rows.without(known.hashes)
    if len(left) < _LEAST_ROWS:
        return None
    return known.check(left.x, translation_errors(translation.apply(left.x), left.y, translation.target))


def _strategies(
    translation: Map, corpus: Anchors, asked: Anchors, translated: np.ndarray, weight: float, hubness: np.ndarray | None
) -> Iterator[tuple[str, np.ndarray, np.ndarray, Metric]]:
    """Name, queries, rows searched and metric of every strategy that exists for the pair."""
    source, target = translation.source, translation.target
    yield "keep-old", asked.x, corpus.x, source.metric
    if source.dim == target.dim:
        yield "no-translation", asked.y, corpus.x, source.metric
    yield "translate-documents", asked.y, translated, target.metric
    if hubness is not None:
        yield "translate-documents+hubness", *corrected(asked.y, translated, target.metric, hubness)
    try:
        carried = carry(asked.y, translation, source)
    except MapError:  # L2 and no isometry: there is no way back to the old rows
        pass
    else:
        yield "translate-queries", carried, corpus.x, source.metric
        blended = blend(asked.x, carried, weight)
        yield "blend", blended, corpus.x, source.metric
        if hubness is not None:
            yield "blend+hubness", *corrected(blended, corpus.x, source.metric, carry(hubness, translation, source))
    yield "re-encode", asked.y, corpus.y, target.metric


def corrected(
    queries: np.ndarray, rows: np.ndarray, metric: Metric, references: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Metric]:
    """Queries and rows with a hubness bias, as an index has them (`embridge.indexes.hubness`)."""
    held = unit(rows) if metric == Metric.COSINE else rows.astype(np.float32, copy=False)
    return augment(unit(queries)), with_bias(held, references), Metric.DOT


def relevant_positions(corpus_ids: np.ndarray, query_ids: np.ndarray, qrels: Qrels | None) -> list[np.ndarray]:
    """For each query the corpus positions of its relevant documents; none of them where there are no judgements."""
    judgements = qrels or {}
    place = {i: n for n, i in enumerate(corpus_ids.tolist())} if judgements else {}
    named = [dict.fromkeys(judgements.get(query, ())) for query in query_ids.tolist()]
    return [np.array([place[d] for d in documents if d in place], np.int64) for documents in named]


def labels_of_queries(
    asked_ids: np.ndarray, relevant: Sequence[np.ndarray], corpus_ids: np.ndarray, labels: Mapping[Any, Any]
) -> list[Any]:
    """The label of each query: its own, else that of the first of its relevant rows that has one, else None.

    Parameters
    ----------
    asked_ids : ndarray of shape (n_queries,)
    relevant : sequence of ndarray
        Corpus positions of each query's relevant rows (`relevant_positions`).
    corpus_ids : ndarray of shape (n,)
    labels : mapping of id to label
    """
    found = []
    for query, rows in zip(asked_ids.tolist(), relevant, strict=True):
        label = labels.get(query)
        if label is None:
            label = next((known for row in corpus_ids[rows].tolist() if (known := labels.get(row)) is not None), None)
        found.append(label)
    return found


def judge(found: np.ndarray, relevant: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Recall at k and reciprocal rank at k of each query that has a relevant row, in their order."""
    recalls, ranks = [], []
    for row, wanted in enumerate(relevant):
        if len(wanted):
            hits = np.flatnonzero(np.isin(found[row], wanted))
            recalls.append(len(hits) / len(wanted))
            ranks.append(1 / (hits[0] + 1) if len(hits) else 0.0)
    return np.array(recalls), np.array(ranks)
