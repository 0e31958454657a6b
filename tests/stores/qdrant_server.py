"""The part of Qdrant's REST interface that embridge uses, over Qdrant's engine (`qdrant_edge`): no Qdrant server runs in tests."""

import json
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import qdrant_edge as edge

_FIXED = {
    "status": "green",
    "optimizer_status": "ok",
    "segments_count": 1,
    "payload_schema": {},
}
_CONFIG = {
    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
    "optimizer_config": {
        "deleted_threshold": 0.2,
        "vacuum_min_vector_number": 1000,
        "default_segment_number": 0,
        "flush_interval_sec": 5,
    },
}


class QdrantServer:
    """``with QdrantServer(folder) as server:`` listens at ``server.port``.

    Attributes
    ----------
    api_key : str or None
        Requests without it are refused.
    broken : int or None
        Connections are dropped after this many more requests.
    keeps_metadata : bool
        False for a server older than 1.16.
    version : str
        That it states.
    updates : list of dict
        What it was told to change in the settings of collections; the engine itself has no such settings.
    before : callable or None
        Called with the path of each request, before it is answered.
    """

    def __init__(self, folder):
        self.folder, self.collections, self.aliases, self.lock = folder, {}, {}, threading.Lock()
        self.version, self.updates = "1.18.0", []
        self.api_key = self.broken = self.before = None
        self.keeps_metadata = True
        self.headers = []

    def __enter__(self):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                owner.headers.append(dict(self.headers))
                path = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
                if owner.before is not None:
                    owner.before("/".join(path))
                if owner.broken is not None:
                    owner.broken -= 1
                    if owner.broken < 0:
                        self.close_connection = True
                        return self.connection.shutdown(socket.SHUT_RDWR)
                if owner.api_key not in (None, self.headers.get("api-key")):
                    return self.answer(403, {"status": {"error": "Invalid API key"}})
                try:
                    with owner.lock:
                        result = owner.do(self.command, path, json.loads(body) if body else {})
                    fixed = {"title": "qdrant", "version": owner.version}
                    self.answer(200, {"result": result, "status": "ok", "time": 0.0} | fixed)
                except KeyError as e:
                    self.answer(404, {"status": {"error": f"Not found: {e}"}})
                except Exception as e:
                    self.answer(404 if "No point with id" in str(e) else 400, {"status": {"error": str(e)}})

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any

            def answer(self, status, value):
                body = json.dumps(value, default=str).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        for shard, *_ in self.collections.values():
            shard.close()

    def do(self, method, path, body):
        if path == ["aliases"]:
            return {"aliases": [{"alias_name": a, "collection_name": c} for a, c in self.aliases.items()]}
        if path[:1] != ["collections"]:
            return {}
        if path == ["collections", "aliases"]:
            return self._move_aliases(body["actions"])
        name, rest = self.aliases.get(path[1], path[1]), path[2:]
        if rest == ["exists"]:
            return {"exists": name in self.collections}
        if not rest:
            return getattr(self, f"_{method.lower()}")(name, body)
        shard, given, *_ = self.collections[name]
        if rest[0] == "vectors":
            return self._change_vectors(name, shard, given, rest[1], body)
        return getattr(self, f"_{method.lower()}_{'_'.join(rest)}")(shard, body)

    def _move_aliases(self, actions):
        moved = dict(self.aliases)
        for action in actions:
            if "delete_alias" in action:
                moved.pop(action["delete_alias"]["alias_name"], None)
            else:
                made = action["create_alias"]
                self.collections[made["collection_name"]]
                if made["alias_name"] in self.collections:
                    raise ValueError(f"Wrong input: Collection `{made['alias_name']}` already exists!")
                moved[made["alias_name"]] = made["collection_name"]
        self.aliases = moved
        return True

    def _change_vectors(self, name, shard, given, vector, body):
        """The engine creates or deletes a named vector; the settings of the collection follow, as on a server."""
        kinds = {"": given} if "size" in given else dict(given)
        if body:
            kind = body["dense"]
            datatype = {None: None, "float16": edge.VectorStorageDatatype.Float16}[kind.get("datatype")]
            made = edge.UpdateOperation.create_dense_vector(
                vector, kind["size"], getattr(edge.Distance, kind["distance"]), datatype=datatype
            )
            kinds[vector] = kind
        else:
            made = edge.UpdateOperation.delete_vector_name(vector)
            kinds.pop(vector, None)
        shard.update(made)
        self.collections[name] = (shard, kinds, *self.collections[name][2:])
        return {"operation_id": 0, "status": "completed"}

    def _put(self, name, body):
        if name in self.collections:
            raise ValueError(f"Wrong input: Collection `{name}` already exists!")
        given = body["vectors"]
        kinds = {"": given} if "size" in given else given
        vectors = {
            key: edge.EdgeVectorParams(
                size=kind["size"],
                distance=getattr(edge.Distance, kind["distance"]),
                datatype={None: None, "float16": edge.VectorStorageDatatype.Float16}[kind.get("datatype")],
            )
            for key, kind in kinds.items()
        }
        folder = self.folder / f"shard-{len(self.headers)}"
        shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors=vectors[""] if "size" in given else vectors))
        self.collections[name] = (shard, given, dict(body.get("metadata") or {}) if self.keeps_metadata else None, folder)
        return True

    def _get(self, name, _):
        shard, given, metadata, _ = self.collections[name]
        config = _CONFIG | {"params": {"vectors": given}} | ({} if metadata is None else {"metadata": metadata})
        return _FIXED | {"points_count": shard.info().points_count, "config": config}

    def _patch(self, name, body):
        held = self.collections[name][2]
        for key, value in (body.pop("metadata", None) or {}).items():
            held.pop(key, None) if value is None else held.update({key: value})
        self.updates += [body] if body else []
        return True

    def _delete(self, name, _):
        shard, *_, folder = self.collections.pop(name)
        shard.close()
        shutil.rmtree(folder)
        return True

    def _put_points(self, shard, body):
        if batch := body.get("batch"):
            vectors, rows = batch["vectors"], range(len(batch["ids"]))
            named = [{key: column[i] for key, column in vectors.items()} if isinstance(vectors, dict) else vectors[i] for i in rows]
            points = zip(batch["ids"], named, batch.get("payloads") or [None for _ in rows], strict=True)
        else:
            points = [(point["id"], point["vector"], point.get("payload")) for point in body["points"]]
        shard.update(edge.UpdateOperation.upsert_points([edge.Point(*point) for point in points]))
        return {"operation_id": 0, "status": "completed"}

    def _post_points_delete(self, shard, body):
        shard.update(edge.UpdateOperation.delete_points(body["points"]))
        return {"operation_id": 0, "status": "completed"}

    def _put_points_vectors(self, shard, body):
        points = [edge.PointVectors(point["id"], point["vector"]) for point in body["points"]]
        shard.update(edge.UpdateOperation.update_vectors(points))
        return {"operation_id": 0, "status": "completed"}

    def _post_points_count(self, shard, body):
        return {"count": shard.count(edge.CountRequest(exact=True, filter=_filter(body.get("filter"))))}

    def _post_points_scroll(self, shard, body):
        wanted = {"with_payload": body.get("with_payload", True), "with_vector": body.get("with_vector", False)}
        records, offset = shard.scroll(
            edge.ScrollRequest(limit=body["limit"], offset=body.get("offset"), filter=_filter(body.get("filter")), **wanted)
        )
        return {"points": [_record(record) for record in records], "next_page_offset": offset}

    def _post_points(self, shard, body):
        return [_record(record) for record in shard.retrieve(body["ids"], body.get("with_payload"), body.get("with_vector"))]

    def _post_points_query_batch(self, shard, body):
        found = []
        for search in body["searches"]:
            query = edge.Query.Nearest(
                search["query"]["nearest"] if isinstance(search["query"], dict) else search["query"], using=search.get("using")
            )
            request = edge.QueryRequest(limit=search["limit"], query=query, with_payload=search.get("with_payload", False))
            hits = shard.query(request)
            found.append({"points": [_record(hit) | {"score": hit.score, "version": hit.version} for hit in hits]})
        return found


def _record(record):
    return {"id": record.id, "payload": record.payload, "vector": record.vector}


def _filter(given):
    """Conditions on the vectors that points have."""
    if given is None:
        return None
    kinds = {name: given.get(name) or [] for name in ("must", "must_not")}
    kinds = {name: kind if isinstance(kind, list) else [kind] for name, kind in kinds.items()}
    return edge.Filter(**{name: [edge.HasVectorCondition(c["has_vector"]) for c in kind] for name, kind in kinds.items()})
