"""A rollout that is served: its search, its state, and the log of its queries; and the plan and quality out of the catalog."""

import numpy as np
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.records import Run
from embridge.serving import ServeOptions
from tests import support
from tests.serving.support import NEW, OLD, error_of, running_upstream


@pytest.fixture(scope="module")
def rollout(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollout")
    old = eb.open(world.path("old.parquet"))
    first = eb.MemoryCollection(world.ids[:120], world.new[:120], NEW)
    ids = [f"q{i}" for i in range(40)]
    queries = eb.match(eb.MemoryCollection(ids, world.old[60:100], OLD), eb.MemoryCollection(ids, world.new[60:100], NEW))
    return eb.Rollout.start(old, first, folder / "rollout", queries=queries, qrels={q: {f"d{60 + i}"} for i, q in enumerate(ids)})


@pytest.fixture
def client(client_of, rollout, tmp_path):
    return client_of("queries", indexes=(f"live={rollout.path}",), query_log=str(tmp_path / "log"))


def hits_of(answer):
    assert answer.status_code == 200, answer.text
    return [[hit["id"] for hit in row] for row in answer.json()["hits"]]


def test_its_fused_search_is_that_of_the_rollout(client, rollout, world):
    ids = np.arange(5)
    new, old = eb.MemoryCollection(ids, world.query_new, NEW), eb.MemoryCollection(ids, world.query_old, OLD)
    answer = client.post("/v1/search", json={"vectors": world.query_new.tolist(), "k": 4})
    assert hits_of(answer) == rollout.search(new, 4)[1].ids.tolist()
    assert answer.json()["strategy"] == "fused"
    both = {"vectors": world.query_new.tolist(), "old_vectors": world.query_old.tolist(), "k": 4}
    assert hits_of(client.post("/v1/search", json=both)) == rollout.search(new, 4, old_queries=old)[1].ids.tolist()
    error = error_of(client.post("/v1/search", json=both | {"weight": 0.5}), 400)
    assert "weight and hubness correction that it measured" in error["message"]


def test_each_side_of_it_is_searched_alone(client, world):
    def one(strategy, vectors):
        return hits_of(client.post("/v1/search", json={"strategy": strategy, "vectors": vectors.tolist(), "k": 4}))

    assert one("old-space", world.query_old) == world.ids[eb.top_k(world.query_old, world.old, 4).ids].tolist()
    native = world.ids[:120][eb.top_k(world.query_new, world.new[:120], 4).ids]
    assert one("native", world.query_new) == native.tolist()
    assert one("own-space", world.query_new) != one("native", world.query_new)
    few = client.post("/v1/search", json={"strategy": "native", "vectors": world.query_new.tolist(), "k": 1000})
    assert [len(row) for row in hits_of(few)] == [120] * 5


def test_its_state_and_curve_are_shown(client, rollout):
    answer = client.get("/v1/rollout").json()
    assert (answer["name"], answer["old_space"]["name"], answer["space"]["name"]) == ("live", "old", "new")
    assert answer["status"]["native"] == 120
    assert [one["percent"] for one in answer["status"]["forecast"]] == [one.percent for one in rollout.status().forecast]
    [index] = client.get("/v1/maps").json()["indexes"]
    assert (index["kind"], index["default"], index["refused"]) == ("rollout", "fused", {})


def test_without_a_rollout_there_is_none(client_of):
    assert error_of(client_of("queries").get("/v1/rollout"), 404)["code"] == "no_rollout"


def test_a_step_of_the_rollout_is_seen_at_once(client_of, world, tmp_path):
    first = eb.MemoryCollection(world.ids[:120], world.new[:120], NEW)
    moving = eb.Rollout.start(eb.open(world.path("old.parquet")), first, tmp_path / "moving")
    client = client_of("queries", indexes=(moving.path,))
    body = {"strategy": "native", "vectors": world.query_new.tolist(), "k": 1000}
    assert len(hits_of(client.post("/v1/search", json=body))[0]) == 120
    moving.add(eb.MemoryCollection(world.ids[120:150], world.new[120:150], NEW))
    assert len(hits_of(client.post("/v1/search", json=body))[0]) == 150
    assert client.get("/v1/rollout").json()["status"]["stage"] == 1


def test_logged_queries_are_added_to_the_rollout(client, world, rollout, tmp_path):
    body = {"vectors": world.query_new.tolist(), "old_vectors": world.query_old.tolist()}
    ids = client.post("/v1/queries", json=body).json()["ids"]
    ids += client.post("/v1/queries", json=body).json()["ids"]
    assert len(set(ids)) == 10
    old, new = (eb.open(tmp_path / "log" / side) for side in ("old", "new"))
    assert (old.space.name, new.space.name) == ("old", "new")
    pairs = eb.match(old, new)
    assert set(pairs.ids.tolist()) == set(ids)
    order = np.argsort(np.array(pairs.ids.tolist()))
    np.testing.assert_array_equal(pairs.y[order][:5], world.query_new)
    done = support.run("rollout", "queries", rollout.path, tmp_path / "log" / "old", tmp_path / "log" / "new", "--no-catalog")
    assert done.exit_code == 0, done.output
    assert "added 10 queries" in done.output


def test_logged_queries_are_listed_and_compared_by_their_ids(client, client_of, world):
    answer = client.get("/v1/rollout/queries").json()
    assert answer["count"] == len(set(answer["ids"])) >= 40
    assert answer["ids"][7] == "q7"
    by_id = client.post("/v1/compare", json={"logged": "q7", "k": 4}).json()
    vectors = {"vectors": world.new[67:68].tolist(), "old_vectors": world.old[67:68].tolist(), "k": 4}
    assert by_id == client.post("/v1/compare", json=vectors).json()
    assert len(by_id["columns"]) == 6
    assert error_of(client.post("/v1/compare", json={"logged": "none"}), 404)["code"] == "query_not_found"
    assert error_of(client.post("/v1/compare", json={"logged": "q7"} | vectors), 400)
    without = client_of("queries", indexes=(world.path("old.faiss"),))
    assert error_of(without.get("/v1/rollout/queries"), 404)["code"] == "no_rollout"
    assert error_of(without.post("/v1/compare", json={"logged": "q7"}), 404)["code"] == "no_rollout"


@pytest.mark.parametrize(("left_out", "param"), [("old_vectors", "old_vectors"), ("vectors", "vectors")])
def test_queries_are_logged_by_both_models(client, world, tmp_path, left_out, param):
    body = {"vectors": world.query_new.tolist(), "old_vectors": world.query_old.tolist()}
    del body[left_out]
    assert error_of(client.post("/v1/queries", json=body), 400)["param"] == param
    assert not any((tmp_path / "log").rglob("*.parquet"))


def test_texts_are_logged_as_vectors_of_both_encoders(client_of, rollout, tmp_path, upstream):
    with running_upstream() as other:
        other.dim = OLD.dim
        encoders = (f"new={upstream.url}#m", f"old={other.url}#n")
        client = client_of(indexes=(rollout.path,), upstreams=encoders, query_log=str(tmp_path / "log"))
        client.post("/v1/queries", json={"texts": ["a ferry", "an arch"]}).raise_for_status()
    [file] = (tmp_path / "log" / "old").iterdir()
    assert pq.read_schema(file).names == ["id", "vector"]
    assert b"ferry" not in file.read_bytes()


def test_nothing_is_logged_unless_it_is_switched_on(client_of, rollout, world):
    client = client_of("queries", indexes=(rollout.path,))
    body = {"vectors": world.query_new.tolist(), "old_vectors": world.query_old.tolist()}
    assert error_of(client.post("/v1/queries", json=body), 403)["code"] == "query_log_off"
    assert client.get("/v1/maps").json()["query_log"] is False


def test_a_log_needs_a_rollout(world, tmp_path):
    from embridge.serving.service import Service

    with pytest.raises(eb.EmbridgeError, match="Queries are logged for one rollout, and 0 are served"):
        Service(ServeOptions(maps=(world.path("queries.safetensors"),), query_log=str(tmp_path / "log")))
    assert not (tmp_path / "log").exists()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A catalog with two evaluations of a map and a plan, on the bundled sample."""
    folder = tmp_path_factory.mktemp("recorded")
    paths = {name: eb.sample_path(name) for name in ("minilm", "mpnet", "minilm.queries", "mpnet.queries")}
    fit = ["fit", paths["minilm"], paths["mpnet"], "-o", folder / "map.safetensors", "--method", "rotation", "--test-size", "0.5"]
    for verb in (fit, ["evaluate", folder / "map.safetensors", paths["minilm"], paths["mpnet"], "--max-queries", "100"]):
        done = support.run(*verb, "--catalog", folder / "catalog.duckdb", "--quiet")
        assert done.exit_code == 0, done.output
    return folder


def test_measured_quality_comes_from_the_catalog(client_of, recorded):
    client = client_of(str(recorded / "map"), catalog=str(recorded / "catalog.duckdb"))
    facts = client.get("/v1/maps").json()
    [served] = facts["maps"]
    quality = {one["strategy"]: one for one in served["quality"]}
    assert {"keep-old", "translate-documents", "re-encode"} <= set(quality)
    assert 0 < quality["translate-documents"]["overlap"] < 1
    assert len({one["benchmark"] for one in served["quality"]}) == 1
    assert facts["catalog_fault"] is None
    assert error_of(client.get("/v1/plan"), 404)["code"] == "no_plan"


def test_the_newest_plan_is_shown(client_of, world, tmp_path):
    old = eb.MemoryCollection(world.ids, world.old, OLD)
    new = eb.MemoryCollection(world.ids, world.new, NEW)
    catalog = eb.Catalog(tmp_path / "catalog.duckdb")
    client = client_of("queries")  # its catalog is this file, which does not exist yet
    assert error_of(client.get("/v1/plan"), 404)["code"] == "no_plan"
    made = eb.plan(eb.match(old, new))
    number = catalog.record(Run.of("plan", result=made))
    shown = client.get("/v1/plan").json()
    assert shown["run"] == number
    assert {s["strategy"] for s in shown["strategies"]} == {s.title for s in made.strategies}
    assert {r["situation"]: r["strategy"] for r in shown["recommendations"]} == {
        situation: one.strategy for situation, one in made.recommendations.items()
    }
    assert len(shown["learning_curve"]) > 2


def test_a_damaged_catalog_does_not_hide_the_maps(client_of, world, tmp_path):
    (tmp_path / "catalog.duckdb").write_bytes(b"no database" * 100)
    client = client_of("queries")
    facts = client.get("/v1/maps").json()
    assert [m["name"] for m in facts["maps"]] == ["queries"]
    assert "catalog" in facts["catalog_fault"]
    assert error_of(client.get("/v1/plan"), 503)["code"] == "unavailable"
