"""Recommendations: what was chosen for its score is held to what luck alone would give, and the simpler of equals is taken."""

import numpy as np
import pytest

from embridge.evaluation import bootstrap_interval
from embridge.evaluation.bootstrap import simultaneous_intervals
from embridge.planning.recommendation import recommend
from embridge.records import CostedScore

OF = {
    "keep-old": (0, 0, True, False),  # encodes, rows changed, needs the old encoder, needs texts
    "translate-documents": (0, 1000, False, False),
    "project-queries": (0, 0, False, False),
    "project-queries-adjoint": (0, 0, False, False),
    "blend": (0, 0, True, False),
    "other": (0, 0, True, False),
    "another": (0, 0, True, False),
    "re-encode-20%": (200, 1000, False, True),
    "lazy-re-encode": (600, 1000, False, True),
    "re-encode": (1000, 1000, False, True),
    "progressive-20%": (200, 1000, True, True),
}


def strategy(title, gains, interval=(0.0, 0.0)):
    name, flag, _ = title.partition("+")
    encodes, changed, old, texts = OF[name]
    return CostedScore(
        name=name, hubness=bool(flag), overlap=0.5, overlap_ci=(0.4, 0.6), candidate_recall=0.9, recall=0.5, recall_ci=(0.4, 0.6),
        mrr=0.3, gain=float(gains.mean()), gain_ci=interval, recovered=None, rows_changed=changed, encodes=encodes, seconds=None,
        cost=None, needs_old_encoder=old, needs_texts=texts, weight=0.5 if name.startswith("progressive") else None,
    )  # fmt: skip


def recommended(table, *, full=(-1.0, 1.0)):
    """Recommendations from ``{title: gains}``; `full` is the interval of re-encoding everything."""
    n = len(next(iter(table.values())))
    table = {"keep-old": np.zeros(n), "re-encode": np.zeros(n), "project-queries": np.full(n, -1.0)} | table
    rows = [strategy(title, gains, full if title == "re-encode" else (0, 0)) for title, gains in table.items()]
    return recommend(rows, np.array(list(table.values())), judged=True)


FREE = [f"{name}{flag}" for name in list(OF)[1:7] for flag in ("", "+hubness")]


def cases(count, n, rho, shift, seed):
    """Gains of 12 strategies over n queries that have `rho` of their variance in common, none of them truly better than
    keeping the old model but the first, by `shift` standard errors."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        gains = np.sqrt(rho) * rng.normal(size=n) + np.sqrt(1 - rho) * rng.normal(size=(len(FREE), n))
        gains[0] += shift / np.sqrt(n)
        yield gains


def test_where_nothing_is_better_the_plan_says_keep_in_95_of_100_cases():
    kept = lucky = 0
    for gains in cases(500, 64, 0.5, 0.0, seed=1):
        kept += recommended(dict(zip(FREE, gains, strict=True)))["both-encoders"].strategy == "keep-old"
        lucky += gains[gains.mean(1).argmax()].mean() > 1.96 * gains[gains.mean(1).argmax()].std() / 8
    assert kept >= 475
    assert lucky > 50  # the best one's own interval says more than twice as often that something is better


def test_what_is_better_by_four_standard_errors_is_still_found():
    found = [
        recommended(dict(zip(FREE, gains, strict=True)))["both-encoders"].strategy for gains in cases(100, 64, 0.5, 4.0, seed=2)
    ]
    assert sum(name != "keep-old" for name in found) >= 75
    assert sum(name == FREE[0] for name in found) >= 70


def test_intervals_of_one_strategy_are_those_of_the_normal_approximation():
    values = np.random.default_rng(0).uniform(size=(1, 1000))
    ((low, high),) = simultaneous_intervals(values)
    half = 1.96 * values.std() / np.sqrt(1000)
    assert low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.08 * half)
    alone = bootstrap_interval(values[0])
    assert (low, high) == (pytest.approx(alone[0], abs=0.1 * half), pytest.approx(alone[1], abs=0.1 * half))


def test_intervals_are_wider_for_more_strategies_and_not_for_the_same_ones():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 400))

    def width(rows):
        return float(np.diff(simultaneous_intervals(rows)[0])[0])

    assert width(values[:1]) < width(values[:3]) < width(values)
    assert width(np.repeat(values[:1], 12, axis=0)) == pytest.approx(width(values[:1]))
    assert width(values) == pytest.approx(2 * 2.87 * values[0].std() / 20, rel=0.05)  # the 0.95 ** (1 / 12) quantile of |N(0, 1)|


def test_intervals_of_what_does_not_vary():
    rng = np.random.default_rng(0)
    values = np.stack([np.full(50, 0.3), np.zeros(50), rng.normal(size=50)])
    found = simultaneous_intervals(values)
    np.testing.assert_allclose(found[:2], [[0.3, 0.3], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(found[2], simultaneous_intervals(values[2:])[0])
    assert simultaneous_intervals(np.ones((2, 1))).tolist() == [[-1, 1]] * 2


def test_few_queries_prove_nothing():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 10, 29):
        edges = [simultaneous_intervals(rng.choice([-0.1, 0, 0.1], size=(12, n))) for _ in range(100)]
        assert np.mean([((e[:, 0] <= 0) & (e[:, 1] >= 0)).all() for e in edges]) >= 0.95


def test_all_intervals_hold_at_once_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        shared = rng.binomial(1, 0.3, size=150)
        values = np.where(rng.random((6, 150)) < 0.5, shared, rng.binomial(1, 0.3, size=(6, 150)))
        intervals = simultaneous_intervals(values.astype(float))
        held += ((intervals[:, 0] <= 0.3) & (intervals[:, 1] >= 0.3)).all()
    assert 178 <= held <= 199


@pytest.mark.parametrize(("near", "chosen"), [(0.0005, "blend"), (0.05, "blend+hubness")])
def test_of_equal_strategies_the_simpler_is_chosen(near, chosen):
    rng = np.random.default_rng(0)
    blend = rng.normal(0.3, 0.5, 400)
    best = blend + rng.normal(0, 0.2, 400)
    best += blend.mean() - best.mean() + near
    found = recommended({"blend": blend, "blend+hubness": best, "translate-documents": best - 1e-3})["both-encoders"]
    assert found.strategy == chosen
    assert ("not measurably worse" in found.reason) == (chosen == "blend")


def test_the_reason_has_the_corrected_interval():
    rng = np.random.default_rng(0)
    table = {name: rng.normal(0.0, 0.5, 400) for name in FREE}
    table["blend"] += 0.2
    found = recommended(table)["both-encoders"]
    free = ["project-queries", *(name for name in table if name != "project-queries")]
    low, high = simultaneous_intervals(np.array([table[name] for name in free]))[free.index("blend")]
    assert found.strategy == "blend"
    assert f"[{low:+.3f}, {high:+.3f}]" in found.reason
    assert "corrected for choosing among 12" in found.reason
    own = bootstrap_interval(table["blend"])
    assert low < own[0] < own[1] < high


def test_with_texts_the_strategy_that_encodes_least_and_recovers_enough_is_chosen():
    rng = np.random.default_rng(0)
    full = rng.normal(0.3, 0.5, 400)
    some = {"re-encode": full, "lazy-re-encode": 0.9 * full, "re-encode-20%": 0.5 * full, "blend": rng.normal(-0.1, 0.1, 400)}
    found = recommended(some, full=(0.2, 0.4))["texts-available"]
    assert found.strategy == "lazy-re-encode"
    assert "recovers 90% [90%, 90%]" in found.reason
    assert "600 of 1,000 rows encoded" in found.reason
    assert recommended(some | {"blend": 0.85 * full}, full=(0.2, 0.4))["texts-available"].strategy == "blend"  # no row at all
    poor = some | {"lazy-re-encode": 0.7 * full}
    assert recommended(poor, full=(0.2, 0.4))["texts-available"].strategy == "re-encode"
    assert recommended(some, full=(-0.1, 0.4))["texts-available"].strategy == "keep-old"


def test_a_share_within_its_interval_is_not_enough():
    """It recovers more than everything, and yet is not measurably better than keeping."""
    rng = np.random.default_rng(0)
    full = rng.normal(0.3, 0.5, 100)
    noisy = rng.normal(0, 5, 100)
    noisy += 0.35 - noisy.mean()
    assert recommended({"re-encode": full, "re-encode-20%": noisy}, full=(0.2, 0.4))["texts-available"].strategy == "re-encode"


def test_one_query_proves_nothing():
    found = recommended({"blend": np.array([0.5]), "re-encode": np.array([1.0])}, full=(1.0, 1.0))
    assert found["both-encoders"].strategy == "keep-old"
    assert found["texts-available"].strategy == "re-encode"


def test_where_re_encoding_is_worse_progressive_migration_may_still_be_better():
    rng = np.random.default_rng(5)
    table = {"re-encode": rng.normal(-0.2, 0.3, 400), "blend": rng.normal(0.0, 0.3, 400)}
    table["progressive-20%"] = rng.normal(0.1, 0.3, 400)
    found = recommended(table, full=(-0.23, -0.17))["texts-available"]
    assert found.strategy == "progressive-20%"
    assert found.reason.startswith("Re-encoding everything is worse than the old model")
    assert "With 200 of 1,000 rows encoded, progressive-20% has recall +0." in found.reason
    free = recommended(table | {"blend": table["progressive-20%"] + 0.01}, full=(-0.23, -0.17))
    assert free["texts-available"].strategy == free["both-encoders"].strategy == "blend"


@pytest.mark.parametrize(("budget", "chosen"), [(199, "blend"), (200, "progressive-20%"), (1000, "progressive-20%")])
def test_a_budget_buys_the_cheapest_of_the_best(budget, chosen):
    rng = np.random.default_rng(5)
    table = {"keep-old": np.zeros(400), "re-encode": rng.normal(0.3, 0.3, 400), "blend": rng.normal(0.1, 0.1, 400)}
    table["progressive-20%"] = table["re-encode"] + rng.normal(0.0, 0.1, 400)
    rows = [strategy(title, gains) for title, gains in table.items()]
    found = recommend(rows, np.array(list(table.values())), judged=True, budget=budget)["budget"]
    assert found.strategy == chosen
    without = recommend(rows, np.array(list(table.values())), judged=False, budget=budget)["budget"]
    assert not without.strategy.startswith("progressive")  # overlap is no measure for it
