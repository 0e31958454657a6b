"""Progressive migration in a plan: the curve, what it is fitted on, budgets, and what a plan says about its yardstick."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.arrays import unit
from embridge.cli.main import main
from embridge.errors import ParameterError
from embridge.evaluation.benchmark import Benchmark
from embridge.evaluation.runner import Runner
from embridge.evaluation.strategies import FUSE, RE_ENCODE, progressive
from embridge.indexes.fusion import Fusion, Hubness
from embridge.neighbors import top_k
from embridge.planning.maps import fitted_maps
from embridge.translators import METHODS
from embridge.translators.again import same_method
from embridge.types import Metric, Space

PERCENTS = [0, 1, 5, 10, 20, 35, 50, 100]


def views(noise_old=1.2, noise_new=0.6, *, rows=900, queries=180, seed=0, metric=Metric.COSINE, common=0.0):
    """``rows, queries, qrels``: two noisy views of hidden positions; a query is near its relevant row."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, 10))
    near = rng.choice(rows, queries, replace=False)
    hidden = np.concatenate([hidden, hidden[near] + 0.3 * rng.normal(size=(queries, 10))])
    sides = []
    for dim, noise in ((24, noise_old), (32, noise_new)):
        side = hidden @ rng.normal(size=(10, dim)) + 3 * noise * rng.normal(size=(len(hidden), dim))
        sides.append((side + common * rng.normal(size=dim)).astype(np.float32))
    spaces = [Space(name, side.shape[1], metric, False) for name, side in zip(("old", "new"), sides, strict=True)]

    def anchors(ids, part):
        return eb.match(*(eb.MemoryCollection(ids, side[part], space) for side, space in zip(sides, spaces, strict=True)))

    names = [f"q{i}" for i in range(queries)]
    qrels = {name: {int(row): 1.0} for name, row in zip(names, near, strict=True)}
    return anchors(list(range(rows)), slice(rows)), anchors(names, slice(rows, None)), qrels


@pytest.fixture(scope="module")
def planned():
    rows, queries, qrels = views()
    return eb.plan(rows, queries=queries, qrels=qrels, anchors=300, price=0.5, budget=90)


@pytest.fixture(scope="module")
def runner():
    rows, queries, qrels = views()
    train = rows.sample(300)
    benchmark = Benchmark.of(rows.without(train.hashes()), queries, 10, qrels=qrels)
    return train, Runner(benchmark, fitted_maps(train, benchmark, qrels, real=False, seed=0, device="cpu")[0])


def test_the_curve_has_the_figures_of_the_strategies(planned):
    assert [point.percent for point in planned.curve] == [0, 1, 5, 10, 15, 20, 35, 50, 100]  # 15 is the budget
    assert [point.encodes for point in planned.curve] == [0, 6, 30, 60, 90, 120, 210, 300, 600]
    for points, suffix in ((planned.curve, ""), (planned.curve_projected, "-projected")):
        for point in points:
            named = planned[(f"progressive-{point.percent:g}%" if point.percent else "fuse") + suffix]
            assert (point.recall, point.recall_ci, point.overlap) == (named.recall, named.recall_ci, named.overlap)
            assert (point.weight, point.hubness, point.encodes) == (named.weight, named.correction, named.encodes)
            assert named.needs_texts == (point.encodes > 0)
    assert planned.curve[-1].recall > planned.curve[0].recall
    assert planned.curve[-1].weight >= planned.curve[0].weight


def test_the_curve_in_json_and_in_the_text(planned):
    curve = json.loads(json.dumps(planned.to_dict()))["curve"]
    assert set(curve[0]) >= {"percent", "encodes", "recall", "recall_ci", "overlap", "weight", "hubness"}
    assert curve[0]["percent"] == 0
    text = str(planned)
    table = text.split("progressive migration with both encoders")[1].split("with the old encoder gone")[0]
    for point in planned.curve:
        assert f"{point.percent:.3g} %" in table
        assert f"{point.recall:.3f}" in table
        assert f"{point.recall_ci[0]:.3f}" in table
    assert "with the old encoder gone" in text


@pytest.mark.parametrize(("noise_old", "noise_new"), [(1.2, 0.6), (1.0, 1.0), (0.6, 1.5)])
def test_no_stage_is_measurably_below_the_old_model(noise_old, noise_new):
    rows, queries, qrels = views(noise_old, noise_new, seed=3)
    found = eb.plan(rows, queries=queries, qrels=qrels, anchors=300)
    for point in found.curve:
        assert found[f"progressive-{point.percent:g}%" if point.percent else "fuse"].gain_ci[1] >= 0, point.percent


def test_the_rows_of_a_stage_are_native_where_the_other_half_reaches_and_translated_by_the_map_of_all_anchors(runner):
    train, engine = runner
    benchmark, search = engine.benchmark, engine._fused
    for strategy in progressive(len(benchmark.corpus))[3:5]:  # the second continues the moments of the first
        for half in (0, 1):
            queries = unit(benchmark.queries.y[benchmark.half == half])
            changed, _ = search._changed(strategy, half, queries, is_corrected=True)
            chosen = search._order_for(strategy.queries, half)[: strategy.encodes(len(benchmark.corpus))]
            both = np.concatenate([train.x, benchmark.corpus.x[chosen]]), np.concatenate([train.y, benchmark.corpus.y[chosen]])
            more = replace(train, ids=np.arange(len(both[0])), x=both[0], y=both[1])
            fitted = same_method(engine.maps[0].translation.record).fit(more.moments())
            rest = np.setdiff1d(np.arange(len(benchmark.corpus)), chosen)
            np.testing.assert_array_equal(changed.places, rest)  # the others are native
            expected = queries @ unit(fitted.apply(benchmark.corpus.x[rest])).T
            np.testing.assert_allclose(changed.queries @ changed.rows.T, expected, rtol=0, atol=1e-4)


def test_rows_that_most_queries_of_the_other_half_reach_come_first(runner):
    _, engine = runner
    benchmark = engine.benchmark
    found, _ = engine._fused.run(FUSE)
    order = engine._fused._order_for(FUSE.queries, 0)
    assert sorted(order.tolist()) == list(range(len(benchmark.corpus)))
    counts = np.bincount(found[benchmark.half == 1].ravel(), minlength=len(order))
    assert counts[order[:100]].mean() > 1.5 * counts[order[-100:]].mean()


def test_a_fusion_for_one_half_does_not_depend_on_its_own_judgments(runner):
    _, engine = runner
    before, _ = engine._fused.run(FUSE)
    benchmark, rng = engine.benchmark, np.random.default_rng(0)
    spoiled = [
        rng.choice(len(benchmark.corpus), 3) if half == 0 else rows
        for rows, half in zip(benchmark.relevant, benchmark.half, strict=True)
    ]
    after, _ = Runner(replace(benchmark, relevant=spoiled), engine.maps[0])._fused.run(FUSE)
    np.testing.assert_array_equal(after[benchmark.half == 0], before[benchmark.half == 0])


def test_at_the_end_every_row_is_native(runner):
    _, engine = runner
    benchmark = engine.benchmark
    last = progressive(len(benchmark.corpus))[6]
    candidates = engine._fused._candidates(last, 0)
    members = np.flatnonzero(benchmark.half == 0)
    native = top_k(benchmark.queries.y[members], benchmark.corpus.y, 10).ids
    np.testing.assert_array_equal(candidates.ranked(Fusion(1.0), 10), native)
    np.testing.assert_array_equal(engine.found(RE_ENCODE)[members, :10], native)


@pytest.mark.parametrize("method", [*METHODS])
def test_the_same_method_is_the_method_of_a_map_with_its_parameters(method):
    rows, *_ = views(rows=200, queries=60)
    given = {"alpha": 0.7} if method in ("bridge", "ridge", "projection") else {}
    if method == "bridge":
        given |= {"shrinkage_target_weight": 0.75, "mean_weight": 1.5}
    fitted = eb.fit(rows, method, **given)
    again = same_method(fitted.record).fit(rows.moments())
    np.testing.assert_allclose(again.coef, fitted.coef, rtol=0, atol=1e-5)
    np.testing.assert_allclose(again.intercept, fitted.intercept, rtol=0, atol=1e-5)


# Budgets


def test_a_budget_is_kept_and_its_stage_is_measured(planned):
    assert planned["progressive-15%"].encodes == planned["progressive-15%-projected"].encodes == 90
    one = planned.recommendations["budget"]
    assert planned[one.strategy].encodes <= 90
    assert one.reason.startswith("90 of 600 rows may be encoded")
    assert f"budget: {one.strategy}." in str(planned)


def test_a_budget_in_money_is_one_in_rows(planned):
    rows, queries, qrels = views()
    found = eb.plan(rows, queries=queries, qrels=qrels, anchors=300, price=0.5, budget_money=45.4)
    assert found.recommendations["budget"] == planned.recommendations["budget"]
    assert "budget" not in eb.plan(rows, queries=queries, anchors=300, max_queries=60).recommendations


def test_a_budget_of_everything_may_be_spent():
    rows, queries, qrels = views(2.0, 0.4)
    found = eb.plan(rows, queries=queries, qrels=qrels, anchors=300, budget=5000)
    assert found.recommendations["budget"].reason.startswith("All 600 rows may be encoded")
    assert [point.percent for point in found.curve] == PERCENTS


@pytest.mark.parametrize(("options", "message"), [
    ({"budget": 0}, "budget must be above 0"), ({"budget_money": -1.0, "price": 1.0}, "budget_money must be above 0"),
    ({"budget_money": 5.0}, "needs the price"), ({"budget": 5, "budget_money": 5.0, "price": 1.0}, "not both"),
])  # fmt: skip
def test_bad_budgets(options, message):
    with pytest.raises(ParameterError, match=message):
        eb.plan(views(rows=60, queries=30)[0], anchors=30, **options)


def test_the_command_line_takes_a_budget():
    names = [str(eb.sample_path(n)) for n in ("minilm", "mpnet")]
    arguments = ["plan", *names, "--anchors", "400", "--max-queries", "50", "--no-catalog", "--json"]
    done = CliRunner().invoke(main, [*arguments, "--price", "0.1", "--budget-money", "10"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert "budget" in found["recommendations"]
    assert 100 in [point["encodes"] for point in found["curve"]]
    assert {point["recall"] for point in found["curve"]} == {None}
    refused = CliRunner().invoke(main, [*arguments, "--budget-money", "10"])
    assert (refused.exit_code, "needs the price" in refused.stderr) == (1, True)


# What a plan says


def test_without_judgments_no_fusion_is_recommended_and_the_plan_says_why():
    rows, queries, _ = views()
    found = eb.plan(rows, queries=queries, anchors=300, budget=90)
    assert {point.recall for point in found.curve} == {None}
    for one in found.recommendations.values():
        assert not one.strategy.startswith(("fuse", "progressive"))
    (note,) = [note for note in found.to_dict()["notes"] if note.startswith("without judgments")]
    assert "which overlap counts as errors" in note
    assert note in str(found)


def test_a_worse_new_model_is_called_worse():
    rows, queries, qrels = views(0.3, 2.5)
    found = eb.plan(rows, queries=queries, qrels=qrels, anchors=300)
    assert found["re-encode"].gain_ci[1] < 0
    assert any(note.startswith("the new model is worse than the old one on these queries: recall@10 -") for note in found.notes)
    assert "worse than the old model" in found.recommendations["texts-available"].reason
    assert not any(note.startswith("the new model is worse") for note in eb.plan(*views()[:1], anchors=300).notes)


def test_strong_anisotropy_is_explained(planned):
    assert not any("anisotropic" in note for note in planned.notes)
    assert [one.space for one in planned.isotropy] == ["old", "new"]
    rows, queries, qrels = views(common=12.0)
    found = eb.plan(rows, queries=queries, qrels=qrels, anchors=300)
    assert min(one.mean_cosine for one in found.isotropy) > 0.5
    notes = [note for note in found.notes if "strongly anisotropic" in note]
    assert [note.split("'")[1] for note in notes] == ["old", "new"]
    assert asdict(found.isotropy[0])["dim"] == 24


def test_under_l2_there_is_no_fusion_and_no_curve(tmp_path):
    rows, queries, qrels = views(metric=Metric.L2)
    found = eb.plan(rows, queries=queries, qrels=qrels, anchors=300, budget=90)
    assert not [s for s in found.strategies if s.weight is not None]
    assert found.curve == found.curve_projected == ()
    eb.write_report(found, tmp_path / "plan.html")
    assert "figure-progress" not in (tmp_path / "plan.html").read_text("utf-8")


def test_the_report_draws_the_curve_and_has_its_numbers(planned, tmp_path):
    eb.write_report(planned, tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text("utf-8")
    assert 'id="figure-progress"' in page
    for name, points in (("progress-table", planned.curve), ("progress-projected-table", planned.curve_projected)):
        table = page.split(f'<table id="{name}">')[1].split("</table>")[0]
        for point in points:
            assert f'value="{point.recall}"' in table
            assert f'value="{point.encodes}"' in table
            assert f"<td>{point.hubness}</td>" in table
    assert "Within the budget" in page


def test_references_of_the_new_model_correct_the_new_side_only():
    rows, queries, _ = views()
    train = rows.sample(300)
    found = eb.evaluate(eb.fit(train, "ridge", alpha=0.1), rows, queries=queries, hubness=queries.y[:100])
    assert found["fuse"].correction in (Hubness.NONE, Hubness.NEW)
    assert found["fuse"].weight is not None
    assert "fuse+hubness" not in [s.name for s in found.strategies]
