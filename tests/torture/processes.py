"""Verbs of the command line in processes of their own, forked from one that has imported everything and run nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.torture import gate

HANG = 120.0  # seconds without an end, on however busy a machine, that are called a hang
PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = [
    "tests.torture.processes", "embridge", "embridge.cli.main", "embridge.cli.session", "embridge.cli.fit",
    "embridge.cli.conversion", "embridge.cli.collections", "embridge.cli.anchors", "embridge.cli.evaluation", "embridge.cli.merge",
    "embridge.cli.plan", "embridge.cli.search", "embridge.cli.migrate", "embridge.cli.decode", "embridge.cli.catalog",
    "embridge.catalog", "embridge.conversion", "embridge.decoders", "embridge.indexes.migrate", "embridge.planning",
    "embridge.merging.merge", "embridge.retrieval", "embridge.reporting", "embridge.evaluation", "embridge.translators", "duckdb",
    "faiss", "pyarrow.compute", "pyarrow.dataset", "rich.progress", "safetensors.numpy", "torch.export", "skops.io", "onnxruntime",
    "sklearn.linear_model", "matplotlib.figure", "jinja2",
]  # fmt: skip


def preload(*more: str) -> None:
    """Name what the process that others are forked from imports; it must be called before the first of them is started."""
    PROCESSES.set_forkserver_preload([*PRELOADED, *more])


@dataclasses.dataclass(frozen=True)
class End:
    """How a run ended.

    Attributes
    ----------
    status : int
        Exit status; minus the signal that ended it.
    kind : str
        Class of the exception that came out of the verb; empty where none did.
    known : bool
        It is an EmbridgeError.
    message, trace, stdout : str
    """

    status: int
    kind: str = ""
    known: bool = False
    message: str = ""
    trace: str = ""
    stdout: str = ""

    def __str__(self) -> str:
        return f"status {self.status}" + (f", {self.kind}: {self.message}" if self.kind else "")


class Run:
    """A verb that runs, its file-system calls held at the gate.

    Parameters
    ----------
    arguments : sequence of str
        Of the command line, without ``--debug``, which is added: errors come out as what they are.
    folder : path
        Working directory of the run; only calls on files below it are held.
    notes : path
        Folder for what the run prints.
    reads : bool, default False
        Hold openings for reading too.
    """

    def __init__(self, arguments: list[str], folder: Path, notes: Path, *, reads: bool = False) -> None:
        self._watched = f"{os.path.realpath(folder)}{os.sep}"
        self._notes = notes / f"{time.monotonic_ns()}"
        ours, theirs = socket.socketpair()
        self.process = PROCESSES.Process(target=_work, args=(theirs, arguments, str(folder), str(self._notes), reads))
        self.process.start()
        theirs.close()
        ours.settimeout(HANG)
        received = socket.recv_fds(ours, 1, 1)[1]
        ours.close()
        self._listener = received[0]

    def calls(self) -> Iterator[gate.Call]:
        """The calls on watched files, one after the other; each must be answered before the next one is taken."""
        deadline = time.monotonic() + HANG
        while (waits := gate.waiting(self._listener, 1.0)) is not None:
            if time.monotonic() > deadline:
                raise TimeoutError("the run hangs")
            if waits and (call := gate.receive(self._listener)) is not None:
                if any(f"{path}{os.sep}".startswith(self._watched) for path in call.paths):
                    yield call
                else:
                    call.allow()

    def finish(self, *, patience: float = HANG) -> End | None:
        """Let all calls pass and wait for the end; None where the run has not ended after so many seconds, and goes on."""
        deadline = time.monotonic() + patience
        while (waits := gate.waiting(self._listener, 0.2)) is not None:
            if waits and (call := gate.receive(self._listener)) is not None:
                call.allow()
            elif time.monotonic() > deadline:
                return None
        return self.end()

    def kill(self) -> End:
        """End it as a power cut would end it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, signal.SIGKILL)
        return self.end()

    def end(self) -> End:
        """Wait for the process, whose calls are all answered."""
        self.process.join(HANG)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            self.process.join()
            return End(-signal.SIGKILL, "Hang", message=f"no end after {HANG:.0f} s")
        notes, self._notes = self._notes, self._notes.with_suffix(".read")
        with contextlib.suppress(OSError):
            os.close(self._listener)
        said = json.loads(notes.read_text()) if status >= 0 and notes.exists() else {}
        stdout = Path(f"{notes}.out")
        text = stdout.read_text(errors="replace") if stdout.exists() else ""
        for path in (notes, stdout):
            path.unlink(missing_ok=True)
        return End(status, stdout=text, **said)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()


def run(arguments: list[str], folder: Path, notes: Path) -> End:
    """Run a verb undisturbed."""
    with Run(arguments, folder, notes) as one:
        end = one.finish()
        return end or one.kill()


def _work(listener_to: socket.socket, arguments: list[str], folder: str, notes: str, reads: bool) -> None:
    small_steps()
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.open(f"{notes}.out", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output if os.environ.get("TORTURE_STDERR") else os.open(os.devnull, os.O_WRONLY), 2)
    listener = gate.install(reads=reads)
    socket.send_fds(listener_to, [b"."], [listener])
    os.close(listener)
    listener_to.close()
    status, said = call_verb(arguments)
    with open(notes, "w") as file:
        json.dump(said, file)
    sys.stdout.flush()
    sys.exit(status)


def small_steps() -> None:
    """Let small inputs take several row groups and parts."""
    import embridge as eb
    from embridge.stores.parquet import writer

    if not hasattr(writer, "GROUP_BYTES") or "part_rows" not in (eb.encode.__kwdefaults__ or {}):
        raise RuntimeError("the sizes of row groups and of parts have other names now: torture must set them")
    writer.GROUP_BYTES = 40 * 64
    eb.encode.__kwdefaults__["part_rows"] = 8


def call_verb(arguments: list[str]) -> tuple[int, dict[str, Any]]:
    """Exit status of a verb, and what came out of it instead of an answer."""
    from embridge.cli.main import main
    from embridge.errors import EmbridgeError

    try:
        status = main([*arguments, "--debug"], standalone_mode=False, prog_name="embridge")
    except BaseException as e:
        said = {"kind": type(e).__name__, "known": isinstance(e, EmbridgeError), "message": str(e)[:2000]}
        return 1, said | {"trace": traceback.format_exc()[-4000:]}
    return int(status or 0), {}


def must(folder: Path, notes: Path) -> Callable[[list[str]], End]:
    """A function that runs a verb and raises where it fails."""
    notes.mkdir(parents=True, exist_ok=True)

    def verb(arguments: list[str]) -> End:
        end = run(arguments, folder, notes)
        if end.status:
            raise RuntimeError(f"{' '.join(arguments)}: {end}\n{end.trace}")
        return end

    return verb
