"""Records of files that runs read and wrote, and of the content of a collection."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from embridge.files import fingerprint
from embridge.records.rows import Row
from embridge.types import Space


class _Rows(Protocol):
    """What a collection and an index have in common."""

    @property
    def path(self) -> object: ...
    @property
    def space(self) -> Space: ...
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...


class _Collection(_Rows, Protocol):
    kind: ClassVar[str]


class _Map(Protocol):
    @property
    def source(self) -> Space: ...
    @property
    def target(self) -> Space: ...
    @property
    def fingerprint(self) -> Any: ...  # a cached property: no str to type checkers


class _Decoder(Protocol):
    @property
    def path(self) -> object: ...
    @property
    def space(self) -> Space: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Artifact:
    """A file that a run read or wrote.

    Attributes
    ----------
    role : str
        Its role: ``source``, ``target``, ``queries``, ``map``, ``output`` ...
    path, fingerprint : str
        Its path and content hash.
    kind : str
        ``parquet``, ``faiss``, ``map``, ``decoder``, ``texts``, ``table`` or ``report``.
    rows : int, optional
        Of a collection.
    space, source_space : Space, optional
        The space of its vectors; for a map, the spaces of its output and input.
    """

    role: str
    path: str
    fingerprint: str
    kind: str
    rows: int | None = None
    space: Space | None = None
    source_space: Space | None = None

    @classmethod
    def of_collection(cls, role: str, collection: _Collection) -> Artifact:
        """An open collection."""
        rows = len(collection)
        return cls(role, str(collection.path), collection.fingerprint(), collection.kind, rows, collection.space)

    @classmethod
    def of_index(cls, role: str, index: _Rows) -> Artifact:
        """An open FAISS index."""
        return cls(role, str(index.path), index.fingerprint(), "faiss", len(index), index.space)

    @classmethod
    def of_map(cls, role: str, path: str | os.PathLike[str], translation: _Map) -> Artifact:
        """A map that was loaded from `path` or saved there."""
        spaces = translation.target, translation.source
        return cls(role, os.fspath(path), translation.fingerprint, "map", None, *spaces)

    @classmethod
    def of_decoder(cls, role: str, decoder: _Decoder) -> Artifact:
        """An open decoder."""
        return cls(role, str(decoder.path), decoder.fingerprint, "decoder", None, decoder.space)

    @classmethod
    def of_file(cls, role: str, path: str | os.PathLike[str], kind: str = "table") -> Artifact:
        """Any other file; a remote file has no fingerprint."""
        name = os.fspath(path)
        return cls(role, name, fingerprint(name) if os.path.isfile(name) else "", kind)

    def to_rows(self, direction: str) -> Iterator[Row]:
        """Rows of the catalog's tables; `direction` is ``in`` or ``out``."""
        path = absolute(self.path)
        facts = {"kind": self.kind, "path": path, "fingerprint": self.fingerprint}
        yield "artifact", {"direction": direction, "role": self.role} | facts
        if self.space is None:
            return
        name, dim = self.space.name, self.space.dim
        yield "space", {"name": name, "dim": dim, "metric": str(self.space.metric), "normalized": self.space.normalized}
        if self.rows is not None:
            yield "collection", facts | {"rows": self.rows, "space": name, "dim": dim}


def absolute(path: str) -> str:
    """The path as stored in the catalog: absolute, or an unchanged URL."""
    return path if "://" in path else os.path.abspath(path)


@dataclass(frozen=True)
class Summary:
    """The content of a collection.

    Attributes
    ----------
    rows : int
    space : Space
    norm : dict
        ``mean``, ``std`` (over n), ``min`` and ``max`` of the vectors' lengths; NaN where no row has one.
    duplicate_ids : int
        Ids that occur more than once.
    bad_rows : int
    mean_cosine : float
        Of pairs of different rows; near zero where directions are used evenly, NaN below two rows.
    effective_rank : float
        Effective rank (see `Isotropy`); NaN where rows do not differ.
    """

    rows: int
    space: Space
    norm: dict[str, float]
    duplicate_ids: int
    bad_rows: int
    mean_cosine: float
    effective_rank: float
