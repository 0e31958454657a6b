"""Where the rows of a stage are: in a Parquet file in its folder, or in a collection beside the source in the source's store.

A stage in a store has the file ``collection.json`` with the URI and the fingerprint of a collection that is written once and never
changed. The rollout lists every collection that it makes in ``collections.json`` before it makes it, so that none is lost: the next
step removes those that no stage needs any more.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from embridge.errors import EmbridgeError, MissingFileError, UnreadableFileError
from embridge.files import whole_or_absent
from embridge.stores import ParquetCollection, open_collection
from embridge.stores.base import Collection
from embridge.stores.batch import Batch
from embridge.stores.parquet.writer import write_collection
from embridge.stores.registry import store_of
from embridge.stores.store import Cursor, Layout, Store, Writer
from embridge.stores.uri import Location, beside
from embridge.types import Provenance, Space

COLLECTION, LINK, MADE = "collection.parquet", "collection.json", "collections.json"
_SUFFIX = re.compile(r"_rollout_[0-9a-f]{8}$")
_LONGEST = 40  # characters of a source's name that are kept: PostgreSQL cuts names at 63 bytes

Write = Callable[[Batch], None]


def store_for(source: Collection) -> Collection | None:
    """The source where stages go into its store: where that can open two vectors of a row; None otherwise."""
    return source if source.opens_further else None


def open_rows(folder: Path) -> Collection:
    """The rows of a stage with their vectors of the new space.

    Raises
    ------
    UnreadableFileError, MissingFileError
    """
    if not (folder / LINK).exists():
        return ParquetCollection(folder / COLLECTION)
    return open_collection(_link(folder)["uri"])


def check_rows_of(folder: Path) -> None:
    """Check that the collection of a stage in a store is as it was written.

    Raises
    ------
    UnreadableFileError
    """
    if (folder / LINK).exists():
        link = _link(folder)
        if open_collection(link["uri"]).fingerprint() != link["fingerprint"]:
            raise UnreadableFileError.altered(link["uri"])


@contextlib.contextmanager
def writing_rows(
    folder: Path, store: Collection | None, space: Space, id_type: pa.DataType, schema: pa.Schema, *, columns: tuple[str, str],
    payload_spaces: dict[str, Space], lineage: dict[str, str], provenance: Provenance | None = None,
    metadata: dict[bytes, bytes] | None = None,
) -> Iterator[Write]:  # fmt: skip
    """Write the rows of a stage; yields a function that takes a batch.

    Parameters
    ----------
    folder : Path
        Of the stage, in that of the rollout.
    store : Collection, optional
        The source, or the rows of the stage before, in whose store the rows go; indexes over its vectors are built over these too.
    space, id_type, schema, columns, payload_spaces, lineage, provenance, metadata
        As for `embridge.stores.parquet.writer.write_collection`; a store keeps neither provenance nor metadata.
    """
    if store is None:
        options: dict[str, Any] = {"provenance": provenance, "metadata": metadata, "payload_spaces": payload_spaces}
        path = folder / COLLECTION
        with write_collection(path, space, id_type, schema, columns=columns, lineage=lineage, **options) as writer:
            yield writer.write
        return
    mark = secrets.token_hex(4)
    uri = beside(str(store.path), lambda name: f"{_SUFFIX.sub('', name)[:_LONGEST]}_rollout_{mark}")
    layout = Layout(space, id_type, schema, *columns, payload_spaces=payload_spaces, lineage=lineage)
    _list(folder.parent, [*_listed(folder.parent), Location.parse(uri).uri])
    with writing_collection(uri, layout) as write:
        yield write
    _store(uri).index_like(Location.parse(uri), store)
    mark = open_collection(uri).fingerprint()
    with whole_or_absent(folder / LINK) as temporary:
        temporary.write_text(json.dumps({"uri": Location.parse(uri).uri, "fingerprint": mark}))


@contextlib.contextmanager
def writing_collection(uri: str, layout: Layout) -> Iterator[Write]:
    """Write a new collection of a store; it is left unfinished where the rows do not end."""
    store, location = _store(uri), Location.parse(uri)
    store.check(location, layout)
    cursor = Cursor(secrets.token_hex(16))
    with contextlib.closing(store.create(location, replace(layout, cursor=cursor))) as writer:
        yield _Rows(writer, layout, cursor).write
        writer.finish(layout.note(None))


class _Rows:
    """Writes batches with the note that counts them."""

    def __init__(self, writer: Writer, layout: Layout, cursor: Cursor) -> None:
        self._writer, self._layout, self._cursor = writer, layout, cursor

    def write(self, batch: Batch) -> None:
        self._cursor = replace(self._cursor, after=batch.ids[-1].as_py(), written=self._cursor.written + len(batch))
        self._writer.write(batch, self._layout.note(self._cursor))


def _store(uri: str) -> Store:
    store = store_of(uri)
    assert store is not None  # noqa: S101 (the caller looked)
    return store


def remove_unused(root: Path, stage: Path | None) -> None:
    """Remove the collections that the rollout made and its stage does not need; those that cannot be removed now stay listed."""
    used = _link(stage)["uri"] if stage is not None and (stage / LINK).exists() else None
    made = _listed(root)
    left = [uri for uri in made if uri == used or not _is_removed(uri)]
    if left != made:
        _list(root, left)


def _is_removed(uri: str) -> bool:
    store, location = _store(uri), Location.parse(uri)
    try:
        if store.note(location) is not None:
            store.drop(location)
    except MissingFileError:
        return True
    except EmbridgeError:
        return False
    return True


def _link(folder: Path) -> dict[str, str]:
    path = folder / LINK
    try:
        values = json.loads(path.read_text())
        return {name: str(values[name]) for name in ("uri", "fingerprint")}
    except (ValueError, LookupError, TypeError, OSError) as e:
        raise UnreadableFileError.at(str(path), "the link to a collection", e) from e


def _listed(root: Path) -> list[str]:
    path = root / MADE
    try:
        return [str(uri) for uri in json.loads(path.read_text())] if path.exists() else []
    except (ValueError, TypeError, OSError) as e:
        raise UnreadableFileError.at(str(path), "a list of collections", e) from e


def _list(root: Path, uris: list[str]) -> None:
    with whole_or_absent(root / MADE) as temporary:
        temporary.write_text(json.dumps(uris, indent=1))
