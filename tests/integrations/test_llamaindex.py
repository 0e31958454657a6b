"""LlamaIndex: a search in an index of the old model, ingestion, caches and serialization."""

import asyncio
import json
import pickle

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import SimpleVectorStore

import embridge as eb
from embridge.errors import MapError, ParameterError, SpaceMismatchError
from embridge.integrations.llamaindex import TranslatedEmbedding
from embridge.types import Space
from tests.integrations.conftest import TEXTS
from tests.integrations.support import NEW, OLD, LlamaIndexBase, kernel_between, map_between, some_vectors


def test_vectors_equal_those_of_the_map(embed, translation, map_path, offline):
    model = TranslatedEmbedding(LlamaIndexBase(function=embed), map_path, documents=True)
    expected = translation.apply(embed(TEXTS))
    np.testing.assert_allclose(model.get_text_embedding_batch(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose([model.get_text_embedding(text) for text in TEXTS], expected, atol=1e-5)
    np.testing.assert_allclose([model.get_query_embedding(text) for text in TEXTS], expected, atol=1e-5)


def test_an_index_of_the_old_model_answers_queries_of_the_new_one(embed, translation, store_rows, offline):
    texts, vectors = store_rows
    nodes = [TextNode(text=t, embedding=v.tolist()) for t, v in zip(texts, vectors, strict=True)]
    index = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=768))
    assert isinstance(index.storage_context.vector_store, SimpleVectorStore)
    model = TranslatedEmbedding(LlamaIndexBase(function=embed), translation)
    retriever = index.as_retriever(similarity_top_k=5, embed_model=model)
    expected = eb.top_k(translation.apply(embed(TEXTS)), vectors, 5)
    for i, text in enumerate(TEXTS):
        found = retriever.retrieve(text)
        assert [hit.node.get_content() for hit in found] == [texts[row] for row in expected.ids[i]]
        np.testing.assert_allclose([hit.score for hit in found], expected.scores[i], atol=1e-5)


def test_nodes_are_translated_where_documents_are(embed, translation, offline):
    model = TranslatedEmbedding(LlamaIndexBase(function=embed), translation, documents=True)
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=model)
    for text in TEXTS:
        [hit] = index.as_retriever(similarity_top_k=1).retrieve(text)
        assert hit.node.get_content() == text


def test_by_default_queries_are_translated_and_texts_are_those_of_the_base():
    base = LlamaIndexBase()
    model = TranslatedEmbedding(base, map_between())
    np.testing.assert_allclose(model.get_query_embedding("a"), map_between().apply(some_vectors(["a"]))[0], atol=1e-6)
    assert model.get_text_embedding("a") == base.get_text_embedding("a")
    assert model.get_text_embedding_batch(["a", "b"]) == base.get_text_embedding_batch(["a", "b"])


def test_texts_that_no_store_could_tell_apart_are_refused():
    model = TranslatedEmbedding(LlamaIndexBase(), map_between(NEW, Space("old", 6)))
    assert len(model.get_query_embedding("a")) == 6
    for call in (model.get_text_embedding, lambda text: model.get_text_embedding_batch([text]),
                 lambda text: asyncio.run(model.aget_text_embedding(text)),
                 lambda text: VectorStoreIndex([TextNode(text=text)], embed_model=model)):  # fmt: skip
        with pytest.raises(SpaceMismatchError, match="documents=True"):
            call("a")


def test_the_space_is_checked_at_construction():
    with pytest.raises(SpaceMismatchError, match=r"6 or 9 dimensions\. Got 7"):
        TranslatedEmbedding(MockEmbedding(embed_dim=7), map_between())
    with pytest.raises(SpaceMismatchError, match="the model of the embedder is 'other'"):
        TranslatedEmbedding(LlamaIndexBase(model_name="other"), map_between())
    assert TranslatedEmbedding(LlamaIndexBase(model_name="other"), map_between(), space="new").model_name == "other in old"
    with pytest.raises(MapError, match="documents cannot be translated"):
        TranslatedEmbedding(LlamaIndexBase(), map_between(OLD, NEW), documents=True)
    with pytest.raises(ParameterError, match="base must be an embedding model of LlamaIndex"):
        TranslatedEmbedding("local", map_between())


def test_asynchronous_calls_give_the_same():
    model = TranslatedEmbedding(LlamaIndexBase(), kernel_between(), documents=True)

    async def all_three():
        return (
            await model.aget_query_embedding("a"),
            await model.aget_text_embedding("a"),
            await model.aget_text_embedding_batch(["a", "b"]),
        )

    query, text, batch = asyncio.run(all_three())
    assert query == model.get_query_embedding("a")
    assert text == model.get_text_embedding("a")
    np.testing.assert_allclose(batch, model.get_text_embedding_batch(["a", "b"]), atol=1e-6)


def test_a_cache_that_would_mix_spaces_is_refused():
    """LlamaIndex keeps one vector for a text: after a query, a document of the same text would get the query's."""
    with pytest.raises(ParameterError, match=r"one vector for a text.*give the cache to the base"):
        TranslatedEmbedding(LlamaIndexBase(), map_between(), embeddings_cache=SimpleKVStore())
    cached = TranslatedEmbedding(LlamaIndexBase(embeddings_cache=SimpleKVStore()), map_between())
    plain = TranslatedEmbedding(LlamaIndexBase(), map_between())
    for model in (cached, TranslatedEmbedding(LlamaIndexBase(), map_between(), documents=True, embeddings_cache=SimpleKVStore())):
        assert model.get_query_embedding("a") == model.get_query_embedding("a") == plain.get_query_embedding("a")
    assert cached.get_text_embedding("a") == plain.get_text_embedding("a")


def test_an_ingestion_cache_notices_another_map():
    cache, vectors = IngestionCache(), []
    for seed in (5, 6, 5):
        model = TranslatedEmbedding(LlamaIndexBase(), map_between(seed=seed), documents=True)
        [node] = IngestionPipeline(transformations=[model], cache=cache).run(nodes=[TextNode(id_="1", text="a")])
        np.testing.assert_allclose(node.embedding, map_between(seed=seed).apply(some_vectors(["a"]))[0], atol=1e-6)
        vectors.append(node.embedding)
    assert vectors[0] == vectors[2] != vectors[1]


def test_it_is_serialized_with_the_path_of_its_map(tmp_path):
    found = map_between(target=Space("old", 9))
    found.save(tmp_path / "map.safetensors")
    model = TranslatedEmbedding(MockEmbedding(embed_dim=6), tmp_path / "map.safetensors", documents=True, embed_batch_size=7)
    values = json.loads(model.to_json())
    assert values["map"] == {"path": str(tmp_path / "map.safetensors"), "fingerprint": found.fingerprint}
    assert (values["class_name"], values["base"]["class_name"]) == ("TranslatedEmbedding", "MockEmbedding")
    again = TranslatedEmbedding.from_dict(values)  # LlamaIndex knows how to load its own MockEmbedding
    assert (again.embed_batch_size, again.documents) == (7, True)
    assert again.get_text_embedding("a") == model.get_text_embedding("a")
    values = TranslatedEmbedding(LlamaIndexBase(), found).to_dict()
    assert len(TranslatedEmbedding.from_dict(values, base=LlamaIndexBase(), map=found).get_query_embedding("a")) == 9
    with pytest.raises(ParameterError, match="map must be"):
        TranslatedEmbedding.from_dict(values, base=LlamaIndexBase())


def test_it_can_be_pickled():
    model = TranslatedEmbedding(LlamaIndexBase(), kernel_between(), documents=True)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert again.get_text_embedding("a") == model.get_text_embedding("a")
    assert again.get_query_embedding("a") == model.get_query_embedding("a")
