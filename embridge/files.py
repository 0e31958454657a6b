"""Local files: an output is complete or absent, and a content hash costs the same at any size."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from embridge.errors import DiskFullError, EmbridgeError, OutputError

_WHOLE = 64 << 20  # files up to this size are hashed whole
_BLOCKS, _BLOCK = 1024, 64 << 10  # of larger ones, this many blocks, evenly spread


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...
    def seek(self, position: int, /) -> object: ...


def one_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """True where two names, of files that need not exist, are the same file."""
    return os.path.realpath(one) == os.path.realpath(other)


def open_exclusively(path: str | os.PathLike[str]) -> int:
    """A descriptor of a new file. An existing name, also a dangling link, is an error and is not followed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


@contextlib.contextmanager
def whole_or_absent(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on exit, flush the file to the disk and rename it, or remove it after an error.

    The temporary file is created exclusively and stays locked while it is in use. Files of killed processes are removed
    by the next writer of `path`.

    Raises
    ------
    DiskFullError, OutputError
        The file cannot be written, whichever library reports it (see `writing`).
    """
    target = Path(path)
    with writing(target):
        remove_dead(target)
        temporary, descriptor = _temporary(target)
        try:
            yield temporary
            if not os.stat(temporary).st_size:
                raise OutputError(f"{os.fspath(path)!r} is not written: its writer wrote nothing.")
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
            sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)


def _temporary(target: Path) -> tuple[Path, int]:
    """A new file beside `target` with the mark of this process, and a descriptor that holds its lock."""
    while True:
        mark = f"{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(4)}"
        temporary = target.with_name(f".{target.name}.{mark}.tmp")
        descriptor = open_exclusively(temporary)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.stat(temporary, follow_symlinks=False), os.fstat(descriptor)):
                return temporary, descriptor
        except FileNotFoundError:  # another process removed it between its creation and its lock
            pass
        except BaseException:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)


def remove_dead(target: Path) -> None:
    """Remove the temporary files of `target` whose process has ended.

    A library may replace the locked file by one of its own, so a living process with the right mark counts as well as a lock.
    """
    for path in target.parent.glob(f".{glob.escape(target.name)}.*-*.tmp"):
        with contextlib.suppress(OSError, ValueError):
            process, *rest = path.name[len(target.name) + 2 : -len(".tmp")].split("-")
            if _is_alive(int(process)) and (len(rest) < 2 or rest[0] == _started(int(process))):
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _started(process: int) -> str:
    """When a process started, in ticks since the system did: process ids are reused. "0" where unknown."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return "0"


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of writing an output into an error that names it, whichever library raised them.

    Errors of embridge pass through unchanged.

    Raises
    ------
    DiskFullError
        The disk, or a quota, is full.
    OutputError
        The folder is missing or not writable, or the device fails.
    """
    try:
        yield
    except EmbridgeError:
        raise
    except OSError as e:
        raise _write_error(os.fspath(path), e.errno, e) from e
    except Exception as e:
        # FAISS, safetensors, pyarrow and DuckDB report system errors as text, each in its own classes.
        text = str(e)
        if found := re.search(r"os error (\d+)|[Cc]ode: (\d+)|\[?[Ee]rrno[ =:]+(\d+)", text):
            raise _write_error(os.fspath(path), int(next(filter(None, found.groups()))), e) from e
        code = next((code for code in _WRITE_ERRORS if os.strerror(code) in text), None)
        if code is not None or "for writing" in text or "write error" in text:
            raise _write_error(os.fspath(path), code, e) from e
        raise


_FULL = (errno.ENOSPC, errno.EDQUOT)
_WRITE_ERRORS = (
    *_FULL,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EIO,
    errno.ENAMETOOLONG,
)


def _write_error(path: str, code: int | None, error: Exception) -> EmbridgeError:
    if code in _FULL:
        return DiskFullError(f"{path!r} cannot be written: its disk is full. Hint: free some space, or write elsewhere.")
    if code == errno.ENOENT and not os.path.isdir(os.path.dirname(path) or "."):
        return OutputError(f"{path!r} cannot be written: its folder does not exist.")
    reason = os.strerror(code) if code else " ".join(str(error).split()) or type(error).__name__
    return OutputError(f"{path!r} cannot be written: {reason}.")


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_content(file: BinaryIO | _Readable, size: int, digest: hashlib.blake2b) -> None:
    """Feed a file into `digest`: whole up to 64 MiB, else its size, its first and last blocks and 1,024 even samples.

    A sampled hash distinguishes files that were written separately (a Parquet footer, which is sampled, holds every chunk's size).
    It does not detect deliberate edits of a few bytes of a large file.
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
