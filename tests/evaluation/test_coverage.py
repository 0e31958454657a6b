"""Intervals hold the truth as often as they say: on real queries resampled, and forecasts of the learning curve."""

import os
from pathlib import Path

import numpy as np
import pytest

import embridge as eb
from embridge.evaluation import bootstrap_interval
from embridge.evaluation.benchmark import Benchmark
from embridge.evaluation.metrics import recall_and_mrr, relevance
from embridge.neighbors import overlap, top_k
from embridge.planning.learning_curve import _extrapolate, learning_curve
from embridge.tables.qrels import read_qrels
from embridge.testing.translators import textlike_anchors
from tests.support import ROOT

DATA = Path(os.environ.get("EMBRIDGE_SHARED_DATA", ROOT.parent / "shared" / "data")) / "wordnet"
K = 10
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not beside the checkout")


@pytest.fixture(scope="module")
def wordnet():
    def pair(suffix=""):
        sides = (eb.open(str(DATA / f"{name}{suffix}.parquet"), space=name) for name in ("minilm-l6", "mpnet"))
        return eb.match(*sides)

    return pair(), pair(".queries"), read_qrels(str(DATA / "qrels.parquet"))


@pytest.fixture(scope="module")
def population(wordnet):
    """What every one of the 5,000 queries gives over one corpus with one map; recall and rank of the judged ones."""
    shared, queries, qrels = wordnet
    train = shared.sample(1000)
    corpus = shared.without(train.hashes()).sample(4000)
    translation = eb.fit(train, "ridge", alpha=0.1)
    truth = top_k(queries.y, corpus.y, K, corpus.target.metric).ids
    relevant, _ = relevance(corpus.ids, queries.ids, qrels)
    found = top_k(queries.y, translation.apply(corpus.x), K, corpus.target.metric).ids
    kept = top_k(queries.x, corpus.x, K, corpus.source.metric).ids
    recall, rank = recall_and_mrr(found, relevant)
    return {
        "overlap": overlap(found, truth),
        "recall": recall,
        "reciprocal rank": rank,
        "gain in overlap": overlap(found, truth) - overlap(kept, truth),
        "gain in recall": recall - recall_and_mrr(kept, relevant)[0],
    }


@needs_data
def test_intervals_over_real_queries_hold_the_mean_of_all_of_them(population):
    """200 draws of 200 queries with replacement, so there is no finite population to correct for."""
    rng, n = np.random.default_rng(1), 200
    held = dict.fromkeys(population, 0)
    for draw in range(200):
        for name, values in population.items():
            low, high = bootstrap_interval(values[rng.integers(len(values), size=n)], seed=draw)
            held[name] += low <= values.mean() <= high
    shares = {name: count / 200 for name, count in held.items()}
    assert 0.92 <= np.mean(list(shares.values())) <= 0.98
    assert all(0.9 <= share <= 0.995 for share in shares.values()), shares  # each is a count of 200: one and a half points of noise


def _forecast(pool, corpus, queries, base, seed):
    """The curve from `base` of the pool, and what the whole pool, four times as many, gives to the same queries."""
    benchmark = Benchmark.of(corpus, queries, K, seed=seed)
    train = pool.sample(base, seed)
    translation = eb.fit(train, "bridge", alpha=0.1, shrinkage_target_weight=0.5)
    curve = learning_curve(translation, train, benchmark)
    whole = eb.fit(pool, "bridge", alpha=0.1 / 4, shrinkage_target_weight=0.5)
    found = benchmark.search(queries.y, whole.apply(benchmark.corpus.x), corpus.target.metric, k=K)
    return curve, float(overlap(found, benchmark.truth).mean())


@needs_data
def test_a_quarter_of_real_anchors_predicts_the_quality_of_all(wordnet):
    shared, queries, _ = wordnet
    pool = shared.sample(3000)
    curve, truth = _forecast(pool, shared.without(pool.hashes()).sample(4000), queries.sample(1000), 750, 0)
    (_, (low, high)) = curve.forecast_ci
    assert low <= truth <= high
    assert high - low < 0.12
    assert curve.forecast[1] == pytest.approx(truth, abs=0.03)


def test_forecasts_hold_on_planted_anchors():
    held, width = 0, []
    for seed in range(10):
        rows = textlike_anchors(3000, 24, 32, seed=seed)
        pool, corpus, queries = (rows.at(np.arange(*span)) for span in ((0, 800), (800, 2400), (2400, 3000)))
        curve, truth = _forecast(pool, corpus, queries, 200, seed)
        low, high = curve.forecast_ci[1]
        held += low <= truth <= high
        width.append(high - low)
    assert held >= 8  # at 0.95, fewer once in a hundred times
    assert np.median(width) < 0.15


@pytest.mark.parametrize(
    ("law", "number"), [(lambda n: 0.5 - 40 / (n + 300), 0), (lambda n: 0.6 - 1.5 * n**-0.4, 1)], ids=["hyperbola", "power"]
)
def test_curves_that_follow_a_formula_are_predicted_by_it(law, number):
    sizes, ahead = np.array([100.0, 200, 400, 800, 1600]), (3200, 6400)
    wanted = [law(float(n)) for n in ahead]
    falling = np.stack([law(sizes), np.linspace(0.5, 0.4, 5), np.full(5, 0.3)])
    found = _extrapolate(sizes, falling, ahead)
    np.testing.assert_allclose(found[0, number], wanted, atol=2e-3)
    np.testing.assert_allclose(found[1], 0.4)  # quality that falls is predicted to stay
    np.testing.assert_allclose(found[2], 0.3)
    assert abs(found[0, 1 - number, 1] - wanted[1]) > 5e-3
