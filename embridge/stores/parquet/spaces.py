"""What the files of a collection say of their vectors together: spaces and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from embridge.errors import CollectionError, UndeclaredSpaceError
from embridge.stores.parquet.file import ParquetFile
from embridge.stores.parquet.metadata import read_payload_spaces, read_provenance, read_space
from embridge.types import Provenance, Space, mixed_spaces


def known_space(files: Sequence[ParquetFile], where: str, column: str, *, is_declared: bool) -> Space | None:
    """The space that the files name for a vector column.

    Raises
    ------
    SpaceMismatchError, UndeclaredSpaceError
        Files name different spaces, or only some name one and the caller none.
    """
    spaces = [(file, read_space(file.schema, file.name, column)) for file in files]
    known = [(file, space) for file, space in spaces if space]
    if not known:
        return None
    first, space = known[0]
    for file, other in known[1:]:
        if not _is_alike(other, space):
            raise mixed_spaces(where, first.name, space, file.name, other)
    if len(known) < len(spaces) and not is_declared:
        raise UndeclaredSpaceError.of(next(file.name for file, other in spaces if other is None))
    return replace(space, normalized=all(other.normalized for _, other in known))


def payload_spaces(files: Sequence[ParquetFile], where: str, vector_column: str) -> dict[str, Space]:
    """The spaces of the vector columns other than `vector_column`, where all files name them.

    Raises
    ------
    SpaceMismatchError
        Files name different spaces for a column.
    """
    found = [read_payload_spaces(file.schema, file.name, vector_column) for file in files]
    for file, spaces in zip(files[1:], found[1:], strict=True):
        for column, space in spaces.items():
            if column in found[0] and not _is_alike(space, found[0][column]):
                raise mixed_spaces(f"Column {column!r} of {where}", files[0].name, found[0][column], file.name, space)
    shared = [column for column in found[0] if all(column in spaces for spaces in found)]
    return {c: replace(found[0][c], normalized=all(spaces[c].normalized for spaces in found)) for c in shared}


def common_provenance(files: Sequence[ParquetFile], where: str) -> Provenance | None:
    """The provenance of merged files. Scores of files with different calibrations, or with none, are not comparable.

    Raises
    ------
    CollectionError
    """
    found = [(file, read_provenance(file.schema, file.name)) for file in files]
    first, provenance = found[0]
    if other := next((file for file, one in found if one != provenance), None):
        raise CollectionError(
            f"{where} mixes files whose native and translated rows were not calibrated together: {first.name} "
            f"and {other.name}. Hint: open them one by one."
        )
    return provenance


def _is_alike(one: Space, other: Space) -> bool:
    return one.same_as(other) and one.metric == other.metric


__all__ = ["common_provenance", "known_space", "payload_spaces"]
