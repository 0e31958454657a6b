"""The verbs decode and decoder, and what they leave in the catalog."""

import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

import embridge as eb
from tests.support import run, run_json

OLD, NEW = eb.Space("old", 5), eb.Space("new", 6)


@pytest.fixture
def folder(tmp_path, planted, table_of, write):
    """Two collections with labels, a map, a linear head and a skops file without a declaration."""
    import skops.io

    ids, x, y, _ = planted(400, 5, 6, 0.1)
    labels = np.where(y[:, 0] > 0, "up", "down")
    write(tmp_path / "old.parquet", table_of(ids, x, {"label": labels.tolist(), "year": list(range(400))}, space=OLD))
    write(tmp_path / "new.parquet", table_of(ids, y, space=NEW))
    assert run("fit old.parquet new.parquet -o map.safetensors --test-size 0.5 --for decode", cwd=tmp_path).exit_code == 0
    model = LogisticRegression().fit(y, labels)
    eb.save_decoder(model, tmp_path / "head.safetensors", NEW)
    skops.io.dump(model, tmp_path / "model.skops")
    return tmp_path


MEASURE = "decoder evaluate {} old.parquet new.parquet --via map.safetensors --labels old.parquet"
DECODE = "decode old.parquet --decoder {} --via map.safetensors -o {}.parquet --device cpu"


def test_a_decoder_from_its_registration_to_its_lineage(folder):
    made = run_json("decoder register model.skops --space new --name signs --json", cwd=folder)
    assert made["name"] == "signs"
    assert made["space"] == {"name": "new", "dim": 6, "metric": "cosine", "normalized": False}
    run_json("decoder register head.safetensors --space new --json", cwd=folder)
    assert not (folder / "head.safetensors.json").exists()
    shown = run_json("decoder show model.skops --json", cwd=folder)
    assert (shown["format"], shown["kind"], shown["classes"]) == ("skops", "classifier", ["down", "up"])

    measured = run_json(
        "decoder evaluate model.skops old.parquet new.parquet --via map.safetensors --labels old.parquet --json", cwd=folder
    )
    assert [s["name"] for s in measured["strategies"]] == ["native", "translated", "no-translation", "retrained"]
    run_json(MEASURE.format("head.safetensors") + " --json", cwd=folder)
    for decoder, folded in (("model.skops", False), ("head.safetensors", True)):
        done = run_json(
            f"decode old.parquet --decoder {decoder} --via map.safetensors -o {decoder}.parquet --device cpu --json", cwd=folder
        )
        assert (done["rows"], done["folded"], done["columns"]) == (400, folded, ["prediction", "probability"])
    run_json("decode new.parquet --decoder head.safetensors -o native.parquet --json", cwd=folder)
    one, other = (pq.read_table(folder / f"{name}.parquet") for name in ("model.skops", "head.safetensors"))
    assert one.column_names == ["id", "label", "year", "prediction", "probability"]
    kept = pq.read_table(folder / "old.parquet").select(["id", "label", "year"])
    assert one.select([0, 1, 2]).to_pydict() == kept.to_pydict()
    assert one["prediction"].to_pylist() == other["prediction"].to_pylist()

    listed = run_json("decoder list --json", cwd=folder)
    assert [(d["name"], d["metric"]) for d in listed] == [("head", "accuracy"), ("signs", "accuracy")]
    query = (
        "SELECT d.name, t.method, e.strategy, e.value, e.low, e.high FROM decoder_evaluation e "
        "JOIN decoder d ON d.fingerprint = e.decoder JOIN translator t ON t.fingerprint = e.translator "
        "WHERE e.metric = 'accuracy' AND e.strategy = 'translated' ORDER BY d.name"
    )
    found = run_json("catalog", "sql", query, "--json", cwd=folder)
    assert [(row["name"], row["method"]) for row in found] == [("head", "bridge"), ("signs", "bridge")]
    assert all(row["low"] <= row["value"] <= row["high"] for row in found)
    decodings = run_json(
        "catalog", "sql", 'SELECT path, "rows", folded, translator FROM decoding ORDER BY run', "--json", cwd=folder
    )
    assert [(d["rows"], d["folded"], d["translator"] is None) for d in decodings] == [
        (400, False, False), (400, True, False), (400, False, True),
    ]  # fmt: skip
    edges = run_json("catalog lineage head.safetensors.parquet --json", cwd=folder)
    assert {(e["depth"], e["role"], e["from_kind"]) for e in edges if e["depth"] == 1} == {
        (1, "source", "parquet"), (1, "decoder", "decoder"), (1, "map", "map"),
    }  # fmt: skip
    assert any(e["depth"] == 2 and e["verb"] == "fit" for e in edges)
    facts = run_json("catalog show model.skops --json", cwd=folder)
    assert {"decoder", "decoder_evaluation", "artifact"} <= set(facts)
    assert "signs" in run("decoder list", cwd=folder).stdout
    assert "translated" in run(MEASURE.format("model.skops"), cwd=folder).stdout
    assert "one matrix" in run(DECODE.format("head.safetensors", "x"), cwd=folder).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("decode old.parquet --decoder head.safetensors -o x.parquet", "takes 6-dimensional vectors of 'new', but"),
        ("decode new.parquet --decoder head.safetensors --via map.safetensors -o x.parquet", "The map expects 5-dimensional"),
        ("decode new.parquet --decoder head.safetensors --decoder-space other -o x.parquet", "declared as space 'other'"),
        ("decode new.parquet --decoder model.skops -o x.parquet", "embridge decoder register"),
        ("decode new.parquet --decoder model.skops --decoder-space other -o x.parquet", "takes 6-dimensional vectors of 'other'"),
        ("decode new.parquet --decoder bad.skops -o x.parquet --decoder-space new", "is a pickle"),
        ("decode new.parquet --decoder head.safetensors -o map.safetensors", "exists already"),
        ("decode new.parquet --decoder none.onnx -o x.parquet", "no file or folder"),
        ("decoder register bad.skops --space new", "is a pickle"),
        ("decoder register head.safetensors --space old", "'new'"),
        (
            "decoder evaluate head.safetensors old.parquet new.parquet --via map.safetensors --labels new.parquet",
            "no column 'label'",
        ),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_leaves_nothing(folder, words, message):
    (folder / "bad.skops").write_bytes(pickle.dumps([1]))
    before = sorted(p.name for p in folder.iterdir())
    result = run(words, cwd=folder)
    assert result.exit_code == 1, result.output
    assert message in result.stderr.replace("\n", " ")
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_declared_space_and_kind_are_enough(folder):
    done = run_json("decode new.parquet --decoder model.skops --decoder-space new -o x.parquet --no-catalog --json", cwd=folder)
    assert done["rows"] == 400
    assert run_json(
        "decode new.parquet --decoder model.skops --decoder-space new -o x.parquet --overwrite --batch-rows 7 --json", cwd=folder
    )


def test_the_id_column_holds_for_labels_and_excluded_ids_too(folder, table_of, write):
    for name in ("old", "new"):
        table = pq.read_table(folder / f"{name}.parquet")
        named = table.rename_columns(["key" if column == "id" else column for column in table.column_names])
        pq.write_table(named.replace_schema_metadata(table.schema.metadata), folder / f"{name}-keys.parquet")
    labels = pq.read_table(folder / "old-keys.parquet").select(["key", "label"])
    wrong = labels.append_column("id", labels["key"].take(list(range(399, -1, -1))))  # another order: labels of other rows
    pq.write_table(wrong, folder / "labels.parquet")
    pq.write_table(labels.select(["key"]).slice(0, 250), folder / "taught.parquet")
    words = "decoder evaluate head.safetensors old-keys.parquet new-keys.parquet --via map.safetensors --id-column key --json "
    plain = run_json(MEASURE.format("head.safetensors") + " --json", cwd=folder)
    for given in ("labels.parquet", "old-keys.parquet"):
        found = run_json(words + f"--labels {given}", cwd=folder)
        assert found["strategies"] == plain["strategies"]
    fewer = run_json(words + "--labels labels.parquet --exclude taught.parquet --no-retrain", cwd=folder)
    assert 0 < fewer["rows"] < plain["rows"]
    result = run(words + "--labels old.parquet", cwd=folder)
    assert result.exit_code == 1
    assert "no column 'key'" in result.stderr.replace("\n", " ")
