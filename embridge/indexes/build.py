"""Building a FAISS index over a collection, or over two for a fused search."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from embridge.arrays import as_vectors
from embridge.errors import EmbridgeError, FaissIndexError, ParameterError
from embridge.indexes.describe import apply_settings
from embridge.indexes.fusion import Fusion, reference_pair
from embridge.indexes.gpu import on_gpu
from embridge.indexes.index import Index
from embridge.indexes.on_disk import OnDisk, check_type, unused_lists
from embridge.indexes.rows import FusedRows, PlainRows
from embridge.outputs import INDEX, ON_DISK, Output, claim
from embridge.stores import source_paths
from embridge.stores.base import Collection
from embridge.stores.faiss.decode import keeps_labels
from embridge.stores.faiss.file import FAISS_ERRORS, faiss_reason, write_index_file
from embridge.stores.faiss.index_file import IndexFile
from embridge.stores.ids import check_unique
from embridge.types import Metric, Space, space_mismatch

_TRAINING_ROWS = 1 << 17  # more only for indexes with many lists
_ROWS_PER_LIST = 64


def build_index(
    collection: Collection,
    path: str | os.PathLike[str],
    factory: str = "HNSW32",
    *,
    fuse: Collection | None = None,
    fusion: Fusion | None = None,
    hubness: Collection | None = None,
    old_hubness: Collection | None = None,
    calibrated: bool = True,
    on_disk: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Build a FAISS index over a collection and write it with its sidecars.

    With `fuse` the index is fused: a row is its old and its new vector, and a search scores it by both. Weight and hubness
    correction are in the query, so they can change from search to search. Each row takes the space of both vectors. The offset of a
    merged collection is not used in it, since it is calibrated for scores of the new vectors alone.

    Parameters
    ----------
    collection : Collection
        Of a fused index: the new vectors, native or translated.
    path : str or path-like
        Usually ``*.faiss``.
    factory : str, default "HNSW32"
        Factory string of `faiss.index_factory`: ``Flat``, ``IVF4096,PQ32``, ``OPQ32,IVF1024,PQ32`` ...
    fuse : Collection, optional
        The old vectors of the same ids, in any order. Of a two-vector collection: the same file opened with
        ``vector_column="old_vector"``. Cosine and inner product only.
    fusion : Fusion, optional
        The default of searches of a fused index. Default: weight 0.5; with reference queries both sides are corrected.
    hubness : Collection, optional
        Reference queries of the same space, other than those of later searches: for each row its mean similarity to its 10
        nearest of them is stored, which every search subtracts (``2 <q, x> - r(x)``; searches of a fused index where their
        `hubness` says so). Cosine and inner product only.
    old_hubness : Collection, optional
        Reference queries of the old space. A fused index takes both or neither.
    calibrated : bool, default True
        Store the calibrated offset for the translated rows of a merged collection.
    on_disk : bool, default False
        Keep the inverted lists of an IVF index in a file of their own, ``PATH.DIGEST.lists``, which searches map into memory, and
        build it in bounded memory: for collections larger than memory. A build that was interrupted goes on where it was when it is
        repeated. The index keeps the path of that file, so neither can be moved. String ids are held in memory.
    overwrite : bool, default False
    seed : int, default 0
        Seed of the sample that the index is trained on.
    progress : callable, optional
        Called with (rows added, rows in all).

    Returns
    -------
    Index

    Raises
    ------
    FaissIndexError
        FAISS does not accept the factory string.
    OutputExistsError, InterruptedOutputError
        The output exists, or another call is writing it.
    BadVectorsError, BadIdsError
        Nothing is written. Also where a row of a fused index has no old or no new vector.
    ParameterError
        Sides that cannot be fused (L2, or both of one space), or options that belong to a fused index only.
    """
    sources = [side for side in (collection, fuse, hubness, old_hubness) if side is not None]
    target = Path(path)
    with (
        claim(Output(path, ON_DISK if on_disk else INDEX), inputs=source_paths(*sources), overwrite=overwrite),
        unused_lists(target),
    ):
        if fuse is None and (fusion is not None or old_hubness is not None):
            raise ParameterError("fusion and old_hubness belong to a fused index. Hint: give its old vectors (fuse, --fuse).")
        check_unique(collection)
        references = None if hubness is None else _references(hubness, collection.space)
        if fuse is None:
            rows = _plain_rows(collection, references, calibrated=calibrated)
        else:
            check_unique(fuse)
            old_references = None if old_hubness is None else _references(old_hubness, fuse.space)
            rows = FusedRows(collection, fuse, reference_pair(old_references, references), fusion)
        where = OnDisk(target, overwrite) if on_disk else None
        made = build_over(rows, factory, seed=seed, where=where, progress=progress)
        for role, queries in (("hubness", hubness), ("old_hubness", old_hubness)):
            if queries is not None:
                made.lineage[role] = queries.fingerprint()
        write_index_file(os.fspath(path), made)
        if where is not None:
            where.finish()
    return Index(path)


def _references(queries: Collection, space: Space) -> np.ndarray:
    if not queries.space.same_as(space):
        raise space_mismatch("The hubness bias", space, queries.name, queries.space)
    return queries.read()[1]


def build(
    collection: Collection,
    factory: str,
    *,
    seed: int = 0,
    gpu: bool = True,
    references: np.ndarray | None = None,
    calibrated: bool = True,
    settings: dict[str, Any] | None = None,
    where: OnDisk | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IndexFile:
    """Train an index on a sample of a collection and add all of it.

    Vectors of a cosine space are scaled to unit length and searched by inner product. int64 ids become the index's own
    labels (in an IDMap2 where the type has none of its own); string ids, and int64 ids with -1 among them, stay beside it, by
    position. With `references` (queries of the same space) each row gets its hubness bias as one more dimension (see
    `embridge.indexes.hubness`). Translated rows of a merged collection get their offset in the same way, unless `calibrated` is
    False. `settings` are those of another index (`settings_of`). With `where` inverted lists are built on disk.

    Raises
    ------
    FaissIndexError
        FAISS does not know the factory string, or cannot build it over these vectors; or a bias is requested under L2.
    """
    rows = _plain_rows(collection, references, calibrated=calibrated)
    return build_over(rows, factory, seed=seed, gpu=gpu, settings=settings, where=where, progress=progress)


def _plain_rows(collection: Collection, references: np.ndarray | None, *, calibrated: bool) -> PlainRows:
    space = collection.space
    if references is not None:
        if space.metric == Metric.L2:
            raise FaissIndexError(
                f"{collection.name} is measured by L2; a hubness bias needs cosine or inner product. Hint: leave --hubness out."
            )
        references = as_vectors(references, space.dim, "reference queries")
    return PlainRows.of(collection, references, calibrated=calibrated)


def build_over(
    rows: PlainRows | FusedRows,
    factory: str,
    *,
    seed: int = 0,
    gpu: bool = True,
    settings: dict[str, Any] | None = None,
    where: OnDisk | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IndexFile:
    """`build` over prepared rows, such as those of a fused search.

    Raises
    ------
    FaissIndexError
    """
    if isinstance(rows, FusedRows) and "L2norm" in factory.split(","):
        raise FaissIndexError(f"{factory!r} scales whole rows to unit length, which would change the score of a fused search.")
    collection, metric = rows.collection, faiss.METRIC_L2 if rows.metric == Metric.L2 else faiss.METRIC_INNER_PRODUCT
    own_ids = collection.id_type == pa.int64() and not _has_empty_label(collection)
    try:
        if where is not None:
            check_type(_untrained(rows, factory, metric), factory)
            plan = {"factory": factory, "seed": seed, "settings": settings or {}, "faiss": faiss.__version__}
            return where.build(
                rows, lambda: _trained(rows, factory, metric, seed, settings, gpu=gpu), plan, own_ids=own_ids, progress=progress
            )
        index = _trained(rows, factory, metric, seed, settings, gpu=gpu)
        if own_ids and not keeps_labels(index):
            index = faiss.IndexIDMap2(index)
        held = _add_all(index, rows, progress, own_ids=own_ids)
    except FAISS_ERRORS as e:
        if isinstance(e, EmbridgeError):
            raise
        raise FaissIndexError(f"FAISS cannot build {factory!r}: {faiss_reason(e)}") from e
    ids = None if own_ids else pa.chunked_array(held, collection.id_type).combine_chunks()
    return IndexFile(index, collection.space, ids, rows.lineage(), rows.notes())


def _untrained(rows: PlainRows | FusedRows, factory: str, metric: int) -> Any:
    index = faiss.index_factory(rows.dim, _with_padding(factory, rows), metric)
    if index.metric_type != metric:
        raise FaissIndexError(
            f"FAISS cannot build {factory!r}: it measures by L2 alone, and {rows.collection.name} by {rows.metric}"
        )
    return index


def _trained(
    rows: PlainRows | FusedRows, factory: str, metric: int, seed: int, settings: dict[str, Any] | None, *, gpu: bool
) -> Any:
    """The empty index, trained on a sample of the rows."""
    index = _untrained(rows, factory, metric)
    apply_settings(index, settings or {})
    if not index.is_trained:
        index = _train(index, rows, seed, gpu=gpu)
        apply_settings(index, settings or {})
    return index


def _with_padding(factory: str, rows: PlainRows | FusedRows) -> str:
    """The factory string with zeros in front where biases make the width one that product quantizers cannot divide."""
    width = math.lcm(*(int(parts) for parts in re.findall(r"PQ(\d+)", factory)))
    if not isinstance(rows, FusedRows) or rows.references is None or not width or rows.dim % width == 0:
        return factory
    if re.match(r"PCA|RR|ITQ|Pad|L2norm|OPQ\d+_", factory):  # sets the width itself
        return factory
    return f"Pad{-(-rows.dim // width) * width},{factory}"


def _add_all(
    index: Any, rows: PlainRows | FusedRows, progress: Callable[[int, int], None] | None, *, own_ids: bool
) -> list[pa.Array]:
    """Add all rows; returns the ids that the index does not store itself."""
    held: list[pa.Array] = []
    for batch, vectors in rows.batches():
        if own_ids:
            index.add_with_ids(vectors, batch.ids.to_numpy())
        else:
            index.add(vectors)
            held.append(batch.ids)
        if progress is not None:
            progress(batch.start + len(batch), len(rows.collection))
    return held


def _has_empty_label(collection: Collection) -> bool:
    """True where -1 is an id: FAISS uses it for an empty place."""
    return any((part.column("id").to_numpy(zero_copy_only=False) == -1).any() for part in collection.id_reader())


def _train(index: Any, rows: PlainRows | FusedRows, seed: int, *, gpu: bool) -> Any:
    lists = faiss.try_extract_index_ivf(index)
    wanted = max(_TRAINING_ROWS, _ROWS_PER_LIST * lists.nlist if lists is not None else 0)
    count = len(rows.collection)
    sample = rows.take(np.sort(np.random.default_rng(seed).choice(count, min(wanted, count), replace=False)))
    placed = on_gpu(index) if gpu else index
    placed.train(sample)
    return index if placed is index else faiss.index_gpu_to_cpu(placed)
