"""A FAISS index moved to another space, exactly where mathematics allows, and proven before it appears."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from embridge.arrays import as_vectors
from embridge.errors import (
    CollectionError,
    EmbridgeError,
    FaissIndexError,
    MigrationRefusedError,
    ParameterError,
    SpaceMismatchError,
    UnreadableFileError,
)
from embridge.files import check_output
from embridge.indexes.describe import holds_codes
from embridge.indexes.exam import AGREES, Exam, Marks
from embridge.indexes.move import folds, loses, move, obstacle
from embridge.indexes.passage import Extent, Passage, extent, passage
from embridge.indexes.rebuild import TranslatedRows, rebuild
from embridge.indexes.wrap import wrap
from embridge.maps import LinearMap
from embridge.records import Migration
from embridge.stores.faiss_file import IndexFile, faiss_reason, index_fingerprint, read_index_file, write_index_file
from embridge.stores.faiss_store import space_of, stored_vectors
from embridge.types import DeclaredSpace, Space

MODES = ("auto", "wrap", "move", "rebuild")
_RELATIVE = 0.9  # of what the old index itself finds, where nothing else is asked for
_CONDITION = 1e4  # beyond it a map flattens directions that a graph or lists were built on


def migrate(
    path: str | os.PathLike[str],
    translation: LinearMap,
    output: str | os.PathLike[str],
    *,
    mode: str = "auto",
    space: Space | DeclaredSpace | str | None = None,
    min_recall: float | None = None,
    queries: np.ndarray | None = None,
    hubness: np.ndarray | None = None,
    verify_queries: int = 100,
    overwrite: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Migration:
    """Move a FAISS index into the space at the other end of a map, without the encoder and, where it can be, without a rebuild.

    ``wrap`` puts the map in front of the old index: no stored vector is touched. ``move`` rewrites the stored vectors and keeps
    graph, lists and labels. ``rebuild`` reads vectors back, translates them and builds the same factory string anew. ``auto``
    takes the first of move and wrap that is exact, else move where it measures well enough, else a rebuild, else wrap.

    Every result is asked sampled queries of the new space before it is written: its answers are held against brute force over
    the translated rows, and against those of the old index to the pulled-back queries.

    Parameters
    ----------
    path : str or path-like
        The old index.
    translation : LinearMap
        Out of its space, or (``wrap`` only) into it.
    output : str or path-like
    mode : {"auto", "wrap", "move", "rebuild"}
    space : Space, DeclaredSpace or str, optional
        Of an index that does not say it itself.
    min_recall : float, optional
        The share of the true neighbours of sampled queries that must be found. Default: any, but ``auto`` takes a move that is
        not exact only where it finds 0.9 of what the old index finds in its own space.
    queries : ndarray of shape (n, dim_new), optional
        Real queries of the new space to verify with. Default: rows of the index plus noise, translated.
    hubness : ndarray of shape (n, dim_new), optional
        Reference queries of the new space: rows then carry a hubness bias (rebuilt, inner product and cosine only).
    verify_queries : int, default 100
    overwrite : bool, default False
    seed : int, default 0
    progress : callable, optional
        Called with (rows added, rows in all) while rebuilding.

    Returns
    -------
    Migration

    Raises
    ------
    MigrationRefusedError
        The mode is not possible for this index and map, or too little is found. Nothing is written.
    SpaceMismatchError
        The map is of other spaces.
    UnreadableFileError, MissingFileError, OutputExistsError, UndeclaredSpaceError
    """
    if mode not in MODES:
        raise ParameterError.must_be("mode", f"one of {', '.join(MODES)}", mode)
    if min_recall is not None and not 0 <= min_recall <= 1:
        raise ParameterError.must_be("min_recall", "in [0, 1]", min_recall)
    if verify_queries < 1:
        raise ParameterError.must_be("verify_queries", "at least 1", verify_queries)
    target = str(check_output(output, overwrite=overwrite, inputs=(os.fspath(path),)))
    job = _Job(os.fspath(path), translation, space, seed, hubness, progress)
    if queries is not None:
        queries = as_vectors(queries, job.passage.space.dim, "queries")[:verify_queries]
    try:
        return _migrate(job, target, mode, min_recall, queries, verify_queries)
    except (RuntimeError, MemoryError) as e:  # FAISS read the file, and finds only now that it makes no sense
        if isinstance(e, EmbridgeError):
            raise
        raise UnreadableFileError.at(job.path, "a FAISS index", faiss_reason(e)) from e


def _migrate(
    job: _Job, target: str, mode: str, min_recall: float | None, queries: np.ndarray | None, verify_queries: int
) -> Migration:
    translation = job.translation
    exam = Exam(
        job.file,
        job.space,
        translation,
        job.passage,
        count=verify_queries,
        seed=job.seed,
        queries=queries,
        references=job.references,
    )
    refused: list[str] = []
    for attempt, hindered in job.plan(mode):
        if hindered:
            refused.append(f"{attempt}: {hindered}")
            continue
        try:
            made, exact, reason = job.carry_out(attempt)
            marks = exam.mark(made)
        except FaissIndexError as e:
            if mode != "auto":
                raise
            refused.append(f"{attempt}: {e}")
            continue
        exact = exact and _proven(marks, attempt)
        wanted = _wanted(min_recall, exam, is_shortcut=mode == "auto" and attempt == "move" and not exact)
        if marks.overlap < wanted:
            refused.append(f"{attempt}: {marks.overlap:.3f} of the true neighbours are found, {wanted:.3f} are wanted")
            continue
        reason = "; ".join([reason, *([f"not {r}" for r in refused]), *_remarks(marks, exam, exact=exact)])
        made.notes["migration"] = {"mode": attempt, "exact": exact, "verified_overlap": marks.overlap}
        write_index_file(target, made)
        return Migration(
            path=target,
            mode=attempt,
            exact=exact,
            verified_overlap=marks.overlap,
            queries_verified=len(exam.queries),
            seconds=time.perf_counter() - job.started,
            reason=reason,
            rows=made.index.ntotal,
            own_overlap=exam.own_overlap,
            agreement=marks.agreement,
            source=job.fingerprint,
            map=translation.fingerprint,
            fingerprint=index_fingerprint(target),
            source_space=job.space,
            space=job.passage.space,
        )
    raise MigrationRefusedError.of(job.path, mode, refused)


def _proven(marks: Marks, mode: str) -> bool:
    share = marks.overlap if mode == "rebuild" or marks.agreement is None else marks.agreement
    return share >= AGREES


def _wanted(min_recall: float | None, exam: Exam, *, is_shortcut: bool) -> float:
    """What must be found: what was asked for; else a move that is not exact must be nearly as good as the old index is."""
    if min_recall is not None:
        return min_recall
    return _RELATIVE * (1.0 if exam.own_overlap is None else exam.own_overlap) if is_shortcut else 0.0


def _remarks(marks: Marks, exam: Exam, *, exact: bool) -> Iterator[str]:
    if not exact and marks.agreement is not None:
        yield f"it gives {marks.agreement:.3f} of the old index's answers to pulled-back queries"
    if not exam.readable:
        yield "its vectors cannot be read back, so it was held against the old index's answers alone"
        return
    own = "" if exam.own_overlap is None else f"; the old index finds {exam.own_overlap:.3f} of its own"
    yield f"{marks.overlap:.3f} of the true neighbours are found{own}"


@dataclass
class _Job:
    """One index and one map: what is possible, and how it is done."""

    path: str
    translation: LinearMap
    declared: Space | DeclaredSpace | str | None
    seed: int
    references: np.ndarray | None
    progress: Callable[[int, int], None] | None

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        self.file: IndexFile = read_index_file(self.path)
        self.space = space_of(repr(self.path), self.file, self.declared)
        if not any(end.same_as(self.space) for end in (self.translation.source, self.translation.target)):
            raise SpaceMismatchError.between("The map", self.translation.source, repr(self.path), self.space)
        if not self.file.index.ntotal:
            raise CollectionError.empty(repr(self.path))
        self.fingerprint = index_fingerprint(self.path)
        self.extent = self._extent()
        self.passage: Passage = passage(
            self.translation, self.space, self.extent, l2=self.file.index.metric_type == faiss.METRIC_L2
        )
        if self.references is not None:
            self.references = as_vectors(self.references, self.passage.space.dim, "reference queries")
        self._untouched = True

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
        """What is tried, in order, with what is in its way (all of it found before anything changes the index)."""
        if mode != "auto":
            return [(mode, self.obstacle(mode))]
        order = ["move", "wrap", "rebuild"] if self.passage.exact else ["move", "rebuild", "wrap"]
        plan = [(m, self.obstacle(m)) for m in order]
        if self.passage.exact and plan[0][1] is None and loses(self.file.index):
            return [("move", "it would round half-precision vectors anew"), plan[1], plan[0], plan[2]]
        return plan

    def obstacle(self, mode: str) -> str | None:
        """Why a mode is not possible, or None."""
        if mode == "rebuild":
            return None if self.passage.forward else self.passage.reason
        if self.references is not None:
            return "a hubness bias is a new dimension, which needs a rebuild"
        if "scores" in self.file.notes:
            return "a map stands in front of it already; join the maps (LinearMap.then) and migrate the first index"
        if lists := _foreign_lists(self.file.index):
            return f"its inverted lists lie in another file ({lists}), which two indexes would share"
        if mode == "wrap":
            return None if self.passage.queries is not None else self.passage.reason
        if found := obstacle(self.file.index, self.passage, biased=self.file.biased):
            return found
        if not self.passage.exact and self.extent.condition > _CONDITION:
            return f"the map's condition number is {self.extent.condition:.1e} on the rows of the index"
        return None

    def carry_out(self, mode: str) -> tuple[IndexFile, bool, str]:
        """The migrated index, whether it should be exact, and why."""
        lineage = {"source": self.fingerprint, "map": self.translation.fingerprint}
        if mode == "rebuild":
            file = self.file if self._untouched else read_index_file(self.path)
            rows = TranslatedRows(file, self.path, self.fingerprint, self.translation, self.passage.space)
            made, factory = rebuild(rows, file.index, references=self.references, seed=self.seed, progress=self.progress)
            exact = factory == "Flat"
            reason = f"{factory} built over translated vectors" + ("" if exact else ", as good as such an index is")
            return IndexFile(made.index, made.space, made.ids, lineage, made.notes), exact, reason
        file = self.file if self._untouched else read_index_file(self.path)
        self._untouched = False
        notes = {key: file.notes[key] for key in ("hubness",) if key in file.notes}
        adds = file.notes.get("adds", True)
        exact, reason = self.passage.exact, self.passage.reason
        if mode == "wrap":
            queries = self.passage.queries
            index = wrap(file.index, queries, biased=file.biased)  # type: ignore[arg-type]
            adds = adds and self.passage.adds and "hubness" not in notes
        else:
            index = file.index
            adds = adds and (self.passage.adds or not folds(index))
            exact = exact and not loses(index)
            reason += "; half-precision vectors are rounded anew" if loses(index) else ""
        front = mode == "wrap" or folds(index)
        if front and self.passage.scores:
            notes["scores"] = self.passage.scores
        if mode == "move":
            move(index, self.passage)
        if not adds:
            notes["adds"] = False
        if not self.passage.forward:
            notes["raw_queries"] = True  # the map takes them as the new model gives them, and makes them unit itself
        return IndexFile(index, self.passage.space, file.ids, lineage, notes), exact, reason


def _foreign_lists(index: Any) -> str | None:
    """The file in which an index keeps its inverted lists, where that is not its own."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap | faiss.IndexPreTransform):
        return _foreign_lists(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _foreign_lists(index.base_index)
    if isinstance(index, faiss.IndexIVF) and hasattr(faiss, "OnDiskInvertedLists"):
        lists = faiss.downcast_InvertedLists(index.invlists)
        return str(lists.filename) if isinstance(lists, faiss.OnDiskInvertedLists) else None
    return None
