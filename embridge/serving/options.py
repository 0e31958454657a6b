"""The options of the service, and the short forms in which a command line gives them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from embridge.errors import ParameterError


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What is served, to whom, and within which limits.

    Attributes
    ----------
    maps : tuple of str
        Files of maps, each as ``PATH`` or ``NAME=PATH``. Default name: the file's without its ending.
    indexes : tuple of str
        What is searched, each as ``PATH`` or ``NAME=PATH``: a FAISS index, a collection (Parquet, or the URI of a store), or the
        folder of a rollout.
    index_space : str, optional
        Space of indexes that do not name theirs, as ``NAME`` or ``NAME:METRIC``.
    models : tuple of str
        sentence-transformers models that run in this process, each as ``MODEL`` or ``SPACE=MODEL``. Default space: the last part of
        the model's name.
    upstreams : tuple of str
        OpenAI-compatible servers, each as ``URL#MODEL`` or ``SPACE=URL#MODEL``, such as ``https://api.openai.com/v1#text-embedding-3-small``.
        Their key is in the environment: ``EMBRIDGE_UPSTREAM_KEY_SPACE``, else ``EMBRIDGE_UPSTREAM_KEY``, else ``OPENAI_API_KEY``.
    device : str, default "auto"
        For `models`.
    host, port : str, int
        Port 0 takes a free one.
    api_key : str, optional
        Clients must send it as ``Authorization: Bearer KEY``.
    catalog : str, optional
        The catalog with the quality of maps and the newest plan; read only.
    query_log : str, optional
        Folder for logged queries of a rollout. Default: queries are not logged.
    max_body : int, default 32 MiB
        Bytes of a request.
    max_rows : int, default 2048
        Vectors or texts of a request.
    max_concurrency : int, default 64
        Requests at a time; further ones get status 503.
    timeout : float, default 30.0
        Seconds for a request.
    workers : int, default 2
        Threads that compute.
    reload : float, default 2.0
        Seconds between looks at the files of maps and indexes.
    drain : float, default 0.5
        Seconds for which requests are still accepted after SIGTERM, while ``/readyz`` answers 503.
    """

    maps: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    index_space: str | None = None
    models: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()
    device: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = field(default=None, repr=False)
    catalog: str | None = None
    query_log: str | None = None
    max_body: int = 32 << 20
    max_rows: int = 2048
    max_concurrency: int = 64
    timeout: float = 30.0
    workers: int = 2
    reload: float = 2.0
    drain: float = 0.5

    def __post_init__(self) -> None:
        for name in ("max_body", "max_rows", "max_concurrency", "workers"):
            if getattr(self, name) < 1:
                raise ParameterError.must_be(name, "at least 1", getattr(self, name))
        if not self.timeout > 0 or not self.reload > 0 or self.drain < 0:
            raise ParameterError.must_be("timeout, reload and drain", "positive seconds", (self.timeout, self.reload, self.drain))
        if self.api_key is not None and (not self.api_key or not self.api_key.isascii() or not self.api_key.isprintable()):
            raise ParameterError("The API key must be printable ASCII text, and not empty.")


def named_paths(given: tuple[str, ...], what: str) -> dict[str, str]:
    """``PATH`` and ``NAME=PATH`` as paths by name, URIs without their passwords.

    Raises
    ------
    ParameterError
        Two have one name, or a name is empty.
    """
    from embridge.stores.uri import without_password  # loads Arrow, which the help of the command line does not need

    found: dict[str, str] = {}
    for text in given:
        name, path = split_name(text)
        path = without_password(path)
        name = _default_name(path) if name is None else name
        if not name or not path:
            raise ParameterError(f"{text!r} names no {what}. Hint: PATH, or NAME=PATH.")
        if name in found:
            raise ParameterError(f"Two {what}s have the name {name!r}: {found[name]!r} and {path!r}. Hint: give names, NAME=PATH.")
        found[name] = path
    return found


def split_name(text: str) -> tuple[str | None, str]:
    """``NAME=VALUE`` as its parts; without a name None. A path that exists, or a URI with ``=`` in its options, has no name."""
    name, mark, value = text.partition("=")
    if not mark or os.path.exists(text) or "://" in name or "?" in name:
        return None, text
    return name, value


def _default_name(path: str) -> str:
    if "://" in path:
        from embridge.stores.uri import Location

        location = Location.parse(path)
        return location.options.get("table") or location.part or Path(location.path).name or location.scheme
    return Path(path).name.partition(".")[0] or Path(path).resolve().name
