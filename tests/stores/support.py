"""What tests of stores share."""

import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")  # noqa: S108


def memory_folder():
    """A temporary folder in memory where there is one: engines of databases wait for the disk, some after every row."""
    return tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None)
