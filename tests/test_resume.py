"""Conversions that are killed, interrupted or run out of disk: whole or absent, and the same bytes once they are gone on with."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.conversion import folder, journal, single
from embridge.errors import BadVectorsError, DiskFullError, InterruptedOutputError, OutputExistsError
from embridge.stores import writer
from embridge.types import Space

P, Q, ROWS, GROUP_ROWS = 6, 9, 1600, 16
GROUP_BYTES = GROUP_ROWS * 4 * Q
OLD, NEW = Space("old", P), Space("new", Q)

# Processes are forked from one that has imported everything and run nothing, so that each starts within milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["embridge.cli.main", "embridge.cli.conversion", "embridge.conversion", "duckdb", "safetensors"])
# `where` names functions; the process kills itself before the `dies`-th line that is run in them.
CONVERT = """
import os, signal, sys
import embridge.stores.writer as writer
from embridge.cli.main import main
writer.GROUP_BYTES = group_bytes
lines = 0
def trace(frame, event, _):
    global lines
    if (os.path.basename(frame.f_code.co_filename), frame.f_code.co_qualname) not in where:
        return None
    def count(frame, event, _):
        global lines
        if event == "line":
            lines += 1
            if lines == dies:
                os.kill(os.getpid(), signal.SIGKILL)
        return count
    return count
if where:
    sys.settrace(trace)
main(["convert", *arguments, "--no-catalog", "--quiet"], standalone_mode=False)
"""


@contextlib.contextmanager
def converting(*arguments, dies=0, where=()):
    """A process that converts; it is killed on leaving, if it still runs."""
    names = {"arguments": [str(a) for a in arguments], "group_bytes": GROUP_BYTES, "dies": dies, "where": where}
    process = PROCESSES.Process(target=exec, args=(CONVERT, names))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()


def ends(*arguments, **options):
    """How a conversion in a process of its own ends: 0, or minus the signal."""
    with converting(*arguments, **options) as process:
        process.join(60)
        return process.exitcode


def table_of(ids, vectors, space=None, **payload):
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(vectors, np.float32).ravel()), P)
    table = pa.table({"id": ids, "vector": column, **payload})
    return table.replace_schema_metadata({"embridge.space": json.dumps((space or OLD).to_dict())})


def map_between(seed=5):
    rng = np.random.default_rng(seed)
    return eb.LinearMap(rng.normal(size=(Q, P)), rng.normal(size=Q), OLD, NEW)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A source of a hundred row groups with bad rows here and there, a map, and a folder for the output."""
    monkeypatch.setattr(writer, "GROUP_BYTES", GROUP_BYTES)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, P))
    bad = np.sort(rng.choice(ROWS, 40, replace=False))
    words = {"word": [f"w{i % 7}" for i in range(ROWS)], "kind": pa.array(["ab"[i % 2] for i in range(ROWS)]).dictionary_encode()}
    pq.write_table(table_of([f"d{i}" for i in range(ROWS)], x, **words), tmp_path / "old.parquet", row_group_size=100)
    x[bad] = np.nan
    pq.write_table(table_of([f"d{i}" for i in range(ROWS)], x, **words), tmp_path / "holes.parquet", row_group_size=100)
    map_between().save(tmp_path / "map.safetensors")
    (tmp_path / "out").mkdir()
    return SimpleNamespace(
        folder=tmp_path,
        source=tmp_path / "old.parquet",
        holes=tmp_path / "holes.parquet",
        map=tmp_path / "map.safetensors",
        out=tmp_path / "out" / "new.parquet",
        bad=bad,
        convert=lambda name="old.parquet", out=None, **options: eb.convert(
            eb.open(tmp_path / name), map_between(), out or tmp_path / "out" / "new.parquet", **options
        ),
    )


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def stopped_after(rows):
    """A progress that ends the run when so many rows are done."""

    def progress(done, _):
        if done >= rows:
            raise KeyboardInterrupt

    return progress


def interrupt(job, rows=ROWS // 2, **options):
    """Leave an unfinished output; how many rows of the source are in it."""
    with pytest.raises(KeyboardInterrupt):
        job.convert(progress=stopped_after(rows), **options)
    return journal.rows_done(job.out)


# Killed


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("old.parquet", []),
        ("old.parquet", ["--compact", "--batch-rows", "77"]),
        ("old.parquet", ["--dtype", "float16"]),
        ("holes.parquet", ["--on-bad", "skip"]),
    ],
    ids=["float32", "compact", "float16", "skip"],
)
def test_killed_at_random_moments_and_resumed(job, name, options):
    """Thirteen kills for each of four ways to convert; the run that goes on with one may be killed as well."""
    once = job.folder / "once" / "new.parquet"
    once.parent.mkdir()
    for _ in range(2):  # the first pays for what all of them are forked from
        started = time.perf_counter()
        assert ends(job.folder / name, job.map, once, *options, "--overwrite") == 0
        seconds = time.perf_counter() - started
    expected = {path.name: path.read_bytes() for path in once.parent.iterdir()}
    assert set(expected) == {"new.parquet", *(["new.parquet.bad.parquet"] if "skip" in options else [])}
    moments, kills = random.Random(name + str(options)), 0
    while kills < 13:
        # Kills in the first run of an output may come at any time, the later ones soon, or there would be nothing left to kill.
        longest, status = seconds, None
        while status != 0:
            with converting(job.folder / name, job.map, job.out, *options, "--resume") as process:
                process.join(moments.uniform(0.02, longest))
                if process.exitcode is None:
                    process.kill()
                process.join()
                status = process.exitcode
            assert status in (0, -signal.SIGKILL)
            assert not job.out.exists() or job.out.read_bytes() == expected["new.parquet"]
            kills += status != 0
            print(status, seconds, journal.rows_done(job.out))
            longest = seconds if kills % 3 == 0 else seconds / 3
        assert {path.name: path.read_bytes() for path in job.out.parent.iterdir()} == expected
        for path in job.out.parent.iterdir():
            path.unlink()
