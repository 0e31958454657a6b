"""Conversions on a disk that fills or breaks."""

import errno
import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from embridge.conversion import file, journal
from embridge.errors import DiskFullError
from embridge.stores.parquet import writer
from tests.conversion.resume.support import (
    ROWS,
    P,
    Q,
    interrupt,
    listing,
    table_of,
)

# A disk that fills


@pytest.fixture
def disk(tmp_path):
    """``resize("300k")`` of a file system of its own, mounted on a folder; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)

    try:
        yield SimpleNamespace(path=place, resize=resize)
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def heavy(case):
    """A source whose other columns are what fills a disk."""
    rng = np.random.default_rng(0)
    text = [rng.bytes(1000) for _ in range(ROWS)]
    pq.write_table(table_of(range(ROWS), rng.normal(size=(ROWS, P)), text=text), case.folder / "heavy.parquet")
    return case


def test_a_full_disk_is_reported_and_the_run_continues_when_there_is_room(heavy, disk):
    out = disk.path / "new.parquet"
    with pytest.raises(DiskFullError, match=r"is full; (\d+) rows are done and kept\. Hint: free some and run again with --resume"):
        heavy.convert("heavy.parquet", out)
    kept = journal.rows_done(out)
    assert 0 < kept < ROWS
    assert listing(disk.path) == ["new.parquet.journal", "new.parquet.partial"]
    with pytest.raises(DiskFullError):  # still
        heavy.convert("heavy.parquet", out, resume=True)
    assert journal.rows_done(out) >= kept
    disk.resize("8m")
    heavy.convert("heavy.parquet", out, resume=True)
    heavy.convert("heavy.parquet", heavy.folder / "once.parquet")
    assert listing(disk.path) == ["new.parquet"]
    assert out.read_bytes() == (heavy.folder / "once.parquet").read_bytes()


def test_a_disk_without_room_for_one_row_group_is_left_empty(heavy, disk, monkeypatch):
    monkeypatch.setattr(writer, "GROUP_BYTES", ROWS * 4 * Q)
    with pytest.raises(DiskFullError, match="is full; 0 rows are done"):
        heavy.convert("heavy.parquet", disk.path / "new.parquet")
    assert listing(disk.path) == []


@pytest.mark.parametrize("call", [1, 2, 3, 20])
def test_a_disk_that_fills_as_it_is_flushed(case, monkeypatch, call):
    """Some file systems report it only then."""
    flush, calls = os.fdatasync, []

    def full(number):
        calls.append(number)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(number)

    case.convert(out=case.folder / "once.parquet")
    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(DiskFullError, match="is full"):
        case.convert()
    case.convert(resume=True)
    assert case.out.read_bytes() == (case.folder / "once.parquet").read_bytes()
    assert listing(case.out.parent) == ["new.parquet"]


@pytest.mark.parametrize(("dtype", "required"), [("float32", 4 * ROWS * Q), ("float16", 2 * ROWS * Q)])
def test_an_output_without_room_is_not_begun(case, monkeypatch, dtype, required):
    def room(free):
        monkeypatch.setattr(file.os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_frsize=1))

    room(required - 1)
    with pytest.raises(DiskFullError, match=r"needs about 0\.00 GB, but 0\.00 GB are free there\. Hint: .*--dtype float16"):
        case.convert(dtype=dtype)
    assert listing(case.out.parent) == []
    room(required)
    interrupt(case, dtype=dtype)
    room(required - journal.partial_path(case.out).stat().st_size)  # what is there already needs no room
    case.convert(dtype=dtype, resume=True)


def test_a_disk_error_other_than_full_is_reported_unchanged(case, monkeypatch):
    def broken(number):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        case.convert()
    assert not isinstance(caught.value, DiskFullError)
    assert listing(case.out.parent) == []
