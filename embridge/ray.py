"""Tasks on a Ray cluster: one connection, values that all tasks share, results as they come, errors of embridge.

Plain tasks (decision 0033): each receives a small value, which names files, and references to what all of them share.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from embridge import __version__
from embridge.errors import BackendError, EmbridgeError, MissingDependencyError, MissingFileError, ParameterError

_LOG = logging.getLogger("embridge")
_STOP_SECONDS = 10  # that cancelled tasks are waited for
_ANSWER_SECONDS = 5  # within which an address must take a connection
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}  # while an instance of ours starts


@dataclass(frozen=True)
class RayBackend:
    """Runs the tasks of a verb on a Ray cluster.

    Parameters
    ----------
    address : str, optional
        ``auto`` for the cluster that runs on this machine, ``HOST:PORT``, or ``ray://HOST:PORT``. Default: that of the environment
        variable ``RAY_ADDRESS``, else an instance on this machine for the time of the call. A connection that the process has
        already is used as it is.
    num_cpus : int, default 1
        CPU cores, and threads, of a task.
    num_gpus : float, default 0
        GPUs of a task; a fraction lets several tasks share one. Above 0, tasks compute on CUDA.
    max_retries : int, default 3
        How often a task is run again whose worker or node ended. Errors in a task's input are not retried.

    Raises
    ------
    ParameterError
        A value out of range.
    """

    address: str | None = None
    num_cpus: int = 1
    num_gpus: float = 0
    max_retries: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.num_cpus, int) or self.num_cpus < 1:
            raise ParameterError.must_be("num_cpus", "an integer of at least 1", self.num_cpus)
        if not 0 <= self.num_gpus < float("inf") or (self.num_gpus > 1 and self.num_gpus != int(self.num_gpus)):
            raise ParameterError.must_be("num_gpus", "a fraction of 1, or a whole number", self.num_gpus)
        if not isinstance(self.max_retries, int) or self.max_retries < 0:
            raise ParameterError.must_be("max_retries", "an integer of at least 0", self.max_retries)

    @property
    def device(self) -> str:
        """The kind of device that tasks compute on: ``cuda`` or ``cpu``."""
        return "cuda" if self.num_gpus else "cpu"

    def device_for(self, wanted: object) -> str:
        """`device`, where that is what the caller wants.

        Raises
        ------
        ParameterError
            A task has no GPU and the caller wants CUDA, or the other way round.
        """
        kind = str(wanted).partition(":")[0]
        if wanted is not None and kind not in ("auto", self.device):
            hint = "give tasks a GPU with num_gpus=1 (--num-gpus 1)" if kind == "cuda" else "leave device or num_gpus out"
            raise ParameterError(
                f"Tasks with {self.num_gpus:g} GPUs compute on {self.device}, not on {str(wanted)!r}. Hint: {hint}."
            )
        return self.device


Backend = RayBackend | str | None


def as_backend(backend: Backend) -> RayBackend | None:
    """The backend of a name: ``ray``; None for ``local``.

    Raises
    ------
    ParameterError
    """
    if backend is None or backend == "local":
        return None
    if backend == "ray":
        return RayBackend()
    if not isinstance(backend, RayBackend):
        raise ParameterError.must_be("backend", "'local', 'ray' or a RayBackend", backend)
    return backend


class Item(Protocol):
    """The argument of a task, which can be pickled: names of files and options."""

    @property
    def name(self) -> str:
        """What the task is about, for messages."""
        ...


@contextlib.contextmanager
def connected(backend: RayBackend | None) -> Iterator[None]:
    """A connection for the time of the block, unless there is one; nothing without a backend.

    Raises
    ------
    MissingDependencyError
        Ray is not installed.
    BackendError
        No cluster at the address, or one with another version of Ray or Python; or this machine is too small for a task.
    """
    if backend is None:
        yield
        return
    try:
        import ray
    except ImportError as e:
        raise MissingDependencyError.of("ray", "The backend 'ray'", "ray") from e
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(_silent())
            stack.callback(ray.shutdown)
            _connect(backend)
        _check_room(backend)
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what Ray prints about lost workers: on stdout, where verbs print results, and whatever `log_to_driver` says."""
    from ray._private import worker

    name = "print_to_stdstream"
    before = getattr(worker, name, None)
    setattr(worker, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(worker, name, before)


def _connect(backend: RayBackend) -> None:
    import ray

    address = backend.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update({name: value for name, value in _QUIET.items() if before[name] is None})
    try:
        _check_answer(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the future of Ray
            ray.init(**options)
    except Exception as e:  # Ray raises ConnectionError, RuntimeError, ValueError and its own
        reason = " ".join(str(e).split())[:500].rstrip(".") or type(e).__name__
        if address == "local":
            raise BackendError(f"No Ray instance can be started here: {reason}.") from e
        hint = "Hint: start one (`ray start --head`), or leave the address out to use this machine."
        raise BackendError(f"There is no usable Ray cluster at {address!r}: {reason}. {hint}") from e
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _check_answer(address: str) -> None:
    """An OSError where nothing listens at HOST:PORT: Ray itself tries for ten minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()


def run_tasks(
    backend: RayBackend, function: Callable[..., Any], items: Sequence[Item], shared: Sequence[Any] = ()
) -> Generator[tuple[int, Any], None, None]:
    """Run ``function(item, *shared)`` as one task an item; yields (number of the item, result) as they finish.

    When the generator is closed, or fails, tasks that are left are cancelled.

    Parameters
    ----------
    backend : RayBackend
    function : callable
        A function of a module, which workers import.
    items : sequence of Item
        A task may run twice, also at the same time: what it writes must be the same, and appear by a rename.
    shared : sequence
        Values that are put into the object store once.

    Raises
    ------
    EmbridgeError
        Of the first task that fails, as it was raised there.
    BackendError
        Workers or nodes were lost more often than `max_retries`, or workers cannot import embridge in this version.
    """
    with connected(backend):
        import ray

        options = {"num_cpus": backend.num_cpus, "num_gpus": backend.num_gpus, "max_retries": backend.max_retries}
        task = ray.remote(_call).options(**options, retry_exceptions=False, name="embridge")
        common = [ray.put(value) for value in shared]
        waiting = {}
        try:
            for number, item in enumerate(items):
                waiting[task.remote(function, __version__, backend.num_cpus, pickle.dumps(item), *common)] = number
            while waiting:
                done, _ = ray.wait(list(waiting), num_returns=1)
                number = waiting.pop(done[0])
                yield number, _result(done[0], items[number], backend)
        finally:
            _cancel(list(waiting))


def _call(function: Callable[..., Any], version: str, threads: int, item: bytes, *shared: Any) -> Any:
    """In a worker: the function, in as many threads as the task has cores."""
    if version != __version__:
        raise BackendError(f"A worker has embridge {__version__}, and this is {version}. Hint: install one version on all nodes.")
    import torch

    torch.set_num_threads(threads)
    try:
        return function(pickle.loads(item), *shared)  # noqa: S301 (of the process that sent the function)
    except MissingFileError as e:  # the process that sent the item has found it
        host = socket.gethostname()
        raise MissingFileError(f"{e} Hint: all nodes must see files under the same path, and {host!r} does not.") from e


def _result(reference: Any, item: Item, backend: RayBackend) -> Any:
    import ray
    from ray import exceptions

    try:
        return ray.get(reference)
    except exceptions.RayTaskError as e:
        cause = e.cause
        if isinstance(cause, EmbridgeError):
            raise cause from None
        if isinstance(cause, ImportError) or "ModuleNotFoundError" in str(e):
            reason = str(cause or e).strip().splitlines()[-1]
            raise BackendError(
                f"A worker cannot run embridge: {reason}. Hint: install embridge {__version__} with what it needs on every node, "
                "or give it to them (PYTHONPATH, or a runtime_env of Ray)."
            ) from e
        raise cause if isinstance(cause, Exception) else BackendError(f"The task of {item.name} failed: {e}") from e
    except exceptions.RayError as e:
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__).rstrip(".")
        tries = f"{backend.max_retries + 1} time{'s' if backend.max_retries else ''}"
        raise BackendError(
            f"The task of {item.name} was lost {tries}, since its worker or node ended ({type(e).__name__}: {reason}). "
            "Hint: it may need more memory than a node has; look at the cluster (`ray status`), and run again."
        ) from e


def _check_room(backend: RayBackend) -> None:
    """Refuse tasks for which the machine is too small; of a cluster, which may grow, only a warning."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(n.get("CPU", 0) >= backend.num_cpus and n.get("GPU", 0) >= backend.num_gpus for n in nodes):
        return
    largest = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
    fact = f"A task needs {backend.num_cpus} CPUs and {backend.num_gpus:g} GPUs, and no node has them ({largest})."
    if backend.address is None and not os.environ.get("RAY_ADDRESS"):
        raise BackendError(f"{fact} Hint: give tasks less, or name a cluster with address= (--address).")
    _warn(f"{fact} Tasks wait for one; Ctrl-C ends the run.")


@functools.cache
def _warn(message: str) -> None:
    """A warning, once a process: a verb connects several times."""
    _LOG.warning(message)


def _cancel(references: list[Any]) -> None:
    """Kill the workers of tasks that are running, and forget those that are not."""
    import ray

    with contextlib.suppress(Exception):  # the cluster may be gone; what its tasks wrote has no name yet
        for reference in references:
            ray.cancel(reference, force=True)
        if references:
            ray.wait(references, num_returns=len(references), timeout=_STOP_SECONDS, fetch_local=False)
