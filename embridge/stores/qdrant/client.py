"""Connections to Qdrant: a server, or a folder of the client's local mode; ids of points; errors."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import uuid
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

from embridge.errors import MissingDependencyError, MissingFileError
from embridge.stores import databases, json_columns
from embridge.stores.batch import Batch
from embridge.stores.databases import collection_in
from embridge.stores.uri import Location

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import UnexpectedResponse
except ImportError as error:
    raise MissingDependencyError.of("qdrant-client", "qdrant://", "qdrant") from error

__all__ = [
    "FORMS",
    "UnexpectedResponse",
    "collection_name",
    "connect",
    "models",
    "places_of",
    "point_of",
    "reading",
    "release",
    "requests_of",
    "storing",
]

PORT = 6333
FORMS = "qdrant://host:6333/collection?vector=name, or qdrant:///folder#collection for the local mode of qdrant-client"
_TIMEOUT = 120  # seconds for one request
_REQUEST_ROWS, _REQUEST_BYTES = 512, 4 << 20  # of vectors and payload as JSON; a server takes 32 MiB
_CLIENTS: weakref.WeakValueDictionary[str, QdrantClient] = weakref.WeakValueDictionary()  # a folder is locked by its client


def collection_name(location: Location) -> str:
    """The collection that a URI names (see `collection_in`)."""
    return collection_in(location, FORMS, "vector", "id")


def connect(location: Location, *, may_create: bool = False) -> QdrantClient:
    """The client of a server or a folder, which all that use it share.

    The API key is the URI's or that of QDRANT_API_KEY; https is used where there is a key, unless ``https=false``.

    Raises
    ------
    MissingFileError
        There is no such folder.
    """
    options = _options(location)
    folder = options.get("path")
    if folder and not may_create and not os.path.isfile(os.path.join(folder, "meta.json")):
        raise MissingFileError.at(location.path)
    place = repr(options)
    client = _CLIENTS.get(place)
    if client is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the client: a key without https, many rows in local mode
            client = _CLIENTS[place] = QdrantClient(**options, check_compatibility=False)
    return client


def _options(location: Location) -> dict[str, Any]:
    if not location.host:
        return {"path": os.path.realpath(location.path), "force_disable_check_same_thread": True}
    https = {"true": True, "false": False}.get(location.options.get("https", ""))
    key = databases.key_of(location, "QDRANT_API_KEY")
    return {"host": location.host, "port": location.port or PORT, "https": https, "api_key": key, "timeout": _TIMEOUT}


def places_of(location: Location) -> set[str]:
    """The folder, or the addresses of the server."""
    if not location.host:
        return {os.path.realpath(location.path)}
    port = location.port or PORT
    try:
        found = socket.getaddrinfo(location.host, port, type=socket.SOCK_STREAM)
    except OSError:
        return {f"{location.host}:{port}"}
    return {f"{address[0]}:{port}" for *_, address in found}


def release(location: Location) -> None:
    """Close the client of a folder: opened again, it returns cosine vectors as they are on the disk, always the same."""
    if not location.host and (client := _CLIENTS.pop(repr(_options(location)), None)) is not None:
        client.close()


@atexit.register
def _close() -> None:  # before modules are torn down, which the client needs to unlock its folder
    for client in list(_CLIENTS.values()):
        client.close()


def requests_of(batch: Batch) -> Iterator[Batch]:
    """Parts of a batch that one request each writes."""
    return json_columns.requests_of(batch, _REQUEST_ROWS, _REQUEST_BYTES)


def point_of(value: str | int) -> str | int:
    """The id of a point for an id.

    An integer is a point's number; negative ones are those from 2^63 on (two's complement). A UUID in its usual form is itself,
    any other text, and a UUID of version 5, its UUIDv5 in the URL namespace.
    """
    if isinstance(value, int):
        return value % (1 << 64)
    with contextlib.suppress(ValueError):
        found = uuid.UUID(value)
        if str(found) == value and found.version != 5:  # so that no two texts can share a UUID
            return value
    return str(uuid.uuid5(uuid.NAMESPACE_URL, value))


def reading(location: Location) -> contextlib.AbstractContextManager[None]:
    """See `embridge.stores.databases.reading`."""
    return databases.reading(location, "Qdrant", PORT, _reason)


@contextlib.contextmanager
def storing(location: Location) -> Iterator[None]:
    """See `embridge.stores.databases.storing`."""
    with warnings.catch_warnings(), databases.storing(location, "Qdrant", PORT, _reason):
        warnings.simplefilter("ignore")  # of the local mode, which is not recommended for many rows
        yield


def _reason(error: Exception) -> str | None:
    if not isinstance(error, UnexpectedResponse):
        return None
    if error.status_code in (401, 403):
        return f"the server refuses access ({error.status_code}). Hint: set QDRANT_API_KEY."
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(error.content)["status"]["error"]).splitlines()[0]
    return f"the server answered {error.status_code} {error.reason_phrase}."
