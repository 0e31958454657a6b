"""The application: routes, error answers, and the OpenAPI document."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from embridge import __version__
from embridge.errors import EmbridgeError
from embridge.serving import comparing, embedding, facts, schemas, searching, translating
from embridge.serving.gate import OPEN, Gate
from embridge.serving.options import ServeOptions
from embridge.serving.page import Page
from embridge.serving.problems import Problem, answers, place
from embridge.serving.schemas import Health
from embridge.serving.service import Service

_BODIES = (
    schemas.TranslateRequest,
    schemas.EmbeddingsRequest,
    schemas.SearchRequest,
    schemas.CompareRequest,
    schemas.LogRequest,
)
_ABOUT = (
    "Between an application and an index when the encoder changes: queries and vectors are translated between the spaces of two "
    "encoders. Errors have the form of OpenAI's API."
)


class Application(FastAPI):
    """FastAPI with a document of exactly the statuses and bodies that the service has."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            document = get_openapi(title=self.title, version=self.version, description=self.description, routes=self.routes)
            _, definitions = models_json_schema([(b, "validation") for b in _BODIES], ref_template="#/components/schemas/{model}")
            known = document["components"]["schemas"]
            known |= definitions["$defs"]
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of errors, which the service does not use
                known.pop(name, None)
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    if self.state.service.options.api_key is None or path in OPEN:
                        operation["responses"].pop("401", None)
                    else:
                        operation["security"] = [{"key": []}]
            if self.state.service.options.api_key is not None:
                document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            self.openapi_schema = document
        return self.openapi_schema


def create_app(options: ServeOptions, service: Service | None = None) -> Gate:
    """The ASGI application of a service.

    Parameters
    ----------
    options : ServeOptions
    service : Service, optional
        Default: a new one.

    Returns
    -------
    Gate
        The application behind its limits. The service is closed when it shuts down.

    Raises
    ------
    EmbridgeError
        Something that is to be served cannot be opened.
    """
    service = service or Service(options)
    app = Application(title="embridge", version=__version__, description=_ABOUT, openapi_url=None, lifespan=_lifespan)
    app.state.service, app.state.figures = service, facts.Figures(options.catalog)
    app.state.page = Page()
    for module in (embedding, translating, searching, comparing, facts):
        app.include_router(module.router)
    _add_plain_routes(app)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.state.gate = gate = Gate(app, options, service.metrics)
    return gate


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    watching = asyncio.create_task(app.state.service.watch())
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await app.state.service.close()


def _add_plain_routes(app: Application) -> None:
    @app.get("/healthz", tags=["probes"], summary="Is it alive?", response_model=Health, responses=answers())
    async def healthz() -> Response:
        """Answer as long as the process does."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", tags=["probes"], summary="Can it take requests?", response_model=Health, responses=answers())
    async def readyz() -> Response:
        """Answer 503 once the service shuts down, so that no new requests are sent to it."""
        if app.state.gate.draining:
            raise Problem(503, "shutting_down", "The service shuts down.", headers={"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    @app.get(
        "/metrics",
        tags=["probes"],
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **answers()},
    )
    async def metrics() -> Response:
        """Requests, latencies, rows, what is in flight, reloads, and the fingerprints of maps."""
        service = app.state.service
        return Response(service.metrics.render(), media_type=service.metrics.media_type)

    @app.get("/openapi.json", include_in_schema=False)
    async def document() -> Response:
        return JSONResponse(app.openapi())

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return app.state.page.response()


async def _on_problem(_: Request, error: Any) -> Response:
    return error.response()


async def _on_library(_: Request, error: Any) -> Response:
    return Problem.of(error).response()


async def _on_http(_: Request, error: Any) -> Response:
    codes = {404: "not_found", 405: "method_not_allowed"}
    return Problem(
        error.status_code, codes.get(error.status_code, "invalid_value"), str(error.detail), headers=error.headers or {}
    ).response()


async def _on_validation(_: Request, error: Any) -> Response:
    first = error.errors()[0]
    param = place(tuple(first["loc"][1:]))
    return Problem.invalid(f"{param}: {first['msg']}", param).response()


async def _on_disconnect(_: Request, __: Any) -> Response:
    return Response(status_code=499)  # for log and metrics: nobody is there to read it


async def _on_fault(request: Request, _: Any) -> Response:
    return Problem(500, "fault", f"A fault of the service; its log has it under {request.scope['embridge.id']}.").response()


_HANDLERS: dict[Any, Any] = {
    Problem: _on_problem,
    EmbridgeError: _on_library,
    ClientDisconnect: _on_disconnect,
    HTTPException: _on_http,
    RequestValidationError: _on_validation,
    Exception: _on_fault,
}
