"""All figures of a stage: its status, and the counts that order its rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from embridge.indexes.fusion import Fusion
from embridge.records.rollout import RolloutScore, RolloutStage, RolloutStatus
from embridge.rollout.forecast import forecast
from embridge.rollout.maps import MOST_HELD_OUT
from embridge.rollout.quality import (
    DEFAULT,
    REPORTED,
    Found,
    Logged,
    compare_models,
    density_of,
    overlaps,
    reach_of,
    score,
    search_stage,
)
from embridge.rollout.stage import Stage


def measure(
    stage: Stage, number: int, seed: int, *, history: tuple[RolloutStage, ...], handed: int
) -> tuple[RolloutStatus, np.ndarray]:
    """Measure a stage.

    Parameters
    ----------
    stage : Stage
        Its rows, maps and queries are written.
    number : int
        Of the stage.
    seed : int
    history : tuple of RolloutStage
        Earlier stages.
    handed : int

    Returns
    -------
    RolloutStatus
    reach : ndarray of int32, shape (2, n)
        How many queries of each half reach every row.
    """
    native, rows = int(stage.native.sum()), len(stage.new)
    status = RolloutStatus(rows, native, number, DEFAULT.weight, str(DEFAULT.hubness), handed=handed, history=history)
    if stage.queries is None:
        reach = density_of(stage, seed)
        return replace(status, forecast=forecast(status, reach, stage.ties, stage.native)), reach
    logged = Logged.of(stage.queries, stage.qrels, stage.new, seed)
    found = search_stage(stage, logged)
    chosen, alone = found.chosen(found.both), found.chosen(found.alone)
    reach = reach_of(found, chosen, rows)
    held_out = stage.native_sample(MOST_HELD_OUT, held_out=True, seed=seed)
    compared, models_rows, models_judged = compare_models(stage, logged, seed)
    status = replace(
        status,
        weight=chosen.weight,
        hubness=str(chosen.hubness),
        new_queries_weight=alone.weight,
        new_queries_hubness=str(alone.hubness),
        queries=len(stage.queries),
        judged=int(logged.judged[logged.half == REPORTED].sum()),
        held_out=len(held_out),
        new_model=compared,
        new_model_rows=models_rows,
        new_model_judged=models_judged,
        **_scores(stage, found, chosen, alone, held_out, reach, seed),
    )
    return replace(status, forecast=forecast(status, reach, stage.ties, stage.native)), reach


def _scores(
    stage: Stage, found: Found, chosen: Fusion, alone: Fusion, held_out: np.ndarray, reach: np.ndarray, seed: int
) -> dict[str, RolloutScore]:
    """Scores of the ways of searching, on the reported half of the queries."""
    both, new = found.both[REPORTED], found.alone[REPORTED]
    fusions = {"keep_old": Fusion(0.0), "now": chosen, "new_queries": alone, "new_space": Fusion(1.0)}
    shares = overlaps(stage, found.logged, fusions, held_out, reach)
    recalls = {name: found.recall(new if name == "new_queries" else both, REPORTED, fusion) for name, fusion in fusions.items()}
    return {name: score(recall, recalls["keep_old"], shares[name], seed) for name, recall in recalls.items()}
