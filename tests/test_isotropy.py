"""How evenly directions are used, against direct formulas, and on the command line."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from embridge.cli.main import main
from embridge.isotropy import Isotropy
from embridge.types import Space


def measured(vectors, batch=7, rows=None):
    found = Isotropy(rows or len(vectors))
    for start in range(0, len(vectors), batch):
        found.add(vectors[start : start + batch])
    return found


def rows(n=200, dim=6, mean=0.0):
    scales = np.linspace(1, 3, dim)
    return (np.random.default_rng(0).normal(size=(n, dim)) * scales + mean).astype(np.float32)


@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_both_figures_follow_their_formulas(mean):
    vectors = rows(mean=mean)
    found = measured(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(200, dtype=bool)]
    assert found.mean_cosine == pytest.approx(cosines.mean(), abs=1e-6)
    values = np.linalg.eigvalsh(np.cov(unit.T))
    shares = values / values.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert measured(vectors, 200).mean_cosine == pytest.approx(found.mean_cosine, abs=1e-9)
    assert (found.mean_cosine > 0.7) == (mean > 0)


def test_many_rows_are_sampled_for_the_rank_and_all_count_for_the_cosine():
    vectors = np.tile(rows(100), (250, 1))
    assert measured(vectors, 999).effective_rank == pytest.approx(measured(vectors[:100]).effective_rank, rel=0.05)
    assert sum(map(len, measured(vectors, 999)._sample)) <= 10_000


def test_too_few_rows_have_no_isotropy():
    for vectors in (rows(1), np.zeros((5, 3), np.float32), rows(0)):
        assert math.isnan(measured(vectors).effective_rank)
        assert math.isnan(measured(vectors).mean_cosine)
    same = measured(np.ones((5, 3), np.float32))
    assert same.mean_cosine == pytest.approx(1)
    assert math.isnan(same.effective_rank)
    assert measured(rows(5, 20)).effective_rank < 5


def test_info_reports_both(tmp_path, write, table_of):
    vectors = rows(mean=5.0)
    path = write(tmp_path / "a.parquet", table_of(np.arange(200), vectors, space=Space("a", 6)))
    done = CliRunner().invoke(main, ["info", path, "--no-catalog", "--json"])
    found, expected = json.loads(done.stdout), measured(vectors)
    assert found["mean_cosine"] == pytest.approx(expected.mean_cosine, abs=1e-6)
    assert found["effective_rank"] == pytest.approx(expected.effective_rank, rel=1e-3)
    text = CliRunner().invoke(main, ["info", path, "--no-catalog"]).stdout
    assert f"mean cosine of two rows: {expected.mean_cosine:.3f}; effective rank: " in text
