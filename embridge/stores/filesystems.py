"""File systems of Parquet files: local, ``s3://`` and ``gs://``, with timeouts and errors of embridge."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from embridge.errors import EmbridgeError, ParameterError, UnreadableFileError

# Without a network, an error is raised within 10 s. Storage that has answered once may take longer later.
_CONNECT, _FIRST, _LATER = 2.5, 2, 60  # seconds to connect (S3), to try the first and later requests again (Google)
_ANSWERED: set[str] = set()  # buckets of Google that have answered


def shown(path: str) -> str:
    """A path for messages: without credentials."""
    return re.sub(r"(?<=://)[^/@]*:[^/]*@", "", path)


def check_no_secret(path: str) -> None:
    """Refuse a URI with credentials, which must not leave the process.

    Raises
    ------
    ParameterError
    """
    if shown(path) != path:
        raise ParameterError(
            f"{shown(path)!r} names credentials, which are not sent to other machines. Hint: leave them out, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node, or give the nodes a role."
        )


@contextlib.contextmanager
def wrapped(path: str, kind: str = "a location") -> Iterator[None]:
    """Turn errors of a file system about `path` into errors of embridge."""
    try:
        yield
    except EmbridgeError:
        raise
    except (pa.ArrowException, OSError, ValueError) as e:  # ValueError: a name that is not text, or contains NUL
        raise UnreadableFileError.at(shown(path), kind, e) from e


def resolve(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path, and the path within it."""
    if not isinstance(path, str):
        raise ParameterError.must_be("path", "text", path)
    if "://" not in path:
        return fs.LocalFileSystem(), path
    scheme = path.partition("://")[0]
    with wrapped(path):
        if scheme == "file":
            return fs.FileSystem.from_uri(path)
        if scheme in ("gs", "gcs"):
            found = _google(path)
        elif scheme == "s3":
            found = _s3(path)
        else:
            raise UnreadableFileError.at(shown(path), "a location", f"{scheme}:// is not one of file://, s3://, gs://")
    if not found[1].strip("/"):
        raise UnreadableFileError.at(shown(path), "a location", "it names no bucket")
    return found


def _google(path: str) -> tuple[fs.FileSystem, str]:
    """As `pyarrow.fs.FileSystem.from_uri`, but with short retries: pyarrow retries the first request for 15 minutes."""
    if "retry_limit_seconds=" in path:
        return fs.FileSystem.from_uri(path)
    mark, bucket = "&" if "?" in path else "?", urlsplit(path).netloc
    if bucket not in _ANSWERED:
        hurried, inner = fs.FileSystem.from_uri(f"{path}{mark}retry_limit_seconds={_FIRST}")
        if inner.strip("/"):
            hurried.get_file_info(inner)
        _ANSWERED.add(bucket)
    return fs.FileSystem.from_uri(f"{path}{mark}retry_limit_seconds={_LATER}")


def _s3(path: str) -> tuple[fs.FileSystem, str]:
    """As `pyarrow.fs.FileSystem.from_uri`, but with timeouts."""
    url = urlsplit(path)
    options: dict[str, Any] = dict(parse_qsl(url.query, strict_parsing=bool(url.query)))
    for flag in ("allow_bucket_creation", "allow_bucket_deletion", "force_virtual_addressing"):
        if flag in options:
            options[flag] = options[flag].lower() == "true"
    known = {"region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion", "force_virtual_addressing"}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"unknown option {unknown[0]!r}; known are {', '.join(sorted(known))}")
    if url.username:
        options |= {"access_key": unquote(url.username), "secret_key": unquote(url.password or "")}
    bucket = url.netloc.rpartition("@")[2]
    if "region" not in options and "endpoint_override" not in options and bucket:
        options["region"] = fs.resolve_s3_region(bucket)
    limits = {"connect_timeout": _CONNECT, "request_timeout": 60, "retry_strategy": fs.AwsStandardS3RetryStrategy(3)}
    return fs.S3FileSystem(**options, **limits), unquote(f"{bucket}{url.path}").rstrip("/")
