"""Kernel maps with fewer landmarks: their quality, and what converting with them costs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.evaluation.benchmark import Benchmark
from embridge.evaluation.rows import translate
from embridge.maps import KernelMap
from embridge.records import LandmarkCost
from embridge.translators import Kernel
from embridge.translators.select import one_standard_error

_COUNTS = (500, 1_500, 5_000)
_TIMED = 4096  # rows


def landmark_costs(
    kernel: KernelMap, candidates: np.ndarray, train: Anchors, benchmark: Benchmark, *, seed: int, device: Any
) -> tuple[LandmarkCost, ...]:
    """Translated rows by 500, 1,500 and 5,000 landmarks, searched by all queries.

    Parameters
    ----------
    kernel : KernelMap
        With the most landmarks; the others are fitted with its parameters.
    candidates : ndarray of int64, shape (n_queries, depth)
        Rows translated by it that each query finds, best first.
    train : Anchors
        That it was fitted on.
    benchmark : Benchmark
    seed : int
    device : str

    Returns
    -------
    tuple of LandmarkCost
        Fewest landmarks first. One is marked: the fewest whose score is within one standard error of the best.
    """
    chosen = kernel.record.parameters
    fixed = {name: chosen[name] for name in ("penalty", "alpha", "shrinkage_target_weight")}
    most = len(kernel.landmarks)
    moments = train.moments(device, full=False)
    measured, out = [], []
    for count in sorted({min(count, most) for count in _COUNTS}):
        fitted, found = kernel, candidates
        if count < most:
            method = Kernel(landmarks=count, seed=seed, mean_weight=chosen.get("mean_weight", 1.0), **fixed)
            fitted = method.fit(train, device=device, moments=moments)
            rows = translate(fitted, benchmark.corpus.x)
            found = benchmark.search(benchmark.queries.y, rows, benchmark.corpus.target.metric, k=benchmark.k)
        scores = benchmark.scores(found)
        measured.append(benchmark.measure(scores))
        recall = float(scores.recall.mean()) if len(scores.recall) else None
        out.append(LandmarkCost(count, float(scores.overlap.mean()), recall, _seconds(fitted, benchmark.corpus.x[:_TIMED])))
    table = np.array(measured)
    enough = one_standard_error(table)[0] if table.shape[1] > 1 else len(out) - 1  # one query has no standard error
    return tuple(replace(one, is_enough=number == enough) for number, one in enumerate(out))


def _seconds(translation: KernelMap, rows: np.ndarray) -> float:
    """Seconds to translate a million rows on the CPU: the faster of two runs over a few."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        translation.apply(rows)
        times.append(time.perf_counter() - started)
    return min(times) / len(rows) * 1e6
