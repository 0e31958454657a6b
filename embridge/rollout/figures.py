"""All figures of a stage: its status, and the counts that order its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from embridge.indexes.fusion import Fusion
from embridge.records.rollout import RolloutScore, RolloutStage, RolloutStatus
from embridge.rollout.forecast import Curve, forecast, plain_recall, reached, simulated
from embridge.rollout.maps import MOST_HELD_OUT
from embridge.rollout.quality import (
    CHOOSING,
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


@dataclass(frozen=True, eq=False)
class Figures:
    """The status of a stage, the points of its forecast, and how many queries of each half reach every row, shape (2, n)."""

    status: RolloutStatus
    curve: tuple[tuple[float, float], ...]
    reach: np.ndarray


def measure(stage: Stage, number: int, seed: int, *, curve: Curve, history: tuple[RolloutStage, ...], handed: int) -> Figures:
    """Measure a stage.

    Parameters
    ----------
    stage : Stage
        Its rows, maps and queries are written.
    number : int
        Of the stage.
    seed : int
    curve : sequence of (float, float)
        Points of earlier stages measured on the same queries; empty: earlier stages are simulated.
    history : tuple of RolloutStage
        Earlier stages.
    handed : int
    """
    native, rows = int(stage.native.sum()), len(stage.new)
    status = RolloutStatus(rows, native, number, DEFAULT.weight, str(DEFAULT.hubness), handed=handed, history=history)
    if stage.queries is None:
        return _finished(status, stage, (), density_of(stage, seed))
    logged = Logged.of(stage.queries, stage.qrels, stage.new, seed)
    found = search_stage(stage, logged)
    chosen, alone = found.chosen(found.both), found.chosen(found.alone)
    stage.__dict__["reach"] = reach = reach_of(found, chosen, rows)
    held_out = stage.native_sample(MOST_HELD_OUT, held_out=True, seed=seed)
    status = replace(
        status,
        weight=chosen.weight,
        hubness=str(chosen.hubness),
        new_queries_weight=alone.weight,
        new_queries_hubness=str(alone.hubness),
        queries=len(stage.queries),
        judged=int(logged.judged[logged.half == REPORTED].sum()),
        held_out=len(held_out),
        **_scores(stage, found, chosen, alone, held_out, seed),
    )
    compared, models_rows, models_judged = compare_models(stage, logged, seed)
    status = replace(status, new_model=compared, new_model_rows=models_rows, new_model_judged=models_judged)
    points = list(curve)
    if all(logged.judged[logged.half == half].any() for half in (CHOOSING, REPORTED)):
        points = points or simulated(stage, logged, seed)
        points.append((reached(reach, stage.native), plain_recall(found)))
    return _finished(status, stage, tuple(points), reach)


def _scores(stage: Stage, found: Found, chosen: Fusion, alone: Fusion, held_out: np.ndarray, seed: int) -> dict[str, RolloutScore]:
    """Scores of the ways of searching, on the reported half of the queries."""
    both, new = found.both[REPORTED], found.alone[REPORTED]
    fusions = {"keep_old": Fusion(0.0), "now": chosen, "new_queries": alone, "new_space": Fusion(1.0)}
    shares = overlaps(stage, found.logged, fusions, held_out)
    recalls = {name: found.recall(new if name == "new_queries" else both, REPORTED, fusion) for name, fusion in fusions.items()}
    return {name: score(recall, recalls["keep_old"], shares[name], seed) for name, recall in recalls.items()}


def _finished(status: RolloutStatus, stage: Stage, curve: tuple[tuple[float, float], ...], reach: np.ndarray) -> Figures:
    """The figures with their forecasts."""
    return Figures(replace(status, forecast=forecast(curve, status, reach, stage.native)), curve, reach)
