"""Local files: an output is whole or absent, ours are read or told unreadable, a content hash costs the same at any size."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from embridge.errors import MissingFileError, OutputExistsError, UnreadableFileError

_WHOLE = 64 << 20  # files up to this size are hashed whole
_BLOCKS, _BLOCK = 1024, 64 << 10  # of larger ones, this many blocks, evenly spread


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...
    def seek(self, position: int, /) -> object: ...


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False, inputs: tuple[str | None, ...] = ()) -> Path:
    """The path of an output that may be written, checked before any work is done.

    Raises
    ------
    OutputExistsError
        It exists and `overwrite` is False, or it is a folder or one of the inputs.
    MissingFileError
        Its folder does not exist.
    """
    target = Path(path)
    if any(source and os.path.exists(source) and target.exists() and os.path.samefile(source, target) for source in inputs):
        raise OutputExistsError.is_input(str(path))
    if target.is_dir():
        raise OutputExistsError.is_folder(str(path))
    if target.exists() and not overwrite:
        raise OutputExistsError.at(str(path))
    if not target.parent.is_dir():
        raise MissingFileError.at(str(target.parent))
    return target


def one_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """True where two names, of files that need not exist yet, are those of one file."""
    return os.path.realpath(one) == os.path.realpath(other)


@contextlib.contextmanager
def whole_or_absent(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path`; on leaving, flush it to the disk and rename it, or remove it after an error."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def reading_tensors(
    path: str | os.PathLike[str], file_format: str, what: str
) -> Iterator[tuple[dict[str, str], dict[str, np.ndarray]]]:
    """Metadata and tensors of a safetensors file of ours; what is wrong with them, inside the block too, is told as unreadable.

    Raises
    ------
    MissingFileError
        Nothing is there.
    UnreadableFileError
        Truncated, not `what`, or the block fails on what the file holds.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise MissingFileError.at(name)
    try:
        with safe_open(name, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != file_format:
                raise UnreadableFileError.foreign(name, f"{what} of embridge", "its metadata")
            # copies: what comes out of the file may be read-only memory of it
            tensors = {key: np.array(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 (no mapping)
        yield metadata, tensors
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError) as e:
        if isinstance(e, UnreadableFileError):
            raise
        raise UnreadableFileError.at(name, what, e) from e


def file_format(path: str | os.PathLike[str]) -> str:
    """Which of our formats a safetensors file says it is of; nothing where it does not say, or is no such file."""
    try:
        with safe_open(os.fspath(path), "np") as file:
            return (file.metadata() or {}).get("format", "")
    except (SafetensorError, OSError):
        return ""


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_content(file: BinaryIO | _Readable, size: int, digest: hashlib.blake2b) -> None:
    """Feed a file into `digest`: whole up to 64 MiB, else its size, its first and last blocks and 1,024 even samples.

    A sampled hash tells files apart that were made apart (a Parquet footer, which is sampled, holds every chunk's size). It
    is no proof against somebody who edits a few bytes of a large file on purpose.
    """
    digest.update(size.to_bytes(8, "little"))
    if size <= _WHOLE:
        file.seek(0)
        while block := file.read(1 << 20):
            digest.update(block)
        return
    for i in range(_BLOCKS):
        file.seek((size - _BLOCK) * i // (_BLOCKS - 1))
        digest.update(file.read(_BLOCK))


def fingerprint(*paths: str | os.PathLike[str]) -> str:
    """Content hash of local files in the order given: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open(path, "rb") as file:
            hash_content(file, os.path.getsize(path), digest)
    return digest.hexdigest()
