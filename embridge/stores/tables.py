"""Small Parquet tables beside collections: chosen ids, relevance judgements, hits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embridge.errors import CollectionError
from embridge.files import whole_or_absent
from embridge.stores.collection import normalise_ids
from embridge.stores.locations import find_files
from embridge.stores.parquet import ParquetFile
from embridge.types import Hits


def _scan(path: str | os.PathLike[str], columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """Stream some columns of a Parquet file, folder or glob.

    Raises
    ------
    CollectionError
        A column that is not optional is missing.
    """
    filesystem, names, _ = find_files(os.fspath(path))
    files = [ParquetFile(filesystem, name, repr(name), None) for name in names]
    for file in files:
        for column in columns:
            if column not in file.schema.names:
                raise CollectionError(f"{file.name} has no column {column!r}. Columns: {', '.join(file.schema.names)}.")
    for file in files:
        yield from file.batches([*columns, *(n for n in optional if n in file.schema.names)], 1 << 16)


def read_ids(path: str | os.PathLike[str]) -> np.ndarray:
    """The column ``id`` of a table: int64, or object where ids are strings."""
    found = [normalise_ids(batch.column("id"), repr(os.fspath(path))) for batch in _scan(path, ["id"])]
    if not found:
        raise CollectionError.empty(repr(os.fspath(path)))
    return pa.chunked_array(found).to_numpy()


def write_ids(path: str | os.PathLike[str], ids: np.ndarray) -> None:
    """Write a table of one column, ``id``."""
    with whole_or_absent(path) as temporary:
        pq.write_table(pa.table({"id": pa.array(ids)}), temporary)


def read_qrels(path: str | os.PathLike[str]) -> dict[Any, list[Any]]:
    """Relevance judgements: the relevant documents of each query.

    The table has columns ``query_id`` and ``doc_id``; where it has a ``score``, rows with one above zero count.
    """
    found: dict[Any, list[Any]] = {}
    for batch in _scan(path, ["query_id", "doc_id"], ["score"]):
        columns = batch.to_pydict()
        scores = columns.get("score", [1] * len(batch))
        for query, document, score in zip(columns["query_id"], columns["doc_id"], scores, strict=True):
            if score is not None and score > 0:
                found.setdefault(query, []).append(document)
    return found


def write_hits(path: str | os.PathLike[str], query_ids: np.ndarray, hits: Hits) -> None:
    """Write hits as rows of ``query_id``, ``rank`` (from 1), ``id`` and ``score``; places that stayed empty are left out."""
    n, k = hits.ids.shape
    kept = np.isfinite(hits.scores).ravel()
    rows = {
        "query_id": np.repeat(query_ids, k)[kept],
        "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), n)[kept],
        "id": hits.ids.ravel()[kept],
        "score": hits.scores.ravel()[kept],
    }
    with whole_or_absent(path) as temporary:
        pq.write_table(pa.table(rows), temporary)
