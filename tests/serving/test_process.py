"""``embridge serve`` as a process: how it starts, reloads, and ends without losing a request."""

import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

import embridge as eb
from embridge.records import FitRecord
from embridge.serving import ServeOptions
from tests import support
from tests.serving.support import NEW, OLD, PATIENCE, error_of, serving

pytestmark = pytest.mark.serve


def translate(client, vectors, **more):
    return client.post("/v1/translate", json={"vectors": vectors.tolist()} | more)


@pytest.fixture
def own_map(world, tmp_path):
    """A copy of a map, to be replaced."""
    return shutil.copy(world.path("queries.safetensors"), tmp_path / "queries.safetensors")


def other_map(world, path, target=OLD):
    """Another map from the same space, put in place of the file at once."""
    made = eb.LinearMap(2 * world.queries.coef, world.queries.intercept, NEW, target, FitRecord("given", role="queries"))
    made.save(path.parent / "other.tmp", overwrite=True)
    os.replace(path.parent / "other.tmp", path)
    return made


def test_sigterm_answers_every_request_that_was_accepted(world, upstream):
    arguments = [
        world.path("queries.safetensors"),
        "--upstream",
        f"new={upstream.url}#m",
        "--max-concurrency",
        "100",
        "--drain",
        "0",
    ]
    upstream.gate.clear()
    with serving(*arguments) as (process, _):
        url, answers = process.url, []

        def ask(number):
            body = {"model": "old", "input": f"text {number}"}
            answers.append(httpx.post(f"{url}/v1/embeddings", json=body, timeout=PATIENCE).status_code)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert upstream.waiting.acquire(timeout=PATIENCE)
        process.send(signal.SIGTERM)
        process.wait_for("draining")
        upstream.gate.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert answers == [200] * 12
        assert process.process.wait(PATIENCE) == 0
        assert process.end() == 0
    assert process.log[-1]["event"] == "stopped"


def test_under_load_sigterm_loses_no_accepted_request(world):
    """Each request that the service logged as done has reached its client, with keep-alive connections in use all the time."""
    with serving(world.path("queries.safetensors")) as (process, _):
        url, done, other = process.url, set(), []
        vectors = world.query_new.tolist()

        def ask(name):
            with httpx.Client(base_url=url, timeout=PATIENCE) as client:
                number = 0
                while True:
                    number += 1
                    headers = {"X-Request-ID": f"{name}-{number}"}
                    try:
                        answer = client.post("/v1/translate", json={"vectors": vectors}, headers=headers)
                    except httpx.ConnectError:
                        return
                    except httpx.TransportError as e:
                        other.append((headers["X-Request-ID"], repr(e)))
                        return
                    assert answer.status_code == 200
                    done.add(answer.headers["x-request-id"])

        threads = [threading.Thread(target=ask, args=(f"c{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        process.wait_for("request", count=200)
        status = process.end(signal.SIGTERM)
        for thread in threads:
            thread.join(PATIENCE)
        logged = {line["request_id"] for line in process.log if line["event"] == "request"}
    assert status == 0
    assert logged == done, other
    assert len(done) >= 200


def test_a_client_that_goes_away_is_no_fault(world):
    with serving(world.path("queries.safetensors")) as (process, client):
        place = urlsplit(process.url)
        with socket.create_connection((place.hostname, place.port)) as connection:
            head = "POST /v1/translate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
            connection.sendall(head.encode() + b'{"vectors"')
            assert client.get("/healthz").status_code == 200
        assert process.wait_for("request", route="/v1/translate")["status"] == 499
        assert translate(client, world.query_new).status_code == 200
        assert not [line for line in process.log if line["event"] == "fault"]


def test_readiness_ends_before_connections_do(world):
    with serving(world.path("queries.safetensors"), "--drain", "600") as (process, client):
        assert client.get("/readyz").status_code == 200
        process.send(signal.SIGTERM)
        process.wait_for("draining")
        answer = client.get("/readyz")
        assert error_of(answer, 503)["code"] == "shutting_down"
        assert answer.headers["connection"] == "close"
        answer = translate(client, world.query_new)
        assert answer.status_code == 200
        assert client.get("/healthz").status_code == 200


def test_an_open_address_without_a_key_is_warned_about_and_ctrl_c_ends_with_its_status(world):
    with serving(world.path("queries.safetensors"), "--drain", "0", "--host", "0.0.0.0") as (process, _):  # noqa: S104
        assert process.wait_for("serving")["url"].startswith("http://0.0.0.0:")
        [warning] = [line for line in process.log if line["level"] == "warning"]
        assert "anyone" in warning["event"]
        assert "EMBRIDGE_SERVE_API_KEY" in warning["hint"]
        assert process.end(signal.SIGINT) == 130


def index_copy(world, folder):
    for suffix in ("", ".json", ".ids.parquet"):
        shutil.copy(world.path(f"old.faiss{suffix}"), folder / f"old.faiss{suffix}")
    return folder / "old.faiss"


def test_changed_files_are_read_without_losing_a_request(world, own_map, tmp_path):
    index = index_copy(world, tmp_path)
    made = other_map(world, own_map.with_name("aside.safetensors"))
    with serving(own_map, "--index", index, "--reload", "0.05") as (process, client):
        statuses, stop = set(), threading.Event()

        def ask():
            with httpx.Client(base_url=process.url, timeout=PATIENCE) as mine:
                while not stop.is_set():
                    answer = translate(mine, world.query_new)
                    used = made if answer.json()["map"]["fingerprint"] == made.fingerprint else world.queries
                    np.testing.assert_allclose(answer.json()["vectors"], used.apply(world.query_new), atol=1e-5)
                    statuses.add(answer.status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        process.wait_for("request", count=5)
        os.replace(own_map.with_name("aside.safetensors"), own_map)
        line = process.wait_for("reloaded", map="queries")
        process.wait_for("request", count=len(process.log) + 5)
        stop.set()
        thread.join(PATIENCE)
        assert (line["before"], line["fingerprint"]) == (world.queries.fingerprint, made.fingerprint)
        assert statuses == {200}
        assert translate(client, world.query_new).json()["map"]["fingerprint"] == made.fingerprint
        metrics = client.get("/metrics").text
        assert f'fingerprint="{made.fingerprint}"' in metrics
        assert world.queries.fingerprint not in metrics
        body = {"vectors": world.query_new.tolist(), "k": 1000}
        assert len(client.post("/v1/search", json=body).json()["hits"][0]) == 200
        eb.build_index(eb.MemoryCollection(world.ids[:50], world.old[:50], OLD), index, "Flat", overwrite=True)
        process.wait_for("reloaded", index="old")
        assert len(client.post("/v1/search", json=body).json()["hits"][0]) == 50


def damage(world, path):
    path.write_bytes(path.read_bytes()[:-20])


def remove(world, path):
    path.unlink()


def rename_space(world, path):
    other_map(world, path, target=eb.Space("other", 6, normalized=True))


def widen(world, path):
    eb.LinearMap(np.ones((7, 9)), np.zeros(7), NEW, eb.Space("old", 7)).save(path, overwrite=True)


def test_a_bad_new_file_leaves_the_map_in_force(world, own_map):
    with serving(own_map, "--reload", "600") as (process, client):
        for number, change in enumerate((damage, remove, rename_space, widen), start=1):
            change(world, own_map)
            process.send(signal.SIGHUP)
            line = process.wait_for("reload failed", count=number)
            assert (line["map"], line["level"]) == ("queries", "error")
            assert translate(client, world.query_new).json()["map"]["fingerprint"] == world.queries.fingerprint
            assert client.get("/v1/maps").json()["maps"][0]["fault"] == line["reason"]
            failed = f'embridge_reloads_total{{kind="map",name="queries",result="failed"}} {number}.0'
            assert failed in client.get("/metrics").text
            shutil.copy(world.path("queries.safetensors"), own_map)
            process.send(signal.SIGHUP)
            process.wait_for("reloaded", count=number)
            assert client.get("/v1/maps").json()["maps"][0]["fault"] is None


@pytest.fixture
def started(monkeypatch):
    """The options with which the verb would have served."""
    found = []
    monkeypatch.setattr("embridge.serve", found.append)
    return found


def run(*arguments):
    done = support.run("serve", *arguments)
    assert done.exit_code == 0, done.output
    return done


def test_options_come_from_the_command_line_then_the_environment_then_a_file(started, tmp_path, monkeypatch):
    config = tmp_path / "serve.toml"
    values = {"maps": ["a.safetensors"], "max-rows": 1, "max_body_mb": 1, "api_key": "of the file", "timeout": 7.5}
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    monkeypatch.setenv("EMBRIDGE_SERVE_CONFIG", str(config))
    run()
    monkeypatch.setenv("EMBRIDGE_SERVE_MAX_ROWS", "2")
    monkeypatch.setenv("EMBRIDGE_SERVE_API_KEY", "of the environment")
    monkeypatch.setenv("EMBRIDGE_SERVE_MAPS", "b.safetensors d=c.safetensors")
    run()
    monkeypatch.setenv("EMBRIDGE_SERVE_INDEX", "x.faiss y=y.faiss")
    run("--max-rows", "3", "e.safetensors")
    assert started[-1].indexes == ("x.faiss", "y=y.faiss")
    assert [one.maps for one in started] == [("a.safetensors",), ("b.safetensors", "d=c.safetensors"), ("e.safetensors",)]
    assert [one.max_rows for one in started] == [1, 2, 3]
    assert [one.api_key for one in started] == ["of the file", "of the environment", "of the environment"]
    assert [(one.max_body, one.timeout) for one in started] == [(1 << 20, 7.5)] * 3


def test_defaults_are_those_of_the_library(started):
    run("a.safetensors")
    assert started == [ServeOptions(maps=("a.safetensors",))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = 'x", "cannot be read as TOML"),
        ("prot = 80", "unknown option 'prot'"),
        ("maps = 'a'", "'maps' of .* must be a list"),
        ("port = [80]", "'port' of .* must be one value"),
        ("[port]\nx = 1", "'port' of .* must be one value"),
        ("port = 70000", "is not in the range"),
    ],
)
def test_a_bad_file_of_options_is_refused(tmp_path, text, message):
    (tmp_path / "serve.toml").write_text(text)
    done = support.run("serve", "--config", tmp_path / "serve.toml")
    assert done.exit_code == 2
    assert re.search(message, " ".join(done.output.split()))


def test_a_port_in_use_is_one_clear_message(world):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = support.run("serve", world.path("queries.safetensors"), "--port", port)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: Port {port} of '127.0.0.1' cannot be used: ")
    assert done.stderr.count("\n") == 1


STARTS = {
    "nothing": ([], "There is nothing to serve"),
    "a missing map": (["/nowhere/map.safetensors"], "There is no file or folder at '/nowhere/map.safetensors'"),
    "no map": ([__file__], "cannot be read as a map"),
    "a missing index": (["--index", "/nowhere/x.faiss"], "There is no file or folder"),
    "a host": (["--host", "no.such.host.invalid", "x"], "The host 'no.such.host.invalid' cannot be used"),
    "one name": (["a=x", "a=y"], "Two maps have the name 'a'"),
    "no name": (["=x"], "'=x' names no map"),
}


@pytest.mark.parametrize("case", STARTS)
def test_what_cannot_be_served_is_one_clear_message(case):
    arguments, message = STARTS[case]
    done = support.run("serve", *arguments, "--port", 0)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "httpx", "prometheus_client"])
def test_a_missing_package_is_named_with_its_install_command(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    done = support.run("serve", "map.safetensors")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "pip install 'embridge[serve]'" in done.stderr


def test_the_examples_have_the_options_of_the_verb(started):
    examples = support.ROOT / "docs/examples"
    run("--config", examples / "serve.toml")
    [options] = started
    assert options.maps == ("queries=/srv/embridge/queries.safetensors",)
    assert options.indexes == ("docs=/srv/embridge/docs.faiss",)
    unit = (examples / "embridge.service").read_text()
    stop = float(re.search(r"TimeoutStopSec=(\d+)", unit)[1])
    assert stop > options.drain + options.timeout
    for text in (unit, (examples / "Dockerfile").read_text()):
        for name in re.findall(r"EMBRIDGE_SERVE_(\w+)", text):
            assert name == "CONFIG" or hasattr(options, name.lower()), name
