"""Puts a map in front of an index, which then accepts queries of another space; stored vectors are not changed."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from embridge.migration.equivalence import QueryMap


def wrap(index: Any, queries: QueryMap, *, biased: bool) -> Any:
    """The index behind linear transforms that project queries, as an `IndexPreTransform`.

    Parameters
    ----------
    index : faiss.Index
        As returned by `read_index`; becomes part of the result.
    queries : QueryMap
    biased : bool
        The index's last column is a hubness bias.
    """
    for step in reversed(queries.steps(biased=biased)):
        transform = faiss.NormalizationTransform(index.d) if step is None else linear_transform(*step)
        if not isinstance(index, faiss.IndexPreTransform):
            index = faiss.IndexPreTransform(transform, index)
            continue
        if index.own_fields:  # as after read_index: it frees the transform, so Python must not
            transform.this.disown()
        index.prepend_transform(transform)
    return index


def linear_transform(matrix: np.ndarray, offset: np.ndarray) -> Any:
    """``matrix @ x + offset`` as a FAISS transform that knows whether it is orthonormal."""
    d_out, d_in = matrix.shape
    transform = faiss.LinearTransform(d_in, d_out, bool(offset.any()))
    set_matrix(transform, matrix, offset)
    transform.is_trained = True
    return transform


def set_matrix(transform: Any, matrix: np.ndarray, offset: np.ndarray) -> None:
    """Give a linear transform another matrix and offset; FAISS does not update whether it is orthonormal."""
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix, np.float32).ravel(), transform.A)
    transform.d_out, transform.d_in = matrix.shape
    transform.have_bias = bool(offset.any())
    faiss.copy_array_to_vector(
        np.ascontiguousarray(offset, np.float32) if transform.have_bias else np.empty(0, np.float32), transform.b
    )
    transform.set_is_orthonormal()
