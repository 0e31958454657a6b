"""Exact nearest neighbours by blocked matrix products, and how far two lists of neighbours agree."""

from __future__ import annotations

import numpy as np
import torch

from embridge.arrays import as_vectors
from embridge.device import resolve_device
from embridge.errors import ParameterError
from embridge.types import Hits, Metric

_QUERY_BLOCK = 1024
_CORPUS_BLOCK = 16384  # 64 MiB of float32 scores a block


def top_k(
    queries: np.ndarray,
    corpus: np.ndarray,
    k: int,
    metric: Metric = Metric.COSINE,
    *,
    exclude: np.ndarray | None = None,
    device: str | torch.device | None = "cpu",
) -> Hits:
    """The k nearest rows of `corpus` for each query, by brute force.

    Parameters
    ----------
    queries : ndarray of shape (n_queries, dim)
    corpus : ndarray of shape (n, dim)
        May be memory-mapped: it is read in blocks of 16,384 rows.
    k : int
        At most n.
    metric : Metric, default "cosine"
    exclude : ndarray of shape (n_queries,), optional
        A position in the corpus that each query may not find (itself); -1 for none.
    device : str, default "cpu"

    Returns
    -------
    Hits
        `ids` are positions in the corpus. Under L2 scores are ``2 <q, x> - |x|^2 - |q|^2``, the negated squared distance.

    Raises
    ------
    ParameterError
        k is out of range.
    """
    corpus = as_vectors(corpus, what="corpus")
    queries = as_vectors(queries, corpus.shape[1], "queries")
    room = len(corpus) - (exclude is not None)
    if not 1 <= k <= room:
        raise ParameterError.must_be("k", f"between 1 and {room} (the rows there are to find)", k)
    place = resolve_device(device)
    ids = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float32)

    def load(array: np.ndarray) -> torch.Tensor:
        rows = torch.tensor(array, device=place).to(torch.float32)
        return torch.nn.functional.normalize(rows) if metric == Metric.COSINE else rows

    asked = load(queries)
    excluded = None if exclude is None else torch.tensor(exclude, device=place)
    best: list[tuple[torch.Tensor, torch.Tensor]] = []
    for start in range(0, len(corpus), _CORPUS_BLOCK):
        block = load(corpus[start : start + _CORPUS_BLOCK])
        squares = (block * block).sum(1) if metric == Metric.L2 else None
        for number, q in enumerate(asked.split(_QUERY_BLOCK)):
            found = q @ block.T
            if squares is not None:
                found = 2 * found - squares - (q * q).sum(1, keepdim=True)
            if excluded is not None:
                place_in_block = excluded[number * _QUERY_BLOCK :][: len(q)] - start
                hit = torch.nonzero((place_in_block >= 0) & (place_in_block < len(block))).squeeze(1)
                found[hit, place_in_block[hit]] = -torch.inf
            top = found.topk(min(k, len(block)), dim=1)
            values, positions = top.values, top.indices + start
            if start:
                values = torch.cat([best[number][0], values], 1)
                positions = torch.cat([best[number][1], positions], 1)
                top = values.topk(min(k, values.shape[1]), dim=1)
                values, positions = top.values, positions.gather(1, top.indices)
                best[number] = (values, positions)
            else:
                best.append((values, positions))
    for number, (values, positions) in enumerate(best):
        rows = slice(number * _QUERY_BLOCK, number * _QUERY_BLOCK + len(values))
        ids[rows], scores[rows] = positions.cpu().numpy(), values.cpu().numpy()
    return Hits(ids, scores)


def overlap(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each query the share of its true neighbours that were found.

    Parameters
    ----------
    found : ndarray of shape (n_queries, k_found)
    truth : ndarray of shape (n_queries, k)
        No position twice in a row of either.

    Returns
    -------
    ndarray of shape (n_queries,), float64

    Examples
    --------
    >>> overlap(np.array([[1, 2], [3, 4]]), np.array([[2, 9], [4, 3]])).tolist()
    [0.5, 1.0]
    """
    both = np.sort(np.concatenate([found, truth], axis=1), axis=1)
    return (both[:, 1:] == both[:, :-1]).sum(axis=1) / truth.shape[1]
