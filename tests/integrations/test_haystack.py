"""Haystack: pipelines over a store of the old model, and saved pipelines."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.embedders import MockDocumentEmbedder, MockTextEmbedder
from haystack.components.retrievers import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

import embridge as eb
from embridge.errors import BadVectorsError, MapError, ParameterError, SpaceMismatchError
from embridge.integrations.haystack import TranslatedDocumentEmbedder, TranslatedTextEmbedder
from tests.integrations.conftest import TEXTS
from tests.integrations.support import (
    NEW,
    OLD,
    HaystackDocuments,
    HaystackText,
    kernel_between,
    map_between,
    some_vectors,
)


def pipeline_over(store, embedder):
    found = Pipeline()
    found.add_component("embedder", embedder)
    found.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=5))
    found.connect("embedder.embedding", "retriever.query_embedding")
    return found


def test_vectors_equal_those_of_the_map(embed, translation, map_path, offline):
    expected = translation.apply(embed(TEXTS))
    query = TranslatedTextEmbedder(HaystackText(embed), map_path, space="minilm")
    np.testing.assert_allclose([query.run(text=text)["embedding"] for text in TEXTS], expected, atol=1e-5)
    assert query.run(text="a")["meta"] == {"model": "new"}
    documents = TranslatedDocumentEmbedder(HaystackDocuments(embed), map_path, space="minilm")
    found = documents.run(documents=[Document(content=text, meta={"n": 1}) for text in TEXTS])["documents"]
    np.testing.assert_allclose([d.embedding for d in found], expected, atol=1e-5)
    assert [(d.content, d.meta) for d in found] == [(text, {"n": 1}) for text in TEXTS]


def test_a_store_of_the_old_model_answers_queries_of_the_new_one(embed, translation, store_rows, offline):
    texts, vectors = store_rows
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    store.write_documents([Document(content=t, embedding=v.tolist()) for t, v in zip(texts, vectors, strict=True)])
    pipeline = pipeline_over(store, TranslatedTextEmbedder(HaystackText(embed), translation, space="minilm"))
    expected = eb.top_k(translation.apply(embed(TEXTS)), vectors, 5)
    for i, text in enumerate(TEXTS):
        found = pipeline.run({"embedder": {"text": text}})["retriever"]["documents"]
        assert [d.content for d in found] == [texts[row] for row in expected.ids[i]]
        np.testing.assert_allclose([d.score for d in found], expected.scores[i], atol=1e-5)
    writing = Pipeline()
    writing.add_component("embedder", TranslatedDocumentEmbedder(HaystackDocuments(embed), translation, space="minilm"))
    writing.add_component("writer", DocumentWriter(store))
    writing.connect("embedder.documents", "writer.documents")
    writing.run({"embedder": {"documents": [Document(content=TEXTS[0])]}})
    found = pipeline.run({"embedder": {"text": TEXTS[0]}})["retriever"]["documents"]
    assert found[0].content == TEXTS[0]
    np.testing.assert_allclose(found[0].score, 1, atol=1e-5)


def test_asynchronous_runs_give_the_same():
    query, rows = TranslatedTextEmbedder(HaystackText(), kernel_between()), [Document(content="a"), Document(content="b")]
    assert asyncio.run(query.run_async(text="a")) == query.run(text="a")
    documents = TranslatedDocumentEmbedder(HaystackDocuments(), kernel_between())
    assert asyncio.run(documents.run_async(documents=rows)) == documents.run(documents=rows)
    native = TranslatedTextEmbedder(MockTextEmbedder(dimension=6, model="new"), map_between())  # with a run_async of its own
    assert asyncio.run(native.run_async(text="a")) == native.run(text="a")


def test_documents_given_are_not_changed_and_those_without_an_embedding_stay_so():
    class Sparing(HaystackDocuments):
        def run(self, documents):
            found = super().run(documents)["documents"]
            return {"documents": [replace(d, embedding=None) if d.content == "a" else d for d in found]}

    given = [Document(content="a"), Document(content="b")]
    found = TranslatedDocumentEmbedder(Sparing(), map_between()).run(documents=given)["documents"]
    assert found[0].embedding is None
    np.testing.assert_allclose(found[1].embedding, map_between().apply(some_vectors(["b"]))[0], atol=1e-6)
    assert [d.embedding for d in given] == [None, None]
    mock = MockDocumentEmbedder(dimension=6, model="new")
    assert TranslatedDocumentEmbedder(mock, map_between()).run(documents=[]) == mock.run(documents=[])


def test_the_space_is_checked_at_construction():
    for embedder, base in ((TranslatedTextEmbedder, MockTextEmbedder), (TranslatedDocumentEmbedder, MockDocumentEmbedder)):
        with pytest.raises(SpaceMismatchError, match=r"6 dimensions\. Got 7"):
            embedder(base(dimension=7, model="new"), map_between())
        with pytest.raises(SpaceMismatchError, match="the model of the embedder is 'mock-model'"):
            embedder(base(dimension=6), map_between())
        assert embedder(base(dimension=6), map_between(), space="new")
        with pytest.raises(ParameterError, match="base must be an embedder of Haystack"):
            embedder("text-embedding-3-small", map_between())


def test_a_map_from_the_store_to_the_base_is_for_queries_only():
    forward = map_between(OLD, NEW)
    found = TranslatedTextEmbedder(HaystackText(), forward).run(text="a")["embedding"]
    np.testing.assert_allclose(found, forward.project_queries(some_vectors(["a"]))[0], atol=1e-6)
    with pytest.raises(MapError, match="documents cannot be translated"):
        TranslatedDocumentEmbedder(HaystackDocuments(), forward)


def test_vectors_that_cannot_be_used_are_refused():
    embedder = TranslatedTextEmbedder(base := HaystackText(), map_between())
    base.function = lambda texts: np.zeros((len(texts), 6))
    with pytest.raises(BadVectorsError, match="zero vector"):
        embedder.run(text="a")


def test_a_pipeline_is_saved_with_the_path_of_the_map(tmp_path):
    map_between().save(tmp_path / "map.safetensors")
    store = InMemoryDocumentStore()
    embedder = TranslatedTextEmbedder(MockTextEmbedder(dimension=6, model="m"), tmp_path / "map.safetensors", space="new")
    text = pipeline_over(store, embedder).dumps()
    again = Pipeline.loads(text, allowed_modules=["embridge.*"]).get_component("embedder")
    assert again.run(text="a") == embedder.run(text="a")
    documents = TranslatedDocumentEmbedder(MockDocumentEmbedder(dimension=6, model="new"), tmp_path / "map.safetensors")
    values = documents.to_dict()
    assert values["init_parameters"]["map"] == str(tmp_path / "map.safetensors")
    restored = TranslatedDocumentEmbedder.from_dict(values)
    assert restored.run(documents=[Document(content="a")]) == documents.run(documents=[Document(content="a")])
    with pytest.raises(ParameterError, match="save the map, and pass its path"):
        TranslatedTextEmbedder(HaystackText(), map_between()).to_dict()
