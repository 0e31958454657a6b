"""LangChain: its published standard tests, a search in its own store, and the asymmetric default."""

import asyncio
import pickle

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

import embridge as eb
from embridge.errors import BadVectorsError, MapError, ParameterError, SpaceMismatchError
from embridge.integrations.langchain import TranslatedEmbeddings
from embridge.types import Space
from tests.integrations.conftest import TEXTS
from tests.integrations.support import NEW, OLD, LangChainBase, kernel_between, map_between, some_vectors

# The published tests of LangChain, with the defaults and with documents translated


class TestUnit(EmbeddingsUnitTests):
    embeddings_class = TranslatedEmbeddings

    @property
    def embedding_model_params(self):
        return {"base": LangChainBase(), "map": map_between()}


class TestIntegration(EmbeddingsIntegrationTests):
    embeddings_class = TranslatedEmbeddings

    @property
    def embedding_model_params(self):
        return {"base": LangChainBase(), "map": map_between()}


class TestIntegrationWithDocuments(EmbeddingsIntegrationTests):
    embeddings_class = TranslatedEmbeddings

    @property
    def embedding_model_params(self):
        return {"base": LangChainBase(), "map": kernel_between(), "documents": True}


# A real encoder


def test_vectors_equal_those_of_the_map(embed, translation, map_path, offline):
    embeddings = TranslatedEmbeddings(LangChainBase(embed), map_path, documents=True)
    expected = translation.apply(embed(TEXTS))
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose([embeddings.embed_query(text) for text in TEXTS], expected, atol=1e-5)


def test_a_store_of_the_old_model_answers_queries_of_the_new_one(embed, translation, store_rows, offline):
    texts, vectors = store_rows
    old = dict(zip(texts, vectors, strict=True))
    store = InMemoryVectorStore(LangChainBase(lambda given: [old[text] for text in given]))
    store.add_documents([Document(text) for text in texts])
    new = LangChainBase(embed)
    store.embedding = TranslatedEmbeddings(new, translation)
    queries = translation.apply(embed(TEXTS))
    expected = eb.top_k(queries, vectors, 5)
    for i, text in enumerate(TEXTS):
        found = store.similarity_search_with_score(text, k=5)
        assert [document.page_content for document, _ in found] == [texts[row] for row in expected.ids[i]]
        np.testing.assert_allclose([score for _, score in found], expected.scores[i], atol=1e-5)
    store.embedding = TranslatedEmbeddings(new, translation, documents=True)
    store.add_documents([Document("a bridge over a river")])
    assert store.similarity_search(TEXTS[0], k=1)[0].page_content == TEXTS[0]


# The asymmetric default


def test_by_default_queries_are_translated_and_documents_are_those_of_the_base():
    base = LangChainBase()
    embeddings = TranslatedEmbeddings(base, map_between())
    np.testing.assert_allclose(embeddings.embed_query("a"), map_between().apply(some_vectors(["a"]))[0], atol=1e-6)
    assert embeddings.embed_documents(["a", "b"]) == base.embed_documents(["a", "b"])


def test_documents_that_no_store_could_tell_apart_are_refused():
    narrow = map_between(NEW, Space("old", 6))
    embeddings = TranslatedEmbeddings(LangChainBase(), narrow)
    assert len(embeddings.embed_query("a")) == 6
    with pytest.raises(SpaceMismatchError, match=r"'new', but queries are translated to 'old'\. Both have 6.*documents=True"):
        embeddings.embed_documents(["a"])
    with pytest.raises(SpaceMismatchError, match="documents=True"):
        InMemoryVectorStore(embeddings).add_texts(["a"])
    with pytest.raises(SpaceMismatchError, match="documents=True"):
        asyncio.run(embeddings.aembed_documents(["a"]))
    both = TranslatedEmbeddings(LangChainBase(), narrow, documents=True)
    np.testing.assert_allclose(both.embed_documents(["a"]), narrow.apply(some_vectors(["a"])), atol=1e-6)


def test_queries_that_are_left_alone_beside_translated_documents():
    base = LangChainBase()
    embeddings = TranslatedEmbeddings(base, map_between(), queries=False, documents=True)
    assert embeddings.embed_query("a") == base.embed_query("a")
    np.testing.assert_allclose(embeddings.embed_documents(["a"]), map_between().apply(some_vectors(["a"])), atol=1e-6)
    narrow = TranslatedEmbeddings(base, map_between(NEW, Space("old", 6)), queries=False, documents=True)
    with pytest.raises(SpaceMismatchError, match="queries=True"):
        narrow.embed_query("a")
    with pytest.raises(SpaceMismatchError, match="queries=True"):
        asyncio.run(narrow.aembed_query("a"))


def test_nothing_to_translate_is_refused():
    with pytest.raises(ParameterError, match="Nothing is translated"):
        TranslatedEmbeddings(LangChainBase(), map_between(), queries=False)


# Maps in either direction


def test_a_map_from_the_store_to_the_base_projects_queries_by_its_adjoint():
    forward = map_between(OLD, NEW)
    embeddings = TranslatedEmbeddings(LangChainBase(), forward)
    np.testing.assert_allclose(embeddings.embed_query("a"), forward.project_queries(some_vectors(["a"]))[0], atol=1e-6)
    with pytest.raises(MapError, match=r"documents cannot be translated\. Hint: fit a map from 'new' to 'old'"):
        TranslatedEmbeddings(LangChainBase(), forward, documents=True)
    with pytest.raises(MapError, match="not affine"):
        TranslatedEmbeddings(LangChainBase(), kernel_between(OLD, NEW))


# The space is checked at construction


def test_a_base_of_another_width_is_refused():
    with pytest.raises(SpaceMismatchError, match=r"'new' \(6\) -> 'old' \(9\), and .* 6 or 9 dimensions\. Got 7"):
        TranslatedEmbeddings(LangChainBase(lambda texts: some_vectors(texts, 7)), map_between())
    with pytest.raises(SpaceMismatchError, match=r"6 dimensions\. Got 9"):
        TranslatedEmbeddings(LangChainBase(lambda texts: some_vectors(texts, 9), "new"), map_between())


@pytest.mark.parametrize("name", ["new", "New", "org/new", "/models/other", "./other", "unknown", ""])
def test_a_base_of_the_right_or_of_no_name(name):
    assert len(TranslatedEmbeddings(LangChainBase(model=name), map_between()).embed_query("a")) == 9


def test_a_base_of_another_name_is_refused_unless_its_space_is_named():
    base = LangChainBase(model="text-embedding-x")
    with pytest.raises(SpaceMismatchError, match=r"'new' -> 'old', but the model of the embedder is 'text-embedding-x'.*space="):
        TranslatedEmbeddings(base, map_between())
    assert len(TranslatedEmbeddings(base, map_between(), space="new").embed_query("a")) == 9
    with pytest.raises(SpaceMismatchError, match="but space='third' was given"):
        TranslatedEmbeddings(base, map_between(), space="third")


def test_of_equal_widths_the_name_decides():
    narrow = map_between(Space("new", 6), Space("old", 6))
    queries = some_vectors(["a"])
    for named, expected in (
        ({"base": LangChainBase()}, narrow.apply(queries)),
        ({"base": LangChainBase(model="old")}, narrow.project_queries(queries)),
        ({"base": LangChainBase(), "space": "old"}, narrow.project_queries(queries)),
    ):
        np.testing.assert_allclose(TranslatedEmbeddings(**named, map=narrow).embed_query("a"), expected[0], atol=1e-6)


def test_what_is_no_base_or_map_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="base must be embeddings of LangChain"):
        TranslatedEmbeddings("text-embedding-3-small", map_between())
    with pytest.raises(ParameterError, match="map must be a map, or the path of one"):
        TranslatedEmbeddings(LangChainBase(), None)
    with pytest.raises(eb.EmbridgeError, match="no file"):
        TranslatedEmbeddings(LangChainBase(), tmp_path / "missing.safetensors")


# Values


@pytest.mark.parametrize(
    ("later", "error", "message"),
    [
        (np.full(6, np.nan), BadVectorsError, "NaN or infinite"),
        (np.zeros(6), BadVectorsError, "zero vector"),
        (np.ones(5), SpaceMismatchError, "expects 6-dimensional vectors. Got 5"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused(later, error, message):
    embeddings = TranslatedEmbeddings(base := LangChainBase(), map_between(), documents=True)
    base.function = lambda texts: [later for _ in texts]
    with pytest.raises(error, match=message):
        embeddings.embed_query("a")
    with pytest.raises(error, match=message):
        embeddings.embed_documents(["a", "b"])


def test_no_texts_give_no_vectors():
    assert TranslatedEmbeddings(LangChainBase(), map_between(), documents=True).embed_documents([]) == []


def test_asynchronous_calls_use_those_of_the_base():
    embeddings = TranslatedEmbeddings(base := LangChainBase(), map_between(), documents=True)

    async def both():
        return await embeddings.aembed_query("a"), await embeddings.aembed_documents(["a", "b"])

    query, documents = asyncio.run(both())
    assert (query, documents) == (embeddings.embed_query("a"), embeddings.embed_documents(["a", "b"]))
    assert base.awaited == 2


def test_it_can_be_pickled():
    embeddings = TranslatedEmbeddings(LangChainBase(), kernel_between(), documents=True)
    again = pickle.loads(pickle.dumps(embeddings))  # noqa: S301
    assert again.embed_documents(["a"]) == embeddings.embed_documents(["a"])
