"""The journal beside an output in the making: what is done and safe on the disk, so that a run can be gone on with."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embridge.errors import EmbridgeError, InterruptedOutputError
from embridge.files import sync_folder
from embridge.stores import thrift
from embridge.stores.thrift import Struct


@dataclass(frozen=True)
class Entry:
    """A finished row group.

    Attributes
    ----------
    read : int
        Rows of the source taken up to and with this group.
    offset : int
        Where the group ends in the partial file.
    group : Struct
        Its metadata.
    bad : list of (position, id, reason)
        Rows of the source left out since the group before.
    """

    read: int
    offset: int
    group: Struct
    bad: list[tuple[int, Any, str]]


class Journal:
    """``OUT.partial`` and ``OUT.journal``: the row groups so far, and the list of them.

    An entry is written only after its row group is on the disk, so everything that the journal names is there, whenever and
    however a run ends.

    Attributes
    ----------
    file : io.FileIO
        The partial file, at its end, unbuffered.
    entries : list of Entry
        What is finished, by earlier runs and by this one.
    """

    def __init__(self, target: Path, file: io.FileIO, log: io.FileIO, entries: list[Entry]) -> None:
        self.target, self.file, self._log, self.entries = target, file, log, entries

    def add(self, entry: Entry) -> None:
        """Name a row group as finished."""
        os.fdatasync(self.file.fileno())
        group = base64.b64encode(thrift.dumps(entry.group)).decode()
        line = json.dumps({"read": entry.read, "offset": entry.offset, "group": group, "bad": entry.bad})
        _put(self._log, line)
        os.fdatasync(self._log.fileno())
        self.entries.append(entry)

    def finish(self) -> None:
        """Make the partial file the output, and forget the journal."""
        os.fsync(self.file.fileno())
        os.replace(partial_path(self.target), self.target)
        sync_folder(self.target.parent)
        journal_path(self.target).unlink(missing_ok=True)


def partial_path(target: Path) -> Path:
    """Where the output grows."""
    return target.with_name(f"{target.name}.partial")


def journal_path(target: Path) -> Path:
    """Where its finished row groups are listed."""
    return target.with_name(f"{target.name}.journal")


@contextlib.contextmanager
def locked(target: Path) -> Iterator[io.FileIO]:
    """``OUT.journal``, made where there is none, for this process alone.

    Raises
    ------
    InterruptedOutputError
        Another process has it.
    """
    path = journal_path(target)
    with open(path, "ab+", buffering=0) as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise InterruptedOutputError.busy(str(target)) from e
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(log.fileno())):
            raise InterruptedOutputError.busy(str(target))  # it ended between our opening and locking, and took the file away
        yield log


@contextlib.contextmanager
def open_journal(target: Path, plan: dict[str, Any], *, resume: bool, overwrite: bool) -> Iterator[Journal]:
    """Begin an output, or go on with it. What ends with an error before anything is finished leaves nothing.

    Parameters
    ----------
    target : Path
    plan : dict
        Everything that determines the output's bytes; what is resumed must have the same.
    resume : bool
        Go on with what is there, if anything is.
    overwrite : bool
        Drop what is there.

    Raises
    ------
    InterruptedOutputError
        An unfinished output is there and neither `resume` nor `overwrite` is given, or it has another plan, or another process
        is writing it.
    """
    partial = partial_path(target)
    with locked(target) as log:
        found, entries, end = _read(log)
        if entries and not resume and not overwrite:
            raise InterruptedOutputError.unfinished(str(target), entries[-1].read)
        check_plan(target, plan, found, resume=resume)
        if not resume or not partial.exists() or (entries and partial.stat().st_size < entries[-1].offset):
            entries = []
        try:
            if entries:
                log.truncate(end)
            else:
                begin(log, plan)
            with open(partial, "rb+" if entries else "wb", buffering=0) as file:
                file.truncate(entries[-1].offset if entries else 0)
                file.seek(0, os.SEEK_END)
                sync_folder(target.parent)
                yield Journal(target, file, log, entries)
        except (EmbridgeError, OSError):
            if not entries:
                discard(target)
            raise


def check_plan(target: Path, plan: dict[str, Any], found: dict[str, Any] | None, *, resume: bool) -> None:
    """Refuse to go on with what was begun with another plan.

    Raises
    ------
    InterruptedOutputError
    """
    if resume and found is not None and found != plan:
        raise InterruptedOutputError.differs(str(target), sorted(k for k in plan if plan[k] != found.get(k)))


def begin(log: io.FileIO, plan: dict[str, Any]) -> None:
    """Make an empty journal of one that may hold something."""
    log.truncate(0)
    _put(log, json.dumps(plan))
    os.fdatasync(log.fileno())


def read_plan(log: io.FileIO) -> dict[str, Any] | None:
    """The plan of a journal; None where it has none."""
    return _read(log)[0]


def discard(target: Path) -> None:
    """Remove an unfinished output, and whatever else a run that was killed may have left; the journal last."""
    partial = partial_path(target)
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.unlink(missing_ok=True)
    for name in ("bad", "old"):  # of a folder: lists of bad rows, and the folder that was replaced
        shutil.rmtree(target.with_name(f"{partial.name}.{name}"), ignore_errors=True)
    journal_path(target).unlink(missing_ok=True)


def _put(log: io.FileIO, line: str) -> None:
    """Append a line, whole even where the system takes it in pieces."""
    view = memoryview(line.encode() + b"\n")
    while view:
        view = view[log.write(view) :]


def _read(log: io.FileIO) -> tuple[dict[str, Any] | None, list[Entry], int]:
    """The plan, the entries, and where the last whole line ends: a line that was being written when a run ended is dropped."""
    log.seek(0)
    plan: dict[str, Any] | None = None
    entries: list[Entry] = []
    end = 0
    for line in log.readall().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            values = json.loads(line)
            if plan is None:
                plan = dict(values)
            else:
                group = thrift.loads(base64.b64decode(values["group"]))
                bad = [(int(row), i, str(reason)) for row, i, reason in values["bad"]]
                entries.append(Entry(values["read"], values["offset"], group, bad))
        except (ValueError, KeyError, TypeError):
            break
        end += len(line)
    return plan, entries, end


def bad_rows_of(entries: Sequence[Entry]) -> list[tuple[int, Any, str]]:
    """All rows that were left out."""
    return [row for entry in entries for row in entry.bad]


def rows_done(target: Path) -> int:
    """Rows of the source that an unfinished output has done; 0 where there is none."""
    try:
        with open(journal_path(target), "rb", buffering=0) as log:
            entries = _read(log)[1]
    except FileNotFoundError:
        return 0
    return entries[-1].read if entries else 0
