"""Errors of the service, all in the form that OpenAI's API gives them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response
from pydantic import BaseModel, Field, ValidationError

from embridge.errors import (
    BadVectorsError,
    CatalogError,
    ChangedSourceError,
    EmbridgeError,
    InterruptedOutputError,
    MissingFileError,
    OutputError,
    SpaceMismatchError,
    UnreadableFileError,
)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_UNAVAILABLE = (CatalogError, ChangedSourceError, InterruptedOutputError, MissingFileError, OutputError, UnreadableFileError)


@dataclass(eq=False)
class Problem(Exception):  # noqa: N818 (it becomes an answer)
    """An error that is sent to a client.

    Attributes
    ----------
    status : int
    code : str
        For programs, such as ``model_not_found``.
    message : str
    param : str, optional
        The part of the request that is wrong, such as ``vectors[3]``.
    headers : dict of str to str
    """

    status: int
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode("utf-8", "backslashreplace")

    def response(self) -> Response:
        """The answer."""
        return Response(self.body(), self.status, self.headers, "application/json")

    @classmethod
    def invalid(cls, message: str, param: str | None = None, code: str = "invalid_value") -> Problem:
        """A request that cannot be done as it is."""
        return cls(400, code, message, param)

    @classmethod
    def of(cls, error: EmbridgeError) -> Problem:
        """An error of the library: of the request, or of a file or store that cannot be reached at present."""
        if isinstance(error, _UNAVAILABLE):
            return cls(503, "unavailable", str(error), headers={"Retry-After": "5"})
        code = "bad_vectors" if isinstance(error, BadVectorsError) else "invalid_value"
        return cls.invalid(str(error), code="space_mismatch" if isinstance(error, SpaceMismatchError) else code)

    @classmethod
    def of_validation(cls, error: ValidationError) -> Problem:
        """A body that does not have the fields that the request needs; its values are not repeated."""
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = place(first["loc"])
        return cls.invalid(f"{param}: {first['msg']}" if param else first["msg"], param or None)


def place(parts: tuple[int | str, ...]) -> str:
    """``("vectors", 3, 17)`` as ``vectors[3][17]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" if i else part for i, part in enumerate(parts))


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="For people.")
    type: str = Field(description="Kind of error, as in OpenAI's API.")
    param: str | None = Field(description="The part of the request that is wrong, such as `vectors[3]`.")
    code: str | None = Field(description="For programs, such as `model_not_found`.")


class ErrorAnswer(BaseModel):
    """Any error."""

    error: ErrorDetail


ERRORS: dict[int, str] = {
    400: "The request is not valid; `param` names the part, with the number of the row where it is one.",
    401: "The API key is missing or wrong.",
    403: "Not switched on in this service.",
    404: "There is no such thing, map, index or model.",
    406: "None of the media types in `Accept` can be given.",
    408: "The request did not arrive in time.",
    413: "The body is larger than the limit.",
    415: "The media type of the body is not supported.",
    429: "The upstream limits the rate of requests; see `Retry-After`.",
    500: "A fault of the service.",
    502: "The upstream cannot be reached, or gave an unusable answer.",
    503: "The service is busy, shuts down, or cannot reach a file or store; see `Retry-After`.",
    504: "The request took longer than the limit.",
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of error statuses of a route; those of every route are included."""
    every = (401, 500, 503)
    return {status: {"model": ErrorAnswer, "description": ERRORS[status]} for status in sorted({*every, *statuses})}
