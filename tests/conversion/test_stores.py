"""Conversions and copies between stores: complete, or continued after a kill, or refused before anything is written."""

import signal
import subprocess
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    ChangedSourceError,
    CollectionError,
    DiskFullError,
    InterruptedOutputError,
    MissingFileError,
    OutputExistsError,
    ParameterError,
    VerificationError,
)
from embridge.stores.registry import store_of
from tests.stores.support import memory_folder
from tests.support import run, run_json

pytest.importorskip("lancedb")
N = 500
PLACES = {
    "npy": "npy://{}/a.npy",
    "lancedb": "lancedb://{}/l#a",
    "parquet": "{}/a.parquet",
    "qdrant": "qdrant://{}/q#a",
    "chroma": "chroma://{}/c#rows",
}


@pytest.fixture
def rows(planted):
    ids, x, y, _ = planted(n=N, p=6, q=8, seed=3)
    return [f"d{i}" for i in ids], x, y


@pytest.fixture
def source(tmp_path, rows, write, table_of, make_space):
    ids, x, _ = rows
    payload = {"text": [f"text {i}" for i in ids], "n": range(N), "tags": [[str(i % 3)] * (i % 3) for i in range(N)]}
    return write(tmp_path / "in" / "source.parquet", table_of(ids, x, payload, space=make_space("old", 6, metric="dot")))


@pytest.fixture
def translation(rows, make_space):
    ids, x, y = rows
    sides = (
        eb.MemoryCollection(ids, x, make_space("old", 6, metric="dot")),
        eb.MemoryCollection(ids, y, make_space("new", 8, metric="dot")),
    )
    return eb.fit(eb.match(*sides), "ridge", alpha=0.01)


@pytest.fixture
def place(tmp_path, request):
    """``place(kind)`` gives the path or URI of a collection that does not exist."""

    def new(kind):
        if kind == "postgresql":
            return request.getfixturevalue("new_table")()
        folder = (in_memory if kind in ("qdrant", "chroma") else tmp_path) / uuid.uuid4().hex
        folder.mkdir()
        return PLACES[kind].format(folder)

    with memory_folder() as path:
        in_memory = Path(path)
        yield new


def by_id(collection):
    """Vector and payload of each row, by id: some stores have an order of their own."""
    return {
        i: (vector.tolist(), payload)
        for b in collection.batches(payload=True)
        for i, vector, payload in zip(b.ids.to_pylist(), b.vectors, b.payload.to_pylist(), strict=True)
    }


KINDS = [*PLACES, "postgresql"]


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_copy_of_a_copy_is_the_original(source, place, one, other):
    original = eb.open(source)
    for kind in (one, other):
        mark = eb.open(source).fingerprint()
        done = eb.copy(eb.open(source), to := place(kind))
        copied = eb.open(to)
        assert (done.rows, done.skipped, done.path) == (N, 0, to)
        assert done.fingerprint == copied.fingerprint()
        assert copied.space == original.space
        assert copied.lineage["source"] == mark
        assert by_id(copied) == by_id(original)
        source = to


@pytest.mark.parametrize(("one", "other"), [pair for kind in KINDS for pair in ((kind, "parquet"), ("parquet", kind))][1:])
def test_a_conversion_between_stores_equals_apply(source, translation, place, one, other):
    eb.copy(eb.open(source), start := place(one))
    mark = eb.open(start).fingerprint()
    done = eb.convert(eb.open(start), translation, to := place(other))
    found, expected = by_id(eb.open(to)), by_id(eb.open(source))
    assert done.rows == N
    assert eb.open(to).space == translation.target
    assert eb.open(to).lineage == {"source": mark, "map": translation.fingerprint}
    assert {i: payload for i, (_, payload) in found.items()} == {i: payload for i, (_, payload) in expected.items()}
    translated = translation.apply(np.array([vector for vector, _ in expected.values()], np.float32))
    np.testing.assert_allclose([found[i][0] for i in expected], translated, rtol=1e-5, atol=1e-5)
    verified = eb.verify(to, source=eb.open(start), translation=translation)
    assert (verified.rows, verified.compared) == (N, N)
    with pytest.raises(VerificationError, match="its lineage names map"):
        eb.verify(to, source=eb.open(start), translation=translation.then(translation.inverse()).then(translation))


@pytest.mark.parametrize("kind", ["npy", "lancedb", "postgresql", "qdrant", "chroma"])
def test_verify_finds_rows_that_are_missing_or_wrong(source, translation, place, kind, rows, monkeypatch):
    ids, x, _ = rows
    eb.convert(eb.open(source), translation, to := place(kind))
    wrong = eb.MemoryCollection(ids, x[::-1], eb.open(source).space)
    monkeypatch.setattr(wrong, "fingerprint", eb.open(source).fingerprint)
    with pytest.raises(VerificationError, match="is not the translation of the source's"):
        eb.verify(to, source=wrong, translation=translation)
    more = eb.MemoryCollection([*ids, "more"], np.concatenate([x, x[:1]]), wrong.space)
    monkeypatch.setattr(more, "fingerprint", eb.open(source).fingerprint)
    with pytest.raises(VerificationError, match="1 rows of the source are missing"):
        eb.verify(to, source=more, translation=translation)


@pytest.mark.parametrize("kind", ["lancedb", "postgresql"])
def test_a_second_vector_keeps_its_space(source, translation, place, kind, tmp_path):
    eb.convert(eb.open(source), translation, tmp_path / "both.parquet", keep_old=True)
    eb.copy(eb.open(tmp_path / "both.parquet"), to := place(kind))
    eb.convert(eb.open(source), translation, directly := place(kind), keep_old=True)
    for found in (eb.open(to), eb.open(directly)):
        assert found.payload_spaces == {"old_vector": eb.open(source).space}
        assert found.old_side is not None
        assert found.old_side.space == eb.open(source).space
        old = by_id(found.old_side)
        assert {i: old[i][0] for i in old} == {i: vector for i, (vector, _) in by_id(eb.open(source)).items()}
    eb.copy(eb.open(to), tmp_path / "back.parquet")
    assert eb.open(tmp_path / "back.parquet").payload_spaces == {"old_vector": eb.open(source).space}


KILLED = """
import os, signal, sys
import embridge as eb
from embridge.conversion import store
from embridge.stores.registry import store_of

place, source, to, calls, late = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "late"
store.rows_of_group = lambda *_: 60
writers = {"npy": "Npy", "lancedb": "Lance", "postgresql": "Pg", "qdrant": "Qdrant", "chroma": "Chroma"}
writer = writers[place] + "Writer"
modules = {"npy": "npy.writer", "postgresql": "pgvector"}
module = __import__("embridge.stores." + modules.get(place, place), fromlist=[writer])
kind = getattr(module, writer)
plain, count = kind.write, [0]

def write(self, batch, note):
    count[0] += 1
    if late and count[0] == calls:  # the rows are written, the note is not
        note_of = {"npy": "_put_note", "postgresql": "_put"}.get(place, "finish")
        setattr(self, note_of, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    plain(self, batch, note)
    if count[0] == calls:
        os.kill(os.getpid(), signal.SIGKILL)

kind.write = write
eb.copy(eb.open(source), to, resume=True)
"""


@pytest.mark.parametrize("late", ["late", "between"])
@pytest.mark.parametrize("kind", ["npy", "lancedb", "postgresql", "qdrant", "chroma"])
def test_a_copy_that_is_killed_again_and_again_is_complete_in_the_end(commands, source, place, kind, late):
    to = place(kind)
    for calls in (1, 2):
        command = [commands / "python-c", KILLED, kind, source, to, str(calls), late]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        with pytest.raises(InterruptedOutputError, match="unfinished"):
            eb.open(to)
    with pytest.raises(InterruptedOutputError, match="--resume continues it"):
        eb.copy(eb.open(source), to)
    with pytest.raises(InterruptedOutputError, match="other inputs or options"):
        eb.copy(eb.open(source), to, compact=True, resume=True)
    eb.copy(eb.open(source), to, resume=True)
    copied = eb.open(to)
    assert by_id(copied) == by_id(eb.open(source))
    again = eb.copy(eb.open(source), to, resume=True)
    assert (again.rows, again.fingerprint) == (N, copied.fingerprint())


@pytest.mark.parametrize("kind", ["postgresql", "qdrant", "chroma"])
def test_a_file_that_was_killed_is_continued_after_the_last_id(commands, source, place, kind, tmp_path, monkeypatch):
    table = pq.read_table(source)
    eb.copy(eb.open(source), start := place(kind))
    code = (
        "import os, signal, sys\nimport embridge as eb\nfrom embridge.stores.parquet import writer\n"
        "writer.GROUP_BYTES = 24 * 60\n"
        "def stop(done, total): os.kill(os.getpid(), signal.SIGKILL) if done >= 240 else None\n"
        "eb.copy(eb.open(sys.argv[1]), sys.argv[2], progress=stop)\n"
    )
    out = tmp_path / "out.parquet"
    done = subprocess.run([commands / "python-c", code, start, str(out)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    monkeypatch.setattr("embridge.stores.parquet.writer.GROUP_BYTES", 24 * 60)
    read = []
    kind = type(eb.open(start))
    plain = kind._read_after
    monkeypatch.setattr(kind, "_read_after", lambda self, after, *a, **rest: read.append(after) or plain(self, after, *a, **rest))
    eb.copy(eb.open(start), out, resume=True)
    assert read == [eb.open(out).read()[0][239]]
    assert by_id(eb.open(out)) == by_id(eb.open(source))
    assert len(table) == N


@pytest.mark.parametrize("place", ["npy", "lancedb"])
def test_what_exists_is_replaced_only_on_request(tmp_path, source, place):
    to = PLACES[place].format(tmp_path)
    eb.copy(eb.open(source), to)
    with pytest.raises(OutputExistsError, match="exists already"):
        eb.copy(eb.open(source), to)
    eb.copy(eb.MemoryCollection(["a"], [[1.0, 2.0]], eb.Space("small", 2)), to, overwrite=True)
    assert len(eb.open(to)) == 1
    with pytest.raises(OutputExistsError, match="both input and output"):
        eb.copy(eb.open(to), to, overwrite=True)


def test_what_embridge_did_not_write_is_never_replaced(tmp_path, source):
    lancedb = pytest.importorskip("lancedb")
    lancedb.connect(tmp_path / "l").create_table("a", [{"id": 1, "vector": [1.0, 2.0]}])
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    for to in (PLACES["npy"].format(tmp_path), PLACES["lancedb"].format(tmp_path)):
        with pytest.raises(OutputExistsError, match="was not written by embridge"):
            eb.copy(eb.open(source), to, overwrite=True)
    assert lancedb.connect(tmp_path / "l").open_table("a").count_rows() == 1
    assert np.load(tmp_path / "a.npy").shape == (2, 2)


def is_absent(to):
    try:
        eb.open(to)
    except MissingFileError:
        return True
    return False


def test_a_column_that_cannot_be_held_is_named_before_anything_is_written(tmp_path):
    payload = pa.table({"interval": pa.array([None, None], pa.month_day_nano_interval())})
    collection = eb.MemoryCollection([1, 2], np.ones((2, 2)), eb.Space("a", 2), payload)
    with pytest.raises(CollectionError, match=r"cannot hold the column 'interval' \(month_day_nano_interval\): .*Hint: drop"):
        eb.copy(collection, f"lancedb://{tmp_path}/l#a")
    with pytest.raises(CollectionError, match="already has a column 'n'"):
        eb.copy(eb.MemoryCollection([1], [[1.0]], eb.Space("a", 1), {"n": [1]}), f"lancedb://{tmp_path}/l?id=n#a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["npy", "lancedb"])
def test_bad_rows_stop_a_copy_or_are_left_out(tmp_path, source, place, rows):
    table = pq.read_table(source)
    vectors = table["vector"].to_pylist()
    vectors[7], vectors[N - 1] = [np.nan] * 6, [np.inf] * 6
    bad = tmp_path / "bad.parquet"
    pq.write_table(table.set_column(1, "vector", pa.array(vectors, table["vector"].type)), bad)
    to = PLACES[place].format(tmp_path)
    with pytest.raises(BadVectorsError, match="NaN or infinite values"):
        eb.copy(eb.open(bad), to)
    assert is_absent(to)
    done = eb.copy(eb.open(bad), to, on_bad="skip")
    assert (done.rows, done.skipped) == (N - 2, 2)
    assert eb.open(to).read()[0].tolist() == rows[0][:7] + rows[0][8:-1]
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), bad)
    with pytest.raises(BadIdsError, match="more than once"):
        eb.copy(eb.open(bad), to, overwrite=True)


@pytest.mark.parametrize("place", ["npy", "lancedb"])
def test_a_source_that_changes_while_it_is_copied_leaves_nothing(tmp_path, source, place):
    table = pq.read_table(source)

    def change(done, total):
        pq.write_table(table.slice(1), source)

    with pytest.raises(ChangedSourceError):
        eb.copy(eb.open(source), PLACES[place].format(tmp_path), progress=change)
    assert is_absent(PLACES[place].format(tmp_path))


def test_an_index_is_not_the_output_of_a_conversion(tmp_path, source):
    with pytest.raises(ParameterError, match="which `embridge index` builds"):
        eb.copy(eb.open(source), tmp_path / "a.faiss")


def test_every_verb_takes_a_uri(tmp_path, source, rows, write, table_of, make_space, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = write(tmp_path / "new.parquet", table_of(rows[0], rows[2], space=make_space("new", 8, metric="dot")))
    old = f"lancedb://{tmp_path}/l#old"
    assert run_json("copy", source, old, "--json")["rows"] == N
    assert run_json("info", old, "--json")["rows"] == N
    run_json("anchors", "sample", old, "-n", "20", "-o", "ids.parquet", "--json")
    run_json("fit", old, new, "-o", "m.safetensors", "--method", "ridge", "--json")
    assert run_json("convert", old, "m.safetensors", f"npy://{tmp_path}/made.npy", "--json")["rows"] == N
    run_json("evaluate", "m.safetensors", old, new, "--json")
    run_json("index", f"npy://{tmp_path}/made.npy", "made.faiss", "--json")
    run_json("search", "made.faiss", new, "-k", "3", "--json")
    again = run("copy", source, old)
    assert again.exit_code == 1
    assert again.stderr == f"Error: {old!r} exists already. Hint: give another name, or --overwrite (overwrite=True).\n"
    found = run_json("catalog", "sql", "SELECT DISTINCT path FROM artifact WHERE path LIKE '%://%' ORDER BY path", "--json")
    assert [row["path"] for row in found] == [old, f"npy://{tmp_path}/made.npy"]


@pytest.fixture
def disk(tmp_path):
    """``resize("3m")`` of a file system of its own; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("place", ["npy", "lancedb"])
def test_a_full_disk_is_reported_and_the_copy_continues_when_there_is_room(disk, place, monkeypatch):
    monkeypatch.setattr("embridge.conversion.store.rows_of_group", lambda *_: 2000)
    rng = np.random.default_rng(0)
    collection = eb.MemoryCollection(range(20_000), rng.normal(size=(20_000, 64)).astype(np.float32), eb.Space("a", 64))
    to = PLACES[place].format(disk)
    with pytest.raises(DiskFullError, match="is full"):
        eb.copy(collection, to)
    with pytest.raises(InterruptedOutputError):
        eb.open(to)
    subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
    assert eb.copy(collection, to, resume=True).rows == 20_000
    assert by_id(eb.open(to)) == by_id(collection)


EXCHANGES = {
    "npy": "embridge.stores.npy.os.replace",
    "lancedb": "embridge.stores.lancedb.sync_folder",
    "qdrant": "qdrant_client.QdrantClient.update_collection_aliases",
    "chroma": "embridge.stores.chroma.collection_of",
}


@pytest.mark.parametrize("kind", EXCHANGES)
def test_an_exchange_that_was_interrupted_is_completed(source, place, kind, monkeypatch):
    small = eb.MemoryCollection(["a"], [[1.0, 2.0]], eb.Space("small", 2, metric="dot"))
    eb.copy(small, to := place(kind))

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        exchange, plain = type(store_of(to)).replace, EXCHANGES[kind]
        patch.setattr(type(store_of(to)), "replace", lambda *places: patch.setattr(plain, stop) or exchange(*places))
        with pytest.raises(KeyboardInterrupt):
            eb.copy(eb.open(source), to, overwrite=True)
    assert eb.copy(eb.open(source), to, resume=True).rows == N
    assert by_id(eb.open(to)) == by_id(eb.open(source))


def test_a_finished_copy_of_another_type_is_not_taken_for_this_one(source, place):
    eb.copy(eb.open(source), to := place("lancedb"))
    assert eb.copy(eb.open(source), to, resume=True).rows == N
    with pytest.raises(OutputExistsError, match="exists already"):
        eb.copy(eb.open(source), to, resume=True, dtype="float16")


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_writer_is_refused(source, place, kind):
    to, refused = place(kind), []

    def again(*_):
        with pytest.raises(InterruptedOutputError, match="Another process is writing") as caught:
            eb.copy(eb.open(source), to, resume=True, overwrite=True)
        refused.append(str(caught.value))

    eb.copy(eb.open(source), to, progress=again)
    assert refused
    assert by_id(eb.open(to)) == by_id(eb.open(source))
