"""Rows by their ids: where a store can look rows up, only the rows that are wanted leave it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embridge.errors import ChangedSourceError, ParameterError
from embridge.stores.batch import Batch

if TYPE_CHECKING:
    from embridge.stores.base import Collection

_FETCHED = 4096  # rows of one request
_FEW = 4  # rows are looked up by id where they are at most one in so many


def ids_at(collection: Collection, rows: np.ndarray) -> np.ndarray:
    """Ids of the rows at `rows` (sorted positions): int64, or object where ids are strings."""
    ids = np.empty(len(rows), np.int64 if str(collection.id_type) == "int64" else object)
    for batch in collection.id_reader():
        start = batch.column(1)[0].as_py() if len(batch) else 0
        low, high = np.searchsorted(rows, (start, start + len(batch)))
        if low < high:
            ids[low:high] = batch.column(0).take(rows[low:high] - start).to_numpy(zero_copy_only=False)
    return ids


def selected(collection: Collection, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """See `Collection.select`."""
    if len(rows) and (rows[0] < 0 or rows[-1] >= len(collection) or (np.diff(rows) < 0).any()):
        expected = f"sorted positions between 0 and {len(collection) - 1:,} (the rows of {collection.name})"
        raise ParameterError.must_be("rows", expected, rows)

    def row_filter(start: int, stop: int) -> bool:
        return bool(np.searchsorted(rows, start) < np.searchsorted(rows, stop))

    done, without = 0, ", or without a vector of the right width"
    for batch in fetched_rows(collection, rows) if collection.fetches and _FEW * len(rows) <= len(collection) else ():
        collection._check(batch.vectors, batch.ids, without)
        yield slice(done, done := done + len(batch)), batch.vectors
    if done == len(rows):
        return
    rows = rows[done:]
    for batch in collection.batches(row_filter=row_filter, validate=False):
        low, high = np.searchsorted(rows, (batch.start, batch.start + len(batch)))
        if low < high:
            places = rows[low:high] - batch.start
            vectors = batch.vectors[places]
            collection._check(vectors, batch.ids.take(places), without)
            yield slice(done + int(low), done + int(high)), vectors


def fetched_rows(collection: Collection, rows: np.ndarray) -> Iterator[Batch]:
    """The rows at `rows` (sorted positions) as batches, unchecked; `start` counts from the first of them.

    Ends before the first request for which ids are missing or repeated in the collection: an id does not name one row there.

    Raises
    ------
    ChangedSourceError
        A row is not there any more.
    """
    ids = ids_at(collection, rows)
    for start in range(0, len(rows), _FETCHED):
        wanted = pa.array(ids[start : start + _FETCHED], collection.id_type)
        if wanted.null_count or pc.count_distinct(wanted).as_py() < len(wanted):
            return
        found = collection._fetch(wanted)
        places = pc.index_in(wanted, found.ids)
        if places.null_count:
            missing = wanted.filter(places.is_null())
            raise ChangedSourceError.of(collection.name, f"{len(missing):,} rows were removed, the first {missing[0].as_py()!r}")
        if len(found) > len(wanted):
            return
        order = places.to_numpy(zero_copy_only=False)
        yield Batch(start, wanted, found.vectors[order], found.payload)


def vectors_by_id(collection: Collection, names: Sequence[Any]) -> tuple[pa.Array, np.ndarray]:
    """Ids and vectors of those rows that have one of the ids `names` (distinct ones); in any order, unchecked.

    A collection that cannot look rows up is read for them.
    """
    ids = pa.array(names, collection.id_type)
    if collection.fetches:
        parts = [collection._fetch(ids[start : start + _FETCHED]) for start in range(0, len(ids), _FETCHED)]
    else:
        parts = []
        for batch in collection.batches(validate=False):
            rows = np.flatnonzero(pc.is_in(batch.ids, ids).to_numpy(zero_copy_only=False))
            parts += [batch.at(rows)] if len(rows) else []
    none = np.empty((0, collection.stated_space.dim), np.float32)
    found = pa.chunked_array([part.ids for part in parts], collection.id_type).combine_chunks()
    return found, np.concatenate([none, *(np.asarray(part.vectors, np.float32) for part in parts)])
