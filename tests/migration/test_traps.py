"""Traps of FAISS and hostile input: shared memory, lists in other files, damaged indexes, failures while writing."""

import subprocess
import textwrap

import faiss
import numpy as np
import pyarrow as pa
import pytest

import embridge as eb
from embridge.errors import (
    CollectionError,
    MigrationRefusedError,
    OutputExistsError,
    ParameterError,
    SpaceMismatchError,
    UndeclaredSpaceError,
    UnreadableFileError,
)
from embridge.stores.faiss.file import IndexFile, read_index_file, write_index_file
from embridge.stores.faiss.sidecars import json_path
from embridge.types import Metric, Space
from tests.migration.support import GENERAL, INTS, K, N, P, Q, X, a_map, best, listing, queries, space


def run_apart(commands, program, *arguments):
    """A crash of the process must not be one of the tests'."""
    code = textwrap.dedent(program)
    done = subprocess.run([commands / "python-c", code, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
    return done.stdout


# Traps


def test_transforms_of_a_loaded_index_are_freed_once(commands, index_of, tmp_path):
    faiss.write_index(index_of("OPQ4,IVF4,PQ4x4np", np.tile(X, (3, 1))), str(tmp_path / "old.faiss"))
    a_map("rotation", Metric.DOT).save(tmp_path / "map")
    program = """
        import gc, sys
        import embridge as eb
        old, new = sys.argv[1:3]
        for mode in ("wrap", "rewrite", "auto"):
            for _ in range(5):
                eb.migrate(old, eb.LinearMap.load(sys.argv[3]), new, mode=mode, space="old:dot", overwrite=True)
                eb.open_index(new)
                gc.collect()
        print("alive")
    """
    assert run_apart(commands, program, tmp_path / "old.faiss", tmp_path / "new.faiss", tmp_path / "map") == "alive\n"


@pytest.mark.parametrize("factory", ["HNSW8", "IVF4,Flat"])
def test_nothing_is_written_into_a_mapped_file(commands, build, tmp_path, factory):
    """Collections map large indexes; writing into mapped lists would end the process and, worse, could change the old file."""
    old = build(factory)
    before = old.read_bytes()
    a_map("rotation", dim=P).save(tmp_path / "map")
    program = """
        import sys
        import embridge as eb
        from embridge.stores.faiss import file as faiss_file
        faiss_file._MAPPED_FROM = 0
        eb.open(sys.argv[1]).read()
        for mode in ("rewrite", "wrap", "rebuild"):
            eb.migrate(sys.argv[1], eb.LinearMap.load(sys.argv[3]), sys.argv[2], mode=mode, overwrite=True)
        print("alive")
    """
    assert run_apart(commands, program, old, tmp_path / "new.faiss", tmp_path / "map") == "alive\n"
    assert old.read_bytes() == before


def test_lists_in_another_file_are_not_shared(index_of, tmp_path):
    index = index_of("IVF4,Flat", X)
    lists = faiss.OnDiskInvertedLists(4, index.code_size, str(tmp_path / "lists.ivfdata"))
    lists.merge_from_1(index.invlists)
    index.replace_invlists(lists)
    faiss.write_index(index, str(tmp_path / "old.faiss"))
    before = (tmp_path / "lists.ivfdata").read_bytes()
    for mode in ("wrap", "rewrite"):
        with pytest.raises(MigrationRefusedError, match=r"lie in another file \(.*lists.ivfdata\), which two indexes would share"):
            eb.migrate(tmp_path / "old.faiss", a_map("rotation", Metric.DOT), tmp_path / "new.faiss", mode=mode, space="old:dot")
    assert listing(tmp_path) == ["lists.ivfdata", "old.faiss"]
    done = eb.migrate(tmp_path / "old.faiss", a_map("rotation", Metric.DOT), tmp_path / "new.faiss", space="old:dot")
    assert (done.mode, done.rows) == ("rebuild", N)
    assert (tmp_path / "lists.ivfdata").read_bytes() == before
    (tmp_path / "lists.ivfdata").unlink()
    assert eb.open_index(tmp_path / "new.faiss").search(queries(), K).ids.min() >= 0


# Hostile input


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,Flat", "OPQ4,IVF4,PQ4x4np", "SQ8", "RQ4x4"])
def test_damaged_indexes_are_refused_and_the_process_lives(commands, build, tmp_path, factory):
    """Cut short, and with absurd numbers in every place of its header: an error or a whole output, within memory and time."""
    old = build(factory)
    json_path(old).unlink()  # which would refuse each of them, as another index than its own
    a_map().save(tmp_path / "map")
    program = """
        import os, resource, struct, sys
        import embridge as eb
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        old, new, translation = sys.argv[1], sys.argv[2], eb.LinearMap.load(sys.argv[3])
        data = open(old, "rb").read()
        cut = [data[:size] for size in (0, 3, 17, 40, len(data) // 2, len(data) - 1)]
        absurd = [struct.pack("<q", 1 << 60), struct.pack("<q", -7), struct.pack("<i", 2**31 - 1)]
        places = sorted({*range(0, 72, 3), *range(72, min(len(data) - 8, 600), 41)})
        spoilt = [data[:at] + value + data[at + len(value):] for at in places for value in absurd]
        refused = 0
        for number, content in enumerate(cut + spoilt):
            open(old, "wb").write(content)
            try:
                eb.migrate(old, translation, new, mode="wrap", verify_queries=5, space="old:cosine")
            except eb.EmbridgeError as e:
                assert len(str(e).splitlines()) == 1, e
                refused += 1
                assert not os.path.exists(new)
            else:
                assert number >= len(cut), len(content)
                os.remove(new)
                os.remove(new + ".json")
        print(refused)
    """
    assert int(run_apart(commands, program, old, tmp_path / "new.faiss", tmp_path / "map")) > 20
    assert listing(tmp_path) == ["map", "old.faiss"]  # and nothing of the new one


def test_an_index_that_claims_terabytes_is_refused_at_once(tmp_path):
    index = faiss.IndexFlatIP(P)
    index.add(X)
    faiss.write_index(index, str(tmp_path / "old.faiss"))
    data = (tmp_path / "old.faiss").read_bytes()
    claim = (1 << 36).to_bytes(8, "little")
    place = data.index((N * P).to_bytes(8, "little"))
    (tmp_path / "old.faiss").write_bytes(data[:place] + claim + data[place + 8 :])
    with pytest.raises(UnreadableFileError, match="it claims more data than the file holds"):
        eb.migrate(tmp_path / "old.faiss", a_map(), tmp_path / "new.faiss", space="old")
    assert listing(tmp_path) == ["old.faiss"]


def test_an_index_whose_tables_are_larger_than_its_file_is_read(index_of, tmp_path):
    """FAISS makes the tables of an IVFPQ while it reads; they are no claim of the file."""
    index = index_of("IVF64,PQ4np", np.tile(X, (8, 1)), metric=faiss.METRIC_L2)
    faiss.write_index(index, str(tmp_path / "old.faiss"))
    assert (tmp_path / "old.faiss").stat().st_size < 4 * 64 * 4 * 256
    done = eb.migrate(tmp_path / "old.faiss", a_map("isometry", Metric.L2), tmp_path / "new.faiss", space="old")
    assert (done.mode, done.exact) == ("wrap", True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"translation": eb.LinearMap(np.eye(6), np.zeros(6), Space("old", 6), Space("new", 6))}, SpaceMismatchError,
         r"The map expects 6-dimensional vectors of 'old', but '.*old\.faiss' holds 8-dimensional vectors of 'old'"),
        ({"translation": eb.LinearMap(np.eye(P), np.zeros(P), Space("a", P), Space("b", P))}, SpaceMismatchError,
         "Hint: fit a map from 'old'"),
        ({"space": "other"}, SpaceMismatchError, "declared as space 'other'"),
        ({"mode": "teleport"}, ParameterError, r"mode must be one of auto, wrap, rewrite, rebuild\. Got 'teleport'"),
        ({"min_recall": 1.5}, ParameterError, "min_recall"),
        ({"verify_queries": 0}, ParameterError, "verify_queries"),
        ({"queries": np.zeros((3, 5))}, SpaceMismatchError, "queries expects 12-dimensional"),
        ({"output": "old.faiss"}, OutputExistsError, "both input and output"),
        ({"output": "there.faiss"}, OutputExistsError, "exists already"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_is_written(build, tmp_path, options, error, message):
    old = build("Flat")
    (tmp_path / "there.faiss").write_bytes(b"mine")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    options = {"translation": a_map(), "output": "new.faiss"} | options
    with pytest.raises(error, match=message):
        eb.migrate(old, options.pop("translation"), tmp_path / options.pop("output"), **options)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_bare_index_needs_its_space_named(index_of, tmp_path):
    faiss.write_index(index_of("Flat", X), str(tmp_path / "old.faiss"))
    with pytest.raises(UndeclaredSpaceError):
        eb.migrate(tmp_path / "old.faiss", a_map(), tmp_path / "new.faiss")
    faiss.write_index(faiss.IndexFlatIP(P), str(tmp_path / "empty.faiss"))
    with pytest.raises(CollectionError, match="holds no rows"):
        eb.migrate(tmp_path / "empty.faiss", a_map(), tmp_path / "new.faiss", space="old")


def test_metrics_that_differ_are_rebuilt(build, tmp_path):
    translation = eb.LinearMap(GENERAL, np.ones(Q), space(Metric.COSINE), space(Metric.L2, "new", Q))
    done = eb.migrate(build("Flat"), translation, tmp_path / "new.faiss")
    assert (done.mode, done.exact) == ("rebuild", True)
    assert "the index measures by inner product, 'new' by l2" in done.reason
    rows = translation.apply(X / np.linalg.norm(X, axis=1, keepdims=True))
    hits = eb.open_index(tmp_path / "new.faiss").search(queries(), K)
    assert hits.ids.tolist() == INTS[best(queries(), rows, Metric.L2)[0]].tolist()


def test_a_failure_while_writing_leaves_no_trace(build, tmp_path, monkeypatch):
    old = build("Flat")
    before = listing(tmp_path)

    def full(index, path):
        raise OSError("No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(OSError, match="No space left"):
        eb.migrate(old, a_map(), tmp_path / "new.faiss")
    assert listing(tmp_path) == before


# On a GPU


def test_an_index_with_a_sidecar_of_notes_is_written_as_it_was_read(index_of, tmp_path):
    path = str(tmp_path / "a.faiss")
    notes = {"adds": False, "scores": {"offset": [1.0] * P}}
    write_index_file(path, IndexFile(index_of("Flat", X), space(Metric.DOT), pa.array(INTS), {"source": "s"}, notes))
    assert read_index_file(path).notes == notes
