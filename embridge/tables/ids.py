"""Tables of ids."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embridge.errors import BadIdsError, CollectionError
from embridge.outputs import Output, replacing
from embridge.stores.id_types import normalize_ids
from embridge.tables.scan import scan


def read_ids(path: str | os.PathLike[str], column: str = "id") -> np.ndarray:
    """The column of ids of a table: int64, or object where ids are strings.

    Raises
    ------
    CollectionError, BadIdsError
        A missing column, no rows, or null ids, or ids of a type other than string and int64.
    """
    where = repr(os.fspath(path))
    found = [normalize_ids(batch.column(column), where) for batch in scan(path, [column])]
    if not sum(map(len, found)):
        raise CollectionError.empty(where)
    if missing := sum(part.null_count for part in found):
        raise BadIdsError.null(where, missing)
    if other := next((part.type for part in found if part.type != found[0].type), None):
        raise BadIdsError.kinds_differ(where, str(found[0].type), "another of its files", str(other))
    return pa.chunked_array(found).to_numpy()


def write_ids(path: str | os.PathLike[str], ids: np.ndarray, *, inputs: Sequence[str | None] = (), overwrite: bool = False) -> None:
    """Write a table of one column, ``id``, as a separate output (see `embridge.outputs.claim`)."""
    with replacing(Output(path), inputs=inputs, overwrite=overwrite) as [temporary]:
        pq.write_table(pa.table({"id": pa.array(ids)}), temporary)


def write_order(path: str | os.PathLike[str], ids: np.ndarray, counts: np.ndarray) -> None:
    """Write ids in an order as a table of ``id``, ``order`` (from 1) and ``queries`` (the number that find the row).

    The caller has claimed `path`, or it is a temporary file.
    """
    kind = pa.string() if ids.dtype == object else pa.int64()  # also for an empty table
    columns = {"id": pa.array(ids, kind), "order": np.arange(1, len(ids) + 1), "queries": counts}
    pq.write_table(pa.table(columns), path)
