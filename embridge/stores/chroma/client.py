"""Connections to Chroma: a folder, or a server; errors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from embridge.errors import EmbridgeError, MissingDependencyError, MissingFileError, OutputError, ParameterError, UnreadableFileError
from embridge.files import writing
from embridge.stores.uri import Location

try:
    import chromadb
    from chromadb.errors import ChromaAuthError, NotFoundError
except ImportError as error:
    raise MissingDependencyError.of("chromadb", "chroma://", "chroma") from error

PORT = 8000
FORMS = "chroma:///folder#collection, or chroma://host:8000/collection for a server"


def collection_name(location: Location) -> str:
    """The name of the collection.

    Raises
    ------
    ParameterError
        The URI names none.
    """
    location.check_options("tenant", "database", "https", "columns", "id", "vector")
    path = location.path.strip("/")
    name, other = (path, location.part) if location.host else (location.part, "" if location.path else "no path")
    if not name or other or (location.host and "/" in name):
        raise ParameterError(f"{location.uri!r} does not name a collection. Hint: write {FORMS}.")
    for option, values in (("https", ("true", "false")), ("columns", ("inferred",))):
        if location.options.get(option, values[0]) not in values:
            raise ParameterError(f"{location.uri!r}: {option} must be {' or '.join(values)}.")
    return name


def connect(location: Location, *, may_create: bool = False) -> Any:
    """A client. The token of a server is the URI's or that of CHROMA_API_KEY, sent as ``x-chroma-token``.

    Raises
    ------
    MissingFileError
        There is no such folder.
    """
    place = {name: location.options[name] for name in ("tenant", "database") if name in location.options}
    if not location.host:
        folder = os.path.realpath(location.path)
        if not may_create and not os.path.isfile(os.path.join(folder, "chroma.sqlite3")):  # the client would create it
            raise MissingFileError.at(location.path)
        return chromadb.PersistentClient(folder, **place)
    key = location.password or os.environ.get("CHROMA_API_KEY")
    headers = {"x-chroma-token": key} if key else None
    https = location.options.get("https") == "true"
    return chromadb.HttpClient(location.host, location.port or PORT, ssl=https, headers=headers, **place)


def collection_of(client: Any, location: Location) -> Any:
    """A collection.

    Raises
    ------
    MissingFileError
        There is none.
    """
    name = collection_name(location)
    try:
        return client.get_collection(name, embedding_function=None)
    except NotFoundError as e:
        raise MissingFileError(f"There is no collection {name!r} at {location.uri!r}.") from e


@contextlib.contextmanager
def reading(location: Location) -> Iterator[None]:
    """Raise an error of embridge in place of those of the client and its transports."""
    try:
        yield
    except EmbridgeError:
        raise
    except Exception as e:  # errors of httpx, pydantic and SQLite come through unchanged
        raise UnreadableFileError(f"{location.uri!r} cannot be read: {_reason(e, location)}") from e


@contextlib.contextmanager
def storing(location: Location) -> Iterator[None]:
    """As `reading`, for requests that write."""
    try:
        with writing(location.uri):
            yield
    except EmbridgeError:
        raise
    except Exception as e:
        raise OutputError(f"{location.uri!r} cannot be written: {_reason(e, location)}") from e


def _reason(error: Exception, location: Location) -> str:
    if isinstance(error, ChromaAuthError):
        return "the server refuses access. Hint: set CHROMA_API_KEY, or the client's CHROMA_CLIENT_AUTH_PROVIDER and _CREDENTIALS."
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    hint = f" Hint: is a Chroma server running at {location.host}:{location.port or PORT}?" if location.host else ""
    return f"{text}.{hint}"
