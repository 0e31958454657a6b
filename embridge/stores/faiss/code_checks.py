"""Checks the codes, quantizers and transforms of a FAISS index; see `embridge.stores.faiss.checks`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

MOST = 1 << 20  # limit for values that determine a search's memory (efSearch, search_L) and for dimensions, as in FAISS

Faults = Iterator[str]


def transform_faults(transform: Any) -> Faults:
    """Faults of a vector transform: its matrix, map or mean."""
    kind, d_in, d_out = type(transform).__name__, transform.d_in, transform.d_out
    if not transform.is_trained or not (1 <= d_in <= MOST and 1 <= d_out <= MOST):
        yield f"has a {kind} from {d_in:,} to {d_out:,} dimensions"
    elif isinstance(transform, faiss.LinearTransform):
        if transform.A.size() != d_in * d_out or (transform.have_bias and transform.b.size() != d_out):
            yield f"has a {kind} whose matrix is not of {d_out:,} x {d_in:,}"
    elif isinstance(transform, faiss.RemapDimensionsTransform):
        places = faiss.vector_to_array(transform.map)
        if len(places) != d_out or (places < -1).any() or (places >= d_in).any():
            yield f"has a {kind} of missing dimensions"
    elif isinstance(transform, faiss.CenteringTransform):
        if transform.mean.size() != d_in or d_in != d_out:
            yield f"has a {kind} whose mean is not of {d_in:,} dimensions"
    elif isinstance(transform, faiss.ITQTransform):
        inner = transform.pca_then_itq
        if transform.mean.size() != d_in or (inner.d_in, inner.d_out) != (d_in, d_out):
            yield f"has a {kind} that is not of {d_out:,} x {d_in:,}"
        yield from transform_faults(inner)
    elif not isinstance(transform, faiss.NormalizationTransform | faiss.HadamardRotation):
        yield f"has a {kind}, a type that embridge does not open"


def codes_faults(part: Any, _: bool) -> Faults:
    """Codes of a fixed size, stored consecutively."""
    if part.codes.size() != part.ntotal * part.code_size:
        yield f"claims {part.ntotal:,} vectors of {part.code_size:,} bytes, but holds {part.codes.size():,} bytes"


def blocks_faults(part: Any, _: bool) -> Faults:
    """Codes of 4 bits, packed in blocks for all of `bbs` vectors at once."""
    if part.bbs < 32 or part.bbs % 32 or part.bbs > MOST or part.M2 != (part.M + 1) // 2 * 2:
        yield f"packs codes in blocks of {part.bbs:,} by {part.M2:,}"
        return
    padded = -(-part.ntotal // part.bbs) * part.bbs
    if part.ntotal2 != padded or part.codes.size() != padded * part.M2 // 2:
        yield f"claims {part.ntotal:,} vectors in blocks of {part.bbs:,}, but holds {part.codes.size():,} bytes"
    if part.implem not in range(0, 16) or part.qbs < 0:
        yield f"has implementation {part.implem} and query blocks {part.qbs}"


def flat_faults(part: Any, _: bool) -> Faults:
    """Plain float vectors."""
    if part.code_size != 4 * part.d:
        yield f"has {part.code_size:,} bytes for {part.d:,} dimensions"


def scalar_faults(part: Any, _: bool) -> Faults:
    """A scalar quantizer."""
    if part.sq.d != part.d or part.sq.code_size != part.code_size or not part.is_trained:
        yield "has a scalar quantizer that does not fit it"


def product_faults(part: Any, _: bool) -> Faults:
    """A product quantizer."""
    yield from _product_quantizer(part.pq, part.d)
    if part.pq.code_size != part.code_size:
        yield f"has codes of {part.code_size:,} bytes, but its quantizer makes {part.pq.code_size:,}"


def _product_quantizer(quantizer: Any, dim: int) -> Faults:
    if quantizer.d != dim or quantizer.M * quantizer.dsub != dim or quantizer.centroids.size() != dim * quantizer.ksub:
        yield "has a product quantizer that does not fit it"


def additive_faults(part: Any, _: bool) -> Faults:
    """A residual, local search or product additive quantizer."""
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


def binary_faults(part: Any, _: bool) -> Faults:
    """Locality sensitive hashing."""
    if part.nbits < 1 or part.code_size != (part.nbits + 7) // 8:
        yield f"has codes of {part.code_size:,} bytes for {part.nbits:,} bits"
    if part.rotate_data:
        yield from transform_faults(part.rrot)
    if (part.rrot.d_in, part.rrot.d_out) != (part.d, part.nbits):
        yield "has a rotation that does not fit it"
    if part.train_thresholds and part.thresholds.size() != part.nbits:
        yield "has thresholds that do not fit it"
    if not part.rotate_data and part.nbits > part.d:
        yield f"takes {part.nbits:,} bits of {part.d:,} dimensions"


def rabit_faults(part: Any, _: bool) -> Faults:
    """A RaBitQ quantizer."""
    quantizer = part.rabitq
    if quantizer.d != part.d or not 1 <= quantizer.nb_bits <= 9:
        yield "has a RaBitQ quantizer that does not fit it"
    elif part.code_size != quantizer.compute_code_size(part.d, quantizer.nb_bits) or quantizer.code_size != part.code_size:
        yield f"has codes of {part.code_size:,} bytes, which do not match its quantizer"
    if quantizer.metric_type != part.metric_type:
        yield "has another metric than its quantizer"
    if hasattr(part, "center") and part.center.size() != part.d:
        yield "has a center of another width"


def refined_faults(part: Any, _: bool) -> Faults:
    """The second stage of an IVFPQR."""
    yield from _product_quantizer(part.refine_pq, part.d)
    if part.refine_codes.size() != part.ntotal * part.refine_pq.code_size:
        yield f"claims {part.ntotal:,} vectors, but refines {part.refine_codes.size():,} bytes of codes"


def cells_faults(part: Any, _: bool) -> Faults:
    """The cells of a multi-index, a coarse quantizer without vectors of its own."""
    yield from _product_quantizer(part.pq, part.d)
    if part.pq.M * part.pq.nbits > 40 or part.ntotal != 1 << (part.pq.M * part.pq.nbits):
        yield f"claims {part.ntotal:,} cells, which do not match its quantizer"
