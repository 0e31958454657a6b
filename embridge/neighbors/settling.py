"""The k nearest rows out of candidates found in float32: scores within its error are computed again in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from embridge.neighbors import scan
from embridge.neighbors.products import QUERIES, ROWS, Named
from embridge.neighbors.screening import Screened, screen
from embridge.types import Metric

_PAIRS = 2048  # of a query and a row whose scores are computed at a time


def nearest(
    queries: np.ndarray, corpus: np.ndarray, k: int, metric: Metric, exclude: np.ndarray | None, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (float64) and positions of the k nearest rows; of equal ones the first in the corpus."""
    (found,) = screened(queries, corpus, k, metric, exclude, device)
    if found is None:
        return scan.search(queries, corpus, k, metric, exclude, device)
    return settled(found, queries, corpus, k, metric, exclude, device)


def screened(
    queries: np.ndarray,
    corpus: np.ndarray,
    k: int,
    metric: Metric,
    exclude: np.ndarray | None,
    device: torch.device,
    offsets: Sequence[np.ndarray | None] = (None,),
    known: Named | None = None,
) -> Sequence[Screened | None]:
    """Candidates by float32 for each offset; None where the metric, the vectors or the device need float64 at once."""
    if metric == Metric.L2 or device.type != "cpu":
        return [None] * len(offsets)
    rows = corpus if known is None or known.rows is None else known.rows
    query_block, corpus_block = (scan.QUERY_BLOCK, scan.CORPUS_BLOCK) if known is None else (QUERIES, ROWS)
    found = screen(
        queries, rows, min(k + scan.SPARE, len(corpus)), cosine=metric == Metric.COSINE, offsets=offsets, exclude=exclude,
        query_block=query_block, corpus_block=corpus_block, known=known,
    )  # fmt: skip
    return [None] * len(offsets) if found is None else found


def settled(
    found: Screened,
    queries: np.ndarray,
    corpus: np.ndarray,
    k: int,
    metric: Metric,
    exclude: np.ndarray | None,
    device: torch.device,
    offset: np.ndarray | None = None,
    *,
    is_order_enough: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """`nearest` out of candidates: scores that may be among the k best are computed in float64.

    With `is_order_enough` only those that are within the error of another one; other scores remain those of the first pass. A query
    whose k best may be among other rows is searched in float64.
    """
    near, ids = 2 * found.error, found.ids
    scores = found.scores.astype(np.float64)
    again = (scores >= scores[:, k - 1 : k] - near) & np.isfinite(scores)
    if is_order_enough:
        with np.errstate(invalid="ignore"):
            close = scores[:, :-1] - scores[:, 1:] <= near
        again &= np.pad(close, ((0, 0), (1, 0))) | np.pad(close, ((0, 0), (0, 1)))  # to the one before, or to the next
    unsure = np.zeros(len(scores), bool)
    if scores.shape[1] < len(corpus):
        unsure = ~(scores[:, k - 1] > scores[:, -1] + near)
    again[unsure] = False
    row, place = np.nonzero(again)
    lengths = _lengths(queries)
    values = _similarities(queries, corpus, row, ids[row, place], metric)
    scores[row, place] = (values / lengths[row]) - (0 if offset is None else offset[ids[row, place]])
    order = np.lexsort((ids, -scan.rounded(scores)), axis=-1)[:, :k]
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    if metric == Metric.DOT:
        scores *= lengths[:, None]
    if unsure.any():
        own = None if exclude is None else exclude[unsure]
        scores[unsure], ids[unsure] = scan.search(queries[unsure], corpus, k, metric, own, device, offset)
    return scores, ids


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Lengths in float64; 1 for zero vectors."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64, casting="same_kind"))
    return np.where(lengths > 0, lengths, 1.0)


def _similarities(queries: np.ndarray, corpus: np.ndarray, rows: np.ndarray, places: np.ndarray, metric: Metric) -> np.ndarray:
    """Inner products, in float64, of pairs of a query and a row of the corpus, which under cosine has unit length."""
    out = np.empty(len(rows))
    for start in range(0, len(rows), _PAIRS):
        some = slice(start, start + _PAIRS)
        vectors = corpus[places[some]].astype(np.float64)
        out[some] = np.einsum("ij,ij->i", queries[rows[some]], vectors)
        if metric == Metric.COSINE:
            out[some] /= _lengths(vectors)
    return out
