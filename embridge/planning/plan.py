"""`plan`: fit maps, run every strategy on rows that were not fitted on, and recommend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embridge.anchors import Anchors
from embridge.errors import ParameterError, TooFewAnchorsError
from embridge.evaluation.benchmark import REFERENCES, Benchmark, References
from embridge.evaluation.bootstrap import bootstrap_intervals
from embridge.evaluation.metrics import Qrels, labels_of_queries
from embridge.evaluation.runner import Runner
from embridge.evaluation.scores import mean_scores
from embridge.evaluation.strategies import ENCODING, STRATEGIES, Maps, Strategy, StrategyRun
from embridge.maps import LinearMap
from embridge.neighbors import check_k
from embridge.planning.descriptives import figures_by_label, norm_distributions
from embridge.planning.learning_curve import learning_curve
from embridge.planning.recommendation import recommend
from embridge.records import CostedScore, LazyDepth, Plan
from embridge.translators import Kernel, fit

if TYPE_CHECKING:
    import torch


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
    """Compare every strategy on held-out rows, and recommend one for each situation.

    Queries are split into two halves: the weight of the blend, the references of the hubness correction and the rows to re-encode
    first come from the other half, so every score is out of sample and all queries count. Maps are chosen by `Auto`, except
    ``translate-documents-kernel``, which uses `Kernel`.

    Parameters
    ----------
    shared : Anchors
        Rows of both spaces: maps are fitted on `anchors` of them; the others are the corpus.
    queries : Anchors, optional
        Queries by both models. Default: rows of the corpus are the queries. A query that is a row (same id, same vector) does not
        find itself.
    qrels : mapping of query id to sequence of document ids, or to mapping of document id to grade, optional
        Then strategies are compared by recall@k, else by overlap@k with the new model's ranking. Overlap measures the
        similarity to the new ranking, not whether that ranking is better.
    labels : mapping of id to label, optional
        Labels of queries, or of the documents relevant to them: then the plan has scores for each label.
    anchors : int, optional
        Default: half of the shared rows, at most 5,000.
    k : int, default 10
    encode_rate, price : float, optional
        Rows per second that the new model encodes, and the cost of encoding one row.
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
        k, anchors, encode_rate or price out of range, judgments of no query or no row, or labels of no query.
    TooFewAnchorsError
        Too few shared rows to fit on some and search more than k of the others.
    """
    k = check_k(k)
    for name, value in (("encode_rate", encode_rate), ("price", price)):
        if value is not None and not value > 0:
            raise ParameterError.must_be(name, "above 0", value)
    anchors = min(5000, len(shared) // 2) if anchors is None else anchors
    if len(shared) - anchors <= k + 1:
        raise TooFewAnchorsError(
            f"A plan needs at least {k + 2} shared rows besides its anchors. Of {len(shared):,} rows {anchors:,} are anchors. "
            "Hint: fewer --anchors (anchors=), a smaller -k, or more rows by both models."
        )
    train = shared.sample(anchors, seed)
    benchmark = _benchmark(shared.without(train.hashes()), train, queries, k, qrels, max_queries, seed, device)
    known = None
    if labels is not None:
        known = labels_of_queries(benchmark.queries.ids, benchmark.relevant, benchmark.corpus.ids, labels)
    maps, translation = _fit(train, seed, device)
    runner = Runner(benchmark, maps)
    runs = _run_all(runner, progress)
    measured = np.array([benchmark.measure(run.scores) for run in runs])
    gains = measured - measured[_place(runs, "keep-old")]
    strategies = _costed(runs, gains, encode_rate, price, seed)
    values = {run.title: row for run, row in zip(runs, measured, strict=True)}
    by_label, unlabelled = ((), None) if known is None else figures_by_label(benchmark, values, known)
    judged = int(benchmark.judged.sum())
    return Plan(
        k=k,
        queries=len(benchmark.queries),
        judged=judged,
        corpus=len(benchmark.corpus),
        anchors=len(train),
        method=translation.record.method,
        weight=float(np.mean(runner.weights)) if any(run.title == "blend" for run in runs) else 0.5,
        strategies=strategies,
        recommendations=recommend(strategies, gains, judged=judged > 0),
        learning_curve=learning_curve(translation, train, benchmark),
        source=translation.source,
        target=translation.target,
        norms=norm_distributions(benchmark.corpus, translation),
        labels=by_label,
        unlabelled=unlabelled,
        lazy_depths=_lazy_depths(runner),
        qrels=benchmark.coverage,
        own_rows=benchmark.own_rows,
    )


def _benchmark(
    rows: Anchors, train: Anchors, queries: Anchors | None, k: int, qrels: Qrels | None, max_queries: int, seed: int, device: Any
) -> Benchmark:
    """The benchmark of the rows that are not fitted on."""
    benchmark = Benchmark.of(rows, queries, k, qrels=qrels, max_queries=max_queries, seed=seed, device=device)
    if queries is None or len(np.unique(benchmark.half)) < 2:
        # Rows as queries would be their own references; with few queries one half may be empty.
        reference = train.sample(REFERENCES, seed)
        return replace(benchmark, references=References(reference.y, reference.x))
    return benchmark


def _fit(train: Anchors, seed: int, device: Any) -> tuple[Maps, LinearMap]:
    """The map of rows, the map of queries and the kernel map."""
    translation = fit(train, "auto", keep_affine=True, device=device)
    reverse = fit(train.reversed(), "auto", role="queries", keep_affine=True, device=device)
    shrinkage = {
        name: value for name, value in translation.record.parameters.items() if name in ("alpha", "shrinkage_target_weight")
    }
    kernel = fit(train, Kernel(**shrinkage, seed=seed), device=device)
    return Maps(translation, reverse, kernel), translation


def _run_all(runner: Runner, progress: Callable[[int, int], None] | None) -> list[StrategyRun]:
    todo: list[tuple[Strategy, bool]] = []
    for strategy in runner.available((*STRATEGIES, *ENCODING)):
        todo += [(strategy, hubness) for hubness in runner.corrections(strategy)]
    runs = []
    for strategy, hubness in todo:
        runs.append(runner.run(strategy, hubness=hubness))
        if progress is not None:
            progress(len(runs), len(todo))
    return runs


def _lazy_depths(runner: Runner) -> tuple[LazyDepth, ...]:
    """Lazy strategies at several depths."""
    found = []
    for strategy in runner.available(tuple(s for s in ENCODING if s.lazy)):
        for hubness in runner.corrections(strategy):
            for depth, run in runner.lazy_runs(strategy, hubness=hubness):
                recall = float(run.scores.recall.mean()) if len(run.scores.recall) else None
                found.append(LazyDepth(run.title, depth, run.encodes, float(run.scores.overlap.mean()), recall))
    return tuple(found)


def _place(runs: Sequence[StrategyRun], title: str) -> int:
    return next(i for i, run in enumerate(runs) if run.title == title)


def _costed(
    runs: Sequence[StrategyRun], gains: np.ndarray, rate: float | None, price: float | None, seed: int
) -> tuple[CostedScore, ...]:
    """Scores and costs of strategies; intervals are paired, since one seed resamples the same queries."""
    scores = mean_scores({run.title: run.scores for run in runs}, seed)
    intervals = bootstrap_intervals(gains.T, seed=seed)
    gap = float(gains[_place(runs, "re-encode")].mean())
    out = []
    for run, score, gain, interval in zip(runs, scores, gains.mean(axis=1).tolist(), intervals, strict=True):
        costed = CostedScore(
            **asdict(replace(score, name=run.strategy.name)),
            hubness=run.hubness,
            gain=gain,
            gain_ci=interval,
            recovered=gain / gap if gap > 0 else None,
            rows_changed=run.rows_changed,
            encodes=run.encodes,
            seconds=run.encodes / rate if rate else None,
            cost=run.encodes * price if price else None,
            needs_old_encoder=run.strategy.needs_old_encoder,
            needs_texts=run.strategy.needs_texts,
        )
        out.append(costed)
    return tuple(out)
