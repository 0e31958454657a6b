"""Locates Parquet files: one file, a folder or a glob, local or in object storage.

The rules for folders and globs:

- A folder is read with everything below it; so is a folder that a glob matches. ``**`` matches any number of folders.
- Names that begin with ``.`` or ``_`` are not data, as is usual (``_metadata``, ``_temporary``, ``.crc``). A glob
  that itself names such a part (``_old/*``) reads them.
- A file is Parquet by its suffix (``.parquet``, ``.pq``, ``.parq``, in any case), else by its first and last bytes (``PAR1``).
- Other files are left out and listed in a warning of the logger ``embridge`` (on stderr, unless logging is set up otherwise).
- Folders ``key=value`` below the folder, or below the part of a glob without wildcards, become columns.
- Links are followed, except into a folder that contains the link.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from embridge.errors import CollectionError, MissingFileError, UnreadableFileError
from embridge.files import hash_content
from embridge.stores.filesystems import resolve, shown, wrapped

_PART = 16 << 20  # bytes of a part of a multipart upload
_MAGIC = (b"PAR1", b"PARE")
_SUFFIXES = (".parquet", ".pq", ".parq")


class Found(NamedTuple):
    """The Parquet files behind a path.

    Attributes
    ----------
    filesystem : pyarrow.fs.FileSystem
    paths : list of str
        In the order of their names.
    base : str or None
        The folder they were found under, with a slash at its end; None for one file.
    left_out : list of str
        Files that are not Parquet.
    """

    filesystem: fs.FileSystem
    paths: list[str]
    base: str | None
    left_out: list[str]


def find_files(path: str) -> Found:
    """Find the Parquet files behind a path.

    Raises
    ------
    MissingFileError
        The file does not exist.
    UnreadableFileError
        Object storage does not answer, or the path is a device or a pipe.
    CollectionError
        A folder or glob without Parquet files.
    """
    filesystem, inner = resolve(path)
    with wrapped(path):
        info = filesystem.get_file_info(inner)
        if info.type == fs.FileType.File:
            return Found(filesystem, [inner], None, [])
        if info.type == fs.FileType.Unknown:
            raise UnreadableFileError(f"{shown(path)!r} is neither a file nor a folder (a pipe, a device or a socket).")
        if info.type == fs.FileType.Directory:
            base = inner.rstrip("/") + "/"
            listed = [entry for entry in _list(filesystem, base) if not _is_hidden(entry[0], base)]
        elif any(c in inner for c in "*?["):
            base, listed = _glob(filesystem, inner)
        else:
            raise MissingFileError.at(shown(path))
        names, left_out = [], []
        for name, is_file in sorted(listed):
            (names if is_file and _is_parquet(filesystem, name) else left_out).append(name)
    if not names:
        others = f" Other files: {_named(left_out, base)}." if left_out else ""
        raise CollectionError(f"{shown(path)!r} holds no Parquet files.{others}")
    return Found(filesystem, names, base, left_out)


def left_out_message(path: str, found: Found) -> str:
    """The warning about files that were left out."""
    count = f"{len(found.left_out):,} file{' that is' if len(found.left_out) == 1 else 's that are'}"
    return f"{shown(path)!r} holds {count} not Parquet; not read: {_named(found.left_out, found.base)}"


def _named(paths: Sequence[str], base: str | None) -> str:
    names = [ascii(p[len(base) :] if base else p)[1:-1] for p in paths[:5]]
    return ", ".join(names) + (", ..." if len(paths) > 5 else "")


def _is_hidden(path: str, base: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(base) :].split("/"))


def looks_like_parquet(path: str) -> bool:
    """True for a folder, a glob, a remote path, and a file that is Parquet by its suffix or its first bytes."""
    if is_remote(path) or os.path.isdir(path) or path.lower().endswith(_SUFFIXES):
        return True
    if glob.has_magic(path) and not os.path.lexists(path):
        return True
    with contextlib.suppress(OSError):
        if os.path.isfile(path):  # not a pipe, which would block
            with open(path, "rb") as file:
                return file.read(4) in _MAGIC
    return False


def _is_parquet(filesystem: fs.FileSystem, path: str) -> bool:
    if path.lower().endswith(_SUFFIXES):
        return True
    with filesystem.open_input_file(path) as file:
        size = file.size()
        if size < 12 or file.read(4) not in _MAGIC:
            return False
        file.seek(size - 4)  # an unfinished file has no footer
        return file.read(4) in _MAGIC


def _list(filesystem: fs.FileSystem, base: str) -> Iterator[tuple[str, bool]]:
    """All files below `base`, and whether each is a regular file."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        for info in filesystem.get_file_info(fs.FileSelector(base, recursive=True)):
            if info.type != fs.FileType.Directory:
                yield info.path, info.type == fs.FileType.File
        return
    for folder, below, names in os.walk(base, followlinks=True, onerror=_raise):
        parts = folder[len(base) :].split("/")
        above = [os.path.realpath(os.path.join(base, *parts[:i])) + "/" for i in range(len(parts) + 1)]
        below[:] = [b for b in below if not _holds(os.path.realpath(os.path.join(folder, b)), above)]
        for name in names:
            path = os.path.join(folder, name)
            yield path, os.path.isfile(path)


def _holds(folder: str, above: list[str]) -> bool:
    """True where a folder is, or contains, one of those `above`: following a link to it would never end."""
    return any(one.startswith(folder.rstrip("/") + "/") for one in above)


def _raise(error: OSError) -> None:
    raise error


def _glob(filesystem: fs.FileSystem, pattern: str) -> tuple[str, list[tuple[str, bool]]]:
    """The part of a glob without wildcards, as a folder, and the matches of the glob, folders with everything below them."""
    root = pattern[: min(pattern.find(c) for c in "*?[" if c in pattern)].rpartition("/")[0]
    base = f"{root}/" if root or pattern.startswith("/") else ""
    wanted = pattern[len(base) :].rstrip("/").split("/")
    if isinstance(filesystem, fs.LocalFileSystem) and "**" not in wanted:
        found = []
        for name in glob.glob(pattern, include_hidden=True):
            found += _list(filesystem, name.rstrip("/") + "/") if os.path.isdir(name) else [(name, os.path.isfile(name))]
    else:
        start = base or "./"
        listed = [(name[2:] if not base and name.startswith("./") else name, is_file) for name, is_file in _list(filesystem, start)]
        found = [entry for entry in listed if _matches(entry[0][len(base) :].split("/"), wanted)]
    names_hidden = any(part.startswith((".", "_")) for part in wanted)
    return base, [entry for entry in found if names_hidden or not _is_hidden(entry[0], base)]


def _matches(parts: list[str], wanted: list[str]) -> bool:
    """True where the glob matches a path, or a folder above it."""
    if not wanted:
        return True
    if wanted[0] == "**":
        return any(_matches(parts[i:], wanted[1:]) for i in range(len(parts) + (not wanted[1:])))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def fingerprint_files(filesystem: fs.FileSystem, paths: Sequence[str]) -> str:
    """Content hash of files in the order given, as `embridge.files.fingerprint` for local ones."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with filesystem.open_input_file(path) as source:
            hash_content(source, source.size(), digest)
    return digest.hexdigest()


def file_identity(filesystem: fs.FileSystem, path: str) -> tuple[int, *tuple[object, ...]]:
    """The size of a file, then other values that change when it is overwritten or replaced, without reading it.

    For a local file also its inode, and the time of its last change of any kind, which cannot be set back.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        found = os.stat(path)
        return found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns
    info = filesystem.get_file_info(path)
    return info.size or 0, info.type, info.mtime_ns


def is_remote(path: str) -> bool:
    """True for object storage: ``s3://``, ``gs://``."""
    return "://" in path and not path.startswith("file://")


def exists(path: str) -> bool:
    """True where a remote file exists."""
    filesystem, inner = resolve(path)
    with wrapped(path):
        return filesystem.get_file_info(inner).type == fs.FileType.File


def beside(path: str, suffix: str) -> str:
    """A path with a suffix, inserted before the question mark and the file system's options of a remote path."""
    base, mark, query = path.partition("?") if is_remote(path) else (path, "", "")
    return f"{base.rstrip('/')}{suffix}{mark}{query}"


def inner_path(path: str) -> str:
    """A path within its file system: for ``s3://``, bucket and key."""
    return resolve(path)[1]


def remove(path: str) -> None:
    """Delete a remote file, if there is one."""
    if exists(path):
        filesystem, inner = resolve(path)
        with wrapped(path):
            filesystem.delete_file(inner)


def upload(local: Path, path: str) -> None:
    """Copy a local file to a remote path, in parts; a copy that fails is removed.

    Raises
    ------
    UnreadableFileError
        The storage does not answer or refuses.
    """
    filesystem, inner = resolve(path)
    try:
        with open(local, "rb") as source, filesystem.open_output_stream(inner, buffer_size=None) as sink:
            while block := source.read(_PART):
                sink.write(block)
    except BaseException as e:
        # Closing a stream that failed, or that Ctrl-C interrupted, may leave a truncated object, which must not be mistaken for the
        # output.
        with contextlib.suppress(pa.ArrowException, OSError):
            filesystem.delete_file(inner)
        if isinstance(e, pa.ArrowException | OSError):
            raise UnreadableFileError.at(shown(path), "a place to write to", e) from e
        raise


def list_objects(path: str) -> list[str]:
    """Paths of the objects below a remote path, relative to it."""
    filesystem, inner = resolve(path)
    base = inner.rstrip("/") + "/"
    with wrapped(path):
        found = filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
        return sorted(info.path[len(base) :] for info in found if info.type == fs.FileType.File)


def read_object(path: str) -> bytes:
    """The content of a small remote file."""
    filesystem, inner = resolve(path)
    with wrapped(path, "a file"), filesystem.open_input_file(inner) as file:
        return file.read()


def fingerprint_at(path: str) -> tuple[int, str]:
    """Size and content hash of a remote file."""
    filesystem, inner = resolve(path)
    with wrapped(path, "a file"):
        return filesystem.get_file_info(inner).size, fingerprint_files(filesystem, [inner])
