"""LinearMap: what it computes, what it promises about search, and that its file is the map or an error."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from embridge.anchors.moments import Moments
from embridge.errors import (
    BadVectorsError,
    MapError,
    MissingFileError,
    OutputExistsError,
    SpaceMismatchError,
    UnreadableFileError,
)
from embridge.maps import LinearMap
from embridge.records import Candidate, FitRecord
from embridge.types import Metric, Space

P, Q = 6, 9
RECORD = FitRecord("ridge", {"alpha": 0.3}, 50, 12, 1.5, "cpu", ("one", "two"), (Candidate("ridge", {"alpha": 0.3}, 0.5),))


def make_map(p=P, q=Q, seed=0, *, normalized=False, metric=Metric.COSINE, coef=None, intercept=None, names=("old", "new")):
    rng = np.random.default_rng(seed)
    coef = rng.normal(size=(q, p)) if coef is None else coef
    intercept = rng.normal(size=q) if intercept is None else intercept
    source, target = Space(names[0], p, metric), Space(names[1], q, metric, normalized)
    return LinearMap(coef, intercept, source, target, RECORD, np.arange(5, dtype=np.uint64))


def vectors(n, dim, seed=1):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def orthonormal(rows, columns, seed=3):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(rows, columns)))[0]


def expected_rows(map_, x):
    y = x.astype(np.float64) @ map_.coef.T.astype(np.float64) + map_.intercept
    return y / np.linalg.norm(y, axis=-1, keepdims=True) if map_.target.normalized else y


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("shape", [(20, P), (P,), (0, P)])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_apply_is_the_affine_map_and_normalizes_only_for_the_target(library, kind, shape, normalized):
    map_ = make_map(normalized=normalized)
    x = np.random.default_rng(1).normal(size=shape).astype(kind)
    before = x.copy()
    y = map_.apply(x) if library == "numpy" else map_.apply(torch.tensor(x))
    assert type(y).__module__.startswith(library)
    y = np.asarray(y)
    assert y.dtype == np.float32
    assert y.shape == (*shape[:-1], Q)
    np.testing.assert_allclose(y, expected_rows(map_, x), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_row_without_direction_stays_zero(library):
    map_ = make_map(normalized=True, intercept=np.zeros(Q))
    for x in (np.zeros(P, np.float32), np.zeros((2, P), np.float32)):
        y = map_.apply(x if library == "numpy" else torch.tensor(x))
        assert not np.asarray(y).any()


def test_lists_and_integers_are_accepted():
    map_ = make_map()
    rows = [[1, 2, 3, 4, 5, 6]]
    np.testing.assert_allclose(map_.apply(rows), expected_rows(map_, np.array(rows)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (2, 2, P)])
def test_only_vectors_and_matrices_are_accepted(shape):
    with pytest.raises(BadVectorsError, match=r"shape \(n, dim\)"):
        make_map().apply(np.zeros(shape, np.float32))


@pytest.mark.parametrize("wrong", [np.zeros((3, Q)), np.zeros(Q), torch.zeros(3, Q), torch.zeros(Q)], ids=lambda w: str(type(w)))
def test_a_wrong_width_is_reported_with_both_widths(wrong):
    with pytest.raises(SpaceMismatchError, match=r"The map from 'old' expects 6-dimensional vectors\. Got 9 dimensions instead"):
        make_map().apply(wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_and_cpu_agree():
    map_, x = make_map(normalized=True), vectors(1000, P)
    y = map_.apply(torch.tensor(x, device="cuda"))
    assert y.device.type == "cuda"
    np.testing.assert_allclose(y.cpu().numpy(), map_.apply(x), rtol=0, atol=1e-5)


def test_then_is_one_after_the_other():
    first, second = make_map(P, Q), make_map(Q, 4, seed=2, normalized=True, names=("new", "newest"))
    both, x = first.then(second), vectors(20, P)
    assert (both.source, both.target) == (first.source, second.target)
    np.testing.assert_allclose(both.apply(x), second.apply(first.apply(x)), rtol=0, atol=1e-5)
    assert both.record.method == "then"
    assert both.record.sources == (first.fingerprint, second.fingerprint)


def test_then_remembers_the_anchors_of_both():
    first, second = make_map(), make_map(Q, 4, names=("new", "newest"))
    second = dataclasses.replace(second, anchor_hashes=np.array([3, 9], np.uint64))
    assert first.then(second).anchor_hashes.tolist() == [0, 1, 2, 3, 4, 9]


def test_then_refuses_a_gap():
    with pytest.raises(MapError, match=r"into 'new' \(9\) cannot be followed by a map from 'old' \(6\)"):
        make_map().then(make_map())


@pytest.mark.parametrize(("p", "q"), [(6, 6), (6, 9)])
def test_inverse_gives_back_what_went_in(p, q):
    map_, x = make_map(p, q), vectors(20, p)
    back = map_.inverse()
    assert (back.source, back.target) == (map_.target, map_.source)
    condition = np.linalg.cond(map_.coef)
    np.testing.assert_allclose(back.apply(map_.apply(x)), x, rtol=0, atol=1e-6 * condition * np.abs(x).max())
    assert back.record.sources == (map_.fingerprint,)


def test_inverse_of_a_projection_is_the_pseudoinverse():
    map_, y = make_map(9, 6), vectors(20, 6)
    x = map_.inverse().apply(y)
    np.testing.assert_allclose(map_.apply(x), y, rtol=0, atol=1e-4)
    np.testing.assert_allclose(x, (y - map_.intercept) @ np.linalg.pinv(map_.coef).T, rtol=0, atol=1e-4)


def test_inverse_does_not_stretch_the_rounding_of_a_map_without_full_rank():
    # Rank 10 of 60, as from 10 anchors; as float32 its other singular values are 1e-8, not zero.
    u, v = orthonormal(60, 10), orthonormal(60, 10, seed=4)
    back = make_map(60, 60, coef=u @ v.T).inverse()
    np.testing.assert_allclose(back.coef, v @ u.T, rtol=0, atol=1e-5)


def test_inner_products_are_kept_by_pulling_queries_back():
    map_ = make_map(metric=Metric.DOT)
    x, q = vectors(20, P), vectors(7, Q, seed=2)
    pulled = map_.project_queries(q)
    assert pulled.dtype == np.float32
    np.testing.assert_allclose(q @ map_.apply(x).T, pulled @ x.T + (q @ map_.intercept)[:, None], rtol=0, atol=1e-4)


def test_under_cosine_a_rotation_pulls_back_exactly():
    map_ = make_map(coef=orthonormal(Q, P), intercept=np.zeros(Q), normalized=True)
    x, q = vectors(20, P), vectors(7, Q, seed=2)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(map_.project_queries(q) @ x.T, q @ map_.apply(x).T, rtol=0, atol=1e-5)


def test_under_l2_an_isometry_pulls_back_exactly():
    map_ = make_map(coef=2.5 * orthonormal(Q, P), metric=Metric.L2)
    x, q = vectors(20, P), vectors(7, Q, seed=2)
    translated = np.square(q[:, None] - map_.apply(x)).sum(-1)
    pulled = np.square(map_.project_queries(q)[:, None] - x).sum(-1)
    # |q - (sQx + b)|^2 = s^2 |Q^T (q-b) / s - x|^2 + what of q - b no x can reach, one number a query
    rest = translated - 2.5**2 * pulled
    np.testing.assert_allclose(rest, rest[:, :1].repeat(20, axis=1), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(np.argsort(translated, axis=1), np.argsort(pulled, axis=1))


def test_under_l2_nothing_else_pulls_back():
    with pytest.raises(MapError, match="isometry only"):
        make_map(metric=Metric.L2).project_queries(vectors(2, Q))


def test_pull_back_refuses_another_width():
    with pytest.raises(SpaceMismatchError, match=r"queries of 'new' expects 9-dimensional vectors\. Got 6"):
        make_map().project_queries(vectors(2, P))


@pytest.mark.parametrize(
    ("coef", "scale"),
    [
        (orthonormal(Q, P), 1.0),
        (0.01 * orthonormal(Q, P), 0.01),
        (-3 * orthonormal(P, P), 3.0),
        (orthonormal(Q, P).T, None),  # into fewer dimensions
        (np.diag([1, 1, 1, 1, 1.001]), None),
        (np.zeros((3, 3)), None),
    ],
)
def test_isometry_scale(coef, scale):
    q, p = coef.shape
    found = make_map(p, q, coef=coef).isometry_scale
    assert found is None if scale is None else found == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize(
    ("coef", "intercept"),
    [(np.zeros((P, Q)), np.zeros(Q)), (np.zeros((Q, P)), np.zeros(P)), (np.zeros(P), np.zeros(Q))],
)
def test_shapes_are_those_of_the_spaces(coef, intercept):
    with pytest.raises(SpaceMismatchError, match=r"coef of shape \(9, 6\) and intercept of shape \(9,\)"):
        make_map(coef=coef, intercept=intercept)


@pytest.mark.parametrize("where", ["coef", "intercept"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coefficients_are_finite(where, value):
    arrays = {"coef": np.zeros((Q, P)), "intercept": np.zeros(Q)}
    arrays[where].flat[3] = value
    with pytest.raises(BadVectorsError, match="NaN or infinite"):
        make_map(**arrays)


def test_a_map_never_changes():
    coef, intercept = np.ones((Q, P), np.float32), np.ones(Q, np.float32)
    map_ = make_map(coef=coef, intercept=intercept)
    fingerprint = map_.fingerprint
    coef[:] = intercept[:] = 7  # the caller's arrays are the caller's
    assert (map_.coef == 1).all()
    assert (map_.intercept == 1).all()
    for array in (map_.coef, map_.intercept, map_.anchor_hashes):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        map_.coef = coef
    assert dataclasses.replace(map_).fingerprint == fingerprint


def test_the_fingerprint_is_of_the_content():
    map_ = make_map()
    assert map_.fingerprint == make_map().fingerprint
    assert len(map_.fingerprint) == 32
    one_bit = map_.coef.copy()
    one_bit[2, 1] = np.nextafter(one_bit[2, 1], np.float32(9))
    others = [
        dataclasses.replace(map_, coef=one_bit),
        dataclasses.replace(map_, intercept=-map_.intercept),
        dataclasses.replace(map_, source=Space("older", P)),
        dataclasses.replace(map_, target=dataclasses.replace(map_.target, normalized=True)),
        dataclasses.replace(map_, record=dataclasses.replace(RECORD, method="bridge")),
        dataclasses.replace(map_, record=dataclasses.replace(RECORD, parameters={"alpha": 0.1})),
    ]
    assert len({map_.fingerprint, *(other.fingerprint for other in others)}) == 7
    timed = dataclasses.replace(map_, record=dataclasses.replace(RECORD, seconds=99.0))
    assert timed.fingerprint == map_.fingerprint


@pytest.fixture
def saved(tmp_path):
    map_, path = make_map(normalized=True, metric=Metric.DOT), tmp_path / "old-new.safetensors"
    map_.save(path)
    return map_, path


def read(path):
    """Tensors and metadata, without the checksum: as a file of embridge 0.1, so that what else is checked is seen."""
    with safe_open(path, "np") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "checksum"}
        return {name: np.array(file.get_tensor(name)) for name in file.keys()}, metadata  # noqa: SIM118


def test_a_saved_map_comes_back_with_all_that_is_known_of_it(saved):
    map_, path = saved
    loaded = LinearMap.load(path)
    for name in ("coef", "intercept", "anchor_hashes"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(map_, name))
    assert (loaded.source, loaded.target, loaded.record) == (map_.source, map_.target, map_.record)
    assert loaded.fingerprint == map_.fingerprint
    assert repr(loaded) == "LinearMap('old' (6) -> 'new' (9), ridge, 50 anchors)"


def test_the_file_can_be_read_without_embridge(saved):
    map_, path = saved
    tensors, metadata = read(path)
    assert {name: array.dtype.name for name, array in tensors.items()} == {
        "coef": "float32",
        "intercept": "float32",
        "anchor_hashes": "uint64",
    }
    assert (metadata["method"], metadata["anchors"], metadata["fingerprint"]) == ("ridge", "50", map_.fingerprint)
    assert json.loads(metadata["parameters"]) == map_.record.parameters
    assert json.loads(metadata["target"]) == {"name": "new", "dim": 9, "metric": "dot", "normalized": True}


def test_a_map_without_anchors_and_with_infinite_alpha_is_saved_too(tmp_path):
    map_ = LinearMap(np.eye(3), np.zeros(3), Space("a", 3), Space("b", 3), FitRecord("bridge", {"alpha": np.inf}))
    map_.save(tmp_path / "map.safetensors")
    loaded = LinearMap.load(tmp_path / "map.safetensors")
    assert loaded.record.parameters == {"alpha": np.inf}
    assert not len(loaded.anchor_hashes)


def test_an_output_that_exists_is_kept(saved):
    map_, path = saved
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        make_map(seed=5).save(path)
    assert path.read_bytes() == before
    make_map(seed=5).save(path, overwrite=True)
    assert LinearMap.load(path).fingerprint != map_.fingerprint
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file_is_refused(saved, keep):
    _, path = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableFileError, match="cannot be read as a map"):
        LinearMap.load(path)


def test_an_altered_coefficient_is_noticed(saved):
    _, path = saved
    tensors, metadata = read(path)
    tensors["coef"][0, 0] += 1
    save_file(tensors, path, metadata)
    with pytest.raises(UnreadableFileError, match="altered"):
        LinearMap.load(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("target", json.dumps(Space("other", Q).to_dict()), "altered"),
        ("fingerprint", "0" * 32, "altered"),
        ("format", "embridge.map.99", "is not a map of embridge"),
        ("source", json.dumps(Space("old", P + 1).to_dict()), "cannot be read as a map"),
        ("source", '{"name": "old", "dim": 6, "metric": "taxicab", "normalized": false}', "cannot be read as a map"),
        ("source", '{"name": "old", "dim": "six", "metric": "l2", "normalized": false}', "cannot be read as a map"),
        ("source", "not json", "cannot be read as a map"),
        ("record", "[]", "cannot be read as a map"),
        ("record", None, "cannot be read as a map"),
    ],
)
def test_altered_metadata_are_refused(saved, key, value, message):
    _, path = saved
    tensors, metadata = read(path)
    if value is None:
        del metadata[key]
    else:
        metadata[key] = value
    save_file(tensors, path, metadata)
    with pytest.raises(UnreadableFileError, match=message):
        LinearMap.load(path)


def test_files_of_others_are_refused(saved, tmp_path):
    _, path = saved
    tensors, metadata = read(path)
    del tensors["intercept"]
    save_file(tensors, path, metadata)
    with pytest.raises(UnreadableFileError, match="cannot be read as a map"):
        LinearMap.load(path)
    tensors["intercept"] = np.full(Q, np.nan, np.float32)
    save_file(tensors, path, metadata)
    with pytest.raises(UnreadableFileError, match="NaN"):
        LinearMap.load(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(UnreadableFileError, match="is not a map of embridge"):
        LinearMap.load(path)
    Moments.from_rows(vectors(9, P), vectors(9, Q), Space("old", P), Space("new", Q)).save(path, overwrite=True)
    with pytest.raises(UnreadableFileError, match="is not a map of embridge"):
        LinearMap.load(path)
    with pytest.raises(MissingFileError, match=r"nowhere\.safetensors"):
        LinearMap.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("length", [1e-14, 1e-25, 1.0, 1e20])
def test_translations_of_tiny_and_huge_rows_have_unit_length(length):
    rows = np.random.default_rng(0).normal(size=(5, 6))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True) * length).astype(np.float32)
    found = LinearMap(np.eye(6), np.zeros(6), Space("a", 6, "dot"), Space("b", 6, "dot", True)).apply(rows)
    np.testing.assert_allclose(np.linalg.norm(found.astype(np.float64), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found, rows / np.float64(length), atol=1e-5)
