"""Confidence in conversions: the columns of predicted errors, what `verify` finds in them, and the command line."""

import contextlib
import dataclasses
import json

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.conversion.engine import Engine, TranslateOptions
from embridge.errors import (
    CollectionError,
    InterruptedOutputError,
    MapError,
    OutputExistsError,
    ParameterError,
    VerificationError,
)
from embridge.stores.faiss.file import IndexFile, write_index_file
from embridge.stores.parquet import writer
from embridge.types import Metric, Space
from tests.maps.support import NAMES, OLD, TARGETS, P, Q, calibrated, planted

COLUMNS = ["predicted_error", "error_bound"]


# Conversions


@pytest.fixture
def case(tmp_path, monkeypatch):
    """A source of 300 rows with payload, in row groups of 16 of the output, and a calibrated map."""
    monkeypatch.setattr(writer, "GROUP_BYTES", 16 * 4 * Q)
    rows = planted(300, 4, start=30_000)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.x.ravel()), P)
    table = pa.table({"id": rows.ids.tolist(), "vector": column, "word": [f"w{i % 5}" for i in range(300)]})
    table = table.replace_schema_metadata({"embridge.space": json.dumps(OLD.to_dict())})
    pq.write_table(table, tmp_path / "old.parquet", row_group_size=70)
    calibrated().save(tmp_path / "map.safetensors")
    return tmp_path, rows.x, table


def errors_of(path):
    table = pq.read_table(path)
    assert table.schema.field("predicted_error").type == table.schema.field("error_bound").type == pa.float32()
    return np.stack([table.column(name).to_numpy() for name in COLUMNS])


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}, {"compact": True}], ids=["plain", "float16", "compact"])
def test_columns_are_those_of_apply_and_predict_at_any_batch_size(case, options):
    folder, x, table = case
    translation = calibrated()
    found = []
    for size in (7, 64, None):
        out = folder / f"new-{size}.parquet"
        eb.convert(eb.open(folder / "old.parquet"), translation, out, confidence=0.8, batch_rows=size, **options)
        found.append(errors_of(out))
        known = translation.confidence
        np.testing.assert_allclose(found[-1], np.stack([known.predict(x), known.bound(x, 0.8)]), rtol=1e-4)
        made = pq.read_table(out)
        assert made.column_names == ["id", "vector", "word", *COLUMNS]
        assert made.select(["id", "word"]).to_pydict() == table.select(["id", "word"]).to_pydict()
        eb.verify(out, source=eb.open(folder / "old.parquet"), translation=translation)
        np.testing.assert_allclose(eb.open(out).read()[1], translation.apply(x), rtol=1e-2 if options.get("dtype") else 1e-4)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_lengths_are_taken_before_they_are_made_one(case, target):
    folder, x, _ = case
    translation = calibrated(target)
    eb.convert(eb.open(folder / "old.parquet"), translation, folder / "new.parquet", confidence=0.9)
    known = translation.confidence
    np.testing.assert_allclose(errors_of(folder / "new.parquet"), [known.predict(x), known.bound(x)], rtol=1e-4)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_shorter_products_are_verified_with_their_tolerance(case, precision):
    folder, x, _ = case
    eb.convert(eb.open(folder / "old.parquet"), calibrated(), folder / "new.parquet", confidence=0.9, precision=precision)
    eb.verify(folder / "new.parquet", source=eb.open(folder / "old.parquet"), translation=calibrated(), precision=precision)
    np.testing.assert_allclose(errors_of(folder / "new.parquet")[0], calibrated().confidence.predict(x), rtol=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_predicts_the_errors_that_the_cpu_predicts():
    translation, x, found = calibrated(), planted(5000, 6).x, []
    for device in ("cuda", "cpu"):
        out, errors = np.empty((5000, Q), np.float32), np.empty((2, 5000), np.float32)
        Engine(translation, torch.device(device), 512, TranslateOptions(confidence=0.9)).run([x[:7], x[7:]], out, errors)
        found.append(errors)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_an_interrupted_conversion_ends_in_the_same_bytes(case):
    folder, _, _ = case
    source, out = eb.open(folder / "old.parquet"), folder / "new.parquet"
    eb.convert(source, calibrated(), folder / "once.parquet", confidence=0.9)

    def stop(done, _):
        if done >= 150:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        eb.convert(source, calibrated(), out, confidence=0.9, progress=stop)
    assert not out.exists()
    for other in ({}, {"confidence": 0.8}):
        with pytest.raises(InterruptedOutputError, match="confidence differ"):
            eb.convert(source, calibrated(), out, resume=True, **other)
    with pytest.raises(InterruptedOutputError, match="confidence differ"):  # the same map, calibrated otherwise
        eb.convert(source, calibrated(seed=3), out, resume=True, confidence=0.9)
    seen = []
    eb.convert(source, calibrated(), out, confidence=0.9, resume=True, progress=lambda done, _: seen.append(done))
    assert seen[0] > 150
    assert out.read_bytes() == (folder / "once.parquet").read_bytes()
    eb.convert(source, calibrated(), out, confidence=0.9, resume=True)  # there already
    for other in ({}, {"confidence": 0.8}):
        with pytest.raises(OutputExistsError):
            eb.convert(source, calibrated(), out, resume=True, **other)


def test_a_folder_is_converted_file_by_file(case):
    folder, x, table = case
    (folder / "shards").mkdir()
    for start, name in ((0, "a.parquet"), (100, "b.parquet")):
        pq.write_table(table.slice(start, 100), folder / "shards" / name)
    eb.convert(eb.open(folder / "shards"), calibrated(), folder / "new", confidence=0.9)
    known = calibrated().confidence
    found = np.concatenate([errors_of(folder / "new" / name) for name in ("a.parquet", "b.parquet")], axis=1)
    np.testing.assert_allclose(found, [known.predict(x[:200]), known.bound(x[:200])], rtol=1e-4)
    eb.verify(folder / "new", source=eb.open(folder / "shards"), translation=calibrated())


def test_rows_that_are_left_out_have_no_errors(case):
    folder, x, table = case
    holes = x.copy()
    holes[[5, 77]] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(holes.ravel()), P)
    pq.write_table(table.set_column(1, "vector", column), folder / "holes.parquet")
    eb.convert(eb.open(folder / "holes.parquet"), calibrated(), folder / "new.parquet", confidence=0.9, on_bad="skip")
    kept = np.delete(x, [5, 77], axis=0)
    np.testing.assert_allclose(errors_of(folder / "new.parquet")[0], calibrated().confidence.predict(kept), rtol=1e-4)
    eb.verify(folder / "new.parquet", source=eb.open(folder / "holes.parquet"), translation=calibrated())


def test_an_index_is_a_source_too(tmp_path):
    rows = planted(100, 4).x
    space, target = Space("old", P, Metric.L2), Space("new", Q, Metric.L2)
    index = faiss.IndexFlatL2(P)
    index.add(rows)
    write_index_file(str(tmp_path / "old.faiss"), IndexFile(index, space, None))
    known = calibrated(target)
    translation = dataclasses.replace(known, source=space)
    eb.convert(eb.open(tmp_path / "old.faiss"), translation, tmp_path / "new.parquet", confidence=0.9)
    np.testing.assert_allclose(errors_of(tmp_path / "new.parquet")[0], known.confidence.predict(rows), rtol=1e-4)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_of_that_name_is_refused(case, column):
    folder, _, table = case
    pq.write_table(
        table.rename_columns(["id", "vector", column]).replace_schema_metadata(table.schema.metadata), folder / "taken.parquet"
    )
    with pytest.raises(CollectionError, match=f"taken.parquet' already has a column '{column}', .* Hint: rename it"):
        eb.convert(eb.open(folder / "taken.parquet"), calibrated(), folder / "new.parquet", confidence=0.9)
    eb.convert(eb.open(folder / "taken.parquet"), calibrated(), folder / "new.parquet")  # else it passes like any other
    assert eb.open(folder / "new.parquet").confidence is None


@pytest.mark.parametrize(
    ("bare", "level", "error", "message"),
    [
        (True, 0.9, MapError, r"no confidence.* Hint: fit it with"),
        (False, 1.5, ParameterError, "at most 0.995"),
        (False, 0, ParameterError, "Got 0"),
    ],
)
def test_errors_that_cannot_be_predicted_are_refused_before_anything_is_written(case, bare, level, error, message):
    folder, _, _ = case
    translation = dataclasses.replace(calibrated(), confidence=None) if bare else calibrated()
    before = sorted(folder.iterdir())
    with pytest.raises(error, match=message):
        eb.convert(eb.open(folder / "old.parquet"), translation, folder / "new.parquet", confidence=level)
    assert sorted(folder.iterdir()) == before


def tampered(path, change):
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def with_column(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values, pa.float32()))


@pytest.mark.parametrize(
    ("change", "with_map", "message"),
    [
        (with_column("predicted_error", np.full(300, 0.5)), True, "predicted errors in row 0 are not those"),
        (with_column("error_bound", np.full(300, 0.5)), True, "predicted errors in row 0 are not those"),
        (with_column("error_bound", [0.1] * 299 + [-1]), False, "row 299 are not finite"),
        (with_column("predicted_error", [0.1] * 7 + [np.nan] * 293), False, "row 7 are not finite"),
        (with_column("predicted_error", [None] * 300), False, "row 0 are not finite"),
        (lambda table: table.drop_columns(["error_bound"]), False, "lacks the column 'error_bound'"),
    ],
)
def test_verify_finds_other_errors(case, change, with_map, message):
    folder, _, _ = case
    source, out = eb.open(folder / "old.parquet"), folder / "new.parquet"
    eb.convert(source, calibrated(), out, confidence=0.9)
    tampered(out, change)
    with pytest.raises(VerificationError, match=message):
        eb.verify(out, source=source, translation=calibrated()) if with_map else eb.verify(out)


def test_verify_knows_whose_errors_they_are(case):
    folder, _, _ = case
    source, out = eb.open(folder / "old.parquet"), folder / "new.parquet"
    eb.convert(source, calibrated(), out, confidence=0.9)
    with pytest.raises(VerificationError, match="its errors were predicted by"):
        eb.verify(out, source=source, translation=calibrated(seed=3))
    plain = dataclasses.replace(calibrated(), confidence=None)
    assert eb.verify(out, source=source, translation=plain).compared == 300  # vectors alone


def test_a_conversion_that_predicted_other_errors_is_found_at_once(case, monkeypatch):
    folder, _, _ = case
    monkeypatch.setattr(Engine, "run", lambda self, *a, run=Engine.run: (run(self, *a), a[2].__imul__(1.5))[0])
    with pytest.raises(VerificationError, match="predicted errors"):
        eb.convert(eb.open(folder / "old.parquet"), calibrated(), folder / "new.parquet", confidence=0.9)
    assert not (folder / "new.parquet").exists()


# On the command line


def run(*arguments):
    done = CliRunner().invoke(main, [*map(str, arguments), "--no-catalog"])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("flag", "level"),
    [(["--confidence"], 0.9), (["--confidence", "0.8"], 0.8), (["--confidence", "--json"], 0.9), (["--json"], None)],
)
def test_the_flag_may_stand_alone(case, flag, level):
    folder, x, _ = case
    code, out, err = run("convert", folder / "old.parquet", folder / "map.safetensors", folder / "new.parquet", *flag)
    assert code == 0, err
    if "--json" in flag:
        assert json.loads(out)["confidence"] == level
    names = pq.read_schema(folder / "new.parquet").names
    assert names == ["id", "vector", "word", *(COLUMNS if level else [])]
    if level:
        known = calibrated().confidence
        np.testing.assert_allclose(errors_of(folder / "new.parquet")[1], known.bound(x, level), rtol=1e-4)
    code, out, err = run("verify", folder / "new.parquet", "--source", folder / "old.parquet", "--map", folder / "map.safetensors")
    assert (code, err) == (0, "")


def test_a_map_without_confidence_is_reported_on_the_command_line(case):
    folder, _, _ = case
    dataclasses.replace(calibrated(), confidence=None).save(folder / "bare.safetensors")
    code, _, err = run("convert", folder / "old.parquet", folder / "bare.safetensors", folder / "new.parquet", "--confidence")
    assert code == 1
    assert "Error: The map has no confidence, so it cannot predict errors. Hint: fit it with more held-out rows" in err
    assert not (folder / "new.parquet").exists()


def test_fit_calibrates_on_half_of_what_it_holds_out(tmp_path):
    old, new = eb.sample_path("minilm"), eb.sample_path("mpnet")
    code, out, err = run("fit", old, new, "-o", tmp_path / "map.safetensors", "--method", "rotation", "--json")
    assert code == 0, err
    reported, translation = json.loads(out), eb.LinearMap.load(tmp_path / "map.safetensors")
    assert reported["calibrated"] == translation.record.calibrated == translation.confidence.rows == reported["held_out"] // 2
    assert translation.fingerprint == reported["fingerprint"]
    anchors = eb.match(eb.open(old), eb.open(new))
    _, held_out = anchors.split(0.1)
    assert set(translation.confidence.hashes) < set(held_out.hashes())
    code, out, err = run("evaluate", tmp_path / "map.safetensors", old, new, "--json")
    assert code == 0, err
    found = json.loads(out)["confidence"]
    assert found["rows"] == reported["held_out"] - reported["calibrated"]
    assert found["worst_tenth"] > 1
    code, out, _ = run("evaluate", tmp_path / "map.safetensors", old, new)
    assert "confidence: the 10 % of rows with the highest predicted error have" in out


def test_fit_says_where_too_few_rows_are_held_out(tmp_path):
    old, new = eb.sample_path("minilm"), eb.sample_path("mpnet")
    arguments = ("fit", old, new, "-o", tmp_path / "map.safetensors", "--method", "rotation", "--test-size", "0.02")
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "no confidence (it needs 100 rows held out)" in out
    assert eb.LinearMap.load(tmp_path / "map.safetensors").confidence is None
    assert json.loads(run(*arguments, "--overwrite", "--json")[1])["calibrated"] == 0
