"""Merges native and translated rows of one space into one collection with calibrated scores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embridge.anchors import ids_at
from embridge.arrays import unit
from embridge.errors import BadVectorsError, CollectionError, OutputError, ParameterError, n_rows
from embridge.files import fingerprint
from embridge.maps import Map
from embridge.merging.calibration import HITS, Found
from embridge.merging.old_vectors import check_complete, shared_payload_spaces
from embridge.neighbors import Nearest
from embridge.outputs import Output, claim
from embridge.records import Merge
from embridge.stores import source_paths
from embridge.stores.base import Collection, check_content
from embridge.stores.ids import check_unique, hash_ids, match_rows
from embridge.stores.parquet.writer import write_collection
from embridge.stores.provenance import MixedRows, translated_rows
from embridge.types import Metric, Provenance, Space, mixed_spaces, space_mismatch


def merge(
    native: Collection,
    translated: Collection,
    path: str | os.PathLike[str],
    *,
    queries: Collection | None = None,
    translation: Map | None = None,
    k: int = 10,
    max_queries: int = 2000,
    dtype: str = "float32",
    overwrite: bool = False,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Merge:
    """Write native and translated rows into one collection, with a column ``provenance`` and a calibration of their scores.

    Scores of native and of translated rows are on different scales. From rows on both sides, whose native and translated
    vectors are both known, an offset is estimated that makes them comparable. It is stored in the file, and every index built
    over it adds it to the scores of translated rows. Half of the queries estimate it, the other half measure its effect.

    Parameters
    ----------
    native : Collection
        Rows by the new model.
    translated : Collection
        Converted rows; or an earlier merge, to which more native rows are added. A row whose id is on both sides is written once,
        native, and keeps the columns that only the translated side has. In a two-vector collection these are the old vectors,
        which every row must have.
    path : str or path-like
        The Parquet file to write: native rows first.
    queries : Collection, optional
        Queries of the new model. Default: native rows that have a translation, which do not find themselves; that is less exact.
    translation : LinearMap or KernelMap, optional
        The map that made the translated rows. Rows that it was fitted on are translated better than others, and an offset
        estimated on them is about half of the right one; with the map given they are left out.
    k : int, default 10
        Neighbors per query in later searches: the right offset for the 10 nearest is too high for the 100 nearest.
    max_queries : int, default 2000
    dtype : {"float32", "float16"}
    overwrite : bool, default False
    seed : int, default 0
        Seed of the choice of queries, and of the half that measures.
    device : str, default "cpu"
        Device to compute scores on.
    progress : callable, optional
        Called with (rows written, rows in all).

    Returns
    -------
    Merge

    Raises
    ------
    SpaceMismatchError
        The sides, the queries or the map are of different spaces.
    BadIdsError
        An id occurs twice on one side, ids are of different types, or a native row would have no old vector.
    CollectionError
        Columns with equal names and different types, a column ``provenance`` not from a merge, or a native side that was converted.
    ChangedSourceError
        A side or the queries changed while they were read.
    BadVectorsError, OutputExistsError, InterruptedOutputError, ParameterError
        Nothing is written.
    """
    started = time.perf_counter()
    for name, value in (("k", k), ("max_queries", max_queries)):
        if value < 1:
            raise ParameterError.must_be(name, "at least 1", value)
    with claim(Output(path), inputs=source_paths(native, translated, queries), overwrite=overwrite) as [target]:
        space = _one_space(native, translated, queries, translation)
        contents = [(side, side.fingerprint()) for side in (native, translated, queries) if side is not None]
        check_unique(native)
        check_unique(translated)
        payload_spaces = shared_payload_spaces(native, translated)
        sides = _Sides.of(native, translated, translation, has_queries=queries is not None)
        check_complete(payload_spaces, (native, sides.native_rows), (translated, sides.translated_rows))
        rows = MixedRows(native, translated, sides.native_rows, sides.translated_rows, sides.is_translated, Provenance(0, k).column)
        found, own_ids = _search(sides, queries, k, max_queries, seed, device)
        measured = hash_ids(own_ids, "measure", seed) % np.uint64(2) == 0
        offset, reason = _offset(found.at(~measured), sides, queries)
        lineage = {"native": contents[0][1], "translated": contents[1][1]}
        lineage |= {"map": translation.fingerprint} if translation else {}
        options = {
            "columns": (native.id_column, native.vector_column),
            "lineage": lineage,
            "provenance": Provenance(offset, k),
            "dtype": dtype,
            "metadata": translated.metadata | native.metadata,
            "payload_spaces": payload_spaces,
        }
        _write(target, space, rows, contents, options, progress)
        made = fingerprint(target)
    return Merge(
        path=str(target),
        rows=len(rows),
        **_counts(sides, len(rows)),
        **_shares(found.at(measured), offset),
        offset=offset,
        reason=reason,
        k=k,
        seconds=time.perf_counter() - started,
        native_source=lineage["native"],
        translated_source=lineage["translated"],
        fingerprint=made,
    )


def _counts(sides: _Sides, rows: int) -> dict[str, int]:
    """The counts of a `Merge`: rows by provenance, and rows known on both sides."""
    translated = int(sides.is_translated.sum()) - int(sides.is_translated[sides.translated_rows].sum())
    replaced, pairs = len(sides.translated_rows), len(sides.pair_rows)
    return {"native": rows - translated, "translated": translated, "replaced": replaced, "pairs": pairs}


def _shares(found: Found, offset: float) -> dict[str, Any]:
    """The measures of a `Merge` on the queries that the offset was not calibrated on; None without such queries."""
    before, after = found.places(0.0), found.places(offset)
    shares = {
        "share_before": before.share,
        "share_after": after.share,
        "share_truth": after.truth,
        "overlap_before": before.overlap,
        "overlap_after": after.overlap,
    }
    return {"queries": len(found)} | (shares if len(found) else dict.fromkeys(shares))


def _write(
    target: Path, space: Space, rows: MixedRows, contents: list[tuple[Collection, str]], options: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> None:  # fmt: skip
    """Write all rows; the file gets its name when they are as many as announced and no source has changed."""
    with write_collection(target, space, contents[0][0].id_type, rows.payload_schema, **options) as writer:
        done = 0
        for batch in rows.batches():
            for column in options["payload_spaces"]:
                if null := batch.payload.column(column).null_count:
                    raise BadVectorsError(f"{n_rows(null)} would have no vector in column {column!r}, which is null on its side.")
            writer.write(batch)
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
        if done != len(rows):
            raise OutputError(f"The sides gave {done:,} rows instead of {len(rows):,}; nothing is written.")
        for side, content in contents:
            check_content(side, content)


@dataclass(frozen=True, eq=False)
class _Sides:
    """The two collections and the positions of their shared rows."""

    native: Collection
    translated: Collection
    native_rows: np.ndarray  # positions of rows that share an id, sorted by the native side
    translated_rows: np.ndarray
    is_translated: np.ndarray  # (len(translated),)
    pair_rows: np.ndarray  # native positions of rows that the calibration may use, sorted
    pairs_description: str

    @classmethod
    def of(cls, native: Collection, translated: Collection, translation: Map | None, *, has_queries: bool) -> _Sides:
        native_rows, rows = match_rows(native, translated)
        provenance = translated.provenance
        flags = np.ones(len(translated), bool) if provenance is None else translated_rows(translated, provenance.column)
        pairs = native_rows[flags[rows]]
        description = f"{len(pairs):,} rows on both sides"
        if translation is not None and len(pairs):
            fitted = np.isin(hash_ids(ids_at(native, pairs), "anchor"), translation.anchor_hashes)
            if not fitted.all() or not has_queries:  # as their own queries, fitted rows would mislead
                pairs = pairs[~fitted]
                description = f"{len(pairs):,} rows on both sides that the map was not fitted on"
            else:
                description += ", on all of which the map was fitted: it should be about twice as much"
        return cls(native, translated, native_rows, rows, flags, pairs, description)


def _one_space(native: Collection, translated: Collection, queries: Collection | None, translation: Map | None) -> Space:
    space = native.space
    for what, side in (("The merge", translated), ("The calibration", queries)):
        if side is None:
            continue
        if not side.space.same_as(space):
            raise space_mismatch(what, space, side.name, side.space)
        if side.space.metric != space.metric:
            raise mixed_spaces("The merge", native.name, space, side.name, side.space)
    if translation is not None and not translation.target.same_as(space):
        raise space_mismatch("The merge", space, "the map's target", translation.target)
    if native.provenance is not None or "map" in getattr(native, "lineage", {}):
        reason = "it was converted with a map" if native.provenance is None else "it holds translated rows itself"
        raise CollectionError(
            f"{native.name} cannot be the native side of a merge: {reason}. "
            "Hint: the native rows come first, the translated second."
        )
    # Vectors decoded from a quantized index have only about the original length.
    normalized = all(side.is_exact and side.space.normalized for side in (native, translated))
    return replace(space, normalized=normalized)


def _search(
    sides: _Sides, queries: Collection | None, k: int, max_queries: int, seed: int, device: str
) -> tuple[Found, np.ndarray]:
    """The nearest native rows, translated rows and translations of pairs of the queries, and the ids of the queries."""
    native, metric = sides.native, sides.native.space.metric
    source = native if queries is None else queries
    rows = sides.pair_rows if queries is None else np.arange(len(queries))
    ids = ids_at(source, rows)
    chosen = np.sort(np.argsort(hash_ids(ids, "merge", seed), kind="stable")[:max_queries])
    vectors = source.take(rows[chosen])
    vectors = unit(vectors) if metric == Metric.DOT else vectors  # the offset is for queries of unit length
    own = rows[chosen] if queries is None else np.full(len(chosen), -1)
    nearest = [Nearest(vectors, count, metric, device) for count in (k + 2, k + 1, 5 * k + 2)]  # one more: its own row
    if len(vectors):
        _look(sides, *nearest)
        for part in (nearest[0], nearest[2]):
            part.without(np.where(own >= 0, own, -2))
    is_pair = np.isin(nearest[0].rows, sides.pair_rows)
    return Found.of(k, *nearest, is_pair), ids[chosen]


def _look(sides: _Sides, natives: Nearest, translations: Nearest, twins: Nearest) -> None:
    """One pass over each side. Rows of `natives` and `twins` are native positions."""
    for batch in sides.native.batches():
        natives.offer(batch.vectors, np.arange(batch.start, batch.start + len(batch)))
    order = np.argsort(sides.translated_rows)
    replaced, by = sides.translated_rows[order], sides.native_rows[order]
    for batch in sides.translated.batches():
        low, high = np.searchsorted(replaced, (batch.start, batch.start + len(batch)))
        places = replaced[low:high] - batch.start
        usable = np.isin(by[low:high], sides.pair_rows)
        twins.offer(batch.vectors[places[usable]], by[low:high][usable])
        rest = np.delete(np.arange(len(batch)), places)
        flags = sides.is_translated[batch.start + rest]
        beyond = len(sides.native) + batch.start + rest  # native rows of an earlier merge
        natives.offer(batch.vectors[rest[~flags]], beyond[~flags])
        translations.offer(batch.vectors[rest[flags]], beyond[flags])


def _offset(found: Found, sides: _Sides, queries: Collection | None) -> tuple[float, str]:
    """The offset, and how it was estimated or why there is none."""
    if not len(sides.translated) > len(sides.translated_rows):
        return 0.0, "not calibrated, every translated row is replaced"
    if not len(sides.pair_rows):
        return 0.0, f"not calibrated, from {sides.pairs_description}. Hint: re-encode some of the translated rows too"
    offset = found.offset() if len(found) else 0.0
    held = found.places(offset).native if len(found) else 0
    if held < HITS:
        hint = "use more queries" if queries is not None else "give --queries (queries=)"
        return 0.0, f"not calibrated, rows on both sides hold only {held:,} of the nearest places ({HITS} are needed). Hint: {hint}"
    by = "queries" if queries is not None else "native rows as queries"
    return round(offset, 7), f"from {len(found):,} {by}, over {sides.pairs_description}"
