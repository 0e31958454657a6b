"""What enters a rollout is checked here, before anything is written: native rows and logged queries."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from embridge.anchors import Anchors, ids_at, match
from embridge.arrays import norms, unit
from embridge.errors import BadIdsError, BadVectorsError, ParameterError, SpaceMismatchError
from embridge.rollout.stage import NativeRows, Stage, scaled
from embridge.stores.base import Collection
from embridge.stores.ids import check_unique, match_rows
from embridge.types import Space, space_mismatch

Judgments = Mapping[Any, Sequence[Any] | Mapping[Any, float]]
_BLOCK = 8192  # rows compared at once
_SAME = 1e-2  # relative distance up to which two vectors are the same: float16 rounds by less


def check_space(what: str, expected: Space, found: Collection) -> None:
    """Refuse vectors of another space or metric.

    Raises
    ------
    SpaceMismatchError
    """
    if not found.space.same_as(expected):
        raise space_mismatch(what, expected, found.name, found.space)
    if found.space.metric != expected.metric:
        raise SpaceMismatchError.contradiction(found.name, "metric", str(expected.metric), str(found.space.metric))


def match_all(old: Collection, native: Collection) -> tuple[np.ndarray, Anchors]:
    """Positions in `old` of all rows of `native`, and their vectors of both spaces.

    Raises
    ------
    BadIdsError
        A row of `native` is not in `old`, or an id occurs twice on either side.
    BadVectorsError
        A row of `native` has its old vector.
    """
    check_unique(native)
    rows, native_rows = match_rows(old, native)
    if len(native_rows) < len(native):
        unknown = np.setdiff1d(np.arange(len(native)), native_rows)
        raise BadIdsError(
            f"{len(unknown):,} of {len(native):,} ids of {native.name} are not in {old.name}, such as "
            f"{ids_at(native, unknown[:3]).tolist()!r:.200}. Hint: leave these rows out."
        )
    found = match(old, native)
    _check_differ(native.name, found)
    return rows, found


def _check_differ(name: str, pairs: Anchors) -> None:
    """Refuse vectors of the old model in the place of those of the new one, where both have one width."""
    if pairs.x.shape == pairs.y.shape:
        same: list[Any] = []
        for start in range(0, len(pairs), _BLOCK):
            some = slice(start, start + _BLOCK)
            same += pairs.ids[some][_are_same(unit(pairs.x[some]), unit(pairs.y[some]))].tolist()
        if same:
            raise BadVectorsError.rows(name, "the vector of the old model in the place of that of the new one", same)


def _are_same(present: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Which vectors are the same but for rounding, shape (n,), bool."""
    return norms(present - given) <= _SAME * norms(present)


def entering_rows(stage: Stage, native: Collection) -> tuple[NativeRows, int]:
    """The rows of `native` that are not native in the stage, and the number of those that are, with the same vector.

    Raises
    ------
    SpaceMismatchError, BadIdsError
    BadVectorsError
        A row is native already with another vector.
    """
    check_space("The rollout", stage.new.space, native)
    rows, found = match_all(stage.old, native)
    found = replace(found, y=scaled(found.y, native.space, stage.new.space))
    known = np.flatnonzero(stage.native[rows])
    others: list[Any] = []
    for place, present in stage.new.select(rows[known]):
        differ = ~_are_same(present, np.asarray(found.y[known[place]], np.float32))
        others += found.ids[known[place]][differ].tolist()
    if others:
        raise BadVectorsError.rows(native.name, "another vector than in the rollout, where it is native already", others)
    if len(known):
        fresh = np.delete(np.arange(len(rows)), known)
        rows, found = rows[fresh], found.at(fresh)
    return NativeRows(rows, found), len(known)


def entering_queries(stage: Stage, queries: Anchors) -> tuple[Anchors, int]:
    """All logged queries with the new ones among `queries`, and the number of these.

    Raises
    ------
    SpaceMismatchError
    BadVectorsError
        A query is known already with another vector.
    """
    queries = own_queries(queries, stage.old.space, stage.new.space)
    known = stage.queries
    if known is None:
        return queries, len(queries)
    place = {query: n for n, query in enumerate(known.ids.tolist())}
    at = np.array([place.get(query, -1) for query in queries.ids.tolist()], np.int64)
    mine = at >= 0
    for present, given in ((known.x, queries.x), (known.y, queries.y)):
        other = ~_are_same(present[at[mine]], np.asarray(given)[mine])
        if other.any():
            raise BadVectorsError.rows(
                "The file of queries", "another vector than in the rollout", queries.ids[mine][other].tolist()
            )
    fresh = queries.at(~mine)
    if known.ids.dtype != fresh.ids.dtype and len(fresh):
        kind, other = ("string" if ids.dtype == object else str(ids.dtype) for ids in (known.ids, fresh.ids))
        raise BadIdsError.kinds_differ("the logged queries", kind, "the new ones", other)
    ids, x, y = (np.concatenate(pair) for pair in ((known.ids, fresh.ids), (known.x, fresh.x), (known.y, fresh.y)))
    return replace(known, ids=ids, x=x, y=y), len(fresh)


def own_queries(queries: Anchors, old: Space, new: Space) -> Anchors:
    """Queries as a rollout stores them: `scaled`, as rows are; those of other spaces are refused.

    Raises
    ------
    SpaceMismatchError
    """
    for expected, found in ((old, queries.source), (new, queries.target)):
        if not found.same_as(expected):
            raise space_mismatch("The rollout", expected, "the file of queries", found)
    _check_differ("The file of queries", queries)
    return replace(queries, x=scaled(queries.x, queries.source, old), y=scaled(queries.y, queries.target, new))


def check_whole(name: str, value: Any, least: int) -> int:
    """A whole number of at least `least`.

    Raises
    ------
    ParameterError
    """
    try:
        found = operator.index(value)
    except TypeError:
        raise ParameterError.must_be(name, "a whole number", value) from None
    if found < least:
        raise ParameterError.must_be(name, f"at least {least}", value)
    return found


def as_graded(qrels: Judgments | None) -> dict[Any, dict[Any, float]]:
    """Judgments with grades above zero; documents named in a sequence have grade 1.

    Raises
    ------
    ParameterError
        A grade is infinite, or none is above zero.
    BadIdsError
        Ids of queries, or of documents, are of both kinds, strings and integers.
    """
    if qrels is None:
        return {}
    found = {}
    for query, named in qrels.items():
        grades = named if isinstance(named, Mapping) else dict.fromkeys(named, 1.0)
        found[query] = {document: float(grade) for document, grade in grades.items() if grade is not None and grade > 0}
        if np.inf in found[query].values():
            raise ParameterError.must_be(f"the grades of query {query!r}", "finite numbers", np.inf)
    documents = {document for grades in found.values() for document in grades}
    if not documents:
        raise ParameterError("The judgments (qrels) name no relevant document: none has a grade above 0.")
    for what, ids in (("queries", found), ("documents", documents)):
        if len({isinstance(one, str) for one in ids}) > 1:
            raise BadIdsError(f"The judgments (qrels) have strings and integers as ids of {what}. Hint: use one kind.")
    return found
