"""What every request passes: key, ids, limits and times; what is counted and logged, and what never is."""

import json
import logging
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from embridge.serving.logs import JsonLines
from embridge.serving.maps import Conversion
from embridge.serving.workers import Workers
from tests.serving.support import PATIENCE, error_of, vector_of

KEY = "k-3f9"


@pytest.fixture
def slow(client_of, upstream):
    """``slow(**options)``: a client whose texts wait for `upstream.gate`."""
    return lambda **options: client_of("queries", upstreams=(f"new={upstream.url}#m",), **options)


def embed(client, text="a ferry", **headers):
    return client.post("/v1/embeddings", json={"model": "old", "input": text}, headers=headers)


def in_thread(work, *arguments):
    """A thread that does some work, and the list that gets its result."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work(*arguments)))
    thread.start()
    return thread, found


ROUTES = ("/v1/maps", "/v1/models", "/v1/plan", "/metrics", "/nope")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("headers", [{}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": ""}])
def test_without_the_key_nothing_is_shown(client_of, route, headers):
    answer = client_of("queries", api_key=KEY).get(route, headers=headers)
    assert error_of(answer, 401)["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"X-API-Key": KEY}])
def test_the_key_opens_all(client_of, headers):
    assert client_of("queries", api_key=KEY).get("/v1/maps", headers=headers).status_code == 200


@pytest.mark.parametrize("route", ["/healthz", "/readyz", "/", "/openapi.json"])
def test_probes_and_the_page_need_no_key(client_of, route):
    assert client_of("queries", api_key=KEY).get(route).status_code == 200


@pytest.mark.parametrize("key", ["", "kéy", "a\nb"])
def test_an_unusable_key_is_refused_at_the_start(client_of, key):
    with pytest.raises(ValueError, match="printable ASCII"):
        client_of("queries", api_key=key)


def test_the_id_of_a_request_comes_back(client_of):
    client = client_of("queries")
    assert client.get("/healthz", headers={"X-Request-ID": "a-1.b:2"}).headers["x-request-id"] == "a-1.b:2"
    assert client.get("/nope", headers={"X-Request-ID": "a-1"}).headers["x-request-id"] == "a-1"


@pytest.mark.parametrize("given", ['"}\x0b{', "é".encode(), "x" * 129, "", "a b"])
def test_an_id_that_could_harm_a_log_is_replaced(client_of, given):
    found = client_of("queries").get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"]
    assert found not in (given, "")
    assert found.isalnum()
    assert len(found) == 32


def test_a_body_beyond_the_limit_is_refused_by_its_length(client_of):
    answer = client_of("queries", max_body=100).post("/v1/translate", content=b"x" * 101)
    assert error_of(answer, 413)["code"] == "body_too_large"


def test_a_body_of_unknown_length_is_cut_at_the_limit(client_of):
    chunks = (b"x" * 50 for _ in range(3))
    answer = client_of("queries", max_body=100).post("/v1/translate", content=chunks, headers={"content-type": "application/json"})
    assert error_of(answer, 413)["message"].endswith("larger than 100 bytes.")


def test_more_requests_than_the_limit_are_sent_away_and_probes_are_not(slow, upstream):
    client = slow(max_concurrency=1)
    upstream.gate.clear()
    thread, found = in_thread(embed, client)
    assert upstream.waiting.acquire(timeout=PATIENCE)
    answer = embed(client)
    assert error_of(answer, 503)["code"] == "busy"
    assert answer.headers["retry-after"] == "1"
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == client.get("/metrics").status_code == 200
    upstream.gate.set()
    thread.join(PATIENCE)
    assert found[0].status_code == 200
    assert embed(client).status_code == 200


def test_health_is_answered_while_all_threads_compute(client_of, world, monkeypatch):
    gate, begun, apply = threading.Event(), threading.Semaphore(0), Conversion.apply

    def held(self, vectors, what="vectors"):
        begun.release()
        gate.wait(PATIENCE)
        return apply(self, vectors, what)

    monkeypatch.setattr(Conversion, "apply", held)
    client = client_of("queries", workers=1)
    thread, found = in_thread(lambda: client.post("/v1/translate", json={"vectors": world.query_new.tolist()}))
    assert begun.acquire(timeout=PATIENCE)
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == client.get("/metrics").status_code == 200
    gate.set()
    thread.join(PATIENCE)
    assert found[0].status_code == 200


def test_a_request_that_takes_too_long_is_ended(slow, upstream):
    client = slow(timeout=0.2)
    upstream.gate.clear()
    assert error_of(embed(client), 504)["code"] in ("timeout", "upstream_timeout")
    upstream.gate.set()


def test_work_that_waits_is_limited(client_of):
    import asyncio

    from embridge.serving.problems import Problem

    async def fill():
        workers, gate = Workers(1, 2), threading.Event()
        running = [asyncio.create_task(workers.run(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Problem) as caught:
            await workers.run(print)
        gate.set()
        await asyncio.gather(*running)
        await asyncio.sleep(0)
        assert await workers.run(lambda: 7) == 7
        workers.close()
        return caught.value.status

    assert asyncio.run(fill()) == 503


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(client_of, method):
    answer = client_of("queries").request(method, "/v1/translate")
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"model": "old", "input": "\\ud800"}', 400), (b"\xff", 400), (b'{"model": "\\u0000", "input": "x"}', 404)],
)
def test_text_that_is_none_is_refused(slow, body, status):
    error_of(slow().post("/v1/embeddings", content=body, headers={"content-type": "application/json"}), status)


def test_a_fault_shows_nothing_of_itself(client_of, caplog, monkeypatch):
    from embridge.serving import translating

    def fail(*_):
        raise RuntimeError("secret text of a request")

    client = client_of("queries")
    monkeypatch.setattr(translating.media, "media_type", fail)
    with caplog.at_level(logging.INFO, "embridge.serving"):
        answer = client.post("/v1/translate", content=b"x", headers={"X-Request-ID": "r7"})
    error = error_of(answer, 500)
    assert error["message"] == "A fault of the service; its log has it under r7."
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    fault = next(line for line in lines if line["event"] == "fault")
    assert (fault["error"], fault["request_id"]) == ("RuntimeError", "r7")
    assert any("translating.py" in place for place in fault["at"])
    assert "secret" not in json.dumps(lines)


def test_a_request_is_logged_without_its_content(slow, caplog, world):
    client = slow()
    with caplog.at_level(logging.INFO, "embridge.serving"):
        embed(client, ["private one", "private two"], **{"X-Request-ID": "r1", "Authorization": "Bearer private"})
        client.post("/v1/translate?map=private", json={"vectors": [[0.123456789] * 9]}, headers={"X-Request-ID": "r2"})
        client.get("/private/path")
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    found = {line["request_id"]: line for line in lines if line["event"] == "request"}
    assert set(found["r1"]) == {"time", "level", "event", "request_id", "method", "route", "status", "seconds", "rows", "bytes"}
    assert (found["r1"]["route"], found["r1"]["status"], found["r1"]["rows"]) == ("/v1/embeddings", 200, 2)
    assert (found["r2"]["status"], found["r2"]["rows"]) == (404, 0)
    assert "private" not in json.dumps(lines)
    assert "0.1234" not in json.dumps(lines)


def samples(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_metrics_count_requests_rows_and_maps(client_of, world):
    client = client_of("documents", "queries")
    client.post("/v1/translate", json={"vectors": world.query_new.tolist(), "map": "queries"})
    client.post("/v1/translate", json={"vectors": []})
    for path in ("/a", "/b"):
        client.get(path)
    for method in ("INVENTED", "PUT"):
        client.request(method, "/v1/maps")
    found = samples(client)

    def of(name, **labels):
        return found[name, tuple(sorted(labels.items()))]

    assert of("embridge_requests_total", route="/v1/translate", method="POST", status="200") == 1
    assert of("embridge_requests_total", route="/v1/translate", method="POST", status="400") == 1
    assert of("embridge_requests_total", route="unmatched", method="GET", status="404") == 2
    assert of("embridge_requests_total", route="/v1/maps", method="other", status="405") == 2
    assert of("embridge_rows_total", route="/v1/translate") == 5
    assert of("embridge_request_seconds_count", route="/v1/translate") == 2
    assert of("embridge_in_flight") == 0
    maps = {labels for name, labels in found if name == "embridge_map_info"}
    assert {dict(labels)["fingerprint"] for labels in maps} == {world.documents.fingerprint, world.queries.fingerprint}
    assert of("process_resident_memory_bytes") > 0


def test_the_page_needs_nothing_from_elsewhere(client_of):
    answer = client_of("queries").get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http://" not in answer.text.replace("http://www.w3.org", "")
    assert "https://" not in answer.text


def test_an_application_can_be_mounted_by_another_server(world):
    from starlette.testclient import TestClient

    from embridge.serving import ServeOptions, create_app

    with TestClient(create_app(ServeOptions(maps=(world.path("queries.safetensors"),)))) as client:
        answer = client.post("/v1/translate", json={"vectors": [vector_of("x").tolist()]})
    assert answer.status_code == 200
