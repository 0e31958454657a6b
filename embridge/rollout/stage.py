"""One stage of a rollout: its rows with both vectors, its maps and its queries, and how the rows of a stage are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from embridge.anchors import Anchors, ids_at
from embridge.arrays import check_rows, unit
from embridge.errors import UnreadableFileError
from embridge.maps import Map, load_map
from embridge.records import AnchorRecord
from embridge.rollout.rows import open_rows, store_for, writing_rows
from embridge.rollout.steps import MAP, QRELS, QUERIES, QUERIES_MAP, REACH
from embridge.stores import ParquetCollection
from embridge.stores.base import Collection
from embridge.stores.batch import Batch, IdValues
from embridge.stores.ids import hash_ids
from embridge.stores.parquet.writer import write_collection
from embridge.stores.provenance import NATIVE, TRANSLATED, translated_rows
from embridge.tables.qrels import read_graded_qrels
from embridge.types import Metric, Provenance, Space

OLD_VECTOR = "old_vector"
PROVENANCE = Provenance(0.0, 10)  # not calibrated
_KIND = pa.dictionary(pa.int8(), pa.string())


@dataclass(frozen=True, eq=False)
class Stage:
    """The files of a stage.

    Attributes
    ----------
    folder : Path
    """

    folder: Path

    @cached_property
    def new(self) -> Collection:
        """The rows with their vectors of the new space, native or translated."""
        return open_rows(self.folder)

    @cached_property
    def old(self) -> Collection:
        """The rows with their vectors of the old space."""
        old = self.new.old_side
        if old is None:
            raise UnreadableFileError.altered(self.new.name)
        return old

    @cached_property
    def native(self) -> np.ndarray:
        """Which rows are native, shape (n,), bool."""
        return ~translated_rows(self.new, PROVENANCE.column)

    @cached_property
    def translation(self) -> Map:
        """The map of rows, from the old to the new space."""
        return load_map(self.folder / MAP)

    @cached_property
    def projection(self) -> Map:
        """The map of queries, from the new to the old space."""
        return load_map(self.folder / QUERIES_MAP)

    @cached_property
    def queries(self) -> Anchors | None:
        """The logged queries by both models."""
        if not (self.folder / QUERIES).exists():
            return None
        new, old = ParquetCollection(self.folder / QUERIES), ParquetCollection(self.folder / QUERIES, vector_column=OLD_VECTOR)
        ids, y = new.read()
        return Anchors(ids, old.read()[1], y, old.space, new.space, _no_record(len(ids)))

    @cached_property
    def qrels(self) -> dict[object, dict[object, float]]:
        """Relevance judgments by query; empty where there are none."""
        path = self.folder / QRELS
        return read_graded_qrels(path) if path.exists() else {}

    @cached_property
    def reach(self) -> np.ndarray:
        """For each row the number of queries that reach it, shape (n,)."""
        return np.load(self.folder / REACH, allow_pickle=False)

    @cached_property
    def ties(self) -> np.ndarray:
        """A number for each row, by its id, that orders rows which are otherwise equal; shape (n,), uint64."""
        return hash_ids(ids_at(self.new, np.arange(len(self.new))), "order")

    def pairs(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Batches of rows in order: position of the first, vectors of the old and of the new space."""
        rows = min(self.old.default_batch_rows(), self.new.default_batch_rows())
        for old, new in zip(self.old.batches(rows), self.new.batches(rows), strict=True):
            yield new.start, old.vectors, new.vectors

    def anchors(self, rows: np.ndarray) -> Anchors:
        """The rows at `rows` (sorted positions) in both spaces."""
        x, y = self.old.take(rows), self.new.take(rows)
        return Anchors(ids_at(self.new, rows), x, y, self.old.space, self.new.space, _no_record(len(rows)))

    def native_sample(self, count: int, *, held_out: bool, seed: int) -> np.ndarray:
        """Positions of at most `count` native rows that maps are fitted on, or that are held out; those of smallest hash."""
        rows = np.flatnonzero(self.native)
        ids = ids_at(self.new, rows)
        rows, ids = (part[is_held_out(ids, seed) == held_out] for part in (rows, ids))
        return np.sort(rows[np.argsort(hash_ids(ids, "sample", seed), kind="stable")[:count]])


HELD_OUT = 0.1  # of the native rows


def is_held_out(ids: np.ndarray, seed: int) -> np.ndarray:
    """Which rows no map is fitted on once they are native: the same as `Anchors.split` holds out."""
    return hash_ids(ids, "split", seed) < np.uint64(HELD_OUT * 2**64)


def _no_record(rows: int) -> AnchorRecord:
    return AnchorRecord("", "", rows, rows, 0, 0.0, 0)


@dataclass(frozen=True, eq=False)
class NativeRows:
    """Native vectors that enter a stage.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Sorted positions.
    anchors : Anchors
        The rows in both spaces.
    """

    rows: np.ndarray
    anchors: Anchors

    def sampled(self, stage: Stage, count: int, *, held_out: bool, seed: int) -> Anchors:
        """At most `count` of all native rows, these included, that maps are fitted on, or that are held out."""
        before = stage.anchors(stage.native_sample(count, held_out=held_out, seed=seed))
        mine = self.anchors.at(is_held_out(self.anchors.ids, seed) == held_out).sample(count, seed)
        ids, x, y = (np.concatenate([getattr(part, name) for part in (before, mine)]) for name in ("ids", "x", "y"))
        return replace(before, ids=ids, x=x, y=y).sample(count, seed) if len(ids) else before

    def put(self, start: int, vectors: np.ndarray, native: np.ndarray) -> None:
        """Overwrite vectors and flags of a batch that begins at `start`."""
        low, high = np.searchsorted(self.rows, (start, start + len(vectors)))
        places = self.rows[low:high] - start
        vectors[places], native[places] = self.anchors.y[low:high], True


def write_rows(
    folder: Path, source: Collection, translation: Map, entering: NativeRows, *, before: Stage | None, retranslate: bool,
    lineage: dict[str, str],
) -> None:  # fmt: skip
    """Write the rows of a stage, batch by batch, in the order of `source`.

    Parameters
    ----------
    folder : Path
        Of the stage.
    source : Collection
        The old collection, or that of the stage before with its old vectors.
    translation : LinearMap or KernelMap
    entering : NativeRows
    before : Stage, optional
        The stage before: its native rows stay.
    retranslate : bool
        False keeps translations of the stage before.
    lineage : dict
    """
    target = translation.target
    kept = [f for f in source.payload_schema if before is None or f.name not in (before.new.vector_column, PROVENANCE.column)]
    old_type = pa.list_(pa.field("element", pa.from_numpy_dtype(np.dtype(source.vector_type)), nullable=False), source.space.dim)
    schema = pa.schema([*kept, pa.field(OLD_VECTOR, old_type, False), pa.field(PROVENANCE.column, _KIND, False)])
    vector_column = source.vector_column if before is None else before.new.vector_column
    options = {"columns": (source.id_column, vector_column), "lineage": lineage, "provenance": PROVENANCE}
    options |= {"metadata": source.metadata, "payload_spaces": {OLD_VECTOR: source.space}}
    news = None if before is None else before.new.batches(source.default_batch_rows())
    place = store_for(source if before is None else before.new)
    with writing_rows(folder, place, target, source.id_type, schema, **options) as write:
        for batch in source.batches(source.default_batch_rows(), payload=True):
            native = np.zeros(len(batch), bool)
            if news is None or before is None:
                vectors = translation.apply(batch.vectors)
            else:
                vectors = np.array(next(news).vectors, np.float32)
                native = before.native[batch.start : batch.start + len(batch)].copy()
                if retranslate and not native.all():
                    vectors[~native] = translation.apply(batch.vectors[~native])
            entering.put(batch.start, vectors, native)
            check_rows(vectors, IdValues(batch.ids), "The translation", zero_is_bad=target.metric == Metric.COSINE)
            old = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(batch.vectors).ravel()), type=old_type)
            kinds = pa.DictionaryArray.from_arrays(pa.array((~native).astype(np.int8)), pa.array([NATIVE, TRANSLATED]))
            columns = [batch.payload.column(f.name) for f in kept]
            write(Batch(batch.start, batch.ids, vectors, pa.record_batch([*columns, old, kinds], schema=schema)))


def write_queries(path: Path, queries: Anchors) -> None:
    """Write queries of both spaces."""
    kind = pa.string() if queries.ids.dtype == object else pa.int64()
    element = pa.field("element", pa.float32(), nullable=False)
    old_type = pa.list_(element, queries.source.dim)
    schema = pa.schema([pa.field(OLD_VECTOR, old_type, False)])
    old = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(queries.x, np.float32).ravel()), type=old_type)
    with write_collection(path, queries.target, kind, schema, payload_spaces={OLD_VECTOR: queries.source}) as writer:
        writer.write(Batch(0, pa.array(queries.ids, kind), queries.y, pa.record_batch([old], schema=schema)))


def scaled(vectors: np.ndarray, own: Space, target: Space) -> np.ndarray:
    """Vectors as a stage stores them: scaled to unit length where rows of a cosine space have it and these do not."""
    if target.normalized and not own.normalized and target.metric == Metric.COSINE:
        return unit(vectors)
    return np.asarray(vectors, np.float32)
