"""What `--resume` accepts: damage, altered files, other runs, bad rows."""

import os

import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.conversion import journal
from embridge.conversion.log import FORMAT
from embridge.errors import BadVectorsError, InterruptedOutputError, OutputExistsError
from tests.conversion.resume.support import GROUP_ROWS, GROUPS, ROWS, interrupt, listing, map_between

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
def test_what_a_crash_leaves_is_gone_on_with_as_far_as_it_is_whole(case, damage, kept):
    case.convert(out=case.folder / "once.parquet")
    assert interrupt(case) == ROWS // 2
    damage(journal.journal_path(case.out), journal.partial_path(case.out))
    seen = []
    case.convert(resume=True, progress=lambda done, of: seen.append(done))
    assert seen == list(range((kept + 1) * GROUP_ROWS, ROWS + 1, GROUP_ROWS))
    assert listing(case.out.parent) == ["new.parquet"]
    assert case.out.read_bytes() == (case.folder / "once.parquet").read_bytes()


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
def test_what_was_altered_between_kill_and_resume_is_refused(case, damage, named):
    interrupt(case)
    damage(journal.journal_path(case.out), journal.partial_path(case.out))
    before = {p: (case.out.parent / p).read_bytes() for p in listing(case.out.parent)}
    for options in ({"resume": True}, {}) if named == "journal" else ({"resume": True},):
        with pytest.raises(InterruptedOutputError, match=rf"\.{named}' was altered since it was written: .*--overwrite"):
            case.convert(**options)
    assert {p: (case.out.parent / p).read_bytes() for p in listing(case.out.parent)} == before
    case.convert(overwrite=True)
    assert listing(case.out.parent) == ["new.parquet"]


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
def test_a_journal_whose_checksums_are_right_and_whose_values_are_not_is_refused(case, values):
    interrupt(case)
    found = journal.read_log(case.out)
    last = found.entries[-1]
    line = {"read": last.read + 1, "offset": last.offset + 1, "checksum": 0, "group": "", "bad": []} | values
    with journal.append_to(case.out, found) as lines:
        lines.add(line)
    with pytest.raises(InterruptedOutputError, match=r"\.journal' was altered"):
        case.convert(resume=True)


@pytest.mark.parametrize("content", [b"", b"[1, 2]\n", b"my diary\n", b"{}\n", b"\0\xff" * 50])
@pytest.mark.parametrize("kind", ["journal", "partial"])
def test_files_of_others_are_never_changed(case, kind, content):
    path = case.out.with_name(f"new.parquet.{kind}")
    path.write_bytes(content)
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(InterruptedOutputError, match="Hint: move it away"):
            case.convert(**options)
    assert path.read_bytes() == content
    assert listing(case.out.parent) == [path.name]


@pytest.mark.parametrize("kind", ["journal", "partial"])
@pytest.mark.parametrize("plant", [os.symlink, os.link, lambda _, path: os.mkfifo(path), lambda _, path: os.mkdir(path)])
def test_what_is_planted_under_a_working_name_is_not_followed(case, kind, plant):
    interrupt(case)
    victim, path = case.folder / "victim", case.out.with_name(f"new.parquet.{kind}")
    path.rename(victim)
    before = victim.read_bytes()
    plant(victim, path)
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(InterruptedOutputError, match=rf"\.{kind}' was not left by an unfinished run of embridge"):
            case.convert(**options)
    assert victim.read_bytes() == before


def test_a_torn_line_does_not_spoil_the_lines_after_it(case):
    """Interrupted twice: what the second run did counts as well."""
    interrupt(case, rows=ROWS // 4)
    shorten(journal.journal_path(case.out), 50)
    assert interrupt(case, rows=ROWS // 2, resume=True) == ROWS // 2
    seen = []
    case.convert(resume=True, progress=lambda done, of: seen.append(done))
    assert seen[0] == ROWS // 2 + GROUP_ROWS


def test_a_journal_names_only_what_is_on_the_disk(case, monkeypatch):
    """A row group is flushed before its line is written, and the line before the next group."""
    calls = []
    flush = os.fdatasync

    def note(number):
        calls.append(os.readlink(f"/proc/self/fd/{number}").rpartition(".")[2])
        flush(number)

    monkeypatch.setattr(os, "fdatasync", note)
    case.convert()
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
def test_another_run_is_not_gone_on_with(case, change, differs):
    interrupt(case)
    before = {p: (case.out.parent / p).read_bytes() for p in listing(case.out.parent)}
    options = {k: v for k, v in change.items() if k not in ("map", "name")}
    source, translation = eb.open(case.folder / change.get("name", "old.parquet")), map_between(change.get("map", 5))
    with pytest.raises(InterruptedOutputError, match=rf"started with other inputs: {differs} differ\. Hint: .*--overwrite"):
        eb.convert(source, translation, case.out, resume=True, **options)
    assert {p: (case.out.parent / p).read_bytes() for p in listing(case.out.parent)} == before
    eb.convert(source, translation, case.out, overwrite=True, on_bad="skip", **options)
    assert eb.open(case.out).lineage == {"source": source.fingerprint(), "map": translation.fingerprint}


def test_without_resume_an_unfinished_output_is_refused(case):
    interrupt(case)
    with pytest.raises(
        InterruptedOutputError, match=r"\(400 rows of the source done\)\. Hint: --resume .*, --overwrite starts again"
    ):
        case.convert()
    assert journal.rows_done(case.out) == 400
    seen = []
    case.convert(overwrite=True, progress=lambda done, of: seen.append(done))
    assert seen[0] == GROUP_ROWS
    assert listing(case.out.parent) == ["new.parquet"]


def test_a_run_that_finished_nothing_does_not_block_the_next(case):
    journal.start(case.out, {"format": FORMAT, "another": "plan"})
    journal.partial_path(case.out).write_text("PAR1 and half a row group")
    case.convert()
    assert listing(case.out.parent) == ["new.parquet"]


def test_a_finished_output_is_resumed_at_once(case):
    case.convert()
    stamp = case.out.stat().st_mtime_ns
    journal.start(case.out, {"format": FORMAT})  # killed between the rename and its removal
    seen = []
    done = case.convert(resume=True, progress=lambda *rows: seen.append(rows))
    assert (done.rows, done.skipped, done.fingerprint) == (ROWS, 0, eb.open(case.out).fingerprint())
    assert seen == []
    assert case.out.stat().st_mtime_ns == stamp
    assert listing(case.out.parent) == ["new.parquet"]


@pytest.mark.parametrize(
    "made",
    [
        lambda case: eb.convert(eb.open(case.source), map_between(6), case.out),
        lambda case: eb.convert(eb.open(case.holes), map_between(), case.out, on_bad="skip"),
        lambda case: case.convert(dtype="float16"),
        lambda case: case.out.write_bytes(case.source.read_bytes()),
        lambda case: case.out.write_text("precious"),
    ],
    ids=["map", "source", "dtype", "no output", "no Parquet"],
)
def test_a_finished_output_of_something_else_is_kept(case, made):
    made(case)
    before = case.out.read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        case.convert(resume=True)
    assert case.out.read_bytes() == before


def test_an_output_that_is_replaced_stays_until_the_new_one_is_whole(case):
    case.convert(dtype="float16")
    before = case.out.read_bytes()
    interrupt(case, overwrite=True)
    assert case.out.read_bytes() == before
    with pytest.raises(OutputExistsError, match="--overwrite"):
        case.convert(resume=True)
    assert case.out.read_bytes() == before
    seen = []
    case.convert(resume=True, overwrite=True, progress=lambda done, of: seen.append(done))
    assert seen[0] == ROWS // 2 + GROUP_ROWS
    assert eb.open(case.out).vector_type == "float32"
    assert listing(case.out.parent) == ["new.parquet"]


# Bad rows


def test_bad_rows_of_a_resumed_run_are_listed_once(case):
    interrupt(case, name="holes.parquet", on_bad="skip")
    done = case.convert("holes.parquet", on_bad="skip", resume=True)
    assert (done.rows, done.skipped) == (ROWS - len(case.bad), len(case.bad))
    listed = pq.read_table(f"{case.out}.bad.parquet").to_pydict()
    assert listed == {
        "row": case.bad.tolist(),
        "id": [f"d{i}" for i in case.bad],
        "reason": ["no vector, or NaN or infinite values"] * len(case.bad),
    }
    assert eb.verify(case.out, source=eb.open(case.holes), translation=map_between()).compared == done.rows


def test_a_run_that_a_bad_row_stopped_goes_on_without_it(case):
    first = int(case.bad[0])
    with pytest.raises(BadVectorsError, match=rf"ids 'd{first}'.* rows are done and kept: --resume --on-bad skip"):
        case.convert("holes.parquet", batch_rows=GROUP_ROWS)
    assert 0 < journal.rows_done(case.out) <= first
    case.convert("holes.parquet", resume=True, on_bad="skip")
    case.convert("holes.parquet", case.folder / "once.parquet", on_bad="skip")
    assert case.out.read_bytes() == (case.folder / "once.parquet").read_bytes()


def test_a_list_of_bad_rows_goes_with_the_output_it_speaks_of(case):
    case.convert("holes.parquet", on_bad="skip")
    assert listing(case.out.parent) == ["new.parquet", "new.parquet.bad.parquet"]
    case.convert(on_bad="skip", overwrite=True)
    assert listing(case.out.parent) == ["new.parquet"]
    assert eb.verify(case.out, source=eb.open(case.source)).rows == ROWS
