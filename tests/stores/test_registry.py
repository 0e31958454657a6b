"""Stores are found by the scheme of a URI, also those of other packages; passwords in URIs are never shown."""

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points

import numpy as np
import pytest

import embridge as eb
from embridge.errors import EmbridgeError, ParameterError, UnreadableFileError
from embridge.stores import uri
from embridge.stores.uri import Location, without_password
from tests.support import run

URI = "postgresql://u:hunter2@127.0.0.1:1/db?table=t"
STORE = """
    from embridge.stores import MemoryCollection
    from embridge.stores.capabilities import Capabilities
    from embridge.stores.store import Store

    class Constant(Store):
        form = "constant://host/rows"

        def open(self, location, *, space, id_column, vector_column):
            rows = int(location.path.strip("/"))
            return MemoryCollection(range(rows), [[1.0, 2.0]] * rows, __import__("embridge").Space(space or "constant", 2))

        def capabilities(self, metric):
            return Capabilities()
"""


@pytest.fixture
def install(tmp_path):
    """``install(name, entry, code)`` of a distribution with one entry point, on the path of ``run_code``."""

    def make(name, entry, code=STORE):
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[embridge.stores]\n{entry}\n")
        return tmp_path

    return make


def run_code(folder, code, *arguments):
    """What a fresh interpreter with `folder` on its path prints, and its errors."""
    path = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, *(("-c", code) if code else ("-m", "embridge.cli.main")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path}, cwd=folder)
    return done.stdout, done.stderr


def test_a_store_of_another_package_is_opened_by_library_and_verbs(install):
    folder = install("embridge-constant", "constant = embridge_constant:Constant")
    out, err = run_code(folder, "import embridge as eb; print(eb.open('constant://host/7').read()[1].sum())")
    assert (out.strip(), err) == ("21.0", "")
    out, err = run_code(folder, None, "info", "constant://host/7", "--space", "c", "--json", "--no-catalog")
    assert json.loads(out)["rows"] == 7, err


def test_embridges_own_stores_are_registered_the_same_way():
    assert {"npy", "lancedb", "postgresql", "qdrant", "chroma"} <= {entry.name for entry in entry_points(group="embridge.stores")}


@pytest.mark.parametrize(
    ("entry", "code", "reason"),
    [
        ("constant = embridge_other:Constant", "x = 1 / 0", "of embridge-other cannot be loaded: ZeroDivisionError"),
        ("constant = embridge_other:Missing", STORE, "of embridge-other cannot be loaded: AttributeError"),
        ("constant = not_installed:Constant", STORE, "cannot be loaded: ModuleNotFoundError"),
        ("npy = embridge_other:Constant", STORE, "several packages: embridge, embridge-other"),
        ("other = embridge_other:Constant", STORE, r"constant:// is not one of file://, s3://, gs://, .*npy://, other://"),
    ],
)
def test_a_store_that_cannot_be_loaded_is_an_error(install, entry, code, reason):
    folder = install("embridge-other", entry, code)
    scheme = "npy" if entry.startswith("npy") else "constant"
    program = f"import embridge as eb\ntry: eb.open('{scheme}://u:secret@host/7')\nexcept eb.EmbridgeError as e: print(e)"
    out, _ = run_code(folder, program)
    assert re.search(reason, out)
    assert "secret" not in out


@pytest.mark.parametrize(
    ("given", "shown", "password"),
    [
        ("pg://ann:s3cret@db:5432/x?table=t", "pg://ann@db:5432/x?table=t", "s3cret"),
        ("pg://ann:a%40b%2F@db/x", "pg://ann@db/x", "a@b/"),
        ("pg://ann:a@b@db/x", "pg://ann@db/x", "a@b"),
        ("pg://:only@db/x", "pg://db/x", "only"),
        ("pg://ann:@db/x", "pg://ann@db/x", None),
        ("qdrant://h:6333/c?api_key=k%201&vector=v", "qdrant://h:6333/c?vector=v", "k 1"),
        ("qdrant://h/c?vector=v&API_KEY=k", "qdrant://h/c?vector=v", "k"),
        ("qdrant://h/c?password=k#t", "qdrant://h/c#t", "k"),
        ("pg://ann:a/b#c?d@db/x", "pg://ann@db/x", "a/b#c?d"),
        ("pg://h/c?vector=v&p%61ssword=k", "pg://h/c?vector=v", "k"),
        ("pg://h:5/x@y?a=b#c@d", "pg://h:5/x@y?a=b#c@d", None),
        ("pg://h:5?a=b@c", "pg://h:5?a=b@c", None),
        ("pg://h?a=b&c=d:e@f/g", "pg://h?a=b&c=d:e@f/g", None),
        ("pg://ann@db/x?table=t:u@v", "pg://ann@db/x?table=t:u@v", None),
        ("npy:///a/b:c@d.npy", "npy:///a/b:c@d.npy", None),
        ("postgres://ann:k@db/x?table=t", "postgresql://ann@db/x?table=t", "k"),
    ],
)
def test_passwords_are_taken_out_and_kept(given, shown, password, caplog):
    uri._SECRETS.clear()
    with caplog.at_level(logging.WARNING, "embridge"):
        location = Location.parse(given)
    assert (location.uri, location.password) == (shown, password)
    assert Location.parse(shown) == location
    assert not password or (password not in repr(location) and password not in caplog.text)
    assert (shown in caplog.text) == (password is not None)


def test_other_secrets_of_a_driver_keep_their_names(caplog):
    uri._SECRETS.clear()
    location = Location.parse("pg://ann:k@h/c?sslpassword=hunter1&scram_client_key=hunter2&oauth_client_secret=hunter3&a=b")
    assert (location.uri, location.password) == ("pg://ann@h/c?a=b", "k")
    assert location.secrets == {"sslpassword": "hunter1", "scram_client_key": "hunter2", "oauth_client_secret": "hunter3"}
    assert "hunter" not in repr(location) + caplog.text
    assert Location.parse(location.uri) == location


def test_a_uri_beside_another_has_its_secrets():
    made = uri.beside("pg://ann:k@h/c?table=a&sslpassword=hunter1&id=x", "{}_b".format)
    assert (made, Location.parse(made).password) == ("pg://ann@h/c?table=a_b", "k")
    assert Location.parse(made).secrets == {"sslpassword": "hunter1"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("postgresql:/u:hunter2@h/db?table=t", "'postgresql:/u@h/db.table=t' is not a URI. Hint: write postgresql:// with two"),
        ("postgres:u:hunter2@h/db?table=t", "is not a URI. Hint: write postgresql:// with two slashes"),
        ("mysql:/u:hunter2@h/db", "'mysql:/u@h/db' is not a URI"),
        ("lancedb:/folder#table", "write lancedb:// with two slashes, or three before a local path"),
        ("qdrant:/h/c?api_key=hunter2", "'qdrant:/h/c' is not a URI"),
        ("postgresql://h/db?table=t&code=hunter2", "'postgresql://h/db' has an unknown option 'code'"),
        ("postgresql://h/db?table=t&pwd=hunter2", "cannot be|has an unknown option"),
        ("postgresql://u:hunter2@a:1,b:2/db?table=t", r"is not a URI: .* Hint: name several hosts as options"),
    ],
)
def test_what_is_nearly_a_uri_is_refused_without_its_secrets(given, reason):
    pytest.importorskip("psycopg")
    with pytest.raises(EmbridgeError, match=reason) as caught:
        eb.open(given)
    assert "hunter2" not in repr(caught.value)
    shown = run("info", given, "--no-catalog")
    assert shown.exit_code == 1
    assert "hunter2" not in shown.output


def test_a_host_may_be_the_folder_of_a_socket():
    location = Location.parse("postgresql://ann@%2FVar%2Frun:5433/db?table=t")
    assert (location.host, location.port, location.user) == ("/Var/run", 5433, "ann")
    assert Location.parse("postgresql://[::1]:5/db").host == "::1"


@pytest.mark.parametrize(
    "words",
    [
        ["copy", URI],
        ["copy", URI, "b", "c", URI],
        [URI],
        ["catalog", URI],
        ["copy", "a", "b", "--dtype", URI],
        ["copy", "a", "b", f"--batch-rows={URI}"],
        ["info", f"{URI}\udcff"],
        ["info", URI, "--no-catalog", "--debug"],
    ],
)
def test_no_message_shows_a_password(words):
    done = run(*words)
    assert done.exit_code
    assert "hunter2" not in done.output + repr(done.exception)


@pytest.mark.parametrize(("scheme", "variable"), [("qdrant", "QDRANT_API_KEY"), ("chroma", "CHROMA_API_KEY")])
def test_a_key_that_is_no_header_is_not_shown(scheme, variable, monkeypatch):
    pytest.importorskip({"qdrant": "qdrant_client", "chroma": "chromadb"}[scheme])
    for key in ("hunter2\x7f", "hunter2é", "hun\nter2"):
        monkeypatch.setenv(variable, key)
        with pytest.raises(ParameterError, match="other than printable ASCII") as e:
            eb.open(f"{scheme}://127.0.0.1:1/rows", space="a")
        assert "ter2" not in str(e.value)
    monkeypatch.setenv(variable, "hunter2\n")  # as read from a file
    with pytest.raises(UnreadableFileError, match="server running"):
        eb.open(f"{scheme}://127.0.0.1:1/rows", space="a")


def test_paths_of_files_are_not_uris():
    for path in ("a:b@c.parquet", "s3://key:secret@bucket/x", "folder/x://y:z@w", "C:\\x"):
        assert without_password(path) == path


@pytest.mark.parametrize("text", ["npy://[::1/x", "npy:///x?a=1&a=2", "npy:///x?a", "npy://h:port/x"])
def test_what_is_no_uri_is_refused(text):
    with pytest.raises(ParameterError):
        eb.open(text, space="a")


def test_a_password_reaches_neither_catalog_nor_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", np.ones((5, 3), np.float32))
    done = run(f"info npy://{tmp_path}/v.npy?api_key=hunter2 --space a")
    assert done.exit_code == 0
    assert "hunter2" not in done.output
    assert b"hunter2" not in (tmp_path / "embridge.duckdb").read_bytes()
