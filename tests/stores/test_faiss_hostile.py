"""FAISS files that claim what they should not: other files, types that decode otherwise, contradictions, lengths."""

import os
import subprocess
import sys
import textwrap

import faiss
import numpy as np
import pytest

import embridge as eb
from embridge.errors import (
    FaissIndexError,
    MissingFileError,
    ParameterError,
    SpaceMismatchError,
    UnreadableFileError,
)
from embridge.stores.faiss.decode import stored_vectors
from embridge.stores.faiss.file import open_index_file
from embridge.types import Space

N, DIM = 400, 8
X = np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)
UNIT = X / np.linalg.norm(X, axis=1, keepdims=True)


def on_disk(folder, lists="lists.ivfdata", factory="IVF4,Flat"):
    index = faiss.index_factory(DIM, factory.removesuffix(",RFlat"), faiss.METRIC_INNER_PRODUCT)
    index.train(X)
    index.add_with_ids(X, np.arange(N)) if "IDMap" in factory else index.add(X)
    inner = faiss.try_extract_index_ivf(index)
    held = faiss.OnDiskInvertedLists(4, inner.code_size, str(folder / lists))
    held.merge_from_1(inner.invlists)
    inner.replace_invlists(held)
    inner.nprobe = 4
    if factory.endswith("RFlat"):
        flat = faiss.IndexFlatIP(DIM)
        flat.add(X)
        outer = faiss.IndexRefine(index, flat)
        faiss.write_index(outer, str(folder / "a.faiss"))
    else:
        faiss.write_index(index, str(folder / "a.faiss"))
    return folder / "a.faiss", folder / lists


VERBS = (
    lambda path: eb.open_index(path, space="old:dot"),
    lambda path: eb.open(path, space="old:dot"),
    lambda path: eb.migrate(path, MAP, path.with_name("new.faiss"), space="old:dot"),
)
MAP = eb.LinearMap(np.eye(DIM), np.zeros(DIM), Space("old", DIM, "dot"), Space("new", DIM, "dot"))


@pytest.mark.parametrize("factory", ["IVF4,Flat", "IDMap2,IVF4,Flat", "RR,IVF4,Flat", "IVF4,Flat,RFlat"])
def test_lists_in_another_file_are_checked_before_they_are_mapped(tmp_path, factory):
    """A lists file that is shorter than claimed ends a process that maps it with SIGBUS."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    path, lists = on_disk(inside, factory=factory)
    assert len(eb.open_index(path, space="old:dot")) == len(eb.open(path, space="old:dot")) == N
    content = lists.read_bytes()
    for spoil, message in (
        (lambda: lists.write_bytes(content[: len(content) // 2]), r"has \d.* bytes where the index claims"),
        (lambda: lists.write_bytes(b""), "has 0 bytes where the index claims"),
        (lambda: lists.unlink(), "cannot be read: No such file"),
        (lambda: os.mkfifo(lists), "is not a regular file"),
    ):
        spoil()
        for verb in VERBS:
            with pytest.raises(FaissIndexError, match=message):
                verb(path)
    lists.unlink()
    (outside / "lists.ivfdata").write_bytes(content)
    lists.symlink_to(outside / "lists.ivfdata")
    for verb in VERBS:
        with pytest.raises(FaissIndexError, match=r"outside the folder of the index. Hint: allow that with --external-lists"):
            verb(path)
    assert sorted(os.listdir(inside)) == ["a.faiss", "lists.ivfdata"]


def test_lists_elsewhere_may_be_allowed_and_are_only_read(tmp_path):
    (tmp_path / "in").mkdir()
    path, lists = on_disk(tmp_path / "in", "../lists.ivfdata")
    before = lists.read_bytes()
    lists.chmod(0o444)
    index = eb.open_index(path, space="old:dot", external_lists=True)
    assert index.search(X, 1).ids.shape == (N, 1)
    assert len(eb.open(path, space="old:dot", external_lists=True).read()[0]) == N
    assert eb.migrate(path, MAP, tmp_path / "new.faiss", space="old:dot", external_lists=True).rows == N
    with pytest.raises(FaissIndexError, match="accepts no new vectors"):
        index.add(eb.MemoryCollection([N], X[:1], index.space))
    assert lists.read_bytes() == before


@pytest.mark.parametrize("field", ["size", "capacity", "offset"])
def test_lists_that_claim_more_than_their_file_are_refused(tmp_path, field):
    path, _ = on_disk(tmp_path)
    data = bytearray(path.read_bytes())
    place = data.index(b"ilod") + 28 + {"size": 0, "capacity": 8, "offset": 16}[field]
    data[place : place + 8] = (1 << 40).to_bytes(8, "little")
    path.write_bytes(data)
    for verb in VERBS:
        with pytest.raises(FaissIndexError, match="describes them inconsistently"):
            verb(path)


# Types and their decoding


@pytest.mark.parametrize(
    "factory",
    ["Flat", "SQfp16", "SQ8", "PQ4x4np", "RQ4x4", "RQ2x4_Nfloat", "RQ2x4_Nqint8", "LSQ4x4", "PRQ2x2x4", "PLSQ2x2x4", "PQ4x4fs",
     "HNSW8,SQ8", "HNSW8,PQ4x4np", "NSG8,Flat", "IVF4,Flat", "IVF4,SQ8", "IVF4,PQ4x4np", "IVF4,RQ4x4", "IVF4,RQ2x4_Nqint8",
     "IVF4,LSQ4x4",
     "IVF4,PRQ2x2x4", "IVF4,PQ4+4", "IVF4,PQ4x4np,RFlat", "PQ4x4np,Refine(SQfp16)", "IDMap2,IVF4,Flat", "IDMap2,IVF4,PQ4+4",
     "OPQ4,PQ4x4np", "PCA6,Flat", "L2norm,Flat", "Pad16,Flat", "IMI2x3,Flat"],
)  # fmt: skip
def test_vectors_come_back_as_faiss_reconstructs_them(tmp_path, factory):
    index = faiss.index_factory(DIM, factory)
    index.train(X)
    index.add_with_ids(X, np.arange(N)) if "IDMap" in factory else index.add(X)
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    opened = open_index_file(str(tmp_path / "a.faiss"))
    rows = np.empty((N, DIM), np.float32)
    for labels, vectors in stored_vectors(opened, 64):
        rows[labels] = vectors
    inner = faiss.try_extract_index_ivf(index)
    if inner is not None:
        inner.make_direct_map()
    plain = index if "IDMap2,IVF" not in factory else inner
    expected = np.array([plain.reconstruct(i) for i in range(N)])
    np.testing.assert_allclose(rows, expected, atol=1e-5)


@pytest.mark.parametrize("factory", ["IVF4,FlatDedup", "IVF4,PQ4x4fs", "IVF4,RaBitQ"])
def test_types_whose_decoding_is_not_known_are_searched_and_not_read(tmp_path, factory):
    index = faiss.index_factory(DIM, factory)
    index.train(X)
    index.add(np.concatenate([X, X[:50]]))
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    assert len(eb.open_index(tmp_path / "a.faiss", space="old")) == N + 50
    with pytest.raises(FaissIndexError, match="whose vectors cannot be read back"):
        eb.open(tmp_path / "a.faiss", space="old")


def test_types_that_cannot_be_checked_are_refused(tmp_path):
    index = faiss.index_factory(DIM, "Residual4,PQ4x4")
    index.train(X)
    index.add(X)
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    with pytest.raises(UnreadableFileError, match="FAISS Index2Layer, a type that embridge does not open"):
        eb.open_index(tmp_path / "a.faiss", space="old")


@pytest.mark.parametrize("factory", ["Residual4,PQ4x4", "ZnLattice2x4_4", "PQ4x4np,Refine(IVF4,Flat)"])
def test_a_factory_that_is_refused_leaves_nothing(tmp_path, factory):
    with pytest.raises(FaissIndexError):
        eb.build_index(eb.MemoryCollection(np.arange(N), X, Space("old", DIM, "l2")), tmp_path / "a.faiss", factory)
    assert list(tmp_path.iterdir()) == []


def test_equal_vectors_are_counted_as_their_type_counts_them(tmp_path):
    rows, ids = np.concatenate([X, X[:100]]), np.arange(N + 100)
    index = eb.build_index(eb.MemoryCollection(ids, rows, Space("old", DIM, "l2")), tmp_path / "a.faiss", "IVF4,FlatDedup")
    assert len(index) == len(eb.open_index(tmp_path / "a.faiss")) == N + 100
    found = index.search(X[:100], 2, parameters="nprobe=4").ids
    assert np.sort(found, axis=1).tolist() == [[i, N + i] for i in range(100)]


# Lengths


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["unit rows first", "unit rows last"])
@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
def test_whether_rows_are_of_unit_length_is_established_from_all_of_them(tmp_path, metric, order):
    rows = np.concatenate([np.tile(UNIT, (5, 1)), 3 * UNIT])[order]
    index = faiss.IndexFlat(DIM, metric)
    index.add(np.ascontiguousarray(rows))
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    for space in ("old:cosine", Space("old", DIM, "cosine", normalized=True)):
        with pytest.raises(SpaceMismatchError, match=r"a\.faiss"):
            eb.open_index(tmp_path / "a.faiss", space=space)
    plain = eb.open_index(tmp_path / "a.faiss", space="old")
    assert (str(plain.space.metric), plain.space.normalized) == ("l2" if metric == faiss.METRIC_L2 else "dot", False)
    index.reset()
    index.add(UNIT)
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    hits = eb.open_index(tmp_path / "a.faiss", space="old:cosine").search(5 * X, 1)
    assert hits.ids.ravel().tolist() == list(range(N))
    np.testing.assert_allclose(hits.scores, 1, atol=1e-5)


# Failures


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "empty.faiss").touch()
    (tmp_path / "folder.faiss").mkdir()
    os.mkfifo(tmp_path / "fifo.faiss")
    (tmp_path / "loop.faiss").symlink_to(tmp_path / "loop.faiss")
    for name, error in (
        ("empty", UnreadableFileError),
        ("folder", UnreadableFileError),
        ("fifo", UnreadableFileError),
        ("loop", MissingFileError),
    ):
        for read in (eb.open_index, eb.open):
            with pytest.raises(error, match=rf"{name}\.faiss"):
                read(tmp_path / f"{name}.faiss", space="old")


def test_k_may_be_any_integer_that_makes_sense(tmp_path):
    index = eb.build_index(eb.MemoryCollection(np.arange(N), X, Space("old", DIM)), tmp_path / "a.faiss", "Flat")
    assert index.search(X[:2], np.int64(3)).ids.tolist() == index.search(X[:2], 3).ids.tolist()
    assert index.search(X[:2], np.uint8(N % 256)).ids.shape == (2, N % 256)
    for k in (10**9, 2**70, np.int64(2**40)):
        with pytest.raises(ParameterError, match=r"k must be at most 65,536 .*holds 400 vectors"):
            index.search(X[:2], k)
    for k in (1.5, "3", None):
        with pytest.raises(ParameterError, match="k must be an integer"):
            index.search(X[:2], k)


KINDS = (
    "Flat|HNSW4,Flat|NSG8,Flat|IVF8,Flat|IVF4(IVF2,Flat),Flat|IVF8_HNSW4,SQ8|RQ4x4|PRQ2x2x4|RQ2x4_Nlsq2x4|IVF8,PQ4x4np|IVF8,PQ4x4fs"
)
KINDS += "|PQ4x4fs|OPQ4,PQ4x4np|LSHrt|IVF8,PQ4x4np,RFlat|IVF4,FlatDedup|RaBitQ|IDMap2,IVF4,Flat|IMI2x3,Flat|IVF8,PQ4+4"
MUTATE = """
    import os, random, signal, struct, sys
    import faiss, numpy as np
    import embridge as eb

    folder, kinds, first, last = sys.argv[1], sys.argv[2].split("|"), int(sys.argv[3]), int(sys.argv[4])
    X = np.random.default_rng(0).normal(size=(640, 8)).astype("f4")
    files = []
    for kind in kinds:
        index = faiss.index_factory(8, kind)
        index.train(X)
        index.add_with_ids(X, np.arange(640) * 3) if "IDMap" in kind else index.add(X)
        files.append(faiss.serialize_index(index).tobytes())
    longs = [struct.pack("<q", v) for v in (0, 1, -1, 2, 639, 641, 1 << 31, 1 << 40, 2**63 - 1, -(2**63))]
    ints = [struct.pack("<i", v) for v in (0, 1, -1, 3, 16, 640, 2**31 - 1, -(2**31))]
    floats = [struct.pack("<f", v) for v in (float("nan"), float("inf"), -1e38, 0)]

    def mutated(seed):
        dice = random.Random(seed)
        data = bytearray(dice.choice(files))
        for _ in range(dice.choice([1, 1, 2, 4])):
            at = dice.randrange(dice.choice([80, 400, len(data) - 8]))
            value = dice.choice([*longs, *ints, *floats, bytes([dice.randrange(256)])])
            data[at : at + len(value)] = value
        return bytes(data[: dice.randrange(30, len(data))] if dice.random() < 0.1 else data)

    path, alive = folder + "/m.faiss", folder + "/seed"
    for seed in range(first, last):
        open(alive, "w").write(str(seed))
        open(path, "wb").write(mutated(seed))
        for read in (lambda: eb.open(path, space="m").read(), lambda: eb.open_index(path, space="m").search(X[:3], 700)):
            signal.alarm(60)
            try:
                read()
            except eb.EmbridgeError as e:
                assert "m.faiss" in str(e) or "The index" in str(e) or "ids" in str(e), e
            signal.alarm(0)
    print("alive")
"""


def test_mutated_indexes_raise_errors_of_embridge_and_end_no_process(tmp_path):
    code, count = textwrap.dedent(MUTATE), 600
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), KINDS, "0", str(count)], capture_output=True, text=True, check=False
    )
    seed = (tmp_path / "seed").read_text()
    assert (done.returncode, done.stdout) == (0, "alive\n"), (seed, done.returncode, done.stderr[-1500:])
