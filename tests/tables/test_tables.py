import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embridge.errors import BadIdsError, CollectionError, MissingFileError
from embridge.tables.hits import write_hits
from embridge.tables.ids import read_ids, write_ids
from embridge.tables.labels import read_labels
from embridge.tables.qrels import read_qrels
from embridge.types import Hits


@pytest.mark.parametrize("ids", [np.array([5, -1, 2**60]), np.array(["b", "é", "a"], object)], ids=["int64", "string"])
def test_ids_come_back_in_their_order(tmp_path, ids):
    write_ids(tmp_path / "ids.parquet", ids)
    found = read_ids(tmp_path / "ids.parquet")
    assert found.dtype == ids.dtype
    assert found.tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"key": [1]}, CollectionError, r"has no column 'id'\. Columns: key"),
        ({"id": pa.array([], pa.int64())}, CollectionError, "holds no rows"),
        ({"id": ["a", None]}, BadIdsError, "has 1 row without an id"),
        ({"id": [0.5]}, BadIdsError, "Got double instead"),
    ],
    ids=["no column", "empty", "null", "float"],
)
def test_tables_without_usable_ids_are_refused(tmp_path, table, error, message):
    pq.write_table(pa.table(table), tmp_path / "ids.parquet")
    with pytest.raises(error, match=message):
        read_ids(tmp_path / "ids.parquet")


def test_judgments_are_grouped_by_query(tmp_path):
    pq.write_table(pa.table({"query_id": ["q2", "q1"], "doc_id": [3, 1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"query_id": ["q2"], "doc_id": [4], "score": [2]}), tmp_path / "b.parquet")
    assert read_qrels(tmp_path) == {"q2": [3, 4], "q1": [1]}


def test_only_judgments_above_zero_count(tmp_path):
    table = {"query_id": [1, 1, 1, 2], "doc_id": ["a", "b", "c", "d"], "score": [0.5, 0.0, None, -1.0]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert read_qrels(tmp_path / "a.parquet") == {1: ["a"]}
    pq.write_table(pa.table({"query_id": [1], "doc_id": [2], "score": ["high"]}), tmp_path / "b.parquet")
    with pytest.raises(CollectionError, match=r"'score' of .* must hold numbers. Got string instead"):
        read_qrels(tmp_path / "b.parquet")
    pq.write_table(pa.table({"query_id": [1]}), tmp_path / "c.parquet")
    with pytest.raises(CollectionError, match=r"has no column 'doc_id'"):
        read_qrels(tmp_path / "c.parquet")


def test_hits_are_ranked_rows_without_empty_places(tmp_path):
    hits = Hits(np.array([[7, 3], [9, -1]]), np.array([[0.9, 0.5], [0.25, -np.inf]], np.float32))
    write_hits(tmp_path / "hits.parquet", np.array(["q1", "q2"], object), hits)
    assert pq.read_table(tmp_path / "hits.parquet").to_pylist() == [
        {"query_id": "q1", "rank": 1, "id": 7, "score": np.float32(0.9)},
        {"query_id": "q1", "rank": 2, "id": 3, "score": 0.5},
        {"query_id": "q2", "rank": 1, "id": 9, "score": 0.25},
    ]


def test_labels_are_known_by_id_and_null_ones_are_none(tmp_path):
    pq.write_table(pa.table({"id": [3, 1, 2], "label": ["a", None, "b"]}), tmp_path / "a.parquet")
    assert read_labels(tmp_path / "a.parquet") == {3: "a", 2: "b"}
    table = {"key": ["x", "y"], "kind": pa.array([7, 8], pa.int8()), "label": ["p", "q"]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")
    assert read_labels(tmp_path / "b.parquet", id_column="key", label_column="kind") == {"x": 7, "y": 8}
    few = pa.table({"id": ["x", "y"], "label": pa.array(["p", None]).dictionary_encode()})
    pq.write_table(few, tmp_path / "c.parquet")
    assert read_labels(tmp_path / "c.parquet") == {"x": "p"}


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"id": [1]}, CollectionError, r"has no column 'label'\. Columns: id"),
        ({"label": [1]}, CollectionError, r"has no column 'id'\. Columns: label"),
        ({"id": ["a", None], "label": [1, 2]}, BadIdsError, "has 1 row without an id"),
        ({"id": ["a", "b", "a"], "label": [1, 2, None]}, BadIdsError, r"more than once: 'a'\."),
        ({"id": ["a", "b", "a"], "label": [None, 2, 1]}, BadIdsError, r"more than once: 'a'\."),
        ({"id": [0.5], "label": [1]}, BadIdsError, "Got double instead"),
        ({"id": [1], "label": [0.5]}, CollectionError, r"'label' of .* must hold strings or integers\. Got double instead"),
        ({"id": [1], "label": [["a"]]}, CollectionError, "must hold strings or integers"),
    ],
)
def test_tables_without_usable_labels_are_refused(tmp_path, table, error, message):
    pq.write_table(pa.table(table), tmp_path / "labels.parquet")
    with pytest.raises(error, match=message):
        read_labels(tmp_path / "labels.parquet")
    with pytest.raises(MissingFileError, match="nowhere"):
        read_labels(tmp_path / "nowhere.parquet")
