"""Labels of rows, by id."""

from __future__ import annotations

import os

from embridge.errors import BadIdsError, CollectionError
from embridge.stores.id_types import normalize_ids
from embridge.tables.scan import ids_of, scan


def read_labels(
    path: str | os.PathLike[str], *, id_column: str | None = None, label_column: str = "label"
) -> dict[int | str, int | str]:
    """Labels of rows, by id; rows whose label is null are unlabeled.

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
        The file does not exist.
    CollectionError
        A missing column, or labels of another type.
    BadIdsError
        Null or repeated ids, or ids of a type other than string and int64.
    """
    where, key = repr(os.fspath(path)), id_column or "id"
    labels: dict[int | str, int | str] = {}
    repeated: list[int | str] = []
    for batch in scan(path, [key, label_column]):
        ids, kind = ids_of(batch, key, where), batch.schema.field(label_column).type
        try:
            known = normalize_ids(batch.column(label_column), where)  # labels have the same types as ids
        except BadIdsError as e:
            raise CollectionError(f"Column {label_column!r} of {where} must hold strings or integers. Got {kind} instead.") from e
        for row, label in zip(ids, known.to_pylist(), strict=True):
            if row in labels:
                repeated.append(row)
            labels[row] = label
    if repeated:
        raise BadIdsError.duplicate(where, repeated)
    return {row: label for row, label in labels.items() if label is not None}
