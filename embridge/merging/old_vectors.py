"""Further vector columns of a merge: the old vectors of a two-vector collection, which every merged row must have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from embridge.anchors import ids_at
from embridge.errors import BadIdsError, CollectionError, first_few, n_rows
from embridge.stores.base import Collection
from embridge.types import Space, mixed_spaces


def shared_payload_spaces(native: Collection, translated: Collection) -> dict[str, Space]:
    """The spaces of the further vector columns of both sides.

    Raises
    ------
    SpaceMismatchError, CollectionError
        The sides state different spaces for a column, or one of them states none for it.
    """
    ours, theirs = native.payload_spaces, translated.payload_spaces
    for column in set(ours) & set(theirs):
        if not ours[column].same_as(theirs[column]) or ours[column].metric != theirs[column].metric:
            raise mixed_spaces(f"Column {column!r} of the merge", native.name, ours[column], translated.name, theirs[column])
    for side, other, spaces in ((native, translated, ours), (translated, native, theirs)):
        for column in (set(spaces) & set(other.payload_schema.names)) - set(other.payload_spaces):
            raise CollectionError(
                f"Column {column!r} of {other.name} names no space, and that of {side.name} is of {spaces[column].name!r}. "
                "Hint: rename it, or write its space into the metadata."
            )
    both = {c: ours[c].normalized and theirs[c].normalized for c in set(ours) & set(theirs)}
    return {c: replace(s, normalized=both.get(c, s.normalized)) for c, s in (theirs | ours).items()}


def check_complete(
    payload_spaces: dict[str, Space], native: tuple[Collection, np.ndarray], translated: tuple[Collection, np.ndarray]
) -> None:
    """Refuse rows that would lack a further vector: native rows take their old vectors from the translated side, by id.

    Each side comes with the positions of the rows that it shares with the other.

    Raises
    ------
    BadIdsError
    """
    for column, space in payload_spaces.items():
        for (side, shared), (other, _) in ((native, translated), (translated, native)):
            missing = np.setdiff1d(np.arange(len(side)), shared)
            if column not in side.payload_schema.names and len(missing):
                raise BadIdsError(
                    f"{n_rows(len(missing))} of {side.name} would have no vector of {space.name!r} (column {column!r}), since "
                    f"{other.name} does not have them: ids {first_few(ids_at(side, missing[:5]).tolist())}. "
                    f"Hint: leave these rows out, or give {side.name} that column."
                )


__all__ = ["check_complete", "shared_payload_spaces"]
