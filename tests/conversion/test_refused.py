"""Conversions that are refused, fail or are killed leave nothing behind."""

import contextlib
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    CollectionError,
    DeviceError,
    MissingFileError,
    OutputExistsError,
    ParameterError,
    SpaceMismatchError,
    UnreadableFileError,
)
from embridge.stores.parquet import writer
from embridge.types import Metric, Space
from tests.conversion.support import NEW, OLD, N, P, Q, map_between, table_of


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


# What is refused, with nothing left behind


@pytest.fixture
def refused(tmp_path):
    """``with refused(error, message): ...``: the message is right, and the folder is as it was."""

    @contextlib.contextmanager
    def check(error, message):
        before = {name: (tmp_path / name).stat().st_mtime_ns for name in listing(tmp_path)}
        with pytest.raises(error, match=message) as caught:
            yield
        assert isinstance(caught.value, eb.EmbridgeError)
        assert {name: (tmp_path / name).stat().st_mtime_ns for name in listing(tmp_path)} == before

    return check


@pytest.mark.parametrize(
    ("ids", "vectors", "space", "error", "message"),
    [
        (range(3), [[1, 0], [np.nan, 1], [1, 1]], "cosine", BadVectorsError, r"1 row with NaN or infinite values: ids 1\."),
        (range(3), [[1, 0], [1, 1], [1, -np.inf]], "l2", BadVectorsError, r"1 row with NaN or infinite values: ids 2\."),
        (["a", "b", "c"], [[1, 0], [0, 0], [0, 0]], "cosine", BadVectorsError, r"1 row with a zero vector, .*: ids 'b'\."),
        (range(3), [[1, 0], [1], [1, 1]], "cosine", BadVectorsError, r"ragged: vectors are 2-dimensional, but row 1 has 1 values"),
        (range(3), [[1, 0], None, [1, 1]], "cosine", BadVectorsError, r"1 row without a vector \(null\), the first at row 1"),
        (range(3), [[1, 0], [1, None], [1, 1]], "cosine", BadVectorsError, r"null values within vectors"),
        ([7, 8, 7], [[1, 0]] * 3, "cosine", BadIdsError, r"holds ids more than once: 7\."),
        ([7, None, 8], [[1, 0]] * 3, "cosine", BadIdsError, r"1 row without an id \(null\)"),
    ],
)
def test_bad_rows_leave_nothing(tmp_path, refused, ids, vectors, space, error, message):
    pq.write_table(table_of(list(ids), vectors), tmp_path / "old.parquet", row_group_size=1)
    collection = eb.open(tmp_path / "old.parquet", space=f"old:{space}")
    with refused(error, message):
        eb.convert(collection, map_between(Space("old", 2, space)), tmp_path / "out.parquet", batch_rows=1)


@pytest.mark.parametrize("groups", [1, 10])
def test_a_bad_row_in_the_middle_of_the_stream_leaves_no_output(tmp_path, rows, monkeypatch, groups):
    """Nothing at all where no row group was finished; else what was, under a name that is no Parquet file's."""
    monkeypatch.setattr(writer, "GROUP_BYTES", N // groups * 4 * Q)
    x = rows[1].copy()
    x[57, 3] = np.inf
    pq.write_table(table_of(rows[0], x, OLD), tmp_path / "old.parquet", row_group_size=10)
    with pytest.raises(BadVectorsError, match=rf"1 row with NaN or infinite values: ids {rows[0][57]}\.") as caught:
        eb.convert(eb.open(tmp_path / "old.parquet"), map_between(), tmp_path / "out.parquet", batch_rows=10)
    left = ["out.parquet.journal", "out.parquet.partial"] if groups > 1 else []
    assert listing(tmp_path) == ["old.parquet", *left]
    assert ("0 rows are done and kept: --resume --on-bad skip" in str(caught.value)) == (groups > 1)


def test_a_failure_leaves_an_output_that_was_there_as_it_was(tmp_path, refused, rows):
    x = rows[1].copy()
    x[57, 3] = np.nan
    pq.write_table(table_of(rows[0], x, OLD), tmp_path / "old.parquet", row_group_size=10)
    (tmp_path / "out.parquet").write_text("yesterday's")
    with refused(BadVectorsError, "NaN"):
        eb.convert(eb.open(tmp_path / "old.parquet"), map_between(), tmp_path / "out.parquet", overwrite=True, batch_rows=10)
    assert (tmp_path / "out.parquet").read_text() == "yesterday's"


def test_an_interrupt_leaves_no_output(source, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eb.convert(source, map_between(), tmp_path / "out.parquet", batch_rows=10, progress=interrupt)
    assert "out.parquet" not in listing(tmp_path)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Space("old", 4), r"expects 4-dimensional vectors of 'old', but .* holds 6-dimensional vectors of 'old'\."),
        (
            Space("e5", P),
            r"expects 6-dimensional vectors of 'e5', but .*old\.parquet' holds 6-dimensional vectors of 'old'\. Hint: fit a map",
        ),
    ],
)
def test_a_map_of_another_space_is_refused(source, tmp_path, refused, space, message):
    with refused(SpaceMismatchError, message):
        eb.convert(source, map_between(space), tmp_path / "out.parquet")


def test_a_reverse_map_does_not_convert_its_target(source, tmp_path, refused):
    with refused(SpaceMismatchError, "'new', but .* of 'old'"):
        eb.convert(source, map_between(NEW, OLD), tmp_path / "out.parquet")


def test_an_existing_output_is_kept_without_overwrite(source, tmp_path, refused):
    path = tmp_path / "out.parquet"
    path.write_text("precious")
    with refused(OutputExistsError, r"out\.parquet' exists already\. Hint: .*--overwrite"):
        eb.convert(source, map_between(), path)
    assert path.read_text() == "precious"
    eb.convert(source, map_between(), path, overwrite=True)
    assert len(eb.open(path)) == N


@pytest.mark.parametrize("opened", ["in/old.parquet", "in", "in/*.parquet", "in/../in/old.parquet"])
def test_a_source_is_never_its_own_output(source, tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "in" / "old.parquet").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="both input and output"):
            eb.convert(eb.open(opened), map_between(), "in/old.parquet", overwrite=overwrite)
    assert (tmp_path / "in" / "old.parquet").read_bytes() == before
    assert listing(tmp_path / "in") == ["old.parquet"]


def test_a_folder_is_no_output(source, tmp_path, refused):
    with refused(OutputExistsError, "are nested"):
        eb.convert(source, map_between(), tmp_path / "in", overwrite=True)
    with refused(MissingFileError, "nowhere"):
        eb.convert(source, map_between(), tmp_path / "nowhere" / "out.parquet")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "float64"}, ParameterError, r"dtype must be .*float32.*float16.* Got 'float64'"),
        ({"batch_rows": 0}, ParameterError, r"batch_rows must be at least 1\. Got 0"),
        ({"device": "abacus"}, DeviceError, r"Device 'abacus' is not available here\. Available: .*cpu"),
    ],
)
def test_options_out_of_range_are_refused(source, tmp_path, refused, options, error, message):
    with refused(error, message):
        eb.convert(source, map_between(), tmp_path / "out.parquet", **options)


@pytest.mark.parametrize(
    ("scale", "dtype", "metric", "message"),
    [
        (1e6, "float16", "cosine", "a translation beyond the range of float16"),
        (1e-10, "float16", "cosine", "a translation of length zero"),
        (1e38, "float32", "cosine", "a translation beyond the range of float32"),
        (0, "float32", "cosine", "a translation of length zero"),
    ],
)
def test_a_translation_that_cannot_be_written_is_refused(source, tmp_path, refused, scale, dtype, metric, message):
    with refused(BadVectorsError, rf"has \d+ rows with .*{message}"):
        eb.convert(source, map_between(target=Space("new", Q, metric), scale=scale), tmp_path / "out.parquet", dtype=dtype)


@pytest.mark.parametrize("scale", [1e12, 1e-12])
def test_large_and_small_translations_are_written(source, rows, tmp_path, scale):
    translation = map_between(target=Space("new", Q, Metric.L2), scale=scale)
    eb.convert(source, translation, tmp_path / "out.parquet")
    expected = rows[1].astype(np.float64) @ translation.coef.T.astype(np.float64) + translation.intercept
    np.testing.assert_allclose(eb.open(tmp_path / "out.parquet").read()[1], expected, rtol=1e-4, atol=1e-5 * scale)


def test_under_l2_a_translation_may_be_zero(source, tmp_path):
    eb.convert(source, map_between(target=Space("new", Q, Metric.L2), scale=0), tmp_path / "out.parquet", dtype="float16")
    assert not eb.open(tmp_path / "out.parquet").read()[1].any()


def test_a_source_damaged_in_the_middle_leaves_nothing(tmp_path, refused, rows):
    path = tmp_path / "old.parquet"
    pq.write_table(table_of(rows[0], rows[1], OLD), path, row_group_size=20, compression="zstd")
    content = bytearray(path.read_bytes())
    with pq.ParquetFile(path) as file:
        start = file.metadata.row_group(3).column(1).data_page_offset
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    with refused(UnreadableFileError, r"old\.parquet' cannot be read as Parquet"):
        eb.convert(eb.open(path), map_between(), tmp_path / "out.parquet", batch_rows=20)


def test_a_column_that_the_output_requires_is_reported(tmp_path, refused, rows):
    with refused(CollectionError, "vector"):
        eb.convert(eb.MemoryCollection(*rows, OLD, {"vector": list(range(N))}), map_between(), tmp_path / "out.parquet")


def test_killed_at_any_moment_there_is_no_output(source, tmp_path):
    map_between().save(tmp_path / "map.safetensors")
    code = (
        "import sys, time, embridge as eb\n"
        "def wait(done, total):\n"
        "    print(done, flush=True)\n"
        "    time.sleep(60 if done >= 50 else 0)\n"
        "eb.convert(eb.open(sys.argv[1]), eb.LinearMap.load(sys.argv[2]), sys.argv[3], batch_rows=10, progress=wait)\n"
    )
    out = tmp_path / "out" / "out.parquet"
    out.parent.mkdir()
    command = [sys.executable, "-c", code, source.path, str(tmp_path / "map.safetensors"), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) >= 50:
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()  # and what is there instead is nothing that a reader of the folder takes for data
    with pytest.raises(CollectionError, match="holds no Parquet files"):
        eb.open(out.parent)
    eb.convert(source, eb.LinearMap.load(tmp_path / "map.safetensors"), out, resume=True)
    eb.convert(source, eb.LinearMap.load(tmp_path / "map.safetensors"), tmp_path / "undisturbed.parquet")
    assert out.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_a_link_to_the_source_is_the_source(source, tmp_path):
    (tmp_path / "link.parquet").symlink_to(source.path)
    with pytest.raises(OutputExistsError, match="both input and output"):
        eb.convert(source, map_between(), tmp_path / "link.parquet", overwrite=True)
