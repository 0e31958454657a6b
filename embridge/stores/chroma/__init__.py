"""The store ``chroma://``: collections of Chroma in a folder or on a server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.chroma.client import FORMS, collection_name, collection_of, connect, listed, reading, requests_of, storing
from embridge.stores.chroma.collection import CAPABILITIES, SPACES, TEXTS, ChromaCollection
from embridge.stores.chroma.in_place import ChromaInPlace
from embridge.stores.json_collection import NOTE, recorded
from embridge.stores.json_columns import JsonColumns, refusal
from embridge.stores.store import Layout, Note, Store, Writer
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Metric, Space


class ChromaWriter(Writer):
    """Upserts rows, and then replaces the metadata of the collection."""

    def __init__(self, location: Location, layout: Layout, client: Any) -> None:
        self._location, self._client, self._collection = location, client, collection_of(client, location)
        self._largest = client.get_max_batch_size()
        self._columns = JsonColumns(layout.payload_schema, is_flat=True)
        self._texts = {c.name: TEXTS[c.name] for c in layout.payload_schema if c.name in TEXTS and is_text(c)}
        self._layout = layout

    def write(self, batch: Batch, note: str) -> None:
        for part in requests_of(batch, self._largest):
            fields = [
                {name: value for name, value in row.items() if value is not None} for row in self._columns.encode(part.payload)
            ]
            texts = {name: [row.pop(column, None) for row in fields] for column, name in self._texts.items()}
            texts = {name: values for name, values in texts.items() if any(value is not None for value in values)}
            metadata = {"metadatas": [row or None for row in fields]} if any(fields) else {}
            vectors = np.ascontiguousarray(part.vectors, np.float32)
            with storing(self._location):
                self._collection.upsert(ids=list(map(str, part.ids.to_pylist())), embeddings=vectors, **metadata, **texts)
        self.finish(note)

    def finish(self, note: str) -> None:
        with storing(self._location):
            self._collection.modify(metadata=recorded(self._layout, note))


class ChromaStore(Store):
    """Chroma."""

    form = FORMS

    def open(
        self, location: Location, *, space: Space | DeclaredSpace | str | None, id_column: str | None, vector_column: str | None
    ) -> ChromaCollection:
        return ChromaCollection(location, space=space, id_column=id_column, vector_column=vector_column)

    def capabilities(self, metric: Metric) -> Capabilities:
        return CAPABILITIES

    def refuses(self, field: pa.Field) -> str | None:
        if not field.name or field.name.startswith(("#", "$", "chroma:")):
            return "Chroma keeps such names for itself, or has none"
        return refusal(field.type)

    def note(self, location: Location) -> Note | None:
        collection_name(location)
        with reading(location):
            found = collection_of(connect(location), location)
            return Note.loads((found.metadata or {}).get(NOTE), location.uri)

    def places(self, location: Location) -> set[str]:
        with reading(location):
            return {str(collection_of(connect(location), location).id)}

    def create(self, location: Location, layout: Layout) -> Writer:
        name = collection_name(location)
        metadata = recorded(layout, layout.note(layout.cursor))
        configuration: Any = {"hnsw": {"space": SPACES[layout.space.metric]}}
        with storing(location):
            client = connect(location, may_create=True)
            client.create_collection(name, configuration=configuration, metadata=metadata, embedding_function=None)
            return ChromaWriter(location, layout, client)

    def resume(self, location: Location, layout: Layout) -> Writer:
        with reading(location):
            return ChromaWriter(location, layout, connect(location))

    def drop(self, location: Location) -> None:
        with storing(location):
            connect(location).delete_collection(collection_name(location))

    def replace(self, location: Location, by: Location) -> None:
        with storing(location):
            client, name = connect(location), collection_name(location)
            if any(held.name == name for held in listed(client)):
                client.delete_collection(name)
            collection_of(client, by).modify(name=name)

    def in_place(self, location: Location) -> ChromaInPlace:
        return ChromaInPlace(location)


def is_text(column: pa.Field) -> bool:
    """A column that is kept as the documents or URIs of rows."""
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
