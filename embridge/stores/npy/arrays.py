"""Arrays in ``.npy`` files and ``.npz`` archives, read piece by piece. Not mapped: a mapped file that shrinks kills the process."""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
import pyarrow as pa

from embridge.errors import BadIdsError, CollectionError, EmbridgeError, MissingFileError, UnreadableFileError

Read = Callable[[int, int], np.ndarray]
_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


class ArrayFile:
    """One array in a file.

    Parameters
    ----------
    path : str
        An ``.npy`` file, or an ``.npz`` archive.
    member : str, optional
        Name of the array in an archive.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype

    Raises
    ------
    MissingFileError, UnreadableFileError, CollectionError
        Missing, damaged, of Python objects (a pickle), stored column by column, or no array of this name.
    """

    def __init__(self, path: str, member: str | None = None) -> None:
        self.path, self._member = path, member
        with self._opened() as (file, size):
            version = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, by_column, self.dtype = read_header(file)
            self._offset = file.tell()
            if self.dtype.hasobject or self.dtype.fields:
                raise UnreadableFileError.at(path, "an array", f"it holds values of type {self.dtype}, which could be any code")
            if by_column and len(self.shape) > 1:
                raise UnreadableFileError.at(path, "an array", "it is stored column by column; save np.ascontiguousarray(array)")
            if min(self.shape, default=0) < 0 or size != self._offset + math.prod(self.shape) * self.dtype.itemsize:
                raise UnreadableFileError.at(path, "an array", f"it states the shape {self.shape}, which does not fit its size")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Read]:
        """A function that reads `count` rows from row `start` on."""
        with self._opened() as (file, _):

            def read(start: int, count: int) -> np.ndarray:
                out = np.empty((count, *self.shape[1:]), self.dtype)
                row = self.dtype.itemsize * math.prod(self.shape[1:])
                file.seek(self._offset + start * row)
                view = memoryview(out.reshape(-1).view(np.uint8))
                while view:
                    got = file.readinto(view) if hasattr(file, "readinto") else 0
                    if not got:
                        raise UnreadableFileError.at(self.path, "an array", "it ends early")
                    view = view[got:]
                return out

            yield read

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], int]]:
        """The bytes of an ``.npy`` file, and their number."""
        try:
            if self._member is None:
                with open(self.path, "rb") as file:
                    yield file, os.fstat(file.fileno()).st_size
                return
            with zipfile.ZipFile(self.path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                if self._member not in names:
                    raise CollectionError(f"{self.path!r} has no array {self._member!r}. Arrays: {', '.join(names)}.")
                with archive.open(f"{self._member}.npy") as file:
                    yield file, archive.getinfo(f"{self._member}.npy").file_size
        except EmbridgeError:
            raise
        except FileNotFoundError as e:
            raise MissingFileError.at(self.path) from e
        except _DAMAGED as e:
            raise UnreadableFileError.at(self.path, "an array", e) from e


def ids_of(values: np.ndarray, where: str) -> pa.Array:
    """Ids as string or int64.

    Raises
    ------
    BadIdsError
    """
    if values.dtype.kind not in "iuU":
        raise BadIdsError.kind(where, values.dtype)
    if values.dtype.kind == "u" and len(values) and int(values.max()) > np.iinfo(np.int64).max:
        raise BadIdsError(f"{where} has ids beyond int64, such as {int(values.max())}.")
    return pa.array(values.tolist(), pa.string() if values.dtype.kind == "U" else pa.int64())
