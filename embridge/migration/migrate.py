"""Migrates a FAISS index to another space and verifies the result before it is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
from embridge.indexes.on_disk import OnDisk, unused_lists
from embridge.maps import LinearMap, Map
from embridge.migration.attempt import MigrationAttempt
from embridge.migration.verification import AGREES, Verification, VerificationScore
from embridge.outputs import INDEX, ON_DISK, Output, claim
from embridge.records import Migration
from embridge.stores.faiss.file import FAISS_ERRORS, faiss_reason, index_fingerprint, write_index_file
from embridge.stores.faiss.index_file import IndexFile
from embridge.stores.uri import scheme_of, without_password
from embridge.types import DeclaredSpace, Space

MODES = ("auto", "wrap", "rewrite", "rebuild")
_RELATIVE = 0.9  # of the old index's own overlap, unless min_recall is given


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
    on_disk: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Migration:
    """Migrate a FAISS index to the space at the other end of a map, without the encoder and, where possible, without a rebuild.

    ``wrap`` puts the map in front of the old index and keeps its vectors. ``rewrite`` rewrites the stored vectors and keeps
    graph, lists and labels. ``rebuild`` reads vectors back, translates them and builds the same factory string again. ``auto``
    uses the first of rewrite and wrap that is exact, else the first of them that is accurate enough, else the best of all three.

    Before a result is written it is searched with sampled queries of the new space: its results are compared with brute force
    over the translated rows, and with those of the old index for the projected queries.

    Parameters
    ----------
    path : str or path-like
        The old index.
    translation : LinearMap
        A map out of its space, or (``wrap`` only) into it.
    output : str or path-like
    mode : {"auto", "wrap", "rewrite", "rebuild"}
        ``move`` is another spelling of ``rewrite``.
    space : Space, DeclaredSpace or str, optional
        Space of an index without a sidecar.
    min_recall : float, optional
        The share of the true neighbors of sampled queries that must be found. Default: any, but ``auto`` uses an inexact rewrite or
        wrap only where its overlap is at least 0.9 of that of the old index in its own space.
    queries : ndarray of shape (n, dim_new), optional
        Real queries of the new space to verify with. Default: rows of the index plus noise, translated.
    hubness : ndarray of shape (n, dim_new), optional
        Reference queries of the new space: rows then get a hubness bias (``rebuild`` only; inner product and cosine).
    verify_queries : int, default 100
    external_lists : bool, default False
        Inverted lists in another file may lie outside the folder of the index.
    on_disk : bool, default False
        Rebuild an IVF index in bounded memory with its inverted lists in a file of their own, as `build_index`; a migration that
        was interrupted goes on where it was when it is repeated.
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
        The mode is not possible for this index and map, or the overlap is too low. Nothing is written.
    SpaceMismatchError
        The map is of other spaces.
    MapError
        It has kernel features.
    UnreadableFileError, MissingFileError, OutputExistsError, InterruptedOutputError, UndeclaredSpaceError
    """
    if scheme_of(os.fspath(path)) is not None:
        raise ParameterError(
            f"{without_password(os.fspath(path))!r} is a collection in a store. Hint: eb.migrate_in_place(uri, translation)."
        )
    mode = "rewrite" if mode == "move" else mode
    if mode not in MODES:
        raise ParameterError.must_be("mode", f"one of {', '.join(MODES)}", mode)
    if min_recall is not None and not 0 <= min_recall <= 1:
        raise ParameterError.must_be("min_recall", "in [0, 1]", min_recall)
    if verify_queries < 1:
        raise ParameterError.must_be("verify_queries", "at least 1", verify_queries)
    if not isinstance(translation, LinearMap):
        raise MapError.not_affine("it cannot migrate an index; convert the collection and build an index over it")
    target = Path(output)
    with claim(Output(output, ON_DISK if on_disk else INDEX), inputs=(path,), overwrite=overwrite), unused_lists(target):
        where = OnDisk(target, overwrite) if on_disk else None
        attempt = MigrationAttempt(os.fspath(path), translation, space, seed, hubness, progress, external_lists, where)
        if queries is not None:
            queries = as_vectors(queries, attempt.equivalence.space.dim, "queries")[:verify_queries]
        try:
            return _migrate(attempt, os.fspath(output), mode, min_recall, queries, verify_queries)
        except MigrationRefusedError:
            if where is not None:
                where.finish()
            raise
        except FAISS_ERRORS as e:  # FAISS read the file, but detects only now that it is damaged
            if isinstance(e, EmbridgeError):
                raise
            raise UnreadableFileError.at(attempt.path, "a FAISS index", faiss_reason(e)) from e


def _migrate(
    attempt: MigrationAttempt, target: str, mode: str, min_recall: float | None, queries: np.ndarray | None, verify_queries: int
) -> Migration:
    verification = Verification(
        attempt.file,
        attempt.space,
        attempt.translation,
        attempt.equivalence,
        count=verify_queries,
        seed=attempt.seed,
        queries=queries,
        references=attempt.references,
    )
    refused: list[str] = []
    measured: dict[str, float] = {}
    plan = attempt.plan(mode)
    for candidate, hindered in plan:
        if hindered:
            refused.append(f"{candidate}: {hindered}")
            continue
        try:
            made, exact, reason = attempt.make(candidate)
            score = verification.score(made)
        except FaissIndexError as e:
            if mode != "auto":
                raise
            refused.append(f"{candidate}: {e}")
            continue
        exact = exact and _proven(score, candidate)
        wanted = _wanted(min_recall, verification, is_shortcut=mode == "auto" and candidate != "rebuild" and not exact)
        if min_recall is None and measured:  # the last mode must be better than the earlier ones
            wanted = max(wanted, *measured.values())
        if score.overlap >= wanted:
            return _finish(attempt, verification, target, candidate, made, score, exact=exact, reason=reason, refused=refused)
        refused.append(f"{candidate}: {score.overlap:.3f} of the true neighbors are found, {wanted:.3f} are required")
        measured[candidate] = score.overlap
    if min_recall is not None or not measured:
        hint = "Hint: --mode auto tries all modes." if mode != "auto" else "Hint: convert the collection and index the conversion."
        if any("are required" in reason for reason in refused):
            hint = "Hint: another map, or a lower --min-recall."
        raise MigrationRefusedError(f"{attempt.path!r} is not migrated. {'; '.join(refused)}. {hint}")
    best = max(measured, key=measured.__getitem__)
    made, _, reason = attempt.make(best)
    refused = [line for line in refused if not line.startswith(f"{best}:")]
    return _finish(attempt, verification, target, best, made, verification.score(made), exact=False, reason=reason, refused=refused)


def _finish(
    attempt: MigrationAttempt,
    verification: Verification,
    target: str,
    mode: str,
    made: IndexFile,
    score: VerificationScore,
    *,
    exact: bool,
    reason: str,
    refused: list[str],
) -> Migration:
    made.notes["migration"] = {"mode": mode, "exact": exact, "verified_overlap": score.overlap}
    write_index_file(target, made)
    if attempt.where is not None:
        attempt.where.finish()
    return Migration(
        path=target,
        mode=mode,
        exact=exact,
        verified_overlap=score.overlap,
        queries_verified=len(verification.queries),
        seconds=time.perf_counter() - attempt.started,
        reason="; ".join([reason, *(f"not {line}" for line in refused), *_remarks(score, verification, exact=exact)]),
        rows=made.index.ntotal,
        own_overlap=verification.own_overlap,
        agreement=score.agreement,
        source=attempt.fingerprint,
        map=attempt.translation.fingerprint,
        fingerprint=index_fingerprint(target),
        source_space=attempt.space,
        space=attempt.equivalence.space,
    )


def _proven(score: VerificationScore, mode: str) -> bool:
    share = score.overlap if mode == "rebuild" or score.agreement is None else score.agreement
    return share >= AGREES


def _wanted(min_recall: float | None, verification: Verification, *, is_shortcut: bool) -> float:
    """The required overlap: `min_recall`, else for an inexact rewrite or wrap nearly that of the old index."""
    if min_recall is not None:
        return min_recall
    return _RELATIVE * (1.0 if verification.own_overlap is None else verification.own_overlap) if is_shortcut else 0.0


def _remarks(score: VerificationScore, verification: Verification, *, exact: bool) -> Iterator[str]:
    if not exact and score.agreement is not None:
        yield f"it returns {score.agreement:.3f} of the old index's results for projected queries"
    if not verification.readable:
        yield "its vectors cannot be read back, so it was compared with the old index's results only"
        return
    own = "" if verification.own_overlap is None else f"; the old index finds {verification.own_overlap:.3f} in its own space"
    yield f"{score.overlap:.3f} of the true neighbors are found{own}"
