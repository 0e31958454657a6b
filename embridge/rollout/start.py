"""Starts a rollout: stage 0."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embridge.anchors import Anchors
from embridge.errors import CollectionError, ParameterError, SpaceMismatchError
from embridge.files import sync_folder, writing
from embridge.indexes.fusion import check_fusible
from embridge.outputs import Output, claim
from embridge.records.rollout import RolloutStage, RolloutStep
from embridge.rollout.entering import match_all, own_queries
from embridge.rollout.maps import fit_first
from embridge.rollout.quality import check_judgments
from embridge.rollout.stage import OLD_VECTOR, PROVENANCE, NativeRows, Stage, write_queries, write_rows
from embridge.rollout.steps import (
    QRELS,
    QUERIES,
    STATE,
    WORKING,
    State,
    check_new,
    commit,
    discard,
    make_folder,
    read_state,
    seal,
)
from embridge.rollout.write import write_index, write_measured
from embridge.stores import source_paths
from embridge.stores.base import Collection, check_content
from embridge.stores.ids import check_unique
from embridge.tables.qrels import write_qrels


def start(
    old: Collection, sample: Collection, root: Path, queries: Anchors | None, qrels: dict[Any, dict[Any, float]], factory: str,
    seed: int,
) -> RolloutStep:  # fmt: skip
    """Write a rollout in a hidden folder beside `root`, which gets its name when it is whole (see `Rollout.start`)."""
    started = time.perf_counter()
    with claim(Output(root, folder=True), inputs=source_paths(old, sample), resume=True):
        contents = [(side, side.fingerprint()) for side in (old, sample)]
        lineage = {"source": contents[0][1], "native": contents[1][1], "queries": _mark(queries, qrels)}
        if (found := read_state(root) if (root / STATE).is_file() else None) and found.is_start_of(lineage, factory, seed):
            return RolloutStep(str(root), "start", found.status.native, found.status, time.perf_counter() - started)
        building = check_new(root)
        queries = _checked(old, sample, queries, qrels)
        with writing(root):
            make_folder(building)
            make_folder(building / WORKING)
        try:
            state, method = _first_stage(building / WORKING, old, sample, queries, qrels, factory, seed, lineage)
            for side, content in contents:
                check_content(side, content)
            commit(building, building / WORKING, state)
            with writing(root):
                os.rename(building, root)
                sync_folder(root.absolute().parent)
        except BaseException:
            discard(building)
            raise
    seconds = time.perf_counter() - started
    index = "built" if factory else ""
    return RolloutStep(str(root), "start", state.status.native, state.status, seconds, map="fitted", method=method, index=index)


def _checked(old: Collection, sample: Collection, queries: Anchors | None, qrels: dict[Any, dict[Any, float]]) -> Anchors | None:
    """Refuse what is not the beginning of a rollout; returns the queries as it stores them."""
    check_fusible(old.space, sample.space)
    if old.space.same_as(sample.space):
        raise SpaceMismatchError(
            f"{old.name} and {sample.name} are both of space {old.space.name!r}, so there is no new encoder. "
            "Hint: name the two encoders apart with --source-space and --target-space."
        )
    for column in (OLD_VECTOR, PROVENANCE.column):
        if column in old.payload_schema.names:
            raise CollectionError.reserved_column(old.name, column)
    check_unique(old)
    if qrels and queries is None:
        raise ParameterError("Judgments need queries. Hint: --queries QS QT (queries=).")
    if queries is not None:
        queries = own_queries(queries, old.space, sample.space)
        if qrels:
            check_judgments(queries, qrels, old)
    return queries


def _mark(queries: Anchors | None, qrels: dict[Any, dict[Any, float]]) -> str:
    """Content hash of queries and judgments; empty without."""
    if queries is None:
        return ""
    digest = hashlib.blake2b(repr([queries.ids.tolist(), qrels]).encode(), digest_size=16)
    for side in (queries.x, queries.y):
        digest.update(np.ascontiguousarray(side).tobytes())
    return digest.hexdigest()


def _first_stage(
    working: Path, old: Collection, sample: Collection, queries: Anchors | None, qrels: dict[Any, dict[Any, float]], factory: str,
    seed: int, lineage: dict[str, str],
) -> tuple[State, str]:  # fmt: skip
    rows, anchors = match_all(old, sample)
    maps = fit_first(anchors, queries, qrels, seed)
    maps.write(working)
    entering = NativeRows(rows, anchors)
    write_rows(
        working,
        old,
        maps.rows,
        entering,
        before=None,
        retranslate=True,
        lineage=lineage | {"map": maps.rows.fingerprint},
    )
    if queries is not None:
        write_queries(working / QUERIES, queries)
    if qrels:
        write_qrels(working / QRELS, qrels)
    stage = Stage(working)
    status = write_measured(stage, 0, seed, history=(), handed=0)
    write_index(stage, factory, status, seed)
    status = replace(status, history=(RolloutStage(0, status.native, status.now.recall, None),))
    folder = seal(working, 0, lineage)
    return State(folder, lineage, factory, seed, status), maps.rows.record.method
