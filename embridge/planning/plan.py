"""`plan`: fit, try every strategy on rows that were not fitted on, and recommend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embridge.anchors import Anchors
from embridge.errors import MapError, ParameterError, TooFewAnchorsError
from embridge.evaluation import Qrels, bootstrap_intervals, figures_of, labels_of_queries, positions_of
from embridge.maps import LinearMap
from embridge.neighbours import top_k
from embridge.planning.advice import recommend
from embridge.planning.curve import learning_curve
from embridge.planning.portrait import figures_by_label, norm_distributions
from embridge.planning.reach import by_reach
from embridge.planning.trial import REFERENCES, Ask, Outcome, Trial
from embridge.records import Plan, PlannedStrategy
from embridge.retrieval import blend, carry
from embridge.translators import Kernel, fit
from embridge.translators.select import one_standard_error
from embridge.types import Metric

if TYPE_CHECKING:
    import torch

WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)
PERCENTS = (1, 5, 20)
_TUNING = 1000
_LEAST_QUERIES = 50  # to choose a weight by


class Way(NamedTuple):
    """How a strategy asks: query vectors of pairs, rows searched, metric, whether it takes the old encoder, rows changed."""

    ask: Ask
    rows: np.ndarray
    metric: Metric
    old: bool
    changed: int


class Tried(NamedTuple):
    """What a strategy found, and what it costs."""

    name: str
    hubness: bool
    outcome: Outcome
    changed: int
    encodes: int
    old: bool
    texts: bool


def plan(
    shared: Anchors,
    *,
    queries: Anchors | None = None,
    qrels: Qrels | None = None,
    labels: Mapping[Any, int | str] | None = None,
    anchors: int | None = None,
    k: int = 10,
    encode_rate: float | None = None,
    price: float | None = None,
    max_queries: int = 5000,
    seed: int = 0,
    device: str | torch.device | None = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Every strategy side by side on held-out rows, and one recommendation for each situation.

    Queries are split into two halves: the weight of the blend, the references of the hubness correction and the rows to re-encode
    first come from the half that is not asked, so every figure is out of sample and all queries count. Maps are what `Auto`
    chooses, but for ``translate-documents-kernel``, which is by `Kernel`.

    Parameters
    ----------
    shared : Anchors
        Rows of both spaces: `anchors` of them are fitted on, all others are the corpus.
    queries : Anchors, optional
        Queries by both models. Default: rows of the corpus are the queries, and do not find themselves.
    qrels : mapping of query id to sequence of document ids, or to mapping of document id to grade, optional
        Then strategies are compared by recall@k, else by overlap@k with the new model's ranking. Overlap tells how near the new
        ranking is, not whether that is the better one.
    labels : mapping of id to label, optional
        Of queries, or of the documents relevant to them: then the plan has figures for each label.
    anchors : int, optional
        Default: half of the shared rows, at most 5,000.
    k : int, default 10
    encode_rate, price : float, optional
        Rows that the new model encodes in a second, and what encoding one row costs.
    max_queries : int, default 5000
    seed : int, default 0
    device : str, default "cpu"
    progress : callable, optional
        Called with (strategies done, strategies in all).

    Returns
    -------
    Plan

    Raises
    ------
    ParameterError
        k, anchors, encode_rate or price out of range.
    TooFewAnchorsError
        Too few shared rows to fit on some and search more than k others.
    """
    if k < 1:
        raise ParameterError.must_be("k", "at least 1", k)
    for name, value in (("encode_rate", encode_rate), ("price", price)):
        if value is not None and not value > 0:
            raise ParameterError.must_be(name, "above 0", value)
    anchors = min(5000, len(shared) // 2) if anchors is None else anchors
    if len(shared) - anchors <= k + 1:
        raise TooFewAnchorsError.planned(k + 2, anchors, len(shared))
    train = shared.sample(anchors, seed)
    corpus = shared.without(train.hashes())
    translation = fit(train, "auto", keep_affine=True, device=device)
    reverse = fit(train.reversed(), "auto", role="queries", keep_affine=True, device=device)
    exclude = reference = None
    if queries is None:
        asked = corpus.sample(max_queries, seed)
        exclude = positions_of(asked.ids, corpus.ids)
        reference = train.sample(REFERENCES, seed)
    else:
        asked = queries.sample(max_queries, seed)
    trial = Trial.of(corpus, asked, exclude, reference, qrels, k, seed, device)
    if len(np.unique(trial.half)) < 2:  # few queries: there is no other half to refer to
        trial = replace(trial, reference=train.sample(REFERENCES, seed))
    known = [] if labels is None else labels_of_queries(asked.ids, trial.relevant, corpus.ids, labels)
    if labels is not None and all(label is None for label in known):
        raise ParameterError.no_labels(len(asked), len(labels))
    source, target = translation.source, translation.target
    translated = translation.apply(corpus.x)
    shrinkage = {name: value for name, value in translation.record.parameters.items() if name in ("alpha", "s")}
    bent = fit(train, Kernel(**shrinkage, seed=seed), device=device).apply(corpus.x)

    ways = {
        "keep-old": Way(lambda pairs, _: pairs.x, corpus.x, source.metric, True, 0),
        "translate-documents": Way(lambda pairs, _: pairs.y, translated, target.metric, False, len(corpus)),
        "translate-documents-kernel": Way(lambda pairs, _: pairs.y, bent, target.metric, False, len(corpus)),
        "translate-queries": Way(lambda pairs, _: reverse.apply(pairs.y), corpus.x, source.metric, False, 0),
    }
    weights = (0.5, 0.5)
    try:
        carry(asked.y[:1], translation, source)
    except MapError:  # L2 and no isometry: there is no way back to the old rows
        pass
    else:
        weights = tuple(_weight(trial, translation, 1 - half) for half in (0, 1))
        ways["adjoint"] = Way(lambda pairs, _: carry(pairs.y, translation, source), corpus.x, source.metric, False, 0)

        def blended(pairs: Anchors, half: int) -> np.ndarray:
            return blend(pairs.x, carry(pairs.y, translation, source), weights[half], source.metric)

        ways["blend"] = Way(blended, corpus.x, source.metric, True, 0)
    ways["re-encode"] = Way(lambda pairs, _: pairs.y, corpus.y, target.metric, False, len(corpus))
    lazy = {"translate-documents": "lazy-re-encode", "blend": "lazy-re-encode-blend"}
    hubness = (False,) if Metric.L2 in (source.metric, target.metric) else (False, True)
    total = (len(ways) + len(PERCENTS) + len(lazy.keys() & ways.keys())) * len(hubness)
    tried: list[Tried] = []

    def add(*values: Any) -> None:
        tried.append(Tried(*values))
        if progress is not None:
            progress(len(tried), total)

    reached = np.empty((0, 0))
    for name, way in ways.items():
        for flag in hubness:
            ids = trial.search(way.ask, way.rows, way.metric, hubness=flag)
            everything = name == "re-encode"
            add(name, flag, trial.outcome(ids), way.changed, len(corpus) if everything else 0, way.old, everything)
            if name in lazy:
                add(lazy[name], flag, trial.outcome(trial.rerank(ids)), way.changed, len(np.unique(ids)), way.old, True)
            if name == "translate-documents" and not flag:
                reached = ids
    orders = [by_reach(reached[trial.half != half], len(corpus))[0] for half in (0, 1)]
    for percent in PERCENTS:
        count = max(1, round(len(corpus) * percent / 100))
        mixed = []
        for order in orders:
            rows = translated.copy()
            rows[order[:count]] = corpus.y[order[:count]]
            mixed.append(rows)
        for flag in hubness:
            ids = trial.search(ways["re-encode"].ask, mixed, target.metric, hubness=flag)
            add(f"re-encode-{percent}%", flag, trial.outcome(ids), len(corpus), count, False, True)

    measured = np.array([trial.measure(one.outcome) for one in tried])
    gains = measured - measured[next(i for i, one in enumerate(tried) if one.name == "keep-old" and not one.hubness)]
    strategies = _strategies(tried, gains, encode_rate, price, seed)
    values = {s.title: row for s, row in zip(strategies, measured, strict=True)}
    by_label, unlabelled = ((), None) if labels is None else figures_by_label(trial, values, labels)
    return Plan(
        k, len(asked), trial.judged, len(corpus), len(train), translation.record.method, float(np.mean(weights)),
        strategies, recommend(strategies, gains, judged=trial.judged > 0), learning_curve(translation, train, trial),
        source, target, norm_distributions(corpus, translation), by_label, unlabelled,
    )  # fmt: skip


def _weight(trial: Trial, translation: LinearMap, half: int) -> float:
    """The weight nearest to 0.5 that one half of the queries cannot tell from the best."""
    small = trial.at(np.flatnonzero(trial.half == half)[:_TUNING])
    if len(small.asked) < _LEAST_QUERIES or (trial.judged and small.judged < _LEAST_QUERIES):
        return 0.5
    carried = carry(small.asked.y, translation, translation.source)
    weights, scores = sorted(WEIGHTS, key=lambda w: (abs(w - 0.5), w)), []
    for weight in weights:
        vectors = blend(small.asked.x, carried, weight, translation.source.metric)
        ids = top_k(vectors, small.corpus.x, small.k, translation.source.metric, exclude=small.exclude, device=small.device).ids
        scores.append(small.measure(small.outcome(ids)))
    return weights[one_standard_error(np.array(scores))[0]]


def _strategies(
    tried: Sequence[Tried], gains: np.ndarray, rate: float | None, price: float | None, seed: int
) -> tuple[PlannedStrategy, ...]:
    """Figures of what was tried; intervals are paired, since one seed resamples the same queries."""
    figures = figures_of({str(number): one.outcome for number, one in enumerate(tried)}, seed)
    intervals = bootstrap_intervals(gains.T, seed=seed)
    gap = next(float(gain.mean()) for one, gain in zip(tried, gains, strict=True) if one.name == "re-encode" and not one.hubness)
    out = []
    for one, found, gain, edges in zip(tried, figures, gains.mean(axis=1).tolist(), intervals, strict=True):
        out.append(
            PlannedStrategy(
                name=one.name,
                hubness=one.hubness,
                overlap=found.overlap,
                overlap_ci=found.overlap_ci,
                candidate_recall=found.candidate_recall,
                recall=found.recall,
                recall_ci=found.recall_ci,
                mrr=found.mrr,
                gain=gain,
                gain_ci=edges,
                recovered=gain / gap if gap > 0 else None,
                rows_changed=one.changed,
                encodes=one.encodes,
                seconds=one.encodes / rate if rate else None,
                cost=one.encodes * price if price else None,
                needs_old_encoder=one.old,
                needs_texts=one.texts,
                mrr_ci=found.mrr_ci,
                ndcg=found.ndcg,
                ndcg_ci=found.ndcg_ci,
            )
        )
    return tuple(out)
