"""The plan's table of kernel maps by landmarks."""

from dataclasses import asdict

import pytest

import embridge as eb
from embridge.evaluation.benchmark import Benchmark
from embridge.planning import landmarks
from embridge.planning.landmarks import landmark_costs
from embridge.records import LandmarkCost
from embridge.records.curves import landmark_lines
from embridge.translators import Kernel


@pytest.fixture(scope="module")
def anchors():
    old, new = eb.open(eb.sample_path("minilm")), eb.open(eb.sample_path("mpnet"))
    return eb.match(old, new)


def _candidates(kernel, benchmark):
    return benchmark.search(benchmark.queries.y, kernel.apply(benchmark.corpus.x), benchmark.corpus.target.metric)


def test_more_landmarks_cost_more_and_the_fewest_that_suffice_are_marked(anchors, monkeypatch):
    monkeypatch.setattr(landmarks, "_COUNTS", (8, 64, 5_000))
    train = anchors.sample(300, 0)
    benchmark = Benchmark.of(anchors.without(train.hashes()), None, 10)
    kernel = Kernel(penalty=0.3, alpha=1.0, shrinkage_target_weight=0.5).fit(train)
    found = landmark_costs(kernel, _candidates(kernel, benchmark), train, benchmark, seed=0, device="cpu")
    assert [one.landmarks for one in found] == [8, 64, 300]
    assert sum(one.is_enough for one in found) == 1
    scores = benchmark.scores(_candidates(kernel, benchmark))
    assert found[-1].overlap == pytest.approx(scores.overlap.mean())
    assert all(one.seconds > 0 and one.recall is None for one in found)
    best = max(one.overlap for one in found)
    enough = next(one for one in found if one.is_enough)
    assert best - enough.overlap < 0.05
    assert all(one.landmarks >= enough.landmarks or one.overlap < best for one in found)


def test_with_one_query_the_most_landmarks_are_named(anchors, monkeypatch):
    monkeypatch.setattr(landmarks, "_COUNTS", (8, 5_000))
    train = anchors.sample(100, 0)
    benchmark = Benchmark.of(anchors.without(train.hashes()), None, 10, max_queries=1)
    kernel = Kernel(penalty=0.3, alpha=1.0, shrinkage_target_weight=0.5).fit(train)
    found = landmark_costs(kernel, _candidates(kernel, benchmark), train, benchmark, seed=0, device="cpu")
    assert [one.is_enough for one in found] == [False, True]


def test_a_plan_has_the_table_and_names_the_count(anchors):
    found = eb.plan(anchors, anchors=200)
    assert [one.landmarks for one in found.landmarks] == [200]
    assert found.landmarks[0].overlap == pytest.approx(found["translate-documents-kernel"].overlap)
    assert "kernel maps by landmarks, overlap@10" in found.to_text()
    assert found.to_dict()["landmarks"][0] == asdict(found.landmarks[0])


def test_the_line_names_what_strategies_are_compared_by():
    costs = (LandmarkCost(500, 0.5, 0.25, 14.4, True), LandmarkCost(5_000, 0.6, 0.27, 77.0))
    expected = (
        "kernel maps by landmarks, recall@10 and seconds to translate a million rows: 500: 0.250 (14 s), 5,000: 0.270 (77 s); "
    )
    assert landmark_lines(10, costs) == [expected + "500 are enough"]
    assert landmark_lines(10, ()) == []
