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
class KnownProducts:
    """Names under which products with some rows are kept.

    Attributes
    ----------
    products : Products
    old, new : hashable, optional
        The names of each side's queries and rows together; None: these are not kept.
    changed : ndarray of int64, optional
        The places, ascending, of the rows whose new vectors are others than under this name.
    named : ndarray of shape (n, dim_new), optional
        With `changed`: all the vectors of the name.
    """

    products: Products
    old: Hashable | None = None
    new: Hashable | None = None
    changed: np.ndarray | None = None
    named: np.ndarray | None = None

    def sides(self, start: int, old: torch.Tensor, new: torch.Tensor) -> tuple[_Side, _Side]:
        """Both sides of a part of the rows, which begins at the place `start`."""
        olds = _Side((0, self.old, start), self.old is not None, old)
        if self.new is None or self.changed is None or self.named is None:
            return olds, _Side((1, self.new, start), self.new is not None, new)
        low, high = np.searchsorted(self.changed, (start, start + len(new)))
        places = torch.from_numpy(self.changed[low:high] - start)
        named = torch.tensor(np.asarray(self.named[start : start + len(new)], np.float32))
        return olds, _Side((1, self.new, start), True, named, places, new[places])


@dataclass(frozen=True, eq=False)
class _Side:
    """Rows of one side with the name of their products, and the places and vectors of those that are other than under this name."""

    name: Hashable
    is_named: bool
    rows: torch.Tensor
    places: torch.Tensor | None = None
    others: torch.Tensor | None = None

    def of(self, products: Products, number: int, queries: torch.Tensor) -> torch.Tensor:
        """Inner products with a block of queries; they must not be changed."""
        if not self.is_named:
            return queries @ self.rows.T
        found = products.of((self.name, number), queries, self.rows)
        if self.places is None or self.others is None or not len(self.places):
            return found
        return found.index_copy(1, self.places, queries @ self.others.T)
