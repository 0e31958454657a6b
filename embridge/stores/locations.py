"""Where Parquet files lie: one file, a folder or a glob, local or in object storage."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from embridge.errors import CollectionError, MissingFileError, UnreadableFileError
from embridge.files import hash_content

_PART = 16 << 20  # bytes of a part of a multipart upload


def find_files(path: str) -> tuple[fs.FileSystem, list[str], str | None]:
    """The file system, the Parquet files behind a path, and the folder they were found under, if it is one.

    Raises
    ------
    MissingFileError
        Nothing is there.
    CollectionError
        A folder or glob without Parquet files.
    """
    filesystem, inner = _resolve(path)
    local = isinstance(filesystem, fs.LocalFileSystem)
    try:
        info = filesystem.get_file_info(inner)
        if info.type == fs.FileType.File:
            return filesystem, [inner], None
        if info.type == fs.FileType.Directory:
            base = inner.rstrip("/") + "/"
            names = _parquet_files(filesystem, base)
        elif any(c in inner for c in "*?["):
            base = None
            root = inner[: min(inner.find(c) for c in "*?[" if c in inner)].rpartition("/")[0]
            names = glob.glob(inner, recursive=True) if local else fnmatch.filter(_parquet_files(filesystem, root), inner)
            names = sorted(n for n in names if not local or os.path.isfile(n))
        else:
            raise MissingFileError.at(path)
    except OSError as e:
        if isinstance(e, MissingFileError):
            raise
        raise UnreadableFileError.at(path, "a location", e) from e
    if not names:
        raise CollectionError(f"{path!r} holds no Parquet files.")
    return filesystem, names, base


def _parquet_files(filesystem: fs.FileSystem, base: str) -> list[str]:
    found = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    names = [f.path for f in found if f.type == fs.FileType.File and f.extension in ("parquet", "pq")]
    # As everywhere in this field, what begins with "." or "_" (_metadata, _temporary, .crc) is not data.
    return sorted(n for n in names if not any(part.startswith((".", "_")) for part in n[len(base) :].split("/")))


def fingerprint_files(filesystem: fs.FileSystem, paths: Sequence[str]) -> str:
    """Content hash of files in the order given, as `embridge.files.fingerprint` takes it of local ones."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with filesystem.open_input_file(path) as source:
            hash_content(source, source.size(), digest)
    return digest.hexdigest()


def is_remote(path: str) -> bool:
    """True for object storage: ``s3://``, ``gs://``."""
    return "://" in path and not path.startswith("file://")


def exists(path: str) -> bool:
    """True where there is a file at a remote path."""
    filesystem, inner = _resolve(path)
    try:
        return filesystem.get_file_info(inner).type == fs.FileType.File
    except OSError as e:
        raise UnreadableFileError.at(path, "a location", e) from e


def beside(path: str, suffix: str) -> str:
    """A path with something appended; what follows a question mark in a remote one are options of the file system."""
    base, mark, query = path.partition("?") if is_remote(path) else (path, "", "")
    return f"{base.rstrip('/')}{suffix}{mark}{query}"


def same_place(one: str, other: str) -> bool:
    """True where two remote paths name one object."""
    return one.partition("://")[0] == other.partition("://")[0] and inner_path(one) == inner_path(other)


def inner_path(path: str) -> str:
    """A path as its file system has it: for ``s3://``, bucket and key."""
    return _resolve(path)[1]


def remove(path: str) -> None:
    """Delete a remote file, if there is one."""
    if exists(path):
        filesystem, inner = _resolve(path)
        filesystem.delete_file(inner)


def upload(local: Path, path: str) -> None:
    """Copy a local file to a remote path, in parts; a copy that fails is removed.

    Raises
    ------
    UnreadableFileError
        The storage does not answer or refuses.
    """
    filesystem, inner = _resolve(path)
    try:
        with open(local, "rb") as source, filesystem.open_output_stream(inner, buffer_size=None) as sink:
            while block := source.read(_PART):
                sink.write(block)
    except BaseException as e:
        # Closing a stream that failed, or that Ctrl-C interrupted, may leave a truncated object, which nobody shall take for the
        # output.
        with contextlib.suppress(pa.ArrowException, OSError):
            filesystem.delete_file(inner)
        if isinstance(e, pa.ArrowException | OSError):
            raise UnreadableFileError.at(path, "a place to write to", e) from e
        raise


def list_objects(path: str) -> list[str]:
    """Paths of the objects below a remote path, relative to it."""
    filesystem, inner = _resolve(path)
    base = inner.rstrip("/") + "/"
    try:
        found = filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
    except OSError as e:
        raise UnreadableFileError.at(path, "a location", e) from e
    return sorted(info.path[len(base) :] for info in found if info.type == fs.FileType.File)


def read_object(path: str) -> bytes:
    """The content of a small remote file."""
    filesystem, inner = _resolve(path)
    try:
        with filesystem.open_input_file(inner) as file:
            return file.read()
    except (pa.ArrowException, OSError) as e:
        raise UnreadableFileError.at(path, "a file", e) from e


def fingerprint_at(path: str) -> tuple[int, str]:
    """Size and content hash of a remote file."""
    filesystem, inner = _resolve(path)
    try:
        return filesystem.get_file_info(inner).size, fingerprint_files(filesystem, [inner])
    except (pa.ArrowException, OSError) as e:
        raise UnreadableFileError.at(path, "a file", e) from e


def _resolve(path: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
    except (pa.ArrowException, OSError) as e:
        raise UnreadableFileError.at(path, "a location", e) from e
