"""The lines of a journal: a plan, then the finished row groups. Each line starts with a digest of itself and the line before."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embridge.errors import InterruptedOutputError
from embridge.files import whole_or_absent
from embridge.stores.parquet import thrift
from embridge.stores.parquet.thrift import Struct

FORMAT = "embridge.convert.2"
_FIRST_LINE = re.compile(rb"[0-9a-f]{32} \{|.*\"format\": \"embridge\.convert\.")
_MARK = 16  # bytes of the digest before each line


@dataclass(frozen=True)
class Entry:
    """A finished row group.

    Attributes
    ----------
    read : int
        Rows of the source up to the end of this group.
    offset : int
        Where the group ends in the partial file.
    checksum : int
        CRC-32 of the partial file's bytes from the end of the group before.
    group : Struct
        Its metadata.
    bad : list of (position, id, reason)
        Rows of the source left out since the group before.
    after : str or int, optional
        Id of the last row, of a source that can be read from there on.
    """

    read: int
    offset: int
    checksum: int
    group: Struct
    bad: list[tuple[int, Any, str]]
    after: str | int | None = None

    def dumps(self) -> dict[str, Any]:
        """As JSON."""
        group = base64.b64encode(thrift.dumps(self.group)).decode()
        values = {"read": self.read, "offset": self.offset, "checksum": self.checksum, "group": group, "bad": self.bad}
        return values if self.after is None else values | {"after": self.after}


@dataclass(frozen=True)
class Log:
    """The content of a journal.

    Attributes
    ----------
    plan : dict
        Everything that determines the output's bytes.
    entries : list of Entry
    replaced : str
        Fingerprint of the manifest of a whole folder that was about to replace an older one; else empty.
    end : int
        Where the last whole line ends.
    mark : str
        Digest of the last whole line, which the next one continues.
    fault : str
        Why the journal cannot be continued; empty where it can.
    files : dict of str to str
        Of a folder: fingerprints of the files that are finished, each with its list of bad rows.
    """

    plan: dict[str, Any]
    entries: list[Entry]
    replaced: str = ""
    end: int = 0
    mark: str = ""
    fault: str = ""
    files: dict[str, str] = field(default_factory=dict)


class Lines:
    """Appends lines to a journal; each starts with a digest of itself and of the line before."""

    def __init__(self, file: io.FileIO, mark: str) -> None:
        self._file, self.mark = file, mark

    def add(self, values: dict[str, Any]) -> None:
        """Append a line, and flush it."""
        text = json.dumps(values)
        self.mark = _digest(self.mark, text.encode())
        view = memoryview(f"{self.mark} {text}\n".encode())
        while view:  # the system may write less than the whole
            view = view[self._file.write(view) :]
        os.fdatasync(self._file.fileno())

    def add_file(self, name: str, mark: str) -> None:
        """Record a file of a folder, or a span of one, as finished."""
        self.add({"file": name, "fingerprint": mark})


def _digest(before: str, text: bytes) -> str:
    return hashlib.blake2b(before.encode() + text, digest_size=_MARK).hexdigest()


def partial_path(target: Path) -> Path:
    """The path of the unfinished output."""
    return target.with_name(f"{target.name}.partial")


def journal_path(target: Path) -> Path:
    """The path of the journal."""
    return target.with_name(f"{target.name}.journal")


def start(target: Path, plan: dict[str, Any]) -> Log:
    """Create a journal with the plan as its first line, and replace an existing one."""
    with whole_or_absent(journal_path(target)) as temporary, open(temporary, "wb", buffering=0) as file:
        lines = Lines(file, "")
        lines.add(plan)
        return Log(plan, [], end=file.tell(), mark=lines.mark)


@contextlib.contextmanager
def append_to(target: Path, found: Log) -> Iterator[Lines]:
    """Open a journal to continue after its last whole line."""
    descriptor = os.open(journal_path(target), os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "ab", buffering=0) as file:
        file.truncate(found.end)
        yield Lines(file, found.mark)


def open_own(path: Path, flags: int) -> int:
    """Open a file with a predictable name: does not follow links, wait for a FIFO, or accept a file with other names."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(descriptor)
    except IsADirectoryError:
        raise InterruptedOutputError.not_ours(str(path)) from None
    except OSError as e:
        if os.path.islink(path):
            raise InterruptedOutputError.not_ours(str(path)) from e
        raise
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise InterruptedOutputError.not_ours(str(path))
    return descriptor


def read_log(target: Path) -> Log | None:
    """Read the journal of an output; None where it has none. An incomplete last line is ignored.

    Raises
    ------
    InterruptedOutputError
        The file is not a journal of embridge.
    """
    path = journal_path(target)
    try:
        descriptor = open_own(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        *lines, rest = file.read().split(b"\n")
    if not _FIRST_LINE.match(lines[0] if lines else rest):
        raise InterruptedOutputError.not_ours(str(path))
    log = Log({}, [], fault="" if lines else "its first line is not whole")
    for number, line in enumerate(lines, 1):
        mark, _, text = line.partition(b" ")
        try:
            if mark.decode() != _digest(log.mark, text):
                raise ValueError(f"line {number} does not match its checksum")
            log = _continued(log, json.loads(text), mark.decode(), log.end + len(line) + 1)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as e:
            return replace(log, fault=str(e) or type(e).__name__)
    return log


def _continued(log: Log, values: dict[str, Any], mark: str, end: int) -> Log:
    """The log with one more line."""
    if not log.end:
        if values["format"] != FORMAT:
            raise ValueError(f"it is of the format {values['format']!r}")
        return Log(values, [], "", end, mark)
    if "replaced" in values:
        return replace(log, replaced=str(values["replaced"]), end=end, mark=mark)
    if "file" in values:
        return replace(log, files={**log.files, str(values["file"]): str(values["fingerprint"])}, end=end, mark=mark)
    numbers = [values[name] for name in ("read", "offset", "checksum")]
    last = log.entries[-1] if log.entries else Entry(0, 0, 0, {}, [])
    if any(type(number) is not int for number in numbers) or numbers[0] < last.read or numbers[1] <= last.offset:
        raise ValueError(f"it holds {numbers} where numbers must increase")
    group = thrift.loads(base64.b64decode(values["group"]))
    if type(group[3][1]) is not int:
        raise ValueError("a row group has no row count")
    bad = [(int(row), i, str(reason)) for row, i, reason in values["bad"]]
    if not isinstance(after := values.get("after"), str | int | None):
        raise ValueError("an id is neither text nor an integer")  # noqa: TRY004 (one type for all faults)
    entries = [*log.entries, Entry(numbers[0], numbers[1], numbers[2], group, bad, after)]
    return replace(log, entries=entries, end=end, mark=mark)
