"""`translate_batch`: the one function that translates rows; files, streams and services call it."""

from __future__ import annotations

import json
from typing import TypeVar

import numpy as np
import pyarrow as pa

from embridge.arrays import check_rows
from embridge.conversion.engine import Engine, TranslateOptions
from embridge.conversion.schedule import schedule
from embridge.device import free_memory, resolve_device
from embridge.errors import BadIdsError, BadVectorsError, CollectionError, ParameterError, SpaceMismatchError
from embridge.maps import Map
from embridge.stores.base import IdValues
from embridge.stores.id_types import normalize_ids
from embridge.stores.parquet import writer
from embridge.stores.parquet.collection import ERROR_COLUMNS
from embridge.stores.parquet.file import vectors_of
from embridge.stores.parquet.metadata import read_space, space_key
from embridge.types import Metric

Rows = TypeVar("Rows", pa.RecordBatch, pa.Table)


def translate_batch(
    batch: Rows, translation: Map | Engine, options: TranslateOptions | None = None, *, out: np.ndarray | None = None
) -> Rows:
    """Translate the vectors of a record batch or table; all other columns stay as they are.

    A row equals the one that `convert` writes, to the last bit, where the batch begins at a row group of that output (16 MiB of
    vectors). Elsewhere matrix products of another height may round the last bit differently.

    Parameters
    ----------
    batch : pyarrow.RecordBatch or pyarrow.Table
        With a column of ids and one of vectors (list, large_list or fixed_size_list of float16, float32 or float64).
    translation : LinearMap, KernelMap or Engine
        From the space of the vectors; where the schema's metadata names a space (``embridge.space``), from that one. For many
        batches pass `prepare(map, options)`, which loads the map onto the device once.
    options : TranslateOptions, optional
        None with an Engine, which has its own.
    out : ndarray of shape (n, dim_target), optional
        Contiguous memory of the output's dtype, which the returned vectors share. Default: new memory.

    Returns
    -------
    pyarrow.RecordBatch or pyarrow.Table
        As given. The vector column is a fixed_size_list of the target's width, in its place; with `confidence` the columns
        ``predicted_error`` and ``error_bound`` follow at the end. The metadata ``embridge.space`` names the target space.

    Raises
    ------
    SpaceMismatchError
        The vectors are of another space or width.
    CollectionError
        A column is missing, or has a name that the output needs.
    BadIdsError
        Null ids, or ids that are neither strings nor integers.
    BadVectorsError
        Rows without a vector, ragged, not finite, or zero under cosine; before or after the translation.
    MapError, ParameterError
        Unknown options, or the map has no confidence.
    """
    if isinstance(translation, Engine):
        if options is not None:
            raise ParameterError("An Engine has its own options. Hint: pass them to `prepare`.")
        engine = translation
    else:
        engine = prepare(translation, options)
    options, target = engine.options, engine.translation.target
    pieces = _vectors(batch, engine.translation, options)
    dtype = np.dtype(options.dtype)
    out = np.empty((len(batch), target.dim), dtype) if out is None else out
    errors = None if options.confidence is None else np.empty((2, len(batch)), np.float32)
    rows = writer.rows_of_group(target.dim, dtype)
    for start in range(0, len(batch), rows):
        span = slice(start, start + rows)
        zero, not_finite = engine.run(_cut(pieces, start, start + rows), out[span], None if errors is None else errors[:, span])
        _check_translated(batch, options, start + not_finite, start + zero if target.metric == Metric.COSINE else zero[:0])
    element = pa.field("element", pa.from_numpy_dtype(dtype), nullable=False)
    column = pa.FixedSizeListArray.from_arrays(pa.array(out.reshape(-1)), type=pa.list_(element, target.dim))
    place = batch.schema.names.index(options.vector_column)
    fields, columns = list(batch.schema), list(batch.columns)
    fields[place], columns[place] = pa.field(options.vector_column, column.type, nullable=False), column
    for name, values in zip(ERROR_COLUMNS, () if errors is None else errors, strict=errors is not None):
        fields.append(pa.field(name, pa.float32(), nullable=False))
        columns.append(pa.array(values))
    key = space_key(batch.schema, options.vector_column, options.name)
    metadata = {**(batch.schema.metadata or {}), key: json.dumps(target.to_dict())}
    return type(batch).from_arrays(columns, schema=pa.schema(fields, metadata))


def prepare(translation: Map, options: TranslateOptions | None = None) -> Engine:
    """A map on its device, with products of as many rows as in a conversion, for many calls of `translate_batch`.

    Raises
    ------
    MapError, ParameterError, DeviceError
    """
    options = options or TranslateOptions()
    options.check(translation)
    device, dtype = resolve_device(options.device), np.dtype(options.dtype)
    held = schedule(
        free_bytes=free_memory(),
        group_rows=writer.rows_of_group(translation.target.dim, dtype),
        dim_source=translation.source.dim,
        dim_target=translation.target.dim,
        itemsize=dtype.itemsize,
        cuda_bytes=free_memory(device) if device.type == "cuda" else 0,
    )
    return Engine(translation, device, held.chunk_rows, options)


def _vectors(batch: pa.RecordBatch | pa.Table, translation: Map, options: TranslateOptions) -> list[np.ndarray]:
    """The vectors of a batch, one array per chunk; columns, and with `validate` ids and values, are checked."""
    names = batch.schema.names
    for column, option in ((options.id_column, "id_column"), (options.vector_column, "vector_column")):
        if names.count(column) != 1:
            raise CollectionError.no_column(options.name, column, names, option)
    for column in ERROR_COLUMNS if options.confidence is not None else ():
        if column in names:
            raise CollectionError.reserved_column(options.name, column)
    kind = batch.schema.field(options.vector_column).type
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not nested or not pa.types.is_floating(kind.value_type):
        raise BadVectorsError.dtype(f"Column {options.vector_column!r}", kind)
    if pa.types.is_fixed_size_list(kind) and kind.list_size != translation.source.dim:
        raise SpaceMismatchError.width(f"The map from {translation.source.name!r}", translation.source.dim, kind.list_size)
    known = read_space(batch.schema, options.name, options.vector_column)
    if known is not None and known.name != translation.source.name:
        raise SpaceMismatchError(f"The map starts in {translation.source.name!r}, but the batch is in {known.name!r}.")
    ids = _ids(batch, options) if options.validate else None
    if ids is not None and ids.null_count:
        raise BadIdsError.null(options.name, ids.null_count)
    column, found, start = batch.column(options.vector_column), [], 0
    for part in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        vectors = vectors_of(part, translation.source.dim, options.name, start, validate=options.validate)
        if ids is not None:
            named = IdValues(ids.slice(start, len(vectors)))
            check_rows(vectors, named, options.name, zero_is_bad=translation.source.metric == Metric.COSINE)
        found.append(vectors)
        start += len(vectors)
    return found


def _ids(batch: pa.RecordBatch | pa.Table, options: TranslateOptions) -> pa.Array:
    column = batch.column(options.id_column)
    return normalize_ids(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column, options.name)


def _cut(pieces: list[np.ndarray], start: int, stop: int) -> list[np.ndarray]:
    """Rows `start` to `stop` of consecutive pieces."""
    starts = np.cumsum([0, *map(len, pieces)])[:-1].tolist()
    return [piece[max(start - at, 0) : max(stop - at, 0)] for at, piece in zip(starts, pieces, strict=True)]


def _check_translated(
    batch: pa.RecordBatch | pa.Table, options: TranslateOptions, not_finite: np.ndarray, zero: np.ndarray
) -> None:
    """Refuse rows whose translation cannot be written: positions of those that are not finite, and of those of length zero."""
    for rows, reason in (
        (not_finite, f"a translation beyond the range of {options.dtype}"),
        (zero, "a translation of length zero, which has no direction under cosine"),
    ):
        if rows.size:
            ids = IdValues(_ids(batch, options))
            raise BadVectorsError.rows(options.name, reason, [ids[row] for row in rows.tolist()])
