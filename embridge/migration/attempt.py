"""The migration of one index by one map: the possible modes, and their results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np

from embridge.arrays import as_vectors
from embridge.errors import CollectionError, FaissIndexError
from embridge.indexes.on_disk import OnDisk
from embridge.maps import LinearMap
from embridge.migration.equivalence import Equivalence, Extent, equivalence, extent
from embridge.migration.rebuild import TranslatedRows, rebuild
from embridge.migration.rewrite import folds, loses, obstacle, rewrite
from embridge.migration.wrap import wrap
from embridge.stores.faiss.collection import space_of
from embridge.stores.faiss.decode import external_lists_of, holds_codes, stored_vectors
from embridge.stores.faiss.file import index_fingerprint, read_index_file
from embridge.stores.faiss.index_file import IndexFile
from embridge.types import DeclaredSpace, Space, space_mismatch

_CONDITION = 1e4  # beyond it a map flattens directions that a graph or lists were built on


@dataclass
class MigrationAttempt:
    """One index and one map: the possible modes, and their results."""

    path: str
    translation: LinearMap
    declared: Space | DeclaredSpace | str | None
    seed: int
    references: np.ndarray | None
    progress: Callable[[int, int], None] | None
    external_lists: bool = False
    where: OnDisk | None = None

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        self.file: IndexFile = self._read()
        self.file.check_plain(repr(self.path))
        self.space = space_of(repr(self.path), self.file, self.declared)
        if not any(end.same_as(self.space) for end in (self.translation.source, self.translation.target)):
            raise space_mismatch("The map", self.translation.source, repr(self.path), self.space)
        if "calibration" in self.file.notes:
            raise FaissIndexError(
                f"{self.path!r} holds native and translated rows whose scores were calibrated in its own space, "
                "which is not valid in another space. "
                "Hint: convert the original collection, and index the result."
            )
        if not self.file.index.ntotal:
            raise CollectionError.empty(repr(self.path))
        self.fingerprint = index_fingerprint(self.path)
        self.extent = self._extent()
        self.equivalence: Equivalence = equivalence(
            self.translation, self.space, self.extent, l2=self.file.index.metric_type == faiss.METRIC_L2
        )
        if self.references is not None:
            self.references = as_vectors(self.references, self.equivalence.space.dim, "reference queries")
        self._untouched = True

    def _read(self) -> IndexFile:
        return read_index_file(self.path, external_lists=self.external_lists)

    def _extent(self) -> Extent:
        if not self.translation.source.same_as(self.space):
            return extent(self.translation, None)
        width = self.space.dim
        try:
            rows = (rows[:, :width] for _, rows in stored_vectors(self.file.index, 1 << 14))
            return extent(self.translation, rows, coded=holds_codes(self.file.index))
        except FaissIndexError:
            return extent(self.translation, None)

    def plan(self, mode: str) -> list[tuple[str, str | None]]:
        """The modes to try, in order, each with its obstacle (determined before anything changes the index)."""
        if mode != "auto":
            return [(mode, self.obstacle(mode))]
        plan = [(m, self.obstacle(m)) for m in ("rewrite", "wrap", "rebuild")]
        if self.equivalence.exact and plan[0][1] is None and loses(self.file.index):
            return [("rewrite", "it would round half-precision vectors again"), plan[1], plan[0], plan[2]]
        return plan

    def obstacle(self, mode: str) -> str | None:
        """Why a mode is not possible, or None."""
        if mode == "rebuild":
            return None if self.equivalence.forward else self.equivalence.reason
        if self.where is not None:
            return "inverted lists on disk are built anew"
        if self.references is not None:
            return "a hubness bias is a new dimension, which needs a rebuild"
        if "scores" in self.file.notes:
            return "it already has a map in front; combine the maps (LinearMap.then) and migrate the first index"
        if lists := external_lists_of(self.file.index):
            return f"its inverted lists lie in another file ({lists}), which two indexes would share"
        if mode == "wrap":
            return None if self.equivalence.queries is not None else self.equivalence.reason
        if found := obstacle(self.file.index, self.equivalence, biased=self.file.biased):
            return found
        if not self.equivalence.exact and self.extent.condition > _CONDITION:
            return f"the map's condition number is {self.extent.condition:.1e} on the rows of the index"
        return None

    def make(self, mode: str) -> tuple[IndexFile, bool, str]:
        """The migrated index, whether it should be exact, and why."""
        lineage = {"source": self.fingerprint, "map": self.translation.fingerprint}
        if mode == "rebuild":
            file = self.file if self._untouched else self._read()
            rows = TranslatedRows(file, self.path, self.fingerprint, self.translation, self.equivalence.space)
            made, factory = rebuild(
                rows, file.index, references=self.references, seed=self.seed, where=self.where, progress=self.progress
            )
            exact = factory == "Flat"
            reason = f"{factory} built over translated vectors" + ("" if exact else ", as accurate as such an index is")
            return IndexFile(made.index, made.space, made.ids, lineage, made.notes), exact, reason
        file = self.file if self._untouched else self._read()
        self._untouched = False
        notes = {key: file.notes[key] for key in ("hubness",) if key in file.notes}
        adds = file.notes.get("adds", True)
        exact, reason = self.equivalence.exact, self.equivalence.reason
        if mode == "wrap":
            queries = self.equivalence.queries
            index = wrap(file.index, queries, biased=file.biased)  # type: ignore[arg-type]
            adds = adds and self.equivalence.adds and "hubness" not in notes
        else:
            index = file.index
            adds = adds and (self.equivalence.adds or not folds(index))
            exact = exact and not loses(index)
            reason += "; half-precision vectors are rounded again" if loses(index) else ""
        front = mode == "wrap" or folds(index)
        if front and self.equivalence.scores:
            notes["scores"] = self.equivalence.scores
        if mode == "rewrite":
            rewrite(index, self.equivalence)
        if not adds:
            notes["adds"] = False
        if not self.equivalence.forward:
            notes["raw_queries"] = True  # the map expects the new model's vectors and scales them itself
        return IndexFile(index, self.equivalence.space, file.ids, lineage, notes), exact, reason
