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
from embridge.evaluation.scores import strategy_scores
from embridge.evaluation.strategies import (
    ENCODING,
    FUSED,
    STRATEGIES,
    TRANSLATE_DOCUMENTS_KERNEL,
    Maps,
    Strategy,
    StrategyRun,
    percent_of,
    progressive,
)
from embridge.isotropy import Isotropy
from embridge.neighbors import check_k
from embridge.planning.descriptives import figures_by_label, norm_distributions
from embridge.planning.landmarks import landmark_costs
from embridge.planning.learning_curve import learning_curve
from embridge.planning.maps import fitted_maps
from embridge.planning.recommendation import recommend
from embridge.records import CostedScore, CurvePoint, LandmarkCost, LazyDepth, Plan, SpaceIsotropy

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
    budget: int | None = None,
    budget_money: float | None = None,
    max_queries: int = 5000,
    seed: int = 0,
    device: str | torch.device | None = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Compare every strategy on held-out rows, and recommend one for each situation.

    Queries are split into two halves: the maps, the weights of the blend and of fusions, the references of the hubness correction
    and the rows to re-encode first come from the other half, so every score is out of sample and all queries count. Maps are chosen
    by `Auto`, on real queries where there are at least 100 in each half, except those of ``-kernel``, which are `Kernel`.

    Progressive migration (``progressive-N%``) re-encodes the rows that most queries reach, fits the map again with these rows as
    further anchors, translates the others and searches both vectors of each row (`Fusion`). Fusions do not exist under L2. Without
    judgments they are measured, but not recommended: overlap with the new model's ranking counts the old model's neighbors, which
    a fusion keeps, as errors.

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
    budget : int, optional
        Rows that may be encoded, of those searched here: adds the recommendation ``budget``, and progressive migration at exactly
        this number of rows.
    budget_money : float, optional
        The same as an amount of money; needs `price`.
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
        k, anchors, encode_rate, price or a budget out of range, judgments of no query or no row, or labels of no query.
    TooFewAnchorsError
        Too few shared rows to fit on some and search more than k of the others.
    """
    k = check_k(k)
    for name, value in (("encode_rate", encode_rate), ("price", price), ("budget", budget), ("budget_money", budget_money)):
        if value is not None and not value > 0:
            raise ParameterError.must_be(name, "above 0", value)
    affordable = _rows_of(budget, budget_money, price)
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
    real = queries is not None and not (benchmark.exclude >= 0).all()
    maps = fitted_maps(train, benchmark, qrels, real=real, seed=seed, device=device)
    translation = maps[0].translation
    runner = Runner(benchmark, maps[0] if maps[0] is maps[1] else maps)
    runs = _run_all(runner, affordable, progress)
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
        recommendations=recommend(strategies, gains, judged=judged > 0, budget=affordable),
        learning_curve=learning_curve(translation, train, _reported(benchmark, maps)),
        source=translation.source,
        target=translation.target,
        norms=norm_distributions(benchmark.corpus, translation),
        labels=by_label,
        unlabelled=unlabelled,
        lazy_depths=_lazy_depths(runner),
        qrels=benchmark.coverage,
        own_rows=benchmark.own_rows,
        curve=_curve(strategies, ""),
        curve_projected=_curve(strategies, "-projected"),
        landmarks=_landmarks(runner, train, seed),
        isotropy=tuple(_isotropy(side.name, rows) for side, rows in ((shared.source, shared.x), (shared.target, shared.y))),
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


def _rows_of(budget: int | None, money: float | None, price: float | None) -> int | None:
    """The number of rows that a budget encodes."""
    if budget is not None and money is not None:
        raise ParameterError("Give a budget in rows or in money, not both.")
    if money is None:
        return budget
    if price is None:
        raise ParameterError("A budget in money needs the price of encoding one row. Hint: price=, --price.")
    return int(money / price * (1 + 1e-12))


def _reported(benchmark: Benchmark, maps: tuple[Maps, Maps]) -> Benchmark:
    """The benchmark of the queries that the first maps were not chosen on."""
    return benchmark if maps[0] is maps[1] else benchmark.at(np.flatnonzero(benchmark.half == 0))


def _run_all(runner: Runner, affordable: int | None, progress: Callable[[int, int], None] | None) -> list[StrategyRun]:
    todo: list[tuple[Strategy, bool]] = []
    for strategy in runner.available((*STRATEGIES, *ENCODING, *FUSED, *progressive(len(runner.benchmark.corpus), affordable))):
        todo += [(strategy, hubness) for hubness in runner.corrections(strategy)]
    runs = []
    for strategy, hubness in todo:
        runs.append(runner.run(strategy, hubness=hubness))
        if progress is not None:
            progress(len(runs), len(todo))
    return runs


def _landmarks(runner: Runner, train: Anchors, seed: int) -> tuple[LandmarkCost, ...]:
    kernel, benchmark = runner.maps[0].kernel, runner.benchmark
    if kernel is None:
        return ()
    return landmark_costs(kernel, runner.found(TRANSLATE_DOCUMENTS_KERNEL), train, benchmark, seed=seed, device=benchmark.device)


def _curve(strategies: Sequence[CostedScore], suffix: str) -> tuple[CurvePoint, ...]:
    """Points of progressive migration, from no row on."""
    found = []
    for s in strategies:
        percent = percent_of(s.name.removesuffix(suffix)) if s.name.endswith(suffix) else None
        if percent is not None and s.weight is not None and s.correction is not None:
            found.append(CurvePoint(percent, s.encodes, s.recall, s.recall_ci, s.overlap, s.overlap_ci, s.weight, s.correction))
    return tuple(sorted(found, key=lambda point: point.encodes))


def _isotropy(name: str, rows: np.ndarray) -> SpaceIsotropy:
    found = Isotropy(len(rows))
    found.add(rows)
    return SpaceIsotropy(name, rows.shape[1], found.mean_cosine, found.effective_rank)


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
    scores = strategy_scores(runs, seed)
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
