"""A service in its own process, and an OpenAI-compatible server for it to ask."""

import base64
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np

from embridge.types import Space

OLD, NEW = Space("old", 6, normalized=True), Space("new", 9, normalized=True)
PATIENCE = 60  # seconds for what happens at once on a quiet machine


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def vector_of(text, dim=NEW.dim):
    """The vector that the upstream gives to a text or to tokens."""
    seed = int.from_bytes(hashlib.blake2b(repr(text).encode(), digest_size=8).digest(), "little")
    return unit(np.random.default_rng(seed).normal(size=(1, dim)))[0]


class Upstream(ThreadingHTTPServer):
    """An OpenAI-compatible server.

    ``requests`` are the bodies it got, ``failure`` is (status, headers, body) of its next answers, and ``gate`` holds answers back.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests, self.keys, self.failure, self.dim = [], [], None, NEW.dim
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Semaphore(0)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def vector(self, text):
        return vector_of(text, self.dim)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append(body)
        server.keys.append(self.headers.get("Authorization"))
        server.waiting.release()
        server.gate.wait()
        if server.failure is not None:
            self.answer(*server.failure)
            return
        rows = [server.vector(one).tolist() for one in body["input"]]
        data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
        usage = {"prompt_tokens": 7 * len(rows), "total_tokens": 7 * len(rows)}
        found = {"object": "list", "data": data[::-1], "model": body["model"], "usage": usage}
        self.answer(200, {}, json.dumps(found).encode())

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running_upstream(kind=Upstream, *arguments):
    with kind(*arguments) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.gate.set()
            server.shutdown()
            thread.join()


class Process:
    """``embridge serve ...`` in a process of its own, on a free port."""

    def __init__(self, *arguments, environment=None, cwd=None):
        command = [sys.executable, "-W", "error", "-m", "embridge.cli.main", "serve", "--port", "0", *map(str, arguments)]
        known = {name: value for name, value in os.environ.items() if not name.startswith("EMBRIDGE_")}
        self.lines, self._arrived = [], threading.Condition()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, env=known | (environment or {}), cwd=cwd, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self._arrived:
                self.lines.append(line)
                self._arrived.notify_all()
        with self._arrived:
            self._arrived.notify_all()

    @property
    def log(self):
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def wait_for(self, event, count=1, **fields):
        """The log line of an event, once it is there `count` times."""
        deadline = time.monotonic() + PATIENCE
        with self._arrived:
            while True:
                found = [line for line in self.log if line["event"] == event and fields.items() <= line.items()]
                if len(found) >= count:
                    return found[-1]
                assert self.process.poll() is None, "".join(self.lines)
                assert time.monotonic() < deadline, "".join(self.lines)
                self._arrived.wait(1)

    @property
    def url(self):
        return self.wait_for("serving")["url"]

    def send(self, number):
        self.process.send_signal(number)

    def end(self, number=signal.SIGTERM):
        """The exit status after a signal."""
        if self.process.poll() is None:
            self.send(number)
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status


@contextlib.contextmanager
def serving(*arguments, **options):
    """A running service and a client of it."""
    started = Process(*arguments, **options)
    try:
        with httpx.Client(base_url=started.url, timeout=PATIENCE) as client:
            yield started, client
    finally:
        started.end(signal.SIGKILL)
        started.process.stderr.close()


def from_base64(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


def error_of(answer, status):
    """The error of an answer, in OpenAI's form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error
