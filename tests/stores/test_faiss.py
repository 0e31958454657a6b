"""FAISS indexes of other tools, and their sidecars."""

import json
import subprocess
import sys

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embridge.errors import (
    BadIdsError,
    CollectionError,
    FaissIndexError,
    ParameterError,
    SpaceMismatchError,
    UndeclaredSpaceError,
    UnreadableFileError,
)
from embridge.files import fingerprint
from embridge.stores import open_collection
from embridge.stores.faiss.collection import FaissCollection
from embridge.stores.faiss.file import IndexFile, write_index_file
from embridge.stores.faiss.sidecars import ids_path, json_path
from embridge.types import DeclaredSpace, Metric, Space

IP, L2 = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
ROWS, DIM = 20, 4
VECTORS = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float16)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8", "IDMap2,Flat", "IDMap2,IVF4,Flat", "SQfp16", "PCA4,Flat"])
@pytest.mark.parametrize("metric", [IP, L2], ids=["ip", "l2"])
def test_bare_indexes_have_labels_for_ids(tmp_path, factory, metric, index_of):
    labels = np.random.default_rng(0).permutation(1000)[:ROWS] if "IDMap" in factory else np.arange(ROWS)
    vectors = VECTORS.astype(np.float32)
    faiss.write_index(index_of(factory, vectors, labels if "IDMap" in factory else None, metric), str(tmp_path / "a.index"))
    with pytest.raises(UndeclaredSpaceError):
        open_collection(tmp_path / "a.index")
    collection = open_collection(tmp_path / "a.index", space="m")
    assert collection.space == Space("m", DIM, Metric.DOT if metric == IP else Metric.L2)
    ids, found = collection.read()
    order = np.argsort(ids)
    np.testing.assert_array_equal(ids[order], np.sort(labels))
    np.testing.assert_allclose(found[order], vectors[np.argsort(labels)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("metric", "scale", "declared", "expected"),
    [
        (IP, 1, "m", Space("m", DIM, Metric.COSINE, normalized=True)),
        (IP, 1, "m:dot", Space("m", DIM, Metric.DOT, normalized=True)),
        (IP, 2, "m", Space("m", DIM, Metric.DOT)),
        (IP, 2, "m:cosine", Space("m", DIM, Metric.COSINE)),
        (IP, 2, DeclaredSpace("m", Metric.COSINE), Space("m", DIM, Metric.COSINE)),
        (IP, 2, DeclaredSpace("m"), Space("m", DIM, Metric.DOT)),
        (L2, 2, "m", Space("m", DIM, Metric.L2)),
        (L2, 1, "m:cosine", Space("m", DIM, Metric.COSINE, normalized=True)),
    ],
)
def test_the_space_of_a_bare_index(tmp_path, metric, scale, declared, expected, index_of):
    units = VECTORS / np.linalg.norm(VECTORS.astype(np.float32), axis=1, keepdims=True)
    faiss.write_index(index_of("Flat", (scale * units).astype(np.float32), metric=metric), str(tmp_path / "a.faiss"))
    assert open_collection(tmp_path / "a.faiss", space=declared).space == expected


@pytest.mark.parametrize(("metric", "declared"), [(IP, "m:l2"), (L2, "m:cosine"), (L2, "m:dot")])
def test_a_declared_metric_must_be_that_of_the_index(tmp_path, metric, declared, index_of):
    faiss.write_index(index_of("Flat", 2 * VECTORS.astype(np.float32), metric=metric), str(tmp_path / "a.faiss"))
    with pytest.raises(SpaceMismatchError, match="declared as metric"):
        open_collection(tmp_path / "a.faiss", space=declared)


def test_sidecars_are_read(tmp_path, index_of):
    path = str(tmp_path / "a.faiss")
    ids = pa.array([f"d{i}" for i in range(ROWS)])
    write_index_file(path, IndexFile(index_of("Flat", VECTORS.astype(np.float32)), Space("m", DIM), ids, {"source": "abc"}))
    collection = FaissCollection(path)
    assert collection.lineage == {"source": "abc"}
    assert collection.read()[0].tolist() == ids.to_pylist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.faiss", "a.faiss.ids.parquet", "a.faiss.json"]


def test_no_sidecar_of_an_earlier_index_is_left(tmp_path, index_of):
    path = str(tmp_path / "a.faiss")
    vectors = VECTORS.astype(np.float32)
    write_index_file(path, IndexFile(index_of("Flat", vectors), Space("m", DIM), pa.array([f"d{i}" for i in range(ROWS)])))
    write_index_file(path, IndexFile(index_of("IDMap2,Flat", vectors, range(ROWS)), Space("other", DIM), None))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.faiss", "a.faiss.json"]
    collection = open_collection(path)
    assert (collection.space.name, collection.id_type) == ("other", pa.int64())


def test_labels_without_an_id_are_reported(tmp_path, index_of):
    path = str(tmp_path / "a.faiss")
    labels = [*range(ROWS - 2), 77, -5]
    write_index_file(
        path, IndexFile(index_of("IDMap2,Flat", VECTORS.astype(np.float32), labels), Space("m", DIM), pa.array(range(ROWS)))
    )
    with pytest.raises(BadIdsError, match="names unknown ids: 77, -5"):
        FaissCollection(path).read()


def bind(path):
    """Name the id table that lies there in the JSON sidecar."""
    sidecar = json.loads(json_path(path).read_text())
    sidecar["index"]["ids"] = fingerprint(ids_path(path))
    json_path(path).write_text(json.dumps(sidecar))


@pytest.mark.parametrize(
    ("content", "sidecar"),
    [(b"{", json_path), (b"[]", json_path), (b'{"space": {"name": "m"}}', json_path), (b"PAR1", ids_path), (None, ids_path)],
    ids=["half", "list", "incomplete", "damaged ids", "no id column"],
)
def test_damaged_sidecars_are_refused(tmp_path, content, sidecar, index_of):
    path = str(tmp_path / "a.faiss")
    write_index_file(path, IndexFile(index_of("Flat", VECTORS.astype(np.float32)), Space("m", DIM), pa.array(range(ROWS))))
    if content is None:  # its metadata still binds it to the index
        metadata = pq.read_schema(sidecar(path)).metadata
        pq.write_table(pa.table({"key": [1]}).replace_schema_metadata(metadata), sidecar(path))
        bind(path)
    else:
        sidecar(path).write_bytes(content)
    with pytest.raises(UnreadableFileError, match=f"{sidecar(path).name}' cannot be read as the (sidecar|ids) of an index"):
        FaissCollection(path)


def test_an_empty_index_is_refused(tmp_path):
    faiss.write_index(faiss.IndexFlatIP(4), str(tmp_path / "a.faiss"))
    with pytest.raises(CollectionError, match=r"a.faiss' holds no rows"):
        open_collection(tmp_path / "a.faiss", space="m")


def test_indexes_with_another_metric_are_refused(tmp_path):
    index = faiss.IndexFlat(4, faiss.METRIC_L1)
    index.add(VECTORS.astype(np.float32))
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    with pytest.raises(FaissIndexError, match="metric other than inner product and L2"):
        open_collection(tmp_path / "a.faiss", space="m")


def test_transforms_that_cannot_be_undone_are_refused(tmp_path, index_of):
    """After read_index FAISS 1.15 takes every linear transform for orthonormal; vectors read through it would be wrong."""
    index = index_of("PCAW4,Flat", VECTORS.astype(np.float32))
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    with pytest.raises(FaissIndexError, match="is a FAISS PCAMatrix, whose vectors cannot be read back"):
        open_collection(tmp_path / "a.faiss", space="m")


def test_an_index_has_no_columns(tmp_path):
    with pytest.raises(ParameterError, match="is a FAISS index, which has no columns"):
        open_collection(tmp_path / "a.faiss", space="m", id_column="doc")


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8", "IDMap2,Flat", "PCA4,Flat"])
def test_truncated_indexes_are_refused(tmp_path, factory, index_of):
    """Cut anywhere. FAISS 1.15 crashes on some of these where the file is mapped, so they run in a process of their own."""
    index = index_of(factory, VECTORS.astype(np.float32), np.arange(ROWS) if "IDMap" in factory else None)
    path = tmp_path / "a.faiss"
    faiss.write_index(index, str(path))
    program = (
        "import sys\n"
        "from embridge.errors import UnreadableFileError\n"
        "from embridge.stores import open_collection\n"
        "path = sys.argv[1]\n"
        "data = open(path, 'rb').read()\n"
        "sizes = sorted({*range(0, min(400, len(data)), 3), 25, 27, 31, *range(len(data) - 20, len(data))})\n"
        "for size in sizes:\n"
        "    open(path, 'wb').write(data[:size])\n"
        "    try:\n"
        "        open_collection(path, space='m')\n"
        "    except UnreadableFileError as e:\n"
        "        assert 'cannot be read as a FAISS index' in str(e) and 'faiss::' not in str(e), e\n"
        "    else:\n"
        "        raise SystemExit(f'{size} of {len(data)} bytes were taken for an index')\n"
        "print(len(sizes), 'refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert int(done.stdout.split()[0]) > 100
