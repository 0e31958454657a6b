"""A FAISS index moved to another space, exactly where mathematics allows, and proven before it appears."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import numpy as np

from embridge.arrays import as_vectors
from embridge.errors import (
    EmbridgeError,
    FaissIndexError,
    MapError,
    MigrationRefusedError,
    ParameterError,
    UnreadableFileError,
)
from embridge.feature_maps import Map
from embridge.indexes.exam import AGREES, Exam, Marks
from embridge.indexes.job import Job
from embridge.maps import LinearMap
from embridge.outputs import INDEX, Output, claim
from embridge.records import Migration
from embridge.stores.faiss_file import FAISS_ERRORS, IndexFile, faiss_reason, index_fingerprint, write_index_file
from embridge.types import DeclaredSpace, Space

MODES = ("auto", "wrap", "move", "rebuild")
_RELATIVE = 0.9  # of what the old index itself finds, where nothing else is asked for


def migrate(
    path: str | os.PathLike[str],
    translation: Map,
    output: str | os.PathLike[str],
    *,
    mode: str = "auto",
    space: Space | DeclaredSpace | str | None = None,
    min_recall: float | None = None,
    queries: np.ndarray | None = None,
    hubness: np.ndarray | None = None,
    verify_queries: int = 100,
    external_lists: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Migration:
    """Move a FAISS index into the space at the other end of a map, without the encoder and, where it can be, without a rebuild.

    ``wrap`` puts the map in front of the old index: no stored vector is touched. ``move`` rewrites the stored vectors and keeps
    graph, lists and labels. ``rebuild`` reads vectors back, translates them and builds the same factory string anew. ``auto``
    takes the first of move and wrap that is exact, else the first of them that measures well enough, else the best of all three.

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
        not exact (or wraps so) only where it finds 0.9 of what the old index finds in its own space.
    queries : ndarray of shape (n, dim_new), optional
        Real queries of the new space to verify with. Default: rows of the index plus noise, translated.
    hubness : ndarray of shape (n, dim_new), optional
        Reference queries of the new space: rows then carry a hubness bias (rebuilt, inner product and cosine only).
    verify_queries : int, default 100
    external_lists : bool, default False
        Inverted lists in another file may lie outside the folder of the index.
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
    MapError
        It has kernel features.
    UnreadableFileError, MissingFileError, OutputExistsError, InterruptedOutputError, UndeclaredSpaceError
    """
    if mode not in MODES:
        raise ParameterError.must_be("mode", f"one of {', '.join(MODES)}", mode)
    if min_recall is not None and not 0 <= min_recall <= 1:
        raise ParameterError.must_be("min_recall", "in [0, 1]", min_recall)
    if verify_queries < 1:
        raise ParameterError.must_be("verify_queries", "at least 1", verify_queries)
    if not isinstance(translation, LinearMap):
        raise MapError.not_affine("no index moves through it; convert the collection and build one over it")
    with claim(Output(output, INDEX), inputs=(path,), overwrite=overwrite):
        job = Job(os.fspath(path), translation, space, seed, hubness, progress, external_lists)
        if queries is not None:
            queries = as_vectors(queries, job.passage.space.dim, "queries")[:verify_queries]
        try:
            return _migrate(job, os.fspath(output), mode, min_recall, queries, verify_queries)
        except FAISS_ERRORS as e:  # FAISS read the file, and finds only now that it makes no sense
            if isinstance(e, EmbridgeError):
                raise
            raise UnreadableFileError.at(job.path, "a FAISS index", faiss_reason(e)) from e


def _migrate(
    job: Job, target: str, mode: str, min_recall: float | None, queries: np.ndarray | None, verify_queries: int
) -> Migration:
    exam = Exam(
        job.file,
        job.space,
        job.translation,
        job.passage,
        count=verify_queries,
        seed=job.seed,
        queries=queries,
        references=job.references,
    )
    refused: list[str] = []
    measured: dict[str, float] = {}
    plan = job.plan(mode)
    for attempt, hindered in plan:
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
        wanted = _wanted(min_recall, exam, is_shortcut=mode == "auto" and attempt != "rebuild" and not exact)
        if min_recall is None and measured:  # the last resort must be better than what went before
            wanted = max(wanted, *measured.values())
        if marks.overlap >= wanted:
            return _finish(job, exam, target, attempt, made, marks, exact=exact, reason=reason, refused=refused)
        refused.append(f"{attempt}: {marks.overlap:.3f} of the true neighbours are found, {wanted:.3f} are wanted")
        measured[attempt] = marks.overlap
    if min_recall is not None or not measured:
        raise MigrationRefusedError.of(job.path, mode, refused)
    best = max(measured, key=lambda attempt: measured[attempt])
    made, _, reason = job.carry_out(best)
    refused = [line for line in refused if not line.startswith(f"{best}:")]
    return _finish(job, exam, target, best, made, exam.mark(made), exact=False, reason=reason, refused=refused)


def _finish(
    job: Job,
    exam: Exam,
    target: str,
    mode: str,
    made: IndexFile,
    marks: Marks,
    *,
    exact: bool,
    reason: str,
    refused: list[str],
) -> Migration:
    made.notes["migration"] = {"mode": mode, "exact": exact, "verified_overlap": marks.overlap}
    write_index_file(target, made)
    return Migration(
        path=target,
        mode=mode,
        exact=exact,
        verified_overlap=marks.overlap,
        queries_verified=len(exam.queries),
        seconds=time.perf_counter() - job.started,
        reason="; ".join([reason, *(f"not {line}" for line in refused), *_remarks(marks, exam, exact=exact)]),
        rows=made.index.ntotal,
        own_overlap=exam.own_overlap,
        agreement=marks.agreement,
        source=job.fingerprint,
        map=job.translation.fingerprint,
        fingerprint=index_fingerprint(target),
        source_space=job.space,
        space=job.passage.space,
    )


def _proven(marks: Marks, mode: str) -> bool:
    share = marks.overlap if mode == "rebuild" or marks.agreement is None else marks.agreement
    return share >= AGREES


def _wanted(min_recall: float | None, exam: Exam, *, is_shortcut: bool) -> float:
    """What must be found: what was asked for; else a move or wrap that is not exact must be nearly as good as the old index is."""
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
