"""Fixtures for the tests of the command line."""

import pytest


@pytest.fixture(autouse=True)
def _no_catalog_from_outside(monkeypatch):
    monkeypatch.delenv("EMBRIDGE_CATALOG", raising=False)
