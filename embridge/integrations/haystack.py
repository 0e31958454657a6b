"""Haystack: a text embedder and a document embedder that translate what others give."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

from embridge.errors import MissingDependencyError, ParameterError
from embridge.integrations.spaces import PROBE, Adapter, as_map
from embridge.maps.loading import Map

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.core.serialization import component_to_dict
    from haystack.utils.deserialization import deserialize_component_inplace
except ImportError as e:
    raise MissingDependencyError.of("haystack-ai", "The Haystack components", "haystack") from e


@component
class TranslatedTextEmbedder:
    """A text embedder for a document store that holds vectors of another model: queries are embedded and translated.

    Parameters
    ----------
    base : component
        The text embedder of the new model.
    map : LinearMap, KernelMap, str or path-like
        A map from the space of `base` to that of the store, or the path of one, which a pipeline needs to be saved. An affine map
        from the store's space to that of `base` works by its adjoint.
    space : str, optional
        The name of the space of `base`, which must be one of the map's. Default: the name of its model (attribute ``model_name``,
        ``model`` or ``model_id``), if it has one. Where no name is known, the width decides, and if both ends have it, the
        map's source.

    Raises
    ------
    MissingDependencyError
        haystack-ai is not installed.
    SpaceMismatchError
        The name or the width of `base` is not that of the map; `base` is warmed up and embeds one text to see the width.
    MapError
        The map ends in the space of `base` and has no adjoint.

    Examples
    --------
    >>> import embridge as eb
    >>> from haystack.components.embedders import MockTextEmbedder
    >>> double = eb.LinearMap([[2, 0], [0, 2]], [0, 1], eb.Space("new", 2), eb.Space("old", 2))
    >>> base = MockTextEmbedder([0.5, 0.5], model="new")
    >>> TranslatedTextEmbedder(base, double).run(text="a")["embedding"]
    [1.0, 2.0]
    """

    def __init__(
        self,
        base: Any,
        map: Map | str | os.PathLike[str],  # noqa: A002
        *,
        space: str | None = None,
    ) -> None:
        self.base, self.map, self.space = base, map, space
        self.warm_up()
        width = len(base.run(text=PROBE)["embedding"])
        self._adapter = Adapter.of(base, width, as_map(map), space=space, documents=False)

    def warm_up(self) -> None:
        """Load the model of `base`."""
        _warm_up(self.base)

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a text and translate it.

        Returns
        -------
        dict
            ``embedding``, and ``meta`` as `base` gives it.

        Raises
        ------
        SpaceMismatchError
            `base` gave another width than before.
        BadVectorsError
            `base` gave NaN or infinite values, or a zero vector under cosine.
        """
        return self._translated(self.base.run(text=text))

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """As `run`, with the asynchronous method of `base` if it has one, else in a thread."""
        return self._translated(await _run_async(self.base, text=text))

    def _translated(self, found: dict[str, Any]) -> dict[str, Any]:
        return {"embedding": self._adapter.query(found["embedding"]), "meta": found.get("meta", {})}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the path of the map."""
        return _to_dict(self, self.base, self.map, self.space)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TranslatedTextEmbedder:
        """The inverse of `to_dict`."""
        return _from_dict(cls, data)


@component
class TranslatedDocumentEmbedder:
    """A document embedder for a document store that holds vectors of another model: documents are embedded and translated.

    Documents that are added to such a store must be translated, or they are of another space than the rest. For a store of the new
    model's vectors use `base` itself.

    Parameters
    ----------
    base : component
        The document embedder of the new model.
    map : LinearMap, KernelMap, str or path-like
        A map from the space of `base` to that of the store, or the path of one, which a pipeline needs to be saved. Not that of the
        queries, but for example a rotation: documents that went through the map of the queries are found too often (decision 0032).
    space : str, optional
        As in `TranslatedTextEmbedder`.

    Raises
    ------
    MissingDependencyError, SpaceMismatchError
        As `TranslatedTextEmbedder`.
    MapError
        The map ends in the space of `base`.
    """

    def __init__(
        self,
        base: Any,
        map: Map | str | os.PathLike[str],  # noqa: A002
        *,
        space: str | None = None,
    ) -> None:
        self.base, self.map, self.space = base, map, space
        self.warm_up()
        [probe] = base.run(documents=[Document(content=PROBE)])["documents"]
        self._adapter = Adapter.of(base, len(probe.embedding or []), as_map(map), space=space)

    def warm_up(self) -> None:
        """Load the model of `base`."""
        _warm_up(self.base)

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents and translate their embeddings; a document that `base` gave no embedding stays without one.

        Returns
        -------
        dict
            ``documents``, which are copies, and ``meta`` as `base` gives it.

        Raises
        ------
        SpaceMismatchError, BadVectorsError
            As `TranslatedTextEmbedder.run`.
        """
        return self._translated(self.base.run(documents=documents))

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As `run`, with the asynchronous method of `base` if it has one, else in a thread."""
        return await asyncio.to_thread(self._translated, await _run_async(self.base, documents=documents))

    def _translated(self, found: dict[str, Any]) -> dict[str, Any]:
        documents = found["documents"]
        vectors = iter(self._adapter.document_vectors([d.embedding for d in documents if d.embedding is not None]))
        translated = [d if d.embedding is None else replace(d, embedding=next(vectors)) for d in documents]
        return {"documents": translated, "meta": found.get("meta", {})}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the path of the map."""
        return _to_dict(self, self.base, self.map, self.space)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TranslatedDocumentEmbedder:
        """The inverse of `to_dict`."""
        return _from_dict(cls, data)


def _warm_up(base: Any) -> None:
    if not callable(getattr(base, "run", None)):
        raise ParameterError.must_be("base", "an embedder of Haystack", base)
    if hasattr(base, "warm_up"):
        base.warm_up()


async def _run_async(base: Any, **given: Any) -> dict[str, Any]:
    return await (base.run_async(**given) if hasattr(base, "run_async") else asyncio.to_thread(base.run, **given))


def _to_dict(itself: Any, base: Any, given: Map | str | os.PathLike[str], space: str | None) -> dict[str, Any]:
    if not isinstance(given, str | os.PathLike):
        raise ParameterError("A component with a map in memory cannot be saved. Hint: save the map, and pass its path as map=.")
    return default_to_dict(itself, base=component_to_dict(base, "base"), map=os.fspath(given), space=space)


def _from_dict(cls: Any, data: dict[str, Any]) -> Any:
    data = data | {"init_parameters": dict(data["init_parameters"])}
    deserialize_component_inplace(data["init_parameters"], key="base")
    return default_from_dict(cls, data)
