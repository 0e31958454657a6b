"""Tables of PostgreSQL that embridge did not make, for the tests of pgvector; those need psycopg."""

import pytest


@pytest.fixture
def server(postgres):
    """A connection to the server, which knows vectors."""
    from embridge.stores.pgvector.collection import connect
    from embridge.stores.uri import Location

    with connect(Location.parse(f"{postgres}&table=none")) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        yield connection


@pytest.fixture
def foreign(server, postgres):
    from tests.stores.foreign_table import Foreign

    return Foreign(server, postgres)


@pytest.fixture
def make(server, postgres):
    """``make(columns, empty)`` gives another table."""
    from tests.stores.foreign_table import Foreign

    return lambda columns, empty=0: Foreign(server, postgres, columns, empty)
