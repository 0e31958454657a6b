"""The product that most of the work is: its values, whatever the rows and the library that multiplies."""

import pickle

import numpy as np
import pytest
import torch

import embridge as eb
from embridge.device import Product

RNG = np.random.default_rng(0)


def close(found, rows, weight, bias):
    exact = rows.astype(np.float64) @ weight.astype(np.float64).T + bias
    scale = np.linalg.norm(rows, axis=1, keepdims=True) * np.linalg.norm(weight, axis=1) + np.abs(bias)
    assert found.shape == exact.shape
    assert found.dtype == np.float32
    assert (np.abs(found - exact) <= 1e-6 * scale).all()


@pytest.mark.parametrize("has_onednn", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 5000])
@pytest.mark.parametrize("shape", [(768, 384), (3, 7), (1, 100), (5, 1)], ids=str)
def test_products_of_any_number_of_rows(monkeypatch, shape, count, has_onednn):
    if not has_onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    weight, bias = RNG.normal(size=shape).astype(np.float32), RNG.normal(size=shape[0]).astype(np.float32)
    rows = RNG.normal(size=(count, shape[1])).astype(np.float32)
    close(Product(weight, bias).of_array(rows), rows, weight, bias)
    close(Product(weight)(torch.from_numpy(rows)).numpy(), rows, weight, np.zeros(shape[0]))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_arrays_of_any_layout(dtype):
    weight, bias = RNG.normal(size=(5, 6)).astype(np.float32), np.zeros(5, np.float32)
    rows = RNG.normal(size=(12, 300)).astype(dtype).T[::-2, ::2]
    rows.flags.writeable = False
    close(Product(weight.T.copy().T, bias).of_array(rows), rows.astype(np.float32), weight, bias)


def test_a_product_is_pickled():
    weight, bias = RNG.normal(size=(5, 6)).astype(np.float32), RNG.normal(size=5).astype(np.float32)
    rows = torch.randn(4, 6)
    again = pickle.loads(pickle.dumps(Product(weight, bias)))  # noqa: S301 - our own bytes
    assert torch.equal(again(rows), Product(weight, bias)(rows))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("is_kernel", [False, True])
def test_gradients_pass_through_maps(is_kernel, normalized):
    torch.manual_seed(0)
    spaces = eb.Space("old", 6), eb.Space("new", 9, eb.Metric.COSINE, normalized)
    rng = np.random.default_rng(1)
    translation = eb.LinearMap(rng.normal(size=(9, 6)), rng.normal(size=9), *spaces)
    if is_kernel:
        translation = eb.KernelMap(translation, rng.normal(size=(20, 6)), rng.normal(size=(20, 9)) / 10, 1.0)
    x, step, weights = torch.randn(80, 6, requires_grad=True), 1e-2 * torch.randn(80, 6), torch.randn(80, 9)
    (translation.apply(x) * weights).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        ahead, behind = (((translation.apply(x + sign * step) * weights).sum(1)) for sign in (1, -1))
    torch.testing.assert_close((x.grad * step).sum(1), (ahead - behind) / 2, atol=2e-3, rtol=0.05)
