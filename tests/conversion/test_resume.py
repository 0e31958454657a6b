"""Conversions that are killed, interrupted or run out of disk: whole or absent, and the same bytes once they are gone on with."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
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
from embridge.conversion import file, journal
from embridge.conversion.log import FORMAT
from embridge.errors import BadVectorsError, DiskFullError, InterruptedOutputError, OutputExistsError
from embridge.stores.parquet import writer
from embridge.types import Space

P, Q, GROUPS, GROUP_ROWS = 6, 9, 50, 16
ROWS = GROUPS * GROUP_ROWS
GROUP_BYTES = GROUP_ROWS * 4 * Q
OLD, NEW = Space("old", P), Space("new", Q)

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
    bad = np.sort(rng.choice(np.arange(ROWS // 5, ROWS), 40, replace=False))
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
FILE |= {("log.py", "Lines.add"), ("log.py", "start")}
FILE |= {("outputs.py", "_locked"), ("file.py", "convert_file")}
FOLDER = {("folder.py", name) for name in ("convert_folder", "_begin", "_one", "_discard")} | {("file.py", "finished_file")}
REPLACED = {("folders.py", name) for name in ("adopt", "exchange", "settle", "remove_known")}
REPLACED |= {("folder.py", name) for name in ("convert_folder", "_discard", "_begin", "_recover")}


@pytest.fixture
def small(job):
    """A source of two row groups and a folder of three files, some bad rows in each."""
    whole = pq.read_table(job.holes)
    first = int(job.bad[0])
    pq.write_table(whole.slice(first - 20, 2 * GROUP_ROWS), job.folder / "small.parquet")
    (job.folder / "shards" / "b").mkdir(parents=True)
    for start, name in zip((first - 5, 400, 600), ("a.parquet", "b/a.parquet", "c.parquet"), strict=True):
        pq.write_table(whole.slice(start, GROUP_ROWS + 2), job.folder / "shards" / name)
    return job


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


# What is there is looked at closely


def shorten(path, by):
    path.write_bytes(path.read_bytes()[:-by])


def append(path, data):
    path.write_bytes(path.read_bytes() + data)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda log, partial: None, 25),
        (lambda log, partial: shorten(log, 1), 24),
        (lambda log, partial: shorten(log, 100), 24),
        (lambda log, partial: append(log, b'{"read": 416, "off'), 25),
        (lambda log, partial: append(log, b"\0" * 4096), 25),  # what some file systems leave after a power cut
        (lambda log, partial: append(partial, b"more than the journal knows"), 25),
        (lambda log, partial: partial.unlink(), 0),
    ],
)
def test_what_a_crash_leaves_is_gone_on_with_as_far_as_it_is_whole(job, damage, kept):
    job.convert(out=job.folder / "once.parquet")
    assert interrupt(job) == ROWS // 2
    damage(journal.journal_path(job.out), journal.partial_path(job.out))
    seen = []
    job.convert(resume=True, progress=lambda done, of: seen.append(done))
    assert seen == list(range((kept + 1) * GROUP_ROWS, ROWS + 1, GROUP_ROWS))
    assert listing(job.out.parent) == ["new.parquet"]
    assert job.out.read_bytes() == (job.folder / "once.parquet").read_bytes()


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def lines_of(log, change):
    """Change the lines of a journal."""
    log.write_bytes(b"".join(change(log.read_bytes().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda log, partial: shorten(partial, 1), "partial"),
        (lambda log, partial: partial.write_bytes(b""), "partial"),
        (lambda log, partial: flip(partial, 10), "partial"),
        (lambda log, partial: flip(partial, 10_000), "partial"),
        (lambda log, partial: flip(log, 100), "journal"),
        (lambda log, partial: flip(log, -100), "journal"),
        (lambda log, partial: lines_of(log, lambda lines: lines[:5] + lines[6:]), "journal"),
        (lambda log, partial: lines_of(log, lambda lines: [lines[0], *lines[2:]]), "journal"),
        (lambda log, partial: lines_of(log, lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]]), "journal"),
        (lambda log, partial: lines_of(log, lambda lines: [*lines, lines[-1]]), "journal"),
        (lambda log, partial: append(log, b'{"read": 416, "offset": 9, "group": "AAAA", "bad": 3}\n'), "journal"),
        (lambda log, partial: log.write_bytes(log.read_bytes()[:40]), "journal"),
    ],
)
def test_what_was_altered_between_kill_and_resume_is_refused(job, damage, named):
    interrupt(job)
    damage(journal.journal_path(job.out), journal.partial_path(job.out))
    before = {p: (job.out.parent / p).read_bytes() for p in listing(job.out.parent)}
    for options in ({"resume": True}, {}) if named == "journal" else ({"resume": True},):
        with pytest.raises(InterruptedOutputError, match=rf"\.{named}' was altered since it was written: .*--overwrite"):
            job.convert(**options)
    assert {p: (job.out.parent / p).read_bytes() for p in listing(job.out.parent)} == before
    job.convert(overwrite=True)
    assert listing(job.out.parent) == ["new.parquet"]


@pytest.mark.parametrize(
    "values",
    [
        {"read": "416"},
        {"offset": "9"},
        {"checksum": None},
        {"read": 1.5},
        {"read": True},
        {"read": -1},
        {"group": 7},
        {"group": "AAAA"},
        {"bad": 3},
        {"bad": [[1]]},
        {"bad": [["x", 1, "y"]]},
    ],
)
def test_a_journal_whose_checksums_are_right_and_whose_values_are_not_is_refused(job, values):
    interrupt(job)
    found = journal.read_log(job.out)
    last = found.entries[-1]
    line = {"read": last.read + 1, "offset": last.offset + 1, "checksum": 0, "group": "", "bad": []} | values
    with journal.append_to(job.out, found) as lines:
        lines.add(line)
    with pytest.raises(InterruptedOutputError, match=r"\.journal' was altered"):
        job.convert(resume=True)


@pytest.mark.parametrize("content", [b"", b"[1, 2]\n", b"my diary\n", b"{}\n", b"\0\xff" * 50])
@pytest.mark.parametrize("kind", ["journal", "partial"])
def test_files_of_somebody_else_are_never_touched(job, kind, content):
    path = job.out.with_name(f"new.parquet.{kind}")
    path.write_bytes(content)
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(InterruptedOutputError, match="Hint: move it away"):
            job.convert(**options)
    assert path.read_bytes() == content
    assert listing(job.out.parent) == [path.name]


@pytest.mark.parametrize("kind", ["journal", "partial"])
@pytest.mark.parametrize("plant", [os.symlink, os.link, lambda _, path: os.mkfifo(path), lambda _, path: os.mkdir(path)])
def test_what_is_planted_under_a_working_name_is_not_followed(job, kind, plant):
    interrupt(job)
    victim, path = job.folder / "victim", job.out.with_name(f"new.parquet.{kind}")
    path.rename(victim)
    before = victim.read_bytes()
    plant(victim, path)
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(InterruptedOutputError, match=rf"\.{kind}' is not what an unfinished run of embridge leaves"):
            job.convert(**options)
    assert victim.read_bytes() == before


def test_a_torn_line_does_not_spoil_the_lines_after_it(job):
    """Interrupted twice: what the second run did counts as well."""
    interrupt(job, rows=ROWS // 4)
    shorten(journal.journal_path(job.out), 50)
    assert interrupt(job, rows=ROWS // 2, resume=True) == ROWS // 2
    seen = []
    job.convert(resume=True, progress=lambda done, of: seen.append(done))
    assert seen[0] == ROWS // 2 + GROUP_ROWS


def test_a_journal_names_only_what_is_on_the_disk(job, monkeypatch):
    """A row group is flushed before its line is written, and the line before the next group."""
    calls = []
    flush = os.fdatasync

    def note(number):
        calls.append(os.readlink(f"/proc/self/fd/{number}").rpartition(".")[2])
        flush(number)

    monkeypatch.setattr(os, "fdatasync", note)
    job.convert()
    assert calls == ["tmp"] + ["partial", "journal"] * GROUPS  # the plan gets its name when it is whole


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"map": 6}, "map"),
        ({"name": "holes.parquet"}, "source"),
        ({"dtype": "float16"}, "dtype"),
        ({"compact": True}, "compact"),
        ({"precision": "bfloat16"}, "precision"),
        ({"map": 6, "dtype": "float16"}, "dtype, map"),
    ],
)
def test_another_run_is_not_gone_on_with(job, change, differs):
    interrupt(job)
    before = {p: (job.out.parent / p).read_bytes() for p in listing(job.out.parent)}
    options = {k: v for k, v in change.items() if k not in ("map", "name")}
    source, translation = eb.open(job.folder / change.get("name", "old.parquet")), map_between(change.get("map", 5))
    with pytest.raises(InterruptedOutputError, match=rf"begun with other inputs: {differs} differ\. Hint: .*--overwrite"):
        eb.convert(source, translation, job.out, resume=True, **options)
    assert {p: (job.out.parent / p).read_bytes() for p in listing(job.out.parent)} == before
    eb.convert(source, translation, job.out, overwrite=True, on_bad="skip", **options)
    assert eb.open(job.out).lineage == {"source": source.fingerprint(), "map": translation.fingerprint}


def test_without_resume_an_unfinished_output_is_in_the_way(job):
    interrupt(job)
    with pytest.raises(
        InterruptedOutputError, match=r"\(400 rows of the source done\)\. Hint: --resume .*, --overwrite starts anew"
    ):
        job.convert()
    assert journal.rows_done(job.out) == 400
    seen = []
    job.convert(overwrite=True, progress=lambda done, of: seen.append(done))
    assert seen[0] == GROUP_ROWS
    assert listing(job.out.parent) == ["new.parquet"]


def test_what_has_finished_nothing_is_not_in_the_way(job):
    journal.start(job.out, {"format": FORMAT, "another": "plan"})
    journal.partial_path(job.out).write_text("PAR1 and half a row group")
    job.convert()
    assert listing(job.out.parent) == ["new.parquet"]


def test_a_finished_output_is_resumed_at_once(job):
    job.convert()
    stamp = job.out.stat().st_mtime_ns
    journal.start(job.out, {"format": FORMAT})  # killed between the rename and its removal
    seen = []
    done = job.convert(resume=True, progress=lambda *rows: seen.append(rows))
    assert (done.rows, done.skipped, done.fingerprint) == (ROWS, 0, eb.open(job.out).fingerprint())
    assert seen == []
    assert job.out.stat().st_mtime_ns == stamp
    assert listing(job.out.parent) == ["new.parquet"]


@pytest.mark.parametrize(
    "made",
    [
        lambda job: eb.convert(eb.open(job.source), map_between(6), job.out),
        lambda job: eb.convert(eb.open(job.holes), map_between(), job.out, on_bad="skip"),
        lambda job: job.convert(dtype="float16"),
        lambda job: job.out.write_bytes(job.source.read_bytes()),
        lambda job: job.out.write_text("precious"),
    ],
    ids=["map", "source", "dtype", "no output", "no Parquet"],
)
def test_a_finished_output_of_something_else_is_kept(job, made):
    made(job)
    before = job.out.read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        job.convert(resume=True)
    assert job.out.read_bytes() == before


def test_an_output_that_is_replaced_stays_until_the_new_one_is_whole(job):
    job.convert(dtype="float16")
    before = job.out.read_bytes()
    interrupt(job, overwrite=True)
    assert job.out.read_bytes() == before
    with pytest.raises(OutputExistsError, match="--overwrite"):
        job.convert(resume=True)
    assert job.out.read_bytes() == before
    seen = []
    job.convert(resume=True, overwrite=True, progress=lambda done, of: seen.append(done))
    assert seen[0] == ROWS // 2 + GROUP_ROWS
    assert eb.open(job.out).vector_type == "float32"
    assert listing(job.out.parent) == ["new.parquet"]


# Bad rows


def test_bad_rows_of_a_resumed_run_are_listed_once(job):
    interrupt(job, name="holes.parquet", on_bad="skip")
    done = job.convert("holes.parquet", on_bad="skip", resume=True)
    assert (done.rows, done.skipped) == (ROWS - len(job.bad), len(job.bad))
    listed = pq.read_table(f"{job.out}.bad.parquet").to_pydict()
    assert listed == {
        "row": job.bad.tolist(),
        "id": [f"d{i}" for i in job.bad],
        "reason": ["no vector, or NaN or infinite values"] * len(job.bad),
    }
    assert eb.verify(job.out, source=eb.open(job.holes), translation=map_between()).compared == done.rows


def test_a_run_that_a_bad_row_stopped_goes_on_without_it(job):
    first = int(job.bad[0])
    with pytest.raises(BadVectorsError, match=rf"ids 'd{first}'.* rows are done and kept: --resume --on-bad skip"):
        job.convert("holes.parquet", batch_rows=GROUP_ROWS)
    assert 0 < journal.rows_done(job.out) <= first
    job.convert("holes.parquet", resume=True, on_bad="skip")
    job.convert("holes.parquet", job.folder / "once.parquet", on_bad="skip")
    assert job.out.read_bytes() == (job.folder / "once.parquet").read_bytes()


def test_a_list_of_bad_rows_goes_with_the_output_it_speaks_of(job):
    job.convert("holes.parquet", on_bad="skip")
    assert listing(job.out.parent) == ["new.parquet", "new.parquet.bad.parquet"]
    job.convert(on_bad="skip", overwrite=True)
    assert listing(job.out.parent) == ["new.parquet"]
    assert eb.verify(job.out, source=eb.open(job.source)).rows == ROWS


# Other processes and signals


def test_two_processes_do_not_write_one_output(job):
    with converting(job.source, job.map, job.out) as process:
        while not groups_done(job.out):
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGSTOP)
        before = {p: (job.out.parent / p).read_bytes() for p in listing(job.out.parent)}
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(InterruptedOutputError, match="Another process is writing"):
                job.convert(**options)
        assert {p: (job.out.parent / p).read_bytes() for p in listing(job.out.parent)} == before
        os.kill(process.pid, signal.SIGCONT)
        process.join(60)
        assert process.exitcode == 0
    assert eb.verify(job.out, source=eb.open(job.source), translation=map_between()).compared == ROWS


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
    assert stderr == f"Interrupted. The same command with --resume goes on with {target}.\n"
    assert not target.exists()
    assert ends(*line[1:-2], "--resume") == 0
    small.convert(name, small.folder / "once" if out == "new" else small.folder / "once.parquet", on_bad="skip")
    once = small.folder / "once" if out == "new" else small.folder / "once.parquet"
    for path in listing(once) if once.is_dir() else [""]:
        assert (target / path).read_bytes() == (once / path).read_bytes()
    assert eb.verify(target, source=eb.open(small.folder / name), translation=map_between()).compared


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
def heavy(job):
    """A source whose other columns are what fills a disk."""
    rng = np.random.default_rng(0)
    text = [rng.bytes(1000) for _ in range(ROWS)]
    pq.write_table(table_of(range(ROWS), rng.normal(size=(ROWS, P)), text=text), job.folder / "heavy.parquet")
    return job


def test_a_disk_that_fills_is_told_and_the_run_goes_on_when_there_is_room(heavy, disk):
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
def test_a_disk_that_fills_as_it_is_flushed(job, monkeypatch, call):
    """Some file systems tell only then."""
    flush, calls = os.fdatasync, []

    def full(number):
        calls.append(number)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(number)

    job.convert(out=job.folder / "once.parquet")
    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(DiskFullError, match="is full"):
        job.convert()
    job.convert(resume=True)
    assert job.out.read_bytes() == (job.folder / "once.parquet").read_bytes()
    assert listing(job.out.parent) == ["new.parquet"]


@pytest.mark.parametrize(("dtype", "needed"), [("float32", 4 * ROWS * Q), ("float16", 2 * ROWS * Q)])
def test_an_output_without_room_is_not_begun(job, monkeypatch, dtype, needed):
    def room(free):
        monkeypatch.setattr(file.os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_frsize=1))

    room(needed - 1)
    with pytest.raises(DiskFullError, match=r"needs about 0\.00 GB, but 0\.00 GB are free there\. Hint: .*--dtype float16"):
        job.convert(dtype=dtype)
    assert listing(job.out.parent) == []
    room(needed)
    interrupt(job, dtype=dtype)
    room(needed - journal.partial_path(job.out).stat().st_size)  # what is there already needs no room
    job.convert(dtype=dtype, resume=True)


def test_an_error_of_the_disk_other_than_full_is_told_as_it_is(job, monkeypatch):
    def broken(number):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        job.convert()
    assert not isinstance(caught.value, DiskFullError)
    assert listing(job.out.parent) == []
