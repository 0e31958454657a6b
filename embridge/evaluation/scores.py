"""Means of scores by query, with intervals: over all queries, by label, and against another map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from embridge.evaluation.bootstrap import bootstrap_intervals
from embridge.evaluation.metrics import QueryScores, members_of
from embridge.evaluation.strategies import StrategyRun
from embridge.records import Difference, LabelScore, PerQuery, StrategyScore

_JUDGED = ("recall", "mrr", "ndcg")

Scores = Mapping[str, QueryScores]  # by strategy


def mean_scores(scores: Scores, seed: int) -> tuple[StrategyScore, ...]:
    """Scores of every strategy over all queries."""
    means = _means(scores, slice(None), slice(None), seed)
    return tuple(
        StrategyScore(name, candidate_recall=float(scores[name].candidates.mean()), **values) for name, values in means.items()
    )


def strategy_scores(runs: Sequence[StrategyRun], seed: int) -> tuple[StrategyScore, ...]:
    """Scores of every strategy over all queries, with what was chosen for fusions."""
    means = mean_scores({run.title: run.scores for run in runs}, seed)
    return tuple(
        score if run.fusion is None else replace(score, weight=run.fusion.weight, correction=str(run.fusion.hubness))
        for run, score in zip(runs, means, strict=True)
    )


def by_label(scores: Scores, labels: Sequence[Any], judged: np.ndarray, seed: int) -> tuple[LabelScore, ...]:
    """Scores of every strategy over the queries of each label, labels in order."""
    found = []
    members = members_of(labels)
    place = np.cumsum(judged) - 1  # of a query among the judged ones
    for label in sorted(members, key=lambda label: (isinstance(label, str), label)):
        rows = members[label]
        mine = rows[judged[rows]]
        for name, values in _means(scores, rows, place[mine], seed).items():
            found.append(LabelScore(label, name, len(rows), judged=len(mine), **values))
    return tuple(found)


def differences(scores: Scores, others: Scores, seed: int) -> tuple[Difference, ...]:
    """Each strategy minus the same through another map, paired by query."""
    gains = {
        name: QueryScores(**{field: values - getattr(other, field) for field, values in vars(scores[name]).items()})
        for name, other in others.items()
    }
    return tuple(
        Difference(name, metric, values[metric], values[f"{metric}_ci"])
        for name, values in _means(gains, slice(None), slice(None), seed).items()
        for metric in ("overlap", *_JUDGED)
        if metric in values
    )


def per_query(ids: np.ndarray, labels: list[Any], scores: Scores, judged: np.ndarray) -> PerQuery:
    """Every score by query."""

    def spread(values: np.ndarray) -> np.ndarray:
        out = np.full(len(ids), np.nan)
        out[judged] = values
        return out

    figures = {
        name: {
            "overlap": one.overlap,
            "candidate_recall": one.candidates,
            "recall": spread(one.recall),
            "reciprocal_rank": spread(one.mrr),
            "ndcg": spread(one.ndcg),
        }
        for name, one in scores.items()
    }
    return PerQuery(ids, labels, figures)


def _means(scores: Scores, rows: Any, judged: Any, seed: int) -> dict[str, dict[str, Any]]:
    """Means and intervals of some queries and of some of the judged ones, by strategy and field of its record.

    Columns of all strategies are resampled together, which is faster.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in scores}
    for metrics, chosen in ((("overlap",), rows), (_JUDGED, judged)):
        keys = [(name, metric) for name in scores for metric in metrics]
        if not keys:
            continue
        values = np.stack([getattr(scores[name], metric)[chosen] for name, metric in keys], 1)
        if not len(values):
            continue
        for (name, metric), mean, edges in zip(keys, values.mean(0), bootstrap_intervals(values, seed=seed), strict=True):
            found[name] |= {metric: float(mean), f"{metric}_ci": edges}
    return found
