"""What every verb does alike: sentences for errors, strict JSON, ranges of options, a catalog that no verb overwrites, help."""

import json
import os
import subprocess
import sys

import click
import pyarrow as pa
import pytest
from click.testing import CliRunner

from embridge.cli.main import main
from embridge.cli.session import Verb, verb
from embridge.types import Space

P, Q, N = 6, 9, 60


@pytest.fixture
def pair(tmp_path, planted, table_of, write, monkeypatch):
    """old.parquet and new.parquet in the working directory."""
    monkeypatch.delenv("EMBRIDGE_CATALOG", raising=False)
    ids, x, y, _ = planted(N, P, Q, 0.3)
    write(tmp_path / "old.parquet", table_of(ids, x, space=Space("old", P)))
    write(tmp_path / "new.parquet", table_of(ids, y, space=Space("new", Q)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def process(*words, **environment):
    """A real process; bytes, as its output may be in any encoding."""
    command = [sys.executable, "-m", "embridge.cli.main", *words]
    return subprocess.run(command, capture_output=True, env=os.environ | environment)


# Errors


def _nest(value):
    return _nest([value])


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (lambda: _nest(0), "Error: The input is nested too deeply.\n"),
        (lambda: bytearray(1 << 62), "Error: Out of memory. Hint: free some, or use fewer rows at a time.\n"),
        (lambda: "\udcff".encode(), "Error: UnicodeEncodeError: 'utf-8' codec can't encode"),
        (lambda: os.remove("no/such/file"), "Error: No such file or directory: 'no/such/file'\n"),
        (lambda: os.rename("a\udcff", "b"), "Error: No such file or directory: 'a\\udcff'\n"),
    ],
    ids=["recursion", "memory", "unicode", "missing", "surrogate"],
)
def test_errors_of_the_system_are_sentences(fail, message):
    @click.command(cls=Verb)
    @verb(catalog=False)
    def failing(session):
        fail()

    result = CliRunner().invoke(failing, [])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert not isinstance(CliRunner().invoke(failing, ["--debug"]).exception, SystemExit)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_a_terminal_cannot_show_is_written_as_an_escape(pair, table_of, write, encoding):
    shown_in = {"ascii": "utf-8"}.get(encoding, encoding)  # click's own answer to a terminal that claims to know only ASCII
    ids = pa.array(["\u65e5\u672c", "b"])
    write(pair / "caf\u00e9.parquet", table_of(ids, [[1.0, 0], [0, 1]], space=Space("old", 2)))
    write(pair / "\u65e5.parquet", table_of(ids, [[1.0, 0], [0, 1]], space=Space("old", 2)))
    for name in ("caf\u00e9.parquet", "\u65e5.parquet"):
        done = process("info", name, PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(name.encode(shown_in, "backslashreplace") + b": 2 rows")
    assert process("index", name, "i.faiss", "--factory", "Flat", PYTHONIOENCODING=encoding).returncode == 0
    hits = process("search", "i.faiss", name, "-k", "1", PYTHONIOENCODING=encoding)
    expected = "\u65e5\u672c: \u65e5\u672c (1.000)".encode(shown_in, "backslashreplace")
    assert (hits.returncode, hits.stdout.splitlines()[0]) == (0, expected)


@pytest.mark.parametrize(
    "line", ["info NAME", "fit old.parquet new.parquet -o NAME", "index old.parquet NAME", "catalog show NAME"]
)
def test_a_name_that_is_not_utf_8_is_refused(pair, line):
    name = os.fsdecode(b"no-\xff.parquet")
    result = run(*line.replace("NAME", name).split())
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: 'no-\\udcff.parquet' is not valid UTF-8. Hint: rename the file.\n"
    assert sorted(os.listdir(pair)) == ["new.parquet", "old.parquet"]


def test_a_reader_that_leaves_early_ends_the_verb_quietly(pair):
    assert run("catalog", "migrate").exit_code == 0
    command = [sys.executable, "-m", "embridge.cli.main", "catalog", "sql", "SELECT * FROM range(200_000)"]
    environment = os.environ | {"PYTHONUNBUFFERED": ""}  # with it Python drops the rest of a write that was cut short
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as done:
        assert done.stdout.readline().strip() == b"range"
        done.stdout.close()
        assert done.stderr.read() == b""
        assert done.wait() == 1


# JSON


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("'nan'::DOUBLE", None),
        ("'-inf'::FLOAT", None),
        ("'\\xAB\\x00'::BLOB", "ab00"),
        ("{'a': [1, NULL], 'b': {'c': 'nan'::DOUBLE}}", {"a": [1, None], "b": {"c": None}}),
        ("MAP {1: 'x'}", {"1": "x"}),
        ("MAP {[1]: 2}", {"key": [[1]], "value": [2]}),
        ("1.50::DECIMAL(4, 2)", "1.50"),
        ("170141183460469231731687303715884105727::HUGEINT", 170141183460469231731687303715884105727),
        ("DATE '2020-01-02'", "2020-01-02"),
        ("INTERVAL 1 DAY", "1 day, 0:00:00"),
        ("'6b86b273-ff34-4ce1-9d6b-804eff5a3f57'::UUID", "6b86b273-ff34-4ce1-9d6b-804eff5a3f57"),
        ("'101'::BIT", "101"),
        ("true", True),
    ],
)
def test_every_type_of_sql_is_json(pair, value, expected):
    assert run("catalog", "migrate").exit_code == 0
    result = run("catalog", "sql", f"SELECT {value} AS a", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout, parse_constant=pytest.fail) == [{"a": expected}]
    assert run("catalog", "sql", f"SELECT {value} AS a").exit_code == 0


def test_a_table_has_a_line_for_each_row(pair):
    assert run("catalog", "migrate").exit_code == 0
    found = run("catalog", "sql", "SELECT 'a' || chr(10) || chr(27) || '[31m' AS a").stdout
    assert found.splitlines()[2:] == ["a\\n\\x1b[31m"]


# Options


@pytest.mark.parametrize(
    "line",
    [
        "anchors sample old.parquet -n 5 -o out --seed -1",
        "anchors sample old.parquet -n 5 -o out --seed 2147483648",
        "anchors sample old.parquet -n -5 -o out",
        "fit old.parquet new.parquet -o out --seed -1",
        "index old.parquet out --seed -1",
        "search old.faiss old.parquet -k -1",
        "encode old.parquet --model m -o out --batch-size 0",
    ],
)
def test_sizes_and_seeds_out_of_range_are_wrong_usage(pair, line):
    result = run(*line.split())
    assert result.exit_code == 2
    assert "is not in the range" in result.stderr
    assert sorted(os.listdir(pair)) == ["new.parquet", "old.parquet"]


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("name", ["embridge.duckdb", "./embridge.duckdb", "embridge.duckdb.wal", "link.duckdb"])
@pytest.mark.parametrize(
    "line",
    [
        "anchors sample old.parquet -n 5 -o OUT --overwrite",
        "fit old.parquet new.parquet -o map.safetensors --reverse-output OUT --overwrite",
        "convert old.parquet whole.safetensors OUT --overwrite",
        "decode old.parquet --decoder d.safetensors -o OUT --overwrite",
        "index old.parquet OUT --factory Flat --overwrite",
        "search old.faiss old.parquet -o OUT --overwrite",
        "merge old.parquet new.parquet -o OUT --overwrite",
        "evaluate whole.safetensors OUT new.parquet",
    ],
)
def test_no_verb_overwrites_its_catalog(pair, line, name, exists):
    os.symlink("embridge.duckdb", "link.duckdb")
    if exists:
        assert run("catalog", "migrate").exit_code == 0
    before = {p.name: p.read_bytes() for p in pair.iterdir() if p.exists()}
    result = run(*line.replace("OUT", name).split())
    assert result.exit_code == 1
    assert f"{name!r} is the catalog, or its log" in result.stderr
    assert {p.name: p.read_bytes() for p in pair.iterdir() if p.exists()} == before


# Help


def groups(command=main, path=("embridge",)):
    if isinstance(command, click.Group):
        yield path, command
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from groups(command.get_command(context, name), (*path, name))


@pytest.mark.parametrize(("path", "group"), list(groups()), ids=lambda value: value[-1] if isinstance(value, tuple) else "")
@pytest.mark.parametrize("width", [50, 80, 120])
def test_the_line_of_a_command_is_a_whole_sentence(path, group, width):
    text = CliRunner().invoke(main, [*path[1:], "--help"], terminal_width=width, max_content_width=width).stdout
    section = "".join(text.split("Commands:")[1].split())  # without spaces, as a line may be wrapped behind a hyphen
    context = click.Context(group)
    assert "..." not in section
    for name in group.list_commands(context):
        sentence = " ".join(group.get_command(context, name).help.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
        assert f"{name}{sentence}.".replace(" ", "") in section
