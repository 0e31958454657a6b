"""How vectors of a collection become rows of an index, read in batches: of one space, or of two for a fused search."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.anchors import ids_at
from embridge.arrays import as_vectors, unit
from embridge.errors import BadIdsError, ChangedSourceError, ParameterError, first_few, n_rows
from embridge.indexes.fusion import Fusion, check_fusible, fused_rows
from embridge.indexes.hubness import NEIGHBORS, with_bias
from embridge.indexes.offset import with_offset
from embridge.stores.base import Batch, Collection
from embridge.stores.ids import match_rows
from embridge.stores.provenance import translated_rows
from embridge.types import Metric, Provenance, Space


def prepare(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Vectors as an index takes them: float32, of unit length under cosine."""
    return unit(vectors) if metric == Metric.COSINE else np.ascontiguousarray(vectors, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class PlainRows:
    """Rows of one space: prepared for the metric, with a bias in one more dimension."""

    collection: Collection
    references: np.ndarray | None
    provenance: Provenance | None
    translated: np.ndarray  # (len(collection),), empty without provenance

    @classmethod
    def of(cls, collection: Collection, references: np.ndarray | None = None, *, calibrated: bool = True) -> PlainRows:
        """Read which rows are translated, where their offset is used."""
        provenance = collection.provenance if calibrated and collection.provenance and collection.provenance.offset else None
        translated = translated_rows(collection, provenance.column) if provenance else np.empty(0, bool)
        return cls(collection, references, provenance, translated)

    @property
    def metric(self) -> Metric:
        """Metric that ranks the rows."""
        return self.collection.space.metric

    @property
    def dim(self) -> int:
        """Width of the rows."""
        return self.collection.space.dim + (self.references is not None or self.provenance is not None)

    def batches(self, start: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        """All rows in order, with the batches that they were made of; batches that end before the position `start` are left out."""
        for batch in self.collection.batches(row_filter=lambda _, stop: stop > start):
            yield batch, self._make(batch.vectors, slice(batch.start, batch.start + len(batch)))

    def take(self, places: np.ndarray) -> np.ndarray:
        """The rows at some sorted positions."""
        return self._make(self.collection.take(places), places)

    def _make(self, vectors: np.ndarray, places: slice | np.ndarray) -> np.ndarray:
        rows = prepare(vectors, self.metric)
        if self.references is not None:
            rows = with_bias(rows, self.references)
            if self.provenance:
                rows[self.translated[places], -1] -= 2 * self.provenance.offset
            return rows
        return with_offset(rows, self.translated[places], self.provenance.offset, self.metric) if self.provenance else rows

    def lineage(self) -> dict[str, str]:
        """Fingerprints of what an index over the rows is made of."""
        return {"source": self.collection.fingerprint()}

    def notes(self) -> dict[str, Any]:
        """The entries of the sidecar that describe the bias."""
        notes: dict[str, Any] = {}
        if self.references is not None:
            notes["hubness"] = {"neighbors": min(NEIGHBORS, len(self.references)), "references": len(self.references)}
        if self.provenance is not None:
            notes["calibration"] = {"offset": self.provenance.offset, "k": self.provenance.k}
        return notes


class FusedRows:
    """Rows of a fused search: new vectors, and old vectors with the same ids (see `embridge.indexes.fusion`).

    Only batches of both sides are in memory. Where the two sides have different orders, old vectors are first written to a
    temporary file in the order of the new ones. The calibrated offset of a merged collection is not used: it makes scores of
    native and translated rows comparable that are ranked by their new vectors alone.

    Parameters
    ----------
    collection : Collection
        New vectors.
    old : Collection
        Old vectors with the same ids, in any order.
    references : pair of ndarray, optional
        Reference queries, of the old and of the new space, for hubness correction.
    fusion : Fusion, optional
        The default of searches (see `Fusion.default`).
    spaces : pair of Space, optional
        The old and the new space, with the metrics that an existing index uses. Default: those of the collections.

    Raises
    ------
    ParameterError
        A side is measured by L2, both are of the same space, or the fusion corrects for hubness without reference queries.
    BadIdsError
        A row has no old or no new vector, an id occurs twice, or ids are of different types.
    """

    metric = Metric.DOT

    def __init__(
        self,
        collection: Collection,
        old: Collection,
        references: tuple[np.ndarray, np.ndarray] | None = None,
        fusion: Fusion | None = None,
        *,
        spaces: tuple[Space, Space] | None = None,
    ) -> None:
        self.spaces = spaces or (old.space, collection.space)
        check_sides(collection, old, self.spaces)
        if (collection.vector_column, collection.fingerprint()) == (old.vector_column, old.fingerprint()):
            raise ParameterError(
                f"A fused search needs old and new vectors, but both sides are column {old.vector_column!r} of {old.name}. "
                "Hint: of a two-vector collection, open the old side with vector_column='old_vector'."
            )
        if references is not None:
            old_references, new_references = (
                as_vectors(queries, space.dim, f"reference queries of {space.name!r}")
                for queries, space in zip(references, self.spaces, strict=True)
            )
            references = old_references, new_references
        self.collection, self.old, self.references = collection, old, references
        self.fusion = fusion or Fusion.default(has_bias=references is not None)
        self.fusion.check(has_bias=references is not None)
        self._old_rows = _matched(collection, old)
        self._is_aligned = bool((self._old_rows == np.arange(len(self._old_rows))).all())

    @property
    def dim(self) -> int:
        """Width of the rows."""
        return sum(space.dim for space in self.spaces) + 2 * (self.references is not None)

    def batches(self, start: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        """All rows in order, with the batches of new vectors that they were made of; without those before the position `start`."""
        old = _InOrder(self.old) if self._is_aligned else _Reordered(self.old, self._old_rows)
        for batch in self.collection.batches():
            vectors = old.take(batch)
            if batch.start + len(batch) > start:
                yield batch, self._make(vectors, batch.vectors)

    def take(self, places: np.ndarray) -> np.ndarray:
        """The rows at some sorted positions."""
        old_rows = self._old_rows[places]
        order = np.argsort(old_rows)
        old = np.empty((len(places), self.old.space.dim), np.float32)
        old[order] = self.old.take(old_rows[order])
        return self._make(old, self.collection.take(places))

    def _make(self, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return fused_rows(old, new, *self.spaces, self.references)

    def lineage(self) -> dict[str, str]:
        """Fingerprints of what an index over the rows is made of."""
        return {"source": self.collection.fingerprint(), "old": self.old.fingerprint()}

    def notes(self) -> dict[str, Any]:
        """The entry of the sidecar that describes the fusion."""
        counts = None if self.references is None else [len(queries) for queries in self.references]
        fusion = {"old_space": self.spaces[0].to_dict(), "weight": self.fusion.weight, "hubness": str(self.fusion.hubness)}
        return {"fusion": fusion | {"references": counts}}


def check_sides(collection: Collection, old: Collection, spaces: tuple[Space, Space]) -> None:
    """Check that the old and the new vectors can be searched together.

    Raises
    ------
    ParameterError
        A side is measured by L2, or both are of the same space.
    """
    check_fusible(*spaces)
    if old.space.same_as(collection.space):
        raise ParameterError(
            f"A fused search needs vectors of two spaces, but {old.name} and {collection.name} are both of "
            f"{old.space.name!r}. Hint: of a two-vector collection, open the old side with vector_column='old_vector'."
        )


def _matched(collection: Collection, old: Collection) -> np.ndarray:
    """For each row its position among the old vectors, shape (len(collection),)."""
    rows, old_rows = match_rows(collection, old)
    for side, other, found in ((collection, old, rows), (old, collection, old_rows)):
        if len(found) < len(side):
            missing = np.setdiff1d(np.arange(len(side)), found)
            raise BadIdsError(
                f"A fused search needs an old and a new vector of every row, but {n_rows(len(missing))} of {side.name} "
                f"are missing in {other.name}: ids {first_few(ids_at(side, missing[:5]).tolist())}. "
                "Hint: translate or re-encode these rows, or leave them out."
            )
    return old_rows


class _InOrder:
    """Old vectors in the order of the new ones, read once."""

    def __init__(self, old: Collection) -> None:
        self._old, self._batches = old, old.batches()
        self._ids, self._held = pa.array([], old.id_type), np.empty((0, old.space.dim), np.float16)

    def take(self, batch: Batch) -> np.ndarray:
        """The old vectors of the next batch of new ones."""
        while len(self._held) < len(batch):
            more = next(self._batches, None)
            if more is None:
                raise ChangedSourceError.of(self._old.name, "it holds fewer rows")
            self._ids = pa.concat_arrays([self._ids, more.ids])
            self._held = np.concatenate([self._held, more.vectors])
        ids, vectors = self._ids[: len(batch)], self._held[: len(batch)]
        self._ids, self._held = self._ids[len(batch) :], self._held[len(batch) :]
        if not ids.equals(batch.ids):
            raise ChangedSourceError.of(self._old.name, "its ids differ")
        return vectors


class _Reordered:
    """Old vectors in the order of the new ones, by way of an unnamed temporary file."""

    def __init__(self, old: Collection, old_rows: np.ndarray) -> None:
        with tempfile.TemporaryFile(prefix="embridge-") as file:  # removed with the process, however it ends
            self._vectors = np.memmap(file, np.float32, "w+", shape=(len(old_rows), old.space.dim))
        place = np.empty(len(old_rows), np.int64)
        place[old_rows] = np.arange(len(old_rows))
        for batch in old.batches():
            self._vectors[place[batch.start : batch.start + len(batch)]] = batch.vectors

    def take(self, batch: Batch) -> np.ndarray:
        """The old vectors of a batch of new ones."""
        return self._vectors[batch.start : batch.start + len(batch)]


__all__ = ["FusedRows", "PlainRows", "check_sides", "prepare"]
