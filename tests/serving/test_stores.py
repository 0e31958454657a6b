"""A store behind the service: PostgreSQL's own index answers, and rows that come later are seen."""

import numpy as np
import pytest

import embridge as eb
from embridge.serving import targets
from tests.serving.support import NEW, OLD, error_of

pytestmark = pytest.mark.pgvector


@pytest.fixture
def table(world, new_table):
    uri = new_table()
    eb.copy(eb.open(world.path("old.parquet")), uri)
    return uri


def hits_of(answer):
    assert answer.status_code == 200, answer.text
    return [[hit["id"] for hit in row] for row in answer.json()["hits"]]


def test_a_table_is_searched_by_every_strategy_of_one_space(client_of, world, table):
    client = client_of("queries", indexes=(f"docs={table}",))
    body = {"vectors": world.query_old.tolist(), "strategy": "own-space", "k": 5}
    assert hits_of(client.post("/v1/search", json=body)) == world.ids[eb.top_k(world.query_old, world.old, 5).ids].tolist()
    projected = world.queries.apply(world.query_new)
    body = {"vectors": world.query_new.tolist(), "k": 5}
    answer = client.post("/v1/search", json=body)
    assert answer.json()["strategy"] == "projected"
    assert hits_of(answer) == world.ids[eb.top_k(projected, world.old, 5).ids].tolist()
    body |= {"strategy": "blended", "old_vectors": world.query_old.tolist(), "weight": 0.0}
    assert hits_of(client.post("/v1/search", json=body)) == world.ids[eb.top_k(world.query_old, world.old, 5).ids].tolist()
    assert "parameters" in error_of(client.post("/v1/search", json=body | {"parameters": "nprobe=4"}), 400)["message"]


def test_a_password_is_used_and_never_shown(client_of, world, table, caplog):
    import logging

    with_password = table.replace("postgres@", "postgres:hunter2@")
    with caplog.at_level(logging.INFO):
        client = client_of("queries", indexes=(f"docs={with_password}",))
        service = client.app.application.state.service
        body = {"vectors": world.query_old.tolist(), "strategy": "own-space", "k": 5}
        assert len(hits_of(client.post("/v1/search", json=body))) == 5
        shown = client.get("/v1/maps").text + client.get("/metrics").text + caplog.text + repr(service.options.api_key)
    assert "hunter2" not in shown
    assert "hunter2" not in service.targets["docs"].path


def test_a_table_with_two_vectors_is_searched_by_each_of_them(client_of, world, new_table):
    uri = new_table()
    eb.convert(eb.open(world.path("old.parquet")), world.documents, uri, keep_old=True)
    client = client_of("queries", indexes=(f"docs={uri}",))
    projected, translated = world.queries.apply(world.query_new), world.documents.apply(world.old)
    cases = {
        "own-space": (world.query_new, {}, eb.top_k(world.query_new, translated, 5)),
        "old-space": (world.query_old, {}, eb.top_k(world.query_old, world.old, 5)),
        "projected": (world.query_new, {}, eb.top_k(projected, world.old, 5)),
        "blended": (
            world.query_new,
            {"old_vectors": world.query_old.tolist(), "weight": 0.0},
            eb.top_k(world.query_old, world.old, 5),
        ),
    }
    for strategy, (vectors, more, expected) in cases.items():
        body = {"strategy": strategy, "vectors": vectors.tolist(), "k": 5} | more
        assert hits_of(client.post("/v1/search", json=body)) == world.ids[expected.ids].tolist(), strategy
    error = error_of(client.post("/v1/search", json={"strategy": "fused", "vectors": world.query_new.tolist()}), 400)
    assert "a store ranks by one vector at a time" in error["message"]


def test_a_rollout_in_a_table_is_served(client_of, world, new_table, tmp_path):
    table = new_table()
    eb.copy(eb.open(world.path("old.parquet")), table)
    first = eb.MemoryCollection(world.ids[:120], world.new[:120], NEW)
    rollout = eb.Rollout.start(eb.open(table), first, tmp_path / "rollout")
    client = client_of("queries", indexes=(rollout.path,))
    new = eb.MemoryCollection(np.arange(5), world.query_new, NEW)
    native = world.ids[:120][eb.top_k(world.query_new, world.new[:120], 5).ids]
    cases = {
        "fused": (world.query_new, rollout.search(new, 5)[1].ids),
        "old-space": (world.query_old, world.ids[eb.top_k(world.query_old, world.old, 5).ids]),
        "projected": (world.query_new, world.ids[eb.top_k(world.queries.apply(world.query_new), world.old, 5).ids]),
        "native": (world.query_new, native),
    }
    for strategy, (vectors, expected) in cases.items():
        body = {"strategy": strategy, "vectors": vectors.tolist(), "k": 5}
        assert hits_of(client.post("/v1/search", json=body)) == expected.tolist(), strategy


def test_rows_that_come_later_are_seen_and_a_table_that_goes_is_reported(client_of, world, table, postgres, monkeypatch):
    import psycopg

    name = table.rpartition("table=")[2]
    client = client_of("queries", indexes=(f"docs={table}",))
    service = client.app.application.state.service
    body = {"vectors": world.query_old[:1].tolist(), "strategy": "own-space", "k": 1000}
    assert len(hits_of(client.post("/v1/search", json=body))[0]) == 200
    monkeypatch.setattr(targets, "_STORE_SECONDS", 0.0)
    with psycopg.connect(postgres, autocommit=True) as connection:
        vector = np.full(OLD.dim, OLD.dim**-0.5).tolist()
        connection.execute(f'INSERT INTO "{name}" (id, vector) VALUES (%s, %s::vector)', ["later", str(vector)])
        service.reload()
        assert "later" in hits_of(client.post("/v1/search", json=body))[0]
        service.targets["docs"]._collection._held.close()  # as when the server is restarted
        connection.execute(f'ALTER TABLE "{name}" RENAME TO moved')
        service.reload()
        error = error_of(client.post("/v1/search", json=body), 503)
        assert error["code"] == "unavailable"
        assert client.get("/v1/maps").json()["indexes"][0]["fault"]
        connection.execute(f'ALTER TABLE moved RENAME TO "{name}"')
    monkeypatch.setattr(targets, "_STORE_SECONDS", 600.0)  # the failed search is why it is opened again
    service.reload()
    assert len(hits_of(client.post("/v1/search", json=body))[0]) == 201
