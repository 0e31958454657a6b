"""Fixtures: a world to serve, an upstream of the new model, and applications in this process."""

import pytest
from starlette.testclient import TestClient

from embridge.serving.app import create_app
from embridge.serving.options import ServeOptions
from tests.serving.support import running_upstream
from tests.serving.world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def upstream():
    with running_upstream() as server:
        yield server


@pytest.fixture
def client_of(world, tmp_path):
    """``client_of(maps=..., indexes=..., ...)``: a client of an application in this process."""
    opened = []

    def make(*maps, **options):
        paths = tuple(world.path(f"{name}.safetensors") for name in maps)
        catalog = str(tmp_path / "catalog.duckdb")
        gate = create_app(ServeOptions(maps=paths, **{"catalog": catalog} | options))
        client = TestClient(gate)
        opened.append(client)
        return client.__enter__()

    yield make
    for client in opened:
        client.__exit__(None, None, None)
