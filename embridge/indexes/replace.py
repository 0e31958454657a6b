"""Replaces some rows of a fused index in place of building it again."""

from __future__ import annotations

import os
from dataclasses import replace

import faiss
import numpy as np
import pyarrow as pa

from embridge.anchors import ids_at
from embridge.errors import EmbridgeError
from embridge.indexes.rows import FusedRows
from embridge.outputs import INDEX, Output, claim
from embridge.stores.faiss.decode import keeps_labels
from embridge.stores.faiss.file import FAISS_ERRORS, read_index_file, write_index_file


def replace_rows(path: str | os.PathLike[str], output: str | os.PathLike[str], rows: FusedRows, places: np.ndarray) -> bool:
    """Write a copy of a fused index with new vectors of some rows; False, and nothing written, where FAISS cannot.

    FAISS removes rows from flat indexes and from inverted lists, not from graphs (HNSW).

    Parameters
    ----------
    path : str or path-like
        The index, over the same ids as `rows`, with the same reference queries.
    output : str or path-like
        A file that does not exist.
    rows : FusedRows
        All rows.
    places : ndarray of int64
        Sorted positions of the rows that changed.
    """
    file = read_index_file(os.fspath(path))
    index, ids = file.index, file.ids
    changed = ids_at(rows.collection, places)
    try:
        labels = changed if ids is None else _positions(ids, changed)
        if index.remove_ids(faiss.IDSelectorBatch(labels)) != len(labels):
            return False
        vectors = rows.take(places)
        if ids is None or keeps_labels(index):
            index.add_with_ids(vectors, labels)
        else:  # labels are positions, which the removal shifted
            index.add(vectors)
            kept = np.ones(len(ids), bool)
            kept[labels] = False
            ids = pa.concat_arrays([ids.filter(pa.array(kept)), ids.take(pa.array(labels))])
    except FAISS_ERRORS as e:
        if isinstance(e, EmbridgeError):
            raise
        return False
    with claim(Output(output, INDEX)):
        made = replace(file, index=index, ids=ids, lineage=file.lineage | rows.lineage(), notes=file.notes | rows.notes())
        write_index_file(os.fspath(output), made)
    return True


def _positions(ids: pa.Array, wanted: np.ndarray) -> np.ndarray:
    """Positions in `ids` of the ids `wanted`, which are all there."""
    values = ids.to_numpy(zero_copy_only=False)
    order = np.argsort(values, kind="stable")
    return order[np.searchsorted(values, wanted, sorter=order)]


__all__ = ["replace_rows"]
