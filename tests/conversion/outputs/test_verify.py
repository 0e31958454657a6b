"""What `verify` finds in a converted collection."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.errors import (
    BadIdsError,
    BadVectorsError,
    SpaceMismatchError,
    UnreadableFileError,
    VerificationError,
)
from embridge.stores.parquet import writer
from embridge.types import Metric, Space
from tests.conversion.outputs.support import NEW, ROWS, Q, map_between, table_of

# What verify finds


@pytest.fixture
def made(tmp_path, rows, out):
    """A source, a map and what became of it."""
    pq.write_table(table_of(*rows, n=range(ROWS)), tmp_path / "old.parquet")
    source, target = eb.open(tmp_path / "old.parquet"), out.with_suffix(".parquet")
    eb.convert(source, map_between(), target)
    return SimpleNamespace(source=source, path=target, translation=map_between(), at=tmp_path)


def rewritten(path, change):
    table = pq.read_table(path)
    metadata = table.schema.metadata
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata(metadata), path, row_group_size=50)


def with_vectors(table, change):
    x = np.array(table["vector"].combine_chunks().flatten()).reshape(-1, Q)
    change(x)
    return table.set_column(
        1,
        table.schema.field("vector"),
        pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), type=table.schema.field("vector").type),
    )


def swap_ids(table):
    ids = table["id"].to_pylist()
    ids[40], ids[41] = ids[41], ids[40]
    return table.set_column(0, table.schema.field("id"), pa.array(ids))


def nudge(x):
    x[77, 3] += 0.01


def exchange(x):
    x[[10, 90]] = x[[90, 10]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: with_vectors(t, nudge), VerificationError, "the vector in row 77 is not the translation of the source's"),
        (lambda t: with_vectors(t, exchange), VerificationError, "the vector in row 10 is not"),
        (
            lambda t: pa.concat_tables([t.slice(0, 60), t.slice(61)]),
            VerificationError,
            "ids between rows .* are not those of the source",
        ),
        (lambda t: t.slice(0, ROWS - 1), VerificationError, r"1 rows of the source are missing"),
        (lambda t: t.slice(1), VerificationError, "ids between"),
        (
            lambda t: pa.concat_tables([t, t.slice(0, 1).set_column(0, t.schema.field("id"), [["new"]])]),
            VerificationError,
            "ids between",
        ),
        (swap_ids, VerificationError, "ids between rows 0 and 50 are not those of the source"),
        (lambda t: pa.concat_tables([t.slice(0, 119), t.slice(0, 1)]), BadIdsError, "holds ids more than once: 'd0'"),
        (lambda t: with_vectors(t, lambda x: x.__setitem__((5, 0), np.nan)), BadVectorsError, "NaN or infinite values: ids 'd5'"),
    ],
    ids=["value", "exchanged", "missing", "cut", "first", "more", "ids", "twice", "nan"],
)
def test_verify_finds_what_is_wrong(made, change, error, message):
    rewritten(made.path, change)
    with pytest.raises(error, match=message):
        eb.verify(made.path, source=made.source, translation=made.translation)


def test_verify_finds_another_map_source_or_space(made, rows):
    with pytest.raises(VerificationError, match=r"its lineage names map .*, which is not"):
        eb.verify(made.path, translation=map_between(seed=6))
    pq.write_table(table_of(rows[0], 2 * rows[1]), made.at / "other.parquet")
    with pytest.raises(VerificationError, match="its lineage names source"):
        eb.verify(made.path, source=eb.open(made.at / "other.parquet"))
    with pytest.raises(VerificationError, match="its lineage names source None"):
        eb.verify(made.at / "old.parquet", source=made.source)
    metadata = pq.read_schema(made.path).metadata
    metadata[b"embridge.space"] = json.dumps(Space("third", Q).to_dict()).encode()
    pq.write_table(pq.read_table(made.path).replace_schema_metadata(metadata), made.path)
    with pytest.raises(SpaceMismatchError, match="third"):
        eb.verify(made.path, translation=made.translation)


def test_verify_finds_a_damaged_file(made):
    content = bytearray(made.path.read_bytes())
    content[-200:-100] = bytes(100)
    made.path.write_bytes(content)
    with pytest.raises(UnreadableFileError):
        eb.verify(made.path)


@pytest.mark.parametrize(
    ("options", "stored", "error"),
    [
        ({}, np.float32, 1e-6),
        ({}, np.float16, 1e-6),
        ({}, np.float64, 1e-6),
        ({"compact": True}, np.float32, 1e-6),
        ({"dtype": "float16"}, np.float32, 1e-3),
        ({"dtype": "float16"}, np.float16, 1e-3),
        ({"precision": "bfloat16"}, np.float32, 2e-2),
    ],
)
@pytest.mark.parametrize("target", [NEW, Space("new", Q, Metric.COSINE, normalized=True), Space("new", Q, Metric.L2)], ids=str)
def test_verify_passes_what_is_sound(tmp_path, out, rows, options, stored, error, target):
    pq.write_table(table_of(rows[0], rows[1].astype(stored)), tmp_path / "old.parquet")
    source, translation, seen = eb.open(tmp_path / "old.parquet"), map_between(target=target), []
    path = out.with_suffix(".parquet")
    eb.convert(source, translation, path, **options)
    precision = options.get("precision", "float32")
    found = eb.verify(path, source=source, translation=translation, precision=precision, progress=lambda *n: seen.append(n))
    assert (found.rows, found.compared) == (ROWS, ROWS)
    assert found.max_error < error
    assert seen[-1] == (ROWS, ROWS)
    if error > 1e-6:  # what was computed more coarsely is not float32's work
        assert found.max_error > 1e-5
    alone = eb.verify(path)
    assert (alone.rows, alone.compared, alone.max_error) == (ROWS, 0, 0.0)


def test_a_conversion_that_wrote_something_else_is_found_at_once(tmp_path, out, rows, monkeypatch):
    """The sample that is recomputed before the output gets its name."""
    pq.write_table(table_of(*rows), tmp_path / "old.parquet")
    put = writer.CollectionWriter.append
    monkeypatch.setattr(writer.CollectionWriter, "append", lambda self, parts, vectors, _: put(self, parts, vectors[::-1].copy()))
    with pytest.raises(VerificationError, match="is not the translation of the source's"):
        eb.convert(eb.open(tmp_path / "old.parquet"), map_between(), out.with_suffix(".parquet"))
    assert not out.with_suffix(".parquet").exists()


def test_verify_reports_on_the_command_line(made):
    made.translation.save(made.at / "map.safetensors")
    line = [
        "verify",
        str(made.path),
        "--source",
        made.source.path,
        "--map",
        str(made.at / "map.safetensors"),
        "--json",
        "--no-catalog",
    ]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 0, result.output
    reported = json.loads(result.stdout)
    assert (reported["rows"], reported["compared"]) == (ROWS, ROWS)
    rewritten(made.path, swap_ids)
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: '{made.path}' is not what it should be: ids")
