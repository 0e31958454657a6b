"""An open FAISS index: search it with queries of its own space, of another space through a map, or with a blend of both."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from embridge.arrays import as_vectors, check_rows
from embridge.errors import EmbridgeError, FaissIndexError, ParameterError
from embridge.indexes.add import add_rows
from embridge.indexes.build import build
from embridge.indexes.gpu import GPU_LIMIT, on_gpu
from embridge.indexes.parameters import in_force, search_parameters, stateful
from embridge.indexes.scoring import search_index
from embridge.maps import Map
from embridge.maps.queries import blend, project_queries
from embridge.outputs import INDEX, Output, claim
from embridge.stores.base import Collection
from embridge.stores.faiss.collection import ids_of_hits, space_of
from embridge.stores.faiss.file import (
    FAISS_ERRORS,
    IndexFile,
    faiss_reason,
    index_fingerprint,
    read_index_file,
    write_index_file,
)
from embridge.stores.ids import check_unique
from embridge.types import DeclaredSpace, Hits, Metric, Space, space_mismatch

_MOST_EMPTY = 1 << 16  # largest k beyond the vectors of an index: empty places take memory too


class Index:
    """An open FAISS index with its sidecars.

    Attributes
    ----------
    path : str
    space : Space
        The space of its vectors.
    lineage : dict
        Fingerprints of what it was built from.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        space: Space | DeclaredSpace | str | None = None,
        external_lists: bool = False,
    ) -> None:
        self.path = os.fspath(path)
        self._external_lists = external_lists
        self._lock = threading.Lock()
        self._take(read_index_file(self.path, external_lists=external_lists), space)

    def _take(self, file: IndexFile, space: Space | DeclaredSpace | str | None) -> None:
        self._file = file
        self.space = space_of(repr(self.path), file, space)
        self.lineage = file.lineage
        self._searched = on_gpu(file.index)
        self._stateful = bool(stateful(file.index))

    def __len__(self) -> int:
        return self._file.index.ntotal

    def __repr__(self) -> str:
        return f"Index({self.path!r}, {len(self):,} vectors of {self.space})"

    def fingerprint(self) -> str:
        """Content hash."""
        return index_fingerprint(self.path)

    def add(self, collection: Collection) -> None:
        """Add the rows of a collection of the index's space, and write the index again.

        Behind a map in front of the index (``embridge migrate --mode wrap``) new vectors go through that map, where it is valid
        for them.

        Raises
        ------
        FaissIndexError
            The index accepts no new vectors.
        SpaceMismatchError, BadVectorsError, BadIdsError
            The index is unchanged.
        """
        with claim(Output(self.path, INDEX), inputs=(collection.path,), overwrite=True):
            file = add_rows(self._file, self.space, collection, self.path, external_lists=self._external_lists)
            write_index_file(self.path, file)
        self._take(file, self.space)

    def search(
        self,
        queries: np.ndarray,
        k: int = 10,
        *,
        via: Map | None = None,
        old_queries: np.ndarray | None = None,
        weight: float = 0.5,
        parameters: str = "",
    ) -> Hits:
        """The k nearest rows of each query.

        Parameters
        ----------
        queries : ndarray of shape (n_queries, dim)
            In the space of the index, or in the other space of `via`.
        k : int, default 10
            Where it exceeds the number of vectors, places stay empty; then at most 65,536.
        via : LinearMap or KernelMap, optional
            Between the space of the queries and that of the index, in either direction (see `project_queries`).
        old_queries : ndarray of shape (n_queries, index dim), optional
            The same queries by the index's own model, to be blended with the projected ones.
        weight : float, default 0.5
            Weight of the projected queries in the blend.
        parameters : str, optional
            Search parameters of FAISS, such as ``"nprobe=32"`` or ``"efSearch=128"``, for this call only. Searches of other
            threads keep theirs. With parameters the search runs on the CPU.

        Returns
        -------
        Hits
            Cosine and inner product unchanged, L2 as negated squared distance. In an inner-product index ``<q, b>`` is added for
            projected queries, so that scores are those of the translated rows. An index with a hubness bias gives
            ``2 <q, x> - r(x)`` for the unit query. In an index of a merged collection the offset of translated rows is added.

        Raises
        ------
        SpaceMismatchError
            Queries of another width.
        BadVectorsError
            NaN or infinite values, or zero queries under cosine.
        FaissIndexError
            Parameters that the index does not accept.
        """
        k = self._checked(k)
        given = as_vectors(queries, None if via else self.space.dim, "queries")
        cosine = self.space.metric == Metric.COSINE
        check_rows(given, range(len(given)), "queries", zero_is_bad=cosine)
        offset = np.zeros(len(given), np.float32)
        if via is not None:
            projected = project_queries(given, via, self.space)
            if self.space.metric == Metric.DOT and not via.target.same_as(self.space) and "hubness" not in self._file.notes:
                offset = np.asarray(given @ via.intercept, np.float32)
            given = projected
        if old_queries is not None:
            if via is None:
                raise ParameterError("Blending needs a map (via) that projects the new queries into the space of the index.")
            old = as_vectors(old_queries, self.space.dim, "old_queries")
            if len(old) != len(given):
                raise ParameterError.must_be("old_queries", f"as many as queries ({len(given):,})", len(old))
            check_rows(old, range(len(old)), "old_queries", zero_is_bad=cosine)
            given, offset = blend(old, given, weight, self.space.metric), np.zeros_like(offset)
        scores, labels = self._search(given, k, parameters)
        return Hits(ids_of_hits(self._file, labels, repr(self.path)), scores + offset[:, None])

    def _checked(self, k: int) -> int:
        try:
            k = operator.index(k)
        except TypeError:
            raise ParameterError.must_be("k", "an integer", k) from None
        if k < 1:
            raise ParameterError.must_be("k", "at least 1", k)
        if k > max(len(self), _MOST_EMPTY):
            raise ParameterError.must_be(
                "k", f"at most {max(len(self), _MOST_EMPTY):,} ({self.path!r} holds {len(self):,} vectors)", k
            )
        return k

    def _search(self, queries: np.ndarray, k: int, parameters: str) -> tuple[np.ndarray, np.ndarray]:
        if not self._stateful:
            return self._run(queries, k, search_parameters(self._file.index, parameters), parameters)
        with self._lock, in_force(self._file.index, parameters) as rest:
            return self._run(queries, k, search_parameters(self._file.index, rest), parameters)

    def _run(self, queries: np.ndarray, k: int, options: Any, parameters: str) -> tuple[np.ndarray, np.ndarray]:
        index = self._file.index if k > GPU_LIMIT or parameters else self._searched
        try:
            return search_index(self._file, self.space, queries, k, index=index, parameters=options)
        except MemoryError as e:
            what = f"{len(queries):,} queries with k {k:,} over {self.path!r}"
            raise ParameterError(f"{what} need more memory than there is. Hint: a smaller k.") from e
        except FAISS_ERRORS as e:
            if isinstance(e, EmbridgeError):
                raise
            if parameters:
                raise FaissIndexError.parameters(parameters, faiss_reason(e)) from e
            raise FaissIndexError(f"{self.path!r} cannot be searched: {faiss_reason(e)}") from e


def open_index(
    path: str | os.PathLike[str], *, space: Space | DeclaredSpace | str | None = None, external_lists: bool = False
) -> Index:
    """Open a FAISS index to search it; for a bare file without sidecars, pass `space`.

    Parameters
    ----------
    path : str or path-like
    space : Space, DeclaredSpace or str, optional
    external_lists : bool, default False
        Inverted lists in another file may lie outside the folder of the index. FAISS maps them unchecked, so allow that only
        for an index that you trust.

    Raises
    ------
    MissingFileError, UnreadableFileError, FaissIndexError, UndeclaredSpaceError, SpaceMismatchError
    """
    return Index(path, space=space, external_lists=external_lists)


def build_index(
    collection: Collection,
    path: str | os.PathLike[str],
    factory: str = "HNSW32",
    *,
    hubness: Collection | None = None,
    calibrated: bool = True,
    overwrite: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Build a FAISS index over a collection and write it with its sidecars.

    Parameters
    ----------
    collection : Collection
    path : str or path-like
        Usually ``*.faiss``.
    factory : str, default "HNSW32"
        Factory string of `faiss.index_factory`: ``Flat``, ``IVF4096,PQ32``, ``OPQ32,IVF1024,PQ32`` ...
    hubness : Collection, optional
        Reference queries of the same space, other than those of later searches: for each row its mean similarity to its 10
        nearest of them is stored, which every search subtracts (``2 <q, x> - r(x)``). Cosine and inner product only.
    calibrated : bool, default True
        Store the calibrated offset for the translated rows of a merged collection.
    overwrite : bool, default False
    seed : int, default 0
        Seed of the sample that the index is trained on.
    progress : callable, optional
        Called with (rows added, rows in all).

    Returns
    -------
    Index

    Raises
    ------
    FaissIndexError
        FAISS does not accept the factory string.
    OutputExistsError, InterruptedOutputError
        The output exists, or another call is writing it.
    BadVectorsError, BadIdsError
        Nothing is written.
    """
    inputs = (collection.path, None if hubness is None else hubness.path)
    with claim(Output(path, INDEX), inputs=inputs, overwrite=overwrite):
        check_unique(collection)
        references = None if hubness is None else _references(hubness, collection.space)
        made = build(collection, factory, references=references, calibrated=calibrated, seed=seed, progress=progress)
        if hubness is not None:
            made.lineage["hubness"] = hubness.fingerprint()
        write_index_file(os.fspath(path), made)
    return Index(path)


def _references(queries: Collection, space: Space) -> np.ndarray:
    if not queries.space.same_as(space):
        raise space_mismatch("The hubness bias", space, queries.name, queries.space)
    return queries.read()[1]


__all__ = ["Index", "build_index", "open_index"]
