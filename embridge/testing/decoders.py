"""Conformance tests for decoders. Subclass `DecoderConformance`, define the fixture `decoder`, and run pytest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embridge.decoders import Decoded, Decoder, decode
from embridge.errors import BadVectorsError, SpaceMismatchError
from embridge.stores import MemoryCollection

_TOLERANCE = 1e-5  # matrix products of other sizes sum in another order


class DecoderConformance:
    """Tests that every decoder passes.

    A subclass overrides the fixture `decoder`.
    """

    @pytest.fixture
    def decoder(self) -> Decoder:
        """The decoder under test."""
        raise NotImplementedError

    @pytest.fixture
    def vectors(self, decoder: Decoder) -> np.ndarray:
        """Rows of its space."""
        return np.random.default_rng(5).normal(size=(70, decoder.space.dim)).astype(np.float32)

    def test_gives_one_result_a_row(self, decoder: Decoder, vectors: np.ndarray) -> None:
        found = decoder.decode(vectors)
        assert len(found) == len(vectors)
        if decoder.kind == "classifier":
            assert found.prediction is not None
            assert found.prediction.shape == (len(vectors),)
            assert (found.probability is None) or (found.output is None)
            if decoder.classes is not None:
                assert set(found.prediction.tolist()) <= set(decoder.classes.tolist())
        if found.probability is not None:
            assert np.allclose(found.probability.sum(axis=1), 1, atol=1e-4)
        if decoder.kind == "output":
            assert found.prediction is None
            assert found.output is not None
        for part in (found.probability, found.output):
            assert part is None or (part.dtype == np.float32 and part.ndim == 2)

    def test_does_not_depend_on_the_rows_beside(self, decoder: Decoder, vectors: np.ndarray) -> None:
        whole = decoder.decode(vectors)
        for size in (1, 7, 64):
            parts = [decoder.decode(vectors[start : start + size]) for start in range(0, len(vectors), size)]
            for name in ("prediction", "probability", "output"):
                expected = getattr(whole, name)
                if expected is not None:
                    same(np.concatenate([getattr(part, name) for part in parts]), expected)
        assert len(decoder.decode(vectors[:0])) == 0

    def test_streams_as_it_decodes(self, decoder: Decoder, vectors: np.ndarray, tmp_path: Path) -> None:
        whole = decoder.decode(vectors)
        payload = {"note": [f"n{i}" for i in range(len(vectors))]}
        ids = [f"id{i}" for i in range(len(vectors))][::-1]
        collection = MemoryCollection(ids, vectors, decoder.space, payload)
        for size in (1, 33, 1000):
            done = decode(collection, decoder, tmp_path / f"{size}.parquet", batch_rows=size)
            table = pq.read_table(tmp_path / f"{size}.parquet")
            assert table["id"].to_pylist() == ids
            assert table["note"].to_pylist() == payload["note"]
            assert table.column_names == ["id", "note", *done.columns]
            assert done.rows == len(vectors)
            for name in ("prediction", "probability", "output"):
                expected = getattr(whole, name)
                assert (expected is not None) == (name in done.columns)
                if expected is not None:
                    same(np.array(table[name].to_pylist()), expected)

    def test_refuses_what_is_not_of_its_space(self, decoder: Decoder, vectors: np.ndarray, tmp_path: Path) -> None:
        with pytest.raises(SpaceMismatchError, match="dimensional"):
            decoder.decode(np.hstack([vectors, vectors]))
        other = MemoryCollection(np.arange(len(vectors)), vectors, replace(decoder.space, name="quite-another"))
        with pytest.raises(SpaceMismatchError, match="quite-another"):
            decode(other, decoder, tmp_path / "out.parquet")
        assert not list(tmp_path.iterdir())

    def test_refuses_bad_rows_and_leaves_nothing(self, decoder: Decoder, vectors: np.ndarray, tmp_path: Path) -> None:
        vectors[41, 1] = np.nan
        with pytest.raises(BadVectorsError, match="NaN"):
            decoder.decode(vectors)
        with pytest.raises(BadVectorsError, match="ids 41"):
            decode(
                MemoryCollection(np.arange(len(vectors)), vectors, decoder.space), decoder, tmp_path / "out.parquet", batch_rows=9
            )
        assert not list(tmp_path.iterdir())

    def test_has_a_fingerprint(self, decoder: Decoder) -> None:
        assert len(decoder.fingerprint) == 32
        assert isinstance(decoder.decode(np.ones((2, decoder.space.dim))), Decoded)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal labels, or numbers to float32 accuracy."""
    if expected.dtype.kind == "f":
        assert np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
    else:
        assert found.tolist() == expected.tolist()
