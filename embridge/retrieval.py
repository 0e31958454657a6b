"""Searching an index with queries of its own space, of another space through a map, or of both, blended."""

from __future__ import annotations

import os
from collections.abc import Callable

import faiss
import numpy as np

from embridge.arrays import as_vectors, check_rows, unit
from embridge.errors import BadIdsError, FaissIndexError, ParameterError, SpaceMismatchError
from embridge.feature_maps import Map
from embridge.files import check_output
from embridge.ids import check_unique, match_rows
from embridge.indexes.ask import ask
from embridge.indexes.build import build
from embridge.indexes.extend import extend
from embridge.indexes.gpu import GPU_LIMIT, on_gpu
from embridge.stores.collection import Collection
from embridge.stores.faiss_store import (
    IndexFile,
    external_ids,
    faiss_reason,
    index_fingerprint,
    read_index_file,
    space_of,
    write_index_file,
)
from embridge.types import DeclaredSpace, Hits, Metric, Space


def carry(queries: np.ndarray, via: Map, space: Space) -> np.ndarray:
    """Queries of the other end of a map, made into queries for rows of `space`.

    A map into `space` is applied; a map out of `space` is pulled back (`LinearMap.pull_back`: the adjoint, or under L2 the
    inverse of an isometry).

    Parameters
    ----------
    queries : ndarray of shape (n_queries, dim of the other end)
    via : LinearMap or FeatureMap
    space : Space

    Returns
    -------
    ndarray of shape (n_queries, space.dim)

    Raises
    ------
    SpaceMismatchError
        The map neither starts nor ends in `space`.
    MapError
        Under L2 the map is no isometry.
    """
    if via.target.same_as(space):
        return via.apply(as_vectors(queries, via.source.dim, f"queries of {via.source.name!r}"))
    if via.source.same_as(space):
        return via.pull_back(queries)
    raise SpaceMismatchError.unrelated((via.source.name, via.target.name), "?", space.name)


def blend(old: np.ndarray, carried: np.ndarray, weight: float = 0.5, metric: Metric = Metric.COSINE) -> np.ndarray:
    """``(1 - weight) unit(old) + weight unit(carried)``: queries of the old model mixed with carried ones of the new.

    Under L2, where lengths have a meaning, as they are: ``(1 - weight) old + weight carried``.

    Parameters
    ----------
    old, carried : ndarray of shape (n_queries, dim)
    weight : float, default 0.5
        In [0, 1].
    metric : Metric, default "cosine"
        Of the rows that are searched.
    """
    if not 0 <= weight <= 1:
        raise ParameterError.must_be("weight", "in [0, 1]", weight)
    if metric == Metric.L2:
        return (1 - np.float32(weight)) * old + np.float32(weight) * carried
    return (1 - np.float32(weight)) * unit(old) + np.float32(weight) * unit(carried)


class Index:
    """An open FAISS index with its sidecars.

    Attributes
    ----------
    path : str
    space : Space
        Whose vectors it holds.
    lineage : dict
        Fingerprints of what it was built from.
    """

    def __init__(self, path: str | os.PathLike[str], *, space: Space | DeclaredSpace | str | None = None) -> None:
        self.path = os.fspath(path)
        self._file: IndexFile = read_index_file(self.path)
        self.space = space_of(repr(self.path), self._file, space)
        self.lineage = self._file.lineage
        self._searched = on_gpu(self._file.index)

    def __len__(self) -> int:
        return self._file.index.ntotal

    def __repr__(self) -> str:
        return f"Index({self.path!r}, {len(self):,} vectors of {self.space})"

    def fingerprint(self) -> str:
        """Content hash."""
        return index_fingerprint(self.path)

    def add(self, collection: Collection) -> None:
        """Add the rows of a collection of the index's space, and write the index anew.

        Behind a map in front of the index (``embridge migrate --mode wrap``) new vectors go through that map, where it is right
        for them.

        Raises
        ------
        FaissIndexError
            The index takes no new vectors.
        SpaceMismatchError, BadVectorsError, BadIdsError
            The index stays as it was.
        """
        self._file = extend(self._file, self.space, collection, self.path)
        write_index_file(self.path, self._file)
        self._searched = on_gpu(self._file.index)

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
            Of the index's own space, or of the other end of `via`.
        k : int, default 10
        via : LinearMap or FeatureMap, optional
            Between the space of the queries and that of the index, in either direction (see `carry`).
        old_queries : ndarray of shape (n_queries, index dim), optional
            The same queries by the index's own model, to be blended with the carried ones.
        weight : float, default 0.5
            Of the carried queries in the blend.
        parameters : str, optional
            Of the FAISS index, such as ``"nprobe=32"`` or ``"efSearch=128"``. They stay in force until others are given.

        Returns
        -------
        Hits
            Cosine and inner product as they are, L2 as negated squared distance. Pulled-back queries of an inner-product index
            get ``<q, b>`` added, so that scores are those of the translated rows. An index with a hubness bias gives
            ``2 <q, x> - r(x)`` for the unit query. In an index of a merged collection the offset of translated rows is added.

        Raises
        ------
        SpaceMismatchError
            Queries of another width.
        BadVectorsError
            NaN or infinite values, or zero queries under cosine.
        FaissIndexError
            Parameters that the index does not take.
        """
        if k < 1:
            raise ParameterError.must_be("k", "at least 1", k)
        asked = as_vectors(queries, None if via else self.space.dim, "queries")
        cosine = self.space.metric == Metric.COSINE
        check_rows(asked, range(len(asked)), "queries", zero_is_bad=cosine)
        offset = np.zeros(len(asked), np.float32)
        if via is not None:
            carried = carry(asked, via, self.space)
            if self.space.metric == Metric.DOT and not via.target.same_as(self.space) and "hubness" not in self._file.notes:
                offset = np.asarray(asked @ via.intercept, np.float32)
            asked = carried
        if old_queries is not None:
            if via is None:
                raise ParameterError("Blending needs a map (via) that carries the new queries into the space of the index.")
            old = as_vectors(old_queries, self.space.dim, "old_queries")
            if len(old) != len(asked):
                raise ParameterError.must_be("old_queries", f"as many as queries ({len(asked):,})", len(old))
            check_rows(old, range(len(old)), "old_queries", zero_is_bad=cosine)
            asked, offset = blend(old, asked, weight, self.space.metric), np.zeros_like(offset)
        scores, labels = self._search(asked, k, parameters)
        scores[labels < 0] = -np.inf
        return Hits(self._ids(labels), scores + offset[:, None])

    def _search(self, queries: np.ndarray, k: int, parameters: str) -> tuple[np.ndarray, np.ndarray]:
        index = self._file.index if k > GPU_LIMIT else self._searched
        if parameters:
            index = self._file.index
            try:
                faiss.ParameterSpace().set_index_parameters(index, parameters)
            except RuntimeError as e:
                raise FaissIndexError.parameters(parameters, faiss_reason(e)) from e
        try:
            return ask(self._file, self.space, queries, k, index=index)
        except RuntimeError as e:  # values that only the search itself looks at, such as nprobe=0
            raise FaissIndexError.parameters(parameters, faiss_reason(e)) from e

    def _ids(self, labels: np.ndarray) -> np.ndarray:
        if self._file.ids is None:
            return labels
        found = external_ids(self._file, np.maximum(labels.ravel(), 0), repr(self.path)).to_numpy(zero_copy_only=False)
        out = found.reshape(labels.shape).copy()
        out[labels < 0] = None if found.dtype == object else -1
        return out


def open_index(path: str | os.PathLike[str], *, space: Space | DeclaredSpace | str | None = None) -> Index:
    """Open a FAISS index to search it; a bare file from elsewhere needs its `space` named.

    Raises
    ------
    MissingFileError, UnreadableFileError, FaissIndexError, UndeclaredSpaceError, SpaceMismatchError
    """
    return Index(path, space=space)


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
        As `faiss.index_factory` takes it: ``Flat``, ``IVF4096,PQ32``, ``OPQ32,IVF1024,PQ32`` ...
    hubness : Collection, optional
        Reference queries of the same space, not those that will be asked: each row then carries its mean similarity to its 10
        nearest of them, which every search subtracts (``2 <q, x> - r(x)``). Cosine and inner product only.
    calibrated : bool, default True
        Let translated rows of a merged collection carry the offset that it was calibrated with.
    overwrite : bool, default False
    seed : int, default 0
        Of the rows that the index is trained on.
    progress : callable, optional
        Called with (rows added, rows in all).

    Returns
    -------
    Index

    Raises
    ------
    FaissIndexError
        FAISS does not take the factory string.
    OutputExistsError, BadVectorsError, BadIdsError
        Nothing is written.
    """
    target = str(check_output(path, overwrite=overwrite, inputs=(collection.path,)))
    check_unique(collection)
    references = None if hubness is None else _references(hubness, collection.space)
    made = build(collection, factory, references=references, calibrated=calibrated, seed=seed, progress=progress)
    if hubness is not None:
        made.lineage["hubness"] = hubness.fingerprint()
    write_index_file(target, made)
    return Index(target)


def _references(queries: Collection, space: Space) -> np.ndarray:
    if not queries.space.same_as(space):
        raise SpaceMismatchError.between("The hubness bias", space, queries.name, queries.space)
    return queries.read()[1]


def search(
    index: Index,
    queries: Collection,
    k: int = 10,
    *,
    via: Map | None = None,
    old_queries: Collection | None = None,
    weight: float = 0.5,
    parameters: str = "",
) -> tuple[np.ndarray, Hits]:
    """Search with a collection of queries; every space is checked.

    Parameters are those of `Index.search`, with collections for arrays; `old_queries` are matched to `queries` by id.

    Returns
    -------
    ids : ndarray of shape (n_queries,)
        Of the queries.
    hits : Hits

    Raises
    ------
    SpaceMismatchError
        Queries are not of the index's space and no map leads there, or the map is of other spaces.
    BadIdsError
        A query has no counterpart among `old_queries`.
    """
    if via is None and not queries.space.same_as(index.space):
        raise SpaceMismatchError.between("The index", index.space, queries.name, queries.space)
    if via is not None:
        ends = ((via.source, via.target), (via.target, via.source))
        if not any(a.same_as(queries.space) and b.same_as(index.space) for a, b in ends):
            names = (via.source.name, via.target.name)
            raise SpaceMismatchError.unrelated(names, queries.space.name, index.space.name)
    ids, vectors = queries.read()
    old = None
    if old_queries is not None:
        if not old_queries.space.same_as(index.space):
            raise SpaceMismatchError.between("Blending", index.space, old_queries.name, old_queries.space)
        rows, old_rows = match_rows(queries, old_queries)
        if len(rows) < len(ids):
            raise BadIdsError.unknown(queries.name, np.delete(ids, rows).tolist())
        old = old_queries.read()[1][old_rows]
    return ids, index.search(vectors, k, via=via, old_queries=old, weight=weight, parameters=parameters)


__all__ = ["Index", "blend", "build_index", "carry", "open_index", "search"]
