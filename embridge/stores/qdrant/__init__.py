"""The store ``qdrant://``: collections of a Qdrant server, or of a local folder of qdrant-client."""

from __future__ import annotations

import base64
import os
from dataclasses import replace

import pyarrow as pa

from embridge.errors import MissingDependencyError, MissingFileError
from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.store import Layout, Note, Store, Writer
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Metric, Space

try:
    from qdrant_client import models
except ImportError as error:
    raise MissingDependencyError.of("qdrant-client", "qdrant://", "qdrant") from error

from embridge.stores.qdrant.collection import (
    CAPABILITIES,
    DISTANCES,
    NOTE,
    SCHEMA,
    QdrantCollection,
    check_there,
    client_of,
    collection_name,
    translated,
)
from embridge.stores.qdrant.points import point_id, refuses

_VALUES = 1 << 20  # of vectors in one request, which Qdrant limits to 32 MB of JSON


class QdrantWriter(Writer):
    """Upserts points, then the note. Text ids that are no UUIDs are kept in the payload, under the name of their column."""

    def __init__(self, location: Location, layout: Layout) -> None:
        self._location, self._layout, self._collection = location, layout, collection_name(location)
        with translated(location, writing=True):
            self._client = client_of(location)

    def create(self) -> None:
        """Create the collection."""
        layout = self._layout
        params = models.VectorParams(
            size=layout.space.dim,
            distance=DISTANCES[layout.space.metric],
            datatype=models.Datatype.FLOAT16 if layout.dtype == "float16" else None,
        )
        name = self._location.options.get("vector")
        schema = pa.schema([pa.field(layout.id_column, layout.id_type), *layout.payload_schema])
        metadata = {NOTE: layout.note(layout.cursor), SCHEMA: base64.b64encode(schema.serialize()).decode()}
        with translated(self._location, writing=True):
            self._client.create_collection(self._collection, vectors_config={name: params} if name else params, metadata=metadata)

    def write(self, batch: Batch, note: str) -> None:
        ids = batch.ids.to_pylist()
        points = [point_id(i) for i in ids]
        payloads = batch.payload.to_pylist() if batch.payload.num_columns else [{} for _ in ids]
        for payload, point, given in zip(payloads, points, ids, strict=True):
            if point != given:
                payload[self._layout.id_column] = given
        rows = max(1, _VALUES // batch.vectors.shape[1])
        name = self._location.options.get("vector")
        with translated(self._location, writing=True):
            for start in range(0, len(ids), rows):
                part = slice(start, start + rows)
                vectors = batch.vectors[part].tolist()
                self._client.upsert(
                    self._collection,
                    models.Batch(ids=points[part], vectors={name: vectors} if name else vectors, payloads=payloads[part]),
                    wait=True,
                )
        self.finish(note)

    def finish(self, note: str) -> None:
        with translated(self._location, writing=True):
            self._client.update_collection(self._collection, metadata={NOTE: note})


class QdrantStore(Store):
    """Qdrant."""

    form = "qdrant://host:6333/collection?vector=name"

    def open(
        self, location: Location, *, space: Space | DeclaredSpace | str | None, id_column: str | None, vector_column: str | None
    ) -> QdrantCollection:
        return QdrantCollection(location, space=space, id_column=id_column, vector_column=vector_column)

    def capabilities(self, metric: Metric) -> Capabilities:
        return replace(CAPABILITIES, keeps_lengths=metric != Metric.COSINE)

    def refuses(self, field: pa.Field) -> str | None:
        return refuses(field.type)

    def note(self, location: Location) -> Note | None:
        with translated(location):
            if not location.host and not os.path.isdir(location.path):
                raise MissingFileError.at(location.path)
            client = client_of(location)
            check_there(client, location)
            metadata = client.get_collection(collection_name(location)).config.metadata or {}
            return Note.loads(metadata.get(NOTE), location.uri)

    def create(self, location: Location, layout: Layout) -> Writer:
        writer = QdrantWriter(location, layout)
        writer.create()
        return writer

    def resume(self, location: Location, layout: Layout) -> Writer:
        return QdrantWriter(location, layout)

    def drop(self, location: Location) -> None:
        with translated(location, writing=True):
            client_of(location).delete_collection(collection_name(location))
