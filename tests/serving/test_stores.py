"""A store behind the service: PostgreSQL's own index answers, and rows that come later are seen."""

import numpy as np
import pytest

import embridge as eb
from embridge.serving import targets
from tests.serving.support import OLD, error_of

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
