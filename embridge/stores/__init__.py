"""Stores of vectors. `open_collection` detects the format."""

from __future__ import annotations

import os

from embridge.errors import ParameterError
from embridge.stores.base import Batch, Collection
from embridge.stores.memory import MemoryCollection
from embridge.stores.parquet.collection import ParquetCollection
from embridge.stores.registry import store_of
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Space

__all__ = ["Batch", "Collection", "MemoryCollection", "ParquetCollection", "open_collection", "source_paths"]


def open_collection(
    path: str | os.PathLike[str],
    *,
    space: Space | DeclaredSpace | str | None = None,
    id_column: str | None = None,
    vector_column: str | None = None,
    external_lists: bool = False,
) -> Collection:
    """Open a collection: Parquet (a file, a folder or a glob, local, ``s3://`` or ``gs://``), a FAISS index, or a store by its URI.

    Parameters
    ----------
    path : str or path-like
        ``*.faiss`` and ``*.index`` are FAISS indexes; ``npy://``, ``lancedb://`` and the schemes of other installed stores are URIs
        of collections there; everything else is Parquet. A password in a URI is used, and not shown or stored anywhere.
    space : Space, DeclaredSpace or str, optional
        The space of the vectors, where the file does not name it: a name (``"mpnet"``), a name with a metric (``"mpnet:dot"``), or
        a whole Space. The width is read; the metric is the index's, else cosine; unit length is detected.
    id_column, vector_column : str, optional
        Default: the columns in the metadata, else ``id`` and ``vector``. An index has none.

    external_lists : bool, default False
        FAISS only: inverted lists in another file may lie outside the folder of the index.

    Returns
    -------
    Collection

    Raises
    ------
    MissingFileError, UnreadableFileError, CollectionError
        Missing, damaged, or of another format; no rows, or a missing column.
    UndeclaredSpaceError
        Neither the file nor the caller names the space.
    SpaceMismatchError
        The declaration contradicts the file, or files of two spaces are mixed.
    BadIdsError, BadVectorsError
        Columns of a wrong type.
    ParameterError, MissingDependencyError
        A URI of an unknown scheme or with an unknown option; a store whose package is not installed.
    """
    name = os.fspath(path)
    columns = {"id_column": id_column, "vector_column": vector_column}
    if (store := store_of(name)) is not None:
        return store.open(Location.parse(name), space=space, **columns)
    if name.lower().endswith((".faiss", ".index")):
        if id_column or vector_column:
            raise ParameterError(f"{name!r} is a FAISS index, which has no columns. Leave id_column and vector_column out.")
        from embridge.stores.faiss.collection import FaissCollection  # loads FAISS, which may not be installed

        return FaissCollection(name, space=space, external_lists=external_lists)
    return ParquetCollection(name, space=space, **columns)


def source_paths(*sources: Collection | None) -> list[str]:
    """All local paths that collections are read from."""
    return [path for source in sources if source is not None for path in source.files]
