"""The one engine of strategies: equal names mean equal numbers in `evaluate` and `plan`, and each is what it says."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.errors import BadVectorsError, MapError, ParameterError, SpaceMismatchError
from embridge.evaluation.benchmark import Benchmark
from embridge.evaluation.runner import Runner
from embridge.evaluation.strategies import ENCODING, FUSED, STRATEGIES, Maps, Rows, progressive
from embridge.maps.queries import blend
from embridge.neighbors import overlap
from embridge.planning.maps import fitted_maps
from embridge.types import Metric, Space

K = 5
MEASURES = (
    "weight",
    "correction",
    "overlap",
    "overlap_ci",
    "candidate_recall",
    "recall",
    "recall_ci",
    "mrr",
    "mrr_ci",
    "ndcg",
    "ndcg_ci",
)


def anchors_of(ids, x, y, metric=Metric.COSINE):
    source, target = Space("old", x.shape[1], metric), Space("new", y.shape[1], metric)
    return eb.match(eb.MemoryCollection(ids, x, source), eb.MemoryCollection(ids, y, target))


@pytest.fixture(scope="module")
def pair(planted):
    """``rows, queries, qrels``: noisy views of the same things; queries are near rows, and relevant is the row they are near."""

    def make(p=8, q=12, metric=Metric.COSINE, noise=0.5):
        ids, x, y, _ = planted(900, p, q, noise, 1)
        rng = np.random.default_rng(7)
        near = rng.choice(900, 240, replace=False)
        noisy = [side[near] + 0.4 * rng.normal(size=(240, side.shape[1])) for side in (x, y)]
        queries = anchors_of([f"q{i}" for i in range(240)], *(side.astype(np.float32) for side in noisy), metric)
        return anchors_of(ids, x, y, metric), queries, {f"q{i}": {int(ids[n]): 1.0} for i, n in enumerate(near)}

    return make


@pytest.mark.parametrize(
    ("p", "q", "metric", "judged", "own"),
    [
        (8, 12, Metric.COSINE, True, False), (8, 12, Metric.DOT, False, False), (8, 12, Metric.L2, True, False),
        (9, 9, Metric.COSINE, True, False), (8, 12, Metric.COSINE, False, True), (12, 8, Metric.COSINE, True, False),
    ],
)  # fmt: skip
def test_evaluate_and_plan_agree_on_every_name_they_share(pair, p, q, metric, judged, own):
    rows, queries, qrels = pair(p, q, metric)
    few = queries.at(np.arange(180))  # too few in a half to choose maps on: both verbs have maps chosen on the anchors
    given = {"queries": None if own else few, "qrels": qrels if judged else None, "k": K}
    planned = eb.plan(rows, anchors=300, **given)
    train = rows.sample(300)
    maps = eb.fit(train, "auto", keep_affine=True), eb.fit(train.reversed(), "auto", role="queries", keep_affine=True)
    # Rows come in another order: names mean the same whatever that is.
    found = eb.evaluate(maps[0], rows.at(np.arange(len(rows))[::-1]), reverse_map=maps[1], **given)
    shared = {s.name for s in found.strategies} & {s.title for s in planned.strategies}
    assert shared >= {"keep-old", "translate-documents", "project-queries", "re-encode"}
    names = {s.name for s in (*STRATEGIES, *FUSED) if s.rows != Rows.KERNEL}
    assert {s.name for s in found.strategies} == {s.title for s in planned.strategies if not s.hubness} & names
    assert ({"fuse", "fuse-projected"} <= shared) == (metric != Metric.L2)
    for name in shared:
        for measure in MEASURES:
            ours, theirs = (getattr(side[name], measure) for side in (found, planned))
            expected = theirs if theirs is None or measure == "correction" else pytest.approx(theirs, abs=1e-12)
            assert ours == expected, (name, measure)
    assert (found.queries, found.corpus, found.judged, found.qrels) == (
        planned.queries, planned.corpus, planned.judged, planned.qrels
    )  # fmt: skip
    if "blend" in shared:
        assert found.weight == planned.weight


def test_maps_for_one_half_are_chosen_on_the_other(pair):
    """Each figure of a plan is that of `evaluate` with the maps of the query's half, and these do not depend on it."""
    rows, queries, qrels = pair()
    train = rows.sample(520)  # enough to compare methods on real queries
    benchmark = Benchmark.of(rows.without(train.hashes()), queries, K, qrels=qrels)
    maps = fitted_maps(train, benchmark, qrels, real=True, seed=0, device="cpu")
    assert maps[0].translation.record.chosen_by == "queries"
    planned = eb.plan(rows, queries=queries, qrels=qrels, anchors=520, k=K)
    found = [eb.evaluate(m.translation, rows, queries=queries, qrels=qrels, reverse_map=m.reverse, k=K).per_query for m in maps]
    for name in ("keep-old", "translate-documents", "project-queries", "project-queries-adjoint", "blend"):
        halves = [found[half].figures[name]["overlap"][benchmark.half == half] for half in (0, 1)]
        assert planned[name].overlap == pytest.approx(np.concatenate(halves).mean(), abs=1e-12), name
    spoiled = queries.y.copy()
    spoiled[benchmark.half == 0] = np.random.default_rng(0).normal(size=(int((benchmark.half == 0).sum()), 12))
    changed = replace(benchmark, queries=anchors_of(queries.ids.tolist(), queries.x, spoiled))
    again = fitted_maps(train, changed, qrels, real=True, seed=0, device="cpu")
    assert again[0].translation.fingerprint == maps[0].translation.fingerprint  # of half 0: chosen on half 1
    assert again[1].translation.fingerprint != maps[1].translation.fingerprint


def test_names_are_the_vocabulary():
    assert [s.name for s in (*STRATEGIES, *ENCODING, *FUSED)] == [
        "keep-old", "no-translation", "translate-documents", "translate-documents-kernel", "project-queries",
        "project-queries-adjoint", "blend", "re-encode", "lazy-re-encode", "lazy-re-encode-blend", "re-encode-1%", "re-encode-5%",
        "re-encode-20%", "fuse", "fuse-kernel", "fuse-projected", "fuse-kernel-projected",
    ]  # fmt: skip
    plain = [f"progressive-{percent}%" for percent in (1, 5, 10, 20, 35, 50, 100)]
    assert [s.name for s in progressive(1000)] == [*plain, *(f"{name}-projected" for name in plain)]
    assert [s.name for s in progressive(1000, 133)][4] == "progressive-20%"
    assert [s.encodes(1000) for s in progressive(1000, 133)][:8] == [10, 50, 100, 133, 200, 350, 500, 1000]
    assert progressive(1000, 200) == progressive(1000, 5000) == progressive(1000)


def test_projected_queries_are_those_of_the_reverse_map_and_the_adjoint(pair):
    rows, queries, _ = pair()
    train = rows.sample(300)
    translation, reverse = eb.fit(train, "ridge", alpha=0.1), eb.fit(train.reversed(), "ridge", alpha=0.1)
    corpus = rows.without(train.hashes())
    found = eb.evaluate(translation, rows, queries=queries, reverse_map=reverse, k=K, weight=0.3)
    truth = eb.top_k(queries.y, corpus.y, K).ids
    back = {
        "project-queries": reverse.apply(queries.y),
        "project-queries-adjoint": queries.y @ translation.coef,
        "blend": blend(queries.x, queries.y @ translation.coef, 0.3),
    }
    for name, vectors in back.items():
        expected = overlap(eb.top_k(vectors, corpus.x, K).ids, truth).mean()
        assert found[name].overlap == pytest.approx(expected, abs=2e-3), name
    assert found.reverse_map == reverse.fingerprint
    assert found.weight == 0.3
    assert found["project-queries"].overlap != found["project-queries-adjoint"].overlap


def test_a_kernel_map_has_no_adjoint_and_may_have_a_reverse_map(pair):
    rows, queries, _ = pair()
    train = rows.sample(300)
    kernel, reverse = eb.fit(train, "kernel"), eb.fit(train.reversed(), "ridge", alpha=0.1)
    with pytest.raises(MapError):
        kernel.project_queries(queries.y)
    names = [s.name for s in eb.evaluate(kernel, rows, queries=queries, reverse_map=reverse, k=K).strategies]
    assert names == ["keep-old", "translate-documents", "project-queries", "re-encode", "fuse", "fuse-projected"]


def test_rows_that_the_reverse_map_was_fitted_on_are_left_out(pair):
    rows, *_ = pair()
    translation, reverse = (
        eb.fit(rows.at(np.arange(300)), "rotation"),
        eb.fit(rows.at(np.arange(200, 500)).reversed(), "ridge", alpha=1),
    )
    assert eb.evaluate(translation, rows, reverse_map=reverse, k=K).corpus == 400
    with pytest.raises(SpaceMismatchError, match=r"a map from 'new' \(12\) to 'old' \(8\) is needed"):
        eb.evaluate(translation, rows, reverse_map=translation, k=K)


def test_the_weight_for_a_half_does_not_depend_on_its_own_queries(pair):
    """Queries of one half are made useless by the old model: only the other half's weight moves."""
    rows, queries, _ = pair()
    train = rows.sample(300)
    maps, corpus = Maps(eb.fit(train, "ridge", alpha=0.1)), rows.without(train.hashes())
    half = Benchmark.of(corpus, queries, K).half
    spoiled = queries.x.copy()
    spoiled[half == 0] = np.random.default_rng(0).normal(size=(int((half == 0).sum()), 8))
    changed = anchors_of(queries.ids.tolist(), spoiled, queries.y)
    before, after = (Runner(Benchmark.of(corpus, q, K), maps).weights for q in (queries, changed))
    assert before[0] == after[0]
    assert after[1] == 0.7  # of the new query: the old one is noise


def test_hubness_references_must_be_numbers(pair):
    rows, queries, _ = pair()
    bad = np.full((5, 12), np.nan)
    with pytest.raises(BadVectorsError, match="reference queries has 5 rows"):
        eb.evaluate(eb.fit(rows.sample(300), "rotation"), rows, queries=queries, hubness=bad, k=K)


@pytest.mark.parametrize("k", [0, -1, 1.5, None])
def test_k_is_checked_by_both_verbs(pair, k):
    rows, *_ = pair()
    with pytest.raises(ParameterError, match="k must be"):
        eb.plan(rows, k=k)
    with pytest.raises(ParameterError, match="k must be"):
        eb.evaluate(eb.fit(rows.sample(300), "rotation"), rows, k=k)


# Queries that are rows


def test_given_queries_that_are_rows_do_not_find_themselves(pair):
    rows, *_ = pair()
    translation = eb.fit(rows.sample(300), "ridge", alpha=0.1)
    corpus = rows.without(translation.anchor_hashes)
    alone = eb.evaluate(translation, rows, k=K)
    given = eb.evaluate(translation, rows, queries=corpus, k=K)
    assert (alone.own_rows, given.own_rows) == (0, 600)
    assert [s.overlap for s in given.strategies] == pytest.approx([s.overlap for s in alone.strategies])
    assert "600 of the queries are rows of the corpus (same id, same vector) and do not find themselves" in str(given)
    planned = eb.plan(rows, queries=corpus, anchors=300, k=K)
    assert planned.own_rows == 600
    assert planned.to_dict()["notes"] == planned.notes
    assert "600 of the queries are rows" in str(planned)


def test_equal_ids_that_mean_other_things_are_other_things(pair):
    """Queries and rows are often both numbered from 0."""
    rows, queries, _ = pair()
    translation = eb.fit(rows.sample(300), "ridge", alpha=0.1)
    corpus = rows.without(translation.anchor_hashes)
    numbered = anchors_of(corpus.ids[: len(queries)], queries.x, queries.y)
    found = eb.evaluate(translation, rows, queries=numbered, k=K, weight=0.5)
    assert found.own_rows == 0
    assert found["keep-old"].overlap == eb.evaluate(translation, rows, queries=queries, k=K, weight=0.5)["keep-old"].overlap


def test_a_row_that_is_a_query_is_not_relevant_to_itself(pair):
    rows, *_ = pair()
    translation = eb.fit(rows.sample(300), "ridge", alpha=0.1)
    corpus = rows.without(translation.anchor_hashes)
    queries = corpus.at(np.arange(80))
    qrels = {int(i): [int(i), int(corpus.ids[n + 100])] for n, i in enumerate(queries.ids)}
    found = eb.evaluate(translation, rows, queries=queries, qrels=qrels, k=len(corpus) - 1)
    assert {s.recall for s in found.strategies} == {1.0}


# Plans


@pytest.mark.parametrize(("k", "depths"), [(5, [10, 20, 50, 100]), (30, [50, 100]), (150, [150])])
def test_lazy_strategies_have_depths(pair, k, depths):
    rows, queries, qrels = pair()
    found = eb.plan(rows, queries=queries, qrels=qrels, anchors=300, k=k)
    for title in ("lazy-re-encode", "lazy-re-encode-blend", "lazy-re-encode+hubness"):
        mine = [one for one in found.lazy_depths if one.strategy == title]
        assert [one.depth for one in mine] == depths
        assert [one.encodes for one in mine] == sorted(one.encodes for one in mine)
        assert [one.overlap for one in mine] == sorted(one.overlap for one in mine)
        assert mine[-1].encodes == found[title].encodes
        assert (mine[-1].overlap, mine[-1].recall) == pytest.approx((found[title].overlap, found[title].recall))
    assert "lazy-re-encode, recall@" in str(found)


def test_a_lazy_strategy_puts_the_native_order_first(pair):
    rows, queries, _ = pair()
    benchmark = Benchmark.of(rows, queries, K)
    found = benchmark.search(queries.x, benchmark.corpus.x, Metric.COSINE)
    again = benchmark.rerank(found, 20)
    native = eb.top_k(queries.y, benchmark.corpus.y, len(rows)).ids
    for before, after, order in zip(found, again, native, strict=True):
        assert after[:20].tolist() == [i for i in order.tolist() if i in set(before[:20].tolist())]
        assert after[20:].tolist() == before[20:].tolist()


@pytest.mark.parametrize("count", [1, 40, 240])
def test_few_queries_are_said_to_recommend_by_chance(pair, count):
    rows, queries, _ = pair()
    found = eb.plan(rows, queries=queries, anchors=300, max_queries=count, k=K)
    few = count < 100
    assert any(note.startswith(f"few queries: means over {count}") for note in found.notes) == few
    assert ("few queries" in str(found)) == few
    assert all(("the choice is mostly random" in r.reason) == few for r in found.recommendations.values())


def test_the_text_shows_the_strategies_that_decide(pair):
    rows, queries, qrels = pair()
    found = eb.plan(rows, queries=queries, qrels=qrels, anchors=300, k=K)
    shown = [s.title for s in found.deciding]
    assert {"keep-old", "re-encode", *(r.strategy for r in found.recommendations.values())} <= set(shown)
    assert len(shown) <= 8 < len(found.strategies)
    lines = [line.split()[0] for line in str(found).splitlines()]
    assert lines[1 : len(shown) + 2] == [*shown, "and"]
    everything = found.to_text(all_strategies=True).splitlines()
    assert [line.split()[0] for line in everything[1 : len(found.strategies) + 1]] == [s.title for s in found.strategies]


@pytest.mark.parametrize("every", [False, True])
def test_the_heat_map_shows_the_strategies_that_decide(pair, tmp_path, every):
    rows, queries, _ = pair()
    labels = {f"q{i}": "even" if i % 2 == 0 else "odd" for i in range(240)}
    found = eb.plan(rows, queries=queries, labels=labels, anchors=300, k=K)
    eb.write_report(found, tmp_path / "plan.html", all_strategies=every)
    page = (tmp_path / "plan.html").read_text("utf-8")
    shown = found.strategies if every else found.deciding
    assert f"under {len(shown)} strategies (columns)" in page
    assert ("draws them" in page) == (not every)
    assert page.count('<tr><th scope="row">lazy-re-encode') == len(found.lazy_depths) == 16


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("kind", ["a large common part", "tiny", "huge", "of all lengths"])
def test_an_exact_map_keeps_every_neighbor_whatever_the_rows_are(kind, metric):
    rng = np.random.default_rng(0)
    rows, rotation = rng.normal(size=(400, 8)), np.linalg.qr(rng.normal(size=(8, 8)))[0]
    scale = {"tiny": 1e-14, "huge": 1e20, "of all lengths": 10.0 ** rng.integers(-14, 20, size=(400, 1))}.get(kind, 1.0)
    x = (scale * rows + (3000 if "common" in kind else 0)).astype(np.float32)
    anchors = anchors_of(range(400), x, (x.astype(np.float64) @ rotation.T).astype(np.float32), metric)
    found = eb.evaluate(eb.LinearMap(rotation, np.zeros(8), anchors.source, anchors.target), anchors)
    for name in ("keep-old", "translate-documents", "project-queries-adjoint", "re-encode"):
        assert found[name].overlap == pytest.approx(1, abs=2e-3), name  # the rows themselves are rounded to float32
    assert found.relative_residual < 1e-3


# On the command line


@pytest.fixture
def files(pair, tmp_path, monkeypatch):
    rows, queries, qrels = pair()
    monkeypatch.chdir(tmp_path)
    for name, ids, vectors in (
        ("s", rows.ids, rows.x),
        ("t", rows.ids, rows.y),
        ("qs", queries.ids, queries.x),
        ("qt", queries.ids, queries.y),
    ):
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        pq.write_table(pa.table({"id": ids, "vector": column}), f"{name}.parquet")
    pairs = [(query, document) for query, graded in qrels.items() for document in graded]
    pq.write_table(pa.table({"query_id": [q for q, _ in pairs], "doc_id": [d for _, d in pairs]}), "qrels.parquet")
    pq.write_table(pa.table({"query_id": [q for q, _ in pairs], "doc_id": [str(d) for _, d in pairs]}), "strings.parquet")
    train = rows.sample(300)
    eb.fit(train, "ridge", alpha=0.1).save("m.safetensors")
    eb.fit(train.reversed(), "ridge", alpha=0.1).save("back.safetensors")


def run(*arguments):
    spaces = ["--source-space", "old", "--target-space", "new", "--no-catalog"]
    return CliRunner().invoke(main, [*arguments, *spaces])


EVALUATE = ("evaluate", "m.safetensors", "s.parquet", "t.parquet", "--queries", "qs.parquet", "qt.parquet")
PLAN = ("plan", "s.parquet", "t.parquet", "--queries", "qs.parquet", "qt.parquet", "--anchors", "300")


def test_the_command_line_takes_a_reverse_map(files):
    done = run(*EVALUATE, "--reverse-map", "back.safetensors", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert "project-queries" in {s["name"] for s in found["strategies"]}
    assert found["reverse_map"] == eb.load_map("back.safetensors").fingerprint
    refused = run(*EVALUATE, "--reverse-map", "m.safetensors")
    assert (refused.exit_code, "a map from 'new' (12) to 'old' (8) is needed" in refused.stderr) == (1, True)


@pytest.mark.parametrize("verb", [EVALUATE, PLAN])
def test_the_command_line_reports_judgments(files, verb):
    done = run(*verb, "--qrels", "qrels.parquet", "--json")
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)["qrels"]
    assert (counts["queries"], counts["queries_found"], counts["documents"]) == (240, 240, 240)
    assert 0 < counts["documents_found"] < 240
    assert (
        f"{counts['documents_found']} of their 240 relevant documents are in the corpus"
        in run(*verb, "--qrels", "qrels.parquet").output
    )
    refused = run(*verb, "--qrels", "strings.parquet")
    assert refused.exit_code == 1
    assert "None of the 240 documents" in refused.stderr


def test_the_command_line_shows_all_strategies_on_request(files):
    few, every = (run(*PLAN, *more).output for more in ((), ("--all-strategies",)))
    assert "re-encode-1%+hubness" not in few
    assert "more strategies (--all-strategies)" in few
    assert "re-encode-1%+hubness" in every
