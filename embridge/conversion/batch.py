"""`translate_batch`: rows in an Arrow record batch, translated; the same bytes as `convert` writes."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from embridge.arrays import check_rows
from embridge.conversion.engine import Engine, TranslateOptions, check_translated
from embridge.conversion.schedule import schedule
from embridge.device import free_memory, resolve_device
from embridge.errors import BadIdsError, BadVectorsError, CollectionError, SpaceMismatchError
from embridge.maps import Map
from embridge.stores.base import IdValues
from embridge.stores.id_types import normalize_ids
from embridge.stores.parquet import writer
from embridge.stores.parquet.collection import ERROR_COLUMNS
from embridge.stores.parquet.file import vectors_of
from embridge.stores.parquet.metadata import read_space, space_key
from embridge.types import Metric

_WHERE = "The batch"


def translate_batch(batch: pa.RecordBatch, translation: Map, options: TranslateOptions | None = None) -> pa.RecordBatch:
    """Translate the vectors of a record batch; all other columns stay as they are.

    A row equals the one that `convert` writes, to the last bit, where the batch begins at a row group of that output (16 MiB of
    vectors). Elsewhere matrix products of another height may round the last bit differently.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        With a column of ids and one of vectors (list, large_list or fixed_size_list of float16, float32 or float64).
    translation : LinearMap or KernelMap
        From the space of the vectors; where the schema's metadata names a space (``embridge.space``), from that one.
    options : TranslateOptions, optional

    Returns
    -------
    pyarrow.RecordBatch
        The vector column is a fixed_size_list of the target's width, in its place; with `confidence` the columns
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
    options = options or TranslateOptions()
    options.check(translation)
    ids, vectors = _checked(batch, translation, options)
    dim, dtype = translation.target.dim, np.dtype(options.dtype)
    out = np.empty((len(batch), dim), dtype)
    errors = None if options.confidence is None else np.empty((2, len(batch)), np.float32)
    engine, rows = _engine(translation, options), writer.rows_of_group(dim, dtype)
    for start in range(0, len(batch), rows):
        span = slice(start, start + rows)
        zero, not_finite = engine.run([vectors[span]], out[span], None if errors is None else errors[:, span])
        is_cosine = translation.target.metric == Metric.COSINE
        check_translated(ids, _WHERE, dtype, start + not_finite, start + (zero if is_cosine else not_finite[:0]))
    element = pa.field("element", pa.from_numpy_dtype(dtype), nullable=False)
    column = pa.FixedSizeListArray.from_arrays(pa.array(out.reshape(-1)), type=pa.list_(element, dim))
    place = batch.schema.names.index(options.vector_column)
    fields, columns = list(batch.schema), list(batch.columns)
    fields[place], columns[place] = pa.field(options.vector_column, column.type, nullable=False), column
    for name, values in zip(ERROR_COLUMNS, () if errors is None else errors, strict=errors is not None):
        fields.append(pa.field(name, pa.float32(), nullable=False))
        columns.append(pa.array(values))
    key = space_key(batch.schema, options.vector_column, _WHERE)
    metadata = {**(batch.schema.metadata or {}), key: json.dumps(translation.target.to_dict())}
    return pa.record_batch(columns, schema=pa.schema(fields, metadata))


def _checked(batch: pa.RecordBatch, translation: Map, options: TranslateOptions) -> tuple[IdValues, np.ndarray]:
    """Ids and vectors of a batch, checked so that they can be translated."""
    names = batch.schema.names
    for column, option in ((options.id_column, "id_column"), (options.vector_column, "vector_column")):
        if names.count(column) != 1:
            raise CollectionError.no_column(_WHERE, column, names, option)
    for column in ERROR_COLUMNS if options.confidence is not None else ():
        if column in names:
            raise CollectionError.reserved_column(_WHERE, column)
    kind = batch.schema.field(options.vector_column).type
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not nested or not pa.types.is_floating(kind.value_type):
        raise BadVectorsError.dtype(f"Column {options.vector_column!r}", kind)
    if pa.types.is_fixed_size_list(kind) and kind.list_size != translation.source.dim:
        raise SpaceMismatchError.width(f"The map from {translation.source.name!r}", translation.source.dim, kind.list_size)
    known = read_space(batch.schema, _WHERE, options.vector_column)
    if known is not None and known.name != translation.source.name:
        raise SpaceMismatchError(f"The map starts in {translation.source.name!r}, but the batch is in {known.name!r}.")
    column = normalize_ids(batch.column(options.id_column), _WHERE)
    if column.null_count:
        raise BadIdsError.null(_WHERE, column.null_count)
    ids = IdValues(column)
    vectors = vectors_of(batch.column(options.vector_column), translation.source.dim, _WHERE, 0, validate=True)
    check_rows(vectors, ids, _WHERE, zero_is_bad=translation.source.metric == Metric.COSINE)
    return ids, vectors


def _engine(translation: Map, options: TranslateOptions) -> Engine:
    """An engine with the chunks of a conversion."""
    device = resolve_device(options.device)
    dtype = np.dtype(options.dtype)
    held = schedule(
        free_bytes=free_memory(),
        group_rows=writer.rows_of_group(translation.target.dim, dtype),
        dim_source=translation.source.dim,
        dim_target=translation.target.dim,
        itemsize=dtype.itemsize,
        cuda_bytes=free_memory(device) if device.type == "cuda" else 0,
    )
    return Engine(translation, device, held.chunk_rows, precision=options.precision, coverage=options.confidence)
