"""An open FAISS index: search it with queries of its own space, of another space through a map, or with a blend of both."""

from __future__ import annotations

import operator
import os
import threading
from typing import Any

import numpy as np

from embridge.errors import EmbridgeError, FaissIndexError, ParameterError
from embridge.indexes.add import add_rows
from embridge.indexes.fusion import Fusion, Hubness
from embridge.indexes.gpu import GPU_LIMIT, on_gpu
from embridge.indexes.parameters import in_force, search_parameters, stateful
from embridge.indexes.queries import fused_queries, plain_queries
from embridge.indexes.scoring import search_index
from embridge.maps import Map
from embridge.outputs import INDEX, Output, claim
from embridge.stores import source_paths
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
from embridge.types import DeclaredSpace, Hits, Space

_MOST_EMPTY = 1 << 16  # largest k beyond the vectors of an index: empty places take memory too


class Index:
    """An open FAISS index with its sidecars.

    Attributes
    ----------
    path : str
    space : Space
        The space of its vectors; of a fused index that of the new ones.
    old_space : Space or None
        The space of the old vectors of a fused index.
    fusion : Fusion or None
        The default weight and hubness correction of a fused index.
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
        self.lineage, self.old_space = file.lineage, file.old_space
        notes = file.notes.get("fusion", {})
        self.fusion = Fusion(notes["weight"], Hubness(notes["hubness"])) if notes else None
        self._searched = on_gpu(file.index)
        self._stateful = bool(stateful(file.index))

    def __len__(self) -> int:
        return self._file.index.ntotal

    def __repr__(self) -> str:
        fused = "" if self.old_space is None else f" fused with {self.old_space}"
        return f"Index({self.path!r}, {len(self):,} vectors of {self.space}{fused})"

    def fingerprint(self) -> str:
        """Content hash."""
        return index_fingerprint(self.path)

    def add(self, collection: Collection, *, fuse: Collection | None = None) -> None:
        """Add the rows of a collection of the index's space, and write the index again.

        To a fused index rows of a two-vector collection are added, or of a collection with their old vectors in `fuse`.

        Behind a map in front of the index (``embridge migrate --mode wrap``) new vectors go through that map, where it is valid
        for them.

        Raises
        ------
        FaissIndexError
            The index accepts no new vectors.
        SpaceMismatchError, BadVectorsError, BadIdsError
            The index is unchanged.
        """
        with claim(Output(self.path, INDEX), inputs=source_paths(collection, fuse), overwrite=True):
            file = add_rows(self._file, self.space, collection, self.path, fuse=fuse, external_lists=self._external_lists)
            write_index_file(self.path, file)
        self._take(file, self.space)

    def search(
        self,
        queries: np.ndarray,
        k: int = 10,
        *,
        via: Map | None = None,
        old_queries: np.ndarray | None = None,
        weight: float | None = None,
        hubness: Hubness | str | None = None,
        parameters: str = "",
    ) -> Hits:
        """The k nearest rows of each query.

        A fused index scores a row by both its vectors, as ``(1 - w) s_old + w s_new`` (see `embridge.indexes.fusion`).

        Parameters
        ----------
        queries : ndarray of shape (n_queries, dim)
            In the space of the index, or in the other space of `via`. Of a fused index always in the new space.
        k : int, default 10
            Where it exceeds the number of vectors, places stay empty; then at most 65,536.
        via : LinearMap or KernelMap, optional
            Between the space of the queries and that of the index, in either direction (see `project_queries`). Of a fused
            index between its two spaces: it projects the queries where there are no `old_queries`.
        old_queries : ndarray of shape (n_queries, old dim), optional
            The same queries by the index's own model, to be blended with the projected ones; of a fused index by the old model.
        weight : float, optional
            Weight of the projected queries in the blend, default 0.5; of the new side of a fused index, default `fusion.weight`.
        hubness : {"none", "old", "new", "both"}, optional
            The sides of a fused index that are corrected for hubness. Default: `fusion.hubness`.
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
        ParameterError
            A fused index without queries for its old side, or `hubness` where the rows have no bias.
        """
        k = self._checked(k)
        offset = np.zeros(1, np.float32)
        if self.fusion is not None and self.old_space is not None:
            fusion = self.fusion.changed(weight, hubness)
            has_bias = self._file.notes["fusion"]["references"] is not None
            given = fused_queries(fusion, self.old_space, self.space, queries, via, old_queries, has_bias=has_bias)
        elif hubness is not None:
            raise ParameterError(f"hubness belongs to a search of a fused index, and {self.path!r} is not one.")
        else:
            has_bias = "hubness" in self._file.notes
            given, offset = plain_queries(self.space, queries, via, old_queries, weight, has_bias=has_bias)
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
            return search_index(
                self._file, self.space, queries, k, index=index, parameters=options, as_they_are=self.fusion is not None
            )
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


__all__ = ["Index", "open_index"]
