"""URIs of collections: ``scheme://user@host:port/path?option=value#part``. Passwords in them are neither shown nor stored."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from embridge.errors import ParameterError

_LOG = logging.getLogger("embridge")
_SECRETS: dict[str, str] = {}  # by URI without its password, so that this URI opens the same collection in this process
_FURTHER: dict[str, dict[str, str]] = {}  # the same for options of a driver that are secret, and no password of the server
_PASSWORD = re.compile(r"password|passwd|api[_-]?key|token|secret", re.IGNORECASE)
_SECRET = re.compile(
    r".*(passw|pwd|secret|token|credential|bearer|signature|(api|client|server|access|private|account)[_-]?key).*",
    re.IGNORECASE,
)
_START = r"^(?P<start>[a-zA-Z][\w+.-]*:/{0,2})(?P<user>[^/?#:@]*)"
_USER = re.compile(_START + r"(?::(?P<password>[^/?#]*))?@")
_LOOSE_USER = re.compile(_START + r":(?!\d*(?:[/?#]|$))(?P<password>[^@]*[/?#].*)@")  # a password with characters to be encoded
_BROKEN = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]+):/?(?!/)")  # with one slash or none
_ALIASES = {"postgres": "postgresql"}
_FILES = ("file", "s3", "gs", "gcs")  # of Parquet, whose credentials pyarrow reads


@dataclass(frozen=True)
class Location:
    """Where a collection is.

    Attributes
    ----------
    uri : str
        Without a password; it opens the same collection again in this process.
    scheme : str
    path : str
        Decoded; for a local store the path of a file or folder.
    host, user : str, optional
    port : int, optional
    part : str
        After ``#``: a table or collection inside `path`.
    options : dict of str to str
        After ``?``.
    password : str, optional
        A password, or an API key, that was given in the URI.
    secrets : dict of str to str
        Other secret options, such as ``sslpassword``.
    """

    uri: str
    scheme: str
    path: str
    host: str | None = None
    port: int | None = None
    user: str | None = None
    part: str = ""
    options: dict[str, str] = field(default_factory=dict)
    password: str | None = field(default=None, repr=False)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, uri: str) -> Location:
        """Parse a URI. A password in it is kept apart, with a warning.

        Raises
        ------
        ParameterError
            It is not a URI, or an option is repeated or has no value.
        """
        plain = without_password(uri)
        try:
            url = urlsplit(plain)
            host, port = _host(url.netloc) or url.hostname, url.port
            pairs = parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query))
        except ValueError as e:
            several = (
                " Hint: name several hosts as options, such as postgresql:///db?host=a,b&port=5432,5433." if "," in plain else ""
            )
            raise ParameterError(f"{plain!r} is not a URI: {e}.{several}") from None
        options = dict(pairs)
        if len(options) < len(pairs):
            raise ParameterError(f"{plain!r} repeats an option. Options: {', '.join(name for name, _ in pairs)}.")
        user = None if url.username is None else unquote(url.username)
        place = {"host": host, "port": port, "user": user, "part": unquote(url.fragment), "options": options}
        return cls(plain, url.scheme, unquote(url.path), **place, password=_SECRETS.get(plain), secrets=_FURTHER.get(plain, {}))

    def check_options(self, *known: str) -> None:
        """Refuse options that the store does not have.

        Raises
        ------
        ParameterError
        """
        if other := next((name for name in self.options if name not in known), None):
            shown = self.uri.partition("?")[0]  # a value may be a secret under a name that only its driver knows
            raise ParameterError(f"{shown!r} has an unknown option {other!r}. Options: {', '.join(known)}.")

    def column(self, option: str, given: str | None, default: str) -> str:
        """The name of a column: the URI's option, the caller's, or the default.

        Raises
        ------
        ParameterError
            The URI and the caller name different columns.
        """
        named = self.options.get(option)
        if named is not None and given is not None and named != given:
            raise ParameterError(f"{self.uri!r} names the column {named!r} ({option}=), but {given!r} was given. Hint: name one.")
        return named or given or default


def beside(uri: str, name: Callable[[str], str], *, without: tuple[str, ...] = ("id", "vector")) -> str:
    """The URI of the collection beside another whose name is ``name(its name)``, opened with the same password.

    Parameters
    ----------
    uri : str
    name : callable
    without : tuple of str
        Options that are left out.
    """
    location = Location.parse(uri)
    url, options = urlsplit(location.uri), {key: value for key, value in location.options.items() if key not in without}
    path, part = location.path, location.part
    if "table" in options:
        options["table"] = name(options["table"])
    elif part:
        part = name(part)
    else:
        path = name(path)
    made = urlunsplit((url.scheme, url.netloc, quote(path), urlencode(options, quote_via=quote), quote(part)))
    made = made if url.netloc else made.replace(f"{url.scheme}:/", f"{url.scheme}:///", 1)
    if location.password is not None:
        _SECRETS[made] = location.password
    if location.secrets:
        _FURTHER[made] = location.secrets
    return made


def scheme_of(path: str) -> str | None:
    """The scheme of a URI; None for paths, and for the locations of Parquet files (``file``, ``s3``, ``gs``)."""
    scheme, mark, _ = path.partition("://")
    is_store = mark and re.fullmatch(r"[a-zA-Z][\w+.-]*", scheme) and scheme not in _FILES
    return _ALIASES.get(scheme, scheme) if is_store else None


def broken_scheme(path: str) -> str | None:
    """The scheme of what has one slash or none behind it, and may have been meant as a URI; None for anything else."""
    found = _BROKEN.match(path)
    return _ALIASES.get(found["scheme"], found["scheme"]) if found else None


def _host(netloc: str) -> str | None:
    """The folder of a socket, which is a host with encoded slashes; None for other hosts."""
    host = netloc.rpartition("@")[2].partition(":")[0]
    return unquote(host) if host[:3].lower() == "%2f" else None


def without_password(path: str) -> str:
    """The URI of a store without its password or API key, which is kept in memory; other paths as they are.

    All that is shown, recorded or written is this.
    """
    scheme = scheme_of(path)
    if scheme is None and broken_scheme(path) is None:
        return path
    plain, passwords = path if scheme is None else scheme + path[path.index(":") :], []
    if (user := _USER.match(plain) or _LOOSE_USER.match(plain)) and user["password"] is not None:
        passwords += [unquote(user["password"])] if user["password"] else []
        kept = f"{user['user']}@" if user["user"] else ""
        plain = f"{user['start']}{kept}{plain[user.end() :]}"
    base, mark, part = plain.partition("#")
    base, question, query = base.partition("?")
    pairs = [(unquote(pair.partition("=")[0]), pair) for pair in query.split("&")]
    secret = {name: unquote(pair.partition("=")[2]) for name, pair in pairs if "=" in pair and _SECRET.fullmatch(name)}
    if secret:
        query = "&".join(pair for name, pair in pairs if name not in secret)
        question = question if query else ""
    plain = base + question + query + mark + part
    passwords += [value for name, value in secret.items() if _PASSWORD.fullmatch(name)]
    further = {name: value for name, value in secret.items() if not _PASSWORD.fullmatch(name)}
    if passwords or further:
        if plain not in _SECRETS and plain not in _FURTHER:
            _LOG.warning(
                "%r was given with a password, which others may see in the list of processes or in a shell history. Hint: use the "
                "environment or the files of its driver (PGPASSWORD, ~/.pgpass, QDRANT_API_KEY).",
                plain,
            )
        _SECRETS.update({plain: passwords[-1]} if passwords else {})
        _FURTHER.update({plain: further} if further else {})
    return plain
