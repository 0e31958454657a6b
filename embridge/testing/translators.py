"""Conformance tests for translators. Subclass `TranslatorConformance`, define the fixture `translator`, and run pytest."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from embridge.anchors import Anchors
from embridge.errors import TooFewAnchorsError
from embridge.maps import LinearMap
from embridge.records import AnchorRecord
from embridge.translators.base import Translator
from embridge.types import Metric, Space

_TOLERANCE = 1e-5  # two orders of summation, then a solve in float64, then float32 coefficients


def planted_anchors(n: int, p: int, q: int, noise: float = 0.05, seed: int = 0) -> Anchors:
    """Anchors whose targets are a rotation (cut or padded to width q) of their sources, plus offsets and Gaussian noise.

    Parameters
    ----------
    n, p, q : int
        Rows, width of the source, width of the target.
    noise : float, default 0.05
        Standard deviation of the noise, for features of standard deviation one.
    seed : int, default 0
    """
    rng = np.random.default_rng(seed)
    wide = max(p, q)
    rotation = np.linalg.qr(rng.normal(size=(wide, wide)))[0][:p, :q]
    centered = rng.normal(size=(n, p))
    x = centered + rng.normal(size=p)
    y = centered @ rotation + rng.normal(size=q) + noise * rng.normal(size=(n, q))
    source, target = Space("planted-source", p, Metric.L2), Space("planted-target", q, Metric.L2)
    record = AnchorRecord("source-fingerprint", "target-fingerprint", n, n, 0, 0.0, 0)
    return Anchors(np.arange(n, dtype=np.int64), x.astype(np.float32), y.astype(np.float32), source, target, record)


def textlike_anchors(n: int, p: int, q: int, seed: int = 0) -> Anchors:
    """Anchors like those of real encoders: a decaying spectrum, a mean larger than the spread, unit length, no exact map.

    Parameters
    ----------
    n, p, q : int
        Rows, width of the source, width of the target.
    seed : int, default 0
    """
    rng = np.random.default_rng(seed)
    wide = 2 * max(p, q)
    meaning = rng.normal(size=(n, wide)) * np.linspace(1, 0.05, wide)
    sides = []
    for dim in (p, q):
        rows = meaning @ rng.normal(size=(wide, dim)) * rng.uniform(0.3, 2, dim) + 10 * rng.normal(size=dim)
        sides.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    return dataclasses.replace(planted_anchors(n, p, q), x=sides[0], y=sides[1])


class TranslatorConformance:
    """Tests that every translator passes.

    Examples
    --------
    ::

        class TestMine(TranslatorConformance):
            @pytest.fixture
            def translator(self):
                return Mine()
    """

    @pytest.fixture
    def translator(self) -> Translator:
        """The translator under test; a subclass overrides it."""
        raise NotImplementedError("a subclass must define the fixture 'translator'")

    @pytest.mark.parametrize(("p", "q"), [(6, 9), (9, 6), (8, 8), (1, 3), (3, 1)])
    def test_fit_gives_a_map_between_the_spaces(self, translator: Translator, p: int, q: int) -> None:
        anchors = planted_anchors(60, p, q)
        fitted = translator.fit(anchors)
        assert isinstance(fitted, LinearMap)
        assert (fitted.source, fitted.target) == (anchors.source, anchors.target)
        assert fitted.coef.shape == (q, p)
        assert fitted.intercept.shape == (q,)
        assert fitted.apply(anchors.x).shape == (60, q)

    @pytest.mark.parametrize(("p", "q"), [(24, 32), (32, 24), (24, 24)])
    def test_held_out_rows_land_nearer_than_the_mean(self, translator: Translator, p: int, q: int) -> None:
        anchors = planted_anchors(400, p, q)
        train, held_out = anchors.at(np.arange(300)), anchors.at(np.arange(300, 400))
        error = np.square(translator.fit(train).apply(held_out.x) - held_out.y).sum()
        # The part that no map from a narrower space can explain is in the error of both.
        assert error < np.square(train.y.mean(0) - held_out.y).sum()

    def test_the_constructor_only_stores(self, translator: Translator) -> None:
        given = {name: object() for name in inspect.signature(type(translator)).parameters}
        made = type(translator)(**given)
        assert all(vars(made)[name] is value for name, value in given.items())
        assert all(f"{name}=" in repr(made) for name in given)

    def test_fitting_changes_nothing_but_the_result(self, translator: Translator) -> None:
        anchors = planted_anchors(60, 6, 9)
        before, x, y = dict(vars(translator)), anchors.x.copy(), anchors.y.copy()
        numpy_state, torch_state = repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
        translator.fit(anchors)
        assert vars(translator) == before
        np.testing.assert_array_equal(anchors.x, x)
        np.testing.assert_array_equal(anchors.y, y)
        assert repr(np.random.get_state()) == numpy_state  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), torch_state)

    def test_fitting_twice_gives_one_map(self, translator: Translator) -> None:
        anchors = planted_anchors(60, 6, 9)
        assert translator.fit(anchors).fingerprint == translator.fit(anchors).fingerprint

    def test_read_only_rows_are_enough(self, translator: Translator) -> None:
        anchors = planted_anchors(60, 6, 9)
        expected = translator.fit(anchors)
        anchors.x.flags.writeable = anchors.y.flags.writeable = False
        assert_same_map(translator.fit(anchors), expected)

    @pytest.mark.parametrize(("p", "q"), [(6, 9), (9, 6)])
    def test_statistics_are_as_good_as_rows(self, translator: Translator, p: int, q: int) -> None:
        anchors = planted_anchors(60, p, q)
        expected = translator.fit(anchors)
        assert_same_map(translator.fit(anchors.folds(full=translator.needs_full())), expected)
        if translator.needs_folds():
            with pytest.raises(TooFewAnchorsError, match="folds"):
                translator.fit(anchors.moments())
        else:
            assert_same_map(translator.fit(anchors.moments()), expected)

    @pytest.mark.parametrize("n", [10, 60])
    def test_the_order_of_rows_does_not_matter(self, translator: Translator, n: int) -> None:
        anchors = planted_anchors(n, 12, 14)
        shuffled = anchors.at(np.random.default_rng(1).permutation(n))
        assert_same_map(translator.fit(shuffled), translator.fit(anchors))

    @pytest.mark.parametrize("flaw", ["few", "rank", "constant source", "constant target", "no variance"])
    def test_degenerate_rows_give_a_bounded_map(self, translator: Translator, flaw: str) -> None:
        anchors = planted_anchors(12 if flaw == "few" else 60, 20, 24)
        x, y = anchors.x.copy(), anchors.y.copy()
        if flaw == "rank":
            x[:, 10:] = x[:, :10]
        elif flaw == "constant source":
            x[:, 3] = 0.7
        elif flaw == "constant target":
            y[:, 3] = 0.7
        elif flaw == "no variance":
            x[:] = x[0]
        anchors = dataclasses.replace(anchors, x=x, y=y)
        got = translator.fit(anchors).apply(x)
        # Dividing by a variance of rounding noise would change translated rows by orders of magnitude.
        assert np.isfinite(got).all()
        assert np.linalg.norm(got, axis=1).max() < 5 * np.linalg.norm(y, axis=1).max()

    def test_too_few_anchors(self, translator: Translator) -> None:
        for n in range(translator.minimum):
            with pytest.raises(TooFewAnchorsError, match=str(translator.minimum)):
                translator.fit(planted_anchors(5, 6, 9).at(np.arange(n)))

    def test_the_record_says_how_it_was_fitted(self, translator: Translator) -> None:
        train, held_out = planted_anchors(80, 6, 9).split(0.2)
        fitted = translator.fit(train)
        record = fitted.record
        assert (record.method, record.anchors, record.held_out) == (translator.name, len(train), len(held_out))
        assert record.sources == ("source-fingerprint", "target-fingerprint")
        assert record.device == "cpu"
        assert record.seconds > 0
        assert json.loads(json.dumps(record.parameters)) == record.parameters
        np.testing.assert_array_equal(fitted.anchor_hashes, np.sort(train.hashes()))
        assert bool(record.candidates) == translator.needs_folds()
        if record.candidates:
            best = max(candidate.score for candidate in record.candidates)
            chosen = [c for c in record.candidates if c.parameters.items() <= record.parameters.items()]
            assert [c.score for c in chosen] == [best]

    def test_the_map_survives_a_file(self, translator: Translator, tmp_path: Path) -> None:
        fitted = translator.fit(planted_anchors(60, 6, 9))
        fitted.save(tmp_path / "map.safetensors")
        loaded = LinearMap.load(tmp_path / "map.safetensors")
        assert loaded.fingerprint == fitted.fingerprint
        assert loaded.record == fitted.record


def assert_same_map(found: LinearMap, expected: LinearMap) -> None:
    """Coefficients and intercepts agree within the error of summation order."""
    for name in ("coef", "intercept"):
        want = getattr(expected, name)
        np.testing.assert_allclose(getattr(found, name), want, rtol=0, atol=_TOLERANCE * max(1.0, np.abs(want).max()))
