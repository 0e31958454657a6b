"""Building a FAISS index over a collection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from embridge.arrays import as_vectors, unit
from embridge.errors import EmbridgeError, FaissIndexError
from embridge.indexes.describe import apply_settings
from embridge.indexes.gpu import on_gpu
from embridge.indexes.hubness import NEIGHBORS, with_bias
from embridge.indexes.offset import with_offset
from embridge.stores.base import Collection
from embridge.stores.faiss.decode import keeps_labels
from embridge.stores.faiss.file import FAISS_ERRORS, faiss_reason
from embridge.stores.faiss.index_file import IndexFile
from embridge.stores.provenance import translated_rows
from embridge.types import Metric, Provenance

_TRAINING_ROWS = 1 << 17  # more only for indexes with many lists
_ROWS_PER_LIST = 64


def build(
    collection: Collection,
    factory: str,
    *,
    seed: int = 0,
    gpu: bool = True,
    references: np.ndarray | None = None,
    calibrated: bool = True,
    settings: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IndexFile:
    """Train an index on a sample of a collection and add all of it.

    Vectors of a cosine space are scaled to unit length and searched by inner product. int64 ids become the index's own
    labels (in an IDMap2 where the type has none of its own); string ids, and int64 ids with -1 among them, stay beside it, by
    position. With `references` (queries of the same space) each row gets its hubness bias as one more dimension (see
    `embridge.indexes.hubness`). Translated rows of a merged collection get their offset in the same way, unless `calibrated` is
    False. `settings` are those of another index (`settings_of`).

    Raises
    ------
    FaissIndexError
        FAISS does not know the factory string, or cannot build it over these vectors; or a bias is requested under L2.
    """
    space = collection.space
    if references is not None:
        if space.metric == Metric.L2:
            raise FaissIndexError(
                f"{collection.name} is measured by L2; a hubness bias needs cosine or inner product. Hint: leave --hubness out."
            )
        references = as_vectors(references, space.dim, "reference queries")

    rows = _Rows.of(collection, references, calibrated=calibrated)
    metric = faiss.METRIC_L2 if space.metric == Metric.L2 else faiss.METRIC_INNER_PRODUCT
    own_ids = collection.id_type == pa.int64() and not _has_empty_label(collection)
    try:
        index = faiss.index_factory(space.dim + rows.is_biased, factory, metric)
        if index.metric_type != metric:
            raise FaissIndexError(
                f"FAISS cannot build {factory!r}: it measures by L2 alone, and {collection.name} by {space.metric}"
            )
        apply_settings(index, settings or {})
        if not index.is_trained:
            index = _train(index, collection, rows, seed, gpu=gpu)
            apply_settings(index, settings or {})
        if own_ids and not keeps_labels(index):
            index = faiss.IndexIDMap2(index)
        held = _add_all(index, collection, rows, progress, own_ids=own_ids)
    except FAISS_ERRORS as e:
        if isinstance(e, EmbridgeError):
            raise
        raise FaissIndexError(f"FAISS cannot build {factory!r}: {faiss_reason(e)}") from e
    ids = None if own_ids else pa.chunked_array(held, collection.id_type).combine_chunks()
    return IndexFile(index, space, ids, {"source": collection.fingerprint()}, rows.notes())


@dataclass(frozen=True, eq=False)
class _Rows:
    """How vectors of a collection become rows of its index: prepared for the metric, with a bias in one more dimension."""

    metric: Metric
    references: np.ndarray | None
    provenance: Provenance | None
    translated: np.ndarray  # (len(collection),), empty without provenance

    @classmethod
    def of(cls, collection: Collection, references: np.ndarray | None, *, calibrated: bool) -> _Rows:
        provenance = collection.provenance if calibrated and collection.provenance and collection.provenance.offset else None
        translated = translated_rows(collection, provenance.column) if provenance else np.empty(0, bool)
        return cls(collection.space.metric, references, provenance, translated)

    @property
    def is_biased(self) -> bool:
        return self.references is not None or self.provenance is not None

    def make(self, vectors: np.ndarray, places: slice | np.ndarray) -> np.ndarray:
        """Rows of the vectors at `places` in the collection."""
        rows = prepare(vectors, self.metric)
        if self.references is not None:
            rows = with_bias(rows, self.references)
            if self.provenance:
                rows[self.translated[places], -1] -= 2 * self.provenance.offset
            return rows
        return with_offset(rows, self.translated[places], self.provenance.offset, self.metric) if self.provenance else rows

    def notes(self) -> dict[str, Any]:
        """The entries of the sidecar that describe the bias."""
        notes: dict[str, Any] = {}
        if self.references is not None:
            notes["hubness"] = {"neighbors": min(NEIGHBORS, len(self.references)), "references": len(self.references)}
        if self.provenance is not None:
            notes["calibration"] = {"offset": self.provenance.offset, "k": self.provenance.k}
        return notes


def _add_all(
    index: Any, collection: Collection, rows: _Rows, progress: Callable[[int, int], None] | None, *, own_ids: bool
) -> list[pa.Array]:
    """Add all rows; returns the ids that the index does not store itself."""
    held: list[pa.Array] = []
    for batch in collection.batches():
        vectors = rows.make(batch.vectors, slice(batch.start, batch.start + len(batch)))
        if own_ids:
            index.add_with_ids(vectors, batch.ids.to_numpy())
        else:
            index.add(vectors)
            held.append(batch.ids)
        if progress is not None:
            progress(batch.start + len(batch), len(collection))
    return held


def _has_empty_label(collection: Collection) -> bool:
    """True where -1 is an id: FAISS uses it for an empty place."""
    return any((part.column("id").to_numpy(zero_copy_only=False) == -1).any() for part in collection.id_reader())


def prepare(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Vectors as an index takes them: float32, of unit length under cosine."""
    return unit(vectors) if metric == Metric.COSINE else np.ascontiguousarray(vectors, dtype=np.float32)


def _train(index: Any, collection: Collection, rows: _Rows, seed: int, *, gpu: bool) -> Any:
    lists = faiss.try_extract_index_ivf(index)
    wanted = max(_TRAINING_ROWS, _ROWS_PER_LIST * lists.nlist if lists is not None else 0)
    places = np.sort(np.random.default_rng(seed).choice(len(collection), min(wanted, len(collection)), replace=False))
    sample = rows.make(collection.take(places), places)
    placed = on_gpu(index) if gpu else index
    placed.train(sample)
    return index if placed is index else faiss.index_gpu_to_cpu(placed)
