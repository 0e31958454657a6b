"""The verbs of a rollout on a small world: what they write, choose and report."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.indexes.fusion import Fusion, fused_rows
from embridge.neighbors import top_k
from embridge.stores.ids import hash_ids
from embridge.types import Metric
from tests.rollout.support import NEW, OLD, QUERIES, ROWS, content, make_world, read_ids, recall_at_10


@pytest.fixture
def rollout(world, tmp_path):
    return world.start(tmp_path / "rollout")


def encode(world, rollout, count, folder):
    """One round: list rows, encode them, add them."""
    listed = Path(folder) / "ids.parquet"
    rollout.next(count, listed, overwrite=True)
    return rollout.add(world.new(world.places(read_ids(listed))))


def sides(rollout):
    """The rows of a rollout: ids, old vectors, new vectors, and which are native."""
    state = json.loads((Path(rollout.path) / "state.json").read_text())
    path = Path(rollout.path) / state["folder"] / "collection.parquet"
    ids, new = eb.open(path).read()
    native = np.array(pq.read_table(path)["provenance"].to_pylist()) == "native"
    return ids, eb.open(path, vector_column="old_vector").read()[1], new, native


def reported(world):
    """Which queries figures are reported on, written down again: the half of odd hash."""
    return hash_ids(world.query_ids, "half", 0) % np.uint64(2) == 1


def test_rows_are_native_where_encoded_and_translated_elsewhere(world, rollout, tmp_path):
    ids, old, new, native = sides(rollout)
    assert ids.tolist() == world.ids.tolist()
    assert np.array_equal(old, world.x)
    assert native.sum() == 200
    assert np.array_equal(new[native], world.y[:200])
    state = json.loads((tmp_path / "rollout" / "state.json").read_text())
    translation = eb.load_map(tmp_path / "rollout" / state["folder"] / "map.safetensors")
    assert np.allclose(new[~native], translation.apply(world.x[200:]), atol=1e-6)
    assert eb.open(tmp_path / "rollout" / state["folder"] / "collection.parquet").space.same_as(NEW)
    assert "text" in pq.read_schema(tmp_path / "rollout" / state["folder"] / "collection.parquet").names


def test_to_the_end_every_stage_is_as_good_as_the_old_model_and_the_last_is_all_native(world, rollout, tmp_path):
    statuses = [rollout.status()]
    while statuses[-1].translated:
        done = encode(world, rollout, 100, tmp_path)
        assert done.rows == 100
        statuses.append(rollout.status())
    assert [status.native for status in statuses] == [200, 300, 400, 500, 600]
    assert [status.stage for status in statuses] == list(range(5))
    for status in statuses:
        assert status.now.recall >= status.keep_old.recall
        assert status.keep_old.recall == statuses[0].keep_old.recall
    assert statuses[-1].now.recall > statuses[0].now.recall > statuses[0].keep_old.recall
    assert not statuses[-1].old_model_needed
    assert statuses[-1].forecast == ()
    assert np.array_equal(sides(rollout)[2], world.y)
    past = statuses[-1].history
    assert [one.native for one in past] == [200, 300, 400, 500, 600]
    assert past[0].forecast is None
    for one in past[1:]:  # within twice the interval of 196 queries
        assert abs(one.forecast - one.recall) < 0.1


def test_the_figures_are_those_of_an_evaluation_of_the_same_rows(world, rollout, tmp_path):
    """Old and new vectors are scored again by the formula, in float64, and the searches of the rollout itself are scored."""
    encode(world, rollout, 150, tmp_path)
    status, some = rollout.status(), reported(world)
    ids, old, new, _ = sides(rollout)
    assert status.hubness != "none"  # so that references are compared too
    choosing = np.flatnonzero(~some)
    references = world.qx[choosing], world.qy[choosing]
    rows = fused_rows(old, new, OLD, NEW, references)
    relevant = world.ids[world.relevant[some]]
    for score, fusion in ((status.keep_old, Fusion(0.0)), (status.now, Fusion(status.weight, status.hubness))):
        queries = fusion.queries(world.qx[some], world.qy[some], has_bias=True)
        found = ids[top_k(queries, rows, 10, Metric.DOT).ids]
        assert score.recall == pytest.approx(recall_at_10(found, relevant).mean(), abs=1e-9)
    old_side, new_side = world.query_sides
    for options, score in (({"old_queries": old_side}, status.now), ({}, status.new_queries)):
        query_ids, hits = rollout.search(new_side, 10, **options)
        assert query_ids.tolist() == world.query_ids.tolist()
        assert score.recall == pytest.approx(recall_at_10(hits.ids[some], relevant).mean(), abs=1e-9)
    plain = top_k(world.qy[some], new, 10).ids
    assert status.new_space.recall == pytest.approx(recall_at_10(ids[plain], relevant).mean(), abs=1e-9)


def test_rows_are_listed_by_reach_and_never_twice(world, rollout, tmp_path):
    status = rollout.status()
    first = rollout.next(50, tmp_path / "1.parquet")
    second = rollout.next(70, tmp_path / "2.parquet")
    assert (first.rows, second.rows, rollout.status().handed) == (50, 70, 120)
    one, two = read_ids(tmp_path / "1.parquet"), read_ids(tmp_path / "2.parquet")
    native = set(world.ids[:200].tolist())
    assert len({*one, *two}) == 120
    assert not {*one, *two} & native
    _, old, new, _ = sides(rollout)
    choosing = np.flatnonzero(~reported(world))
    rows = fused_rows(old, new, OLD, NEW, (world.qx[~np.isin(np.arange(QUERIES), choosing)], world.qy[reported(world)]))
    queries = Fusion(status.weight, status.hubness).queries(world.qx[choosing], world.qy[choosing], has_bias=True)
    counts = np.bincount(top_k(queries, rows, 100, Metric.DOT).ids.ravel(), minlength=ROWS)
    tables = [pq.read_table(tmp_path / name) for name in ("1.parquet", "2.parquet")]
    assert [table["order"].to_pylist() for table in tables] == [list(range(1, 51)), list(range(1, 71))]
    listed = np.concatenate([table["queries"].to_numpy() for table in tables])
    assert (np.diff(listed) <= 0).all()
    assert np.abs(listed - counts[world.places([*one, *two])]).max() <= 3  # candidates are those of three weights
    left = np.setdiff1d(np.arange(200, ROWS), world.places([*one, *two]))
    assert listed.min() >= counts[left].max() - 3
    again = rollout.next(50, tmp_path / "1.parquet", overwrite=True)
    assert read_ids(tmp_path / "1.parquet") == one  # of a list that is replaced no row is lost
    assert (again.rows, rollout.status().handed) == (50, 120)
    rollout.next(10_000, tmp_path / "3.parquet")
    with pytest.raises(eb.EmbridgeError, match="No row is left to list: 200 of 600 are native and 400 are listed already"):
        rollout.next(1, tmp_path / "4.parquet")
    assert not (tmp_path / "4.parquet").exists()
    assert rollout.next(10_000, tmp_path / "4.parquet", again=True).rows == 400
    rollout.add(world.new(world.places(one)))
    assert rollout.status().handed == 350


def test_rows_that_are_there_already_are_passed_over(world, rollout):
    before = content(rollout)
    done = rollout.add(world.new(np.arange(100)))
    assert (done.rows, done.known) == (0, 100)
    assert content(rollout) == before
    done = rollout.add(world.new(np.arange(150, 250)))
    assert (done.rows, done.known) == (50, 50)
    assert rollout.status().native == 250


def test_without_queries_rows_are_listed_by_density_and_nothing_is_measured(world, tmp_path):
    rollout = world.start(tmp_path / "rollout", queries=None, qrels=None)
    status = rollout.status()
    assert (status.queries, status.now.recall, status.weight, status.hubness) == (0, None, 0.5, "none")
    assert status.old_model_needed
    assert "No logged queries" in str(status)
    table = [one.recall for one in status.forecast]
    assert table == [None, None, None]
    rollout.next(50, tmp_path / "ids.parquet")
    counts = pq.read_table(tmp_path / "ids.parquet")["queries"].to_pylist()
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > np.mean(counts) > 0
    hits = rollout.search(world.query_sides[1])[1]
    assert recall_at_10(hits.ids, world.ids[world.relevant]).mean() > 0.3
    done = rollout.queries(world.queries, qrels=world.qrels)
    assert (done.rows, rollout.status().queries) == (QUERIES, QUERIES)
    assert rollout.status().now.recall == world.start(tmp_path / "other").status().now.recall


def test_without_judgments_the_weight_is_not_chosen_and_the_status_says_why(world, tmp_path):
    rollout = world.start(tmp_path / "rollout", 590, qrels=None)
    status = rollout.status()
    assert (status.weight, status.now.recall, status.judged) == (0.5, None, 0)
    assert status.held_out >= 50
    assert 0 < status.keep_old.overlap < status.now.overlap < 1
    assert status.new_space.overlap > status.now.overlap  # by construction
    assert "puts fused search at a disadvantage" in str(status)
    assert status.old_model_needed


def test_a_worse_new_model_is_reported_on_day_one_and_search_does_not_lose(tmp_path):
    worse = make_world(old_noise=0.1, new_noise=1.0)
    rollout = worse.start(tmp_path / "rollout")
    status = rollout.status()
    assert status.new_model_is_worse
    assert "The new model is worse than the old one on your queries" in str(status)
    assert status.now.recall >= status.keep_old.recall - 0.02
    assert status.old_model_needed
    with pytest.raises(eb.EmbridgeError, match=r"recall@10 0\.\d+ against 0\.\d+, difference -0\.\d+ \[-0"):
        rollout.finish(tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_finish_writes_the_new_space_alone_with_the_loss_accepted_or_without_loss(world, rollout, tmp_path):
    with pytest.raises(eb.EmbridgeError, match=r"for fused search now .200 of 600 rows native.*accept"):
        rollout.finish(tmp_path / "out.parquet")
    done = rollout.finish(tmp_path / "out.parquet", accept_loss=True)
    assert "not measured to be as good" in done.notes[0]
    made = eb.open(tmp_path / "out.parquet")
    ids, vectors = made.read()
    assert ids.tolist() == world.ids.tolist()
    assert np.array_equal(vectors, sides(rollout)[2])
    assert made.payload_schema.names == ["text", "provenance"]
    assert pq.read_table(tmp_path / "out.parquet")["provenance"].to_pylist() == ["native"] * 200 + ["translated"] * 400
    rollout.add(world.new(np.arange(200, ROWS)))
    assert rollout.finish(tmp_path / "whole.parquet").notes == ()
    assert np.array_equal(eb.open(tmp_path / "whole.parquet").read()[1], world.y)


@pytest.mark.parametrize(
    ("factory", "way", "kind"),
    [("Flat", "updated", str), ("IVF8,Flat", "updated", str), ("IVF8,Flat", "updated", int), ("HNSW16", "built", int)],
)
def test_an_index_gives_the_hits_of_exact_search_at_every_stage(tmp_path, factory, way, kind):
    world = make_world()
    if kind is int:
        world = world.with_ids(np.arange(ROWS) * 7 + 3)
    rollout = world.start(tmp_path / "rollout", 540, factory=factory)
    exact = world.start(tmp_path / "exact", 540)
    parameters = {"Flat": "", "IVF8,Flat": "nprobe=8", "HNSW16": "efSearch=400"}[factory]
    ways, kept = [rollout.started.index], 0
    for stage in range(4):
        for options in ({"old_queries": world.query_sides[0]}, {}):
            found, truth = (
                one.search(world.query_sides[1], 10, parameters=extra, **options)[1]
                for one, extra in ((rollout, parameters), (exact, ""))
            )
            assert (found.ids == truth.ids).mean() > 0.995
            assert np.allclose(found.scores, truth.scores, atol=1e-5)
        if stage < 3:
            rows = np.arange(540 + 10 * stage, 550 + 10 * stage)
            ways.append(rollout.add(world.new(rows)).index)
            done = exact.add(world.new(rows))
            assert ways[-1] == (way if done.map == "kept" else "built")
            kept += done.map == "kept"
    assert kept
