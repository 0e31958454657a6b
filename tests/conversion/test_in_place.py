"""Migrations in place on the command line, killed at every step, and recorded."""

import json
import signal
import subprocess

import numpy as np
import pytest

import embridge as eb
from embridge.testing.in_place import a_map, migration_note
from tests.support import run, run_json

psycopg = pytest.importorskip("psycopg")
from embridge.stores.pgvector.collection import connect  # noqa: E402
from embridge.stores.uri import Location  # noqa: E402

pytestmark = pytest.mark.pgvector
N, P = 200, 6
X = np.random.default_rng(0).normal(size=(N, P)).astype(np.float32)
IDS = [f"d{i:03}" for i in range(N)]
MAP = a_map(eb.Space("old", P))


@pytest.fixture
def table(new_table):
    """A table with vectors and an index, and a connection to it."""
    uri = new_table()
    eb.copy(eb.MemoryCollection(IDS, X, MAP.source, {"n": range(N)}), uri)
    with connect(Location.parse(uri)) as server:
        name = Location.parse(uri).options["table"]
        server.execute(f"CREATE INDEX ON {name} USING hnsw (vector vector_cosine_ops) WITH (m = 8)")
        yield uri, name, server


def column(server, name, which):
    found = server.execute(f"SELECT id, {which}::real[] FROM {name} WHERE {which} IS NOT NULL").fetchall()
    return {i: np.array(vector, np.float32) for i, vector in found}


def check(server, name, which, expected):
    found = column(server, name, which)
    assert found.keys() == set(IDS)
    np.testing.assert_allclose([found[i] for i in IDS], expected, atol=1e-5)


KILLED = """
import os, signal, sys
import embridge as eb
from embridge.conversion.in_place import migrate
from embridge.stores.pgvector import in_place

step, calls, late, uri, path = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "late", sys.argv[4], sys.argv[5]
migrate.rows_of_group = lambda *_: 40
plain, count = getattr(in_place.PgInPlace, step), [0]

def stop(self, *arguments, **options):
    count[0] += 1
    if count[0] == calls and not late:
        os.kill(os.getpid(), signal.SIGKILL)
    found = plain(self, *arguments, **options)
    if count[0] == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return found

setattr(in_place.PgInPlace, step, stop)
if step in ("swap", "_move_not_null"):
    eb.cutover(uri)
elif step == "drop":
    eb.drop_vector(uri, "old")
else:
    eb.migrate_in_place(uri, eb.load_map(path), resume=True, mark_changed=True)
"""


def killed(commands, *words):
    done = subprocess.run([commands / "python-c", KILLED, *map(str, words)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_a_migration_that_is_killed_at_every_step_is_right_in_the_end(commands, table, tmp_path):
    uri, name, server = table
    path = tmp_path / "map.safetensors"
    MAP.save(path)
    # The state is kept in the transaction of the rows: `_keep` is the last statement before it ends.
    steps = [("start", 1, "late"), ("_keep", 3, "early"), ("_keep", 3, "late"), ("write", 2, "late"), ("finish", 1, "late")]
    for step, calls, late in steps:
        killed(commands, step, calls, late, uri, path)
        check(server, name, "vector", X)
        assert eb.open(uri).space == MAP.source
        assert len(eb.open(uri).search(X[:2], 3).row(0)[0]) == 3
    assert migration_note(uri).stage == "ready"
    done = eb.migrate_in_place(uri, MAP, resume=True)
    assert done.rows == N
    check(server, name, "vector_new", MAP.apply(X))
    for step, late, live in (("_move_not_null", "late", False), ("swap", "late", True)):
        killed(commands, step, 1, late, uri, path)
        found = eb.open(uri)
        assert found.space.name == ("renewed" if live else "old")
        check(server, name, "vector", MAP.apply(X) if live else X)
    check(server, name, "vector_old", X)
    killed(commands, "drop", 1, "late", uri, path)
    check(server, name, "vector", MAP.apply(X))
    assert migration_note(uri).stage == "finished"
    assert server.execute("SELECT count(*) FROM pg_trigger WHERE tgrelid = %s::regclass", [name]).fetchone() == (0,)


def test_the_verbs_on_the_command_line(table, tmp_path, monkeypatch):
    uri, name, server = table
    monkeypatch.chdir(tmp_path)
    MAP.save("map.safetensors")
    a_map(MAP.source, seed=1).save("other.safetensors")
    tried = run("migrate", uri, "map.safetensors", "--dry-run")
    assert tried.exit_code == 0
    assert "1. Add the column 'vector_new' of type vector(5)" in tried.stdout
    assert tried.stdout.endswith("MB are added. Nothing was written.\n")
    assert run_json("migrate", uri, "map.safetensors", "--dry-run", "--json")["rows"] == N
    assert migration_note(uri) is None
    done = run_json("migrate", uri, "map.safetensors", "--mode", "column", "--mark-changed", "--json")
    assert (done["rows"], done["mode"], done["stage"], done["into"]) == (N, "column", "ready", "vector_new")
    again = run("migrate", uri, "map.safetensors")
    assert (again.exit_code, "--resume continues it" in again.stderr) == (1, True)
    assert run("migrate", uri, "other.safetensors", "--resume").exit_code == 1
    assert run_json("verify", uri, "map.safetensors", "--sample", "50", "--json")["compared"] == 50
    assert run("verify", uri, "--map", "other.safetensors").exit_code == 1
    swapped = run("cutover", uri)
    assert swapped.stdout.startswith(f"{uri}: vectors of 'renewed' are in use\nFrom now on 'vector' takes vectors of 'renewed'")
    check(server, name, "vector", MAP.apply(X))
    assert run_json("rollback", uri, "--json")["stage"] == "ready"
    check(server, name, "vector", X)
    assert run("drop-vector", uri, "old").exit_code == 1
    assert run("cutover", uri, "--quiet").exit_code == 0
    assert run_json("drop-vector", uri, "old", "--json")["space"]["dim"] == 5
    assert run_json("info", uri, "--json")["space"]["name"] == "renewed"
    runs = run_json("catalog", "sql", "SELECT verb, parameters FROM run WHERE verb <> 'info' ORDER BY id", "--json")
    assert [r["verb"] for r in runs] == ["migrate", "verify", "cutover", "rollback", "cutover", "drop-vector"]
    assert json.loads(runs[0]["parameters"])["mark_changed"] is True
    edges = run_json("catalog", "sql", "SELECT DISTINCT role FROM lineage WHERE verb = 'migrate' ORDER BY role", "--json")
    assert [e["role"] for e in edges] == ["map", "source"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["migrate", "{uri}", "m", "out.faiss"], "is migrated in place; leave 'out.faiss' out"),
        (["migrate", "{uri}", "m", "--min-recall", "0.5"], "--min-recall is not an option for a collection"),
        (["migrate", "{uri}", "m", "--mode", "wrap"], "--mode wrap is not for a collection"),
        (["migrate", "old.faiss", "m"], "Missing argument"),
        (["migrate", "old.faiss", "m", "new.faiss", "--resume"], "--resume is not an option for an index"),
        (["migrate", "old.faiss", "m", "new.faiss", "--mode", "column"], "--mode column is not for an index"),
        (["drop-vector", "{uri}", "both"], "'both' is not one of"),
        (["verify", "{uri}", "m", "--map", "m"], "Name the map once"),
    ],
)
def test_wrong_usage(words, reason):
    done = run(*[word.format(uri="postgresql://h/d?table=t") for word in words])
    assert (done.exit_code, reason in done.stderr) == (2, True), done.stderr


def test_what_is_not_in_a_store_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MAP.save("map.safetensors")
    with pytest.raises(eb.EmbridgeError, match="is a file, which is not changed in place"):
        eb.cutover("old.parquet")
    with pytest.raises(eb.EmbridgeError, match=r"Hint: eb\.migrate_in_place"):
        eb.migrate("lancedb:///x#t", MAP, "new.faiss")
    with pytest.raises(eb.EmbridgeError, match=r"(cannot be|is not) migrated in place"):
        eb.migrate_in_place("npy:///x.npy", MAP)
