"""Rows of any length through a map that was fitted on vectors of unit length: under cosine only their direction counts."""

import numpy as np
import pytest

import embridge as eb
from embridge.anchors import Anchors
from embridge.arrays import unit
from embridge.records import AnchorRecord
from tests.support import make_space, table_of, write

UNIT = make_space("old", 8, normalized=True)


def maps(source=UNIT):
    rng = np.random.default_rng(0)
    affine = eb.LinearMap(rng.normal(size=(12, 8)), rng.normal(size=12), source, eb.Space("new", 12))
    return {"affine": affine, "kernel": eb.KernelMap(affine, unit(rng.normal(size=(5, 8))), rng.normal(size=(5, 12)), 1.0)}


def rows_of_other_lengths():
    rng = np.random.default_rng(1)
    rows = unit(rng.normal(size=(3000, 8)))
    rows[::3] *= rng.uniform(0.01, 100, (1000, 1)).astype(np.float32)
    rows[5], rows[8] = rows[5] * 1e-20, rows[8] * 1e20  # their squares leave the range of float32
    return rows


@pytest.mark.parametrize("kind", ["affine", "kernel"])
def test_a_row_is_translated_as_the_row_of_unit_length_in_its_direction(kind):
    translation, rows = maps()[kind], rows_of_other_lengths()
    found = translation.apply(rows)
    np.testing.assert_allclose(found, translation.apply(unit(rows)), atol=1e-5)
    np.testing.assert_allclose(translation.apply(rows[8]), found[8], atol=1e-5)
    np.testing.assert_array_equal(translation.apply(np.zeros((1, 8), np.float32))[0].shape, (12,))


@pytest.mark.parametrize("kind", ["affine", "kernel"])
def test_rows_of_unit_length_are_translated_as_they_are(kind):
    rng = np.random.default_rng(2)
    rows = unit(rng.normal(size=(100, 8))).astype(np.float16)
    plain = maps(make_space("old", 8))[kind]
    np.testing.assert_array_equal(maps()[kind].apply(rows), plain.apply(rows))


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("kind", ["affine", "kernel"])
def test_lengths_count_under_other_metrics_and_where_the_map_was_fitted_on_other_lengths(kind, metric):
    rows = rows_of_other_lengths()[:4]
    plain = maps(make_space("old", 8))[kind].apply(rows)
    np.testing.assert_array_equal(maps(make_space("old", 8, metric=metric, normalized=True))[kind].apply(rows), plain)
    assert np.abs(plain[0] - maps()[kind].apply(rows)[0]).max() > 0.01


@pytest.mark.parametrize("kind", ["affine", "kernel"])
def test_a_collection_of_other_lengths_is_converted_as_its_directions(kind, tmp_path):
    rows = rows_of_other_lengths()
    rows[5], rows[8] = unit(rows[[5, 8]])
    translation = maps()[kind]
    write(tmp_path / "old.parquet", table_of(np.arange(len(rows)), rows, space=make_space("old", 8)))
    eb.convert(eb.open(str(tmp_path / "old.parquet")), translation, str(tmp_path / "new.parquet"))
    found = eb.open(str(tmp_path / "new.parquet")).read()[1]
    np.testing.assert_allclose(found, translation.apply(unit(rows)), atol=1e-5)
    assert eb.verify(tmp_path / "new.parquet", source=eb.open(tmp_path / "old.parquet"), translation=translation).compared == len(
        rows
    )


def test_errors_are_predicted_for_the_row_of_unit_length(tmp_path):
    rng = np.random.default_rng(3)
    x = unit(rng.normal(size=(900, 8)))
    y = x @ rng.normal(size=(8, 12)).astype(np.float32) + 0.1 * rng.normal(size=(900, 12)).astype(np.float32)
    record = AnchorRecord("a", "b", 900, 900, 0, 0.0, 0)
    anchors = Anchors(np.arange(900), x, y, UNIT, eb.Space("new", 12), record)
    train, held_out = anchors.at(np.arange(600)), anchors.at(np.arange(600, 900))
    translation = eb.calibrate(eb.fit(train, "ridge"), train, held_out)
    paths = {}
    for name, scale in (("unit", 1.0), ("short", 0.2)):
        paths[name] = str(tmp_path / f"{name}.parquet")
        source = tmp_path / f"{name}-old.parquet"
        space = make_space("old", 8, normalized=name == "unit")
        write(source, table_of(np.arange(900), (x * np.float32(scale)), space=space))
        eb.convert(eb.open(source), translation, paths[name], confidence=0.9)
        eb.verify(paths[name], source=eb.open(source), translation=translation)
    found = {name: next(eb.open(path).batches(payload=True)).payload.column("predicted_error") for name, path in paths.items()}
    np.testing.assert_allclose(found["short"], found["unit"], rtol=1e-3)


def test_a_head_behind_a_map_is_map_then_head_for_rows_of_any_length(tmp_path):
    rng, rows = np.random.default_rng(4), rows_of_other_lengths()
    for normalized in (False, True):
        translation = eb.LinearMap(
            rng.normal(size=(12, 8)), rng.normal(size=12), UNIT, make_space("new", 12, normalized=normalized)
        )
        head = eb.LinearHead(rng.normal(size=(3, 12)), rng.normal(size=3), translation.target, "regressor")
        behind = head.after(translation)
        np.testing.assert_allclose(behind.decode(rows).output, head.decode(translation.apply(unit(rows))).output, atol=1e-4)
        behind.save(tmp_path / f"{normalized}.safetensors")
        again = eb.LinearHead.load(tmp_path / f"{normalized}.safetensors")
        np.testing.assert_array_equal(again.decode(rows).output, behind.decode(rows).output)
    # A head that scales its rows, behind another map: what it scales is then a translation.
    first = eb.LinearMap(rng.normal(size=(8, 5)), rng.normal(size=8), make_space("oldest", 5), make_space("old", 8))
    once = eb.LinearHead(rng.normal(size=(3, 12)), rng.normal(size=3), eb.Space("new", 12), "regressor").after(maps()["affine"])
    x = rng.normal(size=(50, 5)).astype(np.float32)
    np.testing.assert_allclose(once.after(first).decode(x).output, once.decode(first.apply(x)).output, atol=1e-4)
