"""Outputs are locked, kept apart from inputs, and never replace what may not be replaced."""

import os
import subprocess
from pathlib import Path

import pytest

from embridge.errors import InterruptedOutputError, MissingFileError, OutputExistsError, ParameterError
from embridge.outputs import CONVERSION, INDEX, Output, check_outputs, claim


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d/t1.parquet", "d/t2.parquet", "outer/in/a.parquet", "a.parquet", "m.safetensors", "i.faiss", "i.faiss.json"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)


@pytest.mark.parametrize("suffix", CONVERSION)
def test_an_input_that_is_a_side_file_of_the_output_is_refused(suffix):
    Path(f"out.parquet{suffix}").write_text("input")
    with pytest.raises(OutputExistsError, match="both input and output"):
        check_outputs(Output("out.parquet", CONVERSION), inputs=[f"out.parquet{suffix}"], overwrite=True)


@pytest.mark.parametrize(
    ("output", "inputs"),
    [
        (Output("outer", CONVERSION, folder=True), ["outer/in"]),
        (Output("d", CONVERSION, folder=True), ["d/t*.parquet"]),
        (Output("d/t1.parquet"), ["d"]),
        (Output("d/new.parquet"), ["d"]),
        (Output("d/t3.parquet"), ["d/t*.parquet"]),
        (Output("a.parquet"), ["a.parquet"]),
        (Output("./d/../a.parquet"), ["a.parquet"]),
        (Output("i.faiss.json"), ["i.faiss"]),
        (Output("i.faiss", INDEX), ["i.faiss.json"]),
        (Output("link/new", CONVERSION, folder=True), ["d"]),
        (Output("hard.parquet"), ["a.parquet"]),
        (Output("folder", CONVERSION, folder=True), ["a.parquet"]),
    ],
)
def test_no_output_is_contains_or_lies_in_an_input(output, inputs):
    os.symlink("d", "link")
    os.link("a.parquet", "hard.parquet")
    Path("folder").mkdir()
    os.link("a.parquet", "folder/same.parquet")
    with pytest.raises(OutputExistsError):
        check_outputs(output, inputs=inputs, overwrite=True)


def test_two_outputs_never_share_a_path():
    with pytest.raises(OutputExistsError, match="two outputs"):
        check_outputs(Output("x"), Output("./x"))
    with pytest.raises(OutputExistsError, match="two outputs"):
        check_outputs(Output("x", INDEX), Output("x.json"))
    check_outputs(Output("x", INDEX), Output("y", INDEX))


@pytest.mark.parametrize("name", ["", ".", "..", "/", "d/..", "s3://", "s3://bucket/x", "a\0b"])
def test_an_output_needs_a_file_name(name):
    with pytest.raises((ParameterError, OutputExistsError)):
        check_outputs(Output(name), overwrite=True)


def test_what_exists_is_replaced_on_demand_only_and_never_a_folder_by_a_file_or_a_device():
    with pytest.raises(OutputExistsError, match="--overwrite"):
        check_outputs(Output("a.parquet"))
    check_outputs(Output("a.parquet"), overwrite=True)
    with pytest.raises(OutputExistsError, match="folder"):
        check_outputs(Output("d"), overwrite=True)
    with pytest.raises(OutputExistsError, match="is a file"):
        check_outputs(Output("a.parquet", folder=True), overwrite=True)
    with pytest.raises(MissingFileError):
        check_outputs(Output("nowhere/x"))
    Path("x.json").write_text("somebody's")
    with pytest.raises(OutputExistsError, match=r"x\.json"):
        check_outputs(Output("x", INDEX))
    os.mkfifo("fifo")
    with pytest.raises(OutputExistsError, match="regular"):
        check_outputs(Output("fifo"), overwrite=True)


def test_one_writer_at_a_time_and_no_lock_is_left():
    with claim(Output("x")) as [path]:
        assert path == Path("x")
        with pytest.raises(InterruptedOutputError, match="Another"), claim(Output("x"), overwrite=True):
            pass
        with claim(Output("y")):
            pass
    with claim(Output("x")):
        pass
    assert not [name for name in os.listdir() if "lock" in name]


def test_the_lock_of_a_killed_process_is_taken_over(commands):
    code = "import os, signal\nfrom embridge.outputs import *\nwith claim(Output('x')):\n    os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([commands / "python-c", code], check=False).returncode == -9
    assert Path(".x.lock").exists()
    with claim(Output("x")):
        pass
    assert not Path(".x.lock").exists()


def test_a_planted_lock_link_is_not_followed():
    os.symlink("victim", ".x.lock")
    with pytest.raises(OSError, match="cannot be written"), claim(Output("x")):
        pass
    assert not Path("victim").exists()


def test_existence_is_checked_under_the_lock():
    with claim(Output("x")) as [path]:
        path.write_text("first")
    with pytest.raises(OutputExistsError), claim(Output("x")):
        pass
