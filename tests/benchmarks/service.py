"""Latency of `embridge serve` beside `map.apply` and an empty FastAPI route: `python -m tests.benchmarks.service` prints Markdown.

One client on loopback, one connection, all cases in turn; medians of milliseconds. The map is a `rotation` 384 -> 768.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa

import embridge as eb
from embridge.serving.media import ARROW, JSON, RAW
from tests.serving.support import serving

COUNTS, EMPTY = (1, 64), ("empty route", 0)
_EMPTY = """
import socket, sys, uvicorn
from fastapi import FastAPI, Response
app = FastAPI()
@app.post("/")
async def empty():
    return Response()
taken = socket.create_server(("127.0.0.1", 0))
print(taken.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run([taken])
"""


class Connection:
    """One kept connection."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._http = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        self._http.connect()
        self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, path: str, body: bytes, kind: str) -> bytes:
        """The body of the answer."""
        self._http.request("POST", path, body, {"Content-Type": kind})
        answer = self._http.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(content)
        return content


@contextlib.contextmanager
def empty_route() -> Iterator[str]:
    """An application with an empty route, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", _EMPTY], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        yield url
    finally:
        process.terminate()
        process.wait()


def body_of(kind: str, vectors: np.ndarray) -> bytes:
    """Vectors as a media type."""
    if kind == JSON:
        return json.dumps({"vectors": vectors.tolist()}).encode()
    if kind == RAW:
        return vectors.astype("<f4").tobytes()
    sink = io.BytesIO()
    table = pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def measure(repeat: int) -> dict[tuple[str, int], list[float]]:
    """Milliseconds of every case, taken in turn."""
    queries = eb.open(eb.sample_path("minilm.queries")).read()[1]
    with tempfile.TemporaryDirectory(prefix="embridge-bench-") as folder, contextlib.ExitStack() as stack:
        translation = eb.fit(eb.match(eb.open(eb.sample_path("minilm")), eb.open(eb.sample_path("mpnet"))), "rotation")
        path = Path(folder) / "map.safetensors"
        translation.save(path)
        process, _ = stack.enter_context(serving(path, environment={"OMP_NUM_THREADS": "1"}, cwd=folder))
        served, empty = Connection(process.url), Connection(stack.enter_context(empty_route()))
        cases: dict[tuple[str, int], tuple[Callable[..., object], tuple[object, ...]]] = {}
        for count in COUNTS:
            vectors = np.ascontiguousarray(queries[:count])
            cases["map.apply", count] = (translation.apply, (vectors,))
            for kind in (JSON, RAW, ARROW):
                cases[kind, count] = (served.post, ("/v1/translate", body_of(kind, vectors), kind))
        times: dict[tuple[str, int], list[float]] = {EMPTY: [], **{case: [] for case in cases}}
        for number in range(repeat + 20):
            for case, (work, arguments) in cases.items():
                _timed(times[case], work, *arguments)
                if work == served.post:  # next to every case, so that both servers are equally awake
                    _timed(times[EMPTY], empty.post, "/", b"", JSON)
            if number == 20:
                times = {case: [] for case in times}
    return times


def _timed(taken: list[float], work: Callable[..., object], *arguments: object) -> None:
    started = time.perf_counter()
    work(*arguments)
    taken.append((time.perf_counter() - started) * 1e3)


def show(repeat: int = 500) -> list[str]:
    """Print the table, and return its lines."""
    times = measure(repeat)
    empty = np.quantile(times[EMPTY], (0.25, 0.5))
    lines = ["| case | vectors | best quarter below, ms | median, ms | these over the empty route, ms |", "|---|---|---|---|---|"]
    for (name, count), taken in times.items():
        found = np.quantile(taken, (0.25, 0.5))
        over = "" if name in ("map.apply", EMPTY[0]) else "{:+.2f}, {:+.2f}".format(*(found - empty))
        lines.append(f"| {name} | {count or ''} | {found[0]:.2f} | {found[1]:.2f} | {over} |")
    print(*lines, sep="\n")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.service", description=__doc__)
    parser.add_argument("--repeat", type=int, default=500)
    show(parser.parse_args().repeat)


if __name__ == "__main__":
    main()
