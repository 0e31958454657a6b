"""Which rows to re-encode first: the order is what brute force counts, out of everything that is not known natively."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.errors import ParameterError, SpaceMismatchError
from embridge.evaluation.metrics import by_hits
from embridge.stores.ids import hash_ids
from embridge.types import Metric, Space

N = 700


@pytest.fixture(scope="module", params=tuple(Metric))
def case(request, planted):
    ids, x, y, _ = planted(N, 6, 9, 0.5)
    source, target = Space("old", 6, request.param), Space("new", 9, request.param)
    old = eb.MemoryCollection([f"d{i}" for i in ids], x, source)
    new = eb.MemoryCollection(old.read()[0][:200], y[:200], target)
    return old, new, eb.fit(eb.match(old, new), "ridge", alpha=0.1), y[200:230]


def counted(old, translation, queries):
    rows = translation.apply(old.read()[1]).astype(np.float64)
    searched = queries.astype(np.float64)
    if translation.target.metric == Metric.COSINE:
        rows, searched = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (rows, searched))
    scores = searched @ rows.T
    if translation.target.metric == Metric.L2:
        scores = 2 * scores - (rows**2).sum(1)
    return np.bincount(np.argsort(-scores, axis=1)[:, :100].ravel(), minlength=N)


def test_rows_are_ordered_by_the_number_of_queries_that_find_them(case):
    old, new, translation, queries = case
    ids, counts = eb.rows_to_reencode(old, translation, queries)
    wanted = dict(zip(old.read()[0].tolist(), counted(old, translation, queries).tolist(), strict=True))
    assert len(set(ids)) == len(ids)
    assert (np.diff(counts) <= 0).all()
    assert counts.min() >= 1
    assert counts.sum() == 100 * len(queries)
    wrong = sum(wanted[i] != count for i, count in zip(ids.tolist(), counts.tolist(), strict=True))
    assert wrong <= 4  # a near tie for the hundredth place may fall either way in float32
    assert abs(len(ids) - sum(count > 0 for count in wanted.values())) <= 4
    left, _ = eb.rows_to_reencode(old, translation, queries, known=np.sort(hash_ids(new.read()[0], "anchor")))
    assert left.tolist() == [i for i in ids.tolist() if i not in set(new.read()[0].tolist())]


def test_the_order_does_not_depend_on_batches(case, monkeypatch):
    old, _, translation, queries = case
    whole = eb.rows_to_reencode(old, translation, queries)
    monkeypatch.setattr(type(old), "default_batch_rows", lambda self: 13)
    parts = eb.rows_to_reencode(old, translation, queries)
    assert (whole[0][:50] == parts[0][:50]).mean() > 0.9  # scores of a small block may differ in the last digit
    assert np.abs(whole[1][:50] - parts[1][:50]).max() <= 1


def test_what_is_refused(case):
    old, new, translation, queries = case
    with pytest.raises(SpaceMismatchError, match="'new'"):
        eb.rows_to_reencode(new, translation, queries)
    with pytest.raises(SpaceMismatchError, match="9"):
        eb.rows_to_reencode(old, translation, queries[:, :5])
    with pytest.raises(ParameterError, match="at least one"):
        eb.rows_to_reencode(old, translation, queries[:0])


def test_empty_places_count_for_no_row():
    order, counts = by_hits(np.array([[2, 0], [2, -1]]), 4)
    assert counts.tolist() == [1, 0, 2, 0]
    assert order.tolist() == [2, 0, 1, 3]


@pytest.mark.parametrize("with_queries", [True, False], ids=["queries", "rows"])
def test_on_the_command_line(tmp_path, monkeypatch, planted, write, table_of, with_queries):
    monkeypatch.chdir(tmp_path)
    ids, x, y, _ = planted(N, 6, 9, 0.5)
    ids = [f"d{i}" for i in ids]
    old, new = Space("old", 6), Space("new", 9)
    for name, side, rows, space in (("old", x, 650, old), ("new", y, 200, new)):
        write(tmp_path / f"{name}.parquet", table_of(ids[:rows], side[:rows], space=space))
        write(tmp_path / f"q-{name}.parquet", table_of(ids[650:], side[650:], space=space))
    queries = ["--queries", "q-old.parquet", "q-new.parquet"] if with_queries else []
    arguments = ["plan", "old.parquet", "new.parquet", *queries, "--max-queries", "40", "--catalog", "c.duckdb", "--json"]
    done = CliRunner().invoke(main, [*arguments, "--rows-to-re-encode", "next.parquet"])
    assert done.exit_code == 0, done.output
    found = pq.read_table("next.parquet").to_pydict()
    assert json.loads(done.stdout)["rows_to_re_encode"] == {"path": "next.parquet", "rows": len(found["id"])}
    assert found["order"] == list(range(1, len(found["id"]) + 1))
    shared = eb.match(eb.open("old.parquet"), eb.open("new.parquet"))
    query_pairs = eb.match(eb.open("q-old.parquet"), eb.open("q-new.parquet")) if with_queries else shared
    order = eb.rows_to_reencode(eb.open("old.parquet"), eb.fit(shared), query_pairs.sample(40).y, known=shared.hashes())
    assert (found["id"], found["queries"]) == (order[0].tolist(), order[1].tolist())
    assert set(found["id"]) <= set(ids[200:650])
    refused = CliRunner().invoke(main, [*arguments, "--rows-to-re-encode", "next.parquet"])
    assert refused.exit_code == 1
    assert "exists already" in refused.stderr
    lineage = eb.Catalog("c.duckdb").lineage("next.parquet")
    assert {edge["from_path"] for edge in lineage} >= {str(tmp_path / "old.parquet"), str(tmp_path / "new.parquet")}
