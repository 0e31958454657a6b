"""A catalog is made whole or not at all: kills, races, full disks, damage, names."""

import os
import signal
import subprocess
import sys

import duckdb
import pytest

from embridge.catalog import Catalog
from embridge.errors import CatalogError
from tests.catalog.support import catalog, evaluate_run, fit_run
from tests.support import ROOT


@pytest.fixture
def path(tmp_path):
    return tmp_path / "embridge.duckdb"


# Creation


@pytest.mark.parametrize("content", [None, b""], ids=["absent", "empty"])
def test_an_empty_file_counts_as_absent(path, content):
    """It is what a maker leaves that was killed, or found the disk full."""
    if content is not None:
        path.write_bytes(content)
    made = catalog(path)
    made.check()
    with pytest.raises(CatalogError, match="There is no catalog at"):
        made.list()
    assert made.record(fit_run()) == 1
    assert os.listdir(path.parent) == ["embridge.duckdb"]


def test_an_empty_database_becomes_a_catalog(path):
    duckdb.connect(str(path)).close()
    catalog(path).check()
    assert catalog(path).record(fit_run()) == 1


def test_a_link_leads_to_the_catalog(path, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere" / "team.duckdb")
    assert catalog(path).record(fit_run()) == 1
    assert path.is_symlink()
    assert os.listdir(tmp_path / "elsewhere") == ["team.duckdb"]


# A kill at the n-th call of one of these, before or after the call. DuckDB's own writes are between them.
KILLED = """
import os, signal, sys
import duckdb
import tests.catalog.support as t
from embridge.catalog import file

when, after, count = int(sys.argv[2]), sys.argv[3] == "after", 0

def deadly(function):
    def call(*args, **kw):
        global count
        count += 1
        if count == when and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kw)
        if count == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

for name in ("open", "fsync", "replace", "close"):
    setattr(os, name, deadly(getattr(os, name)))
file.fcntl.flock = deadly(file.fcntl.flock)

class Connection:
    def __init__(self, real):
        self.real, self.execute, self.close = real, deadly(real.execute), deadly(real.close)
    def __getattr__(self, name):
        return getattr(self.real, name)

connect = duckdb.connect
duckdb.connect = lambda *args, **kw: Connection(connect(*args, **kw))
t.Catalog(sys.argv[1]).record(t.fit_run())
print(count)
"""


def killed(commands, path, when, order="before"):
    command = [commands / "python-c", KILLED, str(path), str(when), order]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_catalog_whose_maker_was_killed_at_any_step_can_be_used(commands, tmp_path, order):
    whole = killed(commands, tmp_path / "whole.duckdb", 0)
    steps = int(whole.stdout)
    assert steps > 20, whole.stderr
    for when in range(1, steps + 1, 3 if order == "before" else 7):
        folder = tmp_path / f"{order}-{when}"
        folder.mkdir()
        path = folder / "embridge.duckdb"
        assert killed(commands, path, when, order).returncode == -signal.SIGKILL
        made = Catalog(path)
        made.check()
        assert made.record(evaluate_run()) in (1, 2)
        assert made.sql("SELECT verb FROM run ORDER BY id DESC LIMIT 1") == [{"verb": "evaluate"}]
        kept = {"fit": {"run": 1, "artifact": 3, "translator": 1}, None: {}}
        fits = made.sql("SELECT count(*) AS n FROM run WHERE verb = 'fit'")[0]["n"]
        found = {table: len(rows) for table, rows in made.show("1").items()} if fits else {}
        assert kept["fit" if fits else None].items() <= found.items()  # a run is whole or absent
        assert os.listdir(folder) == ["embridge.duckdb"]


def test_processes_that_create_the_catalog_at_one_moment_all_succeed(tmp_path):
    code = (
        "import sys, tests.catalog.support as t\n"
        "sys.stdin.readline()\n"
        "print(t.Catalog(sys.argv[1], patience=100).record(t.fit_run(sys.argv[2])))\n"
    )
    for round_, content in enumerate((None, b"")):
        path = tmp_path / str(round_) / "embridge.duckdb"
        path.parent.mkdir()
        if content is not None:
            path.write_bytes(content)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        running = [subprocess.Popen([sys.executable, "-c", code, str(path), f"f{i}"], **pipes) for i in range(4)]
        for process in running:
            process.stdin.write("go\n")
            process.stdin.flush()
        assert sorted(int(process.communicate()[0]) for process in running) == [1, 2, 3, 4]
        assert catalog(path).sql("SELECT count(*) AS n FROM translator") == [{"n": 4}]
        assert os.listdir(path.parent) == ["embridge.duckdb"]


# Full disks and damage


def limited(path, size, code="t.Catalog(sys.argv[1]).record(t.fit_run())"):
    """A process whose files may not grow over `size` bytes: writes fail as on a full disk, with another number."""
    script = (
        f"import sys, resource, signal, tests.catalog.support as t\n"
        f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        f"try:\n    {code}\nexcept t.DiskFullError as e:\n    print(e)\n"
    )
    command = [sys.executable, "-B", "-c", script, str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("size", [0, 4096, 12_288, 100_000, 262_144])
def test_a_full_disk_while_it_is_created_is_reported_and_leaves_nothing(path, size):
    done = limited(path, size)
    assert (done.returncode, done.stderr) == (0, "")
    assert "embridge.duckdb' cannot be " in done.stdout
    assert "the disk is full" in done.stdout
    assert os.listdir(path.parent) == []
    assert catalog(path).record(fit_run()) == 1


def test_a_full_disk_while_a_run_is_recorded_is_reported_and_records_nothing(path):
    catalog(path).record(fit_run())
    many = "t.Catalog(sys.argv[1]).record(t.Run.of('note', parameters={'text': 'x' * 5_000_000}))"
    done = limited(path, 1_000_000, many)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the disk is full" in done.stdout
    assert catalog(path).sql("SELECT verb FROM run") == [{"verb": "fit"}]
    assert catalog(path).record(evaluate_run()) > 1


@pytest.mark.parametrize("at", [4100, 8200, 12_300, 60_000, 270_000])
def test_damage_is_reported_with_the_name_of_the_file(path, at):
    catalog(path).record(fit_run())
    content = bytearray(path.read_bytes())
    for place in range(12_300, len(content), 997):
        content[place] ^= 0xFF
    for place in range(at, min(at + 64, len(content))):
        content[place] ^= 0xFF
    path.write_bytes(content)
    for act in (catalog(path).check, catalog(path).list, lambda: catalog(path).record(fit_run()), catalog(path).migrate):
        with pytest.raises(CatalogError, match=r"embridge\.duckdb' cannot be \w+: Corrupt.*Hint: restore a copy"):
            act()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)], ids=["folder", "fifo", "loop"])
def test_what_is_no_file_is_refused(path, make):
    make(path)
    for act in (catalog(path).check, catalog(path).list, lambda: catalog(path).record(fit_run()), catalog(path).migrate):
        with pytest.raises(CatalogError, match=r"embridge\.duckdb' (is not a regular file|cannot be opened)"):
            act()


@pytest.mark.parametrize("name", [":memory:", "md:team", "sqlite:x", "a b'c.duckdb"])
def test_every_name_is_one_of_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert Catalog(name).record(fit_run()) == 1
    assert os.listdir(tmp_path) == [name]
