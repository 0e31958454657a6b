"""Long proofs of `embridge serve`: ``python -m tests.torture.service fuzz --requests 5000``, ``... soak --minutes 10 --clients 8``.

`fuzz` lets schemathesis generate requests from the served OpenAPI document: no status 5xx and none that the document does not name,
bodies and headers as documented. `soak` keeps clients busy with all kinds of requests: no error, every vector as `map.apply` gives
it, and no growth of resident memory after the first fifth of the time. Exit status 1 on any failure.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
import numpy as np

import embridge as eb
from tests.serving.support import NEW, OLD, PATIENCE, Process, running_upstream, serving
from tests.serving.world import World

ROOT = Path(__file__).parents[2]
CHECKS_LEFT_OUT = "positive_data_acceptance"  # widths of vectors and names of maps cannot be in the document
GROWTH = 0.05  # of resident memory, between the first fifth of a soak and its end


@contextlib.contextmanager
def service(folder: Path, *, rollout: bool) -> Iterator[tuple[World, Process, httpx.Client]]:
    """A service of everything that there is."""
    world = World(folder)
    indexes = [
        f"{name}={world.path(path)}" for name, path in {"old": "old.faiss", "fused": "fused.faiss", "both": "both.parquet"}.items()
    ]
    more: list[object] = []
    if rollout:
        first = eb.MemoryCollection(world.ids[:120], world.new[:120], NEW)
        live = eb.Rollout.start(eb.open(world.path("old.parquet")), first, folder / "rollout")
        indexes.append(f"live={live.path}")
        more = ["--query-log", folder / "log"]
    for index in indexes:
        more += ["--index", index]
    maps = [world.path(f"{name}.safetensors") for name in ("documents", "queries")]
    with running_upstream() as upstream:
        more += ["--upstream", f"new={upstream.url}#m", "--catalog", folder / "none.duckdb"]
        with serving(*maps, *more, cwd=folder) as (process, client):
            yield world, process, client


def fuzz(folder: Path, requests: int, seed: int, *, rollout: bool = True) -> tuple[int, str]:
    """Generated requests; how many they were, and what schemathesis found (empty where nothing)."""
    with service(folder, rollout=rollout) as (_, process, _client):
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{process.url}/openapi.json",
            "--no-color",
            "--seed",
            str(seed),
        ]
        command += ["--phases", "coverage,fuzzing", "--exclude-checks", CHECKS_LEFT_OUT, "--continue-on-failure"]
        command += ["--max-examples", str(max(1, requests // 5)), "--warnings", "off", "--suppress-health-check", "all"]
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.torture.service_hooks", "PYTHONPATH": _path()}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        faults = [line for line in process.log if line["event"] == "fault"]
        answered = [line for line in process.log if line["event"] == "request"]
        by_status: dict[int, int] = {}
        for line in answered:
            by_status[line["status"]] = by_status.get(line["status"], 0) + 1
        print(f"statuses: {dict(sorted(by_status.items()))}", file=sys.stderr)
        found = "" if done.returncode == 0 and not faults else f"{done.stdout}\n{done.stderr}\n{faults}"
        return int((re.search(r"([\d,]+) generated", done.stdout) or ["", "0"])[1].replace(",", "")), found


def _path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


class Client(threading.Thread):
    """One client of a soak."""

    def __init__(self, url: str, world: World, number: int, until: float) -> None:
        super().__init__()
        self._url, self._world, self._until = url, world, until
        self._rng, self.done, self.errors = np.random.default_rng(number), 0, []

    def run(self) -> None:
        """Send requests until the time is over."""
        with httpx.Client(base_url=self._url, timeout=PATIENCE) as client:
            while time.monotonic() < self._until:
                try:
                    self._one(client)
                    self.done += 1
                except Exception as e:
                    self.errors.append(repr(e))

    def _one(self, client: httpx.Client) -> None:
        world, rng = self._world, self._rng
        count = int(rng.integers(1, 65))
        vectors = rng.normal(size=(count, NEW.dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        expected, kind = world.queries.apply(vectors), self.done % 5
        if kind == 0:
            answer = client.post("/v1/translate", json={"vectors": vectors.tolist(), "map": "queries"})
            found = np.array(answer.raise_for_status().json()["vectors"])
            np.testing.assert_allclose(found, expected, atol=1e-5)
        elif kind == 1:
            headers = {"content-type": "application/octet-stream"}
            answer = client.post("/v1/translate?map=queries", content=vectors.tobytes(), headers=headers)
            found = np.frombuffer(answer.raise_for_status().content, "<f4").reshape(-1, OLD.dim)
            np.testing.assert_allclose(found, expected, atol=1e-5)
        elif kind == 2:
            texts = [f"text {i}" for i in rng.integers(0, 1000, size=8).tolist()]
            answer = client.post("/v1/embeddings", json={"model": "old", "input": texts, "encoding_format": "base64"})
            assert len(answer.raise_for_status().json()["data"]) == len(texts)
        elif kind == 3:
            index = ("old", "fused")[count % 2]
            answer = client.post("/v1/search", json={"index": index, "vectors": vectors.tolist(), "k": 5})
            assert [len(row) for row in answer.raise_for_status().json()["hits"]] == [5] * count
        else:
            bad = client.post("/v1/translate", json={"vectors": [[0.0] * NEW.dim], "map": "queries"})
            assert bad.status_code == 400
            client.get("/v1/maps").raise_for_status()
            client.get("/metrics").raise_for_status()


def soak(folder: Path, minutes: float, clients: int) -> dict[str, Any]:
    """Clients for some minutes; requests, errors, and resident memory in MB, minute by minute."""
    with service(folder, rollout=False) as (world, process, _):
        until = time.monotonic() + 60 * minutes
        running = [Client(process.url, world, i, until) for i in range(clients)]
        for client in running:
            client.start()
        memory = []
        while time.monotonic() < until:
            time.sleep(min(6 * minutes, max(0.0, until - time.monotonic())))
            memory.append(_resident(process.process.pid))
        for client in running:
            client.join()
        status = process.end()
        failed = [line for line in process.log if line["event"] == "fault" or line.get("status", 0) >= 500]
        errors = [error for client in running for error in client.errors]
        return {"requests": sum(c.done for c in running), "errors": errors + failed, "memory": memory, "status": status}


def _resident(process: int) -> float:
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1e3  # type: ignore[index]


def main() -> int:
    """Run one of the proofs."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.service", description=__doc__)
    parser.add_argument("proof", choices=("fuzz", "soak"))
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torture-service-") as temporary:
        if options.proof == "fuzz":
            count, found = fuzz(Path(temporary), options.requests, options.seed)
            print(f"fuzz: {count:,} requests, {'failures:' if found else 'no failure'}", found, sep="\n")
            return int(bool(found) or count < options.requests)
        result = soak(Path(temporary), options.minutes, options.clients)
    warm, last = result["memory"][max(0, len(result["memory"]) // 5 - 1)], result["memory"][-1]
    shown = ", ".join(f"{value:.0f}" for value in result["memory"])
    print(
        f"soak: {result['requests']:,} requests, {len(result['errors'])} errors, exit status {result['status']}, RSS in MB: {shown}"
    )
    print(*result["errors"][:20], sep="\n")
    return int(bool(result["errors"]) or result["status"] != 0 or last > warm * (1 + GROWTH))


if __name__ == "__main__":
    sys.exit(main())
