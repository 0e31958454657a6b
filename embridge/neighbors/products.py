"""Inner products of queries and rows that several searches use, computed once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import torch

from embridge.device import unit_rows

TERMS = 128  # of an inner product that are summed before they are added to the others: fewer rounding errors add up
QUERIES, ROWS = 128, 16384  # of one kept product: 8 MiB


def inner_products(queries: torch.Tensor, rows: torch.Tensor, buffer: torch.Tensor | None = None) -> torch.Tensor:
    """``queries @ rows.T`` in float32, in `buffer` where one is given."""
    count = len(queries) * len(rows)
    out = (torch.empty(count) if buffer is None else buffer[:count]).view(len(queries), len(rows))
    for part in range(0, rows.shape[1], TERMS):
        terms = slice(part, part + TERMS)
        torch.addmm(out, queries[:, terms], rows[:, terms].T, beta=1 if part else 0, out=out)
    return out


def scaled(vectors: np.ndarray) -> np.ndarray:
    """Vectors of unit length to float32 accuracy, as products that are kept need them (`Named`)."""
    return unit_rows(torch.tensor(np.ascontiguousarray(vectors, np.float32))).numpy()


class Products:
    """Inner products of blocks of queries and rows, kept by name as long as they fit into a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._kept: dict[Hashable, torch.Tensor] = {}

    def of(self, name: Hashable, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """``queries @ rows.T``, which is kept: it must not be changed."""
        found = self._kept.get(name)
        if found is None:
            found = inner_products(queries, rows)
            if found.nbytes <= self._left:
                self._left -= found.nbytes
                self._kept[name] = found
        return found


@dataclass(frozen=True, eq=False)
class Changed:
    """Rows that have other vectors than those under the name of the products.

    Attributes
    ----------
    places : ndarray of int64, shape (n_changed,)
        Ascending.
    rows : ndarray of shape (n_changed, dim), float32
    queries : ndarray of shape (n_queries, dim), float32, optional
        Their inner products with `rows` are those of all queries with these rows. None: the queries themselves.
    """

    places: np.ndarray
    rows: np.ndarray
    queries: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Named:
    """The name of some queries and rows, under which their products are kept.

    Queries have unit length, as have rows under cosine, to float32 accuracy. Blocks are of `QUERIES` queries and `ROWS` rows.

    Attributes
    ----------
    products : Products
    name : hashable, optional
        None: they are not kept.
    changed : Changed, optional
        Rows with other vectors.
    rows : ndarray of shape (n, dim), optional
        With `changed`: all rows of the name.
    """

    products: Products = field(default_factory=lambda: Products(0))
    name: Hashable | None = None
    changed: Changed | None = None
    rows: np.ndarray | None = None

    def at(self, start: int, rows: torch.Tensor) -> _Part:
        """A part of the rows, which begins at the place `start`."""
        changed = self.changed
        if changed is not None:
            low, high = np.searchsorted(changed.places, (start, start + len(rows)))
            changed = Changed(changed.places[low:high] - start, changed.rows[low:high], changed.queries)
        return _Part(self.products, None if self.name is None else (self.name, start), rows, changed)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some rows with the name of their products, and the changed ones among them."""

    products: Products
    name: Hashable | None
    rows: torch.Tensor
    changed: Changed | None

    def of(self, queries: torch.Tensor, first: int) -> torch.Tensor:
        """Inner products with a block of queries, which begins at the place `first`; they must not be changed."""
        if self.name is None:
            found = inner_products(queries, self.rows)
        else:
            found = self.products.of((self.name, first), queries, self.rows)
        if self.changed is None or not len(self.changed.places):
            return found
        some = self.changed.queries
        others = queries if some is None else torch.from_numpy(some[first : first + len(queries)])
        return found.index_copy(
            1, torch.from_numpy(self.changed.places), inner_products(others, torch.from_numpy(self.changed.rows))
        )
