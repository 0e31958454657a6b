"""Every way of answering new-space queries side by side, on rows that the map was not fitted on.

Nothing is reported alone: each result stands beside the old model left as it is and beside re-encoding everything.
"""

from embridge.evaluation.figures import figures_of
from embridge.evaluation.growth import extrapolate
from embridge.evaluation.intervals import FEW, bootstrap_interval, bootstrap_intervals, hoeffding, resampled_means
from embridge.evaluation.judgements import (
    DEPTH,
    Outcome,
    Qrels,
    candidate_depth,
    judge,
    judgements,
    labels_of_queries,
    members_of,
    ndcg,
    outcome_of,
    positions_of,
)
from embridge.evaluation.measure import check_confidence, evaluate
from embridge.evaluation.strategies import corrected

__all__ = [
    "DEPTH",
    "FEW",
    "Outcome",
    "Qrels",
    "bootstrap_interval",
    "bootstrap_intervals",
    "candidate_depth",
    "check_confidence",
    "corrected",
    "evaluate",
    "extrapolate",
    "figures_of",
    "hoeffding",
    "judge",
    "judgements",
    "labels_of_queries",
    "members_of",
    "ndcg",
    "outcome_of",
    "positions_of",
    "resampled_means",
]
