"""Qdrant's own engine (`qdrant-edge-py`) behind the calls of `qdrant_client.QdrantClient` that embridge makes."""

import json
import shutil
import uuid
from pathlib import Path
from types import SimpleNamespace

import qdrant_edge as edge
from qdrant_client import models

_DISTANCES = {
    models.Distance.COSINE: edge.Distance.Cosine,
    models.Distance.DOT: edge.Distance.Dot,
    models.Distance.EUCLID: edge.Distance.Euclid,
}


class EdgeClient:
    """Collections are shards in folders; their metadata, which the engine does not keep, are JSON beside them."""

    def __init__(self, folder):
        self._folder, self._shards = Path(folder), {}

    def collection_exists(self, name):
        return (self._folder / f"{name}.json").is_file()

    def create_collection(self, name, vectors_config, metadata):
        config = edge.EdgeVectorParams(size=vectors_config.size, distance=_DISTANCES[vectors_config.distance])
        path = self._folder / name
        path.mkdir(parents=True)
        self._shards[name] = edge.EdgeShard.create(str(path), edge.EdgeConfig(vectors=config))
        self._save(name, {"size": vectors_config.size, "distance": vectors_config.distance.value}, metadata)

    def _save(self, name, params, metadata):
        (self._folder / f"{name}.json").write_text(json.dumps([params, metadata]))

    def _read(self, name):
        return json.loads((self._folder / f"{name}.json").read_text())

    def update_collection(self, name, metadata):
        params, before = self._read(name)
        self._save(name, params, before | metadata)

    def get_collection(self, name):
        params, metadata = self._read(name)
        vectors = models.VectorParams(**params)
        return SimpleNamespace(config=SimpleNamespace(metadata=metadata, params=SimpleNamespace(vectors=vectors)))

    def delete_collection(self, name):
        self._shards.pop(name).close()
        shutil.rmtree(self._folder / name)
        (self._folder / f"{name}.json").unlink()

    def upsert(self, name, batch, wait):
        ids = [uuid.UUID(i) if isinstance(i, str) else i for i in batch.ids]
        points = [edge.Point(i, v, p) for i, v, p in zip(ids, batch.vectors, batch.payloads, strict=True)]
        self._shards[name].update(edge.UpdateOperation.upsert_points(points))

    def count(self, name, exact):
        return SimpleNamespace(count=self._shards[name].count(edge.CountRequest(exact=exact)))

    def scroll(self, name, limit, with_payload, with_vectors, offset=None):
        offset = uuid.UUID(offset) if isinstance(offset, str) else offset
        request = edge.ScrollRequest(
            offset=offset, limit=limit, with_payload=_selector(with_payload), with_vector=bool(with_vectors)
        )
        points, following = self._shards[name].scroll(request)
        return [_record(point) for point in points], _text(following)

    def query_points(self, name, query, using, limit, with_payload):
        request = edge.QueryRequest(limit=limit, query=edge.Query.Nearest(query, using), with_payload=_selector(with_payload))
        return SimpleNamespace(points=[_record(p, p.score) for p in self._shards[name].query(request)])


def _selector(wanted):
    return edge.PayloadSelector.Include(wanted) if isinstance(wanted, list) else wanted


def _text(point):
    return str(point) if isinstance(point, uuid.UUID) else point


def _record(point, score=None):
    return SimpleNamespace(id=_text(point.id), payload=point.payload, vector=point.vector, score=score)
