"""Arrays on disk: the conformance suite, and what is particular to ``.npy``, ``.npz`` and dataset folders."""

import itertools
import json
import os
import shutil
import uuid

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
    EmbridgeError,
    MissingFileError,
    OutputExistsError,
    ParameterError,
    UndeclaredSpaceError,
    UnreadableFileError,
)
from embridge.stores.capabilities import Capabilities
from embridge.testing.stores import CollectionConformance
from embridge.testing.writers import StoreConformance
from embridge.types import Metric

ROWS = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)


class TestNpy(StoreConformance):
    capabilities = Capabilities(keeps_repeated_ids=True, dtypes=("float32", "float16"))

    @pytest.fixture
    def new_uri(self, tmp_path):
        return lambda: f"npy://{tmp_path}/{uuid.uuid4().hex}.npy"

    def lose_the_next_note(self, writer, monkeypatch):
        def stop(note):
            raise KeyboardInterrupt

        monkeypatch.setattr(writer, "_put_note", stop)

    def add(self, uri, ids, vectors):
        path = uri.removeprefix("npy://")
        np.save(path, np.concatenate([np.load(path), vectors]))


class TestNpz(CollectionConformance):
    has_payload = False

    @pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
    def make(self, request, tmp_path):
        def make(ids, vectors, space, payload=None):
            path = tmp_path / f"{uuid.uuid4().hex}.npz"
            request.param(path, vectors=vectors, ids=np.array(ids))
            return eb.open(f"npy://{path}", space=space)

        return make


class TestDatasetFolder(CollectionConformance):
    @pytest.fixture(params=["list", "fixed"])
    def make(self, request, tmp_path, table_of):
        def make(ids, vectors, space, payload=None):
            table = table_of(ids, vectors, payload, kind=request.param)
            return eb.open(f"npy://{save_to_disk(tmp_path / uuid.uuid4().hex, table)}", space=space)

        return make


def save_to_disk(folder, table):
    """A folder as `datasets.Dataset.save_to_disk` writes it, in two files."""
    folder.mkdir(parents=True)
    files = [f"data-{i:05}-of-00002.arrow" for i in range(2)]
    for name, part in zip(files, (table.slice(0, 60), table.slice(60)), strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as stream:
            for batch in part.to_batches(max_chunksize=17):
                stream.write_batch(batch)
    state = {"_data_files": [{"filename": name} for name in files], "_fingerprint": "1", "_format_type": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_positions_are_the_ids_of_a_bare_array(tmp_path):
    np.save(tmp_path / "v.npy", ROWS)
    found = eb.open(f"npy://{tmp_path}/v.npy", space="minilm:dot")
    assert found.read()[0].tolist() == list(range(50))
    assert found.space == eb.Space("minilm", 4, Metric.DOT)
    with pytest.raises(UndeclaredSpaceError, match="does not name the encoder"):
        eb.open(f"npy://{tmp_path}/v.npy")


@pytest.mark.parametrize("dtype", ["float16", ">f4", "float64", "int8"])
def test_any_type_of_numbers_is_read(tmp_path, dtype):
    rows = (ROWS * 10).astype(dtype)
    np.save(tmp_path / "v.npy", rows)
    np.testing.assert_array_equal(eb.open(f"npy://{tmp_path}/v.npy", space="a").read()[1], rows.astype(np.float32))


@pytest.mark.parametrize("where", ["ids.parquet", "/{folder}/ids.parquet"])
def test_ids_and_payload_come_from_a_parquet_file(tmp_path, where, table_of, write, make_space):
    np.save(tmp_path / "v.npy", ROWS)
    ids = [f"d{i}" for i in range(50)]
    table = pa.table({"doc": ids, "n": range(50)})
    pq.write_table(table, tmp_path / "ids.parquet", row_group_size=7)
    uri = f"npy://{tmp_path}/v.npy?ids={where.format(folder=str(tmp_path)[1:])}&id=doc"
    found = eb.open(uri, space="a")
    batches = list(found.batches(11, payload=True))
    assert [i for b in batches for i in b.ids.to_pylist()] == ids
    assert [n for b in batches for n in b.payload.column(0).to_pylist()] == list(range(50))
    assert eb.open(uri.removesuffix("&id=doc"), space="a", id_column="doc").read()[0].tolist() == ids
    with pytest.raises(ParameterError, match="names the column 'doc'"):
        eb.open(uri, space="a", id_column="n")
    with pytest.raises(CollectionError, match="has no column 'id'"):
        eb.open(uri.removesuffix("&id=doc"), space="a")


def test_ids_come_from_an_array_and_archives_have_names(tmp_path):
    np.save(tmp_path / "v.npy", ROWS)
    np.save(tmp_path / "ids.npy", np.array([f"x{i}" for i in range(50)]))
    np.savez(tmp_path / "a.npz", old=ROWS, keys=np.arange(50) + 7)
    assert eb.open(f"npy://{tmp_path}/v.npy?ids=ids.npy", space="a").read()[0].tolist()[:2] == ["x0", "x1"]
    found = eb.open(f"npy://{tmp_path}/a.npz?vector=old&id=keys", space="a")
    assert found.read()[0].tolist() == list(range(7, 57))
    with pytest.raises(CollectionError, match=r"has no array 'vectors'. Arrays: old, keys"):
        eb.open(f"npy://{tmp_path}/a.npz", space="a")


def save(path, array, **kw):
    np.save(path, array, **kw)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), UnreadableFileError, "does not fit its size"),
        (lambda path: path.write_bytes(b"nothing of the kind"), UnreadableFileError, "cannot be read as an array"),
        (lambda path: path.write_bytes(b""), UnreadableFileError, "cannot be read as an array"),
        (lambda path: np.save(path, np.array([{}], object), allow_pickle=True), UnreadableFileError, "could be any code"),
        (lambda path: np.save(path, np.asfortranarray(ROWS)), UnreadableFileError, "column by column"),
        (lambda path: np.save(path, ROWS[0]), BadVectorsError, "shape"),
        (lambda path: np.save(path, ROWS.astype("U4")), BadVectorsError, "must hold float16"),
        (lambda path: np.save(path, ROWS[:0]), CollectionError, "holds no rows"),
        (lambda path: np.save(path, ROWS[:, :0]), EmbridgeError, "at least 1"),
        (lambda path: np.save(path.with_name("ids.npy"), np.arange(49)), CollectionError, "50 vectors, but ids of shape"),
        (lambda path: np.save(path.with_name("ids.npy"), np.ones((50, 2), int)), CollectionError, "50 vectors, but ids of shape"),
        (lambda path: np.save(path.with_name("ids.npy"), np.ones(50)), BadIdsError, "string or int64"),
        (lambda path: path.with_name("ids.npy").unlink(), EmbridgeError, "no file or folder"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path, change, error, reason):
    np.save(tmp_path / "v.npy", ROWS)
    np.save(tmp_path / "ids.npy", np.arange(50))
    change(tmp_path / "v.npy")
    with pytest.raises(error, match=reason):
        eb.open(f"npy://{tmp_path}/v.npy?ids=ids.npy", space="a")


def test_ids_beyond_int64_are_refused(tmp_path):
    np.save(tmp_path / "v.npy", ROWS)
    np.save(tmp_path / "ids.npy", np.arange(50, dtype=np.uint64) + np.uint64(1 << 63))
    with pytest.raises(BadIdsError, match="beyond int64"):
        eb.open(f"npy://{tmp_path}/v.npy?ids=ids.npy", space="a").read()


def test_an_array_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    np.save(tmp_path / "v.npy", np.tile(ROWS, (4000, 1)))
    batches = eb.open(f"npy://{tmp_path}/v.npy", space="a").batches(100)
    next(batches)
    np.save(tmp_path / "v.npy", ROWS)
    with pytest.raises((UnreadableFileError, ChangedSourceError)):
        list(batches)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_data_files": [{"filename": "../x"}]}', '{"_data_files": []}'])
def test_a_state_that_names_no_files_is_refused(tmp_path, text, table_of):
    folder = save_to_disk(tmp_path / "d", table_of(range(100), np.ones((100, 4))))
    (folder / "state.json").write_text(text)
    with pytest.raises(UnreadableFileError, match="state of a dataset"):
        eb.open(f"npy://{folder}", space="a")


def test_a_damaged_dataset_and_a_dictionary_of_datasets_are_refused(tmp_path, table_of):
    table = table_of(range(100), np.ones((100, 4)))
    folder = save_to_disk(tmp_path / "d" / "train", table)
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(CollectionError, match=r"several datasets: train\. Hint"):
        eb.open(f"npy://{tmp_path}/d", space="a")
    assert len(eb.open(f"npy://{folder}", space="a")) == 100
    file = next(folder.glob("*.arrow"))
    whole = file.read_bytes()
    for size in range(1, len(whole), len(whole) // 23):
        file.write_bytes(whole[:size])
        try:
            rows = len(eb.open(f"npy://{folder}", space="a").read()[0])
        except EmbridgeError:
            continue
        assert rows < 100  # a stream may end after any batch


def test_paths_need_three_slashes(tmp_path):
    with pytest.raises(ParameterError, match="three slashes"):
        eb.open("npy://vectors.npy", space="a")


def test_every_batch_size_reads_every_row_of_every_layout(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", vectors=ROWS)
    found = eb.open(f"npy://{tmp_path}/a.npz", space="a")
    for rows in (1, 7, 50, 51):
        assert [b.start for b in found.batches(rows)] == [0, *itertools.accumulate(len(b) for b in found.batches(rows))][:-1]


def test_arrays_are_not_migrated_in_place(tmp_path, planted, make_space):
    ids, x, y, _ = planted(n=60, p=4)
    old, new = (eb.MemoryCollection(ids, v, make_space(n, v.shape[1])) for n, v in (("old", x), ("new", y)))
    eb.copy(old, f"npy://{tmp_path}/a.npy")
    before = (tmp_path / "a.npy").read_bytes()
    with pytest.raises(ParameterError, match=r"no room for second vectors.* Hint: embridge convert writes a new one"):
        eb.migrate_in_place(f"npy://{tmp_path}/a.npy", eb.fit(eb.match(old, new), "ridge", alpha=0.1))
    assert (tmp_path / "a.npy").read_bytes() == before


def test_a_run_that_is_killed_at_its_very_end_is_finished(tmp_path, monkeypatch, make_space):
    source, uri = eb.MemoryCollection(range(50), ROWS, make_space("s", 4)), f"npy://{tmp_path}/v.npy"
    remove = shutil.rmtree

    def stop(path, **options):
        if str(path).endswith(".partial"):
            raise KeyboardInterrupt
        remove(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr("embridge.stores.npy.writer.shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            eb.copy(source, uri)
    assert eb.copy(source, uri, resume=True).rows == 50
    np.testing.assert_array_equal(eb.open(uri).read()[1], ROWS)
    eb.copy(source, uri, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.npy", "v.npy.ids.parquet"]


def test_vectors_are_never_left_without_their_ids(tmp_path, monkeypatch, make_space):
    """A bare array would be read with positions as ids."""
    ids, uri = [f"d{i}" for i in range(50)], f"npy://{tmp_path}/v.npy"
    source, unlink = eb.MemoryCollection(ids, ROWS, make_space("s", 4)), os.unlink
    eb.copy(source, uri)

    def stop(path, **options):
        unlink(path, **options)
        if str(path).startswith(str(tmp_path / "v.npy")):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("embridge.stores.npy.os.unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            eb.copy(source, uri, overwrite=True)
    with pytest.raises(MissingFileError):
        eb.open(uri, space="s")


def test_a_parquet_collection_is_not_replaced_as_the_ids_of_an_array(tmp_path, make_space):
    source = eb.MemoryCollection(range(50), ROWS, make_space("s", 4))
    eb.copy(source, tmp_path / "rows.parquet")
    np.save(tmp_path / "v.npy", ROWS)
    with pytest.raises(OutputExistsError, match="was not written by embridge"):
        eb.copy(source, f"npy://{tmp_path}/v.npy?ids=rows.parquet", overwrite=True)
    assert len(eb.open(tmp_path / "rows.parquet")) == 50


def test_a_selection_of_a_dataset_is_refused(tmp_path, table_of):
    table = table_of([f"d{i}" for i in range(100)], np.ones((100, 4), np.float32))
    state = json.loads((folder := save_to_disk(tmp_path / "d", table)).joinpath("state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"_indices_data_files": []}))
    assert len(eb.open(f"npy://{folder}", space="a")) == 100
    (folder / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(CollectionError, match="flatten_indices"):
        eb.open(f"npy://{folder}", space="a")
