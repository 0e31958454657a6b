"""Descriptives of a plan: lengths of rows and of translations, and scores by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.evaluation.benchmark import Benchmark
from embridge.evaluation.metrics import members_of
from embridge.maps import LinearMap
from embridge.records import LabelFigures, NormDistribution

_BINS = 40
_ALIKE = 1e-3  # lengths that differ by less than this share are equal: float16 rounds unit rows as much
_CHUNK = 8192


def norm_distributions(corpus: Anchors, translation: LinearMap) -> tuple[NormDistribution, ...]:
    """Lengths of the rows of both spaces, and of the translated rows before and after they are scaled to unit length.

    Where the target space is not normalized nothing is scaled, and the translation has one distribution.

    Parameters
    ----------
    corpus : Anchors
    translation : LinearMap
        Of the spaces of `corpus`.
    """
    unscaled = replace(translation, target=replace(translation.target, normalized=False))
    found = {"source": _lengths(corpus.x), "target": _lengths(corpus.y)}
    if translation.target.normalized:
        found["translation-unscaled"] = _lengths(corpus.x, unscaled)
    found["translation"] = _lengths(corpus.x, translation)
    return tuple(distribution(name, lengths) for name, lengths in found.items())


def distribution(name: str, lengths: np.ndarray) -> NormDistribution:
    """Lengths as a histogram; one bin where all are equal."""
    low, high = float(lengths.min()), float(lengths.max())
    if high - low <= _ALIKE * high:
        counts, edges = np.array([len(lengths)]), np.array([low, high])
    else:
        counts, edges = np.histogram(lengths, _BINS)
    quantiles = np.quantile(lengths, [0.05, 0.5, 0.95]).tolist()
    return NormDistribution(name, len(lengths), *quantiles, tuple(edges.tolist()), tuple(counts.tolist()))


def figures_by_label(
    benchmark: Benchmark, values: Mapping[str, np.ndarray], labels: Sequence[Any]
) -> tuple[tuple[LabelFigures, ...], int]:
    """Means of scores by query for each label, most queries first, and how many queries have no label.

    Parameters
    ----------
    benchmark : Benchmark
    values : mapping of strategy title to ndarray
        The score that strategies are compared by (`Benchmark.measure`).
    labels : sequence
        Of each query; None where it has none.
    """
    known = list(labels)
    if benchmark.judged.any():  # then only queries with a relevant row are measured
        known = [known[place] for place in np.flatnonzero(benchmark.judged)]
    found = [
        LabelFigures(label, len(places), {title: float(each[places].mean()) for title, each in values.items()})
        for label, places in sorted(members_of(known).items(), key=lambda item: (-len(item[1]), str(item[0])))
    ]
    return tuple(found), len(known) - sum(figures.queries for figures in found)


def _lengths(rows: np.ndarray, through: LinearMap | None = None) -> np.ndarray:
    """Lengths in float64, in which squares of float32 do not overflow."""
    out = np.empty(len(rows))
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        out[start : start + _CHUNK] = np.linalg.norm((part if through is None else through.apply(part)).astype(np.float64), axis=1)
    return out
