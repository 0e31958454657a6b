"""`evaluate`: run every strategy on rows that the map was not fitted on, and score its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embridge.anchors import Anchors
from embridge.arrays import as_vectors, check_rows, unit
from embridge.errors import ParameterError, SpaceMismatchError, TooFewAnchorsError
from embridge.evaluation.benchmark import Benchmark, References
from embridge.evaluation.corpus_size import SIZED, corpus_sizes, parts_of
from embridge.evaluation.metrics import Qrels, labels_of_queries
from embridge.evaluation.runner import Runner
from embridge.evaluation.scores import by_label, differences, per_query, strategy_scores
from embridge.evaluation.strategies import FUSED, STRATEGIES, Maps, Rows, Strategy, StrategyRun
from embridge.maps import Map
from embridge.maps.confidence import translation_errors
from embridge.neighbors import check_k
from embridge.records import ConfidenceCheck, CorpusSize, Evaluation
from embridge.types import Metric, space_mismatch

if TYPE_CHECKING:
    import torch

_LEAST_ROWS = 50  # to check predicted errors on
_CHUNK = 8192


def evaluate(
    translation: Map,
    held_out: Anchors,
    *,
    queries: Anchors | None = None,
    qrels: Qrels | None = None,
    reverse_map: Map | None = None,
    k: int = 10,
    weight: float | None = None,
    hubness: np.ndarray | None = None,
    labels: Mapping[Any, Any] | None = None,
    against: Map | None = None,
    corpus_size: int | None = None,
    max_queries: int = 5000,
    seed: int = 0,
    device: str | torch.device | None = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compare a map with keeping the old index and with re-encoding everything.

    Parameters
    ----------
    translation : LinearMap or KernelMap
    held_out : Anchors
        Rows of both spaces. Rows that a map was fitted on are left out, so all matched rows may be given.
    queries : Anchors, optional
        Queries by both models. Default: rows of the corpus are the queries. A query that is a row (same id, same vector) does not
        find itself.
    qrels : mapping of query id to sequence of document ids, or to mapping of document id to grade, optional
        Relevance judgments, for recall@k, MRR@k and nDCG@k. Only relevant documents (grade above 0) in the corpus count,
        and only queries that have one; `Evaluation.qrels` has the counts.
    reverse_map : LinearMap or KernelMap, optional
        A map from the target space to the source space, fitted on reversed anchors: adds ``project-queries``.
    k : int, default 10
    weight : float, optional
        Weight of the projected query in the blend. Default: for each half of the queries the weight from 0.3 to 0.7 nearest to 0.5
        that the other half cannot distinguish from the best; 0.5 where a half has fewer than 50 queries.
    hubness : ndarray of shape (n, dim_target), optional
        Reference queries of the target space, other than the queries themselves: adds ``+hubness`` to every strategy but
        ``keep-old``, in which each row's mean similarity to its 10 nearest of them is subtracted. Not under L2.
    labels : mapping of id to label, optional
        Strings or integers: scores of every strategy by label. A query has the label of the first of its relevant rows that has
        one, else its own.
    against : LinearMap or KernelMap, optional
        Another map between the same spaces: the paired difference to it of every strategy that depends on the map. Rows that
        either map was fitted on are left out.
    corpus_size : int, optional
        Rows of the collection that the map is for: where they are more than the corpus, overlap for that many rows is predicted.
    max_queries : int, default 5000
        Larger sets of queries are sampled, by `seed`.
    seed : int, default 0
    device : str, default "cpu"
    progress : callable, optional
        Called with (strategies done, strategies in all).

    Returns
    -------
    Evaluation
        Available strategies: ``keep-old`` (old queries, old rows), ``no-translation`` (new queries, old rows; equal widths),
        ``translate-documents``, ``project-queries`` (new queries by the reverse map, old rows), ``project-queries-adjoint``
        (new queries by the adjoint of the map, old rows), ``blend`` (old queries blended with those projected by the adjoint,
        old rows), ``fuse`` (rows scored by the old and the translated vector together, with queries of both models),
        ``fuse-projected`` (the same without the old encoder: its queries are those of ``project-queries``, or of
        ``project-queries-adjoint`` without a reverse map) and ``re-encode`` (new queries, new rows). The adjoint exists for
        affine maps, under L2 for isometries; fusions do not exist under L2. Progressive strategies need the anchors and are
        measured by `plan` only. Scores of each query are in `Evaluation.per_query`.

    Raises
    ------
    SpaceMismatchError
        Anchors, queries or the other maps are of other spaces than the map.
    TooFewAnchorsError
        At most k rows remain that no map was fitted on.
    ParameterError
        k or corpus_size out of range, hubness correction under L2, an infinite grade, judgments of no query or no row,
        or labels of none of the queries.
    BadVectorsError
        Reference queries with NaN or infinite values.
    """
    k = check_k(k)
    _check(translation, held_out, queries, reverse_map, against, corpus_size)
    rows = _unseen(held_out, [m for m in (translation, reverse_map, against) if m is not None], k)
    benchmark = Benchmark.of(
        rows, queries, k, qrels=qrels, references=_references(hubness, translation), max_queries=max_queries, seed=seed,
        device=device,
    )  # fmt: skip
    known: list[Any] = [None] * len(benchmark.queries)
    if labels is not None:
        known = labels_of_queries(benchmark.queries.ids, benchmark.relevant, benchmark.corpus.ids, labels)
    runner = Runner(benchmark, Maps(translation, reverse_map), weight, hubness=hubness is not None)
    todo = _todo(runner, hubness is not None)
    other = None if against is None else Runner(benchmark, Maps(against, reverse_map), weight, hubness=hubness is not None)
    compared = [] if other is None else _shared(todo, _todo(other, hubness is not None))
    done, total = 0, len(todo) + len(compared)
    runs: dict[str, StrategyRun] = {}
    others: dict[str, StrategyRun] = {}
    for engine, strategies, into in ((runner, todo, runs), (other or runner, compared, others)):
        for strategy, corrected in strategies:
            run = engine.run(strategy, hubness=corrected)
            into[run.title] = run
            done += 1
            if progress is not None:
                progress(done, total)
    return _evaluation(runner, runs, others, known, against, corpus_size, seed)


def _evaluation(
    runner: Runner, runs: Mapping[str, StrategyRun], others: Mapping[str, StrategyRun], labels: list[Any], against: Map | None,
    corpus_size: int | None, seed: int,
) -> Evaluation:  # fmt: skip
    """The record of the strategies' scores."""
    benchmark, maps = runner.benchmark, runner.maps[0]
    corpus, translated = benchmark.corpus, runner.rows(Rows.TRANSLATED)
    scores, compared = ({title: run.scores for title, run in each.items()} for each in (runs, others))
    parts = parts_of(benchmark)
    sizes: list[CorpusSize] = []
    for title in SIZED:
        if title in runs:
            sizes += corpus_sizes(runner, runs[title], parts, corpus_size, seed)
    cosines = np.einsum("ij,ij->i", unit(translated), unit(corpus.y))
    return Evaluation(
        k=benchmark.k,
        queries=len(benchmark.queries),
        corpus=len(corpus),
        strategies=strategy_scores(list(runs.values()), seed),
        mean_cosine=float(cosines.mean()),
        relative_residual=_relative_residual(translated, corpus.y),
        map=maps.translation.fingerprint,
        judged=int(benchmark.judged.sum()),
        confidence=check_confidence(maps.translation, corpus),
        by_label=by_label(scores, labels, benchmark.judged, seed),
        sizes=tuple(sizes),
        against="" if against is None else against.fingerprint,
        differences=differences(scores, compared, seed),
        per_query=per_query(benchmark.queries.ids, labels, scores, benchmark.judged),
        weight=float(np.mean(runner.weights)) if "blend" in runs else None,
        reverse_map="" if maps.reverse is None else maps.reverse.fingerprint,
        qrels=benchmark.coverage,
        own_rows=benchmark.own_rows,
    )


def _relative_residual(translated: np.ndarray, native: np.ndarray) -> float:
    """``||translated - native|| / ||native - mean(native)||``, in float64: squares of long rows overflow float32."""
    mean, residual, spread = native.mean(axis=0, dtype=np.float64), 0.0, 0.0
    for start in range(0, len(native), _CHUNK):
        rows = native[start : start + _CHUNK].astype(np.float64)
        residual += float(np.square(translated[start : start + _CHUNK] - rows).sum())
        spread += float(np.square(rows - mean).sum())
    return float(np.sqrt(residual / spread)) if spread else 0.0


def _todo(runner: Runner, hubness: bool) -> list[tuple[Strategy, bool]]:
    """Strategies, without and with hubness correction."""
    return [
        (strategy, corrected)
        for strategy in runner.available((*STRATEGIES, *FUSED))
        for corrected in (runner.corrections(strategy) if hubness else (False,))
    ]


def _shared(todo: Sequence[tuple[Strategy, bool]], others: Sequence[tuple[Strategy, bool]]) -> list[tuple[Strategy, bool]]:
    """Strategies that depend on the map and also exist for another map."""
    return [one for one in others if one in todo and one[0].uses_map]


def _unseen(held_out: Anchors, maps: Sequence[Map], k: int) -> Anchors:
    """The rows that no map was fitted on."""
    fitted = np.concatenate([translation.anchor_hashes for translation in maps])
    left = held_out.without(fitted)
    if len(left) <= k:
        raise TooFewAnchorsError.held_out(k + 1, len(left), len(held_out))
    return left


def _references(hubness: np.ndarray | None, translation: Map) -> References | None:
    if hubness is None:
        return None
    vectors = as_vectors(hubness, translation.target.dim, "reference queries")
    check_rows(vectors, range(len(vectors)), "reference queries", zero_is_bad=False)
    if Metric.L2 in (translation.source.metric, translation.target.metric):
        raise ParameterError("Hubness correction needs cosine or inner product, and a space of the map is measured by L2.")
    return References(vectors)


def _check(
    translation: Map, held_out: Anchors, queries: Anchors | None, reverse_map: Map | None, against: Map | None,
    corpus_size: int | None,
) -> None:  # fmt: skip
    source, target = translation.source, translation.target
    for what, pair in (("The map", held_out), ("The evaluation", queries)):
        if pair is None:
            continue
        for expected, found in ((source, pair.source), (target, pair.target)):
            if not expected.same_as(found):
                raise space_mismatch(what, expected, "the evaluation's data", found)
    if against is not None and not (source.same_as(against.source) and target.same_as(against.target)):
        raise SpaceMismatchError(
            f"The map translates {source.name!r} ({source.dim}) -> {target.name!r} ({target.dim}), the one to compare it with "
            f"{against.source.name!r} ({against.source.dim}) -> {against.target.name!r} ({against.target.dim}). "
            "Hint: compare maps between the same two spaces."
        )
    if reverse_map is not None and not (target.same_as(reverse_map.source) and source.same_as(reverse_map.target)):
        raise SpaceMismatchError(
            f"The reverse map translates {reverse_map.source.name!r} ({reverse_map.source.dim}) -> {reverse_map.target.name!r} "
            f"({reverse_map.target.dim}), but a map from {target.name!r} ({target.dim}) to {source.name!r} ({source.dim}) is "
            "needed. Hint: embridge fit --reverse-output MAP."
        )
    if corpus_size is not None and corpus_size < 1:
        raise ParameterError.must_be("corpus_size", "at least 1", corpus_size)


def check_confidence(translation: Map, rows: Anchors) -> ConfidenceCheck | None:
    """How well the map predicts errors, on the rows that it was not calibrated on; None without a confidence, or with few rows."""
    if (known := translation.confidence) is None:
        return None
    left = rows.without(known.hashes)
    if len(left) < _LEAST_ROWS:
        return None
    return known.check(left.x, translation_errors(translation.apply(left.x), left.y, translation.target))
