"""A folder as an output: what embridge wrote there is replaced, and nothing else is."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge import folders
from embridge.conversion import journal
from embridge.conversion.log import FORMAT
from embridge.errors import InterruptedOutputError, OutputError, OutputExistsError, UnreadableFileError
from embridge.folders import MANIFEST, Manifest, check_replaceable, read_manifest, settle
from embridge.types import Space

OLD, NEW = Space("old", 4), Space("new", 5)


def map_between(seed=0):
    rng = np.random.default_rng(seed)
    return eb.LinearMap(rng.normal(size=(5, 4)), rng.normal(size=5), OLD, NEW)


@pytest.fixture
def shards(tmp_path, table_of, write):
    """Two files of fifty rows, a folder below."""
    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    write(tmp_path / "in" / "a.parquet", table_of(list(range(50)), x[:50], space=OLD))
    write(tmp_path / "in" / "deep" / "b.parquet", table_of(list(range(50, 100)), x[50:], space=OLD))
    return tmp_path / "in"


@pytest.fixture
def out(shards):
    eb.convert(eb.open(shards), map_between(), shards.parent / "out")
    return shards.parent / "out"


def again(shards, out, **options):
    return eb.convert(eb.open(shards), map_between(1), out, overwrite=True, **options)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_manifest_lists_files_and_lineage(shards, out):
    found = read_manifest(out)
    assert sorted(found.files) == ["a.parquet", "deep/b.parquet"]
    assert found.lineage == {"source": eb.open(shards).fingerprint(), "map": map_between().fingerprint}
    assert {name: size for name, (size, _) in found.files.items()} == {n: os.path.getsize(out / n) for n in found.files}
    assert Manifest.loads(found.dumps(), "x") == found


def test_files_of_others_survive_in_their_place(shards, out):
    (out / "notes.txt").write_text("mine")
    (out / "deep" / "_hidden.parquet").write_text("hidden, and so no data")
    (out / "other" / "empty").mkdir(parents=True)
    (out / "link").symlink_to("/nowhere")
    inode = os.stat(out / "notes.txt").st_ino
    again(shards, out)
    assert eb.open(out).lineage["map"] == map_between(1).fingerprint
    assert os.stat(out / "notes.txt").st_ino == inode
    assert (out / "deep" / "_hidden.parquet").read_text() == "hidden, and so no data"
    assert (out / "other" / "empty").is_dir()
    assert os.readlink(out / "link") == "/nowhere"
    assert sorted(p.name for p in out.parent.iterdir()) == ["in", "out"]


def test_a_folder_without_links_keeps_files_of_others_too(shards, out, monkeypatch):
    """Some file systems have no hard links, and no exchange of two names."""

    def none(*_, **__):
        raise OSError(1, "Operation not permitted")

    (out / "deep" / "notes.txt").write_text("mine")
    monkeypatch.setattr(folders.os, "link", none)
    monkeypatch.setattr(folders, "_swap", lambda one, other: False)
    again(shards, out)
    assert (out / "deep" / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in out.parent.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda out: (out / MANIFEST).unlink(), "no manifest"),
        (lambda out: (out / "a.parquet").write_bytes(b"another"), "a.parquet' was altered"),
        (lambda out: os.utime(out / "a.parquet") or flip(out / "a.parquet"), "a.parquet' was altered"),
        (lambda out: link(out / "a.parquet"), "a.parquet' was altered"),
        (lambda out: shutil.copy(out / "a.parquet", out / "c.parquet"), "c.parquet' was not written by embridge"),
        (lambda out: shutil.copy(out / "a.parquet", out / "deep" / "C.PARQ"), "C.PARQ' was not written by embridge"),
        (lambda out: shutil.copy(out / "a.parquet", out / "no_suffix"), "no_suffix' was not written by embridge"),
    ],
)
def test_what_would_be_lost_or_read_with_the_output_is_refused_by_name(shards, out, change, named):
    change(out)
    before = content(out)
    with pytest.raises(OutputExistsError, match=named):
        again(shards, out)
    assert content(out) == before
    assert sorted(p.name for p in out.parent.iterdir() if p.name != "real") == ["in", "out"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def link(path):
    path.rename(path.parent.parent / "real")
    path.symlink_to(path.parent.parent / "real")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({"format": "another", "files": {}, "lineage": {}}),
        json.dumps({"format": "embridge.folder.1", "files": {"../x": {"size": 1, "fingerprint": "a"}}, "lineage": {}}),
        json.dumps({"format": "embridge.folder.1", "files": {"/x": {"size": 1, "fingerprint": "a"}}, "lineage": {}}),
        json.dumps({"format": "embridge.folder.1", "files": {"x": {"size": "1", "fingerprint": "a"}}, "lineage": {}}),
        json.dumps({"format": "embridge.folder.1", "files": {"x": {"size": 1, "fingerprint": 2}}, "lineage": {}}),
        json.dumps({"format": "embridge.folder.1", "files": [], "lineage": {}}),
    ],
)
def test_a_damaged_manifest_is_refused_and_nothing_is_touched(shards, out, text):
    (out / MANIFEST).write_text(text)
    before = content(out.parent)
    with pytest.raises(UnreadableFileError, match=MANIFEST):
        again(shards, out)
    assert content(out.parent) == before


def test_a_manifest_that_is_a_link_a_pipe_or_a_folder_is_refused(shards, out):
    (out / MANIFEST).rename(out.parent / "elsewhere")
    for plant in (lambda p: p.symlink_to(out.parent / "elsewhere"), os.mkfifo, os.mkdir):
        plant(out / MANIFEST)
        with pytest.raises(UnreadableFileError, match=MANIFEST):
            again(shards, out)
        (out / MANIFEST).rmdir() if (out / MANIFEST).is_dir() else (out / MANIFEST).unlink()


def test_a_link_to_a_folder_is_not_replaced(shards, out):
    (out.parent / "link").symlink_to("out")
    with pytest.raises(OutputExistsError, match="link"):
        again(shards, out.parent / "link")
    assert (out.parent / "link").is_symlink()


def test_an_empty_folder_may_be_replaced(shards, tmp_path):
    (tmp_path / "empty").mkdir()
    again(shards, tmp_path / "empty")
    assert len(eb.open(tmp_path / "empty")) == 100


def test_a_file_that_appears_while_a_folder_is_made_is_not_lost(shards, out):
    def progress(done, of):
        (out / "late.txt").write_text("mine")

    again(shards, out, progress=progress)
    assert (out / "late.txt").read_text() == "mine"

    def intrude(done, of):
        (out / "late.parquet").write_bytes((shards / "a.parquet").read_bytes())

    with pytest.raises(OutputExistsError, match=r"late\.parquet' was not written by embridge"):
        again(shards, out, progress=intrude)
    assert (out / "late.parquet").exists()


def test_files_put_into_a_working_folder_are_not_removed(shards, tmp_path):
    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eb.convert(eb.open(shards), map_between(), tmp_path / "new", progress=stop)
    (tmp_path / "new.partial" / "precious").write_text("mine")
    with pytest.raises(InterruptedOutputError, match=r"new\.partial/precious' was not written by embridge"):
        eb.convert(eb.open(shards), map_between(), tmp_path / "new", overwrite=True)
    assert (tmp_path / "new.partial" / "precious").read_text() == "mine"
    with pytest.raises(InterruptedOutputError, match="precious"):
        eb.convert(eb.open(shards), map_between(), tmp_path / "new", resume=True)
    (tmp_path / "new.partial" / "precious").unlink()
    eb.convert(eb.open(shards), map_between(), tmp_path / "new", resume=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "new"]


def test_a_folder_inside_a_working_folder_is_not_followed_through_a_link(shards, tmp_path):
    journal.start(tmp_path / "new", {"format": FORMAT})
    (tmp_path / "victim").mkdir()
    (tmp_path / "new.partial").symlink_to("victim")
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(InterruptedOutputError):
            eb.convert(eb.open(shards), map_between(), tmp_path / "new", **options)
    assert list((tmp_path / "victim").iterdir()) == []


def test_two_files_of_one_name_both_stay(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text(name)
    with pytest.raises(OutputError, match=r"old/notes\.txt' cannot be moved back"):
        settle(tmp_path / "old", tmp_path / "new")
    assert [(tmp_path / name / "notes.txt").read_text() for name in ("old", "new")] == ["old", "new"]


def test_a_list_of_bad_rows_that_is_none_is_not_replaced(shards, tmp_path):
    for target, source in (("new", shards), ("new.parquet", shards / "a.parquet")):
        other = Path(f"{tmp_path / target}.bad.parquet")
        pq.write_table(pq.read_table(shards / "a.parquet"), other)
        before = other.read_bytes()
        with pytest.raises(OutputExistsError, match="not a list of bad rows"):
            eb.convert(eb.open(source), map_between(), tmp_path / target, overwrite=True)
        assert other.read_bytes() == before


def test_what_may_be_replaced_is_said_without_writing(out):
    before = content(out)
    check_replaceable(out)
    assert content(out) == before
