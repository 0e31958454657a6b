"""The ways of answering new-space queries that exist for a pair: what is asked, what is searched, by which metric."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from embridge.anchors import Anchors
from embridge.arrays import unit
from embridge.errors import MapError
from embridge.feature_maps import Map
from embridge.indexes.hubness import augment, with_bias
from embridge.retrieval import blend, carry
from embridge.types import Metric

WITHOUT_MAP = ("keep-old", "no-translation", "re-encode")


class Way(NamedTuple):
    """A strategy as it is carried out: its queries search its rows by its metric."""

    name: str
    queries: np.ndarray
    rows: np.ndarray
    metric: Metric


def ways_of(
    translation: Map, corpus: Anchors, asked: Anchors, translated: np.ndarray, weight: float, hubness: np.ndarray | None
) -> Iterator[Way]:
    """Every strategy that exists for the pair."""
    source, target = translation.source, translation.target
    yield Way("keep-old", asked.x, corpus.x, source.metric)
    if source.dim == target.dim:
        yield Way("no-translation", asked.y, corpus.x, source.metric)
    yield Way("translate-documents", asked.y, translated, target.metric)
    if hubness is not None:
        yield Way("translate-documents+hubness", *corrected(asked.y, translated, target.metric, hubness))
    try:
        carried = carry(asked.y, translation, source)
    except MapError:  # L2 and no isometry: there is no way back to the old rows
        pass
    else:
        yield Way("translate-queries", carried, corpus.x, source.metric)
        blended = blend(asked.x, carried, weight, source.metric)
        yield Way("blend", blended, corpus.x, source.metric)
        if hubness is not None:
            yield Way("blend+hubness", *corrected(blended, corpus.x, source.metric, carry(hubness, translation, source)))
    yield Way("re-encode", asked.y, corpus.y, target.metric)


def corrected(
    queries: np.ndarray, rows: np.ndarray, metric: Metric, references: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Metric]:
    """Queries and rows with a hubness bias, as an index has them (`embridge.indexes.hubness`)."""
    held = unit(rows) if metric == Metric.COSINE else rows.astype(np.float32, copy=False)
    return augment(unit(queries)), with_bias(held, references), Metric.DOT
