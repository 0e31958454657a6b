"""Texts become vectors: by a sentence-transformers model in this process, or by an OpenAI-compatible server."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import numpy as np
from pydantic_core import from_json

from embridge.device import resolve_device
from embridge.encoding import load_encoder
from embridge.errors import ParameterError
from embridge.serving.options import ServeOptions, split_name
from embridge.serving.problems import Problem
from embridge.serving.workers import Workers

Inputs = list[str] | list[list[int]]
_PROMPTS = {"query": ("query",), "document": ("document", "passage")}


@dataclass(frozen=True, eq=False)
class Encoded:
    """Vectors of some inputs.

    Attributes
    ----------
    vectors : ndarray of shape (n, dim), float32
    usage : dict
        Counts of tokens, as OpenAI's API gives them.
    """

    vectors: np.ndarray
    usage: dict[str, int]


@dataclass(frozen=True)
class Request:
    """What is to be encoded.

    Attributes
    ----------
    inputs : list of str, or list of list of int
        Texts, or tokens.
    role : str
        ``query`` or ``document``.
    user : str, optional
        Passed on to an upstream.
    """

    inputs: Inputs
    role: str
    user: str | None = None


class Encoder(Protocol):
    """An encoder of one space.

    Attributes
    ----------
    space : str
    dim : int or None
        Width of its vectors, where it is known before the first text.
    """

    space: str
    dim: int | None

    async def encode(self, request: Request) -> Encoded:
        """Vectors of texts or tokens."""
        ...

    async def close(self) -> None:
        """Release what it holds."""
        ...


class LocalEncoder:
    """A sentence-transformers model. Where it has a prompt for the role (``query``; ``document`` or ``passage``), this is used.

    Raises
    ------
    MissingDependencyError, ParameterError, DeviceError
    """

    def __init__(self, given: str, device: str, workers: Workers) -> None:
        space, model = split_name(given)
        self.space = space or model.rstrip("/").rpartition("/")[2]
        self._model, self._workers = load_encoder(model, resolve_device(device)), workers
        self._lock = threading.Lock()  # tokenizers cannot be used by two threads at once
        self.dim = self._encode(["warm up"], "query").vectors.shape[1]

    async def encode(self, request: Request) -> Encoded:
        """Vectors of texts.

        Raises
        ------
        Problem
            Tokens, which belong to an upstream's own tokenizer.
        """
        texts = [text for text in request.inputs if isinstance(text, str)]
        if len(texts) < len(request.inputs):
            raise Problem.invalid(
                f"Tokens cannot be encoded: the model of {self.space!r} runs in this process and takes texts.", "input", "tokens"
            )
        return await self._workers.run(self._encode, texts, request.role)

    def _encode(self, texts: list[str], role: str) -> Encoded:
        prompts = {name: text for name, text in (self._model.prompts or {}).items() if text}
        prompt = next((prompts[name] for name in _PROMPTS[role] if name in prompts), None)
        with self._lock:
            vectors = self._model.encode(texts, convert_to_numpy=True, show_progress_bar=False, prompt=prompt)
            tokens = sum(map(len, self._model.tokenizer(texts, truncation=True)["input_ids"]))
        return Encoded(np.asarray(vectors, np.float32), {"prompt_tokens": tokens, "total_tokens": tokens})

    async def close(self) -> None:
        """A model in this process holds nothing."""


@dataclass(eq=False)
class UpstreamEncoder:
    """An OpenAI-compatible server.

    Attributes
    ----------
    space, url, model : str
    """

    space: str
    url: str
    model: str
    workers: Workers
    client: httpx.AsyncClient = field(repr=False)
    dim: int | None = None

    @classmethod
    def of(cls, given: str, timeout: float, workers: Workers) -> UpstreamEncoder:
        """From ``URL#MODEL`` or ``SPACE=URL#MODEL``.

        Raises
        ------
        ParameterError
        """
        space, text = split_name(given)
        url, _, model = text.partition("#")
        if not url.startswith(("http://", "https://")) or not model:
            raise ParameterError(f"The upstream {without_credentials(given)!r} must be [SPACE=]URL#MODEL, with http or https.")
        if "@" in url.split("/")[2]:
            raise ParameterError(
                "The URL of an upstream must not hold credentials. Hint: the environment variable EMBRIDGE_UPSTREAM_KEY."
            )
        space = space or model.rpartition("/")[2]
        key = upstream_key(space)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
        client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, follow_redirects=False)
        return cls(space, url.rstrip("/"), model, workers, client)

    async def encode(self, request: Request) -> Encoded:
        """Vectors of texts or tokens.

        Raises
        ------
        Problem
            The upstream cannot be reached, refuses the request, or answers with something else than vectors.
        """
        body: dict[str, Any] = {"model": self.model, "input": request.inputs, "encoding_format": "float"}
        if request.user is not None:
            body["user"] = request.user
        try:
            answer = await self.client.post(f"{self.url}/embeddings", json=body)
        except httpx.TimeoutException as e:
            raise Problem(504, "upstream_timeout", f"The upstream of {self.space!r} did not answer in time.") from e
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise Problem(
                502, "upstream_unreachable", f"The upstream of {self.space!r} cannot be reached: {type(e).__name__}."
            ) from e
        if answer.status_code != 200:
            raise _refusal(self.space, answer)
        return await self.workers.run(_vectors_of, answer.content, len(request.inputs), self.space)

    async def close(self) -> None:
        """Close its connections."""
        await self.client.aclose()


def upstream_key(space: str) -> str | None:
    """The key of the upstream of a space, from the environment."""
    suffix = re.sub(r"[^A-Z0-9]+", "_", space.upper())
    names = (f"EMBRIDGE_UPSTREAM_KEY_{suffix}", "EMBRIDGE_UPSTREAM_KEY", "OPENAI_API_KEY")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def without_credentials(text: str) -> str:
    """A URL as it may be shown."""
    return re.sub(r"//[^/@]*@", "//...@", text)


def _refusal(space: str, answer: httpx.Response) -> Problem:
    """The answer of an upstream that is not a success: its own message where the client's request is at fault."""
    status, text = answer.status_code, ""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        text = str(answer.json()["error"]["message"])[:1000]
    reason = f"The upstream of {space!r} answered with status {status}"
    if status == 429:
        wait = answer.headers.get("retry-after", "")
        headers = {"Retry-After": wait if wait.isdecimal() else "1"}
        return Problem(429, "rate_limited", f"{reason}: {text or 'too many requests'}", headers=headers)
    if status in (400, 413, 422):
        return Problem.invalid(f"{reason}: {text or 'no reason'}", "input", "upstream_refused")
    if status in (401, 403):
        return Problem(502, "upstream_refused", f"{reason}: it does not accept the key of this service.")
    return Problem(502, "upstream_failed", f"{reason}.")


def _vectors_of(content: bytes, count: int, space: str) -> Encoded:
    """The vectors of an upstream's answer, in the order of the inputs."""
    try:
        values = from_json(content)
        found = sorted(values["data"], key=lambda one: one["index"])
        if [one["index"] for one in found] != list(range(count)):
            raise ValueError("other indexes than those of the inputs")
        vectors = np.array([one["embedding"] for one in found], np.float32)
        if vectors.ndim != 2:
            raise ValueError("vectors of different widths")
        usage = values.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0)
        return Encoded(vectors, {"prompt_tokens": tokens, "total_tokens": int(usage.get("total_tokens") or tokens)})
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as e:
        message = f"The answer of the upstream of {space!r} holds no vectors for {count} inputs."
        raise Problem(502, "upstream_failed", message) from e


class Encoders:
    """The encoders of a service, by space.

    Raises
    ------
    ParameterError
        Two are of one space.
    MissingDependencyError, DeviceError
    """

    def __init__(self, options: ServeOptions, workers: Workers) -> None:
        found: list[Encoder] = [LocalEncoder(given, options.device, workers) for given in options.models]
        found += [UpstreamEncoder.of(given, options.timeout, workers) for given in options.upstreams]
        self._by_space = {encoder.space: encoder for encoder in found}
        if len(self._by_space) < len(found):
            raise ParameterError(f"Two encoders are of one space: {', '.join(repr(e.space) for e in found)}.")

    def __contains__(self, space: object) -> bool:
        return space in self._by_space

    def __iter__(self) -> Any:
        return iter(self._by_space.values())

    async def encode(self, space: str, dim: int, request: Request) -> Encoded:
        """Vectors of a space.

        Raises
        ------
        Problem
            There is no encoder of this space, or its vectors have another width.
        """
        if space not in self._by_space:
            known = ", ".join(map(repr, self._by_space)) or "none"
            message = f"There is no encoder of {space!r}, so texts cannot be used here. Encoders: {known}. Hint: send vectors."
            raise Problem.invalid(message, "texts", "no_encoder")
        made = await self._by_space[space].encode(request)
        if made.vectors.shape != (len(request.inputs), dim):
            message = f"The encoder of {space!r} gives {made.vectors.shape[1]} dimensions, and the space has {dim}."
            raise Problem(502, "upstream_failed", message)
        return made

    async def close(self) -> None:
        """Close all of them."""
        for encoder in self:
            await encoder.close()
