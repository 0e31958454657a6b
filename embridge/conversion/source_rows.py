"""The rows of a source that should be in its output."""

from __future__ import annotations

import numpy as np

from embridge.stores import Batch, Collection


class SourceRows:
    """The rows of a source that should be in the output, read in pieces: all but those `skipped`, or all that are usable."""

    def __init__(self, source: Collection, skipped: np.ndarray | None) -> None:
        self._batches, self._source = source.batches(validate=False), source
        self._skipped = skipped
        self._dim = source.stated_space.dim
        self._held: list[tuple[list, np.ndarray]] = []

    def take(self, count: int) -> tuple[list, np.ndarray]:
        """Ids and vectors of the next `count` rows, or of all that are left."""
        ids: list = []
        vectors = [np.empty((0, self._dim), np.float32)]
        while len(ids) < count and self._fill():
            held_ids, held = self._held.pop(0)
            part = count - len(ids)
            ids += held_ids[:part]
            vectors.append(held[:part])
            if part < len(held_ids):
                self._held.insert(0, (held_ids[part:], held[part:]))
        return ids, np.concatenate(vectors)

    def left(self) -> int:
        """How many rows are left; they are read."""
        found = 0
        while self._fill():
            found += len(self._held.pop(0)[0])
        return found

    def _fill(self) -> bool:
        while not self._held:
            batch: Batch | None = next(self._batches, None)
            if batch is None:
                return False
            if self._skipped is None:
                kept = np.delete(np.arange(len(batch)), list(self._source.unusable(batch)))
            else:
                kept = np.flatnonzero(~np.isin(np.arange(batch.start, batch.start + len(batch)), self._skipped))
            if len(kept):
                self._held.append((batch.ids.take(kept).to_pylist(), batch.vectors[kept]))
        return True
