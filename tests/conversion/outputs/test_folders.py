"""Folders and globs as sources and outputs of a conversion."""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.conversion import journal
from embridge.conversion.log import FORMAT
from embridge.errors import (
    BadVectorsError,
    CollectionError,
    InterruptedOutputError,
    MissingFileError,
    OutputExistsError,
)
from embridge.outputs import Output, claim
from tests.conversion.outputs.support import ROWS, P, listing, map_between, puncture, table_of

# A folder into a folder


def test_a_folder_keeps_its_files(shards, out, rows):
    ids, x = rows
    translation, source, seen = map_between(), eb.open(shards.path), []
    done = eb.convert(source, translation, out, progress=lambda *n: seen.append(n))
    assert listing(out.parent) == ["new/_embridge.json", *[f"new/{name}" for name in shards.names]]
    made = eb.open(out)
    assert (done.path, done.rows, done.skipped, done.fingerprint) == (str(out), ROWS, 0, made.fingerprint())
    assert (done.source, done.map) == (source.fingerprint(), translation.fingerprint)
    found_ids, found = made.read()
    assert found_ids.tolist() == ids
    np.testing.assert_allclose(found, translation.apply(x), atol=1e-5)
    assert max(seen) == (ROWS, ROWS)
    for number, name in enumerate(shards.names):
        before, after = pq.read_table(shards.path / name, partitioning=None), pq.read_table(out / name, partitioning=None)
        assert after.column_names == ["id", "vector", "n"]  # what folders say stays with the folders
        assert after.drop_columns("vector").to_pydict() == before.drop_columns("vector").to_pydict()
        with pq.ParquetFile(out / name) as file:
            assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [16, 14], number
    years = ds.dataset(out, partitioning="hive").to_table(columns=["id", "year"]).to_pylist()
    assert {row["year"] for row in years} == {None, 2024, 2025}
    assert {row["id"] for row in years if row["year"] == 2025} == set(ids[90:])
    assert made.payload_schema.names == ["n", "year"]


def test_a_file_of_a_folder_is_the_same_as_when_it_is_converted_alone(shards, out):
    """But for its lineage: that names the whole folder."""
    eb.convert(eb.open(shards.path), map_between(), out)
    eb.convert(eb.open(shards.path / "a.parquet"), map_between(), shards.at / "alone.parquet")
    one, other = pq.read_table(out / "a.parquet"), pq.read_table(shards.at / "alone.parquet")
    assert one.equals(other)
    assert eb.open(out / "a.parquet").lineage["source"] == eb.open(shards.path).fingerprint()


def test_a_folder_becomes_one_file_where_the_name_says_so(shards, out, rows):
    eb.convert(eb.open(shards.path), map_between(), out.with_suffix(".parquet"))
    table = pq.read_table(out.with_suffix(".parquet"))
    assert table["id"].to_pylist() == rows[0]
    assert table["year"].to_pylist() == [None] * 60 + ["2024"] * 30 + ["2025"] * 30


def test_a_glob_goes_into_a_folder_by_the_names_of_its_files(shards, out, rows):
    eb.convert(eb.open(f"{shards.path}/*.parquet"), map_between(), out)
    assert listing(out) == ["_embridge.json", "a.parquet"]
    assert eb.open(out).read()[0].tolist() == rows[0][:30]


def test_files_of_one_name_keep_their_folders(shards, out):
    eb.convert(eb.open(f"{shards.path}/year=*/*.parquet"), map_between(), out)
    assert listing(out) == ["_embridge.json", "year=2024/a.parquet", "year=2025/a.parquet"]


def test_a_file_that_fails_leaves_the_others_to_be_gone_on_with(shards, out):
    eb.convert(eb.open(shards.path), map_between(), shards.at / "first")
    puncture(shards.path / "year=2024/a.parquet", [25])
    with pytest.raises(BadVectorsError, match=r"year=2024/a\.parquet' has 1 row with NaN or infinite values: ids 'd85'"):
        eb.convert(eb.open(shards.path), map_between(), out)
    assert not out.exists()
    assert "new.journal" in listing(out.parent)
    with pytest.raises(CollectionError, match="holds no Parquet files"):  # no reader of the folder takes it for data
        eb.open(f"{out.parent}/*.parquet")
    with pytest.raises(InterruptedOutputError, match=r"new\.partial' exists already. Hint: --resume .* --overwrite"):
        eb.convert(eb.open(shards.path), map_between(), out)
    stamps = {p: p.stat().st_mtime_ns for p in (out.parent / "new.partial").rglob("*.parquet")}
    assert stamps  # two are converted at a time, so one was finished when the third began
    eb.convert(eb.open(shards.path), map_between(), out, resume=True, on_bad="skip")
    assert listing(out.parent) == ["new.bad.parquet", "new/_embridge.json", *[f"new/{name}" for name in shards.names]]
    for path, stamp in stamps.items():  # finished files are left alone
        assert (out / path.relative_to(out.parent / "new.partial")).stat().st_mtime_ns == stamp
    expected = [i for i in eb.open(shards.at / "first").read()[0] if i != "d85"]
    assert eb.open(out).read()[0].tolist() == expected


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda shards: {"dtype": "float16"}, "dtype"),
        (lambda shards: {"compact": True}, "compact"),
        (lambda shards: puncture(shards.path / "a.parquet", [3], 9.0) or {}, "source"),
        (lambda shards: (shards.path / "a.parquet").rename(shards.path / "aa.parquet") and {}, "files"),
    ],
)
def test_another_run_is_not_gone_on_with(shards, out, change, differs):
    """Least of all where files that are finished would stand beside others of another kind."""
    with pytest.raises(KeyboardInterrupt):
        eb.convert(eb.open(shards.path), map_between(), out, progress=stopped_after(70))
    assert listing(out.parent / "new.partial")
    options = change(shards)
    with pytest.raises(InterruptedOutputError, match=rf"started with other inputs: {differs} differ"):
        eb.convert(eb.open(shards.path), map_between(), out, resume=True, **options)
    eb.convert(eb.open(shards.path), map_between(), out, overwrite=True, **options)
    assert eb.verify(out, source=eb.open(shards.path), translation=map_between()).compared == ROWS
    assert [p.name for p in out.parent.iterdir()] == ["new"]


def stopped_after(rows):
    def progress(done, _):
        if done >= rows:
            raise KeyboardInterrupt

    return progress


def test_an_error_ends_the_other_files_at_their_next_row_group(shards, out):
    """Ctrl-C does not wait for files of a hundred gigabytes."""
    for name in shards.names[1:]:
        (shards.path / name).unlink()
    pq.write_table(
        table_of([f"x{i}" for i in range(5000)], np.ones((5000, P), np.float32), n=[1] * 5000), shards.path / "b.parquet"
    )
    failed = threading.Event()

    def progress(done, _):
        if threading.current_thread().name.endswith("_0") and done:
            failed.set()
            raise ArithmeticError
        failed.wait(10)

    with pytest.raises(ArithmeticError):
        eb.convert(eb.open(shards.path), map_between(), out, progress=progress)
    assert not (out.parent / "new.partial" / "b.parquet").exists()
    assert journal.rows_done(out.parent / "new.partial" / "b.parquet") < 2500


def test_a_folder_is_replaced_only_with_overwrite(shards, out):
    eb.convert(eb.open(shards.path), map_between(seed=6), out)
    pq.write_table(table_of(["s"], np.ones((1, P), np.float32), n=[0]), shards.path / "stale.parquet")
    eb.convert(eb.open(shards.path), map_between(seed=6), out, overwrite=True)
    assert "stale.parquet" in listing(out)
    (shards.path / "stale.parquet").unlink()
    with pytest.raises(OutputExistsError, match="exists already"):
        eb.convert(eb.open(shards.path), map_between(), out)
    with pytest.raises(OutputExistsError, match="exists already"):
        eb.convert(eb.open(shards.path), map_between(), out, resume=True)
    eb.convert(eb.open(shards.path), map_between(), out, overwrite=True)
    assert listing(out.parent) == ["new/_embridge.json", *[f"new/{name}" for name in shards.names]]
    assert eb.open(out).lineage["map"] == map_between().fingerprint


def test_a_folder_that_is_finished_is_resumed_at_once(shards, out):
    first = eb.convert(eb.open(shards.path), map_between(), out)
    stamps = {name: (out / name).stat().st_mtime_ns for name in shards.names}
    journal.start(out, {"format": FORMAT, "files": []})
    again = eb.convert(eb.open(shards.path), map_between(), out, resume=True)
    assert (again.rows, again.fingerprint) == (first.rows, first.fingerprint)
    assert {name: (out / name).stat().st_mtime_ns for name in shards.names} == stamps
    assert [p.name for p in out.parent.iterdir()] == ["new"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_never_its_own_output(shards, overwrite):
    before = {name: (shards.path / name).read_bytes() for name in shards.names}
    with pytest.raises(OutputExistsError, match="both input and output" if overwrite else "both input|exists"):
        eb.convert(eb.open(shards.path), map_between(), shards.path, overwrite=overwrite)
    assert {name: (shards.path / name).read_bytes() for name in shards.names} == before
    assert [p.name for p in shards.at.iterdir()] == ["shards"]


def test_what_is_no_unfinished_output_is_not_touched(shards, out):
    partial = out.parent / "new.partial"
    partial.mkdir()
    (partial / "precious").write_text("mine")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(InterruptedOutputError, match=r"new\.partial' was not left by an unfinished run .* Hint: move it away"):
            eb.convert(eb.open(shards.path), map_between(), out, **options)
    assert listing(out.parent) == ["new.partial/precious"]
    with pytest.raises(MissingFileError, match="nowhere"):
        eb.convert(eb.open(shards.path), map_between(), out.parent / "nowhere" / "new")


def test_two_processes_do_not_write_one_folder(shards, out):
    with claim(Output(out, folder=True)):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(InterruptedOutputError, match="Another process is writing"):
                eb.convert(eb.open(shards.path), map_between(), out, **options)
    assert listing(out.parent) == []


def test_shards_without_a_row_stay_shards_without_a_row(shards, out, rows):
    """Some writers leave empty files, and all rows of a file may be bad."""
    pq.write_table(table_of(pa.array([], pa.string()), rows[1][:0], n=pa.array([], pa.int64())), shards.path / "empty.parquet")
    puncture(shards.path / "a.parquet", slice(None))
    done = eb.convert(eb.open(shards.path), map_between(), out, on_bad="skip")
    assert (done.rows, done.skipped) == (ROWS - 30, 30)
    assert listing(out) == sorted([*shards.names, "_embridge.json", "empty.parquet"])
    assert [pq.read_metadata(out / name).num_rows for name in ("a.parquet", "empty.parquet")] == [0, 0]
    assert eb.verify(out, source=eb.open(shards.path), translation=map_between()).compared == ROWS - 30


# Memory


@pytest.mark.parametrize("name", ["out", "deep/out", "out.parquet"])
def test_an_output_within_its_own_input_is_refused(tmp_path, rows, name):
    ids, vectors = rows
    folder = tmp_path / "shards"
    (folder / "deep").mkdir(parents=True)
    for part in range(2):
        pq.write_table(table_of(ids[part::2], vectors[part::2]), folder / f"{part}.parquet")
    before = listing(tmp_path)
    with pytest.raises(OutputExistsError, match="are nested"):
        eb.convert(eb.open(folder), map_between(), folder / name)
    assert listing(tmp_path) == before
