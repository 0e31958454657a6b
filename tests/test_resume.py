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

P, Q, GROUPS, GROUP_ROWS = 6, 9, 50, 16
ROWS = GROUPS * GROUP_ROWS
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


def groups_done(out):
    """Whole row groups that an unfinished output holds, by the lines of its journal after the first."""
    try:
        return max(0, journal.journal_path(out).read_bytes().count(b"\n") - 1)
    except FileNotFoundError:
        return 0


def at_random(process, out, moments):
    """Wait until a process that converts is somewhere on its way: before the first row group, between any two, near the end."""
    done = groups_done(out)
    awaited = done + round(moments.uniform(-0.1, 1.0) * (GROUPS - done))
    while done < awaited and groups_done(out) < awaited and process.is_alive():
        time.sleep(0.002)
    process.join(moments.uniform(0, 0.01 if done < awaited else 0.3))


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
    """A source of fifty row groups with bad rows here and there, a map, and a folder for the output."""
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
    """Thirteen kills for each of four ways to convert; the run that goes on with one is often killed as well."""
    once = job.folder / "once" / "new.parquet"
    once.parent.mkdir()
    assert ends(job.folder / name, job.map, once, *options) == 0
    expected = {path.name: path.read_bytes() for path in once.parent.iterdir()}
    assert set(expected) == {"new.parquet", *(["new.parquet.bad.parquet"] if "skip" in options else [])}
    moments, kills, halfway = random.Random(name + str(options)), 0, 0
    while kills < 13:
        for _ in range(moments.randint(1, 4)):
            with converting(job.folder / name, job.map, job.out, *options, "--resume") as process:
                at_random(process, job.out, moments)
                process.kill()
                process.join()
                kills += process.exitcode == -signal.SIGKILL
            halfway += 0 < groups_done(job.out) < GROUPS
            assert not job.out.exists() or job.out.read_bytes() == expected["new.parquet"]
        assert ends(job.folder / name, job.map, job.out, *options, "--resume") == 0
        assert {path.name: path.read_bytes() for path in job.out.parent.iterdir()} == expected
        for path in job.out.parent.iterdir():
            path.unlink()
    assert halfway > 6  # most of them in the midst of the work, however fast the machine is


FILE = {("journal.py", name) for name in ("Journal.add", "Journal.finish", "open_journal", "begin")}
FOLDER = {("folder.py", name) for name in ("convert_folder", "convert_folder.<locals>.one")} | {("journal.py", "discard")}


@pytest.fixture
def small(job):
    """A source of two row groups and a folder of three files, some bad rows in each."""
    whole = pq.read_table(job.holes)
    first = int(job.bad[0])
    pq.write_table(whole.slice(max(0, first - 20), 2 * GROUP_ROWS), job.folder / "small.parquet")
    (job.folder / "shards" / "b").mkdir(parents=True)
    for start, name in enumerate(("a.parquet", "b/a.parquet", "c.parquet")):
        pq.write_table(whole.slice(100 * start, GROUP_ROWS + 2), job.folder / "shards" / name)
    return job


@pytest.mark.parametrize(
    ("name", "out", "where", "overwrite"),
    [("small.parquet", "new.parquet", FILE, False), ("shards", "new", FOLDER, False), ("shards", "new", FOLDER, True)],
    ids=["file", "folder", "folder-replaced"],
)
def test_killed_before_every_step_and_resumed(small, name, out, where, overwrite):
    """Also in the moments that chance would hardly hit: between two renames, or before the journal is taken away."""
    once, target = small.folder / "once" / out, small.folder / "out" / out
    once.parent.mkdir()
    small.convert(name, once, on_bad="skip")
    expected = {p: (once.parent / p).read_bytes() for p in listing(once.parent)}
    options = ["--on-bad", "skip", *(["--overwrite"] if overwrite else [])]
    step, status = 0, None
    while status != 0:
        step += 1
        if overwrite:
            target.mkdir()
            (target / "old.parquet").write_bytes(small.source.read_bytes())
        status = ends(small.folder / name, small.map, target, *options, dies=step, where=where)
        assert status in (0, -signal.SIGKILL)
        done = small.convert(name, target, on_bad="skip", resume=True, overwrite=overwrite)
        assert done.rows + done.skipped == len(eb.open(small.folder / name))
        assert {p: (target.parent / p).read_bytes() for p in listing(target.parent)} == expected
        for path in sorted(target.parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert step > 20
    print("STEPS", step)
