"""Translators: one suite for all of them, then what each of them promises, against formulas written out in NumPy."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from embridge.errors import ParameterError
from embridge.testing.translators import TranslatorConformance, planted_anchors, textlike_anchors
from embridge.translators import METHODS, Affine, Bridge, Isometry, Linear, LOrtho, Ortho, Projection, Ridge, Rotation, fit
from embridge.translators.select import Auto
from embridge.translators.solvers import least_squares, orthogonal_factor
from embridge.types import Metric, Space

WIDTHS = [(6, 9), (9, 6), (8, 8)]
PAPER = [Affine, Linear, LOrtho, Ortho]


class TestEveryTranslator(TranslatorConformance):
    @pytest.fixture(params=METHODS)
    def translator(self, request):
        return METHODS[request.param]()


def with_rows(anchors, x=None, y=None):
    sides = {name: rows.astype(np.float32) for name, rows in (("x", x), ("y", y)) if rows is not None}
    return dataclasses.replace(anchors, **sides)


def wide_rows(anchors):
    return anchors.x.astype(np.float64), anchors.y.astype(np.float64)


def rotation_of(p, q, seed=7):
    wide = max(p, q)
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(wide, wide)))[0][:p, :q]


# --- Procrustes


@pytest.mark.parametrize(("p", "q"), [(6, 9), (8, 8)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_rotation_recovers_a_planted_rotation(p, q, noise):
    n, rotation = 500, rotation_of(p, q)
    anchors = planted_anchors(n, p, q)
    x = anchors.x.astype(np.float64) - anchors.x.mean(0)
    y = x @ rotation + noise * np.random.default_rng(1).normal(size=(n, q))
    fitted = Rotation().fit(with_rows(anchors, x, y))
    # x^T y is n times the rotation plus noise of norm noise * sqrt(n p q); a polar factor moves by at most twice the share.
    assert np.linalg.norm(fitted.coef.T - rotation) < 2 * noise * np.sqrt(p * q / n) + 1e-5
    assert not fitted.intercept.any()
    assert fitted.isometry_scale == pytest.approx(1, abs=1e-5)
    assert fitted.record.parameters["rank"] == p


def test_rotation_allows_reflections():
    anchors = planted_anchors(100, 5, 5)
    mirror = np.diag([1.0, 1, 1, 1, -1])
    fitted = Rotation().fit(with_rows(anchors, y=anchors.x @ mirror))
    np.testing.assert_allclose(fitted.coef, mirror, rtol=0, atol=1e-6)


def test_rotation_there_and_back_are_transposes():
    anchors = planted_anchors(60, 6, 9, noise=0.5)
    there, back = Rotation().fit(anchors), Rotation().fit(anchors.reversed())
    np.testing.assert_allclose(there.coef, back.coef.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("p", "q"), [(6, 9), (8, 8)])
def test_isometry_recovers_a_planted_scale_and_offset(p, q):
    rotation, offset = rotation_of(p, q), np.arange(q)
    anchors = planted_anchors(200, p, q)
    fitted = Isometry().fit(with_rows(anchors, y=2.5 * anchors.x @ rotation + offset))
    np.testing.assert_allclose(fitted.coef.T, 2.5 * rotation, rtol=0, atol=1e-5)
    np.testing.assert_allclose(fitted.intercept, offset, rtol=0, atol=1e-4)
    assert fitted.record.parameters["scale"] == pytest.approx(2.5, rel=1e-5)
    assert fitted.isometry_scale == pytest.approx(2.5, rel=1e-5)


@pytest.mark.parametrize(("p", "q"), WIDTHS)
def test_isometry_matches_the_total_variance_and_the_mean(p, q):
    anchors = planted_anchors(200, p, q, noise=1.0)  # noise that the least-squares scalar would shrink for
    x, y = wide_rows(anchors)
    found = Isometry().solve(anchors.moments())
    got = x @ found.weight + found.intercept
    assert got.var(axis=0).sum() == pytest.approx(y.var(axis=0).sum(), rel=1e-9)
    np.testing.assert_allclose(got.mean(0), y.mean(0), rtol=0, atol=1e-9)


def test_fewer_anchors_than_dimensions_are_reported_by_the_rank():
    anchors = planted_anchors(12, 20, 24)
    found = {
        name: cls().fit(anchors).record.parameters["rank"]
        for name, cls in METHODS.items()
        if cls not in (Affine, Bridge, Projection, Ridge)
    }
    assert found == {"rotation": 12, "isometry": 11, "linear": 11, "l-ortho": 11, "ortho": 11}
    assert Bridge(alpha=0.1, shrinkage_target_weight=1.0).fit(anchors).record.parameters["rank"] == 11


# --- The paper's four


def paper_scaling(x, y):
    """Standard scaling of both sides by the anchors' unbiased statistics; the narrower one zero-padded."""
    sides = [(rows.mean(0), rows.std(0, ddof=1)) for rows in (x, y)]
    wide = max(x.shape[1], y.shape[1])
    scaled = [(rows - mean) / std for rows, (mean, std) in zip((x, y), sides, strict=True)]
    return sides, [np.pad(z, ((0, 0), (0, wide - z.shape[1]))) for z in scaled]


def paper_matrix(method, zx, zy):
    if method is Ortho:
        u, _, vt = np.linalg.svd(zx.T @ zy)
        return u @ vt
    weight = np.linalg.lstsq(zx, zy)[0]
    if method is Linear:
        return weight
    u, _, vt = np.linalg.svd(weight)
    return u @ vt


@pytest.mark.parametrize(("p", "q"), [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize("method", [Linear, LOrtho, Ortho])
def test_the_closed_forms_are_those_of_the_paper(method, p, q):
    anchors = textlike_anchors(300, p, q)
    x, y = wide_rows(anchors)
    ((mean_x, std_x), (mean_y, std_y)), (zx, zy) = paper_scaling(x, y)
    rows = x + 0.1 * x.std() * np.random.default_rng(1).normal(size=x.shape)  # other rows than the anchors
    z = np.pad((rows - mean_x) / std_x, ((0, 0), (0, max(p, q) - p)))
    expected = (z @ paper_matrix(method, zx, zy))[:, :q] * std_y + mean_y
    got = method().fit(anchors).apply(rows)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize(("p", "q"), WIDTHS)
def test_affine_equals_adam_on_the_rows(p, q):
    anchors, wide, steps = textlike_anchors(100, p, q), max(p, q), 60
    x, y = wide_rows(anchors)
    (_, (mean_y, std_y)), (zx, zy) = paper_scaling(x, y)
    generator = torch.Generator().manual_seed(5)
    layer = torch.nn.Linear(wide, wide, dtype=torch.float64)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.uniform_(-(wide**-0.5), wide**-0.5, generator=generator)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(layer(torch.tensor(zx)), torch.tensor(zy)).backward()
        optimizer.step()
    expected = layer(torch.tensor(zx)).detach().numpy()[:, :q] * std_y + mean_y
    found = Affine(learning_rate=0.01, steps=steps, seed=5).solve(anchors.moments())
    np.testing.assert_allclose(x @ found.weight + found.intercept, expected, rtol=0, atol=1e-6)


def test_affine_starts_where_its_seed_says():
    anchors = planted_anchors(60, 6, 9)
    assert len({Affine(seed=seed, steps=5).fit(anchors).fingerprint for seed in (0, 1)}) == 2


def test_affine_tends_to_linear():
    anchors = planted_anchors(200, 6, 6, noise=0.3)
    expected = Linear().fit(anchors).coef
    far, near = (np.abs(Affine(steps=steps, learning_rate=0.01).fit(anchors).coef - expected).max() for steps in (10, 2000))
    assert far > 0.05
    assert near < 1e-3


@pytest.mark.parametrize("method", PAPER)
def test_dead_features_are_left_out(method):
    anchors = planted_anchors(100, 6, 8)
    x, y = wide_rows(anchors)
    largest_x, largest_y = (rows.std(0, ddof=1).max() for rows in (x, y))
    noise = np.random.default_rng(3).normal(size=(2, 100))
    noise = (noise - noise.mean(1, keepdims=True)) / noise.std(1, ddof=1, keepdims=True)
    # 0.5e-5 of the side's largest scale is dead, 2e-5 is alive; around zero, where float32 holds such values.
    x[:, 1], x[:, 2] = 0.5e-5 * largest_x * noise[0], 2e-5 * largest_x * noise[1]
    y[:, 3], y[:, 4] = 0.25 + 0 * noise[0], 2e-5 * largest_y * noise[1]
    fitted = method().fit(with_rows(anchors, x, y))
    assert not fitted.coef[:, 1].any()
    assert not fitted.coef[3].any()
    assert fitted.intercept[3] == 0.25
    assert fitted.coef[:, 2].any()
    assert fitted.coef[4].any()


# --- The paper's four on rows of unit length instead


def unit_pair(p, q, n=300):
    anchors = textlike_anchors(n, p, q).unit()
    return anchors, *wide_rows(anchors)


@pytest.mark.parametrize(("p", "q"), [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize("method", [Linear, LOrtho, Ortho])
def test_under_l2_scaling_the_closed_forms_are_those_of_the_rows_as_they_are(method, p, q):
    anchors, x, y = unit_pair(p, q)
    padded = [np.pad(side, ((0, 0), (0, max(p, q) - side.shape[1]))) for side in (x, y)]
    expected = (padded[0] @ paper_matrix(method, *padded))[:, :q]
    fitted = method(scaling="l2").fit(anchors)
    assert fitted.record.parameters["scaling"] == "l2"
    assert not fitted.intercept.any()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)  # the target is normalized
    np.testing.assert_allclose(fitted.apply(anchors.x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("p", "q"), WIDTHS)
def test_under_l2_scaling_affine_equals_adam_on_the_rows(p, q):
    (anchors, x, y), wide, steps = unit_pair(p, q, 100), max(p, q), 60
    zx, zy = (torch.tensor(np.pad(side, ((0, 0), (0, wide - side.shape[1])))) for side in (x, y))
    generator = torch.Generator().manual_seed(5)
    layer = torch.nn.Linear(wide, wide, dtype=torch.float64)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.uniform_(-(wide**-0.5), wide**-0.5, generator=generator)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(layer(zx), zy).backward()
        optimizer.step()
    found = Affine(learning_rate=0.01, steps=steps, seed=5, scaling="l2").solve(anchors.moments())
    np.testing.assert_allclose(x @ found.weight + found.intercept, layer(zx).detach().numpy()[:, :q], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", PAPER)
def test_l2_scaling_needs_normalized_spaces(method):
    with pytest.raises(ParameterError, match=r"space 'planted-source' is not normalized. Hint: fit on anchors.unit\(\)"):
        method(scaling="l2").fit(planted_anchors(60, 6, 9))


# --- Solvers


def test_least_squares_is_that_of_the_rows_whatever_their_rank():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(30, 4))
    for rank, dim in ((8, 8), (8, 20), (30, 50)):
        x = rng.normal(size=(30, rank)) @ rng.normal(size=(rank, dim))
        weight, found = least_squares(x.T @ x, x.T @ y)
        assert found == rank
        np.testing.assert_allclose(weight, np.linalg.lstsq(x, y, rcond=1e-7)[0], rtol=0, atol=1e-7)


def test_orthogonal_factor_is_a_partial_isometry_of_the_rank():
    rng = np.random.default_rng(0)
    factor, rank = orthogonal_factor(rng.normal(size=(9, 4)) @ rng.normal(size=(4, 7)))
    assert rank == 4
    np.testing.assert_allclose(np.linalg.svd(factor, compute_uv=False), [1] * 4 + [0] * 3, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(orthogonal_factor(np.zeros((3, 2)))[0], np.zeros((3, 2)))


# --- The verb, and what it refuses


@pytest.mark.parametrize("name", METHODS)
def test_fit_finds_the_method_by_its_name(name):
    anchors = planted_anchors(60, 6, 9)
    fitted = fit(anchors, name)
    assert fitted.record.method == name
    assert fitted.fingerprint == METHODS[name]().fit(anchors).fingerprint
    assert fitted.record.role == "documents"


def test_fit_takes_a_translator_and_parameters():
    anchors = planted_anchors(60, 6, 9)
    assert fit(anchors, Ridge(0.5)).fingerprint == fit(anchors, "ridge", alpha=0.5).fingerprint
    assert fit(anchors, "auto").fingerprint == Auto().fit(anchors).fingerprint


def test_parameters_of_numpy_are_recorded_as_plain_numbers(tmp_path):
    anchors = planted_anchors(60, 6, 9)
    for fitted in (
        fit(anchors, "ridge", alpha=np.float32(0.5)),
        fit(anchors, "bridge", shrinkage_target_weight=np.float32(0.5)),
        fit(anchors, "affine", steps=np.int64(3)),
    ):
        assert json.loads(json.dumps(fitted.record.to_dict()))["method"] == fitted.record.method
        fitted.save(tmp_path / f"{fitted.record.method}.safetensors")


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("bridge", {"alpha": -1.0, "shrinkage_target_weight": 0.5}, "alpha must be at least 0. Got -1.0 instead"),
        ("bridge", {"alpha": np.nan, "shrinkage_target_weight": 0.5}, "alpha must be at least 0. Got nan instead"),
        ("bridge", {"alpha": 1.0, "shrinkage_target_weight": 1.5}, r"shrinkage_target_weight must be in \[0, 1\]. Got 1.5 instead"),
        ("bridge", {"shrinkage_target_weight": -0.1}, r"shrinkage_target_weight must be in \[0, 1\]. Got -0.1 instead"),
        ("ridge", {"alpha": -2.0}, "alpha must be at least 0"),
        ("ridge", {"role": "ranking"}, "role must be 'documents', 'queries' or 'decode'. Got 'ranking' instead"),
        ("affine", {"steps": 0}, "steps must be at least 1. Got 0 instead"),
        ("affine", {"learning_rate": 0.0}, "learning_rate must be above 0. Got 0.0 instead"),
        ("affine", {"learning_rate": np.nan}, "learning_rate must be above 0. Got nan instead"),
        ("ridge", {"shrinkage_target_weight": 0.5}, "'ridge' has no parameter 'shrinkage_target_weight'. It takes alpha"),
        ("ortho", {"alpha": 0.5}, "'ortho' has no parameter 'alpha'. It takes scaling"),
        ("ortho", {"scaling": "minmax"}, "scaling must be 'standard' or 'l2'. Got 'minmax' instead"),
        ("rotation", {"alpha": 0.5}, "'rotation' has no parameter 'alpha'. It takes no parameters"),
        ("procrustes", {}, "method must be auto or one of bridge, ridge, .* Got 'procrustes' instead"),
        (Ridge(0.1), {"alpha": 0.2}, r"Ridge\(alpha=0.1.*is a translator with parameters; leave alpha out"),
    ],
)
def test_what_fit_refuses(method, parameters, message):
    with pytest.raises(ParameterError, match=message):
        fit(planted_anchors(60, 6, 9), method, **parameters)


def test_a_normalized_target_gets_unit_rows():
    anchors = planted_anchors(60, 6, 9)
    target = Space("unit", 9, Metric.COSINE, normalized=True)
    anchors = dataclasses.replace(anchors, y=anchors.y / np.linalg.norm(anchors.y, axis=1, keepdims=True), target=target)
    for name in METHODS:
        np.testing.assert_allclose(np.linalg.norm(fit(anchors, name).apply(anchors.x), axis=1), 1, rtol=0, atol=1e-5)
