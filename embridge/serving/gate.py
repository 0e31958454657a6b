"""What every request passes: its id, the key, limits on body, time and number, and what is counted and logged of it."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from embridge.serving.logs import LOG, log
from embridge.serving.metrics import Metrics
from embridge.serving.options import ServeOptions
from embridge.serving.problems import Problem

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

ROWS = "embridge.rows"  # key of a scope for the number of vectors or texts of a request
_METHODS = ("GET", "POST")  # as labels of metrics; a client can invent any number of others
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PROBES = ("/healthz", "/readyz")
OPEN = ("/", "/openapi.json", *_PROBES)  # without a key: they show nothing of maps or vectors
_UNCOUNTED = ("/", "/metrics", *_PROBES)  # answered when the service is busy, too


class Gate:
    """ASGI middleware around the application.

    Attributes
    ----------
    application : Application
    draining : bool
        The service shuts down: ``/readyz`` says so, and connections are closed after their response.
    """

    def __init__(self, app: Any, options: ServeOptions, metrics: Metrics) -> None:
        self.application, self._options, self._metrics = app, options, metrics
        self._key = None if options.api_key is None else options.api_key.encode()
        self._in_flight = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other kinds of scope belong to the application."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._options.max_body, closes=self.draining)
        started = time.perf_counter()
        counted = scope["path"] not in _UNCOUNTED
        self._in_flight += counted
        self._metrics.in_flight.set(self._in_flight)
        try:
            await self._handle(exchange, busy=counted and self._in_flight > self._options.max_concurrency)
        finally:
            self._in_flight -= counted
            self._metrics.in_flight.set(self._in_flight)
            self._note(exchange, time.perf_counter() - started)

    async def _handle(self, exchange: _Exchange, *, busy: bool) -> None:
        try:
            self._admit(exchange, busy=busy)
            async with asyncio.timeout(self._options.timeout):
                await self.application(exchange.scope, exchange.receive, exchange.send)
        except Problem as problem:
            await exchange.answer(problem)
        except TimeoutError:
            seconds = f"{self._options.timeout:g} s"
            late = Problem(504, "timeout", f"The request took longer than {seconds}.", headers={"Retry-After": "1"})
            if not exchange.received:
                late = Problem(408, "timeout", f"The body did not arrive within {seconds}.", headers={"Connection": "close"})
            await exchange.answer(late)
        except Exception:
            LOG.exception("fault", extra={"fields": {"request_id": exchange.id}})
            await exchange.answer(Problem(500, "fault", f"A fault of the service; its log has it under {exchange.id}."))

    def _admit(self, exchange: _Exchange, *, busy: bool) -> None:
        headers, path = exchange.headers, exchange.scope["path"]
        if self._key is not None and path not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            given = given.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
            if not hmac.compare_digest(given, self._key):
                hint = "The API key is missing or wrong. Hint: Authorization: Bearer KEY."
                raise Problem(401, "invalid_api_key", hint, headers={"WWW-Authenticate": "Bearer"})
        if busy:
            limit = f"The service works on {self._options.max_concurrency} requests, its limit."
            raise Problem(503, "busy", limit, headers={"Retry-After": "1"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._options.max_body:
            raise _too_large(self._options.max_body)

    def _note(self, exchange: _Exchange, seconds: float) -> None:
        scope = exchange.scope
        route, method = getattr(scope.get("route"), "path", "unmatched"), scope["method"]
        rows, status = scope.get(ROWS, 0), exchange.status
        self._metrics.requests.labels(route, method if method in _METHODS else "other", status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if rows:
            self._metrics.rows.labels(route).inc(rows)
        fields: dict[str, Any] = {"request_id": exchange.id, "method": method[:16], "route": route, "status": status}
        fields |= {"seconds": round(seconds, 6), "rows": rows, "bytes": exchange.size}
        log(logging.DEBUG if route in _PROBES and status == 200 else logging.INFO, "request", **fields)


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int, *, closes: bool) -> None:
        self.scope, self._receive, self._send, self._limit, self._closes = scope, receive, send, limit, closes
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = given if _ID.fullmatch(given) else secrets.token_hex(16)
        scope["embridge.id"] = self.id
        self.status, self.size, self.received = 0, 0, False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.size += len(message.get("body", b""))
            self.received = not message.get("more_body", False)
            if self.size > self._limit:
                raise _too_large(self._limit)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self.id.encode())]
            if self._closes:
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    async def answer(self, problem: Problem) -> None:
        """Answer with an error, unless a response has begun."""
        if not self.status:
            await problem.response()(self.scope, self.receive, self.send)


def _too_large(limit: int) -> Problem:
    """The error for a body beyond the limit."""
    return Problem(413, "body_too_large", f"The body is larger than {limit:,} bytes.", headers={"Connection": "close"})


__all__ = ["OPEN", "ROWS", "Gate"]
