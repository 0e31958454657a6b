"""Kernel maps: what an affine map cannot follow, exactly as Gaussian processes say, and refused where only affine maps will do."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, DotProduct

import embridge as eb
from embridge.arrays import unit
from embridge.cli.main import main
from embridge.conversion.engine import Engine, TranslateOptions
from embridge.errors import MapError, OutputExistsError, ParameterError, SpaceMismatchError, TooFewAnchorsError, UnreadableFileError
from embridge.maps import load_map
from embridge.testing.translators import planted_anchors
from embridge.translators.kernel_ridge import KernelRidge


def bent_anchors(n: int = 600, p: int = 6, q: int = 16, *, bend: float = 1.5, seed: int = 0) -> eb.Anchors:
    """Unit vectors of a source, and a target that follows them along a curve."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    fixed = np.random.default_rng(99)
    y = x @ fixed.normal(size=(p, q)) + bend * np.cos(2 * x @ fixed.normal(size=(p, q))) + 0.05 * rng.normal(size=(n, q))
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    planted = planted_anchors(n, p, q, seed=seed)
    spaces = [dataclasses.replace(space, normalized=True) for space in (planted.source, planted.target)]
    return dataclasses.replace(planted, x=x.astype(np.float32), y=y.astype(np.float32), source=spaces[0], target=spaces[1])


@pytest.fixture(scope="module")
def halves() -> tuple[eb.Anchors, eb.Anchors]:
    anchors = bent_anchors()
    return anchors.at(np.arange(400)), anchors.at(np.arange(400, 600))


@pytest.fixture(scope="module")
def fitted(halves: tuple[eb.Anchors, eb.Anchors]) -> eb.KernelMap:
    return eb.fit(halves[0], "kernel", alpha=0.1, shrinkage_target_weight=0.5)


def squared_error(translation: eb.LinearMap | eb.KernelMap, rows: eb.Anchors) -> float:
    return float(np.square(translation.apply(rows.x) - rows.y).sum(1).mean())


def test_a_kernel_fits_what_no_affine_map_can(halves: tuple[eb.Anchors, eb.Anchors]) -> None:
    train, held_out = halves
    assert squared_error(eb.fit(train, "kernel"), held_out) < 0.8 * squared_error(eb.fit(train, "ridge"), held_out)


def test_on_affine_pairs_a_kernel_loses_almost_nothing() -> None:
    anchors = planted_anchors(400, 24, 32)
    train, held_out = anchors.at(np.arange(300)), anchors.at(np.arange(300, 400))
    plain, kernel = (squared_error(eb.fit(train, method), held_out) for method in ("bridge", "kernel"))
    spread = float(np.square(held_out.y - train.y.mean(0)).sum(1).mean())
    assert kernel - plain < 0.02 * spread


def test_without_a_prior_mean_it_is_the_gaussian_process(halves: tuple[eb.Anchors, eb.Anchors]) -> None:
    train, held_out = halves
    found = eb.fit(train, "kernel", alpha=0.3, shrinkage_target_weight=0.0, penalty=0.2)
    x, y = train.x.astype(float), train.y.astype(float)
    u, mean = x / np.linalg.norm(x, axis=1, keepdims=True), x.mean(0)
    strength = 0.3 * np.square(x - mean).sum() / x.shape[1]
    # Both kernels act on one input: x centered, then the direction of x.
    rbf = RBF(1 / np.sqrt(2 * found.gamma), "fixed")(u)
    linear = DotProduct(0, "fixed")((x - mean) / np.sqrt(strength))
    dual = np.linalg.solve(rbf / 0.2 + linear + np.eye(len(x)), y - y.mean(0))
    new = held_out.x.astype(float)
    cross = RBF(1 / np.sqrt(2 * found.gamma), "fixed")(new / np.linalg.norm(new, axis=1, keepdims=True), u) / 0.2
    expected = (cross + (new - mean) @ (x - mean).T / strength) @ dual + y.mean(0)
    raw = new @ found.affine.coef.T + found.affine.intercept + _features(found, held_out.x) @ found.weights
    np.testing.assert_allclose(raw, expected, atol=2e-5)


def test_with_the_linear_part_held_down_it_is_scikit_learns_process(halves: tuple[eb.Anchors, eb.Anchors]) -> None:
    train, held_out = halves
    found = eb.fit(train, "kernel", alpha=1e9, shrinkage_target_weight=0.0, penalty=0.2)
    peer = GaussianProcessRegressor(RBF(1 / np.sqrt(2 * found.gamma), "fixed"), alpha=0.2, optimizer=None)
    peer.fit(train.x.astype(float), train.y.astype(float) - train.y.mean(0))
    raw = held_out.x @ found.affine.coef.T + found.affine.intercept + _features(found, held_out.x) @ found.weights
    np.testing.assert_allclose(raw, peer.predict(held_out.x.astype(float)) + train.y.mean(0), atol=2e-5)


def _features(found: eb.KernelMap, x: np.ndarray) -> np.ndarray:
    u = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    return np.exp(-found.gamma * np.square(u[:, None] - found.landmarks[None]).sum(-1))


def test_applying_is_the_formula(fitted: eb.KernelMap) -> None:
    x = np.random.default_rng(1).normal(size=(2500, 6))  # of any length, more than one block of rows
    raw = x @ fitted.affine.coef.T + fitted.affine.intercept + _features(fitted, x) @ fitted.weights
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.apply(x), expected, atol=5e-5)
    np.testing.assert_allclose(fitted.apply(x[0]), expected[0], atol=5e-5)
    assert fitted.apply(x.astype(np.float16)).dtype == np.float32
    with pytest.raises(SpaceMismatchError):
        fitted.apply(x[:, :5])


def test_with_every_anchor_a_landmark_both_solvers_agree(halves: tuple[eb.Anchors, eb.Anchors]) -> None:
    train, held_out = halves
    problem = KernelRidge.of(train.moments(), 0.1, 0.5, train.x, torch.device("cpu"))
    rows = problem.kernel(torch.tensor(held_out.x).double())
    found = []
    for weight, features in (problem.exact(train, 0.1), problem.nystroem(train, 0.1)):
        x = torch.tensor(held_out.x).double() - problem.mean_x
        found.append((x @ weight + rows @ features).numpy())
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_fewer_landmarks_come_closer_the_more_there_are(halves: tuple[eb.Anchors, eb.Anchors]) -> None:
    train, held_out = halves
    errors = [
        squared_error(eb.fit(train, "kernel", alpha=0.1, shrinkage_target_weight=0.5, landmarks=m), held_out)
        for m in (20, 100, 300, 400)
    ]
    assert errors == sorted(errors, reverse=True)
    assert len(eb.fit(train, "kernel", alpha=0.1, shrinkage_target_weight=0.5, landmarks=20).landmarks) == 20


def test_identical_anchors_and_a_source_without_variance_do_no_harm() -> None:
    anchors = bent_anchors(80)
    twice = dataclasses.replace(anchors, x=anchors.x[np.arange(80) // 2 * 2], y=anchors.y[np.arange(80) // 2 * 2])
    still = dataclasses.replace(anchors, x=np.ones_like(anchors.x))
    for rows in (twice, still):
        for landmarks in (80, 30):
            assert np.isfinite(
                eb.fit(rows, "kernel", alpha=0.1, shrinkage_target_weight=0.5, landmarks=landmarks).apply(anchors.x)
            ).all()


def test_operations_that_need_an_affine_map_refuse_a_kernel(halves: tuple[eb.Anchors, eb.Anchors], fitted: eb.KernelMap) -> None:
    with pytest.raises(MapError, match="not affine"):
        eb.fit(halves[0].reversed(), "ridge", alpha=0.1).then(fitted)  # type: ignore[arg-type]
    with pytest.raises(MapError, match="not affine"):
        eb.calibrate(fitted, halves[0], halves[1])  # type: ignore[arg-type]


def test_vectors_of_any_float_are_translated(fitted: eb.KernelMap) -> None:
    x = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    for kind in (">f4", np.float64, np.longdouble):
        assert np.array_equal(fitted.apply(x.astype(kind)), fitted.apply(x))


@pytest.mark.parametrize(
    "parameters",
    [
        {"landmarks": 0},
        {"penalty": 0.0},
        {"penalty": float("nan")},
        {"alpha": 0.0, "shrinkage_target_weight": 0.5},
        {"shrinkage_target_weight": 2.0},
        {"bogus": 1},
    ],
)
def test_parameters_out_of_range_are_refused(halves: tuple[eb.Anchors, eb.Anchors], parameters: dict) -> None:
    with pytest.raises(ParameterError):
        eb.fit(halves[0], "kernel", **parameters)


def test_moments_and_a_single_row_are_not_enough(halves: tuple[eb.Anchors, eb.Anchors]) -> None:
    for data in (halves[0].moments(), halves[0].folds()):
        with pytest.raises(ParameterError, match="rows"):
            eb.fit(data, "kernel")
    with pytest.raises(TooFewAnchorsError):
        eb.fit(halves[0].at(np.arange(1)), "kernel")


def test_the_file_gives_the_same_map_back(fitted: eb.KernelMap, tmp_path) -> None:
    path = tmp_path / "map.safetensors"
    fitted.save(path)
    loaded = load_map(path)
    assert isinstance(loaded, eb.KernelMap)
    assert loaded.fingerprint == fitted.fingerprint
    assert loaded.record == fitted.record
    assert np.array_equal(loaded.anchor_hashes, fitted.anchor_hashes)
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    assert np.array_equal(loaded.apply(x), fitted.apply(x))
    with pytest.raises(OutputExistsError):
        fitted.save(path)
    with pytest.raises(UnreadableFileError):
        eb.LinearMap.load(path)


@pytest.mark.parametrize("name", ["coef", "landmarks", "weights"])
def test_an_altered_file_is_refused(fitted: eb.KernelMap, tmp_path, name: str) -> None:
    path = tmp_path / "map.safetensors"
    fitted.save(path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, path, metadata)
    with pytest.raises(UnreadableFileError, match="altered"):
        load_map(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UnreadableFileError):
        load_map(path)


def test_affine_maps_load_by_the_same_verb(halves: tuple[eb.Anchors, eb.Anchors], tmp_path) -> None:
    eb.fit(halves[0], "ortho").save(tmp_path / "map.safetensors")
    assert isinstance(load_map(tmp_path / "map.safetensors"), eb.LinearMap)
    (tmp_path / "text").write_text("no map")
    with pytest.raises(UnreadableFileError):
        load_map(tmp_path / "text")


def test_a_map_that_cannot_be_is_refused(fitted: eb.KernelMap) -> None:
    with pytest.raises(SpaceMismatchError):
        eb.KernelMap(fitted.affine, fitted.landmarks[:, :5], fitted.weights, 1.0)
    with pytest.raises(MapError):
        eb.KernelMap(fitted.affine, fitted.landmarks, fitted.weights, 0.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_engine_gives_what_apply_gives(fitted: eb.KernelMap, precision) -> None:
    x = np.random.default_rng(1).normal(size=(3000, 6)).astype(np.float32)
    out = np.empty((3000, 16), np.float32)
    zero, not_finite = Engine(fitted, torch.device("cpu"), 1500, TranslateOptions(precision=precision)).run([x[:700], x[700:]], out)
    assert not len(zero)
    assert not len(not_finite)
    np.testing.assert_allclose(out, fitted.apply(x), atol=1e-5 if precision == "float32" else 0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_cuda_gives_what_the_cpu_gives(halves: tuple[eb.Anchors, eb.Anchors], fitted: eb.KernelMap) -> None:
    on_device = eb.fit(halves[0], "kernel", alpha=0.1, shrinkage_target_weight=0.5, device="cuda")
    np.testing.assert_allclose(on_device.apply(halves[1].x), fitted.apply(halves[1].x), atol=1e-5)


def test_collections_are_converted_and_verified(fitted: eb.KernelMap, tmp_path) -> None:
    x = np.random.default_rng(2).normal(size=(5000, 6)).astype(np.float32)
    old = eb.MemoryCollection(np.arange(5000), x / np.linalg.norm(x, axis=1, keepdims=True), fitted.source)
    eb.convert(old, fitted, tmp_path / "out.parquet")
    ids, vectors = eb.open(tmp_path / "out.parquet").read()
    assert np.array_equal(ids, np.arange(5000))
    np.testing.assert_allclose(vectors, fitted.apply(old.read()[1]), atol=1e-6)
    eb.verify(tmp_path / "out.parquet", source=old, translation=fitted)
    with pytest.raises(MapError, match="predicted"):
        eb.convert(old, fitted, tmp_path / "two.parquet", confidence=0.9)
    assert not (tmp_path / "two.parquet").exists()


def test_a_kernel_map_applies_to_queries_and_refuses_to_pull_them_back(fitted: eb.KernelMap, tmp_path) -> None:
    rng = np.random.default_rng(3)
    for space, dim in ((fitted.source, 6), (fitted.target, 16)):
        rows = rng.normal(size=(200, dim)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        eb.build_index(eb.MemoryCollection(np.arange(200), rows, space), tmp_path / f"{dim}.faiss", "Flat")
    queries = rng.normal(size=(4, 6)).astype(np.float32)
    forward = eb.open_index(tmp_path / "16.faiss")
    assert np.array_equal(forward.search(queries, 5, via=fitted).ids, forward.search(fitted.apply(queries), 5).ids)
    with pytest.raises(MapError, match="not affine"):
        eb.open_index(tmp_path / "6.faiss").search(rng.normal(size=(4, 16)).astype(np.float32), 5, via=fitted)
    with pytest.raises(MapError, match="not affine"):
        eb.migrate(tmp_path / "6.faiss", fitted, tmp_path / "moved.faiss")
    assert not (tmp_path / "moved.faiss").exists()


def test_evaluating_leaves_out_what_needs_an_adjoint(halves: tuple[eb.Anchors, eb.Anchors], fitted: eb.KernelMap) -> None:
    train, held_out = halves
    found = eb.evaluate(fitted, held_out)
    assert {s.name for s in found.strategies} == {"keep-old", "translate-documents", "re-encode"}
    assert found.corpus == len(held_out)
    assert found["translate-documents"].overlap > eb.evaluate(eb.fit(train, "bridge"), held_out)["translate-documents"].overlap
    with pytest.raises(TooFewAnchorsError):
        eb.evaluate(fitted, train)


def test_a_linear_head_stands_behind_it_unfolded(fitted: eb.KernelMap, tmp_path) -> None:
    rng = np.random.default_rng(4)
    head = eb.LinearHead(rng.normal(size=(3, 16)), rng.normal(size=3), fitted.target, classes=["a", "b", "c"])
    with pytest.raises(MapError, match="not affine"):
        head.after(fitted)
    old = eb.MemoryCollection(np.arange(50), unit(rng.normal(size=(50, 6))), fitted.source)
    made = eb.decode(old, head, tmp_path / "out.parquet", via=fitted)
    said = pyarrow.parquet.read_table(tmp_path / "out.parquet")["prediction"].to_pylist()
    assert said == head.decode(fitted.apply(old.read()[1])).prediction.tolist()
    assert made.rows == 50


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    both = bent_anchors()
    for name, vectors in (("old", both.x), ("new", both.y)):
        pyarrow.parquet.write_table(pyarrow.table({"id": both.ids, "vector": list(vectors)}), f"{name}.parquet")
    return ["--source-space", both.source.name, "--target-space", both.target.name]


def run(*words: str) -> dict:
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_command_line_fits_converts_and_evaluates_with_it(files: list[str]) -> None:
    said = run("fit", "old.parquet", "new.parquet", "-o", "map.safetensors", "--method", "kernel", "--landmarks", "100", *files)
    assert (said["method"], said["parameters"]["landmarks"], said["calibrated"]) == ("kernel", 100, 0)
    assert said["held_out"] > 0
    assert said["fingerprint"] == load_map("map.safetensors").fingerprint
    assert run("evaluate", "map.safetensors", "old.parquet", "new.parquet", *files)["corpus"] == said["held_out"]
    run("convert", "old.parquet", "map.safetensors", "out.parquet", "--space", files[1])
    run("verify", "out.parquet", "--source", "old.parquet", "--map", "map.safetensors", "--space", files[1])
    methods = eb.Catalog("embridge.duckdb").sql("SELECT method, parameters->>'landmarks' AS m FROM translator")
    assert methods == [{"method": "kernel", "m": "100"}]


def test_the_command_line_fits_both_directions_with_a_kernel(files: list[str]) -> None:
    names = ["-o", "map.safetensors", "--reverse-output", "back.safetensors"]
    assert run("fit", "old.parquet", "new.parquet", "--method", "kernel", *names, *files)["reverse"]["method"] == "kernel"
    there, back = load_map("map.safetensors"), load_map("back.safetensors")
    assert (there.source, there.target) == (back.target, back.source)


def test_the_command_line_refuses_moments_and_migrating_an_index(files: list[str]) -> None:
    both = ["old.parquet", "new.parquet"]
    done = CliRunner().invoke(main, ["fit", *both, "-o", "no.safetensors", "--method", "kernel", "--moments", "m", *files])
    assert done.exit_code == 1
    assert "moments do not hold rows" in done.stderr
    assert not pathlib.Path("no.safetensors").exists()
    run("fit", *both, "-o", "map.safetensors", "--method", "kernel", *files)
    run("index", "old.parquet", "old.faiss", "--factory", "Flat", "--space", files[1])
    done = CliRunner().invoke(main, ["migrate", "old.faiss", "map.safetensors", "new.faiss"])
    assert done.exit_code == 1
    assert "not affine" in done.stderr
    assert not pathlib.Path("new.faiss").exists()


@pytest.mark.parametrize("view", [lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x[::3, :], lambda x: x.astype(">f4")])
def test_views_of_any_strides_and_byte_order_are_translated(view):
    rng = np.random.default_rng(0)
    affine = eb.LinearMap(rng.normal(size=(3, 4)), rng.normal(size=3), eb.Space("a", 4), eb.Space("b", 3))
    found = eb.KernelMap(affine, rng.normal(size=(5, 4)), rng.normal(size=(5, 3)), 0.5)
    rows = view(rng.normal(size=(12, 4)).astype(np.float32))
    np.testing.assert_allclose(found.apply(rows), found.apply(np.array(rows, np.float32)), atol=1e-6)
