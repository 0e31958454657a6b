"""The space of a collection, from what its store keeps and what the caller declares."""

from __future__ import annotations

import functools
from dataclasses import replace

from embridge.arrays import all_unit
from embridge.errors import CollectionError, UndeclaredSpaceError
from embridge.stores.base import Collection
from embridge.types import DeclaredSpace, Metric, Space, resolve_space


class DeclaredCollection(Collection):
    """A collection whose space is kept in its store, or declared by the caller.

    Whether all rows have unit length is read from them where neither states it.
    """

    is_exact = True

    def _declare(
        self,
        declared: Space | DeclaredSpace | str | None,
        known: Space | None,
        dim: int,
        metric: Metric | None,
        *,
        normalized: bool = False,
    ) -> None:
        """Set the space, as `declare_space`; `normalized` where the store itself scales vectors to unit length."""
        stated = declare_space(self.name, declared, known, dim, metric)
        self._stated = replace(stated, normalized=True) if normalized else stated
        self._is_settled = normalized or known is not None or isinstance(declared, Space)

    @functools.cached_property
    def space(self) -> Space:
        if self._is_settled:
            return self._stated
        return replace(self._stated, normalized=self._is_unit(zero_is_bad=self._stated.metric == Metric.COSINE))

    def _is_unit(self, *, zero_is_bad: bool) -> bool:
        """Whether all usable rows have unit length (`all_unit`); a store whose engine can tell overrides it."""
        return all_unit((batch.vectors for batch in self.batches(validate=False)), zero_is_bad=zero_is_bad)

    @property
    def stated_space(self) -> Space:
        return self._stated


def declare_space(
    where: str,
    declared: Space | DeclaredSpace | str | None,
    known: Space | None,
    dim: int,
    metric: Metric | None,
    *,
    normalized: bool = False,
) -> Space:
    """The space of a file: from its metadata, checked against the declaration of the caller, else from its data.

    Parameters
    ----------
    where : str
        How messages call the file.
    declared : Space, DeclaredSpace or str, optional
        The declaration of the caller.
    known : Space, optional
        The space in the file's metadata.
    dim : int
        Width of its vectors.
    metric : Metric, optional
        Metric given by the format (a FAISS index has one); None is cosine, unless declared otherwise.
    normalized : bool, default False
        Used where neither the file nor a `Space` states it: True only where all rows were checked to have unit length
        (`embridge.arrays.all_unit`).

    Raises
    ------
    UndeclaredSpaceError
        Neither the file nor the caller names the space.
    SpaceMismatchError, CollectionError
        The caller contradicts the file, or the file contradicts its own vectors.
    """
    found = known or Space("?", dim, metric or Metric.COSINE, normalized)
    space = resolve_space(where, declared, found, is_known=known is not None)
    if space is None:
        raise UndeclaredSpaceError.of(where)
    if known is not None and known.dim != dim:
        raise CollectionError(f"The metadata of {where} state {known.dim} dimensions, but its vectors have {dim} values.")
    return space
