"""``POST /v1/translate``: vectors in, vectors out."""

from __future__ import annotations

from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ValidationError

from embridge.serving import media
from embridge.serving.gate import ROWS
from embridge.serving.media import ARROW, JSON, RAW
from embridge.serving.problems import Problem, answers
from embridge.serving.schemas import TranslateAnswer, TranslateRequest
from embridge.serving.service import Service

Body = TypeVar("Body", bound=BaseModel)
router = APIRouter(tags=["vectors"])
_BINARY = {"type": "string", "format": "binary"}


def service_of(request: Request) -> Service:
    """The service that a request reached."""
    return request.app.state.service


def parsed(model: type[Body], body: bytes) -> Body:
    """The body as a model.

    Raises
    ------
    Problem
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as e:
        raise Problem.of_validation(e) from None


def parsed_json(model: type[Body], body: bytes, content_type: str | None) -> Body:
    """A body of JSON as a model.

    Raises
    ------
    Problem
        It has another media type, or is not valid.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise Problem(415, "unsupported_media_type", f"Content-Type must be {JSON}. Got {kind[:100]!r} instead.")
    return parsed(model, body)


def _translate(
    service: Service, content_type: str | None, accept: str | None, body: bytes, names: tuple[str | None, str | None, str]
) -> tuple[Response, int]:
    """The answer, and the number of rows; done in a thread."""
    kind = media.media_type(content_type)
    wanted = media.accepted(accept, kind)
    name, to, column = names
    limit = service.options.max_rows
    given = None
    if kind == JSON:
        given = parsed(TranslateRequest, body)
        name, to = (_one(x, y, what) for x, y, what in ((name, given.map, "map"), (to, given.to, "to")))
    conversion = service.maps.conversion(name, to)
    source = conversion.source
    if given is not None:
        rows = media.Rows(media.from_json(given.vectors, source, limit))
    else:
        rows = media.from_raw(body, source, limit) if kind == RAW else media.from_arrow(body, source, limit, column)
    out = conversion.apply(rows.vectors)
    content = media.to_body(wanted, rows, out, conversion.target, conversion.facts())
    headers = media.headers_of(conversion.map, conversion.translation.fingerprint, conversion.target)
    return Response(content, media_type=wanted, headers=headers), len(out)


def _one(in_query: str | None, in_body: str | None, what: str) -> str | None:
    if in_query is not None and in_body is not None and in_query != in_body:
        raise Problem.invalid(f"The query says {what}={in_query[:100]!r}, the body {in_body[:100]!r}.", what)
    return in_body if in_query is None else in_query


@router.post(
    "/v1/translate",
    summary="Translate vectors",
    response_class=Response,
    responses={
        200: {
            "model": TranslateAnswer,
            "description": "Translated vectors, in the order of the request. Headers `X-Embridge-Map`, `X-Embridge-Fingerprint`, "
            "`X-Embridge-Space` (percent-encoded) and `X-Embridge-Dim` name the map and the space.",
            "content": {RAW: {"schema": _BINARY}, ARROW: {"schema": _BINARY}},
        },
        **answers(400, 404, 406, 408, 413, 415, 504),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/TranslateRequest"}},
                RAW: {"schema": _BINARY},
                ARROW: {"schema": _BINARY},
            },
        }
    },
)
async def translate(
    request: Request,
    map: Annotated[str | None, Query(description="Default: the only map.")] = None,  # noqa: A002
    to: Annotated[str | None, Query(description="Space to translate into. Default: the target of the map.")] = None,
    column: Annotated[str, Query(description="Column of vectors in an Arrow stream.")] = "vector",
) -> Response:
    """Translate vectors by a map.

    Bodies are JSON, raw little-endian float32 rows (the width is that of the map's source), or an Arrow IPC stream, whose other
    columns pass through. `Accept` chooses the media type of the answer; default is that of the request.

    Vectors are checked: a row that is ragged, not finite, or zero under cosine is named by its number, and nothing is translated.
    Where the space of the input has unit length under cosine, rows are scaled to it first. With `to` naming the source of the map,
    queries are projected by the adjoint, and scaled to unit length where that space has it.
    """
    service, body = service_of(request), await request.body()
    headers = request.headers
    types = headers.get("content-type"), headers.get("accept")
    answer, rows = await service.workers.run(_translate, service, *types, body, (map, to, column))
    request.scope[ROWS] = rows
    return answer
