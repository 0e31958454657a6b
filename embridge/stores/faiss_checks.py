"""What an index that FAISS did read must hold to be searched: FAISS trusts it, and would read or write beyond its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np

_MOST = 1 << 20  # of what sizes a search's own memory (efSearch, search_L) and of dimensions: FAISS's limit for dimensions

Faults = Iterator[str]


def inconsistency(index: Any) -> str | None:
    """What in an index that FAISS did read contradicts itself, or None: searching such an index may end the process."""
    return next(_faults(index, positions=False), None)


def _faults(index: Any, *, positions: bool) -> Faults:
    """Faults of an index; with `positions` whatever holds it takes its labels for positions."""
    if index is None:
        yield "it lacks a part"
        return
    part = faiss.downcast_index(index)
    kind, n = type(part).__name__, part.ntotal
    if kind not in _CHECKS:
        yield f"it is, or holds, a FAISS {kind}, a type that embridge does not open"
        return
    if n < 0 or not 1 <= part.d <= _MOST:
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
        yield f"measures otherwise than the {kind} inside it"
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
            yield f"has a transform of {transform.d_in:,} dimensions where {dim:,} come in"
        yield from _transform(transform)
        dim = transform.d_out
    yield from _inner(part, part.index, part.ntotal, positions=positions, dim=dim)


def _transform(transform: Any) -> Faults:
    kind, d_in, d_out = type(transform).__name__, transform.d_in, transform.d_out
    if not transform.is_trained or not (1 <= d_in <= _MOST and 1 <= d_out <= _MOST):
        yield f"has a {kind} from {d_in:,} to {d_out:,} dimensions"
    elif isinstance(transform, faiss.LinearTransform):
        if transform.A.size() != d_in * d_out or (transform.have_bias and transform.b.size() != d_out):
            yield f"has a {kind} whose matrix is not of {d_out:,} x {d_in:,}"
    elif isinstance(transform, faiss.RemapDimensionsTransform):
        places = faiss.vector_to_array(transform.map)
        if len(places) != d_out or (places < -1).any() or (places >= d_in).any():
            yield f"has a {kind} of dimensions that are not there"
    elif isinstance(transform, faiss.CenteringTransform):
        if transform.mean.size() != d_in or d_in != d_out:
            yield f"has a {kind} whose mean is not of {d_in:,} dimensions"
    elif isinstance(transform, faiss.ITQTransform):
        inner = transform.pca_then_itq
        if transform.mean.size() != d_in or (inner.d_in, inner.d_out) != (d_in, d_out):
            yield f"has a {kind} that is not of {d_out:,} x {d_in:,}"
        yield from _transform(inner)
    elif not isinstance(transform, faiss.NormalizationTransform | faiss.HadamardRotation):
        yield f"has a {kind}, a type that embridge does not open"


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
    """FAISS checks offsets and ids itself, but not that a neighbour on an upper level reaches up to that level."""
    graph, n = part.hnsw, part.ntotal
    levels, offsets = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.offsets).astype(np.int64)
    starts = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    if len(levels) != n or len(offsets) != n + 1:
        yield f"claims {n:,} vectors, but its graph has {len(levels):,}"
        return
    if not n:
        return
    neighbors = faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())
    if not -1 <= graph.efSearch <= _MOST or graph.efConstruction > _MOST:
        yield f"searches with efSearch {graph.efSearch:,}"
    if (levels < 1).any() or (levels >= len(starts)).any() or (np.diff(offsets) < 0).any() or offsets[-1] > len(neighbors):
        yield "has a graph whose levels are damaged"
        return
    if (neighbors < -1).any() or (neighbors >= n).any():
        yield "has a graph with neighbours that are not there"
        return
    if not 0 <= graph.entry_point < n or graph.max_level != levels[graph.entry_point] - 1 or graph.max_level < 0:
        yield "has a graph that is entered where it has no node"
        return
    for level in range(1, int(levels.max())):
        nodes = np.flatnonzero(levels > level)
        places = offsets[nodes][:, None] + np.arange(starts[level], starts[level + 1])
        found = neighbors[places]
        if (levels[found[found >= 0]] <= level).any():
            yield "has a graph whose upper levels lead to nodes that are not there"
            return


def _nsg(part: Any) -> Faults:
    graph = part.nsg
    if not graph.is_built and part.ntotal:
        yield "has no graph"
    elif graph.is_built and graph.ntotal != part.ntotal:
        yield f"claims {part.ntotal:,} vectors, but its graph has {graph.ntotal:,}"
    if not -1 <= graph.search_L <= _MOST or graph.R > _MOST:
        yield f"searches with search_L {graph.search_L:,}"


def _codes(part: Any, _: bool) -> Faults:
    if part.codes.size() != part.ntotal * part.code_size:
        yield f"claims {part.ntotal:,} vectors of {part.code_size:,} bytes, but holds {part.codes.size():,} bytes"


def _blocks(part: Any, _: bool) -> Faults:
    """Codes of 4 bits, packed in blocks for all of `bbs` vectors at once."""
    if part.bbs < 32 or part.bbs % 32 or part.bbs > _MOST or part.M2 != (part.M + 1) // 2 * 2:
        yield f"packs codes in blocks of {part.bbs:,} by {part.M2:,}"
        return
    padded = -(-part.ntotal // part.bbs) * part.bbs
    if part.ntotal2 != padded or part.codes.size() != padded * part.M2 // 2:
        yield f"claims {part.ntotal:,} vectors in blocks of {part.bbs:,}, but holds {part.codes.size():,} bytes"
    if part.implem not in range(0, 16) or part.qbs < 0:
        yield f"has implementation {part.implem} and query blocks {part.qbs}"


def _flat(part: Any, _: bool) -> Faults:
    if part.code_size != 4 * part.d:
        yield f"has {part.code_size:,} bytes for {part.d:,} dimensions"


def _scalar(part: Any, _: bool) -> Faults:
    if part.sq.d != part.d or part.sq.code_size != part.code_size or not part.is_trained:
        yield "has a scalar quantizer that does not fit it"


def _product(part: Any, _: bool) -> Faults:
    yield from _product_fault(part.pq, part.d)
    if part.pq.code_size != part.code_size:
        yield f"has codes of {part.code_size:,} bytes, but its quantizer makes {part.pq.code_size:,}"


def _product_fault(quantizer: Any, dim: int) -> Faults:
    if quantizer.d != dim or quantizer.M * quantizer.dsub != dim or quantizer.centroids.size() != dim * quantizer.ksub:
        yield "has a product quantizer that does not fit it"


def _additive(part: Any, _: bool) -> Faults:
    quantizer = next(getattr(part, name) for name in ("rq", "lsq", "prq", "plsq") if hasattr(part, name))
    bits = faiss.vector_to_array(quantizer.nbits)
    splits = [quantizer.subquantizer(i) for i in range(getattr(quantizer, "nsplits", 0))]
    inner = np.concatenate([faiss.vector_to_array(q.nbits) for q in splits]) if splits else bits
    if not all(q.is_trained for q in (quantizer, *splits)) or not np.array_equal(inner, bits):
        yield "has an additive quantizer that is not trained"
        return
    if quantizer.d != part.d or not len(bits) or bits.min() < 1 or bits.max() > 24:
        yield "has an additive quantizer that does not fit it"
        return
    if quantizer.code_size != part.code_size and "FastScan" not in type(part).__name__:
        yield f"has codes of {part.code_size:,} bytes, but its quantizer makes {quantizer.code_size:,}"
    wanted = {
        faiss.AdditiveQuantizer.ST_norm_cqint8: (256, 0), faiss.AdditiveQuantizer.ST_norm_cqint4: (16, 0),
        faiss.AdditiveQuantizer.ST_norm_lsq2x4: (16, 32), faiss.AdditiveQuantizer.ST_norm_rq2x4: (16, 32),
    }.get(quantizer.search_type, (0, 0))  # fmt: skip
    if not 0 <= quantizer.search_type <= faiss.AdditiveQuantizer.ST_norm_rq2x4:
        yield f"has a search type {quantizer.search_type}"
    elif wanted[1] and quantizer.norm_tabs.size() != wanted[1]:
        yield "has a table of norms that does not fit it"
    elif wanted[0] > 16 and quantizer.qnorm.ntotal != wanted[0]:
        yield "has a quantizer of norms that does not fit it"


def _binary(part: Any, _: bool) -> Faults:
    if part.nbits < 1 or part.code_size != (part.nbits + 7) // 8:
        yield f"has codes of {part.code_size:,} bytes for {part.nbits:,} bits"
    if part.rotate_data:
        yield from _transform(part.rrot)
    if (part.rrot.d_in, part.rrot.d_out) != (part.d, part.nbits):
        yield "has a rotation that does not fit it"
    if part.train_thresholds and part.thresholds.size() != part.nbits:
        yield "has thresholds that do not fit it"
    if not part.rotate_data and part.nbits > part.d:
        yield f"takes {part.nbits:,} bits of {part.d:,} dimensions"


def _rabit(part: Any, _: bool) -> Faults:
    quantizer = part.rabitq
    if quantizer.d != part.d or not 1 <= quantizer.nb_bits <= 9:
        yield "has a RaBitQ quantizer that does not fit it"
    elif part.code_size != quantizer.compute_code_size(part.d, quantizer.nb_bits) or quantizer.code_size != part.code_size:
        yield f"has codes of {part.code_size:,} bytes, which its quantizer does not make"
    if quantizer.metric_type != part.metric_type:
        yield "measures otherwise than its quantizer"
    if hasattr(part, "center") and part.center.size() != part.d:
        yield "has a centre of another width"


def _lists(part: Any, positions: bool) -> Faults:
    if part.invlists is None or part.quantizer is None or part.nlist < 1:
        yield "has no inverted lists"
        return
    lists: Any = faiss.downcast_InvertedLists(part.invlists)
    if lists.nlist != part.nlist:
        yield f"claims {part.nlist:,} lists, but holds {lists.nlist:,}"
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
        yield "has a direct map that leads to lists that are not there"
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
    elif part.bbs < 32 or part.bbs > _MOST or lists.n_per_block != part.bbs or lists.block_size != part.bbs * part.M2 // 2:
        yield f"packs codes in blocks of {part.bbs:,} by {part.M2:,}, but its lists in blocks of {lists.n_per_block:,}"
    elif part.implem not in range(0, 16):
        yield f"has implementation {part.implem}"


def _refined(part: Any, _: bool) -> Faults:
    yield from _product_fault(part.refine_pq, part.d)
    if part.refine_codes.size() != part.ntotal * part.refine_pq.code_size:
        yield f"claims {part.ntotal:,} vectors, but refines {part.refine_codes.size():,} bytes of codes"


def _cells(part: Any, _: bool) -> Faults:
    yield from _product_fault(part.pq, part.d)
    if part.pq.M * part.pq.nbits > 40 or part.ntotal != 1 << (part.pq.M * part.pq.nbits):
        yield f"claims {part.ntotal:,} cells, which its quantizer does not make"


_ADDITIVE = ("ResidualQuantizer", "LocalSearchQuantizer", "ProductResidualQuantizer", "ProductLocalSearchQuantizer")
_FLATS = ("IndexFlat", "IndexFlatIP", "IndexFlatL2")
_CHECKS: dict[str, tuple[Callable[[Any, bool], Faults], ...]] = {
    "IndexIDMap": (_map,), "IndexIDMap2": (_map,), "IndexPreTransform": (_transformed,),
    "IndexRefine": (_refine,), "IndexRefineFlat": (_refine,),
    **dict.fromkeys(_FLATS, (_flat, _codes)),
    "IndexScalarQuantizer": (_scalar, _codes), "IndexPQ": (_product, _codes), "IndexLSH": (_binary, _codes),
    "IndexRaBitQ": (_rabit, _codes), "IndexPQFastScan": (_product, _blocks), "MultiIndexQuantizer": (_cells,),
    **{f"Index{name}": (_additive, _codes) for name in _ADDITIVE},
    **{f"Index{name}FastScan": (_additive, _blocks) for name in _ADDITIVE},
    "IndexIVFFlat": (_lists, _flat, _plain_lists), "IndexIVFFlatDedup": (_lists, _flat, _plain_lists),
    "IndexIVFScalarQuantizer": (_lists, _scalar, _plain_lists), "IndexIVFPQ": (_lists, _product, _plain_lists),
    "IndexIVFPQR": (_lists, _product, _plain_lists, _refined), "IndexIVFRaBitQ": (_lists, _rabit, _plain_lists),
    **{f"IndexIVF{name}": (_lists, _additive, _plain_lists) for name in _ADDITIVE},
    "IndexIVFPQFastScan": (_lists, _product, _packed_lists),
    **{f"IndexIVF{name}FastScan": (_lists, _additive, _packed_lists) for name in _ADDITIVE},
    **{f"Index{graph}{kind}": (_graph,) for graph in ("HNSW", "NSG") for kind in ("Flat", "SQ", "PQ")},
}  # fmt: skip
_CODES = (*_FLATS, "IndexScalarQuantizer", "IndexPQ", "IndexLSH", "IndexRaBitQ", *(f"Index{name}" for name in _ADDITIVE))
_STORAGE = {
    f"Index{graph}{kind}": storage
    for graph in ("HNSW", "NSG")
    for kind, storage in (("Flat", _FLATS), ("SQ", ("IndexScalarQuantizer",)), ("PQ", ("IndexPQ",)))
}

__all__ = ["inconsistency"]
