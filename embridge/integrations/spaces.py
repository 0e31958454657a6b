"""Which end of a map the vectors of an embedder are of, and their translation to the other end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embridge.arrays import as_vectors, check_rows
from embridge.errors import MapError, ParameterError, SpaceMismatchError
from embridge.maps.loading import Map, load_map
from embridge.maps.queries import project_queries
from embridge.types import Metric, Space

PROBE = "embridge"  # the text that is embedded once to see the width of an embedder
_NAMES = ("model_name", "model", "model_id")


def as_map(given: Map | str | os.PathLike[str]) -> Map:
    """A map, or the one at a path.

    Raises
    ------
    ParameterError, MissingFileError, UnreadableFileError
    """
    if isinstance(given, Map):
        return given
    if isinstance(given, str | os.PathLike):
        return load_map(given)
    raise ParameterError.must_be("map", "a map, or the path of one", given)


@dataclass(frozen=True, eq=False)
class Adapter:
    """Translates the vectors of an embedder.

    Attributes
    ----------
    map : LinearMap or KernelMap
    base, into : Space
        The space of the embedder, and the one that its translated vectors are of.
    queries, documents : bool
        Whether each is translated.
    """

    map: Map
    base: Space
    into: Space
    queries: bool
    documents: bool

    @classmethod
    def of(
        cls,
        embedder: object,
        width: int,
        map: Map,  # noqa: A002
        *,
        space: str | None = None,
        queries: bool = True,
        documents: bool = True,
    ) -> Adapter:
        """Find the end of the map that the embedder's vectors are of, by name where it is known, and by width.

        Parameters
        ----------
        embedder : object
            Its name is its attribute ``model_name``, ``model`` or ``model_id``, where that is a name and not a path.
        width : int
            Of its vectors.
        map : LinearMap or KernelMap
        space : str, optional
            The name of the embedder's space, where it is not the name of its model.
        queries, documents : bool

        Raises
        ------
        SpaceMismatchError
            The embedder's vectors are of neither end.
        MapError
            They are of the map's target, and documents are translated or the map has no adjoint.
        ParameterError
            Neither queries nor documents are translated.
        """
        if not queries and not documents:
            raise ParameterError("Nothing is translated (queries=False, documents=False). Hint: use the base embedder itself.")
        base = _base_space(embedder, width, map, space)
        if base is map.source:
            return cls(map, base, map.target, queries, documents)
        if documents:
            raise MapError(
                f"The map ends in {base.name!r}, the space of the embedder. Queries can be projected by the adjoint of such a map, "
                f"but documents cannot be translated. Hint: fit a map from {base.name!r} to {map.source.name!r}."
            )
        project_queries(np.empty((0, base.dim), np.float32), map, map.source)  # fails where there is no adjoint
        return cls(map, base, map.source, queries, documents)

    def check_queries(self) -> None:
        """Refuse queries that are left as they are, where they cannot be told from translated documents.

        Raises
        ------
        SpaceMismatchError
        """
        if not self.queries:
            self._check_apart("queries", "documents")

    def check_documents(self) -> None:
        """Refuse documents that are left as they are, where they cannot be told from those of the translated queries' space.

        Raises
        ------
        SpaceMismatchError
        """
        if not self.documents:
            self._check_apart("documents", "queries")

    def _check_apart(self, native: str, translated: str) -> None:
        if self.base.dim == self.into.dim:
            raise SpaceMismatchError(
                f"With {native}=False, {native} stay vectors of {self.base.name!r}, but {translated} are translated to "
                f"{self.into.name!r}. Both have {self.base.dim} dimensions, so a store could not tell them apart and would mix "
                f"them. Hint: pass {native}=True for a store of {self.into.name!r}; for a store of {self.base.name!r} use the base "
                "embedder itself."
            )

    def query(self, vector: Sequence[float]) -> list[float]:
        """A query as the store expects it."""
        return self._translated([vector], "query")[0] if self.queries else vector  # pyright: ignore[reportReturnType]

    def document_vectors(self, vectors: Sequence[Sequence[float]]) -> list[list[float]]:
        """Documents as the store expects them."""
        return self._translated(vectors, "documents") if self.documents else vectors  # pyright: ignore[reportReturnType]

    def _translated(self, vectors: Any, what: str) -> list[list[float]]:
        """Vectors of shape (n, base.dim), checked before and after their translation.

        Raises
        ------
        SpaceMismatchError, BadVectorsError
        """
        if not len(vectors):
            return []
        given = as_vectors(vectors, self.base.dim, f"The embedder's {what}")
        _checked(given, self.base, f"The embedder's {what}")
        with np.errstate(over="ignore", invalid="ignore"):  # such rows are refused below
            found = project_queries(given, self.map, self.into)
        return _checked(found, self.into, f"The translated {what}").tolist()


def _checked(vectors: np.ndarray, space: Space, where: str) -> np.ndarray:
    check_rows(vectors, range(len(vectors)), f"{where} (ids are positions)", zero_is_bad=space.metric == Metric.COSINE)
    return vectors


def _base_space(embedder: object, width: int, translation: Map, space: str | None) -> Space:
    """The end of the map that the embedder's vectors are of; where its name is unknown and both widths fit, the source."""
    source, target = translation.source, translation.target
    name = model_name(embedder) if space is None else space
    named = [end for end in (source, target) if name is None or _is_named(end.name, name)]
    if not named:
        given = f"space={space!r} was given" if space is not None else f"the model of the embedder is {name!r}"
        raise SpaceMismatchError(
            f"The map translates {source.name!r} -> {target.name!r}, but {given}. "
            "Hint: if its vectors are of one of these spaces, name it with space=."
        )
    for end in named:
        if end.dim == width:
            return end
    raise SpaceMismatchError(
        f"The map translates {source.name!r} ({source.dim}) -> {target.name!r} ({target.dim}), and the embedder "
        f"{f'of {name!r} ' if name else ''}must give vectors of {' or '.join(str(end.dim) for end in named)} dimensions. "
        f"Got {width} instead."
    )


def model_name(embedder: object) -> str | None:
    """The name of an embedder's model, if it has one: not ``unknown``, and not the path of a file or folder."""
    for attribute in _NAMES:
        name = getattr(embedder, attribute, None)
        if isinstance(name, str) and name and name != "unknown":
            return None if name.startswith(("/", ".", "~")) or os.path.exists(name) else name
    return None


def _is_named(space: str, model: str) -> bool:
    """True for equal names, whatever their case and the organization before a slash."""
    return space.rpartition("/")[2].casefold() == model.rpartition("/")[2].casefold()
