"""Outcomes by query as figures: means with intervals, by label, and beside another map's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embridge.evaluation.intervals import bootstrap_intervals
from embridge.evaluation.judgements import Outcome, members_of
from embridge.records import Difference, LabelStrategy, PerQuery, Strategy

_JUDGED = {"recall": "recall", "mrr": "ranks", "ndcg": "ndcg"}

Outcomes = Mapping[str, Outcome]


def figures_of(outcomes: Outcomes, seed: int) -> tuple[Strategy, ...]:
    """Figures of every strategy over all queries."""
    means = _means(outcomes, slice(None), slice(None), seed)
    return tuple(
        Strategy(name, candidate_recall=float(outcomes[name].candidates.mean()), **figures) for name, figures in means.items()
    )


def by_label(outcomes: Outcomes, labels: Sequence[Any], judged: np.ndarray, seed: int) -> tuple[LabelStrategy, ...]:
    """Figures of every strategy over the queries of each label, labels in order."""
    found = []
    members = members_of(labels)
    place = np.cumsum(judged) - 1  # of a query among the judged ones
    for label in sorted(members, key=lambda label: (isinstance(label, str), label)):
        rows = members[label]
        mine = rows[judged[rows]]
        for name, figures in _means(outcomes, rows, place[mine], seed).items():
            found.append(LabelStrategy(label, name, len(rows), judged=len(mine), **figures))
    return tuple(found)


def differences(outcomes: Outcomes, others: Outcomes, seed: int) -> tuple[Difference, ...]:
    """Each strategy minus the same through another map, paired by query."""
    gains = {
        name: Outcome(**{field: values - getattr(other, field) for field, values in vars(outcomes[name]).items()})
        for name, other in others.items()
    }
    return tuple(
        Difference(name, metric, figures[metric], figures[f"{metric}_ci"])
        for name, figures in _means(gains, slice(None), slice(None), seed).items()
        for metric in ("overlap", *_JUDGED)
        if metric in figures
    )


def per_query(ids: np.ndarray, labels: list[Any], outcomes: Outcomes, judged: np.ndarray) -> PerQuery:
    """Every figure by query."""

    def spread(values: np.ndarray) -> np.ndarray:
        out = np.full(len(ids), np.nan)
        out[judged] = values
        return out

    figures = {
        name: {
            "overlap": one.overlap,
            "candidate_recall": one.candidates,
            "recall": spread(one.recall),
            "reciprocal_rank": spread(one.ranks),
            "ndcg": spread(one.ndcg),
        }
        for name, one in outcomes.items()
    }
    return PerQuery(ids, labels, figures)


def _means(outcomes: Outcomes, rows: Any, judged: Any, seed: int) -> dict[str, dict[str, Any]]:
    """Means and intervals of some queries and of some of the judged ones, by strategy and field of its record.

    Columns of all strategies are resampled together, which is what makes it cheap.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in outcomes}
    for metrics, chosen in (({"overlap": "overlap"}, rows), (_JUDGED, judged)):
        keys = [(name, metric) for name in outcomes for metric in metrics]
        if not keys:
            continue
        values = np.stack([getattr(outcomes[name], metrics[metric])[chosen] for name, metric in keys], 1)
        if not len(values):
            continue
        for (name, metric), mean, edges in zip(keys, values.mean(0), bootstrap_intervals(values, seed=seed), strict=True):
            found[name] |= {metric: float(mean), f"{metric}_ci": edges}
    return found
