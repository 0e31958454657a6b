"""Inverted lists that a FAISS index keeps in another file: located and checked before FAISS maps that file.

FAISS maps any path that the index file names, writable by default, and a mapping that is longer than its file crashes the
process. So every such entry is read from the raw bytes first.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from embridge.errors import FaissIndexError

_MARK = b"ilod"  # `OnDiskInvertedListsIOHook` of FAISS: mark, nlist, code_size, lists, free slots, file name, size of that file
_WORD = np.frombuffer(_MARK, "<u4")[0]
_BLOCK = 1 << 20  # stays in the cache
_UNUSED = 2**64 - 1  # the offset of a list that has never held anything


def check_external_lists(path: str, *, allowed: bool = False) -> None:
    """Refuse an index whose inverted lists are in an unexpected place, or do not match the index.

    Parameters
    ----------
    path : str
        The index file.
    allowed : bool, default False
        Lists may lie outside the folder of the index.

    Raises
    ------
    FaissIndexError
        The file with the lists lies outside the folder of the index (after links are resolved), is not a regular file, or is
        shorter than the index claims.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        found = [entry for place in _marks(file) if (entry := _entry(file, place, size))]
    for name, claimed in found:
        _check(path, name, claimed, allowed=allowed)


def _marks(file: BinaryIO) -> Iterator[int]:
    """Positions of the mark anywhere in the file: an index may be nested in others.

    Compared as 32-bit words at each of the four offsets: half the time of `bytes.find`, which needs half a second for a GB.
    """
    start, kept = 0, b""
    while block := file.read(_BLOCK):
        data = kept + block
        words = [np.frombuffer(data, "<u4", (len(data) - shift) // 4, shift) for shift in range(min(4, len(data) - 3))]
        places = [4 * at + shift for shift, each in enumerate(words) for at in np.flatnonzero(each == _WORD).tolist()]
        for place in sorted(places):
            back = file.tell()
            yield start + place
            file.seek(back)
        kept = data[-len(_MARK) + 1 :]
        start += len(data) - len(kept)


def _entry(file: BinaryIO, place: int, size: int) -> tuple[bytes, int] | None:
    """File name and claimed size of one entry, or None where FAISS would fail to read one before it maps anything."""
    file.seek(place + len(_MARK))
    header = file.read(24)
    if len(header) < 24:
        return None
    nlist, code_size, count = struct.unpack("<3Q", header)
    if count * 24 > size:
        return None
    lists = np.frombuffer(file.read(count * 24), "<u8").reshape(-1, 3)
    slots = file.read(8)
    if len(lists) < count or len(slots) < 8 or struct.unpack("<Q", slots)[0] * 16 > size:
        return None
    file.seek(struct.unpack("<Q", slots)[0] * 16, os.SEEK_CUR)
    length = file.read(8)
    if len(length) < 8 or struct.unpack("<Q", length)[0] > size:
        return None
    name, total = file.read(struct.unpack("<Q", length)[0]), file.read(8)
    if len(total) < 8:
        return None
    claimed = struct.unpack("<Q", total)[0]
    held, capacity, offset = (lists[:, i].astype(float) for i in range(3))  # float: products of hostile numbers overflow
    used = lists[:, 2] != _UNUSED
    end = np.where(used, offset + capacity * (float(code_size) + 8), 0)
    if count != nlist or (held > capacity).any() or held[~used].any() or (end > claimed).any():
        claimed = -1
    return name, claimed


def _check(path: str, name: bytes, claimed: int, *, allowed: bool) -> None:
    shown = os.fsdecode(name)
    where = f"The inverted lists of {path!r} are in another file, {shown!r}"
    if claimed < 0 or b"\0" in name:
        raise FaissIndexError(f"{where}, and the index describes them inconsistently.")
    real, folder = os.path.realpath(name), os.path.realpath(os.path.dirname(path) or ".")
    if not allowed and not Path(os.fsdecode(real)).is_relative_to(folder):
        raise FaissIndexError(
            f"{where}, outside the folder of the index. Hint: allow that with --external-lists (external_lists=True) if you trust "
            "the index, or read it with faiss.IO_FLAG_ONDISK_SAME_DIR beside its lists and write it again."
        )
    try:
        found = os.stat(real)
    except OSError as e:
        raise FaissIndexError(f"{where}, which cannot be read: {e.strerror}.") from e
    if not stat.S_ISREG(found.st_mode):
        raise FaissIndexError(f"{where}, which is not a regular file.")
    if found.st_size < claimed:
        raise FaissIndexError(f"{where}, which has {found.st_size:,} bytes where the index claims {claimed:,}.")


__all__ = ["check_external_lists"]
