"""Checks an index that FAISS has read: FAISS does not check it, and could read or write beyond its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from embridge.stores.faiss.code_checks import (
    MOST,
    Faults,
    additive_faults,
    binary_faults,
    blocks_faults,
    cells_faults,
    codes_faults,
    flat_faults,
    product_faults,
    rabit_faults,
    refined_faults,
    scalar_faults,
    transform_faults,
)


def inconsistency(index: Any) -> str | None:
    """The first inconsistency of an index that FAISS has read, or None: searching such an index may crash the process."""
    return next(_faults(index, positions=False), None)


def _faults(index: Any, *, positions: bool) -> Faults:
    """Faults of an index; with `positions` its labels are used as positions by the index around it."""
    if index is None:
        yield "it lacks a part"
        return
    part = faiss.downcast_index(index)
    kind, n = type(part).__name__, part.ntotal
    if kind not in _CHECKS:
        yield f"it is, or holds, a FAISS {kind}, a type that embridge does not open"
        return
    if n < 0 or not 1 <= part.d <= MOST:
        yield f"its {kind} claims {n:,} vectors of {part.d:,} dimensions"
        return
    if n and not part.is_trained:
        yield f"its {kind} is not trained"
    for check in _CHECKS[kind]:
        for fault in check(part, positions):
            yield fault if fault.startswith("it") else f"its {kind} {fault}"


def _inner(part: Any, inner: Any, count: int, *, positions: bool, dim: int | None = None, metric: bool = True) -> Faults:
    """Faults of an index inside another."""
    if inner is None:
        yield "lacks the index inside it"
        return
    kind = type(faiss.downcast_index(inner)).__name__
    if inner.ntotal != count:
        yield f"claims {count:,} vectors, but {kind} holds {inner.ntotal:,}"
    if dim is not None and inner.d != dim:
        yield f"has {dim:,} dimensions, but {kind} {inner.d:,}"
    if metric and inner.metric_type != part.metric_type:
        yield f"has another metric than the {kind} inside it"
    yield from _faults(inner, positions=positions)


def _map(part: Any, positions: bool) -> Faults:
    if part.id_map.size() != part.ntotal:
        yield f"claims {part.ntotal:,} vectors, but holds {part.id_map.size():,} labels"
    elif positions:
        yield from _out_of_range(faiss.vector_to_array(part.id_map), part.ntotal)
    yield from _inner(part, part.index, part.ntotal, positions=True, dim=part.d)


def _transformed(part: Any, positions: bool) -> Faults:
    dim = part.d
    for i in range(part.chain.size()):
        transform = faiss.downcast_VectorTransform(part.chain.at(i))
        if transform.d_in != dim:
            yield f"has a transform of {transform.d_in:,} dimensions instead of {dim:,}"
        yield from transform_faults(transform)
        dim = transform.d_out
    yield from _inner(part, part.index, part.ntotal, positions=positions, dim=dim)


def _refine(part: Any, _: bool) -> Faults:
    for inner in (part.base_index, part.refine_index):
        yield from _inner(part, inner, part.ntotal, positions=True, dim=part.d)
    if part.refine_index is not None and type(faiss.downcast_index(part.refine_index)).__name__ not in _CODES:
        yield "refines by an index that is not flat"


def _graph(part: Any, _: bool) -> Faults:
    yield from _inner(part, part.storage, part.ntotal, positions=True, dim=part.d)
    if part.storage is not None and type(faiss.downcast_index(part.storage)).__name__ not in _STORAGE[type(part).__name__]:
        yield "has a graph over vectors of another type"
    yield from _hnsw(part) if isinstance(part, faiss.IndexHNSW) else _nsg(part)


def _hnsw(part: Any) -> Faults:
    """FAISS checks offsets and ids itself, but not that a neighbor on an upper level is on that level."""
    graph, n = part.hnsw, part.ntotal
    levels, offsets = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.offsets).astype(np.int64)
    starts = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    if len(levels) != n or len(offsets) != n + 1:
        yield f"claims {n:,} vectors, but its graph has {len(levels):,}"
        return
    if not n:
        return
    neighbors = faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())
    if not -1 <= graph.efSearch <= MOST or graph.efConstruction > MOST:
        yield f"searches with efSearch {graph.efSearch:,}"
    if (levels < 1).any() or (levels >= len(starts)).any() or (np.diff(offsets) < 0).any() or offsets[-1] > len(neighbors):
        yield "has a graph whose levels are damaged"
        return
    if (neighbors < -1).any() or (neighbors >= n).any():
        yield "has a graph with missing neighbors"
        return
    if not 0 <= graph.entry_point < n or graph.max_level != levels[graph.entry_point] - 1 or graph.max_level < 0:
        yield "has a graph whose entry point is not a node"
        return
    for level in range(1, int(levels.max())):
        nodes = np.flatnonzero(levels > level)
        places = offsets[nodes][:, None] + np.arange(starts[level], starts[level + 1])
        found = neighbors[places]
        if (levels[found[found >= 0]] <= level).any():
            yield "has a graph whose upper levels lead to missing nodes"
            return


def _nsg(part: Any) -> Faults:
    graph = part.nsg
    if not graph.is_built and part.ntotal:
        yield "has no graph"
    elif graph.is_built and graph.ntotal != part.ntotal:
        yield f"claims {part.ntotal:,} vectors, but its graph has {graph.ntotal:,}"
    if not -1 <= graph.search_L <= MOST or graph.R > MOST:
        yield f"searches with search_L {graph.search_L:,}"


def _lists(part: Any, positions: bool) -> Faults:
    if part.invlists is None or part.quantizer is None or part.nlist < 1:
        yield "has no inverted lists"
        return
    lists: Any = faiss.downcast_InvertedLists(part.invlists)
    if lists.nlist != part.nlist:
        yield f"claims {part.nlist:,} lists, but holds {lists.nlist:,}"
        return
    if not 1 <= part.nprobe <= MOST:
        yield f"searches {part.nprobe:,} lists"
        return
    sizes = np.array([lists.list_size(i) for i in range(part.nlist)], np.int64)
    held = int(sizes.sum())
    # FlatDedup stores equal vectors once, and its ntotal counts all of them
    if held > part.ntotal or (held < part.ntotal and type(part).__name__ != "IndexIVFFlatDedup"):
        yield f"claims {part.ntotal:,} vectors, but its lists hold {held:,}"
        return
    yield from _inner(part, part.quantizer, part.nlist, positions=True, dim=part.d, metric=False)
    positions = positions or type(part).__name__ == "IndexIVFPQR"
    if positions and type(part).__name__ == "IndexIVFFlatDedup":
        yield "has labels that cannot be checked"
    elif positions:
        for number in np.flatnonzero(sizes).tolist():
            yield from _out_of_range(faiss.rev_swig_ptr(lists.get_ids(number), int(sizes[number])), part.ntotal)
    yield from _direct_map(part, sizes)


def _out_of_range(labels: np.ndarray, count: int) -> Faults:
    if len(labels) and (labels.min() < 0 or labels.max() >= count):
        yield f"has labels beyond its {count:,} vectors, which are positions"


def _direct_map(part: Any, sizes: np.ndarray) -> Faults:
    kinds = (faiss.DirectMap.NoMap, faiss.DirectMap.Array, faiss.DirectMap.Hashtable)
    if part.direct_map.type not in kinds:
        yield "has a direct map of an unknown type"
    if part.direct_map.type != faiss.DirectMap.Array:
        return
    entries = faiss.vector_to_array(part.direct_map.array)
    numbers, offsets = entries >> 32, entries & 0xFFFFFFFF
    there = entries >= 0
    if len(entries) < part.ntotal or (numbers[there] >= len(sizes)).any():
        yield "has a direct map that leads to missing lists"
    elif (offsets[there] >= sizes[numbers[there]]).any():
        yield "has a direct map that leads beyond its lists"


def _plain_lists(part: Any, _: bool) -> Faults:
    lists: Any = faiss.downcast_InvertedLists(part.invlists)
    if not isinstance(lists, faiss.ArrayInvertedLists | faiss.OnDiskInvertedLists) or lists.code_size != part.code_size:
        yield f"has inverted lists of another kind ({type(lists).__name__})"


def _packed_lists(part: Any, _: bool) -> Faults:
    lists: Any = faiss.downcast_InvertedLists(part.invlists)
    if not isinstance(lists, faiss.BlockInvertedLists):
        yield f"has inverted lists of another kind ({type(lists).__name__})"
    elif part.bbs < 32 or part.bbs > MOST or lists.n_per_block != part.bbs or lists.block_size != part.bbs * part.M2 // 2:
        yield f"packs codes in blocks of {part.bbs:,} by {part.M2:,}, but its lists in blocks of {lists.n_per_block:,}"
    elif part.implem not in range(0, 16):
        yield f"has implementation {part.implem}"


_ADDITIVE = ("ResidualQuantizer", "LocalSearchQuantizer", "ProductResidualQuantizer", "ProductLocalSearchQuantizer")
_FLATS = ("IndexFlat", "IndexFlatIP", "IndexFlatL2")
_CHECKS: dict[str, tuple[Callable[[Any, bool], Faults], ...]] = {
    "IndexIDMap": (_map,), "IndexIDMap2": (_map,), "IndexPreTransform": (_transformed,),
    "IndexRefine": (_refine,), "IndexRefineFlat": (_refine,),
    **dict.fromkeys(_FLATS, (flat_faults, codes_faults)),
    "IndexScalarQuantizer": (scalar_faults, codes_faults), "IndexPQ": (product_faults, codes_faults),
    "IndexLSH": (binary_faults, codes_faults),
    "IndexRaBitQ": (rabit_faults, codes_faults), "IndexPQFastScan": (product_faults, blocks_faults),
    "MultiIndexQuantizer": (cells_faults,),
    **{f"Index{name}": (additive_faults, codes_faults) for name in _ADDITIVE},
    **{f"Index{name}FastScan": (additive_faults, blocks_faults) for name in _ADDITIVE},
    "IndexIVFFlat": (_lists, flat_faults, _plain_lists), "IndexIVFFlatDedup": (_lists, flat_faults, _plain_lists),
    "IndexIVFScalarQuantizer": (_lists, scalar_faults, _plain_lists), "IndexIVFPQ": (_lists, product_faults, _plain_lists),
    "IndexIVFPQR": (_lists, product_faults, _plain_lists, refined_faults), "IndexIVFRaBitQ": (_lists, rabit_faults, _plain_lists),
    **{f"IndexIVF{name}": (_lists, additive_faults, _plain_lists) for name in _ADDITIVE},
    "IndexIVFPQFastScan": (_lists, product_faults, _packed_lists),
    **{f"IndexIVF{name}FastScan": (_lists, additive_faults, _packed_lists) for name in _ADDITIVE},
    **{f"Index{graph}{kind}": (_graph,) for graph in ("HNSW", "NSG") for kind in ("Flat", "SQ", "PQ")},
}  # fmt: skip
_CODES = (*_FLATS, "IndexScalarQuantizer", "IndexPQ", "IndexLSH", "IndexRaBitQ", *(f"Index{name}" for name in _ADDITIVE))
_STORAGE = {
    f"Index{graph}{kind}": storage
    for graph in ("HNSW", "NSG")
    for kind, storage in (("Flat", _FLATS), ("SQ", ("IndexScalarQuantizer",)), ("PQ", ("IndexPQ",)))
}

__all__ = ["inconsistency"]
