"""Summarizes a collection in one pass, including bad rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from embridge.arrays import bad_rows, norms
from embridge.isotropy import Isotropy
from embridge.records import Summary
from embridge.stores.base import Collection
from embridge.stores.ids import count_repeated


def summarize(collection: Collection, *, progress: Callable[[int, int], None] | None = None) -> Summary:
    """Count rows, norms, duplicate ids and bad rows.

    Parameters
    ----------
    collection : Collection
    progress : callable, optional
        Called with (rows read, rows in all).

    Returns
    -------
    Summary
        Norms are over the rows that have one. A row is bad if its vector is missing, ragged, NaN or infinite, zero under cosine,
        or not of unit length as stated by the file or the caller, or if it has no id.
    """
    bad, n, mean, square = 0, 0, 0.0, 0.0
    low, high = math.inf, -math.inf
    directions = Isotropy(len(collection))
    for batch in collection.batches(validate=False):
        not_finite, _ = bad_rows(batch.vectors, zero_is_bad=False)
        usable = np.delete(batch.vectors, not_finite, axis=0)
        lengths = norms(usable).astype(np.float64)
        directions.add(usable[lengths > 0])
        if len(lengths):
            # Chan's formula for a mean and a sum of squares, batch by batch
            delta, total = lengths.mean() - mean, n + len(lengths)
            square += float(((lengths - lengths.mean()) ** 2).sum() + delta**2 * n * len(lengths) / total)
            mean += delta * len(lengths) / total
            n = total
            low, high = min(low, float(lengths.min())), max(high, float(lengths.max()))
        bad += len(collection.unusable(batch))
        if progress is not None:
            progress(batch.start + len(batch), len(collection))
    values = (float(mean), math.sqrt(square / n), low, high) if n else (math.nan,) * 4
    norm: dict[str, float] = dict(zip(("mean", "std", "min", "max"), values, strict=True))
    repeated = count_repeated(collection)[0]
    return Summary(len(collection), collection.space, norm, repeated, bad, directions.mean_cosine, directions.effective_rank)
