"""Points of a Qdrant collection, read in the order of their ids."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from qdrant_client import QdrantClient, models

from embridge.arrays import as_vectors, unit
from embridge.errors import (
    ChangedSourceError,
    CollectionError,
    EmbridgeError,
    MissingFileError,
    OutputError,
    ParameterError,
    UnreadableFileError,
)
from embridge.stores.arrow import ArrowCollection
from embridge.stores.capabilities import Capabilities
from embridge.stores.qdrant.points import check_keys, column_of, ids_of, infer, point_id
from embridge.stores.store import Note, check_finished
from embridge.stores.uri import Location
from embridge.types import DeclaredSpace, Hits, Metric, Space

CAPABILITIES = Capabilities(keeps_order=False, supports_second_vector=True, supports_alias=True, dtypes=("float32", "float16"))
DISTANCES = {Metric.COSINE: models.Distance.COSINE, Metric.DOT: models.Distance.DOT, Metric.L2: models.Distance.EUCLID}
NOTE, SCHEMA = "embridge", "embridge.schema"  # keys in the metadata of a collection
_PAGE = 1000  # points of one request
_CLIENTS: weakref.WeakValueDictionary[str, QdrantClient] = weakref.WeakValueDictionary()  # a folder opens once at a time


def client_of(location: Location) -> QdrantClient:
    """The client of a server or of a folder. An API key comes from the URI or QDRANT_API_KEY."""
    location.check_options("id", "vector", "payload", "https")
    place = f"{location.host}:{location.port}" if location.host else os.path.realpath(location.path)
    if not collection_name(location) or not place:
        raise ParameterError(
            f"{location.uri!r} names no collection. Hint: qdrant://host:6333/collection or qdrant:///path#collection."
        )
    client = _CLIENTS.get(place)
    if client is None:
        if location.host:
            key = location.password or os.environ.get("QDRANT_API_KEY")
            https = location.options.get("https") in ("1", "true")
            client = QdrantClient(
                host=location.host, port=location.port or 6333, https=https, api_key=key, check_compatibility=False
            )
        else:
            client = QdrantClient(path=place)
        _CLIENTS[place] = client
    return client


def collection_name(location: Location) -> str:
    """The collection that a URI names: its path on a server, its part behind ``#`` in a folder."""
    return location.path.strip("/") if location.host else location.part


def check_there(client: QdrantClient, location: Location) -> None:
    """Raise MissingFileError where there is no such collection."""
    if not client.collection_exists(collection_name(location)):
        raise MissingFileError(f"There is no collection {collection_name(location)!r} at {location.uri!r}.")


class QdrantCollection(ArrowCollection):
    """Points of a collection: ``qdrant://host:6333/collection?vector=name&id=key``, or ``qdrant:///path#collection``.

    Ids are those of the points (integers, or UUIDs as text), or the payload under ``id``. Under cosine Qdrant scales vectors to
    unit length. ``payload=json`` reads the payload as one column of text.
    """

    kind = "qdrant"
    capabilities = CAPABILITIES

    def __init__(
        self,
        location: Location,
        *,
        space: Space | DeclaredSpace | str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
    ) -> None:
        self.path, self._location, self._collection = location.uri, location, collection_name(location)
        with translated(location):
            if not location.host and not os.path.isdir(location.path):
                raise MissingFileError.at(location.path)
            self._client = client_of(location)
            check_there(self._client, location)
            info = self._client.get_collection(self._collection)
            metadata = info.config.metadata or {}
            note = Note.loads(metadata.get(NOTE), location.uri)
            check_finished(note, self.name)
            self._rows = self._client.count(self._collection, exact=True).count
            first = self._client.scroll(self._collection, limit=_PAGE, with_payload=True, with_vectors=False)[0]
        known = {} if note is None else note.columns
        self._vector, found = _vector_of(info.config.params.vectors, location.options.get("vector") or vector_column, self.name)
        metric = next((metric for metric, distance in DISTANCES.items() if distance == found.distance), None)
        if metric is None or found.multivector_config is not None:
            raise CollectionError(f"{self.name} has vectors of a kind that embridge does not read: {found.distance}.")
        self.capabilities = replace(CAPABILITIES, keeps_lengths=metric != Metric.COSINE)
        columns = location.column("id", id_column, known.get("id", "id")), self._vector or known.get("vector", "vector")
        self._key = columns[0] if note is not None or any(columns[0] in (p.payload or {}) for p in first) else None
        self._is_json = location.options.get("payload") == "json"
        self.seeks = self._key is None or note is not None
        kind = _id_type(first, self._key)
        payload = infer(first, self._key)
        if self._is_json:
            payload = pa.schema([("payload", pa.string())])
        elif SCHEMA in metadata:
            whole = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(metadata[SCHEMA])))
            kind, payload = whole.field(0).type, pa.schema(list(whole)[1:])
        schema = pa.schema([(columns[0], kind), (columns[1], pa.list_(pa.float32(), found.size)), *payload])
        self._describe(schema, columns, space, note=note, metric=metric)

    def _record_batches(self, columns: list[str], batch_rows: int, after: str | int | None = None) -> Iterator[pa.RecordBatch]:
        fields = [self.payload_schema.field(c) for c in columns if c in self.payload_schema.names]
        known = {*self.payload_schema.names, self._key}
        for points in self._points(batch_rows, after, vectors=self.vector_column in columns, payload=bool(fields)):
            found = {self.id_column: ids_of(points, self.id_type, self._key, self.name)}
            if self.vector_column in columns:
                found[self.vector_column] = self._vectors(points)
            if fields and not self._is_json:
                check_keys(points, known, self.name)
            for field in fields:
                texts = pa.array([json.dumps(p.payload or {}) for p in points]) if self._is_json else None
                found[field.name] = column_of(points, field, self.name) if texts is None else texts
            yield pa.record_batch([found[c] for c in columns], names=columns)

    def _points(self, batch_rows: int, after: str | int | None, *, vectors: bool, payload: bool) -> Iterator[list[models.Record]]:
        """Points in the order of their ids, page by page; the offset of a page is its first point."""
        offset = first = None if after is None else point_id(after)
        wanted = ([self._vector] if self._vector else True) if vectors else False
        keys = True if payload else [self._key] if self._key else False
        with translated(self._location):
            while True:
                points, following = self._client.scroll(
                    self._collection, limit=min(batch_rows, _PAGE), offset=offset, with_payload=keys, with_vectors=wanted
                )
                if points and first is not None and points[0].id == first:
                    points = points[1:]
                if points:
                    yield points
                if following is None:
                    return
                offset, first = following, None

    def _vectors(self, points: list[models.Record]) -> pa.Array:
        dim = self._stated.dim
        values = [p.vector.get(self._vector) if isinstance(p.vector, dict) else p.vector for p in points]
        missing = np.array([not v for v in values])
        rows = np.array([v or [0.0] * dim for v in values], np.float32)
        if not self.capabilities.keeps_lengths:  # a reopened folder of qdrant-client has them as they were written
            rows = unit(rows)
        mask = pa.array(missing) if missing.any() else None
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), dim, mask=mask)

    def __len__(self) -> int:
        return self._rows

    def fingerprint(self) -> str:
        """Content hash; reads all points, since Qdrant keeps no version of a collection."""
        digest = hashlib.blake2b(self._vector.encode(), digest_size=16)
        for points in self._points(_PAGE, None, vectors=True, payload=True):
            digest.update(json.dumps([[str(p.id), p.payload] for p in points], sort_keys=True).encode())
            vectors = self._vectors(points)
            digest.update(repr(vectors.is_null().to_pylist()).encode() if vectors.null_count else b"")
            digest.update(vectors.flatten().to_numpy().tobytes())
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Compare the number of points; changes of points are found by `fingerprint` only."""
        with translated(self._location):
            found = self._client.count(self._collection, exact=True).count
        if found != self._rows:
            raise ChangedSourceError.of(self.name, f"it has {found:,} points instead of {self._rows:,}")

    def search(self, queries: np.ndarray, k: int = 10) -> Hits:
        """The k nearest points by Qdrant (see `Searchable`)."""
        rows = as_vectors(queries, self.stated_space.dim, "queries")
        is_text = pa.types.is_string(self.id_type)
        ids = np.full((len(rows), k), None if is_text else -1, object)
        scores = np.full((len(rows), k), -np.inf, np.float32)
        keys = [self._key] if self._key else False
        with translated(self._location):
            for i, row in enumerate(rows):
                found = self._client.query_points(
                    self._collection, query=row.tolist(), using=self._vector or None, limit=k, with_payload=keys
                ).points
                ids[i, : len(found)] = ids_of(found, self.id_type, self._key, self.name).to_pylist()
                values = np.array([p.score for p in found])
                scores[i, : len(found)] = -(values**2) if self.stated_space.metric == Metric.L2 else values
        return Hits(ids if is_text else ids.astype(np.int64), scores)


def _vector_of(params: Any, named: str | None, where: str) -> tuple[str, models.VectorParams]:
    """Name and parameters of a vector; the name is empty where the collection has one without a name."""
    if not isinstance(params, dict):
        return "", params
    if named is None and len(params) == 1:
        named = next(iter(params))
    if named is None or named not in params:
        raise CollectionError.no_column(where, named or "vector", list(params), "?vector=")
    return named, params[named]


def _id_type(points: list[Any], key: str | None) -> pa.DataType:
    if not points:
        return pa.int64()
    first = (points[0].payload or {}).get(key, points[0].id) if key else points[0].id
    return pa.string() if isinstance(first, str) else pa.int64()


@contextlib.contextmanager
def translated(location: Location, *, writing: bool = False) -> Iterator[None]:
    """Turn errors of the client into errors of embridge."""
    try:
        yield
    except EmbridgeError:
        raise
    except Exception as e:  # the client raises errors of httpx, pydantic, the system and its own
        fact = next(iter(str(e).strip().splitlines()), "") or type(e).__name__
        if writing:
            raise OutputError(f"{location.uri!r} cannot be written: {fact}") from e
        raise UnreadableFileError(f"{location.uri!r} cannot be reached or read: {fact}") from e
