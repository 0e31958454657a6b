"""The rows that the tests of a store write, and the capabilities of a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from embridge.arrays import unit
from embridge.stores.base import Collection
from embridge.stores.capabilities import Capabilities
from embridge.types import Metric, Space

N, DIM = 100, 8  # more rows than one batch, fewer than one default batch
Make = Callable[..., Collection]


class StoredRows:
    """Rows to store, and what a store does with them, which subclasses override.

    Attributes
    ----------
    capabilities : Capabilities
        What the store does with rows.
    has_payload : bool
        Other columns are kept.
    keeps_bad_values : bool
        NaN, infinite values and zero vectors can be stored.
    is_reproducible : bool
        The same rows stored twice have one fingerprint.
    tolerance : float
        Largest error of a value of about 1; 0 where vectors are returned unchanged.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(keeps_repeated_ids=True)
    has_payload: ClassVar[bool] = True
    keeps_bad_values: ClassVar[bool] = True
    is_reproducible: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.0

    @pytest.fixture
    def make(self) -> Make:
        """``make(ids, vectors, space, payload=None)`` gives a new collection each time; subclasses override it.

        `ids` is a list of str or int, `vectors` float32 of shape (n, dim), `payload` a dict of lists or None.
        """
        raise NotImplementedError(f"{type(self).__name__} must override the fixture `make`.")

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Run a test with the argument `id_kind` once for each kind."""
        if "id_kind" in metafunc.fixturenames:
            metafunc.parametrize("id_kind", cls.capabilities.id_types)

    def ids(self, kind: str | None = None, n: int = N) -> list[Any]:
        """Ids in random order."""
        numbers = np.random.default_rng(7).permutation(n).tolist()
        return [f"row-{i}" for i in numbers] if (kind or self.capabilities.id_types[0]) == "string" else numbers

    def vectors(self, n: int = N) -> np.ndarray:
        """Values that float16 holds exactly, so that a store of any float type returns them; of unit length where it scales."""
        rows = np.random.default_rng(3).normal(size=(n, DIM)).astype(np.float16).astype(np.float32)
        return rows if self.capabilities.keeps_lengths else unit(rows)

    def space(self, metric: Metric = Metric.COSINE) -> Space:
        """The space of the vectors."""
        return Space("conformance", DIM, metric, normalized=not self.capabilities.keeps_lengths and metric == Metric.COSINE)

    def expected(self, collection: Collection, ids: list[Any], vectors: np.ndarray) -> tuple[list[Any], np.ndarray]:
        """The rows in the order that the store reads them in."""
        found = [i for b in collection.id_reader() for i in b.column(0).to_pylist()]
        if self.capabilities.keeps_order:
            assert found == ids
        assert sorted(found) == sorted(ids)
        place = {i: at for at, i in enumerate(ids)}
        return found, vectors[[place[i] for i in found]]

    def assert_close(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Equal within the store's tolerance."""
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.astype(np.float64), expected, rtol=self.tolerance, atol=self.tolerance)
