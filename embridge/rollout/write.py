"""Writes the next stage of a rollout: rows, maps, queries, index and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embridge.anchors import Anchors, ids_at
from embridge.anchors.fold_moments import FoldMoments
from embridge.errors import EmbridgeError, ParameterError
from embridge.files import whole_or_absent
from embridge.indexes.build import build_index
from embridge.indexes.fusion import Fusion, Hubness
from embridge.indexes.replace import replace_rows
from embridge.indexes.rows import FusedRows
from embridge.records.rollout import RolloutStage, RolloutStatus, RolloutStep
from embridge.rollout.figures import measure
from embridge.rollout.forecast import expected, order_of, reached
from embridge.rollout.listed import read_listed, write_listed
from embridge.rollout.maps import MOST_HELD_OUT, MOST_KERNEL, Maps, fit_projection, refit
from embridge.rollout.quality import CHOOSING, REPORTED, Logged, check_judgments, found_rows, reference_rows
from embridge.rollout.rows import COLLECTION, LINK
from embridge.rollout.stage import NativeRows, Stage, is_held_out, write_queries, write_rows
from embridge.rollout.steps import (
    INDEX,
    MAP,
    MOMENTS,
    QRELS,
    QUERIES,
    QUERIES_MAP,
    REACH,
    State,
    copy,
)
from embridge.stores import MemoryCollection
from embridge.tables.ids import read_ids, write_order
from embridge.tables.qrels import write_qrels
from embridge.tensors import write_tensors


def save_array(path: Path, values: np.ndarray) -> None:
    """Write an array as .npy."""
    with whole_or_absent(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values, allow_pickle=False)


def write_measured(stage: Stage, number: int, seed: int, **known: Any) -> RolloutStatus:
    """Measure a stage whose other files are written (`measure`), and write the counts that order its rows."""
    status, reach = measure(stage, number, seed, **known)
    save_array(stage.folder / REACH, reach)
    return status


def write_index(
    stage: Stage, factory: str, status: RolloutStatus, seed: int, *, before: Stage | None = None, changed: np.ndarray | None = None
) -> str:
    """Write the fused index of a stage, where it has one; returns ``built`` or ``updated``.

    It is updated where only the rows `changed` differ from those of the stage before, and FAISS can replace them.
    """
    if not factory:
        return ""
    new, old = references_of(stage, seed)
    fusion = Fusion(status.weight, Hubness(status.hubness))
    if before is not None and changed is not None:
        references = None if new is None or old is None else (old.read()[1], new.read()[1])
        rows = FusedRows(stage.new, stage.old, references, fusion)
        if replace_rows(before.folder / INDEX, stage.folder / INDEX, rows, changed):
            return "updated"
    build_index(stage.new, stage.folder / INDEX, factory, fuse=stage.old, fusion=fusion, hubness=new, old_hubness=old, seed=seed)
    return "built"


def references_of(stage: Stage, seed: int) -> tuple[MemoryCollection | None, MemoryCollection | None]:
    """Reference queries of the new and of the old space, for hubness correction."""
    if stage.queries is None:
        return None, None
    logged = Logged.of(stage.queries, {}, stage.new, seed)
    some = logged.queries.at(reference_rows(logged.half)[REPORTED])
    if not len(some):
        return None, None
    return MemoryCollection(some.ids, some.y, some.target), MemoryCollection(some.ids, some.x, some.source)


def list_rows(state: State, stage: Stage, root: Path, n: int, path: Path, *, again: bool) -> tuple[State, int]:
    """Write the ids of at most n rows that come next to `path`; returns the state with these rows as listed, and their number.

    Rows of a list that is replaced count as not listed: else they would be lost.

    Raises
    ------
    ParameterError
        No row is left.
    """
    left, listed, status = ~stage.native, read_listed(root, state.listed), state.status
    if not again:
        replaced = _rows_in(path, stage) if path.exists() else listed[:0]
        left[np.setdiff1d(listed, replaced)] = False
    rows = order_of(stage.reach, stage.ties, left)[:n]
    if not len(rows):
        raise ParameterError(
            f"No row is left to list: {status.native:,} of {status.rows:,} are native and {status.handed:,} are listed already. "
            "Hint: --again (again=True) lists those again."
        )
    places = np.sort(rows)
    ids = ids_at(stage.new, places)[np.searchsorted(places, rows)]
    both = np.union1d(listed, rows)
    name = write_listed(root, both)
    with whole_or_absent(path) as temporary:
        write_order(temporary, ids, stage.reach[CHOOSING][rows])
    return replace(state, listed=name, status=replace(status, handed=len(both))), len(rows)


def _rows_in(path: Path, stage: Stage) -> np.ndarray:
    """Positions of the rows in a list of ids; none where it is no such list."""
    try:
        wanted = set(read_ids(path).tolist())
    except EmbridgeError:
        return np.empty(0, np.int64)
    return found_rows(stage.new, wanted)[1]


def add_native(state: State, stage: Stage, working: Path, entering: NativeRows, done: RolloutStep) -> tuple[State, RolloutStep]:
    """Write the stage with more native rows."""
    before, number = state.status, state.status.stage + 1
    maps = _refitted(stage, entering, state.seed)
    is_new = maps.rows.fingerprint != stage.translation.fingerprint
    maps.write(working)
    write_rows(
        working, stage.old, maps.rows, entering, before=stage, retranslate=is_new,
        lineage=_lineage(state, maps),
    )  # fmt: skip
    copy(stage.folder, working, (QUERIES, QRELS))
    root = working.parent
    handed = np.setdiff1d(read_listed(root, state.listed), entering.rows)
    then = stage.native.copy()
    then[entering.rows] = True
    foreseen = expected(before, *(reached(stage.reach, native) for native in (stage.native, then)))
    made = Stage(working)
    status = write_measured(made, number, state.seed, history=before.history, handed=len(handed))
    changed = None if is_new else entering.rows
    index = write_index(made, state.factory, status, state.seed, before=stage, changed=changed)
    status = replace(status, history=(*before.history, RolloutStage(number, status.native, status.now.recall, foreseen)))
    done = replace(done, status=status, map="refitted" if is_new else "kept", method=maps.rows.record.method, index=index)
    return replace(state, status=status, listed=write_listed(root, handed)), done


def _refitted(stage: Stage, entering: NativeRows, seed: int) -> Maps:
    """The maps with the entering rows as further anchors."""
    fresh = entering.anchors.at(~is_held_out(entering.anchors.ids, seed))
    moments = FoldMoments.load(stage.folder / MOMENTS)
    if len(fresh):
        moments = moments + fresh.folds(partial=True, full=True)
    before = Maps(stage.translation, stage.projection, moments)
    sample, held_out = (entering.sampled(stage, n, held_out=h, seed=seed) for n, h in ((MOST_KERNEL, False), (MOST_HELD_OUT, True)))
    return refit(before, moments, sample, held_out)


def add_queries(
    state: State, stage: Stage, working: Path, queries: Anchors, qrels: dict[Any, dict[Any, float]], done: RolloutStep
) -> tuple[State, RolloutStep]:
    """Write the same stage with more logged queries."""
    judged = {query: {**stage.qrels.get(query, {}), **qrels.get(query, {})} for query in (*stage.qrels, *qrels)}
    if qrels:
        check_judgments(queries, qrels, stage.new)
    copy(stage.folder, working, (COLLECTION, LINK, MAP, MOMENTS))
    write_queries(working / QUERIES, queries)
    if judged:
        write_qrels(working / QRELS, judged)
    projection = fit_projection(FoldMoments.load(stage.folder / MOMENTS), queries, judged, state.seed)
    write_tensors(working / QUERIES_MAP, *projection.to_file())
    status = state.status
    made = Stage(working)
    status = write_measured(made, status.stage, state.seed, history=status.history, handed=status.handed)
    done = replace(done, status=status, index=write_index(made, state.factory, status, state.seed))
    return replace(state, status=status), done


def _lineage(state: State, maps: Maps) -> dict[str, str]:
    return state.lineage | {"map": maps.rows.fingerprint}
