"""Adds rows to an existing index, through the transforms in front of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from embridge.errors import BadIdsError, EmbridgeError, FaissIndexError, ParameterError
from embridge.indexes.rows import FusedRows, prepare
from embridge.stores.base import Batch, Collection
from embridge.stores.faiss.decode import external_lists_of, holds_lists, keeps_labels, labels_of
from embridge.stores.faiss.file import FAISS_ERRORS, faiss_reason, read_index_file
from embridge.stores.faiss.index_file import IndexFile
from embridge.stores.ids import check_unique
from embridge.types import Metric, Space, space_mismatch


def add_rows(
    file: IndexFile,
    space: Space,
    collection: Collection,
    path: str,
    *,
    fuse: Collection | None = None,
    external_lists: bool = False,
) -> IndexFile:
    """A copy of the index with the rows of a collection added; `fuse` are their old vectors, for a fused index.

    Raises
    ------
    FaissIndexError
        The map in front of the index is valid for queries only, a hubness bias would be needed, or FAISS cannot add.
    SpaceMismatchError
        The collection is of another space, or has no old vectors for a fused index.
    BadIdsError
        Ids of another type, or ids that the index already has.
    """
    where, opened = repr(path), file
    # Read again: FAISS cannot clone every transform, a failure must leave the open index unchanged, and another process may have
    # added rows.
    file = read_index_file(path, external_lists=external_lists)
    if (file.space, file.notes) != (opened.space, opened.notes):
        raise _no_additions(where, "it was replaced by another index since it was opened")
    if "hubness" in file.notes:
        raise _no_additions(where, "each row has a hubness bias, and its reference queries are not stored")
    if "calibration" in file.notes:
        raise _no_additions(where, "its rows are calibrated by whether they are native or translated")
    if not file.notes.get("adds", True):
        raise _no_additions(where, "the map in front of it is valid for queries only")
    if not collection.space.same_as(space):
        raise space_mismatch("The index", space, collection.name, collection.space)
    if lists := external_lists_of(file.index):
        raise _no_additions(where, f"its inverted lists lie in another file ({lists}), which is read-only")
    labeled = keeps_labels(file.index)
    own_kind = pa.int64() if file.ids is None else file.ids.type
    if collection.id_type != own_kind:
        raise BadIdsError.kinds_differ(where, str(own_kind), collection.name, str(collection.id_type))
    check_unique(collection)
    rows = _rows(file, space, collection, fuse, where)
    index, ids = file.index, file.ids
    present = None if ids is not None else labels_of(index)
    for batch, vectors in rows:
        try:
            if ids is not None:
                _refuse_repeated(where, batch.ids, ids)
                if labeled:
                    index.add_with_ids(vectors, np.arange(len(ids), len(ids) + len(batch)))
                else:
                    index.add(vectors)
                ids = pa.concat_arrays([ids, batch.ids])
            else:
                fresh = batch.ids.to_numpy()
                repeated = np.intersect1d(fresh, present)  # type: ignore[arg-type]
                if repeated.size:
                    raise BadIdsError.duplicate(where, repeated.tolist())
                if (fresh == -1).any() and holds_lists(index):
                    raise BadIdsError(
                        f"{collection.name} has the id -1, which is how FAISS marks an empty place in inverted lists."
                    )
                if not labeled:
                    raise _no_additions(where, "its ids are positions, and it holds no labels")
                index.add_with_ids(vectors, fresh)
        except FAISS_ERRORS as e:
            if isinstance(e, EmbridgeError):
                raise
            raise _no_additions(where, faiss_reason(e)) from e
    return replace(file, index=index, ids=ids, lineage=file.lineage | {"added": collection.fingerprint()})


def _rows(
    file: IndexFile, space: Space, collection: Collection, fuse: Collection | None, where: str
) -> Iterator[tuple[Batch, np.ndarray]]:
    """The new rows as the index takes them, with their batches."""
    if file.old_space is None:
        if fuse is not None:
            raise ParameterError(f"Old vectors (fuse) belong to a fused index, and {where} is not one.")
        metric = Metric.DOT if file.notes.get("raw_queries") else space.metric
        return ((batch, prepare(batch.vectors, metric)) for batch in collection.batches())
    if file.notes["fusion"]["references"] is not None:
        raise _no_additions(where, "each row has a hubness bias, and its reference queries are not stored")
    old = fuse or collection.old_side
    if old is None:
        raise _no_additions(where, f"{collection.name} has no vectors of {file.old_space.name!r} (fuse)")
    if not old.space.same_as(file.old_space):
        raise space_mismatch("The index", file.old_space, old.name, old.space)
    return FusedRows(collection, old, spaces=(file.old_space, space)).batches()


def _refuse_repeated(where: str, fresh: pa.Array, ids: pa.Array) -> None:
    repeated = sorted(set(fresh.to_pylist()) & set(ids.to_pylist()))
    if repeated:
        raise BadIdsError.duplicate(where, repeated)


def _no_additions(where: str, reason: str) -> FaissIndexError:
    return FaissIndexError(f"{where} accepts no new vectors: {reason}. Hint: add them to the original index, or rebuild it.")
