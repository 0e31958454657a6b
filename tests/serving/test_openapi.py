"""The OpenAPI document: complete, true of the service (schemathesis), and the source of the reference page."""

from pathlib import Path

import pytest

from embridge.serving.problems import ERRORS
from tests.serving.reference import page_of
from tests.serving.support import error_of
from tests.torture.service import fuzz

ROOT = Path(__file__).parents[2]
REQUESTS = 50


@pytest.fixture
def document(client_of):
    return client_of("queries").get("/openapi.json").json()


def test_every_operation_documents_itself_and_its_errors(document):
    assert set(document["paths"]) == {
        "/healthz", "/readyz", "/metrics", "/v1/embeddings", "/v1/models", "/v1/models/{model}", "/v1/translate", "/v1/search",
        "/v1/compare", "/v1/queries", "/v1/maps", "/v1/plan", "/v1/rollout", "/v1/rollout/queries",
    }  # fmt: skip
    for path, operations in document["paths"].items():
        for operation in operations.values():
            statuses = set(operation["responses"])
            assert operation["summary"], path
            assert operation["description"], path
            assert {"200", "500", "503"} <= statuses
            assert "422" not in statuses
            for status in statuses - {"200"}:
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}
                assert operation["responses"][status]["description"] == ERRORS[int(status)]
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])


def test_translation_documents_its_three_media_types(document):
    operation = document["paths"]["/v1/translate"]["post"]
    kinds = {"application/json", "application/octet-stream", "application/vnd.apache.arrow.stream"}
    assert set(operation["requestBody"]["content"]) == kinds
    assert set(operation["responses"]["200"]["content"]) == kinds


def test_a_key_is_documented_where_one_is_needed(client_of, document):
    assert "securitySchemes" not in document["components"]
    assert "401" not in document["paths"]["/v1/maps"]["get"]["responses"]
    client = client_of("queries", api_key="k")
    closed = client.get("/openapi.json").json()
    assert closed["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert "401" in closed["paths"]["/v1/maps"]["get"]["responses"]
    assert "security" not in closed["paths"]["/healthz"]["get"]
    error_of(client.get("/v1/maps"), 401)


@pytest.mark.serve
def test_generated_requests_find_no_fault_and_no_undocumented_status(tmp_path):
    count, found = fuzz(tmp_path, REQUESTS, seed=1, rollout=False)
    assert not found, found
    assert count >= 300


def test_the_reference_page_is_that_of_the_document(document):
    assert (ROOT / "docs/reference/http.md").read_text() == page_of(document), "python -m tests.serving.reference"
