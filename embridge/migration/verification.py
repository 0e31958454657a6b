"""Verifies a migrated index before it is written: against brute force over translated rows, and against the old index's results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from embridge.errors import FaissIndexError
from embridge.indexes.hubness import augment, with_bias
from embridge.indexes.rows import prepare
from embridge.indexes.scoring import search_index
from embridge.maps import LinearMap
from embridge.migration.equivalence import Equivalence
from embridge.neighbors import Nearest, overlap
from embridge.stores.base import BATCH_BYTES
from embridge.stores.faiss.collection import ids_of_hits
from embridge.stores.faiss.decode import stored_vectors
from embridge.stores.faiss.index_file import IndexFile
from embridge.stores.ids import hash_ids
from embridge.types import Metric, Space

K = 10
AGREES = 0.995  # share of equal results; the rest are ties decided by rounding
_NOISE = 0.3  # of the spread of the rows: sampled queries are near rows, but not rows


@dataclass(frozen=True)
class VerificationScore:
    """The scores of a migrated index.

    Attributes
    ----------
    overlap : float
        Mean share of the true 10 nearest rows that it finds.
    agreement : float or None
        Mean share of the old index's results for projected queries that it returns; None where none can be projected.
    """

    overlap: float
    agreement: float | None


class Verification:
    """Sampled queries of the new space, their true neighbors, and the old index's results for them.

    Parameters
    ----------
    file : IndexFile
        The old index, before any change.
    space : Space
    translation : LinearMap
    equivalence : Equivalence
    count : int
        Number of sampled queries.
    seed : int
    queries : ndarray of shape (n, dim_new), optional
        Real queries of the new space, used instead of sampled ones.
    references : ndarray of shape (n, dim_new), optional
        Reference queries for a hubness bias of the migrated index.

    Attributes
    ----------
    queries : ndarray of shape (n_queries, dim_new)
    own_overlap : float or None
        Overlap of the old index in its own space, searched with its rows plus noise: an upper bound for its structure.
        None where the equivalence is exact: then it is equal to the overlap.
    readable : bool
        False where its vectors cannot be read back; then there are only the old index's results to compare with.
    """

    def __init__(
        self,
        file: IndexFile,
        space: Space,
        translation: LinearMap,
        equivalence: Equivalence,
        *,
        count: int = 100,
        seed: int = 0,
        queries: np.ndarray | None = None,
        references: np.ndarray | None = None,
    ) -> None:
        self._file, self._space, self._map, self._equivalence, self._references = file, space, translation, equivalence, references
        self.k = min(K, file.index.ntotal)
        rng = np.random.default_rng(seed)
        old_queries = self._sample(count, rng)
        self.readable = old_queries is not None
        if old_queries is None:
            old_queries = rng.normal(size=(count, space.dim)).astype(np.float32)
        self.queries = self._in_new_space(old_queries) if queries is None else queries
        self.own_overlap: float | None = None
        self._truth: np.ndarray | None = None
        projected = self._projected()
        if self.readable:
            self._truth = self._true_neighbors(projected)
            if not equivalence.exact:
                own = self._nearest(old_queries, space, hub="hubness" in file.notes)
                for labels, stored in stored_vectors(file.index, self._batch_rows):
                    own.offer(stored, labels)
                found = search_index(file, space, old_queries, self.k)[1]
                self.own_overlap = float(overlap(self._ids(file, found), self._ids(file, own.rows)).mean())
        hub = "hubness" in file.notes and equivalence.forward
        answers = None if projected is None else search_index(file, space, projected, self.k, as_they_are=hub)[1]
        self._old_answers = None if answers is None else self._ids(file, answers)

    def score(self, migrated: IndexFile) -> VerificationScore:
        """Search a migrated index with the queries."""
        found = self._ids(migrated, search_index(migrated, self._equivalence.space, self.queries, self.k)[1])
        agreement = None if self._old_answers is None else float(overlap(found, self._old_answers).mean())
        if self._truth is None:
            if agreement is None:
                raise FaissIndexError(
                    "The vectors of the index cannot be read back, and queries cannot be projected to it, "
                    "so nothing can be verified."
                )
            return VerificationScore(agreement, agreement)
        return VerificationScore(float(overlap(found, self._truth).mean()), agreement)

    def _sample(self, count: int, rng: np.random.Generator) -> np.ndarray | None:
        """Rows of the index, plus noise; None where they cannot be read back."""
        n = self._file.index.ntotal
        wanted = np.sort(rng.choice(n, min(count, n), replace=False))
        found, start = [], 0
        inner = _inside_id_map(self._file.index)
        if isinstance(inner, faiss.IndexFlat | faiss.IndexHNSWFlat):  # fast access, which other types lack or get wrong
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
        return self._map.apply(old_queries) if self._equivalence.forward else self._map.inverse().apply(old_queries)

    def _true_neighbors(self, projected: np.ndarray | None) -> np.ndarray:
        """Ids of the true neighbors, by brute force over translated rows.

        Where projected queries rank stored rows equally, they are used instead, which is much faster; a first batch of rows
        checks this.
        """
        space, hub = self._equivalence.space, "hubness" in self._file.notes or self._references is not None
        direct = self._nearest(self.queries, space, hub=hub)
        short = None if projected is None or hub else Nearest(projected, self.k, self._order(self._space), None)
        if not self._equivalence.forward:
            direct = self._nearest(self._map.apply(self.queries), self._space, hub=hub)
        elif not self._equivalence.exact:
            short = None
        for number, (labels, stored) in enumerate(stored_vectors(self._file.index, self._batch_rows)):
            if short is not None:
                short.offer(stored, labels)
            if short is None or not number:
                direct.offer(self._translated(stored), labels)
                if short is not None and overlap(short.rows, direct.rows).mean() < AGREES:
                    short = None
        return self._ids(self._file, (short or direct).rows)

    def _nearest(self, queries: np.ndarray, space: Space, *, hub: bool) -> Nearest:
        """Brute force over rows as stored in an index of this space."""
        prepared = prepare(queries, Metric.COSINE if hub else space.metric)
        return Nearest(augment(prepared) if hub else prepared, self.k, self._order(space), None)

    @staticmethod
    def _order(space: Space) -> Metric:
        return Metric.L2 if space.metric == Metric.L2 else Metric.DOT  # stored rows are unit under cosine

    def _translated(self, stored: np.ndarray) -> np.ndarray:
        if not self._equivalence.forward:
            return stored
        width = self._space.dim
        rows = self._map.apply(stored[:, :width])
        rows = rows if self._map.target.normalized else prepare(rows, self._equivalence.space.metric)
        if self._references is not None:
            return with_bias(rows, self._references)
        return np.column_stack([rows, stored[:, width:]]) if self._file.biased else rows

    def _projected(self) -> np.ndarray | None:
        """The queries as input for the old index."""
        if not self._equivalence.forward:
            return self._map.apply(self.queries)
        if self._equivalence.queries is None:
            return None
        metric = Metric.COSINE if "hubness" in self._file.notes else self._equivalence.space.metric
        return self._equivalence.queries.apply(prepare(self.queries, metric))

    @staticmethod
    def _ids(file: IndexFile, labels: np.ndarray) -> np.ndarray:
        """Ids as int64 (hashes of strings), -1 where nothing was found."""
        found = ids_of_hits(file, labels, "the index")
        if found.dtype != object:
            return found
        codes = hash_ids(found.ravel().astype(str)).astype(np.int64).reshape(labels.shape)
        return np.where(labels == -1, -1, codes)


def _inside_id_map(index: Any) -> Any:
    """The index inside an id map, whose labels are positions."""
    while isinstance(index := faiss.downcast_index(index), faiss.IndexIDMap):
        index = index.index
    return index
