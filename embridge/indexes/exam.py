"""What a migrated index is held against before it may appear: brute force over translated rows, and the old index's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from embridge.errors import FaissIndexError
from embridge.indexes.ask import ask
from embridge.indexes.build import prepare
from embridge.indexes.gpu import nearest
from embridge.indexes.hubness import augment, with_bias
from embridge.indexes.passage import Passage
from embridge.maps import LinearMap
from embridge.stores.collection import BATCH_BYTES
from embridge.stores.faiss_decode import stored_vectors
from embridge.stores.faiss_file import IndexFile
from embridge.stores.faiss_store import external_ids
from embridge.types import Metric, Space

K = 10
AGREES = 0.995  # a share of answers; what is missing are ties that rounding decides
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
        be hoped for from a structure like its own. None where the passage is exact: then it is the overlap itself.
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
        count: int = 100,
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
        pulled = self._pulled()
        if self.readable:
            self._truth = self._true_neighbours(pulled)
            if not passage.exact:
                own = _Best(old_queries, space, self.k, hub="hubness" in file.notes)
                for labels, stored in stored_vectors(file.index, self._batch_rows):
                    own.see(labels, stored)
                found = ask(file, space, old_queries, self.k)[1]
                self.own_overlap = _overlap(self._ids(file, found), self._ids(file, own.labels))
        hub = "hubness" in file.notes and passage.forward
        answers = None if pulled is None else ask(file, space, pulled, self.k, as_they_are=hub)[1]
        self._old_answers = None if answers is None else self._ids(file, answers)

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
        inner = _unlabelled(self._file.index)
        if isinstance(inner, faiss.IndexFlat | faiss.IndexHNSWFlat):  # the quick way, which other types do not have or do wrongly
            return self._near(inner.reconstruct_batch(wanted)[:, : self._space.dim], rng)
        try:
            for labels, rows in stored_vectors(self._file.index, self._batch_rows):
                low, high = np.searchsorted(wanted, (start, start + len(labels)))
                found.append(rows[wanted[low:high] - start, : self._space.dim])
                start += len(labels)
        except FaissIndexError:
            return None
        return self._near(np.concatenate(found), rng)

    @staticmethod
    def _near(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        spread = rows.std(axis=0).mean() if len(rows) > 1 else np.abs(rows).mean()
        return (rows + _NOISE * spread * rng.normal(size=rows.shape)).astype(np.float32)

    @property
    def _batch_rows(self) -> int:
        return max(1024, BATCH_BYTES // (4 * self._file.index.d))

    def _in_new_space(self, old_queries: np.ndarray) -> np.ndarray:
        return self._map.apply(old_queries) if self._passage.forward else self._map.inverse().apply(old_queries)

    def _true_neighbours(self, pulled: np.ndarray | None) -> np.ndarray:
        """Ids of the true neighbours, by brute force over translated rows.

        Where pulled-back queries should rank stored rows just so, they do the work, at a fraction of the cost, once a first batch
        of rows has shown that they do.
        """
        space, hub = self._passage.space, "hubness" in self._file.notes or self._references is not None
        direct = _Best(self.queries, space, self.k, hub=hub)
        short = None if pulled is None or hub else _Best(pulled, self._space, self.k, hub=False, as_they_are=True)
        if not self._passage.forward:
            direct = _Best(self._map.apply(self.queries), self._space, self.k, hub=hub)
        elif not self._passage.exact:
            short = None
        for labels, stored in stored_vectors(self._file.index, self._batch_rows):
            if short is not None:
                short.see(labels, stored)
            if short is None or not len(direct.labels[0]):
                direct.see(labels, self._translated(stored))
                if short is not None and _overlap(short.labels, direct.labels) < AGREES:
                    short = None
        return self._ids(self._file, (short or direct).labels)

    def _translated(self, stored: np.ndarray) -> np.ndarray:
        if not self._passage.forward:
            return stored
        width = self._space.dim
        rows = self._map.apply(stored[:, :width])
        rows = rows if self._map.target.normalized else prepare(rows, self._passage.space.metric)
        if self._references is not None:
            return with_bias(rows, self._references)
        return np.column_stack([rows, stored[:, width:]]) if self._file.biased else rows

    def _pulled(self) -> np.ndarray | None:
        """The queries, as the old index should get them."""
        if not self._passage.forward:
            return self._map.apply(self.queries)
        if self._passage.queries is None:
            return None
        metric = Metric.COSINE if "hubness" in self._file.notes else self._passage.space.metric
        return self._passage.queries.apply(prepare(self.queries, metric))

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
    """The k best rows of each query, by brute force over rows that come in batches, as they are stored."""

    def __init__(self, queries: np.ndarray, space: Space, k: int, *, hub: bool, as_they_are: bool = False) -> None:
        prepared = queries if as_they_are else prepare(queries, Metric.COSINE if hub else space.metric)
        self._queries = augment(prepared) if hub else prepared
        self._l2, self._k = space.metric == Metric.L2, k
        self.labels = np.empty((len(queries), 0), np.int64)
        self._scores = np.empty((len(queries), 0), np.float32)

    def see(self, labels: np.ndarray, rows: np.ndarray) -> None:
        floor = self._scores[:, -1] if self._scores.shape[1] == self._k else None
        rows = np.ascontiguousarray(rows, np.float32)
        scores, places = nearest(self._queries, rows, min(self._k, len(rows)), l2=self._l2, floor=floor)
        scores = np.concatenate([self._scores, scores], axis=1)
        found = np.concatenate([self.labels, labels[places]], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        self._scores, self.labels = np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)


def _unlabelled(index: Any) -> Any:
    """What an id map maps, where positions are labels."""
    while isinstance(index := faiss.downcast_index(index), faiss.IndexIDMap):
        index = index.index
    return index


def _overlap(found: np.ndarray, truth: np.ndarray) -> float:
    pairs = zip(found.tolist(), truth.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs])) if len(truth) else 0.0
