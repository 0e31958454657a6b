"""Errors of the command line are one sentence, and nothing is written."""

import re

import numpy as np
import pyarrow as pa
import pytest

from embridge.errors import MissingFileError
from embridge.types import Space
from tests.cli.support import NEW, OLD, N, P, Q, snapshot
from tests.support import run

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
    ("convert bare.parquet map.safetensors OUT", r"bare.parquet' does not name the encoder of its vectors\. Hint: .*--space"),
    (
        "convert old.parquet map.safetensors OUT --space third",
        r"was declared as space 'third', but its own metadata says space 'old'",
    ),
    (
        "convert old.parquet map.safetensors OUT --space old:l2",
        r"was declared as metric 'l2', but its own metadata says metric 'cosine'",
    ),
    ("fit bare.parquet new.parquet -o OUT", r"bare.parquet' does not name the encoder.*--source-space"),
    ("fit old.parquet new.parquet -o OUT --target-space third", r"declared as space 'third', but .* 'new'"),
    ("fit old.parquet old.parquet -o OUT", r"both of space 'old'; there is nothing to translate"),
    ("index bare.parquet OUT.faiss --factory Flat", r"does not name the encoder"),
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
    ("search old.faiss old.parquet --params nprobe=3", r"does not accept the search parameters 'nprobe=3'"),
    ("search old.faiss old.parquet --blend old.parquet", r"Blending needs a map"),
    ("evaluate map.safetensors old.parquet new.parquet --qrels exists.parquet", r"--qrels needs --queries QS QT"),
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
