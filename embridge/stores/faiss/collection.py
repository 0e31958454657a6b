"""Collections read from FAISS indexes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from embridge.arrays import all_unit
from embridge.errors import (
    BadIdsError,
    ChangedSourceError,
    CollectionError,
    EmbridgeError,
    FaissIndexError,
    SpaceMismatchError,
    UndeclaredSpaceError,
    UnreadableFileError,
)
from embridge.stores.base import Batch, Collection, RowFilter
from embridge.stores.faiss.decode import holds_codes, stored_vectors
from embridge.stores.faiss.file import (
    FAISS_ERRORS,
    IndexFile,
    faiss,
    faiss_reason,
    file_identity,
    index_fingerprint,
    read_index_file,
)
from embridge.stores.memory import empty_payload
from embridge.types import DeclaredSpace, Metric, Space, resolve_space

_ROWS = 1 << 14  # rows per batch when lengths of all rows are checked


class FaissCollection(Collection):
    """The vectors of a FAISS index: flat, HNSW, IVF, scalar and product quantizers, behind id maps and linear transforms.

    Parameters
    ----------
    path : str or path-like
        With its sidecars ``.json`` and ``.ids.parquet``, or bare: then labels are ids, and `space` is required.
    space : Space, DeclaredSpace or str, optional
    external_lists : bool, default False
        Inverted lists in another file may lie outside the folder of the index.

    Raises
    ------
    MissingFileError, UnreadableFileError, CollectionError, FaissIndexError
        Missing, not an index, no vectors, vectors that cannot be read back, or a fused index.
    UndeclaredSpaceError, SpaceMismatchError
        The space is unknown, or the declaration contradicts the index.
    """

    kind = "faiss"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        space: Space | DeclaredSpace | str | None = None,
        external_lists: bool = False,
    ) -> None:
        self.path = os.fspath(path)
        self._file = read_index_file(self.path, mapped=True, external_lists=external_lists)
        self._file.check_plain(self.name)
        self.lineage = self._file.lineage
        if not self._file.index.ntotal:
            raise CollectionError.empty(self.name)
        self.id_type = pa.int64() if self._file.ids is None else self._file.ids.type
        self.payload_schema = pa.schema([])
        for _ in self._vectors(1):  # raises here where vectors cannot be read back
            break
        self.space = space_of(self.name, self._file, space, ranks=False)

    def __len__(self) -> int:
        return self._file.index.ntotal

    def _read(
        self, batch_rows: int, *, payload: bool, vectors: bool, row_filter: RowFilter | None, validate: bool
    ) -> Iterator[Batch]:
        start = 0
        for labels, values in self._vectors(batch_rows):
            if row_filter is None or row_filter(start, start + len(labels)):
                ids = external_ids(self._file, labels, self.name)
                # a column with a hubness bias or a calibration is not part of the vectors
                yield Batch(start, ids, values[:, : self.space.dim if vectors else 0], empty_payload(len(labels)))
            start += len(labels)

    def _vectors(self, batch_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        try:
            yield from stored_vectors(self._file.index, batch_rows)
        except FAISS_ERRORS as e:
            if isinstance(e, EmbridgeError):
                raise
            raise UnreadableFileError.at(str(self.path), "a FAISS index", faiss_reason(e)) from e

    def check_unchanged(self) -> None:
        """As `embridge.stores.base.Collection.check_unchanged`."""
        with contextlib.suppress(EmbridgeError):
            if file_identity(str(self.path)) == self._file.identity:
                return
        raise ChangedSourceError.of(self.name, "it was replaced by another index")

    def fingerprint(self) -> str:
        return index_fingerprint(str(self.path))


def external_ids(file: IndexFile, labels: np.ndarray, where: str) -> pa.Array:
    """The ids behind FAISS labels."""
    if file.ids is None:
        return pa.array(labels)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(file.ids):
        raise BadIdsError.unknown(where, labels[(labels < 0) | (labels >= len(file.ids))].tolist())
    return file.ids.take(pa.array(labels))


def ids_of_hits(file: IndexFile, labels: np.ndarray, where: str) -> np.ndarray:
    """The ids behind the labels of a search, of the same shape; the label -1 of an empty place gives None, or -1 for integers."""
    if file.ids is None:
        return labels
    empty = labels == -1
    found = external_ids(file, np.where(empty, 0, labels).ravel(), where).to_numpy(zero_copy_only=False)
    out = found.reshape(labels.shape).copy()
    out[empty] = None if found.dtype == object else -1
    return out


def space_of(where: str, file: IndexFile, declared: Space | DeclaredSpace | str | None, *, ranks: bool = True) -> Space:
    """The space of an index file: its sidecar's, else the declared one with the metric that the index itself has.

    Unit length is determined from all rows.

    Parameters
    ----------
    where : str
        How messages call the index.
    file : IndexFile
    declared : Space, DeclaredSpace or str, optional
    ranks : bool, default True
        True where the index will be searched: then its metric must rank like that of the space.

    Raises
    ------
    FaissIndexError
        The index has a metric other than inner product and L2.
    UndeclaredSpaceError, SpaceMismatchError
        The space is unknown, or contradicts the index: under cosine also where rows do not have unit length, since their inner
        products and distances do not rank like cosines.
    """
    inner = file.index.metric_type == faiss.METRIC_INNER_PRODUCT
    if not inner and file.index.metric_type != faiss.METRIC_L2:
        raise FaissIndexError(f"{where} uses a FAISS metric other than inner product and L2, which embridge does not support.")
    known = file.bound and file.space is not None
    units = None if known else _are_unit(file)
    found = file.space or Space("?", file.dim, Metric.COSINE if inner else Metric.L2, bool(units))
    if found.dim != file.dim:
        raise CollectionError(f"The metadata of {where} state {found.dim} dimensions, but its vectors have {file.dim} values.")
    space = resolve_space(where, declared, found, is_known=file.space is not None)
    if space is None:
        raise UndeclaredSpaceError.of(where)
    said = DeclaredSpace.parse(declared) if isinstance(declared, str) else declared
    stated = isinstance(declared, Space) and declared.normalized  # of the vectors before they were coded
    if file.space is None and inner and not space.normalized and (said is None or said.metric is None):
        # The inner product of vectors without unit length is not the cosine.
        space = Space(space.name, space.dim, Metric.DOT, normalized=False)
    if inner == (space.metric == Metric.L2) and not (space.metric == Metric.COSINE and (known or units or stated)):
        raise SpaceMismatchError.contradiction(where, "metric", str(space.metric), "inner product" if inner else "l2")
    coded = holds_codes(file.index)
    if not known and not units and not coded and (space.normalized or (ranks and space.metric == Metric.COSINE)):
        raise SpaceMismatchError(
            f"{where} was declared as {'normalized' if space.normalized else 'cosine'}, but not all of its vectors are of unit "
            f"length. Hint: declare it as {space.name}:{'dot' if inner else 'l2'}."
        )
    return space


def _are_unit(file: IndexFile) -> bool | None:
    """True where all rows of an index have unit length; None where they cannot be read back."""
    try:
        return all_unit((rows for _, rows in stored_vectors(file.index, _ROWS)), zero_is_bad=False)
    except FaissIndexError:
        return None


__all__ = ["FaissCollection", "external_ids", "space_of"]
