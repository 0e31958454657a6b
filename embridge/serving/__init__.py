"""The service between an application and an index: embeddings, translation and search over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embridge.serving.options import ServeOptions

if TYPE_CHECKING:
    from embridge.serving.gate import Gate

__all__ = ["ServeOptions", "create_app", "serve"]


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the requests in progress.

    Parameters
    ----------
    options : ServeOptions

    Raises
    ------
    MissingDependencyError
        FastAPI, uvicorn, httpx or prometheus-client is not installed.
    ParameterError
        The address cannot be used, or the options do not fit together.
    EmbridgeError
        Something that is to be served cannot be opened.
    KeyboardInterrupt
        Ctrl-C, once all requests are answered.
    """
    _check_installed()
    from embridge.serving.server import run

    run(options)


def create_app(options: ServeOptions) -> Gate:
    """The ASGI application of the service, for a server of your own. It reloads and closes what it holds by ASGI's lifespan.

    Parameters
    ----------
    options : ServeOptions
        Without `host`, `port` and `drain`, which belong to `serve`.

    Raises
    ------
    MissingDependencyError, ParameterError, EmbridgeError
        As `serve`.
    """
    _check_installed()
    from embridge.serving import app

    return app.create_app(options)


def _check_installed() -> None:
    """Check that all packages of the extra are there.

    Raises
    ------
    MissingDependencyError
    """
    from embridge.errors import MissingDependencyError

    for module, package in (
        ("fastapi", "FastAPI"),
        ("uvicorn", "uvicorn"),
        ("httpx", "httpx"),
        ("prometheus_client", "prometheus-client"),
    ):
        try:
            __import__(module)
        except ImportError as e:
            raise MissingDependencyError.of(package, "The service", "serve") from e
