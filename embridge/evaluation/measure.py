"""`evaluate`: carry out every strategy on rows that the map was not fitted on, and count what each found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embridge.anchors import Anchors
from embridge.arrays import as_vectors, unit
from embridge.confidence import translation_errors
from embridge.errors import ParameterError, SpaceMismatchError, TooFewAnchorsError
from embridge.evaluation.figures import by_label, differences, figures_of, per_query
from embridge.evaluation.growth import SIZED, Subset, sizes_of, subsets_of
from embridge.evaluation.judgements import Outcome, Qrels, candidate_depth, judgements, labels_of_queries, outcome_of, positions_of
from embridge.evaluation.strategies import WITHOUT_MAP, Way, ways_of
from embridge.feature_maps import Map
from embridge.ids import hash_ids
from embridge.neighbors import top_k
from embridge.records import ConfidenceCheck, CorpusSize, Evaluation
from embridge.types import Metric

if TYPE_CHECKING:
    import torch

_LEAST_ROWS = 50  # to tell whether errors are foretold


def evaluate(
    translation: Map,
    held_out: Anchors,
    *,
    queries: Anchors | None = None,
    qrels: Qrels | None = None,
    k: int = 10,
    weight: float = 0.5,
    hubness: np.ndarray | None = None,
    labels: Mapping[Any, Any] | None = None,
    against: Map | None = None,
    corpus_size: int | None = None,
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
    qrels : mapping of query id to sequence of document ids, or to mapping of document id to grade, optional
        Relevance judgements, for recall@k, MRR@k and nDCG@k. Only relevant documents (grade above 0) that are in the corpus count,
        and only queries that have one.
    k : int, default 10
    weight : float, default 0.5
        Of the carried query in the blend.
    hubness : ndarray of shape (n, dim_target), optional
        Reference queries of the target space, none of those that ask: adds ``translate-documents+hubness`` and
        ``blend+hubness``, in which each row's mean similarity to its 10 nearest of them is subtracted. Not under L2.
    labels : mapping of id to label, optional
        Strings or integers: every strategy is told by label too. A query has that of the first of its relevant rows which has
        one, else its own.
    against : LinearMap or FeatureMap, optional
        Another map between the same spaces: the paired difference to it of every strategy that depends on the map. Rows that
        either map was fitted on are left out.
    corpus_size : int, optional
        Rows of the collection that the map is for: where they are more than the corpus, overlap among so many is forecast.
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
        L2, an isometry. Figures of every single query are in `Evaluation.per_query`.

    Raises
    ------
    SpaceMismatchError
        Anchors, queries or the other map are of other spaces than the map.
    TooFewAnchorsError
        Not more than k rows are left that the map was not fitted on.
    ParameterError
        k or corpus_size out of range, a hubness bias under L2, an infinite grade, or labels of none of the queries.
    """
    _check(translation, held_out, queries, against, k, corpus_size)
    trial = _Trial.of(translation, held_out, queries, qrels, labels, against, k, max_queries, seed, device)
    corpus, asked = trial.corpus, trial.asked
    if hubness is not None:
        hubness = as_vectors(hubness, translation.target.dim, "reference queries")
        if Metric.L2 in (translation.source.metric, translation.target.metric):
            raise ParameterError("A hubness bias needs cosine or inner product, and a space of the map is measured by L2.")
    translated = _translate(translation, corpus)
    ways = list(ways_of(translation, corpus, asked, translated, weight, hubness))
    others: list[Way] = []
    if against is not None:
        every = ways_of(against, corpus, asked, _translate(against, corpus), weight, hubness)
        others = [way for way in every if way.name not in WITHOUT_MAP and way.name in {w.name for w in ways}]
    done, total = 0, len(ways) + len(others)

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    outcomes: dict[str, Outcome] = {}
    sizes: list[CorpusSize] = []
    for way in ways:
        outcomes[way.name] = trial.outcome(way)
        if way.name in SIZED:
            sizes += sizes_of(way, outcomes[way.name].overlap, len(corpus), trial.subsets, corpus_size, seed, device)
        advance()
    compared: dict[str, Outcome] = {}
    for way in others:
        compared[way.name] = trial.outcome(way)
        advance()
    cosines = np.einsum("ij,ij->i", unit(translated), unit(corpus.y))
    spread = np.linalg.norm(corpus.y - corpus.y.mean(0))
    residual = float(np.linalg.norm(translated - corpus.y) / spread) if spread else 0.0
    judged = np.array([len(rows) > 0 for rows in trial.relevant], bool)
    return Evaluation(
        k,
        len(asked),
        len(corpus),
        figures_of(outcomes, seed),
        float(cosines.mean()),
        residual,
        translation.fingerprint,
        int(judged.sum()),
        check_confidence(translation, corpus),
        by_label(outcomes, trial.labels, judged, seed),
        tuple(sizes),
        "" if against is None else against.fingerprint,
        differences(outcomes, compared, seed),
        per_query(asked.ids, trial.labels, outcomes, judged),
    )


@dataclass(frozen=True, eq=False)
class _Trial:
    """Rows searched, in an order drawn by their ids so that the first are a random sample; queries; what these should find."""

    corpus: Anchors
    asked: Anchors
    exclude: np.ndarray | None
    relevant: list[np.ndarray]
    grades: list[np.ndarray]
    labels: list[Any]
    truth: np.ndarray
    subsets: list[Subset]
    device: Any

    @classmethod
    def of(
        cls, translation: Map, held_out: Anchors, queries: Anchors | None, qrels: Qrels | None,
        labels: Mapping[Any, Any] | None, against: Map | None, k: int, max_queries: int, seed: int, device: Any,
    ) -> _Trial:  # fmt: skip
        """The trial of a map on all rows that neither it nor the other was fitted on."""
        fitted = translation.anchor_hashes
        if against is not None:
            fitted = np.union1d(fitted, against.anchor_hashes)
        left = np.flatnonzero(~np.isin(held_out.hashes(), fitted))
        if len(left) <= k:
            raise TooFewAnchorsError.held_out(k + 1, len(left), len(held_out))
        corpus = held_out.at(left[np.argsort(hash_ids(held_out.ids[left], "corpus", seed), kind="stable")])
        exclude = None
        if queries is None:
            asked = corpus.sample(max_queries, seed)
            exclude = positions_of(asked.ids, corpus.ids)
        else:
            asked = queries.sample(max_queries, seed)
        relevant, grades = judgements(corpus.ids, asked.ids, qrels)
        known: list[Any] = [None] * len(asked)
        if labels is not None:
            known = labels_of_queries(asked.ids, relevant, corpus.ids, labels)
            if all(label is None for label in known):
                raise ParameterError.no_labels(len(asked), len(labels))
        truth = top_k(asked.y, corpus.y, k, translation.target.metric, exclude=exclude, device=device).ids
        subsets = subsets_of(corpus, asked, exclude, k, device)
        return cls(corpus, asked, exclude, relevant, grades, known, truth, subsets, device)

    def outcome(self, way: Way) -> Outcome:
        """What a strategy finds."""
        depth = candidate_depth(self.truth.shape[1], len(self.corpus))
        found = top_k(way.queries, way.rows, depth, way.metric, exclude=self.exclude, device=self.device).ids
        return outcome_of(found, self.truth, self.relevant, self.grades)


def _check(
    translation: Map, held_out: Anchors, queries: Anchors | None, against: Map | None, k: int, corpus_size: int | None
) -> None:
    for what, pair in (("The map", held_out), ("The evaluation", queries)):
        if pair is None:
            continue
        for expected, found in ((translation.source, pair.source), (translation.target, pair.target)):
            if not expected.same_as(found):
                raise SpaceMismatchError.between(what, expected, "the evaluation's data", found)
    if against is not None and not (translation.source.same_as(against.source) and translation.target.same_as(against.target)):
        raise SpaceMismatchError.maps((translation.source, translation.target), (against.source, against.target))
    if k < 1:
        raise ParameterError.must_be("k", "at least 1", k)
    if corpus_size is not None and corpus_size < 1:
        raise ParameterError.must_be("corpus_size", "at least 1", corpus_size)


def _translate(translation: Map, corpus: Anchors) -> np.ndarray:
    translated = np.empty(corpus.y.shape, np.float32)
    for start in range(0, len(corpus), 8192):
        translated[start : start + 8192] = translation.apply(corpus.x[start : start + 8192])
    return translated


def check_confidence(translation: Map, rows: Anchors) -> ConfidenceCheck | None:
    """How well the map foretells errors, on the rows that it was not calibrated on; None without a confidence, or with few rows."""
    if (known := translation.confidence) is None:
        return None
    left = rows.without(known.hashes)
    if len(left) < _LEAST_ROWS:
        return None
    return known.check(left.x, translation_errors(translation.apply(left.x), left.y, translation.target))
