"""Tables of hits, and of scores by query."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embridge.outputs import Output, replacing
from embridge.records import PerQuery
from embridge.types import Hits


def write_hits(
    path: str | os.PathLike[str],
    query_ids: np.ndarray,
    hits: Hits,
    *,
    inputs: Sequence[str | None] = (),
    overwrite: bool = False,
) -> None:
    """Write hits as rows of ``query_id``, ``rank`` (from 1), ``id`` and ``score``; empty places are left out."""
    n, k = hits.ids.shape
    kept = np.isfinite(hits.scores).ravel()
    rows = {
        "query_id": np.repeat(query_ids, k)[kept],
        "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), n)[kept],
        "id": hits.ids.ravel()[kept],
        "score": hits.scores.ravel()[kept],
    }
    with replacing(Output(path), inputs=inputs, overwrite=overwrite) as [temporary]:
        pq.write_table(pa.table(rows), temporary)


def write_per_query(
    path: str | os.PathLike[str], found: PerQuery, *, inputs: Sequence[str | None] = (), overwrite: bool = False
) -> None:
    """Write one row per query and strategy: ``query_id``, ``label``, ``strategy``, scores (null where the query is not judged)."""
    labels: list[Any] = found.labels
    if len({type(label) for label in labels if label is not None}) > 1:
        labels = [None if label is None else str(label) for label in labels]
    known = pa.array(labels, None if any(label is not None for label in labels) else pa.string())
    parts = []
    for strategy, figures in found.figures.items():
        named = {"query_id": pa.array(found.ids), "label": known, "strategy": pa.array([strategy] * len(known))}
        parts.append(pa.table(named | {name: pa.array(values, from_pandas=True) for name, values in figures.items()}))
    with replacing(Output(path), inputs=inputs, overwrite=overwrite) as [temporary]:
        pq.write_table(pa.concat_tables(parts), temporary)
