"""Connections to Chroma: a folder, or a server; errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from embridge.errors import MissingDependencyError, MissingFileError
from embridge.stores import databases, json_columns
from embridge.stores.batch import Batch
from embridge.stores.databases import collection_in
from embridge.stores.in_place import MigrationNote
from embridge.stores.json_collection import NOTE
from embridge.stores.uri import Location

try:
    import chromadb
    from chromadb.errors import ChromaAuthError, NotFoundError
except ImportError as error:
    raise MissingDependencyError.of("chromadb", "chroma://", "chroma") from error

PORT = 8000
_REQUEST_BYTES = 16 << 20  # of vectors and payload as JSON; a server takes 40 MiB
MIGRATION = f"{NOTE}_migration"  # key in the metadata of a collection that began as the shadow of another
_LISTED = 100  # collections of one request
FORMS = "chroma:///folder#collection, or chroma://host:8000/collection for a server"


def collection_name(location: Location) -> str:
    """The collection that a URI names (see `collection_in`)."""
    return collection_in(location, FORMS, "tenant", "database", "id", "vector")


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
    key = databases.key_of(location, "CHROMA_API_KEY")
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
        is_swapping = any(note.name == name for held in listed(client) if (note := note_of(held)) is not None)
        hint = " Hint: complete its swap: embridge cutover, or embridge rollback." if is_swapping else ""
        raise MissingFileError(f"There is no collection {name!r} at {location.uri!r}.{hint}") from e


def note_of(collection: Any) -> MigrationNote | None:
    """The note in the metadata of a shadow; None for other collections."""
    if collection is None or not collection.metadata:
        return None
    return MigrationNote.loads(collection.metadata.get(MIGRATION), repr(collection.name))


def listed(client: Any) -> Iterator[Any]:
    """All collections, with names, ids and metadata."""
    start = 0
    while found := client.list_collections(limit=_LISTED, offset=start):
        yield from found
        start += len(found)


def at(location: Location, name: str) -> Location:
    """The location of another collection in the same folder or on the same server."""
    return replace(location, **({"path": f"/{name}"} if location.host else {"part": name}))


def requests_of(batch: Batch, largest: int) -> Iterator[Batch]:
    """Parts of a batch that one request each writes; `largest` is how many rows the server takes."""
    return json_columns.requests_of(batch, largest, _REQUEST_BYTES)


def reading(location: Location) -> AbstractContextManager[None]:
    """See `embridge.stores.databases.reading`."""
    return databases.reading(location, "Chroma", PORT, _reason)


def storing(location: Location) -> AbstractContextManager[None]:
    """See `embridge.stores.databases.storing`."""
    return databases.storing(location, "Chroma", PORT, _reason)


def _reason(error: Exception) -> str | None:
    if isinstance(error, ChromaAuthError):
        return "the server refuses access. Hint: set CHROMA_API_KEY, or the client's CHROMA_CLIENT_AUTH_PROVIDER and _CREDENTIALS."
    return None
