"""Choosing a fusion: candidates are those of the exact search, and the choice does not fall below the old model."""

from __future__ import annotations

import numpy as np
import pytest

from embridge.arrays import unit
from embridge.errors import EmbridgeError
from embridge.evaluation.fusion import LEAST_QUERIES, Candidates, CandidateSearch, choose_fusion
from embridge.indexes.fusion import Fusion, Hubness, fused_rows
from embridge.neighbors import overlap, top_k
from embridge.types import Metric, Space

OLD, NEW = Space("old", 12, Metric.COSINE, False), Space("new", 20, Metric.COSINE, False)


class Sides:
    """Rows and queries in two spaces that share a latent position, with noise of a given size on each side."""

    def __init__(self, noise_old: float, noise_new: float, *, rows: int = 1500, queries: int = 300, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        latent = rng.normal(size=(rows + queries, 6))
        self.sides = []
        for space, noise in ((OLD, noise_old), (NEW, noise_new)):
            mixing = rng.normal(size=(6, space.dim))
            self.sides.append((latent @ mixing + noise * rng.normal(size=(len(latent), space.dim))).astype(np.float32))
        self.rows, self.queries = ([side[part] for side in self.sides] for part in (slice(rows), slice(rows, None)))
        self.truth = top_k(latent[rows:].astype(np.float32), latent[:rows].astype(np.float32), 10).ids

    def held(self) -> np.ndarray:
        """Rows as an index stores them, with biases."""
        return fused_rows(*self.rows, OLD, NEW, references=(self.queries[0][:50], self.queries[1][:50]))

    def search(self, *, step: int | None = None, exclude: np.ndarray | None = None) -> Candidates:
        held = self.held()
        found = CandidateSearch(unit(self.queries[0]), unit(self.queries[1]))
        for start in range(0, len(held), step or len(held)):
            part = held[start : start + (step or len(held))]
            ids = np.arange(start, start + len(part))
            found.offer(part[:, :12], part[:, 12:32], ids, (part[:, 32], part[:, 33]), exclude)
        return found.candidates()


@pytest.mark.parametrize("hubness", list(Hubness))
@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_candidates_rank_like_the_exact_fused_search(weight: float, hubness: Hubness) -> None:
    sides, fusion = Sides(1.0, 1.0), Fusion(weight, hubness)
    exact = top_k(fusion.queries(*sides.queries, has_bias=True), sides.held(), 10, Metric.DOT).ids
    np.testing.assert_array_equal(sides.search().ranked(fusion, 10), exact)


def test_batches_give_the_candidates_of_all_rows_at_once() -> None:
    sides = Sides(1.0, 1.0)
    whole, parts = sides.search(), sides.search(step=137)
    for fusion in (Fusion(0.3), Fusion(0.7, Hubness.BOTH)):
        np.testing.assert_array_equal(whole.ranked(fusion, 100), parts.ranked(fusion, 100))


def test_a_query_that_is_a_row_does_not_find_itself() -> None:
    sides = Sides(0.5, 0.5, queries=40)
    sides.queries = [side[:40] for side in sides.rows]
    found = sides.search(step=700, exclude=np.arange(40)).ranked(Fusion(0.5), 10)
    assert not (found == np.arange(40)[:, None]).any()
    assert (sides.search().ranked(Fusion(0.5), 1)[:, 0] == np.arange(40)).all()


def test_fewer_rows_than_asked_leave_empty_places() -> None:
    found = Sides(1.0, 1.0, rows=15).search().ranked(Fusion(0.5), 20)
    assert (np.sort(found[:, :15], axis=1) == np.arange(15)).all()
    assert (found[:, 15:] == -1).all()


@pytest.mark.parametrize(
    ("noise_old", "noise_new", "low", "high"), [(3.0, 0.5, 0.5, 1.0), (0.5, 3.0, 0.0, 0.4), (1.5, 1.5, 0.2, 0.8)]
)
def test_the_better_side_has_more_weight(noise_old: float, noise_new: float, low: float, high: float) -> None:
    sides = Sides(noise_old, noise_new)
    assert low <= choose_fusion(sides.search(), list(sides.truth)).weight <= high


def test_a_useless_new_side_never_replaces_the_old_one() -> None:
    """The choice on one half is not measurably worse than the old model on the other."""
    for seed in range(10):
        sides = Sides(1.0, 1.0, seed=seed)
        rng = np.random.default_rng(seed)
        sides.rows[1] = rng.normal(size=sides.rows[1].shape).astype(np.float32)
        found = sides.search()
        first, second = np.arange(150), np.arange(150, 300)
        chosen = choose_fusion(found.at(first), list(sides.truth[first]))
        scores = [overlap(found.at(second).ranked(f, 10), sides.truth[second]) for f in (chosen, Fusion(0.0))]
        gain = scores[0] - scores[1]
        assert gain.mean() >= -1.96 * gain.std() / np.sqrt(len(gain))


def test_with_few_queries_the_old_model_is_kept() -> None:
    sides = Sides(3.0, 0.5)
    few = np.arange(LEAST_QUERIES - 1)
    assert choose_fusion(sides.search().at(few), list(sides.truth[few])) == Fusion(0.0)


def test_queries_without_relevant_rows_do_not_count() -> None:
    sides = Sides(3.0, 0.5)
    relevant = [rows if place % 2 else rows[:0] for place, rows in enumerate(sides.truth)]
    chosen = choose_fusion(sides.search(), relevant)
    assert chosen == choose_fusion(sides.search().at(np.arange(1, 300, 2)), relevant[1::2])
    assert choose_fusion(sides.search(), relevant[: 2 * LEAST_QUERIES - 2] + [sides.truth[0][:0]] * 202) == Fusion(0.0)


def test_only_possible_corrections_are_chosen() -> None:
    sides = Sides(3.0, 0.5)
    assert choose_fusion(sides.search(), list(sides.truth), hubness=(Hubness.NONE,)).hubness == Hubness.NONE


def test_queries_of_both_sides_are_needed() -> None:
    with pytest.raises(EmbridgeError, match="300 old and 299 new"):
        CandidateSearch(Sides(1, 1).queries[0], Sides(1, 1).queries[1][:299])
