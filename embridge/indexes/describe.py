"""Describes an index: its factory string and its search settings."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import faiss

from embridge.errors import FaissIndexError

_SCALAR = {
    faiss.ScalarQuantizer.QT_8bit: "SQ8",
    faiss.ScalarQuantizer.QT_6bit: "SQ6",
    faiss.ScalarQuantizer.QT_4bit: "SQ4",
    faiss.ScalarQuantizer.QT_fp16: "SQfp16",
    faiss.ScalarQuantizer.QT_bf16: "SQbf16",
    faiss.ScalarQuantizer.QT_8bit_direct: "SQ8_direct",
    faiss.ScalarQuantizer.QT_8bit_direct_signed: "SQ8_direct_signed",
}
_NORMS = {
    faiss.AdditiveQuantizer.ST_norm_float: "_Nfloat",
    faiss.AdditiveQuantizer.ST_norm_qint8: "_Nqint8",
    faiss.AdditiveQuantizer.ST_norm_qint4: "_Nqint4",
    faiss.AdditiveQuantizer.ST_norm_cqint8: "_Ncqint8",
    faiss.AdditiveQuantizer.ST_norm_cqint4: "_Ncqint4",
    faiss.AdditiveQuantizer.ST_norm_lsq2x4: "_Nlsq2x4",
    faiss.AdditiveQuantizer.ST_norm_rq2x4: "_Nrq2x4",
}
_ADDITIVE = (("prq", "PRQ"), ("plsq", "PLSQ"), ("rq", "RQ"), ("lsq", "LSQ"))


def factory_of(index: Any) -> str:
    """The string from which `faiss.index_factory` builds an index of the same structure.

    A linear transform in front of a product quantizer is treated as OPQ, since files do not mark it; one in front of
    anything else (a map) has no name in factory strings and is left out. The width of the index is left out as well,
    so that the string is valid for another width.

    Raises
    ------
    FaissIndexError
        There is no factory string for this type.

    Examples
    --------
    >>> factory_of(faiss.index_factory(16, "OPQ4_8,IVF8_HNSW4,PQ4x4np"))
    'OPQ4_8,IVF8_HNSW4,PQ4x4np'
    """
    # keep `index` alive: it may be a temporary that owns the C++ object
    part = faiss.downcast_index(index)
    if isinstance(part, faiss.IndexPreTransform):
        inner = faiss.downcast_index(part.index)
        chain = [faiss.downcast_VectorTransform(part.chain.at(i)) for i in range(part.chain.size())]
        return ",".join([*(name for t in chain if (name := _transform(t, inner))), factory_of(inner)])
    if isinstance(part, faiss.IndexIDMap):
        return f"{'IDMap2' if isinstance(part, faiss.IndexIDMap2) else 'IDMap'},{factory_of(part.index)}"
    if isinstance(part, faiss.IndexRefine):
        refine = factory_of(part.refine_index)
        return f"{factory_of(part.base_index)},{'RFlat' if refine == 'Flat' else f'Refine({refine})'}"
    if isinstance(part, faiss.IndexIVF):
        return f"IVF{part.nlist}{_quantizer(part.quantizer)},{_codec(part)}"
    if isinstance(part, faiss.IndexHNSW):
        return f"HNSW{part.hnsw.nb_neighbors(1)},{factory_of(part.storage)}"
    if isinstance(part, faiss.IndexNSG):
        return f"NSG{part.nsg.R},{factory_of(part.storage)}"
    if isinstance(part, faiss.IndexLSH):
        width = "" if part.nbits == part.d else part.nbits
        return f"LSH{width}{'r' if part.rotate_data else ''}{'t' if part.train_thresholds else ''}"
    return _codec(part)


def _transform(transform: Any, inner: Any) -> str:
    width = "" if transform.d_in == transform.d_out else str(transform.d_out)
    if isinstance(transform, faiss.PCAMatrix):
        return f"PCA{'W' if transform.eigen_power == -0.5 else ''}{'R' if transform.random_rotation else ''}{transform.d_out}"
    if isinstance(transform, faiss.RandomRotationMatrix):
        return f"RR{width}"
    if isinstance(transform, faiss.NormalizationTransform):
        return "L2norm"
    if isinstance(transform, faiss.RemapDimensionsTransform):
        return f"Pad{transform.d_out}"
    if isinstance(transform, faiss.ITQTransform | faiss.ITQMatrix):
        return f"ITQ{width}"
    if isinstance(transform, faiss.LinearTransform) and hasattr(inner, "pq"):
        return f"OPQ{inner.pq.M}{'_' + width if width else ''}"
    if isinstance(transform, faiss.LinearTransform):
        return ""
    raise _not_described(type(transform).__name__)


def _quantizer(quantizer: Any) -> str:
    quantizer = faiss.downcast_index(quantizer)
    if isinstance(quantizer, faiss.IndexFlat):
        return ""
    if isinstance(quantizer, faiss.IndexHNSWFlat):
        return f"_HNSW{quantizer.hnsw.nb_neighbors(1)}"
    return f"({factory_of(quantizer)})"


def _codec(index: Any) -> str:
    if isinstance(index, faiss.IndexIVFFlatDedup):
        return "FlatDedup"
    if isinstance(index, faiss.IndexIVFFlat | faiss.IndexFlat):
        return "Flat"
    if isinstance(index, faiss.IndexRaBitQ | faiss.IndexIVFRaBitQ):
        return "RaBitQ"
    if isinstance(index, faiss.IndexPQFastScan | faiss.IndexIVFPQFastScan):
        return (
            f"PQ{index.pq.M}x4fs{'r' if getattr(index, 'by_residual', False) else ''}{'' if index.bbs == 32 else f'_{index.bbs}'}"
        )
    if isinstance(index, faiss.IndexPQ | faiss.IndexIVFPQ) and not isinstance(index, faiss.IndexIVFPQR):
        bits = "" if index.pq.nbits == 8 else f"x{index.pq.nbits}"
        return f"PQ{index.pq.M}{bits}{'' if index.do_polysemous_training else 'np'}"
    if isinstance(index, faiss.IndexScalarQuantizer | faiss.IndexIVFScalarQuantizer) and index.sq.qtype in _SCALAR:
        return _SCALAR[index.sq.qtype]
    for attribute, name in _ADDITIVE:
        if hasattr(index, attribute) and "FastScan" not in type(index).__name__:
            return _sum_of_codewords(getattr(index, attribute), name)
    raise _not_described(type(index).__name__)


def _sum_of_codewords(quantizer: Any, name: str) -> str:
    bits = faiss.vector_to_array(quantizer.nbits).tolist()
    if name.startswith("P"):
        splits = quantizer.nsplits
        text = f"{name}{splits}x{len(bits) // splits}x{bits[0]}"
    else:
        runs = [(len(list(group)), width) for width, group in groupby(bits)]
        text = name + "_".join(f"{count}x{width}" for count, width in runs)
    return text + _NORMS.get(quantizer.search_type, "")


_SETTINGS = ("nprobe", "max_codes", "efSearch", "efConstruction", "k_factor", "search_L")


def settings_of(index: Any) -> dict[str, Any]:
    """nprobe, efSearch and similar settings at every level of an index, by ``level.name``."""
    found = {}
    for level, part in _parts(index, "index"):
        for name in _SETTINGS:
            if hasattr(part, name):
                found[f"{level}.{name}"] = getattr(part, name)
    return found


def apply_settings(index: Any, settings: dict[str, Any]) -> None:
    """Apply the settings of another index of the same structure."""
    for level, part in _parts(index, "index"):
        for name in _SETTINGS:
            if hasattr(part, name) and f"{level}.{name}" in settings:
                setattr(part, name, settings[f"{level}.{name}"])


def _parts(index: Any, level: str) -> list[tuple[str, Any]]:
    """An index and all indexes searched inside it, without wrappers (id maps, transforms)."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap | faiss.IndexPreTransform):
        return _parts(index.index, level)
    parts: list[tuple[str, Any]] = [(level, index)]
    if isinstance(index, faiss.IndexRefine):
        parts += _parts(index.base_index, f"{level}.base")
    if isinstance(index, faiss.IndexIVF):
        parts += _parts(index.quantizer, f"{level}.quantizer")
    if isinstance(index, faiss.IndexHNSW):
        parts.append((f"{level}.hnsw", index.hnsw))
    if isinstance(index, faiss.IndexNSG):
        parts.append((f"{level}.nsg", index.nsg))
    return parts


def _not_described(kind: str) -> FaissIndexError:
    return FaissIndexError(f"No factory string builds a FAISS {kind}, so it cannot be rebuilt. Hint: --mode wrap.")
