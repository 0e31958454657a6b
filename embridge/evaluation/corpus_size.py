"""Overlap as a function of corpus size, with a prediction for a larger corpus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embridge.evaluation.benchmark import Benchmark
from embridge.evaluation.bootstrap import resampled_means
from embridge.evaluation.runner import Runner
from embridge.evaluation.strategies import StrategyRun
from embridge.neighbors import overlap
from embridge.records import CorpusSize

SIZED = ("keep-old", "translate-documents", "project-queries", "project-queries-adjoint", "blend")
_HALVINGS = 5
_LEAST_ROWS = 50  # at least 2 k, else a large share is found by chance
_LEAST_SIZES = 4  # to fit three unknowns
_POWERS = np.linspace(0.1, 1.5, 29)
_FORMULA = 0.025  # half-width of the formula's own error, for each doubling beyond the corpus


def extrapolate(sizes: np.ndarray, values: np.ndarray, ahead: Sequence[int]) -> np.ndarray:
    """``a + b n^-c`` by least squares, b >= 0 and c on a grid.

    Parameters
    ----------
    sizes : ndarray of shape (n_sizes,)
        Ascending, at least three.
    values : ndarray of shape (n_sizes,) or (n_draws, n_sizes)
        In [0, 1].
    ahead : sequence of int

    Returns
    -------
    ndarray of shape (n_ahead,) or (n_draws, n_ahead)
        Within [0, last value]; the last value where nothing fits.
    """
    table = np.atleast_2d(values)
    last = table[:, -1:]
    best, error = np.repeat(last, len(ahead), 1), np.full(len(table), np.inf)
    for c in _POWERS:
        design = np.stack([np.ones(len(sizes)), sizes.astype(float) ** -c], 1)
        found, *_ = np.linalg.lstsq(design, table.T, rcond=None)
        residual = np.square(design @ found - table.T).sum(0)
        better = (residual < error) & (found[1] >= 0) & (found[0] >= 0)
        error[better] = residual[better]
        best[better] = (found[0][:, None] + found[1][:, None] * np.array(ahead, float) ** -c)[better]
    best = np.clip(best, 0.0, last)
    return best if values.ndim > 1 else best[0]


def parts_of(benchmark: Benchmark) -> list[Benchmark]:
    """Nested parts of a benchmark: 1/32 to 1/2 of its corpus, none under 50 or 2 k rows."""
    rows = len(benchmark.corpus)
    sizes = [n for i in range(_HALVINGS, 0, -1) if (n := rows >> i) >= max(_LEAST_ROWS, 2 * benchmark.k)]
    return [benchmark.part(n) for n in sizes]


def corpus_sizes(
    runner: Runner, run: StrategyRun, parts: Sequence[Benchmark], corpus_size: int | None, seed: int
) -> list[CorpusSize]:
    """Overlap of a strategy in parts of the corpus and in all of it, and a prediction for a larger one.

    The prediction is ``a + b n^-c`` fitted to the measured sizes, chosen among six formulas (constant, linear and quadratic in
    log n, linear in log and in logit of the overlap) for the smallest error. Its interval is that of resampled queries, with
    0.025 for each doubling beyond the corpus added in quadrature. It does not cover rows of another kind than those of the
    corpus, or a change of the map; it was checked up to 16 times the corpus and to 20,000 rows (CONTRIBUTING).

    Parameters
    ----------
    runner : Runner
    run : StrategyRun
        Of the strategy in the whole corpus, without hubness correction.
    parts : sequence of Benchmark
        Of `parts_of`.
    corpus_size : int or None
        A prediction is made where it is above the rows of the corpus and there are at least four sizes.
    seed : int
    """
    strategy, corpus_rows = run.strategy, len(runner.benchmark.corpus)
    vectors, rows = runner.vectors(strategy.queries), runner.rows(strategy.rows)
    metric = runner.metric(strategy)
    columns = []
    for part in parts:
        found = part.search(vectors, rows[: len(part.corpus)], metric, k=part.k)
        columns.append(overlap(found, part.truth))
    values = np.stack([*columns, run.scores.overlap], 1)
    sizes = [*(len(part.corpus) for part in parts), corpus_rows]
    drawn = resampled_means(values, seed=seed)
    edges = np.quantile(drawn, [0.025, 0.975], axis=0)
    measured = [
        CorpusSize(strategy.name, n, float(mean), (float(low), float(high)), forecast=False)
        for n, mean, low, high in zip(sizes, values.mean(0), *edges, strict=True)
    ]
    if corpus_size is None or corpus_size <= corpus_rows or len(sizes) < _LEAST_SIZES:
        return measured
    means = np.concatenate([values.mean(0)[None], drawn])
    forecast = extrapolate(np.array(sizes), means, (corpus_size,))[:, 0]
    middle, (low, high) = float(forecast[0]), np.quantile(forecast[1:], [0.025, 0.975])
    own = _FORMULA * np.log2(corpus_size / corpus_rows)
    top = measured[-1].overlap_ci[1]  # overlap was never observed to rise again
    interval = (max(0.0, float(middle - np.hypot(middle - low, own))), min(top, float(middle + np.hypot(high - middle, own))))
    return [*measured, CorpusSize(strategy.name, corpus_size, middle, interval, forecast=True)]
