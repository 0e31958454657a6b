"""IVF indexes whose inverted lists are built on disk: equal to those in memory, and a killed build goes on."""

import signal
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

import embridge as eb
from embridge.errors import FaissIndexError, InterruptedOutputError, MigrationRefusedError, OutputExistsError
from embridge.indexes import on_disk
from embridge.stores.faiss.decode import external_lists_of
from embridge.types import Metric
from tests.support import table_of, write

N, DIM, PART = 30_000, 16, 8192  # four parts
FACTORY = "IVF32,Flat"
RNG = np.random.default_rng(0)
ROWS, QUERIES = RNG.normal(size=(N, DIM)).astype(np.float32), RNG.normal(size=(20, DIM)).astype(np.float32)
SPACE = eb.Space("a", DIM, Metric.COSINE)
INTS = RNG.permutation(10**9 + np.arange(N))
STRINGS = np.array([f"doc/{i}" for i in INTS], object)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(on_disk, "_MOST_ROWS", PART)


def collection(ids=INTS):
    return eb.MemoryCollection(ids, ROWS, SPACE)


def lists_of(path):
    index = faiss.read_index(str(path))  # held here: what the function makes of it owns nothing
    return Path(external_lists_of(index))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("factory", [FACTORY, "IVF32,SQ8", "PCA8,IVF32,SQ8"])
@pytest.mark.parametrize("ids", [INTS, STRINGS], ids=["int64", "string"])
def test_it_finds_what_an_index_in_memory_finds(tmp_path, factory, ids):
    plain = eb.build_index(collection(ids), tmp_path / "plain.faiss", factory)
    made = eb.build_index(collection(ids), tmp_path / "disk.faiss", factory, on_disk=True)
    assert len(made) == N
    one, other = (index.search(QUERIES, 10, parameters="nprobe=4") for index in (plain, made))
    assert one.ids.tolist() == other.ids.tolist()
    np.testing.assert_array_equal(one.scores, other.scores)
    lists = lists_of(tmp_path / "disk.faiss")
    assert lists.parent == tmp_path.resolve()
    assert lists.stat().st_size > (tmp_path / "disk.faiss").stat().st_size
    assert lists.name in names(tmp_path)
    assert "disk.faiss.parts" not in names(tmp_path)


def test_progress_reaches_all_rows(tmp_path):
    seen = []
    eb.build_index(collection(), tmp_path / "a.faiss", FACTORY, on_disk=True, progress=lambda *at: seen.append(at))
    assert seen[-1] == (N, N)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_type_without_inverted_lists_is_refused(tmp_path):
    for factory in ("HNSW32", "IVF32,Flat,RFlat"):
        with pytest.raises(FaissIndexError, match="has no inverted lists that can be in another file"):
            eb.build_index(collection(), tmp_path / "a.faiss", factory, on_disk=True)
    assert not (tmp_path / "a.faiss").exists()


def interrupted(tmp_path, after, monkeypatch, **options):
    """A build that fails while it adds the rows from `after` on."""

    def stop(done, _):
        if done > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eb.build_index(collection(), tmp_path / "a.faiss", FACTORY, on_disk=True, progress=stop, **options)
    assert not (tmp_path / "a.faiss").exists()


def test_an_interrupted_build_goes_on_with_the_parts_that_are_there(tmp_path, monkeypatch):
    interrupted(tmp_path, 2 * PART, monkeypatch)
    assert sum(name.startswith("part-") for name in names(tmp_path / "a.faiss.parts")) == 4  # trained, and three parts
    seen = []
    eb.build_index(collection(), tmp_path / "a.faiss", FACTORY, on_disk=True, progress=lambda done, _: seen.append(done))
    assert seen == [N]
    resumed = content(tmp_path)
    (tmp_path / "a.faiss").unlink()
    (tmp_path / "a.faiss.json").unlink()
    eb.build_index(collection(), tmp_path / "a.faiss", FACTORY, on_disk=True)
    assert content(tmp_path) == resumed


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parts_of_another_build_are_refused_and_can_be_replaced(tmp_path, monkeypatch):
    interrupted(tmp_path, PART, monkeypatch)
    with pytest.raises(OutputExistsError, match="differs in: seed"):
        eb.build_index(collection(), tmp_path / "a.faiss", FACTORY, on_disk=True, seed=1)
    made = eb.build_index(collection(), tmp_path / "a.faiss", FACTORY, on_disk=True, seed=1, overwrite=True)
    assert len(made) == N


def test_an_altered_part_is_refused(tmp_path, monkeypatch):
    interrupted(tmp_path, 2 * PART, monkeypatch)
    part = next((tmp_path / "a.faiss.parts").glob("part-000001-*"))
    data = bytearray(part.read_bytes())
    data[-100] ^= 1
    part.write_bytes(data)
    with pytest.raises(InterruptedOutputError, match="altered"):
        eb.build_index(collection(), tmp_path / "a.faiss", FACTORY, on_disk=True)
    assert not (tmp_path / "a.faiss").exists()


def test_a_replaced_index_leaves_no_lists(tmp_path):
    eb.build_index(collection(), tmp_path / "a.faiss", FACTORY, on_disk=True)
    eb.build_index(collection(), tmp_path / "a.faiss", FACTORY, on_disk=True, seed=5, overwrite=True)
    assert sum(name.endswith(".lists") for name in names(tmp_path)) == 1
    assert len(eb.Index(tmp_path / "a.faiss").search(QUERIES, 10).ids) == len(QUERIES)
    eb.build_index(collection(), tmp_path / "a.faiss", "Flat", overwrite=True)
    assert not any(name.endswith(".lists") for name in names(tmp_path))


CHILD = """
import sys
import embridge as eb
from embridge.indexes import on_disk
on_disk._MOST_ROWS = {part}
eb.build_index(eb.open(sys.argv[1]), sys.argv[2], "IVF32,Flat", on_disk=True, progress=lambda *at: print(*at, flush=True))
"""


def test_killed_at_any_time_and_repeated_it_is_the_same_index(tmp_path):
    source = tmp_path / "rows.parquet"
    write(source, table_of(INTS, ROWS, space=SPACE))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-c", CHILD.format(part=PART), str(source)]
    target = tmp_path / "a" / "a.faiss"  # the index keeps the path of its lists
    (tmp_path / "a").mkdir()
    subprocess.run([*command, str(target)], check=True, capture_output=True)
    whole = content(tmp_path / "a")
    for name in whole:
        (tmp_path / "a" / name).unlink()
    for lines in (1, 3):
        child = subprocess.Popen([*command, str(target)], stdout=subprocess.PIPE, text=True)
        for _ in range(lines):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert not target.exists() or lines > 1
    subprocess.run([*command, str(target)], check=True, capture_output=True)
    assert content(tmp_path / "a") == whole


@pytest.mark.parametrize("old_on_disk", [False, True])
def test_migrating_on_disk_equals_migrating_in_memory(tmp_path, old_on_disk):
    eb.build_index(collection(), tmp_path / "old.faiss", FACTORY, on_disk=old_on_disk)
    turn = np.linalg.qr(RNG.normal(size=(DIM, DIM)))[0]
    translation = eb.LinearMap(turn, np.zeros(DIM), SPACE, eb.Space("b", DIM, Metric.COSINE))
    plain = eb.migrate(tmp_path / "old.faiss", translation, tmp_path / "plain.faiss", mode="rebuild")
    done = eb.migrate(tmp_path / "old.faiss", translation, tmp_path / "new.faiss", on_disk=True)
    assert (done.mode, done.rows) == ("rebuild", N)
    assert done.verified_overlap == plain.verified_overlap
    found = [eb.Index(tmp_path / name).search(QUERIES @ turn.T, 5).ids.tolist() for name in ("plain.faiss", "new.faiss")]
    assert found[0] == found[1]
    assert lists_of(tmp_path / "new.faiss").parent == tmp_path.resolve()


def test_a_refused_migration_leaves_nothing(tmp_path):
    eb.build_index(collection(), tmp_path / "old.faiss", FACTORY)
    translation = eb.LinearMap(np.eye(DIM), np.zeros(DIM), SPACE, eb.Space("b", DIM, Metric.COSINE))
    before = names(tmp_path)
    with pytest.raises(MigrationRefusedError):
        eb.migrate(tmp_path / "old.faiss", translation, tmp_path / "new.faiss", on_disk=True, min_recall=1.0)
    assert names(tmp_path) == before
