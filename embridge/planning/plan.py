"""`plan`: fit, try every strategy on rows that were not fitted on, and recommend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embridge.anchors import Anchors
from embridge.errors import MapError, ParameterError, TooFewAnchorsError
from embridge.maps import LinearMap
from embridge.neighbours import top_k
from embridge.planning.advice import recommend
from embridge.planning.curve import learning_curve
from embridge.planning.record import Plan, PlannedStrategy
from embridge.planning.trial import REFERENCES, Ask, Outcome, Resampler, Trial
from embridge.retrieval import blend, carry
from embridge.translators import calibrate, fit
from embridge.types import Metric

if TYPE_CHECKING:
    import torch

WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)
PERCENTS = (1, 5, 20)
_TUNING = 1000


def plan(
    shared: Anchors,
    *,
    queries: Anchors | None = None,
    qrels: Mapping[Any, Sequence[Any]] | None = None,
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
    first come from the half that is not asked, so every figure is out of sample and all queries count.

    Parameters
    ----------
    shared : Anchors
        Rows of both spaces: `anchors` of them are fitted on, all others are the corpus.
    queries : Anchors, optional
        Queries by both models. Default: rows of the corpus are the queries, and do not find themselves.
    qrels : mapping of query id to sequence of document ids, optional
        Then strategies are compared by recall@k, else by overlap@k with the new model's ranking. Overlap tells how near the new
        ranking is, not whether that is the better one.
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
        raise TooFewAnchorsError.held_out(k + 2, max(len(shared) - anchors, 0), len(shared))
    train = shared.sample(anchors, seed)
    corpus = shared.without(train.hashes())
    translation = fit(train, "auto", device=device)
    reverse = fit(train.reversed(), "auto", device=device)
    exclude = reference = None
    if queries is None:
        asked = corpus.sample(max_queries, seed)
        order = np.argsort(corpus.ids, kind="stable")
        exclude = order[np.searchsorted(corpus.ids, asked.ids, sorter=order)]
        reference = train.sample(REFERENCES, seed)
    else:
        asked = queries.sample(max_queries, seed)
    trial = Trial.of(corpus, asked, exclude, reference, qrels, k, seed, device)
    source, target = translation.source, translation.target
    translated = translation.apply(corpus.x)

    # name -> (queries, rows, metric, needs the old encoder, rows changed)
    ways: dict[str, tuple[Ask, np.ndarray, Metric, bool, int]] = {
        "keep-old": (lambda pairs, _: pairs.x, corpus.x, source.metric, True, 0),
        "translate-documents": (lambda pairs, _: pairs.y, translated, target.metric, False, len(corpus)),
        "translate-queries": (lambda pairs, _: reverse.apply(pairs.y), corpus.x, source.metric, False, 0),
        "re-encode": (lambda pairs, _: pairs.y, corpus.y, target.metric, False, len(corpus)),
    }
    weights = (0.5, 0.5)
    try:
        carry(asked.y[:1], translation, source)
    except MapError:  # L2 and no isometry: there is no way back to the old rows
        pass
    else:
        weights = tuple(_best_weight(trial, translation, 1 - half) for half in (0, 1))
        ways["adjoint"] = (lambda pairs, _: carry(pairs.y, translation, source), corpus.x, source.metric, False, 0)
        ways["blend"] = (
            lambda pairs, half: blend(pairs.x, carry(pairs.y, translation, source), weights[half]),
            corpus.x, source.metric, True, 0,
        )  # fmt: skip
    hubness = [False] if Metric.L2 in (source.metric, target.metric) else [False, True]
    ways["re-encode"] = ways.pop("re-encode")  # last in the table
    total = len(ways) * len(hubness) + len(PERCENTS) * len(hubness) + 2
    done: list[tuple[str, bool, Outcome, int, int, bool, bool]] = []
    found: dict[tuple[str, bool], np.ndarray] = {}

    def add(name: str, corrected: bool, ids: np.ndarray, changed: int, encodes: int, old: bool, texts: bool) -> None:
        done.append((name, corrected, trial.outcome(ids), changed, encodes, old, texts))
        if progress is not None:
            progress(len(done), total)

    for name, (ask, rows, metric, old, changed) in ways.items():
        for corrected in hubness:
            ids = found[name, corrected] = trial.search(ask, rows, metric, hubness=corrected)
            add(name, corrected, ids, changed, len(corpus) if name == "re-encode" else 0, old, name == "re-encode")
    for name, first in (("lazy-re-encode", "translate-documents"), ("lazy-re-encode-blend", "blend")):
        if first in ways:
            corrected = max(hubness, key=lambda flag: float(trial.outcome(found[first, flag]).candidates.mean()))
            ids = found[first, corrected]
            add(name, corrected, trial.rerank(ids), ways[first][4], len(np.unique(ids)), ways[first][3], True)
    orders = _orders(trial, translation, train, found["translate-documents", False], queries is None, seed)
    for percent in PERCENTS:
        count = max(1, round(len(corpus) * percent / 100))
        mixed = []
        for order in orders:
            rows = translated.copy()
            rows[order[:count]] = corpus.y[order[:count]]
            mixed.append(rows)
        for corrected in hubness:
            ids = trial.search(lambda pairs, _: pairs.y, mixed, target.metric, hubness=corrected)
            add(f"re-encode-{percent}%", corrected, ids, len(corpus), count, False, True)

    strategies = _strategies(trial, done, encode_rate, price, seed)
    return Plan(
        k, len(asked), int(trial.judged.sum()), len(corpus), len(train), translation.record.method, float(np.mean(weights)),
        strategies, recommend(strategies, trial.judged.any()), learning_curve(translation, train, trial),
    )  # fmt: skip


def _best_weight(trial: Trial, translation: LinearMap, half: int) -> float:
    """The weight nearest to 0.5 that one half of the queries cannot tell from the best (one standard error, paired)."""
    members = np.flatnonzero(trial.half == half)[:_TUNING]
    if len(members) < 50:
        return 0.5
    asked = trial.asked.at(members)
    small = Trial(
        trial.corpus, asked, None if trial.exclude is None else trial.exclude[members], None, trial.half[members],
        [trial.relevant[m] for m in members], trial.k, trial.device,
    )  # fmt: skip
    carried = carry(asked.y, translation, translation.source)
    weights = sorted(WEIGHTS, key=lambda w: (abs(w - 0.5), w))
    scores = []
    for weight in weights:
        vectors = blend(asked.x, carried, weight)
        ids = top_k(vectors, small.corpus.x, small.k, translation.source.metric, exclude=small.exclude, device=small.device).ids
        scores.append(small.measure(small.outcome(ids)))
    table = np.array(scores)
    deficits = table[np.argmax(table.mean(1))] - table
    errors = deficits.std(1, ddof=1) / np.sqrt(table.shape[1])
    return weights[int(np.flatnonzero(deficits.mean(1) <= errors)[0])]


def _orders(trial: Trial, translation: LinearMap, train: Anchors, found: np.ndarray, by_error: bool, seed: int) -> list[np.ndarray]:
    """For each half, rows in the order in which to re-encode them.

    Those that the other half's queries reach most often come first; where rows are the queries, those of the largest predicted
    error do, as far as there are rows to calibrate on.
    """
    n = len(trial.corpus)
    if by_error:
        try:
            confidence = calibrate(translation, train, trial.corpus.sample(1000, seed), seed=seed).confidence
        except TooFewAnchorsError:
            confidence = None
        if confidence is not None:
            order = np.argsort(-confidence.predict(trial.corpus.x), kind="stable")
            return [order, order]
    reached = [np.bincount(found[trial.half != half].ravel(), minlength=n) for half in (0, 1)]
    return [np.argsort(-counts, kind="stable") for counts in reached]


def _strategies(
    trial: Trial, done: list[tuple[str, bool, Outcome, int, int, bool, bool]], rate: float | None, price: float | None, seed: int
) -> tuple[PlannedStrategy, ...]:
    every, judged = Resampler(len(trial.asked), seed), Resampler(int(trial.judged.sum()), seed)
    compared = judged if trial.judged.any() else every
    base = {name: trial.measure(outcome) for name, corrected, outcome, *_ in done if not corrected}
    keep, gap = base["keep-old"], float(base["re-encode"].mean() - base["keep-old"].mean())
    out = []
    for name, corrected, outcome, changed, encodes, old, texts in done:
        gain = trial.measure(outcome) - keep
        has = bool(trial.judged.any())
        out.append(
            PlannedStrategy(
                name,
                corrected,
                float(outcome.overlap.mean()),
                every.interval(outcome.overlap),
                float(outcome.candidates.mean()),
                float(outcome.recall.mean()) if has else None,
                judged.interval(outcome.recall) if has else None,
                float(outcome.ranks.mean()) if has else None,
                float(gain.mean()),
                compared.interval(gain),
                float(gain.mean()) / gap if gap > 0 else None,
                changed,
                encodes,
                encodes / rate if rate else None,
                encodes * price if price else None,
                old,
                texts,
            )
        )
    return tuple(out)
