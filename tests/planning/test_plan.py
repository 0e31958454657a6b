"""Plans on planted pairs: what is better comes out better, and what is recommended follows from the table."""

import contextlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from embridge import Catalog, FoldMoments, LinearMap, fit, plan, sample_path
from embridge import match as match_
from embridge import open as open_
from embridge.cli.main import main
from embridge.errors import ParameterError, TooFewAnchorsError
from embridge.planning.recommendation import recommend
from embridge.tables.qrels import read_qrels
from embridge.testing.translators import planted_anchors
from embridge.translators.select import one_standard_error

TITLES = {
    "keep-old", "translate-documents", "translate-documents-kernel", "project-queries", "project-queries-adjoint", "blend",
    "re-encode", "re-encode-1%", "re-encode-5%", "re-encode-20%", "lazy-re-encode", "lazy-re-encode-blend",
}  # fmt: skip
STAGES = (1, 5, 10, 20, 35, 50, 100)
FUSED = {"fuse", "fuse-kernel", "fuse-projected", "fuse-kernel-projected"} | {
    f"progressive-{percent}%{suffix}" for percent in STAGES for suffix in ("", "-projected")
}


@pytest.fixture(scope="module")
def sample():
    shared = match_(open_(sample_path("minilm")), open_(sample_path("mpnet")))
    queries = match_(open_(sample_path("minilm.queries")), open_(sample_path("mpnet.queries")))
    return shared, queries, read_qrels(sample_path("qrels"))


@pytest.fixture(scope="module")
def planned(sample):
    shared, queries, qrels = sample
    return plan(shared, queries=queries, qrels=qrels, anchors=1000, encode_rate=100.0, price=0.01)


def test_every_strategy_is_there_with_and_without_correction(planned):
    plain = {s.name for s in planned.strategies if not s.hubness}
    assert plain == TITLES | FUSED
    assert {s.name for s in planned.strategies if s.hubness} == TITLES
    assert {s.name for s in planned.strategies if s.weight is not None} == FUSED  # which choose their correction
    assert (planned.anchors, planned.corpus, planned.queries) == (1000, 2000, 600)


def test_the_ends_are_exact(planned):
    full, keep = planned["re-encode"], planned["keep-old"]
    assert full.overlap == full.candidate_recall == 1
    assert full.overlap_ci == pytest.approx((1, 1))
    assert full.recovered == pytest.approx(1)
    assert (keep.gain, keep.gain_ci) == (0, (0, 0))
    assert keep.recovered == 0
    for s in planned.strategies:
        assert s.overlap_ci[0] - 1e-9 <= s.overlap <= s.overlap_ci[1] + 1e-9
        assert s.recall_ci[0] <= s.recall <= s.recall_ci[1]
        assert s.candidate_recall >= s.overlap


def test_costs_follow_from_what_is_encoded(planned):
    assert [planned[f"re-encode-{p}%"].encodes for p in (1, 5, 20)] == [20, 100, 400]
    for s in planned.strategies:
        assert s.seconds == pytest.approx(s.encodes / 100)
        assert s.cost == pytest.approx(s.encodes * 0.01)
        assert s.needs_texts == (s.encodes > 0)
        old = s.name in ("keep-old", "blend", "lazy-re-encode-blend") or (s.name in FUSED and not s.name.endswith("-projected"))
        assert s.needs_old_encoder == old
    assert planned["blend"].rows_changed == 0
    assert planned["translate-documents"].rows_changed == planned.corpus


@pytest.mark.parametrize("suffix", ["", "+hubness"])
def test_lazy_reencoding_only_reorders_candidates(planned, suffix):
    for name, first in (("lazy-re-encode", "translate-documents"), ("lazy-re-encode-blend", "blend")):
        lazy, raw = planned[name + suffix], planned[first + suffix]
        assert lazy.candidate_recall == pytest.approx(raw.candidate_recall)
        assert lazy.overlap == pytest.approx(raw.candidate_recall, abs=1e-3)  # the native order keeps every native neighbor
        assert lazy.overlap > raw.overlap
        assert 100 <= lazy.encodes <= planned.corpus


def test_recommendations_follow_from_the_table(planned):
    found = planned.recommendations
    assert set(found) == {"old-encoder-gone", "both-encoders", "texts-available"}
    gone = planned[found["old-encoder-gone"].strategy]
    assert not gone.needs_old_encoder
    assert not gone.needs_texts
    both = planned[found["both-encoders"].strategy]
    assert not both.needs_texts
    assert both.title == "keep-old" or both.gain_ci[0] > 0


def test_where_nothing_is_better_the_old_model_is_kept(sample):
    shared, queries, qrels = sample
    found = plan(shared.reversed(), queries=queries.reversed(), qrels=qrels, anchors=1000)
    assert found["re-encode"].gain < 0
    assert found["re-encode"].recovered is None
    assert found.recommendations["both-encoders"].strategy in ("keep-old", "keep-old+hubness")
    worse = [s for s in found.strategies if s.title in ("keep-old", "translate-documents", "re-encode")]
    recommended = recommend(worse, np.repeat([[s.gain] for s in worse], 9, axis=1), judged=True)
    assert recommended["both-encoders"].strategy == recommended["texts-available"].strategy == "keep-old"
    assert "Nothing is measurably better" in recommended["both-encoders"].reason


def test_without_queries_rows_are_queries_and_overlap_decides():
    found = plan(planted_anchors(600, 12, 16, noise=0.4), anchors=300)
    assert found.queries == found.corpus == 300
    assert found["keep-old"].recall is None
    assert found["re-encode"].recovered == pytest.approx(1)
    assert found["translate-documents"].overlap > 0.3


def test_the_learning_curve_rises_and_its_forecast_goes_on(planned):
    curve = planned.learning_curve
    assert curve.anchors == (62, 125, 250, 500, 1000)
    assert curve.overlap[-1] > curve.overlap[0]
    assert curve.forecast_anchors == (2000, 4000)
    assert all(v >= curve.overlap[-1] for v in curve.forecast)
    assert all(low <= high for low, high in curve.forecast_ci)


@pytest.mark.parametrize(("options", "error"), [
    ({"k": 0}, ParameterError), ({"price": 0.0}, ParameterError), ({"encode_rate": -1.0}, ParameterError),
    ({"anchors": 40}, TooFewAnchorsError),
])  # fmt: skip
def test_bad_input(options, error):
    with pytest.raises(error):
        plan(planted_anchors(45, 6, 9), **options)


def test_the_simplest_within_one_standard_error_is_taken():
    rng = np.random.default_rng(0)
    best = rng.normal(1, 0.1, 400)
    near, far = best - rng.normal(0.0, 0.1, 400), best - 0.5
    assert one_standard_error(np.array([far, near + best.mean() - near.mean() - 1e-4, best]))[0] == 1
    assert one_standard_error(np.array([far, best]))[0] == 1


@pytest.mark.parametrize("role", ["documents", "queries", "decode"])
def test_auto_takes_the_rotation_where_that_is_the_truth(role):
    rng = np.random.default_rng(3)
    anchors = planted_anchors(400, 8, 8, noise=0.0)
    q, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    turned = type(anchors)(
        anchors.ids, anchors.x, (anchors.x @ q).astype(np.float32), anchors.source, anchors.target, anchors.record
    )
    found = fit(turned, role=role)
    assert found.record.method == "rotation"
    assert found.isometry_scale == pytest.approx(1, abs=1e-5)


def test_folds_added_are_folds_of_all(tmp_path):
    anchors = planted_anchors(500, 6, 9, noise=0.3)
    first, rest = anchors.at(np.arange(300)), anchors.at(np.arange(300, 500))
    first.folds().save(tmp_path / "a.moments.safetensors")
    grown = FoldMoments.load(tmp_path / "a.moments.safetensors") + rest.folds()
    whole = anchors.folds()
    for got, want in zip(grown.parts, whole.parts, strict=True):
        assert got.n == want.n
        np.testing.assert_allclose(got.sxy, want.sxy, rtol=1e-9, atol=1e-9)
    for got, want in zip(grown.samples, whole.samples, strict=True):
        np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(grown.anchor_hashes, whole.anchor_hashes)
    back = grown - rest.folds()
    np.testing.assert_allclose(back.total().sxx, first.folds().total().sxx, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(back.anchor_hashes, np.sort(first.hashes()))
    with pytest.raises(ParameterError, match="in both sets"):
        grown + rest.folds()
    with pytest.raises(ParameterError, match="not in these moments"):
        back - rest.folds()


def test_on_the_command_line(tmp_path):
    names = [str(sample_path(n)) for n in ("minilm", "mpnet", "minilm.queries", "mpnet.queries", "qrels")]
    arguments = ["plan", *names[:2], "--queries", *names[2:4], "--qrels", names[4], "--anchors", "600", "--json"]
    result = CliRunner().invoke(main, [*arguments, "--catalog", str(tmp_path / "c.duckdb")])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) >= {"k", "queries", "corpus", "anchors", "strategies", "recommendations"}
    wanted = {
        "name", "hubness", "overlap", "overlap_ci", "candidate_recall", "recall", "recall_ci", "mrr", "recovered", "rows_changed",
        "encodes", "seconds", "cost", "needs_old_encoder", "needs_texts",
    }  # fmt: skip
    assert all(set(s) >= wanted for s in found["strategies"])
    assert all(set(r) == {"strategy", "reason"} for r in found["recommendations"].values())
    catalog = Catalog(tmp_path / "c.duckdb")
    assert {row["strategy"]: (row["recall"], row["ndcg"]) for row in catalog.sql("FROM plan")} == {
        s["name"] + ("+hubness" if s["hubness"] else ""): (s["recall"], s["ndcg"]) for s in found["strategies"]
    }
    assert {r["situation"]: r["strategy"] for r in catalog.sql("FROM recommendation")} == {
        situation: r["strategy"] for situation, r in found["recommendations"].items()
    }
    (run,) = catalog.sql("SELECT parameters FROM run")
    options = {"anchors", "k", "encode_rate", "price", "budget", "budget_money", "max_queries", "seed", "device"}
    assert set(json.loads(run["parameters"])) == options
    refused = CliRunner().invoke(main, ["plan", *names[:2], "--qrels", names[4], "--no-catalog"])
    assert refused.exit_code == 1


def test_anchors_are_added_and_removed_without_the_old_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("minilm", "mpnet"):
        table = pq.read_table(sample_path(name))
        pq.write_table(table.slice(0, 1800), f"{name}-1.parquet")
        pq.write_table(table.slice(1800), f"{name}-2.parquet")

    def fitted(output, *arguments):
        done = CliRunner().invoke(main, ["fit", *arguments, "-o", output, "--no-catalog", "--json"])
        assert done.exit_code == 0, done.output
        return LinearMap.load(output)

    first = fitted("1.safetensors", "minilm-1.parquet", "mpnet-1.parquet", "--moments", "1.moments.safetensors")
    whole = fitted("all.safetensors", str(sample_path("minilm")), str(sample_path("mpnet")), "--keep-affine")
    added = fitted(
        "2.safetensors",
        "minilm-2.parquet",
        "mpnet-2.parquet",
        "--update",
        "1.moments.safetensors",
        "--moments",
        "2.moments.safetensors",
    )
    # The old rows may be there again: they are passed over.
    again = fitted("3.safetensors", str(sample_path("minilm")), str(sample_path("mpnet")), "--update", "1.moments.safetensors")
    for found in (added, again):
        assert (found.record.method, found.record.parameters) == (whole.record.method, whole.record.parameters)
        np.testing.assert_allclose(found.coef, whole.coef, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found.anchor_hashes, whole.anchor_hashes)
    back = fitted(
        "4.safetensors",
        "minilm-2.parquet",
        "mpnet-2.parquet",
        "--update",
        "2.moments.safetensors",
        "--remove",
        "--method",
        "rotation",
    )
    alone = fitted("5.safetensors", "minilm-1.parquet", "mpnet-1.parquet", "--method", "rotation")
    np.testing.assert_allclose(back.coef, alone.coef, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(back.anchor_hashes, first.anchor_hashes)


@pytest.mark.parametrize(("options", "message"), [
    (["--remove"], "--remove needs --update"),
    (["--update", "m.moments.safetensors"], "no row to fit on that is not in"),
])  # fmt: skip
def test_what_update_refuses(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    paths = [str(sample_path("minilm")), str(sample_path("mpnet"))]
    match_(open_(paths[0]), open_(paths[1])).split(0.1)[0].folds().save("m.moments.safetensors")
    done = CliRunner().invoke(main, ["fit", *paths, "-o", "map.safetensors", "--no-catalog", *options])
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (tmp_path / "map.safetensors").exists()


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_few_queries_recommend_nothing_for_what_it_scored(sample, queries):
    shared, query_pairs, qrels = sample
    found = plan(shared.sample(400), queries=query_pairs, qrels=qrels, anchors=200, max_queries=queries)
    assert found.recommendations["both-encoders"].strategy == "keep-old"
    assert "inf" not in str(found)


def test_few_anchors_have_no_learning_curve(sample):
    planned = 0
    for seed in range(8):
        with contextlib.suppress(TooFewAnchorsError):  # where a fold is empty
            found = plan(sample[0].sample(200), anchors=7, seed=seed, max_queries=60)
            assert found.learning_curve.anchors == ()
            assert "overlap by anchors" not in str(found)
            planned += 1
    assert planned
