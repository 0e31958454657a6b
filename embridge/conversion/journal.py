"""The journal beside an unfinished output: which row groups are safe on the disk, so that a later run continues after them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embridge.errors import ChangedSourceError, EmbridgeError, InterruptedOutputError, OutputError
from embridge.files import open_exclusively, sync_folder, whole_or_absent
from embridge.stores import thrift
from embridge.stores.thrift import Struct

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
    """

    read: int
    offset: int
    checksum: int
    group: Struct
    bad: list[tuple[int, Any, str]]


@dataclass(frozen=True)
class Log:
    """What a journal says.

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
    """

    plan: dict[str, Any]
    entries: list[Entry]
    replaced: str = ""
    end: int = 0
    mark: str = ""
    fault: str = ""


class Checked(io.FileIO):
    """A file that keeps the CRC-32 of what was written since `take`."""

    checksum = 0

    def write(self, data: Any, /) -> int:
        """Write, and count what was written in."""
        count = super().write(data)
        self.checksum = zlib.crc32(memoryview(data).cast("B")[:count], self.checksum)
        return count

    def take(self) -> int:
        """The checksum, which begins anew."""
        found, self.checksum = self.checksum, 0
        return found


class Journal:
    """``OUT.partial`` and ``OUT.journal``: the row groups so far, and the list of them.

    An entry is written only after its row group is on the disk, so everything that the journal names is there, whenever and
    however a run ends.

    Attributes
    ----------
    file : Checked
        The partial file, at its end, unbuffered.
    entries : list of Entry
        What is finished, by earlier runs and by this one.
    """

    def __init__(self, target: Path, file: Checked, log: Lines, entries: list[Entry]) -> None:
        self.target, self.file, self._log, self.entries = target, file, log, entries

    def add(self, read: int, group: Struct, bad: list[tuple[int, Any, str]]) -> None:
        """Name a row group, which ends where the partial file ends, as finished."""
        entry = Entry(read, self.file.tell(), self.file.take(), group, bad)
        os.fdatasync(self.file.fileno())
        data = base64.b64encode(thrift.dumps(group)).decode()
        self._log.add({"read": read, "offset": entry.offset, "checksum": entry.checksum, "group": data, "bad": bad})
        self.entries.append(entry)

    def finish(self) -> None:
        """Make the partial file the output, and remove the journal."""
        os.fsync(self.file.fileno())
        partial = partial_path(self.target)
        if not os.path.samestat(os.stat(partial, follow_symlinks=False), os.fstat(self.file.fileno())):
            raise OutputError(f"{str(partial)!r} was replaced while it was written.")
        os.replace(partial, self.target)
        sync_folder(self.target.parent)
        journal_path(self.target).unlink(missing_ok=True)


class Lines:
    """Appends to a journal lines of which each carries the digest of itself and of the line before."""

    def __init__(self, file: io.FileIO, mark: str) -> None:
        self._file, self.mark = file, mark

    def add(self, values: dict[str, Any]) -> None:
        """Append a line, and flush it."""
        text = json.dumps(values)
        self.mark = _digest(self.mark, text.encode())
        view = memoryview(f"{self.mark} {text}\n".encode())
        while view:  # whole, even where the system takes it in pieces
            view = view[self._file.write(view) :]
        os.fdatasync(self._file.fileno())


def _digest(before: str, text: bytes) -> str:
    return hashlib.blake2b(before.encode() + text, digest_size=_MARK).hexdigest()


def partial_path(target: Path) -> Path:
    """Where the output grows."""
    return target.with_name(f"{target.name}.partial")


def journal_path(target: Path) -> Path:
    """Where its finished row groups are listed."""
    return target.with_name(f"{target.name}.journal")


@contextlib.contextmanager
def open_journal(target: Path, plan: dict[str, Any], *, resume: bool, overwrite: bool) -> Iterator[Journal]:
    """Begin an output, or continue it; the caller has claimed it. A run that fails before anything is finished leaves nothing.

    Parameters
    ----------
    target : Path
    plan : dict
        Everything that determines the output's bytes; what is resumed must have the same.
    resume : bool
        Continue what is there, if anything is.
    overwrite : bool
        Drop what is there.

    Raises
    ------
    InterruptedOutputError
        An unfinished output is there and neither `resume` nor `overwrite` is given; it has another plan, or was altered; or
        files in its place are not ours.
    """
    found = begin(target, plan, resume=resume, overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        try:
            log = stack.enter_context(append_to(target, found))
            file = stack.enter_context(_open_partial(partial_path(target)))
            if found.entries:
                _check_partial(file, found.entries, target)
            file.truncate(found.entries[-1].offset if found.entries else 0)
            file.seek(0, os.SEEK_END)
            file.take()
            sync_folder(target.parent)
            yield Journal(target, file, log, found.entries)
        except InterruptedOutputError:
            raise
        except (EmbridgeError, OSError) as e:
            if not found.entries or isinstance(e, ChangedSourceError):
                discard(target)
            raise


def begin(target: Path, plan: dict[str, Any], *, resume: bool, overwrite: bool) -> Log:
    """The journal that is there, where it may be continued; else a new one, with the plan as its first line."""
    found = read_log(target)
    if found is None and os.path.lexists(partial_path(target)):
        raise InterruptedOutputError(f"{str(partial_path(target))!r} is there, and no journal names it. Hint: move it away.")
    if found is not None and found.fault and not overwrite:
        raise InterruptedOutputError.altered(str(journal_path(target)), found.fault)
    if found is not None and found.entries and not resume and not overwrite:
        raise InterruptedOutputError.unfinished(str(target), found.entries[-1].read)
    if found is not None and resume and not found.fault:
        if found.plan == plan and (not found.entries or os.path.lexists(partial_path(target))):
            return found
        if found.plan != plan and not overwrite:
            differ = [key for key in {**plan, **found.plan} if plan.get(key) != found.plan.get(key)]
            raise InterruptedOutputError.differs(str(target), sorted(differ))
    return start(target, plan)


def start(target: Path, plan: dict[str, Any]) -> Log:
    """A new journal with the plan as its first line, in the place of one that is there."""
    with whole_or_absent(journal_path(target)) as temporary, open(temporary, "wb", buffering=0) as file:
        lines = Lines(file, "")
        lines.add(plan)
        return Log(plan, [], end=file.tell(), mark=lines.mark)


@contextlib.contextmanager
def append_to(target: Path, found: Log) -> Iterator[Lines]:
    """A journal, to be continued after its last whole line."""
    descriptor = os.open(journal_path(target), os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "ab", buffering=0) as file:
        file.truncate(found.end)
        yield Lines(file, found.mark)


def _open_partial(path: Path) -> Checked:
    """The partial file: new, or the one that the journal stands for, which must be a regular file with no other name."""
    try:
        return Checked(open_exclusively(path), "r+")
    except FileExistsError:
        return Checked(_open_own(path, os.O_RDWR), "r+")


def _open_own(path: Path, flags: int) -> int:
    """A descriptor of a file under a predictable name: no link is followed, no FIFO waited for, no file shared."""
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


def _check_partial(file: Checked, entries: Sequence[Entry], target: Path) -> None:
    """Compare every finished row group with its checksum."""
    file.seek(0)
    at = 0
    for number, entry in enumerate(entries):
        found = 0
        while at < entry.offset and (block := file.read(min(entry.offset - at, 1 << 20))):
            found, at = zlib.crc32(block, found), at + len(block)
        if found != entry.checksum or at != entry.offset:
            raise InterruptedOutputError.altered(str(partial_path(target)), f"row group {number} does not match its checksum")


def discard(target: Path) -> None:
    """Remove an unfinished file that a journal names; the journal last."""
    if read_log(target) is not None:
        partial_path(target).unlink(missing_ok=True)
        journal_path(target).unlink(missing_ok=True)


def read_log(target: Path) -> Log | None:
    """The journal of an output; None where it has none. A line that was being written when a run ended is left out.

    Raises
    ------
    InterruptedOutputError
        What is there is no journal of embridge.
    """
    path = journal_path(target)
    try:
        descriptor = _open_own(path, os.O_RDONLY)
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
    """A log with one more line."""
    if not log.end:
        if values["format"] != FORMAT:
            raise ValueError(f"it is of the format {values['format']!r}")
        return Log(values, [], "", end, mark)
    if "replaced" in values:
        return Log(log.plan, log.entries, str(values["replaced"]), end, mark)
    numbers = [values[name] for name in ("read", "offset", "checksum")]
    last = log.entries[-1] if log.entries else Entry(0, 0, 0, {}, [])
    if any(type(number) is not int for number in numbers) or numbers[0] < last.read or numbers[1] <= last.offset:
        raise ValueError(f"it holds {numbers} where numbers must grow")
    group = thrift.loads(base64.b64decode(values["group"]))
    if type(group[3][1]) is not int:
        raise ValueError("a row group has no count of rows")
    bad = [(int(row), i, str(reason)) for row, i, reason in values["bad"]]
    return Log(log.plan, [*log.entries, Entry(*numbers, group, bad)], log.replaced, end, mark)


def bad_rows_of(entries: Sequence[Entry]) -> list[tuple[int, Any, str]]:
    """All rows that were left out."""
    return [row for entry in entries for row in entry.bad]


def rows_done(target: Path) -> int:
    """Rows of the source that an unfinished output has done; 0 where there is none."""
    found = read_log(target)
    return found.entries[-1].read if found is not None and found.entries else 0
