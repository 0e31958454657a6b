"""How overlap falls as the corpus grows, and where it would be in a larger one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from embridge.anchors import Anchors
from embridge.evaluation.intervals import resampled_means
from embridge.evaluation.strategies import Way
from embridge.neighbors import overlap, top_k
from embridge.records import CorpusSize

SIZED = ("keep-old", "translate-documents", "translate-queries", "blend")
_HALVINGS = 5
_LEAST_ROWS = 50  # 2 k of them at least, else a large share is found by chance
_LEAST_SIZES = 4  # to fit three unknowns
_POWERS = np.linspace(0.1, 1.5, 29)
_FORMULA = 0.025  # half of the interval that the formula itself is worth, for each doubling beyond the corpus


class Subset(NamedTuple):
    """The first rows of a corpus in random order: how many, whom each query may not find, its native neighbours among them."""

    rows: int
    exclude: np.ndarray | None
    truth: np.ndarray


def extrapolate(sizes: np.ndarray, values: np.ndarray, ahead: Sequence[int]) -> np.ndarray:
    """``a + b n^-c`` by least squares, b >= 0 and c on a grid.

    Parameters
    ----------
    sizes : ndarray of shape (n_sizes,)
        Ascending, three at least.
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


def subsets_of(corpus: Anchors, asked: Anchors, exclude: np.ndarray | None, k: int, device: Any) -> list[Subset]:
    """Nested subsets of a corpus whose rows are in random order: 1/32 to 1/2 of it, none under 50 or 2 k rows."""
    sizes = [n for i in range(_HALVINGS, 0, -1) if (n := len(corpus) >> i) >= max(_LEAST_ROWS, 2 * k)]
    found = []
    for n in sizes:
        absent = None if exclude is None else np.where(exclude < n, exclude, -1)
        truth = top_k(asked.y, corpus.y[:n], k, corpus.target.metric, exclude=absent, device=device).ids
        found.append(Subset(n, absent, truth))
    return found


def sizes_of(
    way: Way, whole: np.ndarray, corpus_rows: int, subsets: Sequence[Subset], corpus_size: int | None, seed: int, device: Any
) -> list[CorpusSize]:
    """Overlap of a strategy in each subset and in the whole corpus, and a forecast for a larger one.

    The forecast is ``a + b n^-c`` fitted to the measured sizes, chosen among six formulas (constant, linear and quadratic in log n,
    linear in log and in logit of the overlap) for the smallest error. Its interval is that of resampled queries, with 0.025 for
    each doubling beyond the corpus added in quadrature. It covers neither rows of another kind than those of the corpus, nor a
    change of the map; it was checked up to 16 times the corpus and to 20,000 rows (CONTRIBUTING).

    Parameters
    ----------
    way : Way
    whole : ndarray of shape (n_queries,)
        Its overlap in the whole corpus, by query.
    corpus_rows : int
    subsets : sequence of Subset
    corpus_size : int or None
        Forecast where it is above `corpus_rows` and there are four sizes at least.
    seed : int
    device : str
    """
    columns = []
    for part in subsets:
        k = part.truth.shape[1]
        found = top_k(way.queries, way.rows[: part.rows], k, way.metric, exclude=part.exclude, device=device).ids
        columns.append(overlap(found, part.truth))
    values, sizes = np.stack([*columns, whole], 1), [*(part.rows for part in subsets), corpus_rows]
    drawn = resampled_means(values, seed=seed)
    edges = np.quantile(drawn, [0.025, 0.975], axis=0)
    rows = [
        CorpusSize(way.name, n, float(mean), (float(low), float(high)), forecast=False)
        for n, mean, low, high in zip(sizes, values.mean(0), *edges, strict=True)
    ]
    if corpus_size is None or corpus_size <= corpus_rows or len(sizes) < _LEAST_SIZES:
        return rows
    means = np.concatenate([values.mean(0)[None], drawn])
    forecast = extrapolate(np.array(sizes), means, (corpus_size,))[:, 0]
    middle, (low, high) = float(forecast[0]), np.quantile(forecast[1:], [0.025, 0.975])
    own = _FORMULA * np.log2(corpus_size / corpus_rows)
    top = rows[-1].overlap_ci[1]  # it was not seen to rise again
    interval = (max(0.0, float(middle - np.hypot(middle - low, own))), min(top, float(middle + np.hypot(high - middle, own))))
    return [*rows, CorpusSize(way.name, corpus_size, middle, interval, forecast=True)]
