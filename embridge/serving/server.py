"""Running the service: its socket, its signals, and a shutdown that finishes what was begun."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import uvicorn

from embridge.errors import ParameterError
from embridge.serving.app import create_app
from embridge.serving.gate import Gate
from embridge.serving.logs import log, to_stderr
from embridge.serving.options import ServeOptions
from embridge.serving.service import Service

_KEEP_ALIVE = 65  # seconds; longer than clients keep an idle connection, so that it is they who close it


def run(options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the requests in progress.

    Parameters
    ----------
    options : ServeOptions

    Raises
    ------
    ParameterError
        The address is in use or cannot be used, or nothing is to be served.
    EmbridgeError
        Something that is to be served cannot be opened.
    KeyboardInterrupt
        Ctrl-C, once all is finished.
    """
    with contextlib.closing(_bind(options.host, options.port)) as opened:
        service = Service(options)
        to_stderr()
        gate = create_app(options, service)
        if options.api_key is None and not _is_loopback(opened.getsockname()[0]):
            hint = "set EMBRIDGE_SERVE_API_KEY, or --api-key-file"
            log(logging.WARNING, "anyone who reaches this address can use the service", host=options.host, hint=hint)
        config = uvicorn.Config(
            gate,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=int(options.timeout) + 1,
        )
        server = _Server(config, gate, service, options.drain)
        server.run([opened])
    if server.interrupted:
        raise KeyboardInterrupt


class _Server(uvicorn.Server):
    """uvicorn with signals of its own: SIGTERM and SIGINT drain, SIGHUP looks for changed files. The exit status stays 0."""

    def __init__(self, config: uvicorn.Config, gate: Gate, service: Service, drain: float) -> None:
        super().__init__(config)
        self._gate, self._service, self._drain, self.interrupted = gate, service, drain, False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and say so."""
        await super().startup(sockets)
        host, port = (sockets or [])[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        log(logging.INFO, "serving", url=f"http://{shown}:{port}", **self._service.facts())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept for a moment more while `/readyz` says no and connections close after their response; then finish requests."""
        self._gate.draining = True
        log(logging.INFO, "draining", seconds=self._drain)
        await asyncio.sleep(self._drain)
        await super().shutdown(sockets)
        log(logging.INFO, "stopped")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        """Handle signals while it runs."""
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self._stop, signal.SIGINT: self._stop}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        loop.add_signal_handler(signal.SIGHUP, self._service.look_now)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True
        self.interrupted = self.interrupted or number == signal.SIGINT


def _bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address; it does not listen yet.

    Raises
    ------
    ParameterError
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as e:
        raise ParameterError(f"The host {host!r} cannot be used: {getattr(e, 'strerror', None) or e}.") from e
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(socket.SOMAXCONN)
    except OSError as e:
        opened.close()
        raise ParameterError(
            f"Port {port} of {host!r} cannot be used: {e.strerror}. Hint: another --port, or stop what uses it."
        ) from e
    return opened


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


__all__ = ["run"]
