"""A rollout whose process is killed at any moment: what was there stands, and the same steps again give the same bytes."""

import json
import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.errors import InterruptedOutputError
from tests.rollout.support import content
from tests.support import table_of

# Processes are forked from one that has imported everything and run nothing, so that each starts within milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["embridge.cli.rollout", "embridge.rollout", "pyarrow.compute", "rich.progress", "faiss"])
# All steps from the start to the last row, each skipped where it is done already. Before its `dies`-th change of a name in the file
# system the process kills itself.
JOURNEY = """
import json, os, signal, sys
import pyarrow.parquet as pq, pyarrow.compute as pc
import embridge as eb
from embridge.cli.main import main
changes = 0
def count(event, arguments):
    global changes
    if event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link"):
        changes += 1
        if changes == dies:
            os.kill(os.getpid(), signal.SIGKILL)
os.chdir(folder)
sys.addaudithook(count)
def verb(*arguments):
    main(["rollout", *arguments, "--no-catalog", "--quiet", "--json"], standalone_mode=False)
sys.stdout = open(os.devnull, "w")
if not os.path.exists("rollout"):
    verb("start", "old.parquet", "sample.parquet", "-o", "rollout", "--queries", "q-old.parquet", "q-new.parquet", "--qrels",
         "qrels.parquet", "--index", "IVF8,Flat")
while (status := eb.Rollout("rollout").status()).translated:
    ids, native = f"ids-{status.stage}.parquet", f"native-{status.stage}.parquet"
    if not os.path.exists(ids):
        verb("next", "rollout", "-n", "150", "-o", ids)
    if not os.path.exists(native):
        new = pq.read_table("new.parquet")
        pq.write_table(new.filter(pc.is_in(new["id"], pq.read_table(ids)["id"])), native + ".tmp")
        os.rename(native + ".tmp", native)
    verb("add", "rollout", native)
if not os.path.exists("out.parquet"):
    verb("finish", "rollout", "-o", "out.parquet")
open("changes", "w").write(str(changes))
"""


def run(folder, dies=0):
    """How the journey in a process of its own ends: 0, or minus the signal."""
    process = PROCESSES.Process(target=exec, args=(JOURNEY, {"folder": str(folder), "dies": dies}))
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    return code


@pytest.fixture
def files(world, tmp_path):
    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        sides = {"old": (world.ids, world.x), "new": (world.ids, world.y), "sample": (world.ids[:200], world.y[:200])}
        sides |= {"q-old": (world.query_ids, world.qx), "q-new": (world.query_ids, world.qy)}
        for side, (ids, vectors) in sides.items():
            space = (world.old if side.endswith("old") else world.new(np.arange(1))).space
            pq.write_table(table_of(ids, vectors, space=space), folder / f"{side}.parquet")
        pairs = {"query_id": world.query_ids, "doc_id": world.ids[world.relevant]}
        pq.write_table(pa.table(pairs), folder / "qrels.parquet")
        return folder

    return make


def everything(folder):
    """State, collection, and the output; names of files in the rollout."""
    rollout = eb.Rollout(folder / "rollout")
    state, collection = content(rollout)
    names = sorted(str(path.relative_to(folder)) for path in (folder / "rollout").rglob("*") if path.is_file())
    return state, collection, (folder / "out.parquet").read_bytes(), names


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_with_the_same_bytes(files):
    once = files("once")
    assert run(once) == 0
    total, expected = int((once / "changes").read_text()), everything(once)
    assert total > 60
    folder, moments, kills = files("killed"), random.Random(20), 0
    stages = [0]
    while kills < 20:
        # Most kills come early in what is left, so that twenty of them fit into one way to the end.
        if run(folder, moments.randint(1, max(2, total // 8))) == -signal.SIGKILL:
            kills += 1
        if (folder / "rollout").exists():  # what is there can be read and searched
            rollout = eb.Rollout(folder / "rollout")
            stages.append(rollout.status().stage)
            assert rollout.search(eb.open(folder / "q-new.parquet"), 3)[1].ids.shape == (400, 3)
        if (folder / "out.parquet").exists():
            break
    assert stages == sorted(stages)
    while run(folder) != 0:
        pass
    assert kills >= 15
    assert everything(folder) == expected
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_start_that_is_killed_leaves_no_rollout_and_can_be_repeated(files):
    folder = files("once")
    for dies in (2, 6, 12, 20):
        assert run(folder, dies) == -signal.SIGKILL
        assert not (folder / "rollout").exists()
    (folder / ".rollout.start" / "mine.txt").write_text("a file of the user")
    assert run(folder) == 1
    assert (folder / ".rollout.start" / "mine.txt").exists()


def test_two_writers_exclude_each_other_and_readers_do_not_wait(world, tmp_path):
    rollout = world.start(tmp_path / "rollout")
    other, failures = eb.Rollout(tmp_path / "rollout"), []
    native = world.new(np.arange(200, 260))
    read = native._read

    def blocked(*arguments, **options):
        """While the first writer reads its input, a second one tries, and readers read."""
        if not failures:
            failures.append(None)
            with pytest.raises(InterruptedOutputError, match="Another process is writing"):
                other.add(world.new(np.arange(300, 310)))
            with pytest.raises(InterruptedOutputError, match="Another process is writing"):
                other.next(5, tmp_path / "ids.parquet")
            assert other.status().stage == 0
            assert other.search(world.query_sides[1], 3)[1].ids.shape == (400, 3)
            failures[0] = "checked"
        return read(*arguments, **options)

    native._read = blocked
    assert rollout.add(native).rows == 60
    assert failures == ["checked"]
    assert other.status().stage == 1
    assert not (tmp_path / "ids.parquet").exists()


def test_readers_read_while_steps_replace_the_stage(world, tmp_path):
    rollout = world.start(tmp_path / "rollout")
    reader, ended, seen = eb.Rollout(tmp_path / "rollout"), threading.Event(), []

    def read():
        while not ended.is_set():
            seen.append(reader.status().native)
            reader.search(world.query_sides[1], 3)

    thread = threading.Thread(target=read)
    thread.start()
    for first in range(200, 320, 30):
        rollout.add(world.new(np.arange(first, first + 30)))
    ended.set()
    thread.join()
    assert seen == sorted(seen)
    assert set(seen) <= {200, 230, 260, 290, 320}
    state = json.loads((tmp_path / "rollout" / "state.json").read_text())
    assert sorted(os.listdir(tmp_path / "rollout")) == sorted([state["folder"], "state.json"])
    assert Path(rollout.path, state["folder"], "_embridge.json").exists()
