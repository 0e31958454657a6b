"""What a user sees of the package before doing anything with it: its names, its weight, its sample."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import embridge as eb

HEAVY = ("torch", "faiss", "duckdb", "pyarrow", "safetensors", "sentence_transformers", "click", "rich")


def in_python(code, **environment):
    """What a fresh interpreter prints as JSON."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment)
    return json.loads(found.stdout)


def test_importing_it_loads_nothing_heavy():
    loaded = in_python(f"import embridge, json, sys; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))")
    assert loaded == []


def test_importing_it_is_quick():
    code = "import time; t = time.perf_counter(); import embridge; print(time.perf_counter() - t)"
    assert min(in_python(code) for _ in range(5)) < 0.3


def test_the_help_of_the_command_line_loads_nothing_heavy():
    code = (
        "import sys, json, contextlib, io\n"
        "from embridge.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['-h'])\n"
        "print(json.dumps([m for m in ('torch', 'faiss', 'duckdb', 'pyarrow') if m in sys.modules]))"
    )
    assert in_python(code) == []


@pytest.mark.parametrize("name", [n for n in eb.__all__ if not n.startswith("_")])
def test_every_public_name_resolves_and_says_what_it_is(name):
    found = getattr(eb, name)
    assert found.__doc__
    assert len(found.__doc__.strip()) > 20
    assert getattr(eb, name) is found  # and is the same the next time


def test_the_names_are_sorted_and_each_stands_once():
    assert set(dir(eb)) == set(eb.__all__)
    assert eb.__all__ == ["__version__", *sorted(eb.__all__[1:])]
    assert len(set(eb.__all__)) == len(eb.__all__)


def test_type_checkers_see_the_same_names():
    """The stub as Python's grammar has it: public are ``import A as A`` and what is assigned or declared."""
    public = {}
    for statement in ast.parse(Path(eb.__file__).with_suffix(".pyi").read_text()).body:
        if isinstance(statement, ast.ImportFrom):
            for name in statement.names:
                public[name.asname or f"_{name.name}"] = (statement.module, name.name)
        elif isinstance(statement, ast.Assign):
            (target,) = statement.targets
            public[target.id] = public[f"_{statement.value.id}"]
        elif isinstance(statement, ast.AnnAssign):
            public[statement.target.id] = None
    public = {name: home for name, home in public.items() if not name.startswith("_") or name == "__version__"}
    assert set(public) == set(eb.__all__)
    for name, home in public.items():
        if home is not None:
            module, attribute = home
            assert getattr(importlib.import_module(module), attribute) is getattr(eb, name)
    assert Path(eb.__file__).with_name("py.typed").exists()


def test_an_unknown_name_is_reported():
    with pytest.raises(AttributeError, match=r"module 'embridge' has no attribute 'transmogrify'"):
        _ = eb.transmogrify


@pytest.mark.parametrize(("set_to", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_do_not_spin_unless_the_user_says_so(set_to, expected):
    environment = {} if set_to is None else {"OMP_WAIT_POLICY": set_to}
    code = "import os\n" + ("os.environ.pop('OMP_WAIT_POLICY', None)\n" if set_to is None else "")
    assert in_python(code + "import embridge, json; print(json.dumps(os.environ['OMP_WAIT_POLICY']))", **environment) == expected


def test_the_sample_is_small_and_whole():
    folder = Path(eb.sample_path("minilm")).parent
    assert sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) < 10_000_000
    assert "WordNet" in (folder / "WORDNET-LICENSE").read_text()
    documents = [eb.open(eb.sample_path(name)) for name in ("minilm", "mpnet")]
    queries = [eb.open(eb.sample_path(f"{name}.queries")) for name in ("minilm", "mpnet")]
    assert [(len(c), c.space.dim) for c in documents] == [(3000, 384), (3000, 768)]
    assert [(len(c), c.space.dim) for c in queries] == [(600, 384), (600, 768)]
    for one, other in (documents, queries):
        assert one.read()[0].tolist() == other.read()[0].tolist()
    for collection in (*documents, *queries):
        found = eb.summarize(collection)
        assert (found.bad_rows, found.duplicate_ids) == (0, 0)
        assert collection.space.normalized
    qrels = pq.read_table(eb.sample_path("qrels")).to_pydict()
    assert set(qrels["query_id"]) <= set(queries[0].read()[0].tolist())
    assert set(qrels["doc_id"]) <= set(documents[0].read()[0].tolist())


def test_only_what_is_in_the_sample_has_a_path():
    with pytest.raises(eb.EmbridgeError, match=r"name must be one of minilm, .*qrels\. Got 'glove' instead"):
        eb.sample_path("glove")


def test_without_faiss_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import embridge as eb\n"
        "try:\n    eb.open('x.faiss', space='a')\n"
        "except eb.EmbridgeError as e:\n    print(type(e).__name__, e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingDependencyError")
    assert "pip install 'embridge[cpu]'" in done.stdout
    assert "'embridge[gpu]'" in done.stdout
