"""Confidence: what it predicts_errors, that its bound holds, that its file is the map's, and the columns of a conversion."""

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
from safetensors.numpy import load_file, save_file

import embridge as eb
from embridge.anchors import Anchors
from embridge.cli.main import main
from embridge.conversion.engine import Engine
from embridge.errors import (
    CollectionError,
    InterruptedOutputError,
    MapError,
    OutputExistsError,
    ParameterError,
    SpaceMismatchError,
    TooFewAnchorsError,
    UnreadableFileError,
    VerificationError,
)
from embridge.maps.confidence import translation_errors
from embridge.records import AnchorRecord
from embridge.stores.faiss.file import IndexFile, write_index_file
from embridge.stores.parquet import writer
from embridge.translators.calibration import LEAST_ROWS, halves
from embridge.types import Metric, Space

P, Q = 6, 9
OLD, NEW = Space("old", P), Space("new", Q)
COLUMNS = ["predicted_error", "error_bound"]


def planted(n, seed=0, target=NEW, start=0, noise=0.02):
    """Rows whose translation is the noisier the farther they lie from the mean, by a map that is the same for every seed."""
    weight = np.random.default_rng(99).normal(size=(P, target.dim))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, P)) * np.exp(rng.normal(size=(n, 1)) * 0.6) + 0.3
    y = x @ weight + 4
    y += noise * (x**2).sum(1, keepdims=True) * rng.normal(size=(n, target.dim))
    y = y / np.linalg.norm(y, axis=1, keepdims=True) if target.normalized else y
    ids = np.array([f"r{i}" for i in range(start, start + n)], object)
    return Anchors(ids, x.astype(np.float32), y.astype(np.float32), OLD, target, AnchorRecord("a", "b", n, n, 0, 0.0, 0))


def calibrated(target=NEW, n=400, seed=0):
    train = planted(1000, 1, target)
    return eb.calibrate(eb.fit(train, "ridge", alpha=0.01), train, planted(n, 2, target, start=5000), seed=seed)


TARGETS = [NEW, dataclasses.replace(NEW, normalized=True), Space("new", Q, Metric.L2), Space("new", Q, Metric.DOT)]
NAMES = ["cosine", "unit", "l2", "dot"]


# What it computes


def test_leverage_is_that_of_the_formula():
    train = planted(300, 1)
    known = eb.calibrate(eb.fit(train, "ridge", alpha=0.01), train, planted(100, 2, start=5000)).confidence
    x = train.x.astype(np.float64)
    centred = x - x.mean(0)
    sxx = centred.T @ centred
    inverse = np.linalg.inv(sxx / 300 + 0.1 * np.trace(sxx) / 300 / P * np.eye(P))
    rows = planted(50, 3).x
    expected = [1 / 300 + (row - x.mean(0)) @ inverse @ (row - x.mean(0)) / 300 for row in rows.astype(np.float64)]
    np.testing.assert_allclose(known.leverage(rows), expected, rtol=1e-4)


def test_moments_and_folds_calibrate_as_their_anchors_do():
    train, rows = planted(500, 1), planted(200, 2, start=5000)
    translation = eb.fit(train, "ridge", alpha=0.01)
    one, two, three = (eb.calibrate(translation, given, rows).confidence for given in (train, train.moments(), train.folds()))
    for other in (two, three):
        np.testing.assert_allclose(other.predict(rows.x), one.predict(rows.x), rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_errors_are_what_they_are_said_to_be(target):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, Q))
    plain = [1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a, b, strict=True)]
    distances = np.linalg.norm(a - b, axis=1)
    expected = distances if target.metric in (Metric.L2, Metric.DOT) and not target.normalized else plain
    np.testing.assert_allclose(translation_errors(a, b, target), expected, atol=1e-12)
    np.testing.assert_array_equal(translation_errors(a, a, target), 0)


def test_nearly_equal_directions_keep_their_digits():
    a = np.array([[1.0, 0.0]])
    assert translation_errors(a, np.array([[1.0, 1e-9]]), TARGETS[0])[0] == pytest.approx(0.5e-18, rel=1e-6)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_rows_foretold_worst_are_worse_on_planted_data(target):
    translation, fresh = calibrated(target), planted(3000, 7, target, start=10_000)
    errors = translation_errors(translation.apply(fresh.x), fresh.y, target)
    predicted = translation.confidence.predict(fresh.x)
    assert predicted.dtype == np.float32
    found = translation.confidence.check(fresh.x, errors)
    assert found.worst_tenth_ci[0] > 1.5
    assert found.worst_tenth <= found.oracle_tenth
    assert found.rows == 3000
    assert 0.5 < predicted.mean() / errors.mean() < 2
    assert "no better than chance" not in str(found)


def test_errors_that_nothing_foretells_are_told_as_such():
    translation, rng = calibrated(), np.random.default_rng(0)
    x = planted(400, 3).x
    found = translation.confidence.check(x, rng.uniform(size=400))
    assert found.worst_tenth == pytest.approx(1, abs=0.3)
    assert "no better than chance" in str(found)


def binomial_limits(n, p):
    """Four standard errors."""
    return n * p - 4 * (n * p * (1 - p)) ** 0.5, n * p + 4 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("coverage", [0.5, 0.9])
@pytest.mark.parametrize("target", TARGETS[1:3], ids=NAMES[1:3])
def test_the_bound_holds_as_often_as_it_says(target, coverage):
    """One fresh row for each of 600 calibrations, so that the trials are independent."""
    train = planted(1000, 1, target)
    translation = eb.fit(train, "ridge", alpha=0.01)
    moments, held, m = train.moments(), 0, 0
    pool = planted(600 * 81, 11, target, start=5000)
    for trial in range(600):
        rows = pool.at(np.arange(trial * 81, trial * 81 + 81))
        known = eb.calibrate(translation, moments, rows.at(np.arange(80)), seed=trial).confidence
        m = len(known.scores)
        last = rows.at(np.array([80]))
        held += int((translation_errors(translation.apply(last.x), last.y, target) <= known.bound(last.x, coverage)).all())
    low, _ = binomial_limits(600, coverage)
    _, high = binomial_limits(600, np.ceil((m + 1) * coverage) / (m + 1))  # what split conformal prediction gives exactly
    assert low <= held <= high


def test_weights_and_scores_are_of_different_rows():
    ids = np.array([f"r{i}" for i in range(101)], object)
    first, second = halves(ids, 0)
    assert (len(first), len(second)) == (50, 51)
    assert not set(first) & set(second)
    assert sorted([*first, *second]) == list(range(101))
    again = np.random.default_rng(0).permutation(101)
    assert {ids[i] for i in first} == {ids[again][i] for i in halves(ids[again], 0)[0]}  # by the id alone
    assert set(halves(ids, 1)[0]) != set(first)


def test_rows_that_give_scores_have_no_part_in_the_weights():
    train, rows = planted(500, 1), planted(200, 2, start=5000)
    translation = eb.fit(train, "ridge", alpha=0.01)
    _, second = halves(rows.ids, 0)
    changed = rows.y.copy()
    changed[second] = np.random.default_rng(0).normal(size=(len(second), Q))
    one, other = (eb.calibrate(translation, train, r).confidence for r in (rows, dataclasses.replace(rows, y=changed)))
    np.testing.assert_array_equal(one.weights, other.weights)
    assert not np.array_equal(one.scores, other.scores)


def test_the_quantile_is_that_of_the_finite_sample():
    known = dataclasses.replace(calibrated().confidence, scores=np.arange(1, 10.0))
    assert [known.quantile(c) for c in (0.9, 0.85, 0.8, 0.81, 0.1, 0.05)] == [9, 9, 8, 9, 1, 1]


@pytest.mark.parametrize("coverage", [0, 1, -0.1, 1.5, float("nan"), 0.999])
def test_a_coverage_out_of_reach_is_refused(coverage):
    with pytest.raises(ParameterError, match=r"coverage .* must be above 0 and at most 0\.995.*Got"):
        calibrated().confidence.bound(planted(3).x, coverage)


def test_only_rows_that_the_map_does_not_know_calibrate_it():
    train, fresh = planted(1000, 1), planted(LEAST_ROWS, 2, start=5000)
    translation = eb.fit(train, "ridge", alpha=0.01)
    mixed = Anchors(
        np.concatenate([train.ids, fresh.ids]), np.concatenate([train.x, fresh.x]), np.concatenate([train.y, fresh.y]), OLD, NEW,
        train.record,
    )  # fmt: skip
    known = eb.calibrate(translation, train.moments(), mixed).confidence
    assert known.hashes.tolist() == sorted(fresh.hashes().tolist())
    assert eb.calibrate(translation, train, mixed).record.calibrated == LEAST_ROWS
    unknowing = dataclasses.replace(translation, anchor_hashes=np.empty(0, np.uint64))  # fitted from moments
    assert eb.calibrate(unknowing, train, mixed).confidence.rows == LEAST_ROWS
    with pytest.raises(TooFewAnchorsError, match=r"at least 50 rows .* Got 49 of 1,049 instead\. Hint: hold out more"):
        eb.calibrate(translation, train, mixed.at(np.arange(1049)))


def test_other_spaces_do_not_calibrate():
    train, rows = planted(500, 1), planted(200, 2, start=5000)
    translation = eb.fit(train, "ridge", alpha=0.01)
    for given, held in ((train.reversed(), rows), (train, rows.reversed())):
        with pytest.raises(SpaceMismatchError, match="the calibration's data"):
            eb.calibrate(translation, given, held)


def test_a_length_that_does_not_vary_carries_no_weight():
    """After a rotation of unit vectors it varies by rounding alone."""
    unit = dataclasses.replace(OLD, normalized=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, P))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = x + 0.1 * rng.normal(size=x.shape)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    record = AnchorRecord("a", "b", 600, 600, 0, 0.0, 0)
    rows = Anchors(np.arange(600), x.astype(np.float32), y.astype(np.float32), unit, dataclasses.replace(unit, name="new"), record)
    train, rest = rows.at(np.arange(400)), rows.at(np.arange(400, 600))
    assert eb.calibrate(eb.fit(train, "rotation"), train, rest).confidence.weights[2] == 0


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_exact_maps_and_absurd_rows_have_finite_errors(target):
    train = planted(200, 1, target, noise=0)
    translation = eb.calibrate(eb.fit(train, "ridge", alpha=0.0), train, planted(100, 2, target, start=5000, noise=0))
    rows = np.array([np.zeros(P), np.full(P, 1e30), np.full(P, -1e-30), train.x.mean(0)], np.float32)
    for values in (translation.confidence.predict(rows), translation.confidence.bound(rows)):
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert target.metric in (Metric.L2, Metric.DOT) or (values <= 2).all()


def test_a_wrong_width_is_told():
    with pytest.raises(SpaceMismatchError, match=r"The confidence expects 6-dimensional vectors\. Got 9"):
        calibrated().confidence.predict(np.zeros((2, Q), np.float32))


# With its map


def test_calibrating_leaves_the_map_as_it_is():
    train = planted(500, 1)
    before = eb.fit(train, "ridge", alpha=0.01)
    after = eb.calibrate(before, train, planted(200, 2, start=5000))
    assert before.confidence is None
    assert after.fingerprint == before.fingerprint
    assert (before.record.calibrated, after.record.calibrated) == (0, 200)
    np.testing.assert_array_equal(after.coef, before.coef)
    assert after.confidence.coef is after.coef  # held once


def test_a_map_comes_back_from_its_file_with_its_confidence(tmp_path):
    translation, rows = calibrated(), planted(50, 5).x
    translation.save(tmp_path / "map.safetensors")
    found = eb.LinearMap.load(tmp_path / "map.safetensors")
    assert found.confidence.fingerprint == translation.confidence.fingerprint
    assert found.record == translation.record
    np.testing.assert_array_equal(found.confidence.predict(rows), translation.confidence.predict(rows))
    np.testing.assert_array_equal(found.confidence.bound(rows, 0.8), translation.confidence.bound(rows, 0.8))


def test_a_map_without_one_is_written_and_read_as_before(tmp_path):
    translation = eb.fit(planted(100, 1), "ridge", alpha=0.01)
    translation.save(tmp_path / "map.safetensors")
    assert set(load_file(tmp_path / "map.safetensors")) == {"coef", "intercept", "anchor_hashes"}
    assert eb.LinearMap.load(tmp_path / "map.safetensors").confidence is None


def resaved(path, change):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "checksum"}
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda t, m: t["confidence.scores"].__setitem__(0, 7.0),
        lambda t, m: t["confidence.factor"].__setitem__(0, np.nan),
        lambda t, m: t.pop("confidence.weights"),
        lambda t, m: t.update({"confidence.mean": np.zeros(3, np.float32)}),
        lambda t, m: m.update(confidence="nothing"),
        lambda t, m: m.update(confidence="[]"),
        lambda t, m: m.update(confidence=json.dumps({"kind": "manhattan", "anchors": 3, "fingerprint": ""})),
    ],
)
def test_a_confidence_that_was_damaged_is_refused(tmp_path, change):
    calibrated().save(tmp_path / "map.safetensors")
    resaved(tmp_path / "map.safetensors", change)
    with pytest.raises(UnreadableFileError, match=r"map\.safetensors"):
        eb.LinearMap.load(tmp_path / "map.safetensors")


def test_chains_and_inverses_have_none():
    translation = calibrated()
    assert translation.inverse().confidence is None
    assert translation.then(translation.inverse()).confidence is None


def test_the_confidence_of_another_map_is_refused():
    translation = calibrated()
    with pytest.raises(MapError, match="of a map with other coefficients"):
        dataclasses.replace(translation, coef=translation.coef * 2)


def test_an_evaluation_says_what_it_is_worth_on_rows_it_has_not_seen():
    translation = calibrated(n=400)
    both = [planted(400, 2, start=5000), planted(300, 8, start=20_000)]
    whole = dataclasses.replace(both[1], **{n: np.concatenate([getattr(b, n) for b in both]) for n in ("ids", "x", "y")})
    found = eb.evaluate(translation, whole, k=5)
    assert (found.corpus, found.confidence.rows) == (700, 300)
    fresh = both[1]
    errors = translation_errors(translation.apply(fresh.x), fresh.y, NEW)
    worst = np.argsort(-translation.confidence.predict(fresh.x), kind="stable")[:30]
    assert found.confidence.worst_tenth == pytest.approx(errors[worst].mean() / errors.mean())
    assert found.confidence.coverage == pytest.approx((errors <= translation.confidence.bound(fresh.x)).mean())
    assert found.to_dict()["confidence"]["level"] == 0.9
    assert eb.evaluate(translation, both[0], k=5).confidence is None  # it has seen all of them
    assert eb.evaluate(dataclasses.replace(translation, confidence=None), whole, k=5).confidence is None


# Conversions


@pytest.fixture
def job(tmp_path, monkeypatch):
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
def test_columns_are_those_of_apply_and_predict_at_any_batch_size(job, options):
    folder, x, table = job
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
def test_lengths_are_taken_before_they_are_made_one(job, target):
    folder, x, _ = job
    translation = calibrated(target)
    eb.convert(eb.open(folder / "old.parquet"), translation, folder / "new.parquet", confidence=0.9)
    known = translation.confidence
    np.testing.assert_allclose(errors_of(folder / "new.parquet"), [known.predict(x), known.bound(x)], rtol=1e-4)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_shorter_products_are_verified_with_their_tolerance(job, precision):
    folder, x, _ = job
    eb.convert(eb.open(folder / "old.parquet"), calibrated(), folder / "new.parquet", confidence=0.9, precision=precision)
    eb.verify(folder / "new.parquet", source=eb.open(folder / "old.parquet"), translation=calibrated(), precision=precision)
    np.testing.assert_allclose(errors_of(folder / "new.parquet")[0], calibrated().confidence.predict(x), rtol=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_foretells_what_the_cpu_does():
    translation, x, found = calibrated(), planted(5000, 6).x, []
    for device in ("cuda", "cpu"):
        out, errors = np.empty((5000, Q), np.float32), np.empty((2, 5000), np.float32)
        Engine(translation, torch.device(device), 512, coverage=0.9).run([x[:7], x[7:]], out, errors)
        found.append(errors)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_an_interrupted_conversion_ends_in_the_same_bytes(job):
    folder, _, _ = job
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


def test_a_folder_is_converted_file_by_file(job):
    folder, x, table = job
    (folder / "shards").mkdir()
    for start, name in ((0, "a.parquet"), (100, "b.parquet")):
        pq.write_table(table.slice(start, 100), folder / "shards" / name)
    eb.convert(eb.open(folder / "shards"), calibrated(), folder / "new", confidence=0.9)
    known = calibrated().confidence
    found = np.concatenate([errors_of(folder / "new" / name) for name in ("a.parquet", "b.parquet")], axis=1)
    np.testing.assert_allclose(found, [known.predict(x[:200]), known.bound(x[:200])], rtol=1e-4)
    eb.verify(folder / "new", source=eb.open(folder / "shards"), translation=calibrated())


def test_rows_that_are_left_out_have_no_errors(job):
    folder, x, table = job
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
def test_a_column_of_that_name_is_in_the_way(job, column):
    folder, _, table = job
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
def test_what_cannot_be_foretold_is_refused_before_anything_is_written(job, bare, level, error, message):
    folder, _, _ = job
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
def test_verify_finds_other_errors(job, change, with_map, message):
    folder, _, _ = job
    source, out = eb.open(folder / "old.parquet"), folder / "new.parquet"
    eb.convert(source, calibrated(), out, confidence=0.9)
    tampered(out, change)
    with pytest.raises(VerificationError, match=message):
        eb.verify(out, source=source, translation=calibrated()) if with_map else eb.verify(out)


def test_verify_knows_whose_errors_they_are(job):
    folder, _, _ = job
    source, out = eb.open(folder / "old.parquet"), folder / "new.parquet"
    eb.convert(source, calibrated(), out, confidence=0.9)
    with pytest.raises(VerificationError, match="its errors were predicted by"):
        eb.verify(out, source=source, translation=calibrated(seed=3))
    plain = dataclasses.replace(calibrated(), confidence=None)
    assert eb.verify(out, source=source, translation=plain).compared == 300  # vectors alone


def test_a_conversion_that_foretold_something_else_is_found_at_once(job, monkeypatch):
    folder, _, _ = job
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
def test_the_flag_may_stand_alone(job, flag, level):
    folder, x, _ = job
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


def test_a_map_without_confidence_is_told_on_the_command_line(job):
    folder, _, _ = job
    dataclasses.replace(calibrated(), confidence=None).save(folder / "bare.safetensors")
    code, _, err = run("convert", folder / "old.parquet", folder / "bare.safetensors", folder / "new.parquet", "--confidence")
    assert code == 1
    assert "Error: The map has no confidence, so it cannot predict errors. Hint: fit it with more held-out rows" in err
    assert not (folder / "new.parquet").exists()


def test_fit_calibrates_on_half_of_what_it_holds_out(tmp_path):
    old, new = eb.sample_path("minilm"), eb.sample_path("mpnet")
    code, out, err = run("fit", old, new, "-o", tmp_path / "map.safetensors", "--method", "rotation", "--json")
    assert code == 0, err
    told, translation = json.loads(out), eb.LinearMap.load(tmp_path / "map.safetensors")
    assert told["calibrated"] == translation.record.calibrated == translation.confidence.rows == told["held_out"] // 2
    assert translation.fingerprint == told["fingerprint"]
    anchors = eb.match(eb.open(old), eb.open(new))
    _, held_out = anchors.split(0.1)
    assert set(translation.confidence.hashes) < set(held_out.hashes())
    code, out, err = run("evaluate", tmp_path / "map.safetensors", old, new, "--json")
    assert code == 0, err
    found = json.loads(out)["confidence"]
    assert found["rows"] == told["held_out"] - told["calibrated"]
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
