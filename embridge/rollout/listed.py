"""Positions of rows that were listed to be encoded and are not native yet, in a file beside the stages."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from embridge.errors import UnreadableFileError
from embridge.files import whole_or_absent

LISTED = "listed-"  # beginning of the file's name


def write_listed(root: Path, rows: np.ndarray) -> str:
    """Write positions of listed rows beside the stages, under a hash of the content; returns the name, empty for no rows."""
    if not len(rows):
        return ""
    content = rows.astype("<i8").tobytes()
    name = f"{LISTED}{hashlib.blake2b(content, digest_size=8).hexdigest()}"
    with whole_or_absent(root / name) as temporary:
        temporary.write_bytes(content)
    return name


def read_listed(root: Path, name: str) -> np.ndarray:
    """Sorted positions of listed rows, from the file of a name; none for an empty name.

    Raises
    ------
    UnreadableFileError
        The file is missing or was altered.
    """
    if not name:
        return np.empty(0, np.int64)
    path = root / name
    content = path.read_bytes() if path.is_file() else b""
    if name != f"{LISTED}{hashlib.blake2b(content, digest_size=8).hexdigest()}":
        raise UnreadableFileError.altered(str(path))
    return np.frombuffer(content, "<i8").astype(np.int64)
