"""LanceDB: the conformance suite, and what is particular to its tables."""

import subprocess
import sys
import uuid

import numpy as np
import pyarrow as pa
import pytest

import embridge as eb
from embridge.errors import (
    BadVectorsError,
    CollectionError,
    InterruptedOutputError,
    MissingFileError,
    OutputExistsError,
    ParameterError,
    UnreadableFileError,
)
from embridge.stores.capabilities import Capabilities
from embridge.testing.writers import StoreConformance
from embridge.types import Metric

lancedb = pytest.importorskip("lancedb")
IvfFlat = pytest.importorskip("lancedb.index").IvfFlat
pytestmark = pytest.mark.lancedb
ROWS = np.random.default_rng(2).normal(size=(600, 4)).astype(np.float32)


class TestLance(StoreConformance):
    capabilities = Capabilities(
        keeps_repeated_ids=True,
        has_snapshot=True,
        supports_second_vector=True,
        dtypes=("float32", "float16"),
        in_place_modes=("column",),
        finds_missing=True,
    )
    keeps_bad_values = False  # LanceDB refuses them
    is_reproducible = False  # the fingerprint is that of a version of one table
    unheld = (pa.field("interval", pa.month_day_nano_interval()), pa.field("view", pa.string_view()))
    payload = StoreConformance.payload | {
        "kind": pa.array(["a", "b"] * 50).dictionary_encode(),
        "pair": pa.array([{"x": i, "y": [str(i)]} for i in range(100)]),
    }

    @pytest.fixture
    def new_uri(self, tmp_path):
        return lambda: f"lancedb://{tmp_path}#t{uuid.uuid4().hex}"

    def lose_the_next_note(self, writer, monkeypatch):
        def stop(note):
            raise KeyboardInterrupt

        monkeypatch.setattr(writer, "finish", stop)

    def add(self, uri, ids, vectors):
        folder, _, name = uri.removeprefix("lancedb://").partition("#")
        table = lancedb.connect(folder).open_table(name)
        table.add([{"id": i, "vector": v} for i, v in zip(ids, vectors, strict=True)])


@pytest.fixture
def foreign(tmp_path):
    """A table that embridge did not make, in several fragments."""
    table = lancedb.connect(tmp_path).create_table("docs", [{"doc": 0, "embedding": ROWS[0], "text": "t0"}])
    for start in range(1, 600, 100):
        rows = range(start, min(start + 100, 600))
        table.add([{"doc": i, "embedding": ROWS[i], "text": f"t{i}"} for i in rows])
    return tmp_path, table


def test_a_foreign_table_is_read_in_the_order_of_its_rows(foreign):
    folder, table = foreign
    found = eb.open(f"lancedb://{folder}?id=doc&vector=embedding#docs", space="minilm:dot")
    ids, vectors = found.read()
    assert ids.tolist() == list(range(600))
    np.testing.assert_array_equal(vectors, ROWS)
    assert found.payload_schema.names == ["text"]
    with pytest.raises(CollectionError, match="has no column 'id'"):
        eb.open(f"lancedb://{folder}#docs", space="minilm")
    table.delete("doc % 2 = 0")
    table.optimize()
    assert eb.open(f"lancedb://{folder}?id=doc&vector=embedding#docs", space="m").read()[0].tolist() == list(range(1, 600, 2))
    assert found.read()[0].tolist() == list(range(600))


def test_the_metric_is_that_of_the_index(foreign):
    folder, table = foreign
    table.create_index("embedding", config=IvfFlat(distance_type="l2", num_partitions=2))
    found = eb.open(f"lancedb://{folder}?id=doc&vector=embedding#docs", space="minilm")
    assert found.space == eb.Space("minilm", 4, Metric.L2)
    assert found.search(ROWS[:3], 1).ids.ravel().tolist() == [0, 1, 2]


def test_rows_without_a_vector_are_named(foreign):
    folder, table = foreign
    table.add([{"doc": 600, "embedding": None, "text": "none"}])
    found = eb.open(f"lancedb://{folder}?id=doc&vector=embedding#docs", space="minilm")
    with pytest.raises(BadVectorsError, match=r"1 row without a vector \(null\), the first at row 600"):
        found.read()
    assert eb.summarize(found).bad_rows == 1


def test_a_table_that_is_removed_while_it_is_read_is_an_error(foreign):
    folder, _ = foreign
    found = eb.open(f"lancedb://{folder}?id=doc&vector=embedding#docs", space="minilm")
    lancedb.connect(folder).drop_table("docs")
    with pytest.raises((UnreadableFileError, MissingFileError)):
        found.read()


@pytest.mark.parametrize("uri", ["lancedb://{0}", "lancedb://host/{0}#docs", "lancedb://#docs"])
def test_a_uri_names_a_folder_and_a_table(tmp_path, uri):
    with pytest.raises((ParameterError, MissingFileError)):
        eb.open(uri.format(tmp_path), space="a")
    assert not list(tmp_path.iterdir())


def test_a_damaged_table_is_an_error(foreign):
    folder, _ = foreign
    for path in (folder / "docs.lance" / "data").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UnreadableFileError, match="cannot be read as a LanceDB table"):
        eb.open(f"lancedb://{folder}?id=doc&vector=embedding#docs", space="minilm").read()


def test_without_the_package_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['lancedb'] = None\n"
        "import embridge as eb\n"
        "try: eb.open('lancedb:///nowhere#t')\n"
        "except eb.EmbridgeError as e: print(type(e).__name__, e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "MissingDependencyError lancedb:// needs lancedb, which is not installed. Hint: pip install 'embridge[lancedb]'."
    )


@pytest.mark.parametrize("config", ["IvfPq", "IvfSq", "HnswSq"])
def test_scores_of_a_quantized_index_are_exact(tmp_path, config):
    rows = np.random.default_rng(1).normal(size=(600, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    source = eb.MemoryCollection(range(600), rows, eb.Space("a", 16, Metric.COSINE))
    eb.copy(source, uri := f"lancedb://{tmp_path}/l#docs")
    lancedb.connect(tmp_path / "l").open_table("docs").create_index(
        "vector", config=getattr(lancedb.index, config)(distance_type="cosine")
    )
    found = eb.open(uri).search(3 * rows[:20], 5)
    exact = np.take_along_axis(rows[:20] @ rows.T, found.ids, axis=1)
    np.testing.assert_allclose(found.scores, exact, atol=1e-5)
    assert found.ids[:, 0].tolist() == list(range(20))


def test_a_column_named_as_distances_are_is_refused(tmp_path):
    data = [{"id": str(i), "vector": row.tolist(), "_distance": 1.0} for i, row in enumerate(ROWS)]
    lancedb.connect(tmp_path / "l").create_table("docs", data)
    found = eb.open(f"lancedb://{tmp_path}/l#docs", space="a")
    with pytest.raises(CollectionError, match="has a column '_distance'"):
        found.search(ROWS[:1], 1)
    with pytest.raises(CollectionError, match="cannot hold the column '_distance'"):
        eb.copy(found, f"lancedb://{tmp_path}/l#other")


def test_a_table_that_was_only_created_can_be_replaced(tmp_path, monkeypatch):
    source = eb.MemoryCollection(range(len(ROWS)), ROWS, eb.Space("a", 4))
    uri = f"lancedb://{tmp_path}/l#docs"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("embridge.stores.lancedb.LanceWriter", stop)
        with pytest.raises(KeyboardInterrupt):
            eb.copy(source, uri)
    with pytest.raises(InterruptedOutputError, match="0 rows are written"):
        eb.open(uri)
    assert eb.copy(source, uri, overwrite=True).rows == len(ROWS)


def test_what_lies_where_a_replacement_is_written_is_not_removed(tmp_path):
    source = eb.MemoryCollection(range(len(ROWS)), ROWS, eb.Space("a", 4))
    for uri in (f"lancedb://{tmp_path}/l#docs", f"lancedb://{tmp_path}/l#docs_replacement"):
        eb.copy(eb.MemoryCollection(["a"], [[1.0, 2.0]], eb.Space("small", 2)), uri)
    with pytest.raises(OutputExistsError, match="Hint: rename or remove it"):
        eb.copy(source, f"lancedb://{tmp_path}/l#docs", overwrite=True)
    assert len(eb.open(uri)) == 1
