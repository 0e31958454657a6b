"""The store ``qdrant://``: collections of a Qdrant server, or of the local mode of its client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from embridge.errors import OutputError
from embridge.stores.batch import Batch
from embridge.stores.capabilities import Capabilities
from embridge.stores.json_collection import NOTE, recorded
from embridge.stores.json_columns import JsonColumns, refusal
from embridge.stores.qdrant.client import (
    FORMS,
    collection_name,
    connect,
    models,
    places_of,
    point_of,
    reading,
    release,
    requests_of,
    storing,
)
from embridge.stores.qdrant.collection import DISTANCES, QdrantCollection, capabilities_of, describe, real_name
from embridge.stores.qdrant.in_place import QdrantInPlace
from embridge.stores.store import Layout, Note, Store, Writer
from embridge.stores.uri import Location, beside
from embridge.types import DeclaredSpace, Metric, Space


class QdrantWriter(Writer):
    """Upserts points, and then puts the note into the metadata of the collection."""

    def __init__(self, location: Location, layout: Layout, client: Any) -> None:
        self._location, self._layout, self._client = location, layout, client
        self._name = collection_name(location)
        self._columns = JsonColumns(layout.payload_schema)

    def write(self, batch: Batch, note: str) -> None:
        for part in requests_of(batch):
            ids = part.ids.to_pylist()
            fields = self._columns.encode(part.payload)
            if pa.types.is_string(self._layout.id_type):
                fields = [{self._layout.id_column: value} | row for value, row in zip(ids, fields, strict=True)]
            vectors = {self._layout.vector_column: np.asarray(part.vectors, np.float32).tolist()}
            points = models.Batch(ids=[point_of(value) for value in ids], vectors=vectors, payloads=fields)
            with storing(self._location):
                self._client.upsert(self._name, points, wait=True)
        self.finish(note)

    def finish(self, note: str) -> None:
        with storing(self._location):
            self._client.update_collection(self._name, metadata={NOTE: note})

    def close(self) -> None:
        release(self._location)


class QdrantStore(Store):
    """Qdrant."""

    form = FORMS

    def open(
        self, location: Location, *, space: Space | DeclaredSpace | str | None, id_column: str | None, vector_column: str | None
    ) -> QdrantCollection:
        return QdrantCollection(location, space=space, id_column=id_column, vector_column=vector_column)

    def capabilities(self, metric: Metric) -> Capabilities:
        return capabilities_of(metric)

    def refuses(self, field: pa.Field) -> str | None:
        return refusal(field.type)

    def note(self, location: Location) -> Note | None:
        name = collection_name(location)
        with reading(location):
            return Note.loads(describe(connect(location), name, location)[1].get(NOTE), location.uri)

    def places(self, location: Location) -> set[str]:
        with reading(location):
            return {f"{place}#{real_name(connect(location), collection_name(location))}" for place in places_of(location)}

    def create(self, location: Location, layout: Layout) -> Writer:
        name = collection_name(location)
        datatype = models.Datatype.FLOAT16 if layout.dtype == "float16" else None
        params = models.VectorParams(size=layout.space.dim, distance=DISTANCES[layout.space.metric], datatype=datatype)
        metadata = recorded(layout, layout.note(layout.cursor))
        with storing(location):
            client = connect(location, may_create=True)
            client.create_collection(name, vectors_config={layout.vector_column: params}, metadata=metadata)
            if NOTE not in describe(client, name, location)[1]:
                client.delete_collection(name)
                raise OutputError(
                    f"{location.uri!r} keeps no metadata of collections. Hint: embridge writes to Qdrant 1.16 or newer."
                )
        return QdrantWriter(location, layout, client)

    def resume(self, location: Location, layout: Layout) -> Writer:
        with reading(location):
            return QdrantWriter(location, layout, connect(location))

    def beside(self, location: Location) -> Location:
        found = super().beside(location)
        with reading(location):
            used = real_name(connect(location), collection_name(location))
        if used == collection_name(found):  # the one that the last replacement left there
            return Location.parse(beside(location.uri, "{}_replacement_2".format, without=()))
        return found

    def replace(self, location: Location, by: Location) -> None:
        """As `Store.replace`: a collection has one name for ever, so that the name becomes an alias of the new one."""
        name, new = collection_name(location), collection_name(by)
        made = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=new, alias_name=name))
        with storing(location):
            client = connect(location)
            old = real_name(client, name)
            if old != name:
                gone = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))
                client.update_collection_aliases([gone, made])
            elif client.collection_exists(name):
                client.delete_collection(name)
                client.update_collection_aliases([made])
            else:
                client.update_collection_aliases([made])
            if old not in (name, new):
                client.delete_collection(old)

    def drop(self, location: Location) -> None:
        with storing(location):
            client = connect(location)
            client.delete_collection(real_name(client, collection_name(location)))

    def in_place(self, location: Location) -> QdrantInPlace:
        return QdrantInPlace(location)
