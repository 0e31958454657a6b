"""The journal beside an unfinished output: it lists the row groups on the disk, so that a later run continues after them."""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embridge.conversion.log import Entry, Lines, Log, append_to, journal_path, open_own, partial_path, read_log, start
from embridge.errors import ChangedSourceError, EmbridgeError, InterruptedOutputError, OutputError, n_rows
from embridge.files import open_exclusively, sync_folder
from embridge.stores.parquet.thrift import Struct


class Checked(io.FileIO):
    """A file that keeps the CRC-32 of what was written since `take`."""

    checksum = 0

    def write(self, data: Any, /) -> int:
        """Write, and update the checksum."""
        count = super().write(data)
        self.checksum = zlib.crc32(memoryview(data).cast("B")[:count], self.checksum)
        return count

    def take(self) -> int:
        """Return the checksum and reset it."""
        found, self.checksum = self.checksum, 0
        return found


class Journal:
    """``OUT.partial`` and ``OUT.journal``: the row groups so far, and the list of them.

    An entry is written only after its row group is on the disk, so everything that the journal lists exists, however a run ends.

    Attributes
    ----------
    file : Checked
        The partial file, at its end, unbuffered.
    entries : list of Entry
        Row groups finished by earlier runs and by this one.
    """

    def __init__(self, target: Path, file: Checked, log: Lines, entries: list[Entry]) -> None:
        self.target, self.file, self._log, self.entries = target, file, log, entries

    def add(self, read: int, group: Struct, bad: list[tuple[int, Any, str]], after: str | int | None = None) -> None:
        """Record the row group that ends at the end of the partial file as finished."""
        entry = Entry(read, self.file.tell(), self.file.take(), group, bad, after)
        os.fdatasync(self.file.fileno())
        self._log.add(entry.dumps())
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


@contextlib.contextmanager
def open_journal(target: Path, plan: dict[str, Any], *, resume: bool, overwrite: bool) -> Iterator[Journal]:
    """Begin or continue an output that the caller has claimed. A run that fails before a row group is finished leaves nothing.

    Parameters
    ----------
    target : Path
    plan : dict
        Everything that determines the bytes of the output; a resumed run must have the same plan.
    resume : bool
        Continue an unfinished output, if there is one.
    overwrite : bool
        Discard an unfinished output.

    Raises
    ------
    InterruptedOutputError
        An unfinished output exists and neither `resume` nor `overwrite` is given; it has another plan, or was altered; or
        files in its place were not written by embridge.
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
    """The existing journal, where it may be continued; else a new one with the plan as its first line."""
    found = read_log(target)
    if found is None and os.path.lexists(partial_path(target)):
        raise InterruptedOutputError(f"{str(partial_path(target))!r} exists without a journal. Hint: move it away.")
    if found is not None and found.fault and not overwrite:
        raise InterruptedOutputError.altered(str(journal_path(target)), found.fault)
    if found is not None and found.entries and not resume and not overwrite:
        raise InterruptedOutputError(
            f"An interrupted run left {str(target)!r} unfinished ({n_rows(found.entries[-1].read)} of the source done). "
            "Hint: --resume continues it, --overwrite starts again."
        )
    if found is not None and resume and not found.fault:
        if found.plan == plan and (not found.entries or os.path.lexists(partial_path(target))):
            return found
        if found.plan != plan and not overwrite:
            differ = [key for key in {**plan, **found.plan} if plan.get(key) != found.plan.get(key)]
            raise InterruptedOutputError(
                f"The unfinished {str(target)!r} was started with other inputs: {', '.join(sorted(differ))} differ. "
                "Hint: repeat that run to finish it, or use --overwrite to start again."
            )
    return start(target, plan)


def _open_partial(path: Path) -> Checked:
    """The partial file: a new one, or the one of the journal, which must be a regular file without other names."""
    try:
        return Checked(open_exclusively(path), "r+")
    except FileExistsError:
        return Checked(open_own(path, os.O_RDWR), "r+")


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
    """Remove an unfinished file that has a journal; the journal last."""
    if read_log(target) is not None:
        partial_path(target).unlink(missing_ok=True)
        journal_path(target).unlink(missing_ok=True)


def bad_rows_of(entries: Sequence[Entry]) -> list[tuple[int, Any, str]]:
    """All rows that were left out."""
    return [row for entry in entries for row in entry.bad]


def rows_done(target: Path) -> int:
    """Rows of the source that an unfinished output has processed; 0 where there is none."""
    found = read_log(target)
    return found.entries[-1].read if found is not None and found.entries else 0
