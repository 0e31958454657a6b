"""Small Parquet tables beside collections: chosen ids, relevance judgements, hits, rows left out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embridge.errors import BadIdsError, CollectionError
from embridge.files import whole_or_absent
from embridge.outputs import Output, replacing
from embridge.records import PerQuery
from embridge.stores.collection import normalise_ids
from embridge.stores.locations import exists
from embridge.stores.parquet_file import ParquetFiles
from embridge.types import Hits


def scan(path: str | os.PathLike[str], columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """Stream some columns of a Parquet file, folder or glob.

    Raises
    ------
    MissingFileError, UnreadableFileError
        Nothing is there, or it is damaged.
    CollectionError
        A column that is not optional is missing.
    ChangedSourceError
        A file changed while it was read.
    """
    files = ParquetFiles(os.fspath(path)).files
    for file in files:
        for column in columns:
            if column not in file.schema.names:
                raise CollectionError(f"{file.name} has no column {column!r}. Columns: {', '.join(file.schema.names)}.")
    for file in files:
        yield from file.batches([*columns, *(n for n in optional if n in file.schema.names)], 1 << 16)


def ids_of(batch: pa.RecordBatch, column: str, where: str) -> list[Any]:
    """Ids of a batch as Python values.

    Raises
    ------
    BadIdsError
        Null ids, or of a kind other than string and int64.
    """
    ids = normalise_ids(batch.column(column), f"Column {column!r} of {where}")
    if ids.null_count:
        raise BadIdsError.null(f"Column {column!r} of {where}", ids.null_count)
    return ids.to_pylist()


def read_ids(path: str | os.PathLike[str], column: str = "id") -> np.ndarray:
    """The column of ids of a table: int64, or object where ids are strings.

    Raises
    ------
    CollectionError, BadIdsError
        No such column or no rows; null ids, or of a kind other than string and int64.
    """
    where = repr(os.fspath(path))
    found = [normalise_ids(batch.column(column), where) for batch in scan(path, [column])]
    if not sum(map(len, found)):
        raise CollectionError.empty(where)
    if missing := sum(part.null_count for part in found):
        raise BadIdsError.null(where, missing)
    if other := next((part.type for part in found if part.type != found[0].type), None):
        raise BadIdsError.kinds_differ(where, str(found[0].type), "another of its files", str(other))
    return pa.chunked_array(found).to_numpy()


def write_ids(path: str | os.PathLike[str], ids: np.ndarray, *, inputs: Sequence[str | None] = (), overwrite: bool = False) -> None:
    """Write a table of one column, ``id``, as an output of its own (see `embridge.outputs.claim`)."""
    with replacing(Output(path), inputs=inputs, overwrite=overwrite) as [temporary]:
        pq.write_table(pa.table({"id": pa.array(ids)}), temporary)


def write_order(path: str | os.PathLike[str], ids: np.ndarray, counts: np.ndarray) -> None:
    """Write ids in an order as a table of ``id``, ``order`` (from 1) and ``queries`` (how many find the row).

    The caller has claimed `path`, or it is a temporary file.
    """
    kind = pa.string() if ids.dtype == object else pa.int64()  # where there is none, too
    columns = {"id": pa.array(ids, kind), "order": np.arange(1, len(ids) + 1), "queries": counts}
    pq.write_table(pa.table(columns), path)


def read_qrels(path: str | os.PathLike[str]) -> dict[Any, list[Any]]:
    """Relevance judgements: the relevant documents of each query.

    The table has columns ``query_id`` and ``doc_id``; where it has a ``score``, rows with one above zero count.

    Raises
    ------
    CollectionError
        A column is missing, or the scores are not finite numbers.
    BadIdsError
        Null ids, or of a kind other than string and int64.
    """
    return {query: list(graded) for query, graded in read_graded_qrels(path).items()}


def read_graded_qrels(path: str | os.PathLike[str]) -> dict[Any, dict[Any, float]]:
    """`read_qrels` with grades: the scores above zero, 1 where there is no ``score``; of a pair given twice the highest counts."""
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


def read_labels(
    path: str | os.PathLike[str], *, id_column: str | None = None, label_column: str = "label"
) -> dict[int | str, int | str]:
    """Labels of rows, by id; rows whose label is null are unlabelled.

    Parameters
    ----------
    path : str or path-like
        A Parquet file, folder or glob.
    id_column : str, optional
        Default: ``id``.
    label_column : str, default "label"
        Strings or integers.

    Raises
    ------
    MissingFileError
        Nothing is there.
    CollectionError
        No such column, or labels of another kind.
    BadIdsError
        Null or repeated ids, or of a kind other than string and int64.
    """
    where, key = repr(os.fspath(path)), id_column or "id"
    labels: dict[int | str, int | str] = {}
    repeated: list[int | str] = []
    for batch in scan(path, [key, label_column]):
        ids, kind = ids_of(batch, key, where), batch.schema.field(label_column).type
        try:
            known = normalise_ids(batch.column(label_column), where)  # labels are of the kinds that ids are of
        except BadIdsError as e:
            raise CollectionError(f"Column {label_column!r} of {where} must hold strings or integers. Got {kind} instead.") from e
        for row, label in zip(ids, known.to_pylist(), strict=True):
            if row in labels:
                repeated.append(row)
            labels[row] = label
    if repeated:
        raise BadIdsError.duplicate(where, repeated)
    return {row: label for row, label in labels.items() if label is not None}


def write_hits(
    path: str | os.PathLike[str],
    query_ids: np.ndarray,
    hits: Hits,
    *,
    inputs: Sequence[str | None] = (),
    overwrite: bool = False,
) -> None:
    """Write hits as rows of ``query_id``, ``rank`` (from 1), ``id`` and ``score``; places that stayed empty are left out."""
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
    """Write one row per query and strategy: ``query_id``, ``label``, ``strategy``, figures (null where nothing is judged)."""
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


def write_bad_rows(path: str | os.PathLike[str], bad: Sequence[tuple[int, Any, str]]) -> None:
    """Write rows that a conversion left out: ``row`` (position in the source), ``id`` and ``reason``."""
    rows, ids, reasons = zip(*bad, strict=True)
    with whole_or_absent(path) as temporary:
        pq.write_table(pa.table({"row": pa.array(rows, pa.int64()), "id": list(ids), "reason": list(reasons)}), temporary)


def is_bad_rows(path: str | os.PathLike[str]) -> bool:
    """True where a file is a list that `write_bad_rows` wrote, by its columns."""
    try:
        return os.path.isfile(path) and not os.path.islink(path) and pq.read_schema(path).names == ["row", "id", "reason"]
    except (pa.ArrowException, OSError):
        return False


def join_bad_rows(path: str | os.PathLike[str], parts: Sequence[tuple[int, str | os.PathLike[str]]]) -> bool:
    """Write what `write_bad_rows` listed of several files as one list; whether there is anything to list.

    Parameters
    ----------
    path : str or path-like
        Removed where there is nothing to list.
    parts : sequence of (position of the file's first row in all of them, path of its list)
        Lists that are not there have no rows.
    """
    tables = []
    for start, part in parts:
        if os.path.exists(part):
            table = pa.Table.from_batches(scan(part, ["row", "id", "reason"]))
            tables.append(table.set_column(0, "row", pa.array(table["row"].to_numpy() + start)))
    if not tables:
        Path(path).unlink(missing_ok=True)
        return False
    with whole_or_absent(path) as temporary:
        pq.write_table(pa.concat_tables(tables, promote_options="default"), temporary)
    return True


def read_bad_rows(path: str) -> np.ndarray:
    """Positions that `write_bad_rows` listed; none where there is no such file."""
    if not exists(path):
        return np.empty(0, np.int64)
    rows = pa.chunked_array([batch.column("row") for batch in scan(path, ["row"])], pa.int64())
    if rows.null_count:
        raise CollectionError(f"Column 'row' of {path!r} has nulls, so it is no list of bad rows.")
    return rows.to_numpy()
