"""The first pass of an exact search by inner product or cosine: float32 products whose errors have a bound.

`embridge.neighbors.settling` computes the scores that this bound cannot tell apart again in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from embridge.neighbors.products import TERMS, Changed, Named, inner_products

_UNIT = 2.0**-24
_SPARE_UNITS = 32  # of roundings besides those of the sums: of both vectors, of their lengths and of the quotients
_SHORTEST, _LONGEST = 1e-15, 1e18  # lengths whose squares keep their digits in float32
_GROUPS = 4  # per wanted value
_CROWDED = 8  # times k values above that limit: ties


@dataclass(frozen=True, eq=False)
class Screened:
    """Candidates of each query by scores in float32.

    Attributes
    ----------
    scores : ndarray of float32, shape (n_queries, kept)
        Inner products of the queries, scaled to unit length, with the rows (under cosine scaled to unit length), less the offset;
        best first. Every other row has at most the last of them.
    ids : ndarray of int64, shape (n_queries, kept)
    error : float
        Largest difference of a score to the exact one.
    """

    scores: np.ndarray
    ids: np.ndarray
    error: float


def screen(
    queries: np.ndarray,
    corpus: np.ndarray,
    kept: int,
    *,
    cosine: bool,
    offsets: Sequence[np.ndarray | None] = (None,),
    exclude: np.ndarray | None = None,
    query_block: int,
    corpus_block: int,
    known: Named | None = None,
) -> list[Screened] | None:
    """The `kept` best rows of each query for each of some offsets, from one pass over the products.

    Parameters
    ----------
    queries : ndarray of shape (n_queries, dim)
    corpus : ndarray of shape (n, dim)
    kept : int
        At most n.
    cosine : bool
        Rows are scaled to unit length.
    offsets : sequence of ndarray of shape (n,), or None
        Subtracted from the scores of the rows.
    exclude : ndarray of shape (n_queries,), optional
        Position of the row that a query does not find; -1 for none.
    query_block, corpus_block : int
        Queries and rows of one product.
    known : Named, optional
        Name of the products; blocks are those of `embridge.neighbors.products`.

    Returns
    -------
    list of Screened, or None
        None where float32 is not enough: for float64 vectors, and where a length is not between 1e-15 and 1e18.
    """
    if not len(queries) or np.float64 in (queries.dtype, corpus.dtype):
        return None
    asked = _prepared(queries, scaled=True)
    if asked is None:
        return None
    own = None if exclude is None else torch.tensor(np.array(exclude))
    starts = range(0, len(queries), query_block)
    best: list[list[tuple[torch.Tensor, torch.Tensor] | None]] = [[None] * len(starts) for _ in offsets]
    longest = 1.0 if cosine else 0.0
    if known is not None and known.changed is not None:
        found = _prepared(known.changed.rows, scaled=cosine)
        if found is None:
            return None
        longest = longest if cosine else found[1]
        known = replace(known, changed=Changed(known.changed.places, found[0].numpy()))
    buffer = torch.empty(min(query_block, len(queries)) * min(corpus_block, len(corpus)))
    for start in range(0, len(corpus), corpus_block):
        found = _prepared(corpus[start : start + corpus_block], scaled=cosine)
        if found is None:
            return None
        rows = found[0]
        part = None if known is None else known.at(start, rows)
        longest = longest if cosine else max(longest, found[1])
        parts = [None if o is None else torch.tensor(np.asarray(o[start : start + corpus_block], np.float32)) for o in offsets]
        for number, first in enumerate(starts):
            chosen = asked[0][first : first + query_block]
            scores = inner_products(chosen, rows, buffer) if part is None else part.of(chosen, first)
            if own is not None:
                inside = own[first : first + query_block] - start
                hit = torch.nonzero((inside >= 0) & (inside < len(rows))).squeeze(1)
                if part is not None and len(hit):  # known products must not be changed
                    scores = scores.clone()
                scores[hit, inside[hit]] = -torch.inf
            for each, offset in zip(best, parts, strict=True):
                each[number] = _merged(each[number], scores if offset is None else scores - offset, start, kept)
    dim = corpus.shape[1]
    error = _UNIT * (min(dim, TERMS) + dim / TERMS + _SPARE_UNITS) * longest
    out = []
    for each, offset in zip(best, offsets, strict=True):
        joined = [torch.cat(part).numpy() for part in zip(*(one for one in each if one is not None), strict=True)]
        largest = 0.0 if offset is None else float(np.abs(offset).max(initial=0))
        out.append(Screened(joined[0], joined[1], error + 4 * _UNIT * largest))
    return out


def contenders(scores: torch.Tensor, k: int, least: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Some values of each row, among them its `k` largest that are at least `least`, and their columns.

    Faster than `torch.topk` where rows are long: it copies only values above a `lower_limit`.

    Parameters
    ----------
    scores : Tensor of shape (rows, n)
    k : int
        At most n.
    least : Tensor of shape (rows, 1), optional

    Returns
    -------
    values : Tensor of shape (rows, width)
        Minus infinity in empty places.
    columns : Tensor of int64, same shape
        0 in empty places.
    """
    count, n = scores.shape
    groups = _GROUPS * k
    if n < 2 * groups:
        top = scores.topk(k, dim=1)
        return top.values, top.indices
    limit = lower_limit(scores, k)
    limit = limit if least is None else torch.maximum(limit, least)
    flat = np.flatnonzero((scores >= limit).numpy())
    if len(flat) > _CROWDED * k * count:
        top = scores.topk(k, dim=1)
        return top.values, top.indices
    place, width = places(flat // n, count)
    values, columns = torch.full((count * width,), -torch.inf, dtype=scores.dtype), torch.zeros(count * width, dtype=torch.int64)
    at, place = torch.from_numpy(flat), torch.from_numpy(place)
    values[place] = scores.reshape(-1)[at]
    columns[place] = at % n
    return values.view(count, width), columns.view(count, width)


def lower_limit(scores: torch.Tensor, k: int) -> torch.Tensor:
    """A value that at least k of each row reach, shape (rows, 1): the k-th largest of the maxima of 4 k groups of columns.

    Rows have at least 4 k values. Where the largest are spread over the groups, few more than k reach it.
    """
    groups = _GROUPS * k
    size = scores.shape[1] // groups
    maxima = scores[:, : groups * size].reshape(len(scores), size, groups).amax(1)
    return kth_largest(maxima, k)


def kth_largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th largest value of each row, shape (rows, 1). NumPy's partition is several times faster than `torch.topk`."""
    place = values.shape[1] - k
    return torch.from_numpy(np.partition(values.numpy(), place, axis=1)[:, place : place + 1])


def places(rows: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Where entries of the sorted `rows` go in a flat table with one line a row, and the width of the table."""
    counts = np.bincount(rows, minlength=count)
    width = int(counts.max(initial=0))
    return np.arange(len(rows)) + (np.arange(count) * width - (np.cumsum(counts) - counts))[rows], width


def _merged(
    before: tuple[torch.Tensor, torch.Tensor] | None, scores: torch.Tensor, start: int, kept: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best candidates so far, and those of another block of rows."""
    is_full = before is not None and before[0].shape[1] == kept
    least = before[0][:, -1:] if before is not None and is_full else None
    values, columns = contenders(scores, min(kept, scores.shape[1]), least)
    ids = columns + start
    if before is not None:
        values, ids = torch.cat([before[0], values], 1), torch.cat([before[1], ids], 1)
    top = values.topk(min(kept, values.shape[1]), dim=1)
    return top.values, ids.gather(1, top.indices)


def _prepared(vectors: np.ndarray, *, scaled: bool) -> tuple[torch.Tensor, float] | None:
    """Vectors in float32, of unit length where `scaled`, with the largest length; None where it is not enough."""
    rows = torch.tensor(np.ascontiguousarray(vectors)).to(torch.float32)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    extreme = torch.nonzero(~((lengths > _SHORTEST) & (lengths < _LONGEST)))[:, 0]
    if rows[extreme].any():  # zero rows have the score zero
        return None
    if scaled:
        rows /= torch.where(lengths > 0, lengths, 1)
    return rows, float(lengths.max()) if len(lengths) else 0.0
