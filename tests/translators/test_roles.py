"""Maps by role: what each is scored by, what queries add, and that `auto` is not below the best simple method."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.errors import OutputExistsError, ParameterError, TooFewAnchorsError
from embridge.neighbors import overlap, top_k
from embridge.stores.ids import hash_ids
from embridge.testing.translators import planted_anchors, textlike_anchors
from embridge.translators import Auto, Bridge, Isometry, Ortho, Projection, QueryPairs, Rotation, fit
from embridge.translators.fitting import query_pairs
from embridge.translators.scoring import fold_scores, real_scores
from embridge.translators.solvers import orthogonal_factor
from embridge.types import Metric, Space

ROLES = ("documents", "queries", "decode")


def text(n, p, q, seed=0):
    """Unit vectors with a large common mean, in cosine spaces."""
    anchors = textlike_anchors(n, p, q, seed)
    spaces = {"source": Space("old", p, Metric.COSINE, True), "target": Space("new", q, Metric.COSINE, True)}
    return dataclasses.replace(anchors, **spaces)


# --- What candidates are scored by


def test_projected_queries_are_held_against_the_ranking_of_their_own_model():
    anchors, projection = text(300, 12, 16), Projection(3.0)
    folds = anchors.folds(full=True)
    expected = []
    for number, (x, y) in enumerate(folds.samples):
        found, n = projection.solve(folds.without(number)), len(x)
        partners = x[(np.arange(n) + n // 2) % n]
        queries = (x + partners) / np.linalg.norm(x + partners, axis=1, keepdims=True)
        own = np.argsort(-queries @ x.T, axis=1)[:, :10]
        projected = queries @ found.weight + found.intercept
        rows = np.argsort(-projected @ y.T, axis=1)[:, :10]
        expected += [len(set(a) & set(b)) / 10 for a, b in zip(own.tolist(), rows.tolist(), strict=True)]
    got = fold_scores([projection], folds, "queries")[0]
    assert got.mean() == pytest.approx(np.mean(expected), abs=0.003)  # a near tie may fall either way
    assert (got == np.array(expected)).mean() > 0.95


@pytest.mark.parametrize("role", ["documents", "queries"])
def test_real_queries_are_scored_over_rows_that_the_map_was_not_fitted_on(role):
    anchors, queries = text(300, 12, 16).split(0.2)
    folds, method = anchors.folds(full=True), Bridge(0.3, 1.0)
    drawn = hash_ids(anchors.ids, "fold", 0) % np.uint64(5)
    scores = np.empty((len(queries), len(anchors)))
    for number in range(5):
        rows = drawn == number
        solved = method.solve(folds.without(number))
        if role == "queries":
            projected, searched = queries.x @ solved.weight + solved.intercept, anchors.y[rows]
        else:
            projected, searched = queries.y, anchors.x[rows] @ solved.weight + solved.intercept
        projected, searched = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (projected, searched))
        scores[:, rows] = projected @ searched.T
    own, rows = (queries.x, anchors.x) if role == "queries" else (queries.y, anchors.y)
    truth, ids = (np.argsort(-one, axis=1)[:, :10] for one in (own @ rows.T, scores))
    # Every other query has a relevant row, the second nearest to it; one has a document that is no anchor, too.
    relevant = [anchors.ids[truth[query, 1:2]] if query % 2 else np.empty(0, np.int64) for query in range(len(queries))]
    relevant[1] = np.append(relevant[1], queries.ids[0])
    found = real_scores([method], folds, role, QueryPairs(queries.x, queries.y, tuple(relevant)))
    assert found.overlap.shape == (1, len(queries))
    assert found.overlap.mean() == pytest.approx(overlap(ids, truth).mean(), abs=0.003)  # a near tie may fall either way
    expected = [float(truth[query, 1] in ids[query]) for query in range(1, len(queries), 2)]
    assert found.recall.shape == (1, len(expected))
    assert found.recall.mean() == pytest.approx(np.mean(expected), abs=0.05)
    assert 0.1 < found.recall.mean() < 1


def test_half_of_the_queries_is_left_to_report_on():
    queries = text(400, 6, 9)
    judged = {int(i): {int(i) + 1: 1.0, int(i) + 2: 0.0} for i in queries.ids}
    found, all_of_them = query_pairs(queries, judged), query_pairs(queries)
    assert 150 < len(found.x) < 250
    np.testing.assert_array_equal(found.x, all_of_them.x)
    assert all_of_them.relevant == ()
    row = int(np.flatnonzero((queries.x == found.x[0]).all(1))[0])
    assert found.relevant[0].tolist() == [queries.ids[row] + 1]  # a grade of zero is no relevance
    np.testing.assert_array_equal(found.reversed().x, found.y)
    with pytest.raises(TooFewAnchorsError, match=r"at least 20 queries\. Got 19 instead"):
        query_pairs(queries.at(np.arange(19)))
    with pytest.raises(ParameterError, match="have none of the 400 queries"):
        query_pairs(queries, {"a": ["b"]})


# --- Projection


def test_projection_is_the_transposed_regression_at_the_scale_of_the_target():
    anchors = text(300, 12, 16)
    x, y = anchors.x.astype(np.float64), anchors.y.astype(np.float64)
    back = Bridge(0.7, 1.0).solve(anchors.reversed().moments())  # documents onto the query's space
    weight = back.weight.T * np.sqrt((y - y.mean(0)).var(0).sum() / ((x - x.mean(0)) @ back.weight.T).var(0).sum())
    found = Projection(0.7, 0.4).solve(anchors.moments())
    np.testing.assert_allclose(found.weight, weight, atol=1e-6 * np.abs(weight).max())
    np.testing.assert_allclose(found.intercept, 0.4 * y.mean(0) - x.mean(0) @ weight, atol=1e-6)


def test_projection_ends_in_the_isometry():
    for anchors, given in ((text(200, 9, 12), 1.0), (planted_anchors(200, 9, 12), None)):  # under L2 the mean has its full weight
        found, isometry = Projection(np.inf, given).fit(anchors), Isometry().fit(anchors)
        np.testing.assert_allclose(found.coef, isometry.coef, atol=1e-5 * np.abs(isometry.coef).max())
        np.testing.assert_allclose(found.intercept, isometry.intercept, atol=1e-5)
    assert Projection().solve(text(200, 9, 12).moments()).parameters["mean_weight"] == pytest.approx(1 / 3)


# --- Auto


@pytest.mark.parametrize("role", ROLES)
def test_the_record_says_what_was_compared_and_by_what(role):
    anchors, queries = text(400, 12, 16).split(0.3)
    record = fit(anchors, role=role, keep_affine=True).record
    assert (record.role, record.chosen_by) == (role, "documents")
    assert {"rotation", "isometry"} < {c.method for c in record.candidates}
    assert all(c.deficit_error is not None and c.deficit_error >= 0 for c in record.candidates)
    known = {"mean_weight": 1.0} | record.parameters
    chosen = [c for c in record.candidates if c.method == record.method and c.parameters.items() <= known.items()]
    best = max(record.candidates, key=lambda c: c.score)
    assert best.score - chosen[0].score <= chosen[0].deficit_error + 1e-12
    pairs = QueryPairs(queries.x, queries.y)
    by_queries = fit(anchors, role=role, keep_affine=True, queries=pairs).record
    # Over a few hundred rows the ten nearest to a query are not near: translations are not compared there.
    assert (by_queries.role, by_queries.chosen_by) == (role, "queries" if role == "queries" else "documents")
    assert fit(text(600, 12, 16), role=role, keep_affine=True, queries=pairs).record.chosen_by == "queries"


def test_search_is_another_word_for_documents():
    anchors = text(200, 6, 9)
    assert fit(anchors, role="search").record.role == "documents"
    assert fit(anchors, "rotation", role="queries").record.role == "queries"
    with pytest.raises(ParameterError, match=r"role must be 'documents', 'queries' or 'decode'\. Got 'ranking'"):
        fit(anchors, role="ranking")
    with pytest.raises(ParameterError, match="Only 'auto' uses queries"):
        fit(anchors, "ridge", queries=QueryPairs(anchors.x, anchors.y))


def test_a_kernel_is_chosen_for_documents_where_no_affine_map_follows_and_affine_ones_can_be_kept():
    rng = np.random.default_rng(0)
    anchors = text(600, 8, 8)
    x = rng.normal(size=(600, 8)).astype(np.float32)
    y = np.tanh(2 * x @ np.linalg.qr(rng.normal(size=(8, 8)))[0]) + (x**2 - 1) @ rng.normal(size=(8, 8)) / 4
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y.astype(np.float32)))
    anchors = dataclasses.replace(anchors, x=x, y=y)
    assert isinstance(fit(anchors), eb.KernelMap)
    assert fit(anchors).record.chosen_by == "documents"
    for affine in (fit(anchors, keep_affine=True), fit(anchors.folds()), fit(anchors, role="queries"), fit(anchors, role="decode")):
        assert isinstance(affine, eb.LinearMap)


def test_where_a_rotation_is_the_truth_no_kernel_is_put_on_top():
    anchors = text(400, 8, 8)
    turned = dataclasses.replace(
        anchors, y=anchors.x @ np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0].astype(np.float32)
    )
    for role in ROLES:
        found = fit(turned, role=role)
        assert isinstance(found, eb.LinearMap)
        assert found.isometry_scale == pytest.approx(1, abs=1e-4)


@pytest.fixture(scope="module")
def sample():
    """1,000 anchors, the other 2,000 rows, and queries with their judgments, of the bundled sample."""
    shared = eb.match(*(eb.open(eb.sample_path(name)) for name in ("minilm", "mpnet")))
    queries = eb.match(*(eb.open(eb.sample_path(f"{name}.queries")) for name in ("minilm", "mpnet")))
    train = shared.sample(1000)
    return train, shared.without(train.hashes()), queries


@pytest.mark.slow
@pytest.mark.parametrize("role", ["documents", "queries"])
@pytest.mark.parametrize("backwards", [False, True])
def test_auto_is_not_below_the_best_simple_method_on_real_queries(sample, role, backwards):
    train, corpus, queries = (side.reversed() for side in sample) if backwards else sample

    def scores(map_):
        if role == "documents":
            return overlap(top_k(queries.y, map_.apply(corpus.x), 10).ids, top_k(queries.y, corpus.y, 10).ids)
        return overlap(top_k(map_.apply(queries.x), corpus.y, 10).ids, top_k(queries.x, corpus.x, 10).ids)

    mine = scores(fit(train, role=role))
    for method in (Rotation(), Isometry(), Ortho()):
        gains = mine - scores(method.fit(train))
        assert gains.mean() > -gains.std(ddof=1) / len(gains) ** 0.5, method


def test_auto_needs_folds_and_shows_its_options():
    with pytest.raises(TooFewAnchorsError, match="folds"):
        Auto().fit(text(60, 6, 9).moments())
    assert repr(Auto("queries")) == "Auto(role='queries', keep_affine=False, queries=None)"


# --- The library does what the verb does


@pytest.fixture
def files(tmp_path, monkeypatch, write, table_of):
    monkeypatch.chdir(tmp_path)
    anchors = text(900, 9, 12)
    queries = anchors.at(np.arange(800, 900))
    for name, side, space in (("old", "x", anchors.source), ("new", "y", anchors.target)):
        write(tmp_path / f"{name}.parquet", table_of(anchors.ids[:800], getattr(anchors, side)[:800], space=space))
        write(tmp_path / f"q-{name}.parquet", table_of(queries.ids, getattr(queries, side), space=space))
    judged = pa.table({"query_id": queries.ids, "doc_id": anchors.ids[:100]})
    pq.write_table(judged, tmp_path / "qrels.parquet")
    return ["old.parquet", "new.parquet"]


def run(*arguments, status=0):
    done = CliRunner().invoke(main, ["fit", *arguments, "--no-catalog", "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout) if status == 0 else done.stderr


def test_the_verb_and_the_library_fit_one_map(files):
    reported = run(
        *files, "-o", "a", "--reverse-output", "b", "--moments", "m", "--queries", "q-old.parquet", "q-new.parquet", "--keep-affine"
    )
    old, new = (eb.open(path) for path in files)
    queries = eb.match(eb.open("q-old.parquet"), eb.open("q-new.parquet"))
    found = eb.fit_maps(old, new, keep_affine=True, reverse=True, queries=queries, keep_moments=True)
    assert (found.forward.fingerprint, found.reverse.fingerprint) == (reported["fingerprint"], reported["reverse"]["fingerprint"])
    assert (reported["role"], reported["reverse"]["role"], reported["chosen_by"]) == ("documents", "queries", "queries")
    assert set(reported["candidates"][0]) == {"name", "parameters", "score", "standard_error"}
    assert found.forward.record.calibrated == reported["calibrated"]
    with pytest.raises(OutputExistsError, match="'a' exists"):
        found.save("c", reverse="a")
    with pytest.raises(OutputExistsError, match="two outputs"):
        found.save("c", moments="./c")
    found.save("c", reverse="d", moments="e")
    assert eb.load_map("d").fingerprint == found.reverse.fingerprint
    assert eb.FoldMoments.load("e").total().n == found.forward.record.anchors
    alone = eb.fit_maps(old, new, "rotation")
    with pytest.raises(ParameterError, match="nothing to write to 'g'"):
        alone.save("f", reverse="g")
    assert sorted(path for path in ("c", "d", "e", "f", "g") if Path(path).exists()) == ["c", "d", "e"]


def test_the_verb_refuses_what_does_not_go_together(files):
    assert "--queries QS QT" in run(*files, "-o", "a", "--qrels", "qrels.parquet", status=1)
    assert "Only 'auto' uses queries" in run(
        *files, "-o", "a", "--method", "ridge", "--queries", "q-old.parquet", "q-new.parquet", status=1
    )
    assert not Path("a").exists()
    reported = run(*files, "-o", "a", "--for", "queries", "--queries", "q-old.parquet", "q-new.parquet", "--qrels", "qrels.parquet")
    assert (reported["role"], reported["chosen_by"]) == ("queries", "queries")
    assert run(*files, "-o", "b", "--method", "rotation")["chosen_by"] is None


# --- Solvers


def test_a_decomposition_that_does_not_converge_uses_another_driver(monkeypatch):
    matrix = np.random.default_rng(0).normal(size=(7, 5)) @ np.diag([3.0, 2, 1, 0, 0])
    svd, calls = torch.linalg.svd, []

    def fails_once(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("The algorithm failed to converge")
        return svd(*args, **options)

    expected, rank = orthogonal_factor(matrix)
    monkeypatch.setattr(torch.linalg, "svd", fails_once)
    found, same = orthogonal_factor(matrix)
    assert len(calls) == 2
    assert same == rank == 3
    np.testing.assert_allclose(found, expected, atol=1e-10)
    calls.clear()
    np.testing.assert_allclose(orthogonal_factor(matrix.T)[0], expected.T, atol=1e-10)
