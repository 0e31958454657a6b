"""Conversions that are killed or interrupted at any step: whole or absent, and the same bytes after `--resume`."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.conversion import journal
from embridge.errors import InterruptedOutputError
from tests.conversion.resume.support import (
    GROUP_BYTES,
    GROUP_ROWS,
    GROUPS,
    ROWS,
    listing,
    map_between,
)

# Processes are forked from one that has imported everything and run nothing, so that each starts within milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["embridge.cli.main", "embridge.cli.conversion", "embridge.conversion", "duckdb", "pyarrow.compute", "rich.progress"]
)
# `where` names functions; the process kills itself before the `dies`-th line that is run in them.
CONVERT = """
import os, signal, sys
import embridge.stores.parquet.writer as writer
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
def test_killed_at_random_moments_and_resumed(case, name, options):
    """Thirteen kills for each of four ways to convert; the run that goes on with one is often killed as well."""
    once = case.folder / "once" / "new.parquet"
    once.parent.mkdir()
    assert ends(case.folder / name, case.map, once, *options) == 0
    expected = {path.name: path.read_bytes() for path in once.parent.iterdir()}
    assert set(expected) == {"new.parquet", *(["new.parquet.bad.parquet"] if "skip" in options else [])}
    moments, kills, halfway = random.Random(name + str(options)), 0, 0
    while kills < 13:
        for _ in range(moments.randint(1, 4)):
            with converting(case.folder / name, case.map, case.out, *options, "--resume") as process:
                at_random(process, case.out, moments)
                process.kill()
                process.join()
                kills += process.exitcode == -signal.SIGKILL
            halfway += 0 < groups_done(case.out) < GROUPS
            assert not case.out.exists() or case.out.read_bytes() == expected["new.parquet"]
        assert ends(case.folder / name, case.map, case.out, *options, "--resume") == 0
        assert {path.name: path.read_bytes() for path in case.out.parent.iterdir()} == expected
        for path in case.out.parent.iterdir():
            path.unlink()
    assert halfway > 6  # most of them in the midst of the work, however fast the machine is


FILE = {("journal.py", name) for name in ("Journal.add", "Journal.finish", "open_journal", "begin")}
FILE |= {("log.py", "Lines.add"), ("log.py", "start")}
FILE |= {("outputs.py", "_locked"), ("file.py", "convert_file")}
FOLDER = {("folder.py", name) for name in ("convert_folder", "_begin", "_one", "_discard")} | {("file.py", "finished_file")}
REPLACED = {("folders.py", name) for name in ("adopt", "exchange", "settle", "remove_known")}
REPLACED |= {("folder.py", name) for name in ("convert_folder", "_discard", "_begin", "_recover")}


@pytest.fixture
def small(case):
    """A source of two row groups and a folder of three files, some bad rows in each."""
    whole = pq.read_table(case.holes)
    first = int(case.bad[0])
    pq.write_table(whole.slice(first - 20, 2 * GROUP_ROWS), case.folder / "small.parquet")
    (case.folder / "shards" / "b").mkdir(parents=True)
    for start, name in zip((first - 5, 400, 600), ("a.parquet", "b/a.parquet", "c.parquet"), strict=True):
        pq.write_table(whole.slice(start, GROUP_ROWS + 2), case.folder / "shards" / name)
    return case


@pytest.mark.parametrize(
    ("name", "out", "where", "stride"),
    [("small.parquet", "new.parquet", FILE, 5), ("shards", "new", FOLDER, 13)],
    ids=["file", "folder"],
)
def test_killed_before_every_step_and_resumed(small, name, out, where, stride):
    """Also in the moments that chance would hardly hit: between two renames, or before the journal is taken away."""
    once, target = small.folder / "once" / out, small.folder / "out" / out
    once.parent.mkdir()
    small.convert(name, once, on_bad="skip")
    expected = {p: (once.parent / p).read_bytes() for p in listing(once.parent)}
    step, status = 1 - stride, None
    while status != 0:
        step += stride
        status = ends(small.folder / name, small.map, target, "--on-bad", "skip", dies=step, where=where)
        assert status in (0, -signal.SIGKILL)
        there = {f"{out}/{p}" for p in listing(target)} if target.is_dir() else {out} & set(listing(target.parent))
        assert there in (set(), {p for p in expected if "bad" not in p})  # whole or absent
        again = {"resume": True} if step // stride % 2 else {"overwrite": True}
        done = small.convert(name, target, on_bad="skip", **again)
        assert done.rows + done.skipped == len(eb.open(small.folder / name))
        assert {p: (target.parent / p).read_bytes() for p in listing(target.parent)} == expected
        for path in sorted(target.parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert step > 20


def test_killed_before_every_step_of_replacing_a_folder(small):
    """Files of others are in their place at every moment, the output is the old or the new one, and no working file stays."""
    before, after, target = small.folder / "before", small.folder / "after", small.folder / "out" / "new"
    eb.convert(eb.open(small.folder / "shards"), map_between(6), before, on_bad="skip")
    small.convert("shards", after, on_bad="skip")
    foreign = {"notes.txt": b"mine", "b/deep/data.bin": bytes(999), "_embridge.json.bak": b"{}"}
    outputs = [{p: (folder / p).read_bytes() for p in listing(folder)} for folder in (before, after)]
    options = ["--on-bad", "skip", "--overwrite"]
    step, status = 0, None
    while status != 0:
        step += 7
        shutil.copytree(before, target)
        for name, content in foreign.items():
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_bytes(content)
        (target / "empty").mkdir()
        status = ends(small.folder / "shards", small.map, target, *options, dies=step, where=REPLACED)
        assert status in (0, -signal.SIGKILL)
        assert {p: (target / p).read_bytes() for p in listing(target)} in [output | foreign for output in outputs]
        small.convert("shards", target, on_bad="skip", overwrite=True, resume=bool(step % 2))
        assert {p: (target / p).read_bytes() for p in listing(target)} == outputs[1] | foreign
        assert (target / "empty").is_dir()
        assert sorted(p.name for p in target.parent.iterdir()) == ["new", "new.bad.parquet"]
        shutil.rmtree(target.parent)
        target.parent.mkdir()
    assert step > 60


# Other processes and signals


def test_two_processes_do_not_write_one_output(case):
    with converting(case.source, case.map, case.out) as process:
        while not groups_done(case.out):
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGSTOP)
        before = {p: (case.out.parent / p).read_bytes() for p in listing(case.out.parent)}
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(InterruptedOutputError, match="Another process is writing"):
                case.convert(**options)
        assert {p: (case.out.parent / p).read_bytes() for p in listing(case.out.parent)} == before
        os.kill(process.pid, signal.SIGCONT)
        process.join(60)
        assert process.exitcode == 0
    assert eb.verify(case.out, source=eb.open(case.source), translation=map_between()).compared == ROWS


@pytest.fixture(params=[signal.SIG_IGN, signal.default_int_handler], ids=["ignored", "handled"])
def inherited(request):
    """What a child inherits for SIGINT: a shell that runs the tests in the background passes it ignored."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("inherited")
@pytest.mark.parametrize(("name", "out"), [("old.parquet", "new.parquet"), ("shards", "new")])
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(small, name, out):
    target = small.folder / "out" / out
    at = target if out.endswith(".parquet") else target.with_name("new.partial") / "a.parquet"
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as in a terminal, whatever is inherited
    code += f"import embridge.stores.parquet.writer as w; w.GROUP_BYTES = {GROUP_BYTES}; from embridge.cli.main import main; main()"
    line = ["convert", str(small.folder / name), str(small.map), str(target), "--on-bad", "skip", "--no-catalog", "--quiet"]
    command = [sys.executable, "-c", code, *line]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not groups_done(at) and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(signal.SIGSTOP)  # so that it is the work that is interrupted, and not the end of it
        assert not target.exists()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr == f"Interrupted. Run the same command with --resume to continue {target}.\n"
    assert not target.exists()
    assert ends(*line[1:-2], "--resume") == 0
    small.convert(name, small.folder / "once" if out == "new" else small.folder / "once.parquet", on_bad="skip")
    once = small.folder / "once" if out == "new" else small.folder / "once.parquet"
    for path in listing(once) if once.is_dir() else [""]:
        assert (target / path).read_bytes() == (once / path).read_bytes()
    assert eb.verify(target, source=eb.open(small.folder / name), translation=map_between()).compared
