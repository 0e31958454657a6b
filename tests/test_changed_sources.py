"""Inputs that change while they are read, and two writers of one output: no output is mixed, and none is recorded for nothing."""

import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge import encoding
from embridge.errors import ChangedSourceError, InterruptedOutputError, OutputError, OutputExistsError
from embridge.outputs import CONVERSION, ENCODING, Output, check_outputs, claim
from embridge.stores.parquet import writer
from embridge.types import Space

OLD, NEW = Space("old", 4), Space("new", 5)
ROWS = 400


def map_between():
    rng = np.random.default_rng(0)
    return eb.LinearMap(rng.normal(size=(5, 4)), rng.normal(size=5), OLD, NEW)


def head():
    rng = np.random.default_rng(0)
    return eb.LinearHead(rng.normal(size=(3, 5)), np.zeros(3), NEW, classes=["a", "b", "c"])


class Stub:
    """In a model's place: vectors made of the characters of a text."""

    similarity_fn_name = "cosine"
    prompts, default_prompt_name = {}, None

    def encode(self, texts, **_):
        return np.array([[len(t), t.count("1") + 1, t.count("2"), 1] for t in texts], np.float32)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, table_of, write):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writer, "GROUP_BYTES", 50 * 4 * 5)
    monkeypatch.setattr(encoding, "load_encoder", lambda model, device: Stub())
    x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(ROWS, 5)).astype(np.float32)
    for name, start in (("in/a", 0), ("in/b", 200)):
        rows = slice(start, start + 200)
        write(tmp_path / f"{name}.parquet", table_of(list(range(ROWS))[rows], x[rows], space=OLD), row_group_size=50)
    write(tmp_path / "one.parquet", table_of(list(range(ROWS)), x, space=OLD), row_group_size=50)
    write(tmp_path / "native.parquet", table_of(list(range(300, 600)), np.vstack([y, y])[:300], space=NEW))
    write(tmp_path / "made.parquet", table_of(list(range(ROWS)), y, space=NEW), row_group_size=50)
    pq.write_table(pa.table({"id": range(ROWS), "text": [f"text {i}" for i in range(ROWS)]}), tmp_path / "texts.parquet")
    head().save("head.safetensors")


VERBS = {
    "convert a file": ("one.parquet", lambda **o: eb.convert(eb.open("one.parquet"), map_between(), "out.parquet", **o)),
    "convert a folder": ("in/b.parquet", lambda **o: eb.convert(eb.open("in"), map_between(), "out", **o)),
    "encode": ("texts.parquet", lambda **o: eb.encode("texts.parquet", "m", "out.parquet", part_rows=100, **o)),
    "decode": ("made.parquet", lambda **o: eb.decode(eb.open("made.parquet"), head(), "out.parquet", batch_rows=50, **o)),
    "merge": ("made.parquet", lambda **o: eb.merge(eb.open("native.parquet"), eb.open("made.parquet"), "out.parquet", **o)),
}


def overwrite_in_place(path):
    """The same size, other values, and the times as they were."""
    found, data = os.stat(path), bytearray(Path(path).read_bytes())
    data[200] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def replace_by_rename(path):
    with open(f"{path}.tmp", "wb") as file:
        file.write(Path(path).read_bytes())
    os.replace(f"{path}.tmp", path)


def listing():
    return sorted(name for name in os.listdir() if name.startswith((".", "out")))


@pytest.mark.parametrize("change", [overwrite_in_place, replace_by_rename, os.unlink])
@pytest.mark.parametrize("verb", VERBS)
def test_a_source_that_changes_while_it_is_read_makes_no_output(verb, change):
    source, run = VERBS[verb]
    changed = []

    def progress(done, of):
        if not changed:
            changed.append(done)
            change(source)

    with pytest.raises((ChangedSourceError, FileNotFoundError)):
        run(progress=progress)
    assert changed
    assert [name for name in listing() if name != "out.parquet.parts"] == []


@pytest.mark.parametrize("verb", VERBS)
def test_of_two_writers_of_one_output_one_is_refused(verb):
    """The second begins while the first is at work, and neither by chance."""
    _, run = VERBS[verb]
    refused, first = [], threading.Lock()  # files of a folder report from threads of their own

    def progress(done, of):
        if first.acquire(blocking=False):
            for options in ({}, {"overwrite": True}):
                with pytest.raises(InterruptedOutputError, match="Another process is writing 'out") as caught:
                    run(**options)
                refused.append(caught.value)

    run(progress=progress)
    assert len(refused) == 2
    assert [name for name in listing() if name not in ("out", "out.parquet")] == []
    with pytest.raises(OutputExistsError, match="exists already"):
        run()


def test_another_process_is_refused_while_an_output_is_claimed(commands):
    code = (
        "import embridge as eb, numpy as np\n"
        "from embridge.types import Space\n"
        "m = eb.LinearMap(np.ones((5, 4)), np.ones(5), Space('old', 4), Space('new', 5))\n"
        "eb.convert(eb.open('one.parquet'), m, 'out.parquet', overwrite=True)"
    )
    with claim(Output("out.parquet", CONVERSION)):
        found = subprocess.run([commands / "python-c", code], capture_output=True, text=True, check=False)
    assert "Another process is writing 'out.parquet'" in found.stderr
    assert subprocess.run([commands / "python-c", code], capture_output=True, check=False).returncode == 0
    assert listing() == ["out.parquet"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_vanishes_is_an_error_of_the_output(verb, tmp_path, monkeypatch):
    (tmp_path / "place").mkdir()
    for name in ("in", "one.parquet", "native.parquet", "made.parquet", "texts.parquet"):
        os.symlink(f"../{name}", tmp_path / "place" / name)
    monkeypatch.chdir(tmp_path / "place")

    def progress(done, of):
        if os.path.isdir(tmp_path / "place"):
            os.rename(tmp_path / "place", tmp_path / "away")
            os.chdir(tmp_path)

    with pytest.raises((OutputError, ChangedSourceError), match=r"out.* cannot be written|changed while it was read"):
        VERBS[verb][1](progress=progress)


@pytest.mark.parametrize(
    ("pattern", "output"),
    [
        ("in/*.parquet", Output("in/c.parquet")),
        ("**/*.parquet", Output("deep.parquet")),
        ("**/*.parquet", Output("new", CONVERSION, folder=True)),
        ("*/a.parquet", Output("new", CONVERSION, folder=True)),
        ("in/*", Output("in/new")),
    ],
)
def test_an_output_that_a_glob_of_the_input_would_find_is_refused(pattern, output):
    with pytest.raises(OutputExistsError):
        check_outputs(output, inputs=[pattern], overwrite=True)


def test_an_output_beside_the_input_of_a_glob_is_fine():
    check_outputs(Output("in/new", CONVERSION, folder=True), Output("in2.parquet"), Output("in/sub.pq"), inputs=["in/*.parquet"])


def test_side_files_of_inputs_count_and_odd_names_are_errors_of_ours():
    for name in ("catalog.duckdb", "catalog.duckdb.wal", "texts.parquet.json"):
        Path(name).touch()
    with pytest.raises(OutputExistsError):
        check_outputs(Output("catalog.duckdb.wal"), inputs=["catalog.duckdb"], overwrite=True)
    with pytest.raises(OutputExistsError):
        check_outputs(Output("texts.parquet.json"), inputs=["texts.parquet"], overwrite=True)
    os.symlink("loop", "loop")
    for name in ("\ud800", "a\0b", "."):
        with pytest.raises(eb.EmbridgeError):
            check_outputs(Output(name))
    check_outputs(Output("x", ENCODING), inputs=["a\0b", "\ud800", "loop", None])
    with pytest.raises(OutputExistsError):
        check_outputs(Output("loop"))
    with pytest.raises(eb.EmbridgeError):
        check_outputs(Output("loop/x"))


def test_a_dead_temporary_file_of_a_side_file_goes_with_the_next_claim():
    Path(".out.parquet.journal.1234567-1-abcd0123.tmp").touch()
    with claim(Output("out.parquet", CONVERSION)):
        pass
    assert listing() == []


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_is_refused(plant):
    plant(".out.parquet.lock")
    with pytest.raises(eb.EmbridgeError, match=r"lock|cannot be written"), claim(Output("out.parquet")):
        pass
