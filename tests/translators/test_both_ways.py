"""`fit --reverse-output`: both regressions in one call, each as if fitted alone, and both or none of them written."""

import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.catalog import Catalog
from embridge.cli.main import main
from embridge.errors import CatalogError, ParameterError
from embridge.records import Artifact, FitRecord, Run
from embridge.testing.translators import planted_anchors
from embridge.types import Space

OLD, NEW = "old.parquet", "new.parquet"


@pytest.fixture(scope="module")
def data(tmp_path_factory, write, table_of):
    """Two collections of 1,500 rows in other orders; the second again in two parts, and queries by the new model."""
    made = tmp_path_factory.mktemp("data")
    anchors = planted_anchors(1700, 9, 12, noise=0.4)
    order = np.random.default_rng(1).permutation(1500)
    write(made / OLD, table_of(anchors.ids[:1500], anchors.x[:1500], space=Space("source", 9)))
    write(made / NEW, table_of(anchors.ids[order], anchors.y[order], space=Space("target", 12)))
    write(made / "new-1.parquet", table_of(anchors.ids[:1000], anchors.y[:1000], space=Space("target", 12)))
    write(made / "new-2.parquet", table_of(anchors.ids[1000:1500], anchors.y[1000:1500], space=Space("target", 12)))
    write(made / "queries.parquet", table_of(anchors.ids[1500:], anchors.y[1500:], space=Space("target", 12)))
    return made


@pytest.fixture(autouse=True)
def folder(data, tmp_path, monkeypatch):
    for path in data.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_json(*arguments, status=0):
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout) if status == 0 else done.stderr


def same_map(one, other):
    assert one.record.method == other.record.method
    np.testing.assert_allclose(one.coef, other.coef, rtol=0, atol=1e-5 * np.abs(other.coef).max())
    np.testing.assert_allclose(one.intercept, other.intercept, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(one.anchor_hashes, other.anchor_hashes)
    assert (one.record.anchors, one.record.held_out, one.record.sources) == (
        other.record.anchors, other.record.held_out, other.record.sources,
    )  # fmt: skip
    np.testing.assert_array_equal(one.confidence.hashes, other.confidence.hashes)
    np.testing.assert_allclose(one.confidence.scores, other.confidence.scores, rtol=1e-3)


@pytest.mark.parametrize("kept", [[], ["--moments", "m.moments.safetensors"]], ids=["rows", "moments"])
@pytest.mark.parametrize("options", [["--method", "auto"], ["--method", "ridge", "--for", "decode", "--seed", "3"]], ids=str)
def test_each_direction_is_as_if_fitted_alone(kept, options):
    options = [*options, "--test-size", "0.4"]
    found = run_json("fit", OLD, NEW, "-o", "there.safetensors", "--reverse-output", "back.safetensors", *options, *kept)
    alone = run_json("fit", OLD, NEW, "-o", "alone.safetensors", *options)
    role = [] if "decode" in options else ["--for", "queries"]  # the reverse map is for the other side of a search
    back = run_json("fit", NEW, OLD, "-o", "alone-back.safetensors", *options, *role)
    assert alone["reverse"] is None
    for way, wanted in ((found, alone), (found["reverse"], back)):
        assert set(way) - {"seconds", "reverse"} == set(wanted) - {"seconds", "reverse"}
        for key in ("method", "parameters", "source", "target", "anchors", "held_out", "calibrated"):
            assert way[key] == (pytest.approx(wanted[key]) if key == "parameters" else wanted[key]), key
        same_map(eb.LinearMap.load(way["map"]), eb.LinearMap.load(wanted["map"]))


def test_moments_for_both_directions_grow_and_shrink():
    first, second = (OLD, "new-1.parquet"), (OLD, "new-2.parquet")
    rotation = ["--method", "rotation"]
    run_json("fit", *first, "-o", "a", "--reverse-output", "a-back", "--moments", "1.moments.safetensors", *rotation)
    update = ["--update", "1.moments.safetensors", "--moments", "2.moments.safetensors"]
    grown = run_json("fit", *second, "-o", "b", "--reverse-output", "b-back", *update)
    run_json("fit", OLD, NEW, "-o", "all", "--reverse-output", "all-back")
    for one, other in (("b", "all"), ("b-back", "all-back")):
        one, other = eb.LinearMap.load(one), eb.LinearMap.load(other)
        assert one.record.method == other.record.method
        np.testing.assert_allclose(one.coef, other.coef, rtol=0, atol=1e-6)
    assert grown["anchors"] == grown["reverse"]["anchors"]
    # Full moments serve one way too.
    run_json("fit", *second, "-o", "c", "--update", "2.moments.safetensors", "--remove", *rotation)
    run_json("fit", *second, "-o", "d", "--reverse-output", "d-back", "--update", "2.moments.safetensors", "--remove", *rotation)
    for one, other in (("c", "a"), ("d", "a"), ("d-back", "a-back")):
        np.testing.assert_allclose(eb.LinearMap.load(one).coef, eb.LinearMap.load(other).coef, rtol=0, atol=1e-5)


def test_reversed_folds_are_folds_of_reversed_anchors():
    anchors = planted_anchors(300, 6, 9, noise=0.3)
    one, other = anchors.folds(full=True).reversed(), anchors.reversed().folds()
    assert one.full
    assert not other.full
    for got, want in zip(one.parts, other.parts, strict=True):
        np.testing.assert_allclose(got.sxx, want.sxx, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got.sxy, want.sxy, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got.square_y, want.square_y, rtol=1e-9)
    for got, want in zip(one.samples, other.samples, strict=True):
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])
    with pytest.raises(ParameterError, match="full=True"):
        other.reversed()


def test_moments_of_one_direction_are_refused_before_any_work(folder):
    run_json("fit", OLD, NEW, "-o", "a", "--moments", "1.moments.safetensors", "--method", "rotation")
    before = set(os.listdir(folder))
    message = run_json("fit", OLD, NEW, "-o", "b", "--reverse-output", "back", "--update", "1.moments.safetensors", status=1)
    assert "only the diagonal of Syy" in message
    assert "--reverse-output" in message
    assert set(os.listdir(folder)) == before


@pytest.mark.parametrize(("outputs", "message"), [
    (["-o", "new.safetensors", "--reverse-output", "there"], "'there' exists already"),
    (["-o", "there", "--reverse-output", "new.safetensors"], "'there' exists already"),
    (["-o", "new.safetensors", "--reverse-output", "./new.safetensors"], "the name of two outputs"),
    (["-o", "new.safetensors", "--moments", "new.safetensors"], "the name of two outputs"),
    (["-o", "new.safetensors", "--reverse-output", "folder/back"], "'folder'"),
    (["-o", "new.safetensors", "--reverse-output", OLD], "both input and output"),
])  # fmt: skip
def test_outputs_are_checked_before_any_work(folder, outputs, message, monkeypatch):
    (folder / "there").write_bytes(b"kept")
    before = set(os.listdir(folder))
    monkeypatch.setattr(eb, "match", lambda *_, **__: pytest.fail("work was done"))
    assert message in run_json("fit", OLD, NEW, *outputs, "--no-catalog", status=1)
    assert set(os.listdir(folder)) == before
    assert (folder / "there").read_bytes() == b"kept"


def test_where_one_cannot_be_written_none_is(folder, monkeypatch):
    before, second = set(os.listdir(folder)), eb.open(NEW).space.name

    def fail(self):
        if self.source.name == second:
            raise OSError(28, "No space left on device")
        return to_file(self)

    to_file = eb.LinearMap.to_file
    monkeypatch.setattr(eb.LinearMap, "to_file", fail)
    options = ["--moments", "m.moments.safetensors", "--method", "rotation", "--no-catalog"]
    assert "its disk is full" in run_json("fit", OLD, NEW, "-o", "a", "--reverse-output", "b", *options, status=1)
    assert set(os.listdir(folder)) == before


def test_the_catalog_has_each_map_with_its_own_record():
    found = run_json("fit", OLD, NEW, "-o", "there", "--reverse-output", "back", "--catalog", "c.duckdb", "--for", "decode")
    catalog = Catalog("c.duckdb")
    rows = catalog.sql("SELECT * FROM translator ORDER BY source_space")
    for row, way in zip(rows, (found, found["reverse"]), strict=True):
        assert (row["fingerprint"], row["path"]) == (way["fingerprint"], os.path.abspath(way["map"]))
        assert (row["source_space"], row["target_space"], row["method"]) == (way["source"], way["target"], way["method"])
        assert json.loads(row["parameters"]) == way["parameters"]
        record = eb.LinearMap.load(way["map"]).record
        assert [c["score"] for c in json.loads(row["candidates"])] == [c.score for c in record.candidates]
    assert rows[0]["candidates"] != rows[1]["candidates"]
    assert catalog.sql("SELECT role FROM artifact WHERE kind = 'map' ORDER BY role") == [{"role": "map"}, {"role": "reverse map"}]
    assert {edge["from_path"] for edge in catalog.lineage("back")} == {os.path.abspath(OLD), os.path.abspath(NEW)}


def test_a_missing_record_is_refused():
    spaces = {"space": Space("new", 3), "source_space": Space("old", 2)}
    maps = tuple(Artifact("map", name, name, "map", **spaces) for name in ("a", "b"))
    catalog = Catalog("c.duckdb")
    with pytest.raises(CatalogError, match="2 maps and has 1 records"):
        catalog.record(Run("fit", {}, 1.0, (), maps, details=(FitRecord("linear"),)))
    assert not os.path.exists("c.duckdb")


def test_an_index_of_the_old_space_takes_queries_through_the_reverse_map():
    run_json("fit", OLD, NEW, "-o", "there", "--reverse-output", "back", "--method", "ridge")
    queries, back = eb.open("queries.parquet"), eb.LinearMap.load("back")
    index = eb.build_index(eb.open(OLD), "old.faiss", "Flat")
    _, hits = eb.search(index, queries, 5, via=back)
    ids, rows = eb.open(OLD).read()
    searched = back.apply(queries.read()[1])
    scores = searched / np.linalg.norm(searched, axis=1, keepdims=True) @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    wanted = np.take_along_axis(scores, np.argsort(-scores, axis=1)[:, :5], 1)
    np.testing.assert_allclose(hits.scores, wanted, atol=1e-5)
    assert (hits.ids[:, 0] == ids[scores.argmax(1)]).mean() > 0.99  # a near tie may fall either way
    run_json("search", "old.faiss", "queries.parquet", "--via", "back", "-o", "hits.parquet", "-k", "5")
    assert pq.read_metadata("hits.parquet").num_rows > 0
