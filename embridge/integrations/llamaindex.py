"""LlamaIndex: an embedding model that translates what another one gives."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from embridge.errors import MissingDependencyError, ParameterError
from embridge.integrations.spaces import PROBE, Adapter, as_map
from embridge.maps.loading import Map

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr, SerializeAsAny, field_serializer
    from llama_index.core.embeddings.loading import load_embed_model
except ImportError as e:
    raise MissingDependencyError.of("llama-index-core", "TranslatedEmbedding", "llamaindex") from e


class TranslatedEmbedding(BaseEmbedding):
    """An embedding model for a vector store that holds vectors of another model.

    By default queries are translated and documents (texts of nodes) are not: the store is searched with the new model's queries,
    and what it holds stays as it is. Nodes that are to be added to the same store must be translated as well
    (``documents=True``), or they are of another space than the rest. Where both spaces have the same width, so that the store
    could not notice, texts raise unless ``documents=True``. Translate documents by a map of their own, such as a
    rotation: those that went through the map of the queries are found too often (decision 0032).

    `to_dict` holds the path and the fingerprint of the map, so that caches of an ingestion pipeline notice another map.
    `from_dict` needs the map's path, and ``base=`` unless LlamaIndex can load the base by itself.

    Parameters
    ----------
    base : BaseEmbedding
        The embedding model of the new model.
    map : LinearMap, KernelMap, str or path-like
        A map from the space of `base` to that of the store, or the path of one. An affine map from the store's space to that
        of `base` works for queries, by its adjoint.
    queries : bool, default True
        Translate queries; False returns those of `base`.
    documents : bool, default False
        Translate documents; False returns those of `base`.
    space : str, optional
        The name of the space of `base`, which must be one of the map's. Default: its ``model_name``, unless that is ``unknown``
        or a path. Where no name is known, the width decides, and if both ends have it, the map's source.
    **options
        Of `BaseEmbedding`. A cache (`embeddings_cache`) keeps one vector for a text, be it a query or a document, so it needs both
        translated.

    Raises
    ------
    MissingDependencyError
        llama-index-core is not installed.
    SpaceMismatchError
        The name or the width of `base` is not that of the map; one text is embedded to see the width.
    MapError
        The map ends in the space of `base`, and it has no adjoint, or documents are to be translated.
    ParameterError
        `base` is not an embedding model, nothing is to be translated, or a cache would mix spaces.

    Examples
    --------
    >>> import embridge as eb
    >>> from llama_index.core.embeddings import MockEmbedding
    >>> double = eb.LinearMap([[2, 0], [0, 2]], [0, 1], eb.Space("new", 2), eb.Space("old", 2))
    >>> TranslatedEmbedding(MockEmbedding(embed_dim=2), double).get_query_embedding("a")
    [1.0, 2.0]
    """

    base: SerializeAsAny[BaseEmbedding] = Field(description="The embedding model of the new model.")
    map: Any = Field(description="The map.")
    queries: bool = True
    documents: bool = False
    space: str | None = None
    _adapter: Adapter = PrivateAttr()
    _path: str | None = PrivateAttr(default=None)

    def __init__(
        self,
        base: BaseEmbedding | dict[str, Any],
        map: Map | str | os.PathLike[str] | dict[str, Any],  # noqa: A002
        queries: bool = True,
        documents: bool = False,
        *,
        space: str | None = None,
        **options: Any,
    ) -> None:
        base = load_embed_model(base) if isinstance(base, dict) else base
        if not isinstance(base, BaseEmbedding):
            raise ParameterError.must_be("base", "an embedding model of LlamaIndex", base)
        given = map.get("path") if isinstance(map, dict) else map  # as `to_dict` writes it
        found = as_map(given)  # pyright: ignore[reportArgumentType]
        width = len(base.get_query_embedding(PROBE))
        adapter = Adapter.of(base, width, found, space=space, queries=queries, documents=documents)
        if options.get("embeddings_cache") is not None and queries != documents:
            raise ParameterError(
                "A cache keeps one vector for a text, be it a query or a document, but only one of the two is translated. "
                "Hint: give the cache to the base, or translate both."
            )
        defaults = {
            "model_name": f"{base.model_name} in {adapter.into.name}",
            "embed_batch_size": base.embed_batch_size,
            "num_workers": base.num_workers,
        }
        fields = {"base": base, "map": found, "queries": queries, "documents": documents, "space": space}
        super().__init__(**defaults | options | fields)
        self._adapter, self._path = adapter, os.fspath(given) if isinstance(given, str | os.PathLike) else None

    @classmethod
    def class_name(cls) -> str:
        """The name in serialized components."""
        return "TranslatedEmbedding"

    @field_serializer("map")
    def _map_to_dict(self, translation: Map) -> dict[str, Any]:
        return {"path": self._path, "fingerprint": translation.fingerprint}

    def _get_query_embedding(self, query: str) -> list[float]:
        self._adapter.check_queries()
        return self._adapter.query(self.base.get_query_embedding(query))

    async def _aget_query_embedding(self, query: str) -> list[float]:
        self._adapter.check_queries()
        return self._adapter.query(await self.base.aget_query_embedding(query))

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        self._adapter.check_documents()
        return self._adapter.document_vectors(self.base.get_text_embedding_batch(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        self._adapter.check_documents()
        return await asyncio.to_thread(self._adapter.document_vectors, await self.base.aget_text_embedding_batch(texts))
