import pytest

from tests.rollout.support import make_world


@pytest.fixture(scope="session")
def world():
    return make_world()
