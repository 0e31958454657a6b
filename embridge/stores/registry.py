"""The registry of stores: entry points of the group ``embridge.stores``, of embridge and of any other package, by URI scheme."""

from __future__ import annotations

import functools
import os
from importlib.metadata import EntryPoint, entry_points

from embridge.errors import EmbridgeError, ParameterError
from embridge.stores.store import Store
from embridge.stores.uri import broken_scheme, scheme_of, without_password

GROUP = "embridge.stores"
FILES = ("file://", "s3://", "gs://")


def store_of(path: str) -> Store | None:
    """The store of a URI; None for the path of a file, or of files in object storage.

    Raises
    ------
    ParameterError
        No package, or more than one, has a store of this scheme, or it cannot be loaded.
    MissingDependencyError
        The store needs a package that is not installed.
    """
    scheme = scheme_of(path)
    if scheme is None:
        meant = broken_scheme(path)
        if meant is not None and not os.path.exists(path) and ((shown := without_password(path)) != path or _entries(meant)):
            raise ParameterError(f"{shown!r} is not a URI. Hint: write {meant}:// with two slashes, or three before a local path.")
        return None
    return _load(scheme, without_password(path))


def _entries(scheme: str) -> list[EntryPoint]:
    return list(entry_points(group=GROUP, name=scheme))


@functools.cache
def _load(scheme: str, uri: str) -> Store:
    found = _entries(scheme)
    if not found:
        known = sorted({f"{entry.name}://" for entry in entry_points(group=GROUP)})
        raise ParameterError(f"{uri!r} cannot be opened: {scheme}:// is not one of {', '.join((*FILES, *known))}.")
    if len(found) > 1:
        owners = ", ".join(sorted(entry.dist.name if entry.dist else entry.value for entry in found))
        raise ParameterError(f"{scheme}:// is a store of several packages: {owners}. Hint: uninstall all but one.")
    try:
        return found[0].load()()
    except EmbridgeError:
        raise
    except Exception as e:  # a package of somebody else
        owner = found[0].dist.name if found[0].dist else found[0].value
        raise ParameterError(f"The store {scheme}:// of {owner} cannot be loaded: {type(e).__name__}: {e}") from e
