"""Which space a file is of: what it says itself, what is declared, what is detected; spaces are never mixed silently."""

import numpy as np
import pytest

from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    CollectionError,
    SpaceMismatchError,
    UndeclaredSpaceError,
)
from embridge.stores import ParquetCollection, open_collection
from embridge.stores.faiss.file import IndexFile, write_index_file
from embridge.stores.parquet.collection import SPACE_KEY
from embridge.types import DeclaredSpace, Metric, Space

ROWS, DIM = 20, 4
VECTORS = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float16)


def test_a_space_must_be_named(tmp_path, table_of, write):
    path = write(tmp_path / "a.parquet", table_of(range(3), VECTORS[:3]))
    with pytest.raises(UndeclaredSpaceError, match=r"a.parquet' does not name the encoder.*--space NAME"):
        open_collection(path)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("mpnet", "declared as space 'mpnet', but its own metadata says space 'minilm'"),
        ("minilm:l2", "declared as metric 'l2', but its own metadata says metric 'cosine'"),
        (Space("minilm", 384), "declared as dim 384, but its own metadata says dim 4"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["parquet", "faiss"])
def test_a_declared_space_must_not_contradict_the_file(tmp_path, kind, declared, message, table_of, index_of, write):
    path, space = tmp_path / f"a.{kind}", Space("minilm", DIM)
    if kind == "parquet":
        write(path, table_of(range(3), VECTORS[:3], space=space))
    else:
        write_index_file(str(path), IndexFile(index_of("Flat", VECTORS.astype(np.float32)), space, None))
    with pytest.raises(SpaceMismatchError, match=message):
        open_collection(path, space=declared)


def test_a_declared_width_must_be_that_of_the_data(tmp_path, table_of, write):
    path = write(tmp_path / "a.parquet", table_of(range(3), VECTORS[:3]))
    with pytest.raises(SpaceMismatchError, match="dim 384"):
        open_collection(path, space=Space("minilm", 384))


def test_metadata_must_not_contradict_the_data(tmp_path, table_of, write):
    path = write(tmp_path / "a.parquet", table_of(range(3), VECTORS[:3], space=Space("minilm", 384)))
    with pytest.raises(CollectionError, match="state 384 dimensions, but its vectors have 4 values"):
        open_collection(path)


@pytest.mark.parametrize(
    "metadata",
    [b"minilm", b"\xff\xfe\xfd", b'"minilm"', b'{"name": "minilm"}', b'{"name": "m", "dim": "?", "metric": "cosine"}'],
    ids=str,
)
def test_metadata_that_is_no_space_is_refused(tmp_path, metadata, table_of, write):
    table = table_of(range(3), VECTORS[:3]).replace_schema_metadata({SPACE_KEY: metadata})
    with pytest.raises(CollectionError, match=r"The metadata 'embridge.space'"):
        open_collection(write(tmp_path / "a.parquet", table), space="minilm")


@pytest.mark.parametrize("other", [Space("mpnet", DIM), Space("minilm", DIM, Metric.DOT)], ids=["name", "metric"])
def test_files_of_two_spaces_must_not_be_mixed(tmp_path, other, table_of, write):
    write(tmp_path / "a.parquet", table_of([0], VECTORS[:1], space=Space("minilm", DIM)))
    write(tmp_path / "b.parquet", table_of([1], VECTORS[:1], space=other))
    with pytest.raises(
        SpaceMismatchError, match=f"mixes spaces: .*a.parquet' holds 4-.* of 'minilm'.*b.parquet' 4-.*{other.name!r}"
    ):
        open_collection(tmp_path)


def test_a_file_that_names_no_space_must_not_be_mixed_silently(tmp_path, table_of, write):
    write(tmp_path / "a.parquet", table_of([0], VECTORS[:1], space=Space("minilm", DIM)))
    write(tmp_path / "b.parquet", table_of([1], VECTORS[:1]))
    with pytest.raises(UndeclaredSpaceError, match=r"b.parquet' does not name"):
        open_collection(tmp_path)
    assert open_collection(tmp_path, space="minilm").space == Space("minilm", DIM)


def test_files_of_two_widths_must_not_be_mixed(tmp_path, table_of, write):
    write(tmp_path / "a.parquet", table_of([0], VECTORS[:1]))
    write(tmp_path / "b.parquet", table_of([1], VECTORS[:1, :3]))
    with pytest.raises(BadVectorsError, match=r"is ragged: .*b.parquet' holds 3-dimensional vectors, .*a.parquet' 4-dimensional"):
        open_collection(tmp_path, space="m")


def test_files_with_ids_of_two_types_must_not_be_mixed(tmp_path, table_of, write):
    write(tmp_path / "a.parquet", table_of(["0"], VECTORS[:1]))
    write(tmp_path / "b.parquet", table_of([1], VECTORS[:1]))
    with pytest.raises(BadIdsError, match=r"a.parquet' are string, ids of .*b.parquet' are int64"):
        open_collection(tmp_path, space="m")


@pytest.mark.parametrize(("scale", "normalized"), [(1, True), (1.0005, True), (1.1, False)])
def test_unit_length_is_detected(tmp_path, scale, normalized, table_of, write):
    units = VECTORS / np.linalg.norm(VECTORS.astype(np.float32), axis=1, keepdims=True) * scale
    path = write(tmp_path / "a.parquet", table_of(range(ROWS), units, dtype=np.float32))
    assert ParquetCollection(path, space="m").space == Space("m", DIM, Metric.COSINE, normalized)
    assert ParquetCollection(path, space="m:dot").space == Space("m", DIM, Metric.DOT, normalized)
    declared = Space("m", DIM, Metric.L2, not normalized)
    assert ParquetCollection(path, space=declared).space == declared


def test_a_file_is_of_the_space_it_names(tmp_path, table_of, write):
    space = Space("minilm", DIM, Metric.DOT, normalized=True)
    path = write(tmp_path / "a.parquet", table_of(range(ROWS), VECTORS, space=space))
    for declared in (None, "minilm", "minilm:dot", DeclaredSpace("minilm"), space):
        assert open_collection(path, space=declared).space == space


def test_a_folder_is_normalized_where_all_its_files_are(tmp_path, table_of, write):
    for name, normalized in (("a", True), ("b", False)):
        write(tmp_path / f"{name}.parquet", table_of([name], VECTORS[:1], space=Space("m", DIM, Metric.COSINE, normalized)))
    assert ParquetCollection(tmp_path).space == Space("m", DIM, Metric.COSINE, normalized=False)
