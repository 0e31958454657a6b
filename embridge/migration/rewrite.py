"""Rewrites the stored vectors of an index in place and keeps its structure: graphs, lists, labels, residual codes."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from embridge.migration.equivalence import Equivalence, RowMap
from embridge.migration.wrap import set_matrix

_CHUNK_BYTES = 8 << 20
_FLOATS = (faiss.ScalarQuantizer.QT_fp16, faiss.ScalarQuantizer.QT_bf16)
_PLAIN_CODES = (faiss.AdditiveQuantizer.ST_decompress, faiss.AdditiveQuantizer.ST_LUT_nonorm)


def obstacle(index: Any, equivalence: Equivalence, *, biased: bool) -> str | None:
    """Why the vectors of an index cannot be rewritten in place, or None where they can."""
    index = faiss.downcast_index(index)
    kind, rows = type(index).__name__, equivalence.rows
    if rows is None:
        return equivalence.reason
    if isinstance(index, faiss.IndexIDMap):
        return obstacle(index.index, equivalence, biased=biased)
    if isinstance(index, faiss.IndexPreTransform):
        return _chain_obstacle(index, equivalence, biased=biased)
    if isinstance(index, faiss.IndexRefine):
        if equivalence.scores and _chain(index.base_index):
            return "a refined index has two kinds of scores when the map is merged into its rotation"
        parts = (index.base_index, index.refine_index)
        return next((found for part in parts if (found := obstacle(part, equivalence, biased=biased))), None)
    if isinstance(index, faiss.IndexIVF):
        if not isinstance(faiss.downcast_InvertedLists(index.invlists), faiss.ArrayInvertedLists):
            return (
                f"its inverted lists ({type(faiss.downcast_InvertedLists(index.invlists)).__name__}) cannot be rewritten in memory"
            )
        if found := obstacle(index.quantizer, equivalence, biased=biased):
            return found
    if isinstance(index, faiss.IndexHNSW | faiss.IndexNSG):
        return obstacle(index.storage, equivalence, biased=biased)
    if type(index) in (faiss.IndexFlat, faiss.IndexFlatIP, faiss.IndexFlatL2, faiss.IndexIVFFlat):
        return None
    if isinstance(index, faiss.IndexScalarQuantizer | faiss.IndexIVFScalarQuantizer):
        if index.sq.qtype not in _FLOATS:
            return f"{kind} was trained on ranges of single dimensions, which a map mixes"
        if rows.normalize and getattr(index, "by_residual", False):
            return "its codes are residuals, whose rows cannot be made unit one by one"
        return None
    if quantizer := _additive(index):
        if rows.normalize:
            return f"codes of {kind} are sums of codewords, which cannot be made unit row by row"
        if biased:
            return f"{kind} holds no exact bias"
        return None if quantizer.search_type in _PLAIN_CODES else f"{kind} stores norms beside its codes"
    if hasattr(index, "pq"):
        return f"{kind} codes each slice of dimensions alone, and has no rotation (OPQ) in front to merge the map into"
    return f"{kind} cannot be rewritten in place"


def _chain_obstacle(index: Any, equivalence: Equivalence, *, biased: bool) -> str | None:
    first = faiss.downcast_VectorTransform(index.chain.at(0))
    if equivalence.queries is None:
        return equivalence.reason
    if not isinstance(first, faiss.LinearTransform):
        return f"its {type(first).__name__} is not linear, so the map cannot be merged into it"
    if biased:
        return "a hubness bias does not pass through a rotation"
    if equivalence.scores and not (first.is_orthonormal and not first.have_bias):
        return f"its {type(first).__name__} is not a rotation, so its distances cannot be rescaled"
    return None


def loses(index: Any) -> bool:
    """True where rewriting rounds the stored vectors again (half precision), so that the result is not exact."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap):
        return loses(index.index)
    if isinstance(index, faiss.IndexPreTransform):
        return False  # only the transform in front changes
    if isinstance(index, faiss.IndexRefine):
        return loses(index.base_index) or loses(index.refine_index)
    if isinstance(index, faiss.IndexHNSW | faiss.IndexNSG):
        return loses(index.storage)
    return isinstance(index, faiss.IndexScalarQuantizer | faiss.IndexIVFScalarQuantizer)


def folds(index: Any) -> bool:
    """True where rewriting changes only the transform in front of an index, which affects scores and additions."""
    index = faiss.downcast_index(index)
    return folds(index.index) if isinstance(index, faiss.IndexIDMap) else isinstance(index, faiss.IndexPreTransform)


def rewrite(index: Any, equivalence: Equivalence) -> None:
    """Rewrite the vectors of an index in place, in chunks of 8 MiB; there must be no `obstacle`.

    Centroids of inverted lists are mapped like rows, since an affine map commutes with means. A transform in front is multiplied
    with the projection: ``A' = A P`` for queries projected by ``p = P q + c``.
    """
    index = faiss.downcast_index(index)
    rows = equivalence.rows
    assert rows is not None  # noqa: S101 - checked by `obstacle`
    if isinstance(index, faiss.IndexIDMap):
        rewrite(index.index, equivalence)
        index.d = index.index.d
    elif isinstance(index, faiss.IndexPreTransform):
        _fold(index, equivalence)
    elif isinstance(index, faiss.IndexRefine):
        rewrite(index.base_index, equivalence)
        rewrite(index.refine_index, equivalence)
        index.d = index.base_index.d
    elif isinstance(index, faiss.IndexHNSW | faiss.IndexNSG):
        rewrite(index.storage, equivalence)
        index.d = index.storage.d
    elif isinstance(index, faiss.IndexIVF):
        _rewrite_lists(index, rows)
        rewrite(index.quantizer, equivalence)
        index.d = index.quantizer.d
    elif quantizer := _additive(index):
        _rewrite_codebooks(quantizer, rows)
        index.d = quantizer.d
    else:
        _rewrite_codes(index, rows)


def _fold(index: Any, equivalence: Equivalence) -> None:
    first = faiss.downcast_VectorTransform(index.chain.at(0))
    ((matrix, offset),) = equivalence.queries.steps(biased=False)  # type: ignore[union-attr, misc]
    held = faiss.vector_to_array(first.A).reshape(first.d_out, first.d_in).astype(np.float64)
    bias = faiss.vector_to_array(first.b) if first.have_bias else np.zeros(first.d_out)
    set_matrix(first, held @ matrix, held @ offset + bias)
    index.d = first.d_in


def _rewrite_codes(index: Any, rows: RowMap) -> None:
    coder = _Coder(index, rows)
    n, old, new = index.ntotal, index.code_size, coder.new_size
    step = max(1, _CHUNK_BYTES // max(4 * index.d, new))
    starts = range(0, n, step)
    if new > old:  # from the end, so that no row is overwritten before it is read
        index.codes.resize(n * new)
        starts = reversed(starts)
    for start in starts:
        stop = min(n, start + step)
        memory = faiss.rev_swig_ptr(index.codes.data(), max(n * old, n * new))
        codes = memory[start * old : stop * old].reshape(-1, old).copy()
        memory[start * new : stop * new] = coder.recode(codes, rows).ravel()
    if new < old:
        index.codes.resize(n * new)
    if hasattr(index, "clear_l2norms"):
        index.clear_l2norms()
    coder.finish()


def _rewrite_lists(index: Any, rows: RowMap) -> None:
    if quantizer := _additive(index):  # codes of residuals are kept
        _rewrite_codebooks(quantizer, rows.linear() if index.by_residual else rows)
        return
    coder = _Coder(index, rows)
    rows = rows.linear() if isinstance(index, faiss.IndexIVFScalarQuantizer) and index.by_residual else rows
    lists = faiss.downcast_InvertedLists(index.invlists)
    old, new = index.code_size, coder.new_size
    fresh = lists if new == old else faiss.ArrayInvertedLists(index.nlist, new)
    step = max(1, _CHUNK_BYTES // max(4 * index.d, new))
    for number in range(index.nlist):
        size = lists.list_size(number)
        if not size:
            continue
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * old).reshape(size, old)
        labels = faiss.rev_swig_ptr(lists.get_ids(number), size)
        for start in range(0, size, step):
            recoded = coder.recode(codes[start : start + step].copy(), rows)
            if fresh is lists:
                codes[start : start + step] = recoded
            else:
                part = labels[start : start + step].copy()
                fresh.add_entries(number, len(part), faiss.swig_ptr(part), faiss.swig_ptr(recoded))
        if fresh is not lists:
            lists.resize(number, 0)
    coder.finish()
    if fresh is not lists:
        fresh.this.disown()
        index.replace_invlists(fresh, True)


class _Coder:
    """Codes of float vectors (32, or 16 bits through a scalar quantizer): decoded in the old width, encoded in the new."""

    def __init__(self, index: Any, rows: RowMap) -> None:
        self._index = index
        self._old = getattr(index, "sq", None)
        self.dim = index.d - rows.coef.shape[1] + rows.coef.shape[0]
        self._new = None if self._old is None else faiss.ScalarQuantizer(self.dim, self._old.qtype)
        self.new_size = 4 * self.dim if self._new is None else self._new.code_size

    def recode(self, codes: np.ndarray, rows: RowMap) -> np.ndarray:
        vectors = codes.view(np.float32) if self._old is None else self._old.decode(codes)
        moved = rows.apply(vectors)
        return moved.view(np.uint8) if self._new is None else self._new.compute_codes(moved)

    def finish(self) -> None:
        """Set the new width of the index."""
        if self._old is not None:
            self._old.d = self.dim
            self._old.set_derived_sizes()
        self._index.d, self._index.code_size = self.dim, self.new_size


def _rewrite_codebooks(quantizer: Any, rows: RowMap) -> None:
    """``x = sum of codewords``: each codeword is mapped linearly; the offset is added to the first codebook."""
    words = faiss.vector_to_array(quantizer.codebooks).reshape(-1, quantizer.d) @ rows.coef.T
    first = int(faiss.vector_to_array(quantizer.codebook_offsets)[1])
    words[:first] += rows.intercept
    faiss.copy_array_to_vector(np.ascontiguousarray(words, np.float32).ravel(), quantizer.codebooks)
    quantizer.d = len(rows.coef)
    if isinstance(quantizer, faiss.ResidualQuantizer):
        quantizer.compute_codebook_tables()


def _additive(index: Any) -> Any:
    """The residual or local search quantizer of an index, which spans all dimensions at once, or None."""
    kinds = (faiss.IndexResidualQuantizer, faiss.IndexIVFResidualQuantizer)
    if isinstance(index, kinds):
        return index.rq
    if isinstance(index, faiss.IndexLocalSearchQuantizer | faiss.IndexIVFLocalSearchQuantizer):
        return index.lsq
    return None


def _chain(index: Any) -> bool:
    return isinstance(faiss.downcast_index(index), faiss.IndexPreTransform)
