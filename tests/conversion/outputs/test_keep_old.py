"""A conversion that keeps the old vectors: a two-vector collection, resumed, checked and converted on."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embridge as eb
from embridge.errors import BadVectorsError, CollectionError, InterruptedOutputError, VerificationError
from embridge.stores.parquet import writer
from tests.conversion.outputs.support import GROUP_ROWS, NEW, OLD, ROWS, P, map_between, puncture, table_of

KINDS = {"float16": np.float16, "float32": np.float32, "float64": np.float64}


@pytest.fixture
def source(tmp_path, rows):
    """``source(dtype)``: an old collection stored in that type."""

    def make(dtype="float32", name="old.parquet"):
        ids, x = rows
        pq.write_table(table_of(ids, np.asarray(x, KINDS[dtype]), n=range(ROWS)), tmp_path / name)
        return eb.open(tmp_path / name)

    return make


def old_side(path):
    return eb.open(path, vector_column="old_vector")


@pytest.mark.parametrize("dtype", list(KINDS))
@pytest.mark.parametrize("compact", [False, True])
def test_both_vectors_of_every_row(source, tmp_path, dtype, compact):
    old, out = source(dtype), tmp_path / "both.parquet"
    eb.convert(old, map_between(), out, keep_old=True, compact=compact)
    made = eb.open(out)
    assert made.space == NEW
    kept = eb.open(out, vector_column="old_vector")
    assert (kept.space, kept.vector_type) == (OLD, dtype)
    assert kept.read()[0].tolist() == old.read()[0].tolist()
    table = pq.read_table(out)
    assert table.column_names == ["id", "vector", "n", "old_vector"]
    assert table.schema.field("old_vector").type == pa.list_(pa.field("element", pa.from_numpy_dtype(KINDS[dtype]), False), P)
    given = pq.read_table(tmp_path / "old.parquet")["vector"].combine_chunks().flatten()
    assert table["old_vector"].combine_chunks().flatten().equals(given)
    eb.convert(old, map_between(), tmp_path / "plain.parquet", compact=compact)
    np.testing.assert_array_equal(eb.open(tmp_path / "plain.parquet").read()[1], made.read()[1])


def test_it_is_verified(source, tmp_path):
    old, out = source("float16"), tmp_path / "both.parquet"
    eb.convert(old, map_between(), out, keep_old=True)
    assert eb.verify(out, source=old, translation=map_between()).compared == ROWS
    table = pq.read_table(out)
    values = np.array(table["old_vector"].combine_chunks().flatten()).reshape(-1, P)
    for value, error in ((0.5, VerificationError), (np.nan, BadVectorsError)):
        values[50, 2] = value
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), P)
        changed = table.set_column(3, "old_vector", column).replace_schema_metadata(table.schema.metadata)
        pq.write_table(changed, out)
        with pytest.raises(error, match=r"row 50|ids"):
            eb.verify(out, source=old, translation=map_between())
    with pytest.raises(BadVectorsError):
        eb.verify(out)


def test_the_kept_column_passes_through_another_conversion(source, tmp_path):
    old, newer = source(), eb.Space("newer", 5)
    eb.convert(old, map_between(), tmp_path / "both.parquet", keep_old=True)
    on = map_between(NEW, newer)
    eb.convert(eb.open(tmp_path / "both.parquet"), on, tmp_path / "on.parquet")
    made = eb.open(tmp_path / "on.parquet")
    assert made.space == newer
    assert made.payload_spaces == {"old_vector": OLD}
    np.testing.assert_array_equal(old_side(tmp_path / "on.parquet").read()[1], old.read()[1])
    eb.verify(tmp_path / "on.parquet", source=eb.open(tmp_path / "both.parquet"), translation=on)
    with pytest.raises(CollectionError, match="already has a column 'old_vector'"):
        eb.convert(eb.open(tmp_path / "both.parquet"), on, tmp_path / "no.parquet", keep_old=True)
    again = eb.open(tmp_path / "both.parquet", vector_column="old_vector")
    eb.convert(again, map_between(), tmp_path / "again.parquet")
    made = eb.open(tmp_path / "again.parquet")
    assert (made.vector_column, made.space, made.payload_spaces) == ("old_vector", NEW, {"vector": NEW})


def test_an_interrupted_one_continues(source, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "rows_of_group", lambda dim, dtype: GROUP_ROWS)
    old, out = source("float16"), tmp_path / "both.parquet"
    eb.convert(old, map_between(), tmp_path / "once.parquet", keep_old=True)

    def stop(done, total):
        if done >= 3 * GROUP_ROWS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eb.convert(old, map_between(), out, keep_old=True, progress=stop)
    with pytest.raises(InterruptedOutputError, match="keep_old"):
        eb.convert(old, map_between(), out, resume=True)
    eb.convert(old, map_between(), out, keep_old=True, resume=True)
    assert out.read_bytes() == (tmp_path / "once.parquet").read_bytes()
    eb.convert(old, map_between(), out, keep_old=True, resume=True)  # it is done


def test_a_finished_output_without_them_is_not_taken_for_one_with_them(source, tmp_path):
    eb.convert(source(), map_between(), tmp_path / "a.parquet")
    with pytest.raises(eb.EmbridgeError, match="exists already"):
        eb.convert(source(), map_between(), tmp_path / "a.parquet", keep_old=True, resume=True)


def test_bad_rows_are_left_out_of_both_columns(source, tmp_path):
    source()
    puncture(tmp_path / "old.parquet", [3, 70])
    old, out = eb.open(tmp_path / "old.parquet"), tmp_path / "both.parquet"
    assert eb.convert(old, map_between(), out, keep_old=True, on_bad="skip").skipped == 2
    assert len(old_side(out)) == ROWS - 2
    assert eb.verify(out, source=old, translation=map_between()).rows == ROWS - 2


def test_folders_of_files_of_several_types_and_other_stores(source, tmp_path):
    (tmp_path / "all").mkdir()
    source("float16", "all/a.parquet")
    ids, x = eb.open(tmp_path / "all" / "a.parquet").read()
    more = table_of([f"more-{i}" for i in ids], np.asarray(x + 1e-6, np.float64), n=range(ROWS))
    pq.write_table(more, tmp_path / "all" / "b.parquet")
    eb.convert(eb.open(tmp_path / "all"), map_between(), tmp_path / "one.parquet", keep_old=True)
    assert old_side(tmp_path / "one.parquet").vector_type == "float64"
    expected = np.concatenate([x, np.asarray(x + 1e-6, np.float64)]).astype(np.float32)
    np.testing.assert_array_equal(old_side(tmp_path / "one.parquet").read()[1], expected)
    eb.convert(eb.open(tmp_path / "all"), map_between(), tmp_path / "folder", keep_old=True)
    kinds = [old_side(tmp_path / "folder" / name).vector_type for name in ("a.parquet", "b.parquet")]
    assert kinds == ["float16", "float64"]
    eb.verify(tmp_path / "folder", source=eb.open(tmp_path / "all"), translation=map_between())
    eb.build_index(eb.MemoryCollection(ids, x, OLD), tmp_path / "old.faiss", "Flat")
    eb.convert(eb.open(tmp_path / "old.faiss"), map_between(), tmp_path / "faiss.parquet", keep_old=True)
    assert old_side(tmp_path / "faiss.parquet").space == OLD
