"""Conversions as tasks on a Ray cluster end in the bytes of a local run, whatever happens to workers and nodes."""

import itertools
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.cli import session
from embridge.conversion import ray as on_ray
from embridge.conversion import verify_ray
from embridge.errors import (
    BackendError,
    BadVectorsError,
    ChangedSourceError,
    InterruptedOutputError,
    MissingDependencyError,
    ParameterError,
    VerificationError,
)
from embridge.ray import RayBackend, run_tasks
from embridge.types import Space
from tests.conversion.support import map_between, table_of
from tests.ray_support import children, stop_one
from tests.support import run, run_json

pytestmark = pytest.mark.ray
P, Q, FILES, ROWS = 32, 192, 5, 30_000  # of a file
OLD, NEW = Space("old", P), Space("new", Q)
TRANSLATION = map_between(OLD, NEW)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of files of several row groups each, one of them deeper."""
    folder = tmp_path_factory.mktemp("ray") / "shards"
    rng = np.random.default_rng(0)
    for number in range(FILES):
        path = folder / ("deep" if number == 2 else "") / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = [f"d{number}-{i}" for i in range(ROWS)]
        table = table_of(ids, rng.normal(size=(ROWS, P)), OLD, n=list(range(ROWS)))
        pq.write_table(table, path, row_group_size=7_000)
    return folder


@pytest.fixture(scope="module")
def here(shards):
    """The output of a conversion on this machine."""
    eb.convert(eb.open(shards), TRANSLATION, shards.parent / "here")
    return content(shards.parent / "here")


def content(folder):
    """Every file of a folder by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def working(folder):
    """The names in a folder of outputs that belong to an unfinished one."""
    return sorted(name for name in os.listdir(folder) if ".partial" in name or ".tasks" in name or ".journal" in name)


def interrupted(after):
    """A progress that ends the run when so many rows are done."""

    def progress(rows, _):
        if rows >= after:
            raise KeyboardInterrupt

    return progress


# Workers and nodes that end


def disturbed(disturb, cluster, shards, folder):
    """Convert until a thread has caught a worker at work and disturbed it: the conversion that this happened to, and its folder."""
    with ThreadPoolExecutor(1) as pool:
        caught = pool.submit(disturb, cluster)
        for number in itertools.count():
            done = eb.convert(eb.open(shards), TRANSLATION, folder / f"new{number}", backend="ray")
            if caught.done():
                caught.result()
                return done, folder / f"new{number}"
    raise AssertionError


def kill_one(cluster):
    os.kill(stop_one("output.parquet.partial", cluster.list_all_nodes()), signal.SIGKILL)


def test_a_worker_is_killed_in_the_middle(cluster, shards, here, tmp_path):
    done, out = disturbed(kill_one, cluster, shards, tmp_path)
    assert content(out) == here
    assert (done.rows, done.reused) == (FILES * ROWS, 0)
    assert working(tmp_path) == []


def test_run_again_nothing_is_computed_twice(cluster, shards, here, tmp_path, monkeypatch):
    source, out = eb.open(shards), tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        eb.convert(source, TRANSLATION, out, backend="ray", progress=interrupted(2 * ROWS))
    finished = {path: path.stat().st_ino for path in (tmp_path / "new.partial").rglob("*.parquet")}
    assert len(finished) >= 2
    with pytest.raises(InterruptedOutputError, match="--resume continues it"):
        eb.convert(source, TRANSLATION, out, backend="ray")
    with pytest.raises(InterruptedOutputError, match="other inputs: map differ"):
        eb.convert(source, map_between(OLD, NEW, seed=6), out, backend="ray", resume=True)
    seen = []
    done = eb.convert(source, TRANSLATION, out, backend="ray", resume=True, progress=lambda rows, total: seen.append((rows, total)))
    # A task that ended while the others were cancelled may have renamed its file without being recorded: it is done again.
    assert 2 * ROWS <= done.reused <= len(finished) * ROWS
    assert len(seen) == FILES - done.reused // ROWS
    assert seen[-1] == (FILES * ROWS, FILES * ROWS)
    assert content(out) == here
    kept = [path for path, node in finished.items() if (out / path.relative_to(tmp_path / "new.partial")).stat().st_ino == node]
    assert len(kept) >= done.reused // ROWS
    monkeypatch.setattr(on_ray, "run_tasks", None)  # no task is needed now
    assert eb.convert(source, TRANSLATION, out, backend="ray", resume=True).reused == FILES * ROWS


def test_spans_are_not_computed_twice_either(cluster, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "_SPAN_BYTES", 4 * Q * 7_000)
    source, out = eb.open(shards), tmp_path / "one.parquet"
    eb.convert(source, TRANSLATION, tmp_path / "here.parquet")
    with pytest.raises(KeyboardInterrupt):
        eb.convert(source, TRANSLATION, out, backend="ray", progress=interrupted(ROWS))
    assert not out.exists()
    with pytest.raises(InterruptedOutputError, match="--resume continues it"):
        eb.convert(source, TRANSLATION, out, backend="ray")
    done = eb.convert(source, TRANSLATION, out, backend="ray", resume=True)
    assert ROWS <= done.reused < done.rows
    assert out.read_bytes() == (tmp_path / "here.parquet").read_bytes()
    assert working(tmp_path) == []


def test_a_task_that_is_always_lost_is_one_clear_error(cluster):
    with pytest.raises(BackendError, match=r"The task of SIGKILL was lost 1 time, since its worker or node ended"):
        list(run_tasks(RayBackend(max_retries=0), signal.raise_signal, [signal.SIGKILL]))


def test_ctrl_c_leaves_what_can_be_resumed(cluster, shards, here, tmp_path, monkeypatch):
    original, state = session.Session.progress, []

    def progress(self, title):
        def advance(rows, total):
            if not state:
                state.append(rows)
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(session.Session, "progress", original)
        return session.contextlib.nullcontext(advance)

    monkeypatch.setattr(session.Session, "progress", progress)
    TRANSLATION.save(tmp_path / "map.safetensors")
    command = ["convert", shards, tmp_path / "map.safetensors", tmp_path / "new", "--backend", "ray", "--no-catalog"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped = run(*command)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert stopped.stderr == f"Interrupted. Run the same command with --resume to continue {tmp_path / 'new'}.\n"
    done = run_json(*command, "--resume", "--json")
    assert ROWS <= done["reused"] < done["rows"] == FILES * ROWS
    assert content(tmp_path / "new") == here


# Bad rows, changed files, what tasks cannot do


def punctured(shards, folder, rows):
    """A copy of the files with bad rows in the second."""
    for name in ("0.parquet", "1.parquet"):
        table = pq.read_table(shards / name)
        x = np.array(table["vector"].combine_chunks().flatten()).reshape(-1, P)
        x[rows if name == "1.parquet" else []] = np.nan
        folder.mkdir(exist_ok=True)
        pq.write_table(table_of(table["id"].to_pylist(), x, OLD), folder / name, row_group_size=7_000)
    return eb.open(folder)


def test_bad_rows_are_listed_as_in_a_local_run(cluster, shards, tmp_path, monkeypatch):
    source = punctured(shards, tmp_path / "in", [3, 8_000])
    with pytest.raises(BadVectorsError, match=r"1\.parquet.*'d1-3', 'd1-8000'.*|1\.parquet.*d1-3"):
        eb.convert(source, TRANSLATION, tmp_path / "new", backend="ray")
    done = eb.convert(source, TRANSLATION, tmp_path / "new", backend="ray", on_bad="skip", resume=True)
    here = eb.convert(source, TRANSLATION, tmp_path / "here", on_bad="skip")
    assert (done.rows, done.skipped, done.fingerprint) == (2 * ROWS - 2, 2, here.fingerprint)
    assert (tmp_path / "new.bad.parquet").read_bytes() == (tmp_path / "here.bad.parquet").read_bytes()
    assert pq.read_table(tmp_path / "new.bad.parquet")["row"].to_pylist() == [ROWS + 3, ROWS + 8_000]
    monkeypatch.setattr(verify_ray, "_SPAN_BYTES", 4 * Q * 5_000)
    checked = [eb.verify(tmp_path / "new", source=source, translation=TRANSLATION, backend=b) for b in ("ray", "local")]
    assert checked[0] == checked[1]
    assert checked[0].compared == 2 * ROWS - 2
    (tmp_path / "new.bad.parquet").unlink()
    with pytest.raises(VerificationError, match=r"are not those of the source|of the source are missing"):
        eb.verify(tmp_path / "new", source=source, translation=TRANSLATION, backend="ray")


def test_a_source_that_changes_is_an_error_and_leaves_nothing(cluster, shards, tmp_path):
    source = punctured(shards, tmp_path / "in", [])
    pq.write_table(pq.read_table(tmp_path / "in" / "1.parquet").slice(1), tmp_path / "in" / "1.parquet")
    with pytest.raises(ChangedSourceError, match=r"1\.parquet"):
        eb.convert(source, TRANSLATION, tmp_path / "new", backend="ray")
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_what_is_not_in_parquet_is_refused(shards, tmp_path):
    memory = eb.MemoryCollection(np.arange(3), np.ones((3, P), np.float32), OLD)
    with pytest.raises(ParameterError, match="not in Parquet"):
        eb.convert(memory, TRANSLATION, tmp_path / "new.parquet", backend="ray")
    for wrong in ("spark", 3):
        with pytest.raises(ParameterError, match="backend must be 'local', 'ray' or a RayBackend"):
            eb.convert(eb.open(shards), TRANSLATION, tmp_path / "new.parquet", backend=wrong)
    with pytest.raises(ParameterError, match="compute on cpu, not on 'cuda'"):
        eb.convert(eb.open(shards), TRANSLATION, tmp_path / "new.parquet", backend="ray", device="cuda")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("given", [{"num_cpus": 0}, {"num_cpus": 1.5}, {"num_gpus": -1}, {"num_gpus": 1.5}, {"max_retries": -1}])
def test_values_of_a_backend_are_checked(given):
    with pytest.raises(ParameterError, match=next(iter(given))):
        RayBackend(**given)


def test_without_ray_the_error_names_the_extra(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'embridge\[ray\]'"):
        eb.convert(eb.open(shards), TRANSLATION, tmp_path / "new", backend="ray")
    assert os.listdir(tmp_path) == []


# At the end, since a node is missing afterwards


def remove_node(cluster):
    """Remove a node while one of its workers writes."""
    worker = stop_one("output.parquet.partial", list(cluster.worker_nodes))
    node = next(node for node in cluster.worker_nodes if worker in children([node]))
    cluster.remove_node(node, allow_graceful=False)
    os.kill(worker, signal.SIGKILL)  # it would end by itself, if it were not stopped


def test_a_node_is_removed_in_the_middle(cluster, shards, here, tmp_path):
    done, out = disturbed(remove_node, cluster, shards, tmp_path)
    assert content(out) == here
    assert (done.rows, done.reused) == (FILES * ROWS, 0)
    assert working(tmp_path) == []
