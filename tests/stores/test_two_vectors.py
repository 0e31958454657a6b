"""A Parquet file with two vector columns: each is a collection of its own space."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.errors import CollectionError, SpaceMismatchError, UndeclaredSpaceError
from embridge.stores.parquet.metadata import PROVENANCE_KEY
from embridge.types import Metric, Provenance, Space

N, P, Q = 40, 4, 6
OLD, NEW = Space("old", P, Metric.DOT), Space("new", Q)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, P)).astype(np.float16), RNG.normal(size=(N, Q)).astype(np.float32)


def lists(rows):
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def write(path, old=OLD, new=NEW, extra=None, **columns):
    metadata = {"embridge.space": json.dumps(new.to_dict())} | (extra or {})
    metadata |= {"embridge.space.old_vector": json.dumps(old.to_dict())} if old else {}
    table = pa.table({"id": [f"d{i}" for i in range(N)], "vector": lists(Y), "old_vector": lists(X), **columns})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_each_column_is_a_collection_of_its_space(tmp_path):
    path = write(tmp_path / "a.parquet")
    new, old = eb.open(path), eb.open(path, vector_column="old_vector")
    assert (new.space, old.space) == (NEW, OLD)
    assert new.payload_spaces == {"old_vector": OLD}
    assert old.payload_spaces == {"vector": NEW}
    np.testing.assert_array_equal(new.read()[1], Y)
    np.testing.assert_array_equal(old.read()[1], X.astype(np.float32))
    assert (new.vector_type, old.vector_type) == ("float32", "float16")
    assert new.old_side is not None
    assert new.old_side.space == OLD
    assert old.old_side is None


def test_a_further_column_never_takes_the_space_of_the_main_one(tmp_path):
    path = write(tmp_path / "a.parquet", old=None)
    assert eb.open(path).payload_spaces == {}
    assert eb.open(path).old_side is None
    with pytest.raises(UndeclaredSpaceError):
        eb.open(path, vector_column="old_vector")
    assert eb.open(path, vector_column="old_vector", space="x").space.name == "x"
    with pytest.raises(SpaceMismatchError, match="'other'"):
        eb.open(write(tmp_path / "b.parquet"), vector_column="old_vector", space="other")


def test_the_main_column_is_the_one_that_the_file_names(tmp_path):
    path = write(
        tmp_path / "a.parquet", old=None, extra={"embridge.columns": json.dumps({"id": "id", "vector": "old_vector"})}, new=OLD
    )
    assert eb.open(path).vector_column == "old_vector"
    assert eb.open(path).space == OLD
    with pytest.raises(UndeclaredSpaceError):
        eb.open(path, vector_column="vector")


def test_provenance_map_and_errors_are_about_the_main_column(tmp_path):
    extra = {
        PROVENANCE_KEY.decode(): json.dumps({"offset": 0.5, "k": 10, "column": "provenance"}),
        "embridge.lineage": json.dumps({"source": "a", "map": "b"}),
        "embridge.confidence": json.dumps({"coverage": 0.9, "fingerprint": "c"}),
    }
    path = write(tmp_path / "a.parquet", extra=extra, provenance=["native"] * N)
    new, old = eb.open(path), eb.open(path, vector_column="old_vector")
    assert (new.provenance, new.lineage, new.confidence["coverage"]) == (Provenance(0.5, 10), {"source": "a", "map": "b"}, 0.9)
    assert (old.provenance, old.lineage, old.confidence) == (None, {"source": "a"}, None)


def test_files_of_a_folder_must_agree(tmp_path):
    (tmp_path / "all").mkdir()
    write(tmp_path / "all" / "a.parquet")
    write(tmp_path / "all" / "b.parquet", old=Space("third", P))
    with pytest.raises(SpaceMismatchError, match="mixes spaces"):
        _ = eb.open(tmp_path / "all").payload_spaces
    with pytest.raises(SpaceMismatchError, match="mixes spaces"):
        eb.open(tmp_path / "all", vector_column="old_vector")
    write(tmp_path / "all" / "b.parquet", old=None)
    assert eb.open(tmp_path / "all").payload_spaces == {}


def test_several_further_columns_must_be_named(tmp_path):
    extra = {"embridge.space.older": json.dumps(OLD.to_dict())}
    path = write(tmp_path / "a.parquet", extra=extra, older=lists(X))
    with pytest.raises(CollectionError, match="2 vector columns beside 'vector': old_vector, older"):
        _ = eb.open(path).old_side


@pytest.mark.parametrize("value", ["[]", "{}x", '{"name": "old"}'])
def test_a_damaged_space_of_a_column_is_refused(tmp_path, value):
    path = write(tmp_path / "a.parquet", old=None, extra={"embridge.space.old_vector": value})
    with pytest.raises(CollectionError, match=r"embridge\.space\.old_vector"):
        eb.open(path, vector_column="old_vector")


def test_a_space_of_another_width_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", old=Space("old", P + 1))
    with pytest.raises(CollectionError, match="state 5 dimensions"):
        eb.open(path, vector_column="old_vector")
    with pytest.raises(CollectionError, match="state 5 dimensions"):
        _ = eb.open(path).old_side
