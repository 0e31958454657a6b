"""What the catalog keeps of evaluations and plans: rows of its tables, made of records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embridge.records import CostedScore, Evaluation, LabelScore, Plan, StrategyScore


def facts_of_evaluation(found: Evaluation, run: int) -> Iterator[tuple[str, list[Any]]]:
    """Table and values of every row that an evaluation makes."""
    for s in found.strategies:
        values = [run, found.map, s.name, found.k, found.queries, found.corpus, found.judged]
        values += [s.overlap, *s.overlap_ci, s.recall, s.mrr, found.mean_cosine, found.relative_residual]
        values += [s.candidate_recall, *_edges(s.recall_ci), *_edges(s.mrr_ci)]
        yield "evaluation", [*values, s.ndcg, *_edges(s.ndcg_ci)]
    for one in found.by_label:
        values = [run, found.map, one.strategy, str(one.label), one.queries, one.judged, one.overlap, *one.overlap_ci]
        yield "evaluation_label", [*values, *_judged(one)]
    for size in found.sizes:
        values = [run, found.map, size.strategy, size.corpus, size.overlap, *size.overlap_ci, size.forecast]
        yield "evaluation_size", values
    for d in found.differences:
        values = [run, found.map, found.against, d.strategy, d.metric, d.difference, *d.difference_ci]
        yield "evaluation_difference", values


def facts_of_plan(found: Plan, run: int) -> Iterator[tuple[str, list[Any]]]:
    """Table and values of every row that a plan makes."""
    whole = [found.method, found.anchors, found.k, found.queries, found.corpus, found.judged]
    for s in found.strategies:
        values = [run, s.title, s.name, s.hubness, *whole, s.overlap, *s.overlap_ci, s.candidate_recall, *_judged(s)]
        values += [s.gain, *s.gain_ci, s.recovered, s.rows_changed, s.encodes, s.seconds, s.cost]
        yield "plan", [*values, s.needs_old_encoder, s.needs_texts]
    for situation, one in found.recommendations.items():
        yield "recommendation", [run, situation, one.strategy, one.reason]
    curve = found.learning_curve
    for anchors, overlap in zip(curve.anchors, curve.overlap, strict=True):
        yield "learning_curve", [run, anchors, overlap, None, None, False]
    for anchors, overlap, edges in zip(curve.forecast_anchors, curve.forecast, curve.forecast_ci, strict=True):
        yield "learning_curve", [run, anchors, overlap, *edges, True]


def _judged(one: StrategyScore | LabelScore | CostedScore) -> list[float | None]:
    """Recall, MRR and nDCG, each with its interval."""
    pairs = ((one.recall, one.recall_ci), (one.mrr, one.mrr_ci), (one.ndcg, one.ndcg_ci))
    return [value for mean, interval in pairs for value in (mean, *_edges(interval))]


def _edges(interval: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return interval or (None, None)
