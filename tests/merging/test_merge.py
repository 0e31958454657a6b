"""Native and translated rows in one collection: what is written, whose rows they are, and what is refused."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.catalog import Catalog
from embridge.cli.main import main
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    CollectionError,
    OutputExistsError,
    ParameterError,
    SpaceMismatchError,
)
from embridge.stores.ids import match_rows
from embridge.stores.provenance import MixedRows
from embridge.types import Metric, Provenance, Space
from tests.merging.support import DIM, IDS, N_QUERIES, NATIVE, ROWS, K, N, Q, Y, memory, of, translations

# what is written


def sides():
    """Ten translated rows with columns of their own, and five native ones of which three replace some of them."""
    rng = np.random.default_rng(1)
    t, y = rng.normal(size=(10, DIM)).astype(np.float32), rng.normal(size=(5, DIM)).astype(np.float32)
    labels = pa.DictionaryArray.from_arrays(pa.array([i % 3 for i in range(10)], pa.int8()), pa.array(["x", "y", "z"]))
    translated = pa.table(
        {
            "n": pa.array(range(10), pa.int32()),
            "title": [f"t{i}" for i in range(10)],
            "label": labels,
            "tags": [[i] for i in range(10)],
        }
    )
    native = pa.table({"n": pa.array([70, 20, 100, 0, 110], pa.int64()), "by": ["m"] * 5})
    ids = ["d7", "d2", "new1", "d0", "new2"]
    return memory(ids, y, payload=native), memory([f"d{i}" for i in range(10)], t, payload=translated), y, t


def test_ids_vectors_provenance_and_columns(tmp_path):
    native, translated, y, t = sides()
    done = eb.merge(native, translated, tmp_path / "m.parquet")
    assert (done.rows, done.native, done.translated, done.replaced) == (12, 5, 7, 3)
    table = pq.read_table(tmp_path / "m.parquet")
    rest = [1, 3, 4, 5, 6, 8, 9]
    columns = table.to_pydict()
    assert columns["id"] == ["d7", "d2", "new1", "d0", "new2"] + [f"d{i}" for i in rest]
    np.testing.assert_array_equal(np.array(columns["vector"], np.float32), np.vstack([y, t[rest]]))
    assert columns["provenance"] == ["native"] * 5 + ["translated"] * 7
    assert columns["n"] == [70, 20, 100, 0, 110, *rest]  # the native side's own where it has the column
    assert columns["by"] == ["m"] * 5 + [None] * 7
    assert columns["title"] == ["t7", "t2", None, "t0", None] + [f"t{i}" for i in rest]  # what only the other side has is kept
    assert columns["label"] == ["y", "z", None, "x", None] + ["xyz"[i % 3] for i in rest]
    assert columns["tags"] == [[7], [2], None, [0], None] + [[i] for i in rest]
    made = eb.open(tmp_path / "m.parquet")
    assert made.space == of(Metric.COSINE)
    assert made.lineage == {"native": native.fingerprint(), "translated": translated.fingerprint()}
    assert made.provenance == Provenance(0.0, 10)
    assert made.fingerprint() == done.fingerprint
    assert "not calibrated" in done.reason


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 7, None])
def test_batches_of_any_size_give_the_same_rows(batch_rows):
    native, translated, *_ = sides()
    rows = MixedRows(native, translated, *match_rows(native, translated), np.ones(10, bool), "provenance")

    def rows_in(size):
        parts = list(rows.batches(size))
        assert [p.start for p in parts] == np.cumsum([0, *map(len, parts[:-1])]).tolist()
        assert size is None or max(map(len, parts)) <= size
        table = pa.Table.from_batches([p.payload for p in parts], rows.payload_schema)
        return [i for p in parts for i in p.ids.to_pylist()], np.vstack([p.vectors for p in parts]).tolist(), table.to_pylist()

    assert rows_in(batch_rows) == rows_in(1000)
    assert len(rows) == 12


def test_a_merge_goes_on_with_an_earlier_one(tmp_path):
    t = translations(Metric.COSINE)
    first, second = ROWS[:400], np.sort(np.concatenate([ROWS[400:], ROWS[:50]]))
    queries_seen = memory(range(N_QUERIES), Q[:N_QUERIES])
    eb.merge(memory([IDS[i] for i in first], Y[first], payload={"by": ["one"] * 400}), memory(IDS, t), tmp_path / "1.parquet")
    more = memory([IDS[i] for i in second], Y[second] * 2)  # rows that were native already are replaced too
    done = eb.merge(more, eb.open(tmp_path / "1.parquet"), tmp_path / "2.parquet", queries=queries_seen)
    assert (done.rows, done.native, done.translated, done.replaced, done.pairs) == (N, NATIVE, N - NATIVE, 250, 200)
    made = eb.open(tmp_path / "2.parquet")
    rows = pq.read_table(tmp_path / "2.parquet").to_pydict()
    assert {i for i, p in zip(rows["id"], rows["provenance"], strict=True) if p == "native"} == {IDS[i] for i in ROWS}
    assert [p for i, p in zip(rows["id"], rows["by"], strict=True)].count("one") == 400
    ids, vectors = made.read()
    by_id = dict(zip(ids.tolist(), vectors, strict=True))
    np.testing.assert_array_equal(by_id[IDS[first[399]]], Y[first[399]])
    np.testing.assert_array_equal(by_id[IDS[second[0]]], 2 * Y[second[0]])
    # calibrated as one merge of all of it is, over the pairs that this one has
    whole = eb.merge(memory([IDS[i] for i in ROWS], Y[ROWS]), memory(IDS, t), tmp_path / "all.parquet", queries=queries_seen)
    assert done.share_after == pytest.approx(whole.share_after, abs=0.06)
    assert done.offset == pytest.approx(whole.offset, rel=0.3)


def test_an_index_and_a_folder_are_sources_too(tmp_path):
    t = translations(Metric.COSINE)
    eb.build_index(memory(IDS, t), tmp_path / "old.faiss", "IVF4,Flat")
    (tmp_path / "parts").mkdir()
    space = of(Metric.COSINE)
    for part in (0, 1):
        chosen = ROWS[part::2]
        table = pa.table({"id": [IDS[i] for i in chosen], "vector": list(Y[chosen])})
        pq.write_table(table, tmp_path / "parts" / f"{part}.parquet")
    native = eb.open(tmp_path / "parts", space=space)
    queries_seen = memory(range(N_QUERIES), Q[:N_QUERIES])
    done = eb.merge(native, eb.open(tmp_path / "old.faiss"), tmp_path / "m.parquet", queries=queries_seen, dtype="float16")
    assert (done.rows, done.native, done.replaced) == (N, NATIVE, NATIVE)
    unit = t / np.linalg.norm(t, axis=1, keepdims=True)  # as the index holds them
    plain = eb.merge(
        memory(native.read()[0].tolist(), native.read()[1]), memory(IDS, unit), tmp_path / "p.parquet", queries=queries_seen
    )
    assert done.offset == pytest.approx(plain.offset, abs=1e-4)
    one, other = (dict(zip(*eb.open(tmp_path / f"{name}.parquet").read(), strict=True)) for name in "mp")
    assert one.keys() == other.keys()
    np.testing.assert_allclose([one[i] for i in IDS], [other[i] for i in IDS], atol=2e-3)


def test_rows_that_the_map_was_fitted_on_do_not_calibrate(tmp_path):
    rng = np.random.default_rng(7)
    turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32)
    old = eb.MemoryCollection(IDS, (Y + 0.4 * rng.normal(size=Y.shape)) @ turn, Space("old", DIM))
    train, held = eb.match(old, memory([IDS[i] for i in ROWS], Y[ROWS])).split(0.5)
    bridge = eb.fit(train, method="rotation")
    eb.convert(old, bridge, tmp_path / "t.parquet")
    native, translated = memory([IDS[i] for i in ROWS], Y[ROWS]), eb.open(tmp_path / "t.parquet")
    queries_seen = memory(range(N_QUERIES), Q[:N_QUERIES])
    done = eb.merge(native, translated, tmp_path / "m.parquet", translation=bridge, queries=queries_seen)
    assert done.pairs == len(held)
    assert eb.open(tmp_path / "m.parquet").lineage["map"] == bridge.fingerprint
    fitted = memory(train.ids.tolist(), train.y)
    done = eb.merge(fitted, translated, tmp_path / "f.parquet", translation=bridge, queries=queries_seen)
    assert done.pairs == len(train)
    assert "on all of which the map was fitted" in done.reason
    done = eb.merge(fitted, translated, tmp_path / "g.parquet", translation=bridge)
    assert (done.pairs, done.offset, done.share_before) == (0, 0.0, None)
    assert "--queries" not in done.reason


def test_what_cannot_be_calibrated_is_said(tmp_path):
    t, queries_seen = translations(Metric.COSINE), memory(range(50), Q[:50])
    apart = eb.merge(memory(["a", "b"], Y[:2]), memory(IDS, t), tmp_path / "a.parquet", queries=queries_seen)
    assert (apart.offset, apart.pairs, apart.share_truth) == (0.0, 0, None)
    assert apart.share_before == apart.share_after > 0.9
    assert "no row" in apart.reason or "0 rows on both sides" in apart.reason
    few = eb.merge(memory(IDS[:5], Y[:5]), memory(IDS, t), tmp_path / "b.parquet", queries=queries_seen)
    assert few.offset == 0.0
    assert "100 are needed" in few.reason
    every = eb.merge(memory(IDS, Y), memory(IDS[:9], t[:9]), tmp_path / "c.parquet", queries=queries_seen)
    assert (every.translated, every.replaced, every.offset) == (0, 9, 0.0)
    assert every.share_before == 0
    # and such a collection is indexed as any other
    assert eb.build_index(eb.open(tmp_path / "a.parquet"), tmp_path / "a.faiss", "Flat").search(Q[:2], 3).ids.shape == (2, 3)


def refused(tmp_path, error, match, native, translated, name="m.parquet", **options):
    with pytest.raises(error, match=match):
        eb.merge(native, translated, tmp_path / name, **options)
    assert sorted(os.listdir(tmp_path)) == refused.before
    assert not (tmp_path / "m.parquet").exists()


def test_hostile_inputs_are_refused_and_leave_nothing(tmp_path):
    native, translated, _, t = sides()
    table = pa.table({"id": ["a", "b", "a"], "vector": list(Y[:3])})
    pq.write_table(table, tmp_path / "twice.parquet")
    twice = eb.open(tmp_path / "twice.parquet", space=of(Metric.COSINE))
    bad = t.copy()
    bad[8, 3] = np.nan
    far = of(Metric.COSINE)
    eb.convert(
        eb.MemoryCollection(IDS[:5], Y[:5], Space("old", DIM)),
        eb.LinearMap(np.eye(DIM), np.zeros(DIM), Space("old", DIM), far),
        tmp_path / "converted.parquet",
    )
    (tmp_path / "there.parquet").write_text("x")
    eb.merge(native, translated, tmp_path / "mixed.parquet")
    refused.before = sorted(os.listdir(tmp_path))

    def ids():
        return [f"d{i}" for i in range(10)]

    other = eb.MemoryCollection(ids(), t, Space("other", DIM))
    refused(tmp_path, SpaceMismatchError, "The merge expects 12-dimensional vectors of 'new', .* of 'other'", native, other)
    refused(tmp_path, SpaceMismatchError, "mixes spaces", native, memory(ids(), t, Metric.L2))
    refused(tmp_path, SpaceMismatchError, "The calibration expects", native, translated, queries=other)
    unrelated = eb.LinearMap(np.eye(DIM), np.zeros(DIM), Space("a", DIM), Space("b", DIM))
    refused(tmp_path, SpaceMismatchError, "the map's target", native, translated, translation=unrelated)
    refused(tmp_path, BadIdsError, "more than once: 'a'", twice, translated)
    refused(tmp_path, BadIdsError, "more than once: 'a'", native, twice)
    refused(tmp_path, BadIdsError, "cannot be matched", native, memory(range(10), t))
    clash = memory(ids(), t, payload={"n": [f"{i}" for i in range(10)]})
    refused(tmp_path, CollectionError, "Columns of the files in .* do not match: .*Field n", native, clash)
    claimed = memory(ids(), t, payload={"provenance": ["web"] * 10})
    refused(tmp_path, CollectionError, "already has a column 'provenance'", native, claimed)
    refused(tmp_path, CollectionError, "converted with a map", eb.open(tmp_path / "converted.parquet"), translated)
    refused(tmp_path, CollectionError, "holds translated rows itself", eb.open(tmp_path / "mixed.parquet"), translated)
    refused(tmp_path, BadVectorsError, "'d8'", native, memory(ids(), bad))
    refused(tmp_path, OutputExistsError, "exists already", native, translated, name="there.parquet")
    refused(tmp_path, OutputExistsError, "both input and output", native, twice, name="twice.parquet", overwrite=True)
    for option in ("k", "max_queries"):
        refused(tmp_path, ParameterError, f"{option} must be at least 1", native, translated, **{option: 0})
    refused(tmp_path, ParameterError, "dtype must be", native, translated, dtype="int8")
    eb.merge(native, translated, tmp_path / "there.parquet", overwrite=True)
    assert len(eb.open(tmp_path / "there.parquet")) == 12


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ('{"offset": "NaN", "k": 10, "column": "provenance"}', "not a provenance"),
        ("[1]", "JSON object"),
        ('{"k": 1}', "not a provenance"),
    ],
)
def test_damaged_provenance_metadata_is_refused(tmp_path, table_of, write, metadata, match):
    table = table_of(["a", "b"], Y[:2], {"provenance": ["native", "translated"]}, space=of(Metric.COSINE))
    table = table.replace_schema_metadata(table.schema.metadata | {b"embridge.provenance": metadata})
    with pytest.raises(CollectionError, match=match):
        eb.open(write(tmp_path / "x.parquet", table))


def test_a_damaged_provenance_column_is_refused(tmp_path, table_of, write):
    reported = json.dumps({"offset": 0.5, "k": 10, "column": "provenance"})
    for column, match in (("provenance", "must be 'native' or 'translated'. Got 'web'"), ("other", "no column 'provenance'")):
        table = table_of(["a", "b"], Y[:2], {column: ["native", "web"]}, space=of(Metric.COSINE))
        table = table.replace_schema_metadata(table.schema.metadata | {b"embridge.provenance": reported})
        collection = eb.open(write(tmp_path / f"{column}.parquet", table))
        with pytest.raises(CollectionError, match=match):
            eb.build_index(collection, tmp_path / "x.faiss", "Flat")
        assert not (tmp_path / "x.faiss").exists()


def test_files_that_were_calibrated_apart_are_not_opened_as_one(tmp_path):
    native, translated, *_ = sides()
    (tmp_path / "parts").mkdir()
    eb.merge(native, translated, tmp_path / "parts" / "a.parquet")
    eb.merge(native, translated, tmp_path / "parts" / "b.parquet", k=3)
    with pytest.raises(CollectionError, match="not calibrated together"):
        eb.open(tmp_path / "parts")


def test_on_the_command_line(tmp_path, monkeypatch, table_of, write):
    monkeypatch.chdir(tmp_path)
    space, t = of(Metric.COSINE), translations(Metric.COSINE)
    write(tmp_path / "native.parquet", table_of([IDS[i] for i in ROWS], Y[ROWS]))
    write(tmp_path / "translated.parquet", table_of(IDS, t, space=space))
    write(tmp_path / "queries.parquet", table_of(list(range(N_QUERIES)), Q[:N_QUERIES], space=space))

    def invoke(*words):
        return CliRunner().invoke(main, [str(w) for w in words])

    words = ("merge", "native.parquet", "translated.parquet", "-o", "mixed.parquet", "--queries", "queries.parquet")
    assert invoke(*words).exit_code == 1  # no space is named
    done = invoke(*words, "--space", "new", "--json")
    assert done.exit_code == 0, done.output
    reported = json.loads(done.stdout)
    assert (reported["rows"], reported["native"], reported["replaced"]) == (N, NATIVE, NATIVE)
    assert reported["share_before"] < reported["share_after"]
    assert invoke(*words, "--space", "new").exit_code == 1  # it is there
    shown = invoke(*words, "--space", "new", "--overwrite")
    assert f"mixed.parquet: 600 native rows, 600 of them replacing translated ones, and {N - NATIVE:,} translated" in shown.stdout
    assert f"{reported['share_after']:.3f}" in shown.stdout
    for name, options in (("calibrated", ()), ("plain", ("--uncalibrated",))):
        assert invoke("index", "mixed.parquet", f"{name}.faiss", "--factory", "Flat", *options).exit_code == 0
    shares = []
    for name in ("plain", "calibrated"):
        found = json.loads(invoke("search", f"{name}.faiss", "queries.parquet", "-k", K, "--json").stdout)
        native = {IDS[i] for i in ROWS}
        shares.append(np.mean([[i not in native for i in hit["ids"]] for hit in found["hits"]]))
    assert shares[0] == pytest.approx(reported["share_before"], abs=0.04)
    assert shares[1] == pytest.approx(reported["share_after"], abs=0.04)
    catalog = Catalog("embridge.duckdb")
    (run,) = catalog.sql("SELECT rows, parameters FROM run WHERE verb = 'merge' ORDER BY id LIMIT 1")
    assert run["rows"] == N
    assert json.loads(run["parameters"])["offset"] == reported["offset"]
    roles = {(row["verb"], row["role"]) for row in catalog.lineage("calibrated.faiss")}
    assert {("index", "source"), ("merge", "native"), ("merge", "translated"), ("merge", "queries")} <= roles


def test_errors_are_predicted_for_translated_rows_only(tmp_path):
    old, new = eb.open(eb.sample_path("minilm")), eb.open(eb.sample_path("mpnet"))
    train, held_out = eb.match(old, new).split(0.5)
    translation = eb.calibrate(eb.fit(train, "rotation"), train, held_out)
    eb.convert(old, translation, tmp_path / "converted.parquet", confidence=0.9)
    ids, rows = new.read()
    native = eb.MemoryCollection(ids[:500], rows[:500], new.space)
    eb.merge(native, eb.open(tmp_path / "converted.parquet"), tmp_path / "mixed.parquet", translation=translation)
    table = pq.read_table(tmp_path / "mixed.parquet")
    errors = dict(zip(table["id"].to_pylist(), table["predicted_error"].to_pylist(), strict=True))
    assert {errors[i] for i in ids[:500].tolist()} == {None}
    assert all(errors[i] > 0 for i in ids[500:].tolist())
