"""Migrations in place of tables of LanceDB that embridge did not make, interrupted between their commits."""

import numpy as np
import pytest

import embridge as eb
from embridge.errors import BadIdsError, OutputExistsError
from embridge.testing.in_place import a_map, migration_note

lancedb = pytest.importorskip("lancedb")
from lancedb.index import IvfHnswSq, IvfPq  # noqa: E402

from embridge.stores.lancedb.in_place import LanceInPlace  # noqa: E402

pytestmark = pytest.mark.lancedb
N, P = 600, 8
ROWS = np.random.default_rng(2).normal(size=(N, P)).astype(np.float32)
MAP = a_map(eb.Space("minilm", P))


@pytest.fixture
def table(tmp_path):
    """Integer ids under another name, several fragments, one row without a vector."""
    found = lancedb.connect(tmp_path).create_table("docs", [{"doc": 0, "embedding": ROWS[0], "text": "t0"}])
    for start in range(1, N, 100):
        found.add([{"doc": i, "embedding": ROWS[i], "text": f"t{i}"} for i in range(start, min(start + 100, N))])
    found.add([{"doc": N, "text": "no vector"}])
    return f"lancedb://{tmp_path}?id=doc&vector=embedding#docs", found


def column(table, name):
    table.checkout_latest()
    rows = table.search().where(f"{name} IS NOT NULL").select(["doc", name, "text"]).limit(N + 1).to_arrow().to_pylist()
    assert all(row["text"] == f"t{row['doc']}" for row in rows)
    return {row["doc"]: row[name] for row in rows}


def check(table, name, expected):
    found = column(table, name)
    assert found.keys() == set(range(N))
    np.testing.assert_allclose([found[i] for i in range(N)], expected, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [IvfPq(distance_type="cosine", num_partitions=2, num_sub_vectors=8), IvfHnswSq(distance_type="l2", num_partitions=1, m=9)],
    ids=["pq", "hnsw"],
)
def test_a_foreign_table_is_migrated_with_its_index(table, config):
    uri, rows = table
    rows.create_index("embedding", config=config)
    done = eb.migrate_in_place(uri, MAP, space="minilm")
    assert (done.rows, done.without_vector, done.space.metric) == (N, 1, config.distance_type)
    check(rows, "embedding", ROWS)
    rows.checkout_latest()
    old, new = sorted(rows.list_indices(), key=lambda index: index.columns)
    assert (new.columns, new.index_type) == (["embedding_new"], old.index_type)
    assert {key: value for key, value in new.index_details.items() if key in ("metric_type", "hnsw")} == {
        key: value for key, value in old.index_details.items() if key in ("metric_type", "hnsw")
    }
    assert (old.num_unindexed_rows, new.num_unindexed_rows) == (0, 0)
    eb.cutover(uri)
    check(rows, "embedding", MAP.apply(ROWS))
    hits = eb.open(uri).search(MAP.apply(ROWS[:4]), 3)
    assert [i in hits.row(i)[0] for i in range(4)] == [True] * 4
    rows.add([{"doc": N + 1, "embedding": MAP.apply(ROWS[:1])[0], "text": f"t{N + 1}"}])
    eb.rollback(uri)
    check(rows, "embedding", ROWS)


def test_an_interruption_between_two_commits_is_made_good(table, monkeypatch):
    """A run may be killed after LanceDB committed, before the note was kept."""
    uri, rows = table
    monkeypatch.setattr("embridge.conversion.in_place.migrate.rows_of_group", lambda *_: 200)

    def stop(self, note):
        raise KeyboardInterrupt

    def lost(act, *arguments, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LanceInPlace, "_keep", stop)
            with pytest.raises(KeyboardInterrupt):
                act(*arguments, **options)

    lost(eb.migrate_in_place, uri, MAP, space="minilm")
    assert len(column(rows, "embedding_new")) == 200
    check(rows, "embedding", ROWS)
    assert migration_note(uri).stage == "filling"
    assert eb.migrate_in_place(uri, MAP, space="minilm", resume=True).rows == N
    check(rows, "embedding_new", MAP.apply(ROWS))
    lost(eb.cutover, uri)
    assert migration_note(uri).stage == "live"
    assert eb.open(uri).space.name == "renewed"
    eb.cutover(uri)
    lost(eb.rollback, uri)
    assert eb.open(uri).space.name == "minilm"
    assert migration_note(uri).stage == "ready"
    eb.rollback(uri)
    eb.cutover(uri)
    lost(eb.drop_vector, uri, "old")
    assert migration_note(uri).stage == "finished"
    check(rows, "embedding", MAP.apply(ROWS))


def test_tables_that_cannot_be_migrated_are_refused(table):
    uri, rows = table
    with pytest.raises(OutputExistsError, match="a column 'text'"):
        eb.migrate_in_place(uri, MAP, space="minilm", into="text")
    rows.add([{"doc": 3, "embedding": ROWS[3], "text": "t3"}])
    with pytest.raises(BadIdsError, match="more than once"):
        eb.migrate_in_place(uri, MAP, space="minilm")
    assert rows.schema.names == ["doc", "embedding", "text"]
