"""A table of PostgreSQL that embridge did not make."""

import uuid
from urllib.parse import quote

import numpy as np
import psycopg

import embridge as eb
from embridge.testing.in_place import a_map

N, P = 60, 4
ROWS = np.random.default_rng(2).normal(size=(N, P)).astype(np.float32)
IDS = [str(uuid.UUID(int=i * 7919 % N)) for i in range(N)]
MAP = a_map(eb.Space("minilm", P, "dot"))
PLAIN = "doc text PRIMARY KEY, embedding vector(4), meta jsonb"


class Foreign:
    """A table that embridge did not make: a uuid key, other names, a jsonb payload, one row without a vector, an HNSW index."""

    def __init__(self, server, postgres, columns="doc uuid PRIMARY KEY, embedding vector(4), meta jsonb", empty=1):
        self.server, self.name = server, f'a"; drop {uuid.uuid4().hex[:8]}'
        self.quoted = psycopg.sql.Identifier(self.name).as_string(server)
        self.uri = f"{postgres}&table={quote(self.name)}&id=doc"
        server.execute(f"CREATE TABLE {self.quoted} ({columns})")
        self.insert(range(N - empty))
        for i in IDS[N - empty :]:
            server.execute(f"INSERT INTO {self.quoted} (doc, meta) VALUES (%s, %s)", [i, '{"a": 1}'])

    def insert(self, rows, ids=IDS):
        for i in rows:
            values = [ids[i], str(ROWS[i].tolist()), '{"a": 1}']
            self.server.execute(f"INSERT INTO {self.quoted} (doc, embedding, meta) VALUES (%s, %s, %s)", values)

    def index(self, what="hnsw (embedding vector_ip_ops) WITH (m = 8, ef_construction = 40)"):
        self.server.execute(f"CREATE INDEX ON {self.quoted} USING {what}")
        return self

    def sql(self, query, *values):
        return self.server.execute(query.replace("TABLE_", self.quoted), values)

    def vectors(self, column):
        """By id, of the rows that have one."""
        found = self.sql(f"SELECT doc::text, {column}::real[] FROM TABLE_ WHERE {column} IS NOT NULL").fetchall()
        return {i: np.array(vector, np.float32) for i, vector in found}

    def check(self, column, rows=ROWS[: N - 1], ids=IDS, translated=True):
        """The column holds the translations of these rows, or these rows."""
        found = self.vectors(column)
        assert found.keys() == set(ids[: len(rows)])
        expected = MAP.apply(rows) if translated else rows
        np.testing.assert_allclose([found[i] for i in ids[: len(rows)]], expected, atol=1e-5)

    def columns(self):
        query = "SELECT column_name, is_nullable FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position"
        return dict(self.server.execute(query, [self.name]).fetchall())
