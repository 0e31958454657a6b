"""``POST /v1/embeddings`` and ``GET /v1/models``, as clients of OpenAI's API speak them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from embridge.serving.encoders import Encoded
from embridge.serving.encoders import Request as EncodeRequest
from embridge.serving.gate import ROWS
from embridge.serving.maps import Conversion
from embridge.serving.media import JSON, as_base64, check_count, checked
from embridge.serving.problems import Problem, answers
from embridge.serving.schemas import EmbeddingsAnswer, EmbeddingsRequest, Model, Models
from embridge.serving.service import Service
from embridge.serving.translating import parsed_json, service_of
from embridge.types import Space

router = APIRouter(tags=["OpenAI"])


@dataclass(frozen=True)
class _Wanted:
    """A request that can be done."""

    conversion: Conversion
    inputs: list[str] | list[list[int]]
    as_base64: bool
    user: str | None


def _read(service: Service, body: bytes, content_type: str | None) -> _Wanted:
    given = parsed_json(EmbeddingsRequest, body, content_type)
    conversion = model_of(service, given.model)
    dim = conversion.target.dim
    if given.dimensions not in (None, dim):
        raise Problem.invalid(f"The model {given.model!r} has {dim} dimensions. Got {given.dimensions} instead.", "dimensions")
    inputs = inputs_of(given.input)
    check_count(len(inputs), service.options.max_rows, "input")
    return _Wanted(conversion, inputs, given.encoding_format == "base64", given.user)


def inputs_of(given: str | list[str] | list[int] | list[list[int]]) -> list[str] | list[list[int]]:
    """One text, or the tokens of one, as a list of one."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [given]  # type: ignore[list-item]
    return given  # type: ignore[return-value]


def model_of(service: Service, name: str) -> Conversion:
    """The conversion behind a model.

    Raises
    ------
    Problem
        With status 404.
    """
    models = service.models()
    if name not in models:
        known = ", ".join(map(repr, models)) or "none, as no encoder is of the space of a map (--model, --upstream)"
        raise Problem(404, "model_not_found", f"The model {name[:100]!r} does not exist. Models: {known}.", "model")
    return models[name]


def _answer(wanted: _Wanted, encoded: Encoded) -> bytes:
    conversion = wanted.conversion
    out = conversion.apply(checked_encoding(encoded.vectors, conversion.source), "input")
    rows = [as_base64(row) for row in out] if wanted.as_base64 else out.tolist()
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    return to_json({"object": "list", "data": data, "model": conversion.name, "usage": encoded.usage})


def checked_encoding(vectors: np.ndarray, space: Space) -> np.ndarray:
    """Vectors of an encoder, if they can be used; those that cannot are a fault of the encoder, not of the request."""
    try:
        return checked(vectors, space, "input")
    except Problem as e:
        raise Problem(502, "upstream_failed", f"The encoder of {space.name!r} gave an unusable vector. {e.message}", e.param) from e


@router.post(
    "/v1/embeddings",
    summary="Embed texts in the space of an index",
    response_class=Response,
    responses={200: {"model": EmbeddingsAnswer}, **answers(400, 404, 408, 413, 415, 429, 502, 504)},
    openapi_extra={
        "requestBody": {"required": True, "content": {JSON: {"schema": {"$ref": "#/components/schemas/EmbeddingsRequest"}}}}
    },
)
async def embeddings(request: Request) -> Response:
    """Embed texts with the encoder of one space, and translate the vectors into another.

    The name of the model says which: `SPACE/MAP/ROLE`, where SPACE is that of the vectors that come back. The name of a space alone
    stands for queries translated into it by the best map.
    """
    service, body = service_of(request), await request.body()
    wanted = await service.workers.run(_read, service, body, request.headers.get("content-type"))
    source = wanted.conversion.source
    asked = EncodeRequest(wanted.inputs, wanted.conversion.role, wanted.user)
    encoded = await service.encoders.encode(source.name, source.dim, asked)
    request.scope[ROWS] = len(wanted.inputs)
    return Response(await service.workers.run(_answer, wanted, encoded), media_type=JSON)


def _facts(service: Service, name: str, conversion: Conversion) -> dict[str, object]:
    changed = next((m.signature for m in service.maps if m.name == conversion.map), None)
    return {
        "id": name,
        "object": "model",
        "created": 0 if changed is None else changed[0] // 1_000_000_000,
        "owned_by": "embridge",
        "encoder": conversion.source.name,
        "role": conversion.role,
        **conversion.facts(),
    }


@router.get("/v1/models", summary="List models", response_model=Models, responses=answers())
async def models(request: Request) -> Response:
    """List the models of `POST /v1/embeddings`: one for each map, direction and role whose encoder is served."""
    service = service_of(request)
    data = [_facts(service, name, conversion) for name, conversion in service.models().items()]
    return Response(to_json({"object": "list", "data": data}), media_type=JSON)


@router.get("/v1/models/{model:path}", summary="Show a model", response_model=Model, responses=answers(404))
async def model(request: Request, model: str) -> Response:
    """Show one model."""
    service = service_of(request)
    return Response(to_json(_facts(service, model, model_of(service, model))), media_type=JSON)
