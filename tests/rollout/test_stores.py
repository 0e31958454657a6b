"""A rollout whose rows are in a store: figures, hits and steps are those of the same rollout on Parquet."""

import json
import multiprocessing
import signal
from pathlib import Path

import numpy as np
import pytest

import embridge as eb
from tests.rollout.support import ROWS, read_ids
from tests.stores.support import memory_folder

FIGURES = ("keep_old", "now", "new_queries", "new_space", "new_model", "forecast", "weight", "hubness", "history")


@pytest.fixture
def place(request):
    """``place(kind)``: the URI of a collection that does not exist."""
    with memory_folder() as folder:
        yield lambda kind: request.getfixturevalue("new_table")() if kind == "postgresql" else f"lancedb://{folder}#a"


def link(rollout):
    state = json.loads((Path(rollout.path) / "state.json").read_text())
    return json.loads((Path(rollout.path) / state["folder"] / "collection.json").read_text())["uri"]


@pytest.mark.parametrize("kind", ["postgresql", "lancedb"])
def test_three_stages_have_the_figures_of_a_rollout_on_parquet(world, place, tmp_path, kind):
    pytest.importorskip({"postgresql": "psycopg"}.get(kind, kind))
    order = np.argsort(world.ids.tolist())
    old = eb.MemoryCollection(world.ids[order], world.x[order], world.old.space, {"text": [f"row {i}" for i in world.ids[order]]})
    eb.copy(old, tmp_path / "old.parquet")
    eb.copy(old, uri := place(kind))
    sample = world.new(np.arange(200))
    rollouts = [
        eb.Rollout.start(eb.open(source), sample, tmp_path / name, queries=world.queries, qrels=world.qrels)
        for source, name in ((uri, "in-store"), (tmp_path / "old.parquet", "in-file"))
    ]
    places = [link(rollouts[0])]
    for stage in range(3):
        found = [rollout.status().to_dict() for rollout in rollouts]
        assert found[0] == found[1]
        sides = [(rollout.collection.read(), rollout.collection.old_side.read()) for rollout in rollouts]
        for (ids, _), (others, kept) in sides:
            assert ids.tolist() == others.tolist() == old.read()[0].tolist()
            np.testing.assert_array_equal(kept, old.read()[1])
        np.testing.assert_array_equal(sides[0][0][1], sides[1][0][1])
        asked = [eb.MemoryCollection(side.read()[0][:30], side.read()[1][:30], side.space) for side in world.query_sides]
        for options in ({"old_queries": asked[0]}, {}):
            hits, truth = (rollout.search(asked[1], 5, **options)[1] for rollout in rollouts)
            assert (hits.ids == truth.ids).mean() > 0.99
        if stage == 2:
            break
        for rollout in rollouts:
            rollout.next(150, tmp_path / "ids.parquet", overwrite=True)
            rollout.add(world.new(world.places(read_ids(tmp_path / "ids.parquet"))))
        places.append(link(rollouts[0]))
    assert len(set(places)) == 3
    for gone in places[:2]:
        with pytest.raises(eb.EmbridgeError):
            eb.open(gone)
    done = rollouts[0].finish(out := place(kind).replace("#a", "#b"), accept_loss=True)
    made = eb.open(out)
    assert (done.rows, len(made), made.payload_schema.names) == (ROWS, ROWS, ["text", "provenance"])
    np.testing.assert_array_equal(made.read()[1], rollouts[1].collection.read()[1])
    rollouts[0].finish(tmp_path / "out.parquet", accept_loss=True)
    np.testing.assert_array_equal(eb.open(tmp_path / "out.parquet").read()[1], made.read()[1])


# All steps to the last row, each skipped where it is done already; before its `dies`-th statement that makes, fills, finishes or
# removes a table the process kills itself.
JOURNEY = """
import os, signal
import numpy as np
import embridge as eb
from embridge.stores.pgvector import PgStore, PgWriter
from tests.rollout.support import make_world, read_ids
changes = 0
def counted(owner, name):
    known = getattr(owner, name)
    def run(*arguments):
        global changes
        changes += 1
        if changes == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return known(*arguments)
    setattr(owner, name, run)
for owner, name in ((PgWriter, "create"), (PgWriter, "write"), (PgWriter, "finish"), (PgStore, "index_like"), (PgStore, "drop")):
    counted(owner, name)
world = make_world()
os.chdir(folder)
if not os.path.exists("rollout"):
    eb.Rollout.start(eb.open(uri), world.new(np.arange(200)), "rollout", queries=world.queries, qrels=world.qrels)
rollout = eb.Rollout("rollout")
while (status := rollout.status()).translated:
    if not os.path.exists(ids := f"ids-{status.stage}.parquet"):
        rollout.next(400, ids)
    rollout.add(world.new(world.places(read_ids(ids))))
open("changes", "w").write(str(changes))
"""
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["embridge.rollout", "embridge.stores.pgvector", "tests.rollout.support"])


def run(folder, uri, dies=0):
    process = PROCESSES.Process(target=exec, args=(JOURNEY, {"folder": str(folder), "uri": uri, "dies": dies}))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.slow
@pytest.mark.pgvector
def test_killed_at_every_statement_it_ends_with_the_same_rows_and_leaves_no_table(world, new_table, tmp_path):
    psycopg = pytest.importorskip("psycopg")
    eb.copy(world.old, uri := new_table())
    base, _, table = uri.partition("&table=")
    (tmp_path / "once").mkdir()
    assert run(tmp_path / "once", uri) == 0
    expected = eb.Rollout(tmp_path / "once" / "rollout")
    assert int((tmp_path / "once" / "changes").read_text()) >= 9
    folder, native, dies = tmp_path / "killed", [0], 1
    folder.mkdir()
    while (code := run(folder, uri, dies)) == -signal.SIGKILL:
        native.append(0)
        if (folder / "rollout").exists():  # what is there can be read
            native[-1] = eb.Rollout(folder / "rollout").status().native
            assert len(eb.Rollout(folder / "rollout").collection) == ROWS
        dies = dies + 1 if native[-1] == native[-2] else 1
    assert code == 0
    assert native == sorted(native)
    assert min(native.count(0), native.count(200)) > 4  # kills of either step
    found = eb.Rollout(folder / "rollout")
    assert found.status().to_dict() == expected.status().to_dict()
    for one, other in zip(found.collection.read(), expected.collection.read(), strict=True):
        assert one.tolist() == other.tolist()
    with pytest.raises(eb.EmbridgeError, match="No row is left"):
        found.next(1, tmp_path / "none.parquet")  # the next step removes what a killed one left, whatever else it does
    with psycopg.connect(base) as server:
        names = server.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE %s", [f"{table}_rollout_%"]).fetchall()
    assert len(names) == 2  # one of either rollout


@pytest.mark.pgvector
def test_a_stage_has_the_indexes_of_its_source(world, new_table, tmp_path):
    psycopg = pytest.importorskip("psycopg")
    eb.copy(world.old, uri := new_table())
    base, _, table = uri.partition("&table=")
    with psycopg.connect(base, autocommit=True) as server:
        server.execute(f"CREATE INDEX ON {table} USING hnsw (vector vector_cosine_ops) WITH (m = 12)")
        rollout = world_start(world, uri, tmp_path / "rollout")
        for _ in range(2):
            made = link(rollout).partition("&table=")[2]
            rows = server.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s", [made]).fetchall()
            found = sorted(text.partition(" USING ")[2] for (text,) in rows if "hnsw" in text)
            assert found == [f"hnsw ({column} vector_cosine_ops) WITH (m='12')" for column in ("old_vector", "vector")]
            rollout.add(world.new(np.arange(200, 260)))


def world_start(world, uri, path):
    sample = world.new(np.arange(200))
    return eb.Rollout.start(eb.open(uri), sample, path, queries=world.queries, qrels=world.qrels)


@pytest.mark.pgvector
def test_rows_that_somebody_changed_are_noticed_by_the_next_step(world, new_table, tmp_path):
    psycopg = pytest.importorskip("psycopg")
    eb.copy(world.old, uri := new_table())
    rollout = world_start(world, uri, tmp_path / "rollout")
    made = link(rollout)
    base, _, table = made.partition("&table=")
    with psycopg.connect(base) as server:
        server.execute(f"UPDATE {table} SET vector = old_vector::text::vector WHERE false")
        server.execute(f"UPDATE {table} SET text = 'other' WHERE id = %s", [world.ids[5]])
    with pytest.raises(eb.EmbridgeError, match="altered"):
        rollout.add(world.new(np.arange(200, 260)))
    with psycopg.connect(base) as server:
        server.execute(f"DROP TABLE {table}")
    with pytest.raises(eb.EmbridgeError, match="There is no table"):
        rollout.search(world.query_sides[1])
    assert rollout.status().native == 200
