"""Inner products of queries and rows that several searches use, computed once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch


class Products:
    """Inner products of blocks of queries and rows, kept by name as long as they fit into a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._kept: dict[Hashable, torch.Tensor] = {}

    def of(self, name: Hashable, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """``queries @ rows.T``, which is kept: it must not be changed."""
        found = self._kept.get(name)
        if found is None:
            found = queries @ rows.T
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
    rows : ndarray of shape (n_changed, dim)
    queries : ndarray of shape (n_queries, dim)
        Their inner products with `rows` are those of all queries with these rows.
    """

    places: np.ndarray
    rows: np.ndarray
    queries: np.ndarray


@dataclass(frozen=True, eq=False)
class KnownProducts:
    """Names under which products with some rows are kept.

    Attributes
    ----------
    products : Products
    old, new : hashable, optional
        The names of each side's queries and rows together; None: these are not kept.
    changed : Changed, optional
        Rows with other new vectors.
    """

    products: Products
    old: Hashable | None = None
    new: Hashable | None = None
    changed: Changed | None = None

    def sides(self, start: int, old: torch.Tensor, new: torch.Tensor) -> tuple[_Side, _Side]:
        """Both sides of a part of the rows, which begins at the place `start`."""
        olds, news = ((number, name, start) for number, name in enumerate((self.old, self.new)))
        changed = None
        if self.changed is not None:
            low, high = np.searchsorted(self.changed.places, (start, start + len(new)))
            changed = Changed(self.changed.places[low:high] - start, self.changed.rows[low:high], self.changed.queries)
        return _Side(olds, self.old is not None, old), _Side(news, self.new is not None, new, changed)


@dataclass(frozen=True, eq=False)
class _Side:
    """Rows of one side with the name of their products, and the changed ones among them."""

    name: Hashable
    is_named: bool
    rows: torch.Tensor
    changed: Changed | None = None

    def of(self, products: Products, number: int, queries: torch.Tensor, first: int) -> torch.Tensor:
        """Inner products with a block of queries, which begins at the place `first`; they must not be changed."""
        found = products.of((self.name, number), queries, self.rows) if self.is_named else queries @ self.rows.T
        if self.changed is None or not len(self.changed.places):
            return found
        others, some = self.changed.rows, self.changed.queries[first : first + len(queries)]
        return found.index_copy(1, torch.from_numpy(self.changed.places), torch.from_numpy(some) @ torch.from_numpy(others).T)
