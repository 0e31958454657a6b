"""What a migrated index is held against before it may appear: brute force over translated rows, and the old index's own answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from embridge.errors import FaissIndexError, MapError
from embridge.indexes.ask import ask
from embridge.indexes.build import prepare
from embridge.indexes.gpu import nearest
from embridge.indexes.hubness import augment, bias
from embridge.indexes.passage import Passage
from embridge.maps import LinearMap
from embridge.stores.collection import BATCH_BYTES
from embridge.stores.faiss_file import IndexFile
from embridge.stores.faiss_store import external_ids, stored_vectors
from embridge.types import Metric, Space

K = 10
_NOISE = 0.3  # of the spread of the rows: sampled queries are near rows, and are none


@dataclass(frozen=True)
class Marks:
    """How a migrated index did.

    Attributes
    ----------
    overlap : float
        Mean share of the true 10 nearest rows that it finds.
    agreement : float or None
        Mean share of the old index's answers to pulled-back queries that it gives; None where none can be pulled back.
    """

    overlap: float
    agreement: float | None


class Exam:
    """Sampled queries of the new space, their true neighbours, and what the old index answers to them.

    Parameters
    ----------
    file : IndexFile
        The old index, before anything is changed in it.
    space : Space
    translation : LinearMap
    passage : Passage
    count : int
        Queries sampled.
    seed : int
    queries : ndarray of shape (n, dim_new), optional
        Real queries of the new space, used instead.
    references : ndarray of shape (n, dim_new), optional
        Reference queries of a hubness bias that the migrated index shall have.

    Attributes
    ----------
    queries : ndarray of shape (n_queries, dim_new)
    own_overlap : float or None
        What the old index finds of the neighbours in its own space, asked with rows of its own plus noise: the best that can
        be hoped for from a structure like its own.
    readable : bool
        False where its vectors cannot be read back; then its own answers are all there is to compare with.
    """

    def __init__(
        self,
        file: IndexFile,
        space: Space,
        translation: LinearMap,
        passage: Passage,
        *,
        count: int = 200,
        seed: int = 0,
        queries: np.ndarray | None = None,
        references: np.ndarray | None = None,
    ) -> None:
        self._file, self._space, self._map, self._passage, self._references = file, space, translation, passage, references
        self.k = min(K, file.index.ntotal)
        rng = np.random.default_rng(seed)
        old_queries = self._sample(count, rng)
        self.readable = old_queries is not None
        if old_queries is None:
            old_queries = rng.normal(size=(count, space.dim)).astype(np.float32)
        self.queries = self._in_new_space(old_queries) if queries is None else queries
        self.own_overlap: float | None = None
        self._truth: np.ndarray | None = None
        if self.readable:
            self._truth, own = self._brute_force(old_queries)
            self.own_overlap = _overlap(self._ids(file, ask(file, space, old_queries, self.k)[1]), own)
        self._old_answers = self._ask_old()

    def mark(self, migrated: IndexFile) -> Marks:
        """Put the questions to a migrated index."""
        found = self._ids(migrated, ask(migrated, self._passage.space, self.queries, self.k)[1])
        agreement = None if self._old_answers is None else _overlap(found, self._old_answers)
        if self._truth is None:
            if agreement is None:
                raise FaissIndexError.cannot_be_verified()
            return Marks(agreement, agreement)
        return Marks(_overlap(found, self._truth), agreement)

    def _sample(self, count: int, rng: np.random.Generator) -> np.ndarray | None:
        """Rows of the index, plus noise; None where they cannot be read back."""
        n = self._file.index.ntotal
        wanted = np.sort(rng.choice(n, min(count, n), replace=False))
        found, start = [], 0
        try:
            for labels, rows in stored_vectors(self._file.index, self._batch_rows):
                low, high = np.searchsorted(wanted, (start, start + len(labels)))
                found.append(rows[wanted[low:high] - start, : self._space.dim])
                start += len(labels)
        except FaissIndexError:
            return None
        rows = np.concatenate(found)
        spread = rows.std(axis=0).mean() if len(rows) > 1 else np.abs(rows).mean()
        return (rows + _NOISE * spread * rng.normal(size=rows.shape)).astype(np.float32)

    @property
    def _batch_rows(self) -> int:
        return max(1024, BATCH_BYTES // (4 * self._file.index.d))

    def _in_new_space(self, old_queries: np.ndarray) -> np.ndarray:
        return self._map.apply(old_queries) if self._passage.forward else self._map.inverse().apply(old_queries)

    def _brute_force(self, old_queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the true neighbours of the new-space queries, and of the old ones in the old space: one pass over the rows."""
        forward, new_space = self._passage.forward, self._passage.space
        asked = self.queries if forward else self._map.apply(self.queries)
        hub = "hubness" in self._file.notes
        truth = _Best(asked, new_space if forward else self._space, self.k, hub or self._references is not None)
        own = _Best(old_queries, self._space, self.k, hub)
        for labels, stored in stored_vectors(self._file.index, self._batch_rows):
            rows = stored[:, : self._space.dim]
            held = stored[:, self._space.dim :] if self._file.biased else None
            own.see(labels, rows, held)
            if forward:
                translated = prepare(self._map.apply(rows), new_space.metric)
                fresh = held if self._references is None else bias(translated, self._references)[:, None]
                truth.see(labels, translated, fresh)
            else:
                truth.see(labels, rows, held)
        return self._ids(self._file, truth.labels), self._ids(self._file, own.labels)

    def _ask_old(self) -> np.ndarray | None:
        asked = prepare(self.queries, self._passage.space.metric)
        if not self._passage.forward:
            pulled = self._map.apply(asked)
        elif self._passage.queries is None:
            return None
        else:
            try:
                pulled = self._map.pull_back(asked)
            except MapError:
                return None
        hub = "hubness" in self._file.notes and self._passage.forward
        return self._ids(self._file, ask(self._file, self._space, pulled, self.k, as_they_are=hub)[1])

    @staticmethod
    def _ids(file: IndexFile, labels: np.ndarray) -> np.ndarray:
        if file.ids is None:
            return labels
        known = external_ids(file, np.maximum(labels.ravel(), 0), "the index")
        out = (known if pa.types.is_integer(known.type) else known.cast(pa.string())).to_numpy(zero_copy_only=False)
        out = out.astype(object).reshape(labels.shape)
        out[labels < 0] = None
        return out


class _Best:
    """The k best rows of each query, by brute force over rows that come in batches."""

    def __init__(self, queries: np.ndarray, space: Space, k: int, hub: bool) -> None:
        prepared = prepare(queries, Metric.COSINE if hub else space.metric)
        self._queries = augment(prepared) if hub else prepared
        self._space, self._k, self._hub = space, k, hub
        self.labels = np.empty((len(queries), 0), np.int64)
        self._scores = np.empty((len(queries), 0), np.float32)

    def see(self, labels: np.ndarray, rows: np.ndarray, held: np.ndarray | None) -> None:
        rows = prepare(rows, self._space.metric)
        if self._hub and held is not None:
            rows = np.ascontiguousarray(np.column_stack([rows, held]), np.float32)
        scores, places = nearest(self._queries, rows, min(self._k, len(rows)), l2=self._space.metric == Metric.L2)
        scores = np.concatenate([self._scores, scores], axis=1)
        found = np.concatenate([self.labels, labels[places]], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        self._scores, self.labels = np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)


def _overlap(found: np.ndarray, truth: np.ndarray) -> float:
    pairs = zip(found.tolist(), truth.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs])) if len(truth) else 0.0
