"""LangChain: an embeddings class that translates what another one gives."""

from __future__ import annotations

import asyncio
import os

from embridge.errors import MissingDependencyError, ParameterError
from embridge.integrations.spaces import PROBE, Adapter, as_map
from embridge.maps.loading import Map

try:
    from langchain_core.embeddings import Embeddings
except ImportError as e:
    raise MissingDependencyError.of("langchain-core", "TranslatedEmbeddings", "langchain") from e


class TranslatedEmbeddings(Embeddings):
    """Embeddings of a new model for a vector store that holds vectors of another one.

    By default queries are translated and documents are not: the store is searched with the new model's queries, and what it holds
    stays as it is. Documents that are to be added to the same store must be translated as well (``documents=True``), or they are
    of another space than the rest. Where both spaces have the same width, so that the store could not notice,
    `embed_documents` raises unless ``documents=True``. Translate documents by a map of their own, such as a rotation:
    those that went through the map of the queries are found too often (decision 0032).

    Parameters
    ----------
    base : langchain_core.embeddings.Embeddings
        The embeddings of the new model.
    map : LinearMap, KernelMap, str or path-like
        A map from the space of `base` to that of the store, or the path of one. An affine map from the store's space to that
        of `base` works for queries, by its adjoint.
    queries : bool, default True
        Translate queries; False returns those of `base`.
    documents : bool, default False
        Translate documents; False returns those of `base`.
    space : str, optional
        The name of the space of `base`, which must be one of the map's. Default: the name of its model (attribute ``model_name``,
        ``model`` or ``model_id``), if it has one. Where no name is known, the width decides, and if both ends have it, the
        map's source.

    Raises
    ------
    MissingDependencyError
        langchain-core is not installed.
    SpaceMismatchError
        The name or the width of `base` is not that of the map; one text is embedded to see the width.
    MapError
        The map ends in the space of `base`, and it has no adjoint, or documents are to be translated.
    ParameterError
        `base` is not a LangChain embeddings class, or nothing is to be translated.

    Examples
    --------
    >>> import embridge as eb
    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> base = DeterministicFakeEmbedding(size=2)
    >>> swap = eb.LinearMap([[0, 1], [1, 0]], [0, 0], eb.Space("new", 2), eb.Space("old", 2))
    >>> translated = TranslatedEmbeddings(base, swap).embed_query("a")
    >>> [round(value, 5) for value in translated] == [round(value, 5) for value in base.embed_query("a")[::-1]]
    True
    """

    def __init__(
        self,
        base: Embeddings,
        map: Map | str | os.PathLike[str],  # noqa: A002
        queries: bool = True,
        documents: bool = False,
        *,
        space: str | None = None,
    ) -> None:
        if not isinstance(base, Embeddings):
            raise ParameterError.must_be("base", "embeddings of LangChain", base)
        self.base = base
        width = len(base.embed_query(PROBE))
        self._adapter = Adapter.of(base, width, as_map(map), space=space, queries=queries, documents=documents)

    def embed_query(self, text: str) -> list[float]:
        """Embed a query and translate it.

        Returns
        -------
        list of float
            Of the width of the space that queries are translated to.

        Raises
        ------
        SpaceMismatchError
            ``queries=False``, and both spaces have the same width; or `base` gave another width than before.
        BadVectorsError
            `base` gave NaN or infinite values, or a zero vector under cosine.
        """
        self._adapter.check_queries()
        return self._adapter.query(self.base.embed_query(text))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents, and translate them if ``documents=True``.

        Raises
        ------
        SpaceMismatchError, BadVectorsError
            As `embed_query`, for documents.
        """
        self._adapter.check_documents()
        return self._adapter.document_vectors(self.base.embed_documents(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, with the asynchronous method of `base`."""
        self._adapter.check_queries()
        return self._adapter.query(await self.base.aembed_query(text))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`, with the asynchronous method of `base`; vectors are translated in a thread."""
        self._adapter.check_documents()
        return await asyncio.to_thread(self._adapter.document_vectors, await self.base.aembed_documents(texts))
