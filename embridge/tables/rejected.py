"""Tables of rows that a conversion left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embridge.errors import CollectionError
from embridge.files import whole_or_absent
from embridge.stores.locations import exists
from embridge.tables.scan import scan


def write_bad_rows(path: str | os.PathLike[str], bad: Sequence[tuple[int, Any, str]]) -> None:
    """Write the rows that a conversion left out: ``row`` (position in the source), ``id`` and ``reason``."""
    rows, ids, reasons = zip(*bad, strict=True)
    with whole_or_absent(path) as temporary:
        pq.write_table(pa.table({"row": pa.array(rows, pa.int64()), "id": list(ids), "reason": list(reasons)}), temporary)


def is_bad_rows(path: str | os.PathLike[str]) -> bool:
    """True where a file has the columns that `write_bad_rows` writes."""
    try:
        return os.path.isfile(path) and not os.path.islink(path) and pq.read_schema(path).names == ["row", "id", "reason"]
    except (pa.ArrowException, OSError):
        return False


def join_bad_rows(path: str | os.PathLike[str], parts: Sequence[tuple[int, str | os.PathLike[str]]]) -> bool:
    """Join the lists that `write_bad_rows` wrote for several files; returns whether there are any rows.

    Parameters
    ----------
    path : str or path-like
        The joined list; removed where there are no rows.
    parts : sequence of (position of the file's first row in all of them, path of its list)
        Missing lists have no rows.
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
    parts = [np.empty(0, np.int64)]
    for batch in scan(path, ["row"]):
        column = batch.column("row")
        if column.type != pa.int64() or column.null_count:
            raise CollectionError(f"Column 'row' of {path!r} must be int64 without nulls in a list of bad rows.")
        parts.append(column.to_numpy())
    return np.concatenate(parts)
