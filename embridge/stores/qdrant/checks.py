"""What is refused before a migration in place writes anything, and what it would do."""

from __future__ import annotations

import re
from typing import Any

from embridge.errors import CollectionError, OutputExistsError, ParameterError
from embridge.stores.in_place import MigrationNote, Preview
from embridge.stores.qdrant.collection import vectors_of
from embridge.stores.qdrant.live import count, having, index_of, using_of
from embridge.stores.uri import Location

_NEEDED = {"column": "1.18", "shadow": "1.16"}  # versions of servers: named vectors can be added; collections keep metadata
_WRONG = re.compile(r'[<>:"/\\|?*\0\x1f]')  # in names, which are names of folders


def preview(client: Any, location: Location, name: str, note: MigrationNote, info: Any) -> Preview:
    """Refuse what cannot be migrated; else say what would be done (see `InPlace.check`)."""
    if "id" in location.options:
        raise ParameterError(f"{location.uri!r}: points are migrated by their own ids. Hint: leave out id=.")
    if _WRONG.search(note.into) or len(note.into.encode()) > 200:
        raise ParameterError.must_be("into", 'a name of up to 200 bytes without any of <>:"/\\|?*', note.into)
    if location.host:
        _check_version(client, location, note)
    (_check_column if note.mode == "column" else _check_shadow)(client, location, note, info)
    using = note.name if note.mode == "column" else using_of(note, info)
    edges = index_of(note, info)["m"]
    size = note.new.dim * (2 if note.dtype == "float16" else 4) + 8 * edges
    return Preview(_steps(note, edges), count(client, name, having(using)) * size)


def _check_version(client: Any, location: Location, note: MigrationNote) -> None:
    version, needed = client.info().version, _NEEDED[note.mode]
    if _numbers(version) < _numbers(needed):
        hint = " Hint: upgrade it, or use --mode shadow with an alias." if note.mode == "column" else ""
        raise CollectionError(f"{location.uri!r} is on Qdrant {version}; --mode {note.mode} needs {needed} or newer.{hint}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _check_column(client: Any, location: Location, note: MigrationNote, info: Any) -> None:
    vectors = vectors_of(info)
    if not hasattr(client, "create_vector_name"):
        raise CollectionError("--mode column needs qdrant-client 1.18 or newer. Hint: pip install -U qdrant-client.")
    if note.name not in vectors:
        raise CollectionError(
            f"{location.uri!r} has a vector without a name. With a named one beside it, points come back in another form, and "
            "local mode takes no more vectors without a name. Hint: --mode shadow, for an alias of the collection."
        )
    if note.into in vectors or note.into in (info.config.params.sparse_vectors or {}):
        raise OutputExistsError(f"{location.uri!r} has a vector {note.into!r} already. Hint: --into another name.")


def _check_shadow(client: Any, location: Location, note: MigrationNote, info: Any) -> None:
    """A shadow must hold the collection whole."""
    if len(vectors := vectors_of(info)) > 1:
        names = ", ".join(map(repr, vectors))
        raise CollectionError(
            f"{location.uri!r} has several dense vectors ({names}); a shadow is made of collections with one. Hint: --mode column."
        )
    if getattr(info.config.params.sharding_method, "value", None) == "custom":
        raise CollectionError(
            f"{location.uri!r} has shards with keys of its own, which a shadow would not keep. Hint: --mode column."
        )
    if client.collection_exists(note.into):
        raise OutputExistsError(f"There is a collection or an alias {note.into!r} already. Hint: --into another name.")


def _steps(note: MigrationNote, edges: int) -> tuple[str, ...]:
    kind = f"{note.new.dim} dimensions, {note.new.metric}, {note.dtype}"
    if note.mode == "shadow":
        return (
            f"A collection {note.into!r} is created ({kind}), with the other settings of {note.aside!r}.",
            "Points are copied into it with new vectors, in the order of their ids; payload and sparse vectors stay as they are.",
            f"Then its index is built, with m={edges}, and the indexes of payload fields.",
            f"A cutover moves the alias {note.name!r} from {note.aside!r} to {note.into!r} in one request.",
            "Until then, pause all changes of existing points: Qdrant does not show them. Added and deleted points are found.",
        )
    return (
        f"Points get a second vector {note.into!r} ({kind}).",
        "It is written in the order of their ids; the old vector and the payload stay as they are.",
        f"Then its index is built, with m={edges}, as that of {note.name!r}.",
        f"After the cutover applications must search with using={note.into!r}: Qdrant cannot rename vectors.",
        "Until then, pause changes of vectors of existing points: Qdrant does not show them. Added points are found, and so are "
        "points that are upserted as a whole, unless their batch is under way.",
    )
