"""Embedders of each framework around one function, and maps between small spaces."""

from typing import Any

import numpy as np
from haystack import Document, component, default_to_dict
from langchain_core.embeddings import Embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field

import embridge as eb
from embridge.types import Space

NEW, OLD = Space("new", 6, normalized=True), Space("old", 9, normalized=True)


def some_vectors(texts, dim=6):
    """A vector of unit length for each text, other ones for other texts."""
    found = np.array([np.random.default_rng(list(text.encode())).normal(size=dim) for text in texts], np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def map_between(source=NEW, target=OLD, seed=5):
    rng = np.random.default_rng(seed)
    return eb.LinearMap(rng.normal(size=(target.dim, source.dim)), rng.normal(size=target.dim), source, target)


def kernel_between(source=NEW, target=OLD):
    rng = np.random.default_rng(7)
    landmarks, weights = rng.normal(size=(20, source.dim)), rng.normal(size=(20, target.dim))
    return eb.KernelMap(map_between(source, target), landmarks, weights, 0.5)


class LangChainBase(Embeddings):
    """What `function` gives; asynchronous calls are counted."""

    def __init__(self, function=some_vectors, model=None):
        self.function, self.awaited = function, 0
        if model is not None:
            self.model = model

    def embed_query(self, text):
        return self.embed_documents([text])[0]

    def embed_documents(self, texts):
        return np.asarray(self.function(texts)).tolist() if texts else []

    async def aembed_query(self, text):
        self.awaited += 1
        return self.embed_query(text)

    async def aembed_documents(self, texts):
        self.awaited += 1
        return self.embed_documents(texts)


class LlamaIndexBase(BaseEmbedding):
    function: Any = Field(default=some_vectors, exclude=True)

    @classmethod
    def class_name(cls):
        return "LlamaIndexBase"

    def _get_text_embeddings(self, texts):
        return np.asarray(self.function(texts)).tolist()

    def _get_text_embedding(self, text):
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query):
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)


@component
class HaystackText:
    def __init__(self, function=some_vectors, model="new"):
        self.function, self.model, self.warm = function, model, False

    def warm_up(self):
        self.warm = True

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str):
        assert self.warm
        return {"embedding": np.asarray(self.function([text]))[0].tolist(), "meta": {"model": self.model}}

    def to_dict(self):
        return default_to_dict(self, model=self.model)


@component
class HaystackDocuments:
    def __init__(self, function=some_vectors, model="new"):
        self.function, self.model = function, model

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]):
        found = np.asarray(self.function([d.content or "" for d in documents])).tolist()
        return {"documents": [Document(id=d.id, content=d.content, meta=d.meta, embedding=v)
                              for d, v in zip(documents, found, strict=True)]}  # fmt: skip

    def to_dict(self):
        return default_to_dict(self, model=self.model)
