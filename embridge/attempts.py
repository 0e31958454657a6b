"""A working folder beside an output, for tasks on other processes that may run twice, also at the same time.

Each attempt writes in a folder of its own and renames what is whole, so attempts do not disturb each other, however they end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from embridge.errors import InterruptedOutputError
from embridge.folders import check_own_folder

_MODE = 0o700


def work_folder(target: Path) -> Path:
    """``OUT.tasks``."""
    return target.with_name(f"{target.name}.tasks")


def open_work(target: Path) -> Path:
    """Make the working folder, or continue with the one of an earlier run: what attempts left there is removed.

    Raises
    ------
    InterruptedOutputError
        embridge did not make it.
    """
    folder = work_folder(target)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, _MODE)
    check_own_folder(folder, _MODE)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
    return folder


def remove_work(target: Path) -> None:
    """Remove the working folder, if there is one.

    Raises
    ------
    InterruptedOutputError
        embridge did not make it.
    """
    folder = work_folder(target)
    if not os.path.lexists(folder):
        return
    check_own_folder(folder, _MODE)
    try:
        shutil.rmtree(folder)
    except OSError as e:  # a task that was cancelled may still write there
        raise InterruptedOutputError(f"{str(folder)!r} cannot be removed ({e.strerror}). Hint: remove it.") from e


@contextlib.contextmanager
def attempt(folder: str | None) -> Iterator[Path]:
    """A new folder for one attempt of a task, in the working folder or (None) in that of temporary files; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="attempt-", dir=folder, ignore_cleanup_errors=True) as path:
        yield Path(path)
