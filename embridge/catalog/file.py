"""The file of a catalog: created whole or not at all, opened with retries; errors of DuckDB name the file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb

from embridge.errors import CatalogError, DiskFullError, EmbridgeError, MissingFileError
from embridge.files import sync_folder

_FULL = re.compile(r"No space left on device|Disk quota exceeded|File too large", re.IGNORECASE)
# A process that closes any descriptor of a file loses its locks on it, DuckDB's as well. With this lock,
# a thread opens a file that is not yet a catalog only while no other thread creates one.
_CREATING = threading.Lock()


def is_absent(path: str) -> bool:
    """True where there is no file, or an empty one: the process that created it was killed, or the disk was full.

    Raises
    ------
    CatalogError
        It is not a regular file.
    MissingFileError
        Its folder does not exist.
    """
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise MissingFileError.at(os.path.dirname(path))
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return True
    except OSError as e:
        raise _cannot(path, "opened", e) from e
    if not os.path.isfile(path):
        raise CatalogError(f"The catalog {path!r} is not a regular file. Hint: choose another with --catalog.")
    return status.st_size == 0


def create(path: str, build: Callable[[duckdb.DuckDBPyConnection], object], patience: float) -> bool:
    """Create a DuckDB file with `build` under a temporary name and rename it; False where another process was faster.

    The empty file in its place is the lock. A process that was killed leaves an empty file, which counts as absent, and a
    temporary one, which the next process removes.

    Raises
    ------
    CatalogError
        It cannot be created, or another process holds the lock for longer than `patience` seconds.
    DiskFullError
    """
    target = Path(os.path.realpath(path))
    with _CREATING:
        while is_absent(path):
            with _locked(path, target, patience) as descriptor:
                if not _is_empty_and_in_place(descriptor, target):
                    continue
                try:
                    _replace(path, target, build)
                finally:
                    if _is_empty_and_in_place(descriptor, target):
                        target.unlink()
                return True
    return False


@contextlib.contextmanager
def _locked(path: str, target: Path, patience: float) -> Iterator[int]:
    """The descriptor of the file at `target`, locked; an empty file is created where there is none."""
    deadline = time.monotonic() + patience
    try:
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as e:
        raise _cannot(path, "created", e) from e
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as e:
                if time.monotonic() > deadline:
                    raise _held(path, "it is creating the file", patience) from e
            except OSError as e:  # a file system without locks
                raise _cannot(path, "locked", e) from e
            time.sleep(0.02)
        yield descriptor
    finally:
        os.close(descriptor)


def _is_empty_and_in_place(descriptor: int, target: Path) -> bool:
    found = os.fstat(descriptor)
    with contextlib.suppress(FileNotFoundError):
        return found.st_size == 0 and os.path.samestat(found, os.stat(target))
    return False


def _replace(path: str, target: Path, build: Callable[[duckdb.DuckDBPyConnection], object]) -> None:
    """Build a file beside the empty one, whose lock is held, and replace it."""
    for left in target.parent.iterdir():  # of processes that were killed
        if left.name.startswith(f".{target.name}.") and left.name.endswith((".tmp", ".tmp.wal")):
            left.unlink()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with connect(str(temporary), read_only=False, patience=0, name=path) as connection:
            build(connection)
            connection.execute("CHECKPOINT")
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as e:
        raise e if isinstance(e, EmbridgeError) else _cannot(path, "created", e) from e
    finally:
        for left in (temporary, Path(f"{temporary}.wal")):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def connect(path: str, *, read_only: bool, patience: float, name: str = "") -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection for the block; DuckDB's errors inside it name the file (as `name` if given).

    Raises
    ------
    CatalogError
        Another process holds the file for longer than `patience` seconds, it is not a DuckDB file or damaged, or a statement
        failed.
    DiskFullError
    """
    connection = _open(path, name or path, read_only, patience)
    try:
        yield connection
    except duckdb.Error as e:
        raise _cannot(name or path, "read" if read_only else "written", e) from e
    finally:
        with contextlib.suppress(duckdb.Error):  # what was committed is in the log; what was not is rolled back
            connection.close()


def _open(path: str, name: str, read_only: bool, patience: float) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {"python_enable_replacements": "false"}
    if read_only:  # a large sort must not spill beside the file
        config |= {"temp_directory": "", "autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    # by its absolute path: md:name and the like would load an extension
    place = os.path.abspath(path)
    return _patiently(lambda: duckdb.connect(place, read_only=read_only, config=config), name, patience)


def attach(path: str, connection: duckdb.DuckDBPyConnection, *, patience: float) -> None:
    """Attach the file to another connection, read-only, as ``catalog``.

    Raises
    ------
    CatalogError
        As `connect`.
    """
    place = os.path.abspath(path).replace("'", "''")
    _patiently(lambda: connection.execute(f"ATTACH '{place}' AS catalog (READ_ONLY)"), path, patience)


def _patiently(connect: Callable[[], duckdb.DuckDBPyConnection], name: str, patience: float) -> duckdb.DuckDBPyConnection:
    deadline = time.monotonic() + patience
    pause = 0.02
    while True:
        try:
            return connect()
        except duckdb.Error as e:
            if not (holder := _holder(e)):
                if "not a valid DuckDB database" in str(e):
                    raise CatalogError(f"{name!r} is not an embridge catalog: {str(e).splitlines()[0]}") from e
                raise _cannot(name, "opened", e) from e
            if time.monotonic() > deadline:
                raise _held(name, holder, patience) from e
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _held(path: str, holder: str, seconds: float) -> CatalogError:
    return CatalogError(
        f"The catalog {path!r} is held by another process ({holder}); waited {seconds:.0f} s. "
        "Hint: end it, or use --no-catalog or another --catalog."
    )


def _cannot(path: str, done: str, reason: Exception) -> EmbridgeError:
    """The error for a file that cannot be opened, read or written."""
    said = reason.strerror if isinstance(reason, OSError) else None
    text = (said or str(reason).strip() or type(reason).__name__).splitlines()[0].rstrip(".")
    if _FULL.search(text):
        return DiskFullError(f"The catalog {path!r} cannot be {done}: the disk is full ({text}). Nothing was recorded.")
    hint = " Hint: restore a copy, or move it away." if "orrupt" in text or "checksum" in text else ""
    return CatalogError(f"The catalog {path!r} cannot be {done}: {text}.{hint}")


def _holder(error: duckdb.Error) -> str:
    """The process that holds the file, where that is why it could not be opened; else an empty string."""
    message = str(error)
    if isinstance(error, duckdb.ConnectionException) and "same database file" in message:
        return f"an open connection of this process, PID {os.getpid()}"
    if not (isinstance(error, duckdb.IOException) and "Could not set lock on file" in message):
        return ""
    found = re.search(r"held in (.+? \(PID \d+\))", message) or re.search(r"(PID \d+)", message)
    return found[1] if found else "an unknown process"
