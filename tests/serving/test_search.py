"""``POST /v1/search`` and ``/v1/compare``: the hits are those of the library, for every target and strategy."""

import numpy as np
import pytest

import embridge as eb
from embridge.maps.queries import project_queries
from embridge.types import Space
from tests.serving.support import NEW, OLD, error_of

BOTH = {"fused": "fused.faiss", "both": "both.parquet"}


@pytest.fixture
def client(client_of, world):
    names = {"old": "old.faiss", "native": "native.faiss", "rows": "old.parquet"} | BOTH
    return client_of("documents", "queries", indexes=tuple(f"{name}={world.path(path)}" for name, path in names.items()))


def search(client, **body):
    return client.post("/v1/search", json={"k": 5} | {name: getattr(v, "tolist", lambda v=v: v)() for name, v in body.items()})


def check(answer, hits, ids=None):
    """The hits of an answer are those of a search."""
    assert answer.status_code == 200, answer.text
    found = answer.json()["hits"]
    expected = [hits.row(i) for i in range(len(hits))]
    assert [[hit["id"] for hit in row] for row in found] == [row[0] for row in expected]
    np.testing.assert_allclose([[hit["score"] for hit in row] for row in found], [row[1] for row in expected], atol=1e-5)
    return answer.json()


def exact(rows, queries, **options):
    from embridge.indexes.exact import search_exactly

    return search_exactly(rows, queries, 5, **options)


@pytest.mark.parametrize("index", ["old", "rows"])
def test_strategies_over_rows_of_one_space(client, world, index):
    own = search(client, index=index, strategy="own-space", vectors=world.query_old)
    found = check(own, exact(world.old_rows, world.query_old))
    assert (found["index"], found["strategy"], found["map"], found["space"]["name"]) == (index, "own-space", None, "old")
    projected = search(client, index=index, vectors=world.query_new)
    found = check(projected, exact(world.old_rows, world.query_new, via=world.queries))
    assert found["strategy"] == "projected"
    assert found["map"] == {"name": "queries", "fingerprint": world.queries.fingerprint}
    both = {"vectors": world.query_new, "old_vectors": world.query_old, "weight": 0.3}
    hits = exact(world.old_rows, world.query_new, via=world.queries, old_queries=world.query_old, weight=0.3)
    check(search(client, index=index, strategy="blended", **both), hits)


def test_a_request_names_the_map(client, world):
    found = search(client, index="old", strategy="projected", map="documents", vectors=world.query_new)
    assert check(found, exact(world.old_rows, world.query_new, via=world.documents))["map"]["name"] == "documents"


def test_new_rows_are_searched_by_new_queries(client, world):
    found = check(search(client, index="native", vectors=world.query_new), exact(world.new_rows, world.query_new))
    assert found["strategy"] == "own-space"


@pytest.mark.parametrize("index", BOTH)
def test_strategies_over_rows_of_two_spaces(client, world, index):
    both = eb.open(world.path("both.parquet"))
    translated = eb.MemoryCollection(*both.read(), NEW)
    old, new = world.query_old, world.query_new
    found = check(search(client, index=index, vectors=new), exact(both, new, via=world.queries))
    assert (found["strategy"], found["map"]["name"]) == ("fused", "queries")
    found = check(
        search(client, index=index, vectors=new, old_vectors=old, weight=0.2), exact(both, new, old_queries=old, weight=0.2)
    )
    assert found["map"] is None
    check(search(client, index=index, strategy="own-space", vectors=new), exact(translated, new))
    check(search(client, index=index, strategy="old-space", vectors=old), exact(world.old_rows, old))
    check(search(client, index=index, space="old", vectors=old), exact(world.old_rows, old))
    projected = exact(world.old_rows, project_queries(new, world.queries, OLD))
    check(search(client, index=index, strategy="projected", vectors=new), projected)
    blended = exact(world.old_rows, new, via=world.queries, old_queries=old, weight=0.3)
    check(search(client, index=index, strategy="blended", vectors=new, old_vectors=old, weight=0.3), blended)


def test_texts_are_embedded_by_the_encoder_of_the_space(client_of, world, upstream):
    app = client_of("queries", indexes=(world.path("old.faiss"),), upstreams=(f"new={upstream.url}#m",))
    found = search(app, texts=["a ferry"])
    from tests.serving.support import vector_of

    check(found, exact(world.old_rows, vector_of("a ferry")[None], via=world.queries))
    assert upstream.requests[-1]["input"] == ["a ferry"]
    assert error_of(search(app, texts=["x"], strategy="own-space"), 400)["code"] == "no_encoder"
    assert error_of(search(app, texts=["x"], vectors=world.query_new), 400)["param"] == "vectors"


def test_two_encoders_fuse_their_own_queries(client_of, world, upstream):
    encoders = (f"new={upstream.url}#m", f"old={upstream.url}#n")
    app = client_of("queries", indexes=(world.path("fused.faiss"),), upstreams=encoders)
    assert (
        error_of(search(app, texts=["x"]), 502)["code"] == "upstream_failed"
    )  # the upstream gives 9 dimensions, whatever the model
    assert [request["model"] for request in upstream.requests] == ["m", "n"]


REFUSED = {
    "fused": ({"index": "old", "strategy": "fused"}, "strategy_unavailable", "It can by: own-space, projected, blended."),
    "old side": ({"index": "old", "strategy": "old-space"}, "strategy_unavailable", "one space only"),
    "native": ({"index": "both", "strategy": "native"}, "strategy_unavailable", "do not say which of them are native"),
    "blended": ({"index": "old", "strategy": "blended"}, "invalid_value", "takes the same queries by the model of 'old'"),
    "old queries": ({"index": "native", "old_vectors": [[1.0] * 6] * 5}, "invalid_value", "do not go with"),
    "fewer": ({"index": "fused", "old_vectors": [[1.0] * 6]}, "invalid_value", "old_vectors has 1 rows, and vectors 5"),
    "space": ({"index": "old", "space": "newer"}, "space_mismatch", "takes queries of 'new'"),
    "hubness": ({"index": "old", "hubness": "new"}, "invalid_value", "hubness does not go with 'projected'"),
    "no bias": ({"index": "fused", "hubness": "new"}, "invalid_value", "reference queries"),
    "weight": ({"index": "old", "weight": 0.5}, "invalid_value", "weight does not go with 'projected'"),
    "parameters": ({"index": "old", "parameters": "nprobe=x"}, "invalid_value", "nprobe"),
    "of a collection": ({"index": "rows", "parameters": "nprobe=4"}, "invalid_value", "belong to a FAISS index"),
    "unused map": ({"index": "native", "map": "queries"}, "invalid_value", "map does not go with 'own-space'"),
    "map": ({"index": "old", "map": "nope"}, "map_not_found", "There is no map 'nope'"),
    "index": ({"index": "nope"}, "index_not_found", "Indexes: 'old', 'native'"),
    "no index": ({}, "index_needed", "name one of"),
    "k": ({"index": "old", "k": 0}, "invalid_value", "greater than or equal to 1"),
    "name": ({"index": "old", "strategy": "keep-old"}, "invalid_value", "'own-space'"),
    "field": ({"index": "old", "straegy": "fused"}, "invalid_value", "straegy"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(client, world, case):
    body, code, message = REFUSED[case]
    status = 404 if code.endswith("not_found") else 400
    error = error_of(search(client, **{"vectors": world.query_new} | body), status)
    assert error["code"] == code
    assert message in error["message"]


def test_bad_queries_are_named_by_their_row(client, world):
    bad = world.query_new.copy()
    bad[3] = 0
    assert error_of(search(client, index="old", vectors=bad), 400)["param"] == "vectors[3]"
    old = world.query_old.copy()
    old[2] = 0
    body = {"index": "old", "strategy": "blended", "vectors": world.query_new, "old_vectors": old}
    assert error_of(search(client, **body), 400)["param"] == "old_vectors[2]"
    assert error_of(search(client, index="old", vectors=world.query_old), 400)["param"] == "vectors[0]"


def test_spaces_of_one_width_are_not_mixed_silently(client_of, tmp_path, world):
    wide = Space("wide", OLD.dim, normalized=True)
    eb.LinearMap(np.eye(OLD.dim), np.zeros(OLD.dim), wide, OLD).save(tmp_path / "same.safetensors")
    app = client_of(str(tmp_path / "same"), indexes=(world.path("old.faiss"),))
    for body in ({"space": "old"}, {"strategy": "own-space"}):
        check(search(app, vectors=world.query_old, **body), exact(world.old_rows, world.query_old))
    app.post("/v1/search", json={})
    default = search(app, vectors=world.query_old)
    assert default.json()["strategy"] == "own-space"  # nothing says that 'old' is the older one


def test_queries_of_one_width_have_to_say_their_space(client_of, tmp_path, world):
    from embridge.records import FitRecord

    wide = Space("wide", OLD.dim, normalized=True)
    same = eb.LinearMap(np.eye(OLD.dim), np.zeros(OLD.dim), wide, OLD, FitRecord("given", role="queries"))
    same.save(tmp_path / "same.safetensors")
    app = client_of(str(tmp_path / "same"), indexes=(world.path("old.faiss"),))
    error = error_of(search(app, vectors=world.query_old), 400)
    assert error["code"] == "space_needed"
    assert search(app, vectors=world.query_old, space="wide").json()["strategy"] == "projected"
    assert search(app, vectors=world.query_old, space="old").json()["strategy"] == "own-space"


def test_all_strategies_side_by_side(client, world):
    body = {"vectors": world.query_new[:1].tolist(), "old_vectors": world.query_old[:1].tolist(), "k": 5}
    answer = client.post("/v1/compare", json=body).json()
    columns = {(c["index"], c["strategy"]): c for c in answer["columns"]}
    assert [c["unavailable"] for c in answer["columns"]] == [None] * len(columns)
    both = {"vectors": world.query_new[:1], "old_vectors": world.query_old[:1]}
    for (index, strategy), column in columns.items():
        takes_old = strategy == "old-space" or (strategy == "own-space" and column["title"] == "old")
        if (index, strategy) in (("native", "projected"), ("native", "blended")):
            continue
        vectors = {"vectors": both["old_vectors"]} if takes_old else {"vectors": both["vectors"]}
        if strategy in ("blended", "fused"):
            vectors = both
        one = search(client, index=index, strategy=strategy, **vectors).json()
        assert column["hits"] == one["hits"][0], (index, strategy)
    titles = {key: column["title"] for key, column in columns.items()}
    assert titles["old", "own-space"] == titles["fused", "old-space"] == "old"
    assert (titles["fused", "own-space"], titles["native", "own-space"]) == ("translated", "new")


def test_a_strategy_without_its_query_says_what_is_missing(client, world):
    columns = client.post("/v1/compare", json={"vectors": world.query_new[:1].tolist()}).json()["columns"]
    by = {(c["index"], c["strategy"]): c for c in columns}
    assert by["old", "projected"]["hits"]
    assert by["old", "own-space"]["hits"] is None
    assert "the query by the old model, 'old'" in by["old", "own-space"]["unavailable"]
    for body in ({}, {"vectors": world.query_new[:2].tolist()}, {"texts": ["x"], "vectors": world.query_new[:1].tolist()}):
        error_of(client.post("/v1/compare", json=body), 400)


def test_one_text_is_embedded_once(client_of, world, upstream):
    app = client_of("queries", indexes=(world.path("old.faiss"), world.path("fused.faiss")), upstreams=(f"new={upstream.url}#m",))
    columns = app.post("/v1/compare", json={"texts": ["a ferry"]}).json()["columns"]
    assert len(upstream.requests) == 1
    by = {(c["index"], c["strategy"]): c for c in columns}
    assert [hit["id"] for hit in by["old", "projected"]["hits"]] == [hit["id"] for hit in by["fused", "projected"]["hits"]]
    assert by["old", "blended"]["unavailable"] == "No encoder of 'old' is served."


def test_what_is_served_is_listed(client, world):
    facts = client.get("/v1/maps").json()
    assert [m["name"] for m in facts["maps"]] == ["documents", "queries"]
    documents = facts["maps"][0]
    assert documents["fingerprint"] == world.documents.fingerprint
    assert (documents["source"]["name"], documents["target"]["name"], documents["role"]) == ("old", "new", "documents")
    assert documents["quality"] == []
    indexes = {one["name"]: one for one in facts["indexes"]}
    assert indexes["old"]["strategies"] == ["own-space", "projected", "blended"]
    assert indexes["old"]["default"] == "projected"
    assert indexes["native"]["default"] == "own-space"
    assert indexes["fused"]["default"] == "fused"
    assert (indexes["fused"]["kind"], indexes["both"]["kind"]) == ("index", "collection")
