"""Relevance judgments (qrels)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embridge.errors import CollectionError
from embridge.files import whole_or_absent
from embridge.tables.scan import ids_of, scan


def read_qrels(path: str | os.PathLike[str]) -> dict[Any, list[Any]]:
    """Read relevance judgments: the relevant documents of each query.

    The table has columns ``query_id`` and ``doc_id``; where it has a ``score``, rows with one above zero count.

    Raises
    ------
    CollectionError
        A column is missing, or the scores are not finite numbers.
    BadIdsError
        Null ids, or ids of a type other than string and int64.
    """
    return {query: list(graded) for query, graded in read_graded_qrels(path).items()}


def read_graded_qrels(path: str | os.PathLike[str]) -> dict[Any, dict[Any, float]]:
    """`read_qrels` with grades: the scores above zero, 1 where there is no ``score``; of a repeated pair the highest."""
    found: dict[Any, dict[Any, float]] = {}
    for batch in scan(path, ["query_id", "doc_id"], ["score"]):
        kind = batch.schema.field("score").type if "score" in batch.schema.names else pa.int64()
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            raise CollectionError(f"Column 'score' of {os.fspath(path)!r} must hold numbers. Got {kind} instead.")
        where = repr(os.fspath(path))
        scores = batch.column("score").to_pylist() if "score" in batch.schema.names else [1] * len(batch)
        for query, document, score in zip(ids_of(batch, "query_id", where), ids_of(batch, "doc_id", where), scores, strict=True):
            if score is not None and not math.isfinite(score):
                raise CollectionError(f"Column 'score' of {where} must hold finite numbers. Got {score!r} for query {query!r}.")
            if score is not None and score > 0:
                graded = found.setdefault(query, {})
                graded[document] = max(float(score), graded.get(document, 0.0))
    return found


def write_qrels(path: str | os.PathLike[str], qrels: Mapping[Any, Mapping[Any, float]]) -> None:
    """Write judgments with grades as a table of ``query_id``, ``doc_id`` and ``score``, as `read_graded_qrels` reads it."""
    rows = [(query, document, float(grade)) for query, graded in qrels.items() for document, grade in graded.items()]
    columns = dict(zip(("query_id", "doc_id", "score"), map(list, zip(*rows, strict=True)), strict=True))
    with whole_or_absent(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
