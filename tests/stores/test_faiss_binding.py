"""An index and its sidecars belong together: other sidecars are refused, and all of them are replaced at once."""

import json
import shutil
import subprocess
import sys
import textwrap

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.errors import (
    BadIdsError,
    EmbridgeError,
    FaissIndexError,
    InterruptedOutputError,
    OutputError,
    UnreadableFileError,
)
from embridge.files import fingerprint
from embridge.outputs import INDEX, Output, claim
from embridge.stores.faiss.file import read_index_file, write_index_file
from embridge.stores.faiss.sidecars import ids_path, json_path
from embridge.types import Space

N, DIM = 60, 6
SPACE = Space("old", DIM)
RNG = np.random.default_rng(4)
X, Y = (RNG.normal(size=(N, DIM)).astype(np.float32) for _ in range(2))
NAMES = np.array([f"doc{i}" for i in range(N)], object)


def build(path, ids=NAMES, rows=X, factory="Flat", **options):
    return eb.build_index(eb.MemoryCollection(ids, rows, SPACE), path, factory, **options)


def rewritten(path, change):
    """The index file after plain FAISS changed it, as another tool would."""
    index = faiss.read_index(str(path))
    changed = change(index)
    faiss.write_index(index if changed is None else changed, str(path))


def other_rows(_):
    index = faiss.IndexFlatIP(DIM)
    index.add(Y)
    return index


def change_table(path, change):
    """The id table changed, its metadata and the JSON sidecar kept as they were."""
    table = pq.read_table(ids_path(path))
    ids = change(table["id"].to_pylist())
    pq.write_table(pa.table({"id": ids}).replace_schema_metadata(table.schema.metadata), ids_path(path))


def name_table(path):
    """Let the JSON sidecar name the id table that lies there."""
    sidecar = json.loads(json_path(path).read_text())
    sidecar["index"]["ids"] = fingerprint(ids_path(path))
    json_path(path).write_text(json.dumps(sidecar))


def without_binding(path):
    pq.write_table(pq.read_table(ids_path(path)).replace_schema_metadata(None), ids_path(path))
    sidecar = json.loads(json_path(path).read_text())
    del sidecar["index"]
    json_path(path).write_text(json.dumps(sidecar))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: rewritten(path, lambda index: index.remove_ids(np.array([0, 1, 2])) and None),
        lambda path: rewritten(path, lambda index: index.add(Y[:2])),
        lambda path: rewritten(path, other_rows),
        lambda path: change_table(path, lambda ids: ids[:-3]),
        lambda path: change_table(path, lambda ids: [*ids, "more"]),
        lambda path: change_table(path, lambda ids: ids[::-1]),
        lambda path: ids_path(path).unlink(),
        lambda path: json_path(path).unlink() or change_table(path, lambda ids: ids[1:]),
        without_binding,
        lambda path: [shutil.copy(f(path.with_name("b.faiss")), f(path)) for f in (ids_path, json_path)],
        lambda path: shutil.copy(ids_path(path.with_name("b.faiss")), ids_path(path)),
        lambda path: shutil.copy(json_path(path.with_name("b.faiss")), json_path(path)),
        lambda path: shutil.copy(path.with_name("b.faiss"), path),
    ],
    ids=["removed", "added", "another index", "fewer ids", "more ids", "turned round", "no table", "no json, fewer ids", "unbound",
         "both sidecars of another", "ids of another", "json of another", "under another's name"],
)  # fmt: skip
def test_sidecars_of_another_index_are_refused_by_every_verb(tmp_path, monkeypatch, spoil):
    monkeypatch.chdir(tmp_path)
    build(tmp_path / "a.faiss")
    build(tmp_path / "b.faiss", np.array([f"other{i}" for i in range(N)], object), Y)
    eb.LinearMap(np.eye(DIM), np.zeros(DIM), SPACE, Space("new", DIM)).save("map.safetensors")
    good = eb.open("a.faiss")
    eb.convert(good, eb.load_map("map.safetensors"), "converted.parquet")
    spoil(tmp_path / "a.faiss")
    before = sorted(p.name for p in tmp_path.iterdir())
    for read in (eb.open_index, eb.open, read_index_file):
        with pytest.raises(EmbridgeError, match=r"a\.faiss.*(Hint|holds)"):
            read("a.faiss")
    for line in (
        "search a.faiss b.faiss", "convert a.faiss map.safetensors o.parquet", "info a.faiss",
        "migrate a.faiss map.safetensors n.faiss",
        "verify converted.parquet --source a.faiss --map map.safetensors",
    ):  # fmt: skip
        done = CliRunner().invoke(main, [*line.split(), *([] if line.startswith("info") else ["--no-catalog"])])
        assert (done.exit_code, "a.faiss" in done.stderr) == (1, True), (line, done.output)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_forged_table_is_held_against_the_index(tmp_path):
    path = tmp_path / "a.faiss"
    for change, error in (
        (lambda ids: ids[:-1], FaissIndexError),
        (lambda ids: [*ids, "more"], FaissIndexError),
        (lambda ids: [*ids[:-1], ids[0]], BadIdsError),
        (lambda ids: [*ids[:-1], None], BadIdsError),
    ):
        build(path, overwrite=True)
        change_table(path, change)
        name_table(path)
        with pytest.raises(error, match=r"a\.faiss"):
            eb.open_index(path)


def test_labels_that_are_no_positions_may_have_gaps(tmp_path):
    """After a removal from inverted lists labels stay, so the table keeps ids that no row has."""
    path = tmp_path / "a.faiss"
    build(path, factory="IVF4,Flat")
    file = read_index_file(str(path))
    file.index.remove_ids(np.arange(3))
    write_index_file(str(path), file)
    found = eb.open_index(path).search(X[3:], 1, parameters="nprobe=4").ids.ravel()
    assert found.tolist() == NAMES[3:].tolist()


def test_a_bare_index_opens_with_positions_and_a_sidecar_may_declare_its_space(tmp_path):
    path = tmp_path / "a.faiss"
    faiss.write_index(other_rows(None), str(path))
    json_path(path).write_text(json.dumps({"space": Space("old", DIM, "dot").to_dict()}))
    assert eb.open_index(path).search(Y, 1).ids.shape == (N, 1)
    json_path(path).write_text(json.dumps({"space": Space("old", DIM, "dot").to_dict(), "hubness": {}}))
    with pytest.raises(
        FaissIndexError, match=r"does not name the index it belongs to, but has more entries than its space \(hubness\)"
    ):
        eb.open_index(path)
    json_path(path).write_text(json.dumps({"space": SPACE.to_dict(), "index": {"fingerprint": "0", "count": N, "ids": None}}))
    with pytest.raises(FaissIndexError, match="belongs to another index"):
        eb.open_index(path)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"space": {}}', '{"space": null}', '{"lineage": {}}', '{"space": {"name": "m", "dim": 1e999}}', "\\ud800",
     "NaN",
     '{"space": {"name": "m", "dim": 6, "metric": "dot", "normalized": false}, "index": {"count": "x"}}',
     '{"space": {"name": "m", "dim": 6, "metric": "dot", "normalized": false}, "scores": {"offset": [1]}}'],
)  # fmt: skip
def test_damaged_sidecars_are_refused_with_their_name(tmp_path, text):
    path = tmp_path / "a.faiss"
    faiss.write_index(other_rows(None), str(path))
    json_path(path).write_text(text)
    with pytest.raises(UnreadableFileError, match=r"a\.faiss\.json"):
        eb.open_index(path)


@pytest.mark.parametrize("count", ["Infinity", "NaN", "[]", '"x"', "null", "[" * 100_000])
def test_a_damaged_count_in_the_ids_is_refused_with_their_name(tmp_path, count):
    path = tmp_path / "a.faiss"
    faiss.write_index(other_rows(None), str(path))
    metadata = {"embridge.index": f'{{"fingerprint": "{fingerprint(path)}", "count": {count}}}'}
    table = pa.table({"id": [f"d{i}" for i in range(N)]}).replace_schema_metadata(metadata)
    pq.write_table(table, ids_path(path))
    with pytest.raises(UnreadableFileError, match=r"a\.faiss\.ids\.parquet"):
        eb.open_index(path, space="m")


def test_a_sidecar_whose_binding_is_null_declares_the_space_alone(tmp_path):
    path = tmp_path / "a.faiss"
    faiss.write_index(other_rows(None), str(path))
    json_path(path).write_text(json.dumps({"space": Space("old", DIM, "dot").to_dict(), "index": None}))
    assert eb.open_index(path).space == Space("old", DIM, "dot")


# Replaced at once

PROGRAM = """
    import os, signal, sys
    import numpy as np
    import embridge as eb
    from embridge.types import Space

    folder, kind = sys.argv[1:3]
    path = folder + "/a.faiss"
    rng = np.random.default_rng(0)
    X, Y = (rng.normal(size=(40, 6)).astype("f4") for _ in range(2))
    Y = X if kind == "same rows" else Y
    names = lambda letter: np.array([f"{letter}{i}" for i in range(40)], object)
    OLD = (np.arange(40), X) if kind == "table comes" else (names("a"), X)
    NEW = (1000 + np.arange(40), Y) if kind == "table goes" else (names("b"), Y)

    def build(content):
        eb.build_index(eb.MemoryCollection(*content, Space("m", 6)), path, "Flat", overwrite=True)

    def generation():
        index = eb.open_index(path)
        for name, (ids, rows) in (("old", OLD), ("new", NEW)):
            if index.search(rows, 1).ids.ravel().tolist() == ids.tolist():
                return name
        raise SystemExit("a mix of two sets")
"""
KILLS = """
    def killed_at(number):
        child = os.fork()
        if child == 0:
            seen = 0
            def hook(event, arguments):
                nonlocal seen
                if event in ("open", "os.rename", "os.remove") and folder in str(arguments[0]):
                    seen += 1
                    if seen == number:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(hook)
            build(NEW)
            os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    found, number = [], 1
    build(OLD)
    while killed_at(number):
        found.append(generation())
        build(OLD)
        assert generation() == "old"
        left = {name for name in os.listdir(folder) if name.startswith(".")}
        assert not left, left
        number += 1
    assert generation() == "new"
    turn = found.index("new") if "new" in found else len(found)
    assert set(found[:turn]) <= {"old"} and set(found[turn:]) <= {"new"}, found
    print(len(found), turn)
"""


@pytest.mark.parametrize("kind", ["table stays", "table comes", "table goes", "same rows"])
def test_killed_at_any_call_the_old_or_the_new_set_is_there(commands, tmp_path, kind):
    code = textwrap.dedent(PROGRAM) + textwrap.dedent(KILLS)
    done = subprocess.run([commands / "python-c", code, str(tmp_path), kind], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:])
    kills, turn = map(int, done.stdout.split())
    assert kills > 10
    assert 0 < turn < kills  # both were seen


READERS = """
    import threading
    build(OLD)
    seen, failures = [], []
    over = threading.Event()

    def read():
        while not over.is_set():
            try:
                seen.append(generation())
            except BaseException as e:
                failures.append(repr(e))
                return

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(15):
        build(NEW)
        build(OLD)
    over.set()
    reader.join()
    assert not failures, failures
    print(len(seen))
"""


@pytest.mark.parametrize("kind", ["table stays", "table comes", "same rows"])
def test_readers_see_one_set_while_it_is_replaced(commands, tmp_path, kind):
    code = textwrap.dedent(PROGRAM) + textwrap.dedent(READERS)
    done = subprocess.run([commands / "python-c", code, str(tmp_path), kind], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:])
    assert int(done.stdout) > 0


def test_the_second_of_two_writers_is_refused(tmp_path):
    path = tmp_path / "a.faiss"
    index = build(path)
    translation = eb.LinearMap(np.eye(DIM), np.zeros(DIM), SPACE, Space("new", DIM))
    build(tmp_path / "b.faiss")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with claim(Output(path, INDEX), overwrite=True):
        for write in (
            lambda: build(path, overwrite=True),
            lambda: index.add(eb.MemoryCollection(["e"], Y[:1], SPACE)),
            lambda: eb.migrate(tmp_path / "b.faiss", translation, path, overwrite=True),
        ):
            with pytest.raises(InterruptedOutputError, match=r"a\.faiss"):
                write()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_cannot_be_written_names_the_output_and_leaves_the_old_one(tmp_path):
    """A limit on the size of files stands for a full disk: both fail in the middle of a write."""
    path = tmp_path / "a.faiss"
    build(path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    program = """
        import resource, sys
        import numpy as np
        import embridge as eb
        collection = eb.MemoryCollection(np.arange(5000), np.ones((5000, 6), "f4"), eb.Space("old", 6))
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            eb.build_index(collection, sys.argv[1], "Flat", overwrite=True)
        except eb.EmbridgeError as e:
            print(type(e).__name__, e)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"{OutputError.__name__} '{path}' cannot be written: File too large"), (done.stdout, done.stderr)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,Flat", "PCA4,Flat"])
def test_rows_of_negative_ids_are_found(tmp_path, factory):
    """-1 among them, which FAISS takes for an empty place."""
    ids = np.where(np.arange(N) % 2, np.arange(N), -np.arange(N) - 1)
    index = build(tmp_path / "a.faiss", ids, factory=factory)
    parameters = "nprobe=4" if "IVF" in factory else "efSearch=100" if "HNSW" in factory else ""
    for opened in (index, eb.open_index(tmp_path / "a.faiss")):
        hits = opened.search(X, N + 2, parameters=parameters)
        assert hits.ids[:, 0].tolist() == ids.tolist() if factory != "PCA4,Flat" else True
        assert all(sorted(hits.row(i)[0]) == sorted(ids.tolist()) for i in range(N))
        assert (hits.scores[:, N:] == -np.inf).all()
    assert sorted(eb.open(tmp_path / "a.faiss").read()[0].tolist()) == sorted(ids.tolist())


@pytest.mark.parametrize("front", ["", "PCA6,"])
def test_an_id_map_of_another_tool_may_hold_minus_one_and_lists_may_not(tmp_path, front):
    ids = np.arange(N) - 1
    index = faiss.index_factory(DIM, f"{front}Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(X)
    index = faiss.IndexIDMap2(index)
    index.add_with_ids(X, ids)
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    hits = eb.open_index(tmp_path / "a.faiss", space="old:dot").search(X, N + 1)
    assert all(sorted(hits.row(i)[0]) == ids.tolist() for i in range(N))
    lists = faiss.index_factory(DIM, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    lists.train(X)
    lists.add_with_ids(X, ids)
    faiss.write_index(lists, str(tmp_path / "b.faiss"))
    with pytest.raises(FaissIndexError, match=r"has a vector of id -1 in its inverted lists.*Hint: give that vector another id"):
        eb.open_index(tmp_path / "b.faiss", space="old:dot")
