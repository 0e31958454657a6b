"""The rows and queries of a fused search give the stated score."""

from __future__ import annotations

import numpy as np
import pytest

from embridge.arrays import unit
from embridge.errors import ParameterError
from embridge.indexes.fusion import Fusion, Hubness, fused_rows
from embridge.indexes.hubness import bias
from embridge.types import Metric, Space

OLD, NEW = Space("old", 5, Metric.COSINE), Space("new", 7, Metric.DOT)


@pytest.mark.parametrize("hubness", list(Hubness))
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_scores(hubness: Hubness, weight: float) -> None:
    rng = np.random.default_rng(0)
    x, y, qx, qy = (rng.normal(size=shape).astype(np.float32) for shape in ((50, 5), (50, 7), (9, 5), (9, 7)))
    references = rng.normal(size=(20, 5)).astype(np.float32), rng.normal(size=(20, 7)).astype(np.float32)
    found = Fusion(weight, hubness).queries(qx, qy, has_bias=True) @ fused_rows(x, y, OLD, NEW, references).T
    old, new = unit(qx) @ unit(x).T, unit(qy) @ y.T
    if hubness in (Hubness.OLD, Hubness.BOTH):
        old = old - bias(unit(x), references[0]) / 2
    if hubness in (Hubness.NEW, Hubness.BOTH):
        new = new - bias(y, references[1]) / 2
    np.testing.assert_allclose(found, (1 - weight) * old + weight * new, atol=1e-5)


def test_rows_without_bias() -> None:
    x, y = np.eye(5, dtype=np.float32), np.ones((5, 7), np.float32)
    rows = fused_rows(x, y, OLD, NEW)
    assert rows.shape == (5, 12)
    assert Fusion(0.5).queries(x, y, has_bias=False).shape == (5, 12)
    with pytest.raises(ParameterError, match="reference queries"):
        Fusion(0.5, Hubness.OLD).queries(x, y, has_bias=False)


def test_bad_weights_and_l2() -> None:
    with pytest.raises(ParameterError, match="weight"):
        Fusion(1.5)
    with pytest.raises(ParameterError, match="weight"):
        Fusion(float("nan"))
    with pytest.raises(ParameterError, match="hubness"):
        Fusion(0.5, "all")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="L2"):
        fused_rows(np.eye(5), np.ones((5, 7)), Space("old", 5, Metric.L2), NEW)
