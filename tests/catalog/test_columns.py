"""Records of runs and columns of the catalog: nothing is lost between them."""

import os
from dataclasses import fields, replace

import pytest

import embridge as eb
from embridge.catalog import Catalog, migrations
from embridge.errors import CatalogError
from embridge.records import (
    Artifact,
    Conversion,
    CorpusSize,
    CostedScore,
    DecoderEvaluation,
    DecoderRecord,
    DecoderStrategy,
    Decoding,
    Difference,
    Evaluation,
    LabelScore,
    LearningCurve,
    Merge,
    Migration,
    Plan,
    Recommendation,
    Run,
    StrategyScore,
)
from embridge.types import Space
from tests.catalog.support import NEW, OLD, catalog, fit_run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "embridge.duckdb"


# Records and columns


def full_records():
    """One record of each kind with every part that it can have, and the fields that no table keeps."""
    edges = (0.1, 0.2)
    strategy = StrategyScore("fuse", 0.5, edges, 0.3, 0.2, 0.9, edges, edges, 0.2, edges, 0.6, "both")
    label = LabelScore("noun", "blend", 12, 0.5, edges, 3, 0.4, edges, 0.1, edges, 0.3, edges)
    size = CorpusSize("blend", 30, 0.5, edges, forecast=False)
    evaluation = Evaluation(
        10, 20, 30, (strategy,), 0.9, 0.4, "f1", 7, None, (label,), (size,), "f2", (Difference("blend", "mrr", 0.1, edges),)
    )
    planned = CostedScore(
        **{f.name: getattr(strategy, f.name) for f in fields(strategy)}, hubness=True, gain=0.1, gain_ci=edges, recovered=0.5,
        rows_changed=3, encodes=4, seconds=1.0, cost=2.5, needs_old_encoder=True, needs_texts=False,
    )  # fmt: skip
    curve = LearningCurve((10,), (0.3,), (40,), (0.5,), (edges,))
    plan = Plan(10, 20, 0, 30, 40, "bridge", 0.5, (planned,), {"texts-available": Recommendation("blend", "Best.")}, curve)
    measured = DecoderStrategy("translated", {"accuracy": 0.5}, {"accuracy": edges})
    decoder = Artifact("decoder", "d.skops", "d1", "decoder", space=NEW)
    fitted = fit_run()
    move = Migration("n.faiss", "wrap", True, 0.9, 100, 1.5, "exact", 10, 0.8, 0.7, "i1", "f1", "i2", OLD, NEW)
    merge = Merge("m.parquet", 9, 4, 5, 1, 0.25, "pairs", 10, 20, 3, 0.1, 0.2, 0.3, 0.4, 0.5, 1.5, "c1", "c2", "c3")
    return [
        (Run.of("fit", outputs=fitted.outputs, result=fitted.details), {"sources"}),
        (Run.of("evaluate", result=evaluation), {"confidence", "per_query", "qrels", "own_rows", "weight", "reverse_map"}),
        (
            Run.of("plan", result=plan),
            {"weight", "source", "target", "norms", "labels", "unlabelled", "lazy_depths", "qrels", "own_rows"}
            | {"curve", "curve_projected", "isotropy", "landmarks"},
        ),
        (Run.of("convert", result=Conversion("o.parquet", 100, 2.0, "cpu", "c-old", "f1", "c-out", 3)), {"reused"}),
        (Run.of("migrate", result=move), {"source_space", "space"}),
        (Run.of("merge", result=merge), set()),
        (Run.of("decode", result=Decoding("p.parquet", 9, ("prediction",), True, 1.0, "cpu", "c1", "d1", "c2", "f1")), set()),
        (Run.of("register", outputs=[decoder], result=DecoderRecord("d", "skops", "classifier", ("a", "b"))), set()),
        (Run.of("decoder evaluate", result=DecoderEvaluation("classifier", 10, 5, 1, (measured,), "d1", "f1")), {"kind"}),
    ]


RENAMED = {"map": "translator", "fingerprint": "output", "offset": "score_offset", "against": "other", "name": "strategy"}


@pytest.mark.parametrize(("run", "not_kept"), full_records(), ids=lambda value: getattr(value, "verb", ""))
def test_every_field_of_a_record_has_a_column_and_every_column_a_field(path, run, not_kept):
    made = catalog(path)
    number = made.record(run)
    stored = {}
    for table, row in run.to_rows():
        stored.setdefault(table, set()).update(row)
    for table in set(stored) - {"artifact", "space", "collection"}:
        columns = {row["column_name"] for row in made.sql(f"SELECT column_name FROM (DESCRIBE {table})")}
        assert columns == stored[table] | {"run"}
        kept = made.sql(f"SELECT * FROM {table} WHERE run = {number}")
        assert all(any(row[name] is not None for row in kept) for name in columns), table
    columns = set().union(*stored.values())
    for record in run.details:
        lists = ("strategies", "by_label", "sizes", "differences", "recommendations", "learning_curve")
        for field in fields(record):
            names = {field.name, RENAMED.get(field.name)}
            assert names & columns or field.name in not_kept or field.name in lists, field.name


def test_rows_are_inserted_by_the_names_of_columns(path):
    """A column that a migration adds at any time changes nothing for the others."""
    before = catalog(path)
    before.record(fit_run())
    step = migrations.Migration(len(before._known) + 1, "note", "ALTER TABLE anchor_set ADD COLUMN note VARCHAR DEFAULT 'none'")
    later = catalog(path, step)
    later.migrate()
    later.record(fit_run("f2", path="b.safetensors"))
    assert later.sql("SELECT run, shared, seed, note FROM anchor_set WHERE run = 2") == [
        {"run": 2, "shared": 50, "seed": 3, "note": "none"}
    ]


def test_a_run_takes_what_its_result_knows():
    done = Conversion("o.parquet", 100, 2.0, "cuda", "c-old", "f1", "c-out", 3)
    assert Run.of("convert", result=done) == Run("convert", {}, 2.0, (), (), 100, "cuda", (done,))
    assert Run.of("convert", result=done, rows=5, seconds=0.5, device="cpu") == Run("convert", {}, 0.5, (), (), 5, "cpu", (done,))
    assert Run.of("info") == Run("info", {}, 0.0)


def test_maps_and_records_of_fits_are_one_to_one(path):
    two = replace(fit_run(), outputs=fit_run().outputs * 2)
    with pytest.raises(CatalogError, match="names 2 maps and has 1 records"):
        catalog(path).record(two)
    assert not path.exists()


def test_the_library_records_a_run_as_a_user_writes_it(tmp_path, planted, table_of, write):
    ids, x, y, _ = planted(60, 6, 9, 0.3)
    sides = [
        eb.open(write(tmp_path / f"{space.name}.parquet", table_of(ids, rows, space=space)))
        for space, rows in ((Space("old", 6), x), (Space("new", 9), y))
    ]
    anchors = eb.match(*sides)
    translation = eb.fit(anchors, "ridge", alpha=0.1)
    translation.save(tmp_path / "map.safetensors")
    index = eb.build_index(sides[0], tmp_path / "old.faiss", "Flat")
    made = eb.Catalog(tmp_path / "embridge.duckdb")
    inputs = [eb.Artifact.of_collection(role, side) for role, side in zip(("source", "target"), sides, strict=True)]
    outputs = [eb.Artifact.of_map("map", tmp_path / "map.safetensors", translation)]
    assert made.record(eb.Run.of("fit", inputs=inputs, outputs=outputs, result=translation.record)) == 1
    made.record(eb.Run.of("index", inputs=inputs[:1], outputs=[eb.Artifact.of_index("index", index)]))
    made.record(eb.Run.of("note", inputs=[eb.Artifact.of_file("notes", tmp_path / "nowhere.txt")]))
    assert made.sql("SELECT method, anchors, source_space, fingerprint FROM translator") == [
        {"method": "ridge", "anchors": 60, "source_space": "old", "fingerprint": translation.fingerprint}
    ]
    assert [row["path"] for row in made.lineage(str(tmp_path / "old.faiss"))] == [str(tmp_path / "old.faiss")]
    assert made.sql("SELECT kind, fingerprint FROM artifact WHERE run = 3") == [{"kind": "table", "fingerprint": ""}]


def test_a_path_that_is_not_utf_8_is_stored_and_found(path, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet")
    made = catalog(path)
    made.record(Run("info", {"source": name}, 0.1, (Artifact("source", name, "c1-and-more", "parquet", 5, OLD),)))
    assert made.sql("SELECT path FROM collection") == [{"path": f"{tmp_path}/\\udcff.parquet"}]
    assert set(made.show(name)) == {"artifact", "collection"}
    with pytest.raises(CatalogError, match="must be valid UTF-8"):
        Catalog(name)
