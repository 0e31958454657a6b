"""Reading a map of either kind."""

from __future__ import annotations

import os

from embridge.maps import kernel, linear
from embridge.maps.kernel import KernelMap
from embridge.maps.linear import LinearMap, checked
from embridge.tensors import reading_tensors

Map = LinearMap | KernelMap


def load_map(path: str | os.PathLike[str]) -> Map:
    """Read a map of either kind.

    Raises
    ------
    MissingFileError
        The file does not exist.
    UnreadableFileError
        Truncated, not a map of embridge, or altered.
    """
    with reading_tensors(path, (linear.FORMAT, kernel.FORMAT), "a map") as (metadata, tensors):
        kind = KernelMap if metadata["format"] == kernel.FORMAT else LinearMap
        return checked(path, kind.from_file(tensors, metadata), metadata)
