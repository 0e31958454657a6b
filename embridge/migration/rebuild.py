"""Rebuilds an index: reads its vectors back, translates them, and builds the same structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from embridge.indexes.build import build
from embridge.indexes.describe import factory_of, settings_of
from embridge.indexes.on_disk import OnDisk
from embridge.maps import LinearMap
from embridge.stores.base import Batch, Collection, RowFilter
from embridge.stores.faiss.collection import external_ids
from embridge.stores.faiss.decode import stored_vectors
from embridge.stores.faiss.index_file import IndexFile
from embridge.stores.memory import empty_payload
from embridge.types import Space


class TranslatedRows(Collection):
    """The rows of an open index, translated batch by batch; a hubness bias is dropped."""

    kind = "faiss"

    def __init__(self, file: IndexFile, path: str, source_print: str, translation: LinearMap, space: Space) -> None:
        self.path = path
        self.space = space
        self.id_type = pa.int64() if file.ids is None else file.ids.type
        self.payload_schema = pa.schema([])
        self._file, self._print, self._translation = file, source_print, translation

    def __len__(self) -> int:
        return self._file.index.ntotal

    def _read(
        self, batch_rows: int, *, payload: bool, vectors: bool, row_filter: RowFilter | None, validate: bool
    ) -> Iterator[Batch]:
        start, width = 0, self._translation.source.dim
        for labels, values in stored_vectors(self._file.index, batch_rows):
            if row_filter is None or row_filter(start, start + len(labels)):
                rows = self._translation.apply(values[:, :width]) if vectors else np.empty((len(labels), 0), np.float32)
                yield Batch(start, external_ids(self._file, labels, self.name), rows, empty_payload(len(labels)))
            start += len(labels)

    def fingerprint(self) -> str:
        return self._print


def rebuild(
    rows: TranslatedRows,
    like: Any,
    *,
    references: np.ndarray | None = None,
    seed: int = 0,
    where: OnDisk | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[IndexFile, str]:
    """An index over translated rows with the structure and the search settings of another, and its factory string.

    With `where` its inverted lists are built on disk.

    Raises
    ------
    FaissIndexError
        There is no factory string for such an index, its vectors cannot be read back, or it cannot be built in the new width.
    """
    factory = factory_of(like)
    for prefix in ("IDMap2,", "IDMap,"):  # `build` adds an id map where one is needed
        factory = factory.removeprefix(prefix)
    settings = settings_of(like)
    return build(rows, factory, references=references, settings=settings, seed=seed, where=where, progress=progress), factory
