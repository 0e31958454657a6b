"""Stores of vectors. `open_collection` detects the format."""

from __future__ import annotations

import os

from embridge.errors import ParameterError
from embridge.stores.base import Batch, Collection
from embridge.stores.locations import is_remote
from embridge.stores.memory import MemoryCollection
from embridge.stores.parquet.collection import ParquetCollection
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
    """Open a collection: Parquet (a file, a folder or a glob, local, ``s3://`` or ``gs://``) or a FAISS index.

    Parameters
    ----------
    path : str or path-like
        ``*.faiss`` and ``*.index`` are FAISS indexes, everything else is Parquet.
    space : Space, DeclaredSpace or str, optional
        The space of the vectors, where the file does not name it: a name (``"mpnet"``), a name with a metric (``"mpnet:dot"``), or
        a whole Space. The width is read; the metric is the index's, else cosine; unit length is detected.
    id_column, vector_column : str, optional
        Default: the columns in the file's metadata, else ``id`` and ``vector``. Parquet only.

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
    """
    name = os.fspath(path)
    if name.lower().endswith((".faiss", ".index")):
        if id_column or vector_column:
            raise ParameterError(f"{name!r} is a FAISS index, which has no columns. Leave id_column and vector_column out.")
        from embridge.stores.faiss.collection import FaissCollection  # loads FAISS, which may not be installed

        return FaissCollection(name, space=space, external_lists=external_lists)
    return ParquetCollection(name, space=space, id_column=id_column, vector_column=vector_column)


def source_paths(*sources: Collection | None) -> list[str]:
    """All local paths that collections are read from."""
    found: list[str] = []
    for source in sources:
        if source is not None and source.path is not None:
            found += [str(source.path), *(source.paths if isinstance(source, ParquetCollection) else ())]
    return [path for path in found if not is_remote(path)]
