"""What stores share that are a server or a folder of collections: names of collections in URIs, and errors of their clients."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from embridge.errors import EmbridgeError, OutputError, ParameterError, UnreadableFileError
from embridge.files import writing
from embridge.stores.uri import Location

Reason = Callable[[Exception], str | None]

_COMMON = {"https": ("true", "false"), "columns": ("inferred",)}


def collection_in(location: Location, form: str, *options: str) -> str:
    """The collection that a URI names: the path on a server, the part behind ``#`` in a folder.

    Parameters
    ----------
    location : Location
    form : str
        An example of its URIs.
    *options : str
        The options that it may have, beside ``https`` and ``columns``.

    Raises
    ------
    ParameterError
        It names none, or has other options.
    """
    location.check_options(*options, *_COMMON)
    path = location.path.strip("/")
    name, other = (path, location.part) if location.host else (location.part, "" if location.path else "no path")
    if not name or other or (location.host and "/" in name):
        raise ParameterError(f"{location.uri!r} does not name a collection. Hint: write {form}.")
    for option, values in _COMMON.items():
        if location.options.get(option, values[0]) not in values:
            raise ParameterError(f"{location.uri!r}: {option} must be {' or '.join(values)}.")
    return name


def key_of(location: Location, variable: str) -> str | None:
    """The API key of a server: the URI's, else that of an environment variable.

    Raises
    ------
    ParameterError
        It has characters that no header of HTTP may have; clients show them in their errors.
    """
    key = (location.password or os.environ.get(variable) or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ParameterError(f"The API key for {location.uri!r} has characters other than printable ASCII. Hint: check {variable}.")
    return key or None


@contextlib.contextmanager
def reading(location: Location, server: str, port: int, reason: Reason) -> Iterator[None]:
    """Raise an error of embridge in place of those of a client and its transports.

    Parameters
    ----------
    location : Location
    server : str
        Its name in messages.
    port : int
        Used where the URI has none.
    reason : callable
        What an error of the client means; None where its own text says it.
    """
    try:
        yield
    except EmbridgeError:
        raise
    except Exception as e:  # errors of httpx, pydantic and SQLite come through unchanged
        raise UnreadableFileError(f"{location.uri!r} cannot be read: {_text(e, location, server, port, reason)}") from e


@contextlib.contextmanager
def storing(location: Location, server: str, port: int, reason: Reason) -> Iterator[None]:
    """As `reading`, for requests that write."""
    try:
        with writing(location.uri):
            yield
    except EmbridgeError:
        raise
    except Exception as e:
        raise OutputError(f"{location.uri!r} cannot be written: {_text(e, location, server, port, reason)}") from e


def _text(error: Exception, location: Location, server: str, port: int, reason: Reason) -> str:
    if (known := reason(error)) is not None:
        return known
    text = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(" Are you sure it is running?").rstrip(".")
    hint = f" Hint: is a {server} server running at {location.host}:{location.port or port}?" if location.host else ""
    return f"{text}.{hint}"
