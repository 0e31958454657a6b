"""Moving an index: what survives, what is refused, what is told, and the traps of FAISS. Types and metrics: test_types."""

import json
import subprocess
import sys
import textwrap

import faiss
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

import embridge as eb
from embridge.catalog import Catalog
from embridge.cli.main import main
from embridge.errors import (
    BadIdsError,
    CollectionError,
    FaissIndexError,
    MigrationRefusedError,
    OutputExistsError,
    ParameterError,
    SpaceMismatchError,
    UndeclaredSpaceError,
    UnreadableFileError,
)
from embridge.indexes import gpu
from embridge.migration import attempt
from embridge.stores.faiss.file import IndexFile, read_index_file, write_index_file
from embridge.stores.faiss.sidecars import json_path
from embridge.types import Metric, Space

P, Q, N, ASKED, K = 8, 12, 400, 50, 10
RNG = np.random.default_rng(1)
X = (RNG.normal(size=(N, P)) * RNG.uniform(0.5, 2, size=(N, 1))).astype(np.float32)
INTS = RNG.permutation(10**9 + np.arange(10 * N))[:N]
STRINGS = np.array([f"doc/{i}" for i in INTS], object)
TURN = np.linalg.qr(RNG.normal(size=(Q, Q)))[0]
GENERAL = RNG.normal(size=(Q, P)) / 3


def space(metric, name="old", dim=P):
    return Space(name, dim, metric)


def a_map(kind="rotation", metric=Metric.COSINE, dim=Q, source="old", target="new"):
    coef = {"rotation": TURN[:, :P], "isometry": 1.7 * TURN[:, :P], "general": GENERAL}[kind][:dim]
    if kind != "general" and dim == P:
        coef = np.linalg.qr(coef)[0] * (1.7 if kind == "isometry" else 1)
    intercept = np.zeros(dim) if kind == "rotation" else 0.5 * np.ones(dim)
    return eb.LinearMap(coef, intercept, space(metric, source), space(metric, target, dim))


def queries(dim=Q, n=ASKED, seed=3):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def best(asked, rows, metric, k=K):
    q, x = asked.astype(np.float64), rows.astype(np.float64)
    if metric == Metric.COSINE:
        q, x = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (q, x))
    scores = -((q[:, None] - x[None]) ** 2).sum(-1) if metric == Metric.L2 else q @ x.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


def run_apart(program, *arguments):
    """A crash of the process must not be one of the tests'."""
    code = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
    return done.stdout


@pytest.fixture
def build(tmp_path):
    """``build(factory, metric, ids)``: an old index of X, its path."""

    def make(factory="Flat", metric=Metric.COSINE, ids=INTS, name="old.faiss"):
        eb.build_index(eb.MemoryCollection(ids, X, space(metric)), tmp_path / name, factory)
        return tmp_path / name

    return make


# What survives


@pytest.mark.parametrize("ids", [INTS, STRINGS], ids=["int64", "string"])
@pytest.mark.parametrize("mode", ["wrap", "rewrite", "rebuild"])
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW16"])
@pytest.mark.parametrize("metric", list(Metric))
def test_ids_and_scores_are_those_of_the_translated_rows(build, tmp_path, ids, mode, factory, metric):
    translation = a_map("rotation" if metric == Metric.COSINE else "isometry", metric)
    old = build(factory, metric, ids)
    file = read_index_file(str(old))
    if factory == "IVF4,Flat":
        faiss.try_extract_index_ivf(file.index).nprobe = 4
        write_index_file(str(old), file)
    done = eb.migrate(old, translation, tmp_path / "new.faiss", mode=mode)
    asked = queries()
    wide = "efSearch=400" if "HNSW" in factory else ""
    hits = eb.open_index(tmp_path / "new.faiss").search(asked, K, parameters=wide)
    order, scores = best(asked, translation.apply(X), metric)
    assert (hits.ids == ids[order]).mean() > 0.999
    np.testing.assert_allclose(hits.scores[:, 0], scores[:, 0], rtol=1e-4, atol=1e-4)
    assert (done.mode, done.rows, done.queries_verified) == (mode, N, 100)
    assert done.exact == (mode != "rebuild" or factory == "Flat")
    assert set(listing(tmp_path)) - {"old.faiss", "old.faiss.json", "old.faiss.ids.parquet"} == {
        "new.faiss", "new.faiss.json", *(["new.faiss.ids.parquet"] if ids is STRINGS else []),
    }  # fmt: skip


def test_space_and_lineage_are_written(build, tmp_path):
    old, translation = build("HNSW8"), a_map()
    done = eb.migrate(old, translation, tmp_path / "new.faiss")
    index = eb.open_index(tmp_path / "new.faiss")
    assert index.space == Space("new", Q)
    assert index.lineage == {"source": eb.open_index(old).fingerprint(), "map": translation.fingerprint}
    assert (done.source, done.map, done.fingerprint) == (*index.lineage.values(), index.fingerprint())
    assert json.loads(json_path(tmp_path / "new.faiss").read_text())["migration"]["mode"] == done.mode == "rewrite"
    assert done.to_dict()["space"] == index.space.__dict__


@pytest.mark.parametrize("mode", ["wrap", "rewrite", "rebuild"])
def test_the_vectors_read_back_are_the_translated_ones(build, tmp_path, mode):
    """Through the loaded transform as well, which FAISS takes for orthonormal whether it is or not: here it is."""
    translation = a_map()
    eb.migrate(build("IVF4,Flat", ids=STRINGS), translation, tmp_path / "new.faiss", mode=mode)
    ids, rows = eb.open(tmp_path / "new.faiss").read()
    expected = translation.apply(X / np.linalg.norm(X, axis=1, keepdims=True))
    place = {i: n for n, i in enumerate(STRINGS)}
    np.testing.assert_allclose(rows, expected[[place[i] for i in ids]], atol=1e-5)


def test_a_transform_that_cannot_be_undone_is_not_undone_wrongly(build, tmp_path):
    eb.migrate(build("Flat", Metric.DOT), a_map("general", Metric.DOT), tmp_path / "new.faiss", mode="wrap")
    assert eb.open_index(tmp_path / "new.faiss").search(queries(), K).ids.shape == (ASKED, K)
    with pytest.raises(FaissIndexError, match="whose vectors cannot be read back"):
        eb.open(tmp_path / "new.faiss")


@pytest.mark.parametrize("factory", ["IDMap2,Flat", "IVF4,Flat", "OPQ4,IVF4,PQ4x4np"])
@pytest.mark.parametrize("mode", ["wrap", "rewrite", "rebuild"])
def test_what_was_removed_stays_removed(index_of, tmp_path, factory, mode):
    rows = np.tile(X, (2, 1)) + 0.1 * RNG.normal(size=(2 * N, P)).astype(np.float32)
    index = index_of(factory, rows, np.arange(2 * N) * 7)
    gone = np.arange(0, 2 * N, 3) * 7
    assert index.remove_ids(gone) == len(gone)
    faiss.write_index(index, str(tmp_path / "old.faiss"))
    done = eb.migrate(tmp_path / "old.faiss", a_map("rotation", Metric.DOT), tmp_path / "new.faiss", mode=mode, space="old:dot")
    assert done.rows == 2 * N - len(gone)
    found = eb.open_index(tmp_path / "new.faiss").search(queries(), 50).ids
    assert not np.isin(found, gone).any()
    assert np.isin(found[found >= 0], np.arange(2 * N) * 7).all()


@pytest.mark.parametrize("kind", [faiss.DirectMap.Array, faiss.DirectMap.Hashtable])
@pytest.mark.parametrize("dim", [P, Q])
def test_direct_maps_stay_right(index_of, tmp_path, kind, dim):
    index = index_of("IVF4,Flat", X)
    index.set_direct_map_type(kind)
    faiss.write_index(index, str(tmp_path / "old.faiss"))
    translation = a_map("rotation", Metric.DOT, dim)
    eb.migrate(tmp_path / "old.faiss", translation, tmp_path / "new.faiss", mode="rewrite", space="old:dot")
    moved = faiss.read_index(str(tmp_path / "new.faiss"))
    assert moved.direct_map.type == kind
    for i in (0, 17, N - 1):
        np.testing.assert_allclose(moved.reconstruct(i), translation.apply(X[i]), atol=1e-5)


@pytest.mark.parametrize("mode", ["wrap", "rewrite", "rebuild"])
def test_search_settings_stay(build, tmp_path, mode):
    for factory, name, value in (("IVF8,Flat", "nprobe", 5), ("HNSW8", "efSearch", 77)):
        old = build(factory, ids=STRINGS)
        file = read_index_file(str(old))
        setattr(file.index if name == "nprobe" else file.index.hnsw, name, value)
        write_index_file(str(old), file)
        eb.migrate(old, a_map(), tmp_path / "new.faiss", mode=mode, overwrite=True)
        made = read_index_file(str(tmp_path / "new.faiss")).index
        made = faiss.downcast_index(made.index) if mode == "wrap" else made
        found = getattr(made if name == "nprobe" else made.hnsw, name)
        # FAISS does not store efSearch of an index in a file; what it reads is its default
        assert found == (value if name == "nprobe" else read_index_file(str(old)).index.hnsw.efSearch)
        for left in tmp_path.glob("old.faiss*"):
            left.unlink()


@pytest.mark.parametrize("dim", [5, P, Q])
@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat", "SQfp16", "RQ4x4"])
def test_the_target_may_be_narrower_as_wide_or_wider(build, tmp_path, dim, factory):
    translation = a_map("general", Metric.DOT, dim)
    done = eb.migrate(build(factory, Metric.DOT), translation, tmp_path / "new.faiss", mode="rewrite")
    assert (done.exact, done.agreement > 0.99) == (factory != "SQfp16", True)
    rows = eb.open(tmp_path / "new.faiss").read()[1]
    expected = translation.apply(eb.open(tmp_path / "old.faiss").read()[1])
    np.testing.assert_allclose(rows, expected, atol=0.01)


# What auto does


@pytest.mark.parametrize(
    ("factory", "metric", "kind", "mode", "exact"),
    [
        ("HNSW16", Metric.COSINE, "rotation", "rewrite", True),
        ("HNSW16", Metric.DOT, "general", "rewrite", True),
        ("IVF8,Flat", Metric.L2, "isometry", "rewrite", True),
        ("OPQ4,IVF4,PQ4x4np", Metric.COSINE, "rotation", "rewrite", True),
        ("IVF8,PQ4x4np", Metric.L2, "isometry", "wrap", True),
        ("IVF8,SQ8", Metric.DOT, "general", "wrap", True),
        ("SQfp16", Metric.COSINE, "rotation", "wrap", True),
        ("Flat", Metric.COSINE, "general", "rewrite", False),
        ("IVF8,PQ4x4np", Metric.COSINE, "general", "rebuild", False),
        ("SQ8", Metric.L2, "general", "rebuild", False),
    ],
)
def test_auto_takes_what_is_exact_and_else_what_is_measured(build, tmp_path, factory, metric, kind, mode, exact):
    done = eb.migrate(build(factory, metric), a_map(kind, metric), tmp_path / "new.faiss")
    assert (done.mode, done.exact) == (mode, exact)
    assert ("not rewrite: " in done.reason) == (mode != "rewrite")


def test_a_move_that_costs_too_much_becomes_a_rebuild_with_the_reason(build, tmp_path):
    flat = np.diag(np.r_[np.full(P - 2, 0.02), 1, 1])  # condition number 50: two directions remain of eight
    translation = eb.LinearMap(flat, np.zeros(P), space(Metric.L2), space(Metric.L2, "new"))
    old = build("IVF32,Flat", Metric.L2)
    moved = eb.migrate(old, translation, tmp_path / "moved.faiss", mode="rewrite")
    done = eb.migrate(old, translation, tmp_path / "new.faiss")
    assert done.mode == "rebuild"
    assert done.verified_overlap > moved.verified_overlap
    assert (
        f"not rewrite: {moved.verified_overlap:.3f} of the true neighbors are found, {0.9 * done.own_overlap:.3f} are wanted"
        in done.reason
    )


def test_move_is_another_spelling_of_rewrite(build, tmp_path):
    assert eb.migrate(build("Flat"), a_map(), tmp_path / "new.faiss", mode="move").mode == "rewrite"


def test_what_is_never_good_enough_is_the_best_of_all(build, tmp_path):
    """Codes decoded and coded again may lose more than a map in front does."""
    old, translation = build("PQ4x4np"), a_map("general")
    each = {mode: eb.migrate(old, translation, tmp_path / f"{mode}.faiss", mode=mode) for mode in ("wrap", "rebuild")}
    best_mode = max(each, key=lambda mode: each[mode].verified_overlap)
    done = eb.migrate(old, translation, tmp_path / "new.faiss")
    assert (done.mode, done.exact, done.verified_overlap) == (best_mode, False, each[best_mode].verified_overlap)
    assert each[best_mode].verified_overlap < 0.9 * done.own_overlap
    with pytest.raises(MigrationRefusedError, match=r"rewrite: .*; wrap: 0\.\d+ of .*; rebuild: 0\.\d+ of .*0\.950 are wanted"):
        eb.migrate(old, translation, tmp_path / "none.faiss", min_recall=0.95)


def test_a_map_that_flattens_is_not_moved_by(build, tmp_path):
    translation = eb.LinearMap(np.ones((P, P)) + 1e-6 * np.eye(P), np.zeros(P), space(Metric.L2), space(Metric.L2, "new"))
    with pytest.raises(MigrationRefusedError, match=r"rewrite: the map's condition number is \d"):
        eb.migrate(build("HNSW8", Metric.L2), translation, tmp_path / "new.faiss", mode="rewrite")


@pytest.mark.parametrize("mode", ["auto", "wrap", "rewrite", "rebuild"])
def test_below_the_wanted_recall_nothing_is_written(build, tmp_path, mode):
    """One list of 32 is probed: exact, and yet half of the neighbors are missed."""
    old = build("IVF32,Flat")
    before = listing(tmp_path)
    with pytest.raises(
        MigrationRefusedError, match=r"0\.\d+ of the true neighbors are found, 0\.990 are wanted.*lower --min-recall"
    ):
        eb.migrate(old, a_map(), tmp_path / "new.faiss", mode=mode, min_recall=0.99)
    assert listing(tmp_path) == before
    assert eb.migrate(old, a_map(), tmp_path / "new.faiss", mode=mode, min_recall=0.05).path.endswith("new.faiss")


def test_an_index_that_moved_wrongly_is_found_out(build, tmp_path, monkeypatch):
    """The verification looks at what was made, not at what should have been."""
    old = build("Flat")

    def wrongly(index, equivalence):
        right(index, equivalence)
        memory = faiss.rev_swig_ptr(faiss.downcast_index(index.index).codes.data(), N * Q * 4).view(np.float32)
        memory[:] = np.roll(memory, Q)  # every row under the id of the next

    right = attempt.rewrite
    monkeypatch.setattr(attempt, "rewrite", wrongly)
    done = eb.migrate(old, a_map(), tmp_path / "new.faiss", mode="rewrite")
    assert not done.exact
    assert done.verified_overlap < 0.2
    assert eb.migrate(old, a_map(), tmp_path / "auto.faiss", min_recall=0.9).mode == "wrap"


def test_real_queries_verify(build, tmp_path):
    asked = queries(n=37)
    done = eb.migrate(build("Flat", Metric.DOT), a_map("general", Metric.DOT), tmp_path / "new.faiss", queries=asked)
    assert (done.queries_verified, done.verified_overlap, done.exact) == (37, pytest.approx(1), True)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("mode", ["wrap", "rewrite"])
def test_a_dead_column_does_not_make_a_rotation_less_exact(tmp_path, metric, mode):
    """Real encoders have columns that are zero in every row; a rotation fitted on such rows maps them to nothing."""
    dead = np.where(np.arange(P) == 2, 0, X)
    coef = TURN[:, :P] * (np.arange(P) != 2)
    translation = eb.LinearMap(coef, np.zeros(Q), space(metric), space(metric, "new", Q))
    assert translation.isometry_scale is None
    for rows, exact in ((dead, True), (X, metric == Metric.DOT)):
        eb.build_index(eb.MemoryCollection(INTS, rows, space(metric)), tmp_path / "old.faiss", "Flat", overwrite=True)
        if metric == Metric.L2 and not exact and mode == "wrap":
            with pytest.raises(MigrationRefusedError, match="through an isometry only"):
                eb.migrate(tmp_path / "old.faiss", translation, tmp_path / "new.faiss", mode=mode, overwrite=True)
            continue
        if not exact and mode == "rewrite":
            with pytest.raises(MigrationRefusedError, match="condition number"):
                eb.migrate(tmp_path / "old.faiss", translation, tmp_path / "new.faiss", mode=mode, overwrite=True)
            continue
        assert eb.migrate(tmp_path / "old.faiss", translation, tmp_path / "new.faiss", mode=mode, overwrite=True).exact == exact
        if exact:
            hits = eb.open_index(tmp_path / "new.faiss").search(queries(), K)
            order, scores = best(queries(), translation.apply(rows), metric)
            assert hits.ids.tolist() == INTS[order].tolist()
            np.testing.assert_allclose(hits.scores, scores, rtol=1e-4, atol=1e-4)


def test_codes_that_scatter_into_a_dead_column_do_not_either(index_of, tmp_path):
    dead = np.where(np.arange(P) == 2, 0, np.tile(X, (3, 1)) + RNG.normal(size=(3 * N, P)) / 10).astype(np.float32)
    dead[:, 2] = 0.02  # what decoding leaves there
    translation = eb.LinearMap(TURN[:, :P] * (np.arange(P) != 2), np.zeros(Q), space(Metric.L2), space(Metric.L2, "new", Q))
    for factory, modes in (("SQ8", ["wrap"]), ("Flat", [])):  # codes are allowed it, vectors are not
        faiss.write_index(index_of(factory, dead, metric=faiss.METRIC_L2), str(tmp_path / "old.faiss"))
        done = eb.migrate(tmp_path / "old.faiss", translation, tmp_path / "new.faiss", space="old", overwrite=True)
        assert done.exact == (modes == ["wrap"] or done.mode == "rebuild")
        assert [done.mode] == (modes or ["rebuild"])


# The map in front


def test_a_map_into_the_space_of_the_index_wraps_it(build, tmp_path):
    """Fitted from new to old: queries are translated by it, and so are vectors that are added."""
    old = build("HNSW16")
    translation = eb.LinearMap(GENERAL.T, np.full(P, 0.1), space(Metric.COSINE, "new", Q), space(Metric.COSINE))
    done = eb.migrate(old, translation, tmp_path / "new.faiss")
    asked = queries()
    assert (done.mode, done.exact) == ("wrap", True)
    hits, applied = eb.open_index(tmp_path / "new.faiss").search(asked, K), eb.open_index(old).search(translation.apply(asked), K)
    assert (hits.ids == applied.ids).mean() > 0.999
    np.testing.assert_allclose(hits.scores, applied.scores, atol=1e-5)
    for mode in ("rewrite", "rebuild"):
        with pytest.raises(MigrationRefusedError, match="leads from 'new' into the index's 'old'"):
            eb.migrate(old, translation, tmp_path / "other.faiss", mode=mode)
    index = eb.open_index(tmp_path / "new.faiss")
    index.add(eb.MemoryCollection([5, 6], asked[:2], index.space))
    assert index.search(asked[:2], 1).ids.ravel().tolist() == [5, 6]


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("ids", [INTS, STRINGS], ids=["int64", "string"])
@pytest.mark.parametrize("factory", ["HNSW16", "IVF4,Flat"])
def test_new_vectors_go_through_a_map_that_is_right_for_them(build, tmp_path, metric, ids, factory):
    translation = a_map("isometry" if metric == Metric.L2 else "rotation", metric, P)
    old = build(factory, metric, ids)
    eb.migrate(old, translation, tmp_path / "new.faiss", mode="wrap")
    index, fresh = eb.open_index(tmp_path / "new.faiss"), 3 * queries(P, 3)
    names = np.array(["a", "b", "c"], object) if ids is STRINGS else np.array([1, 2, 3])
    index.add(eb.MemoryCollection(names, fresh, index.space))
    for opened in (index, eb.open_index(tmp_path / "new.faiss")):
        hits = opened.search(fresh, 1)
        assert hits.ids.ravel().tolist() == names.tolist()
        expected = {Metric.L2: [0, 0, 0], Metric.COSINE: [1, 1, 1], Metric.DOT: (fresh**2).sum(1)}[metric]
        np.testing.assert_allclose(hits.scores.ravel(), expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(BadIdsError, match="holds ids more than once"):
        index.add(eb.MemoryCollection(names, fresh, index.space))
    with pytest.raises(SpaceMismatchError, match="The index expects"):
        index.add(eb.MemoryCollection(names, fresh, space(metric)))
    assert len(eb.open_index(tmp_path / "new.faiss")) == N + 3


@pytest.mark.parametrize(
    ("kind", "metric", "dim"),
    [("general", Metric.DOT, P), ("rotation", Metric.DOT, Q), ("general", Metric.COSINE, P), ("isometry", Metric.L2, Q)],
)
def test_new_vectors_are_refused_where_the_map_is_right_for_queries_alone(build, tmp_path, kind, metric, dim):
    eb.migrate(build("Flat", metric), a_map(kind, metric, dim), tmp_path / "new.faiss", mode="wrap")
    index = eb.open_index(tmp_path / "new.faiss")
    with pytest.raises(FaissIndexError, match="takes no new vectors: the map in front of it is valid for queries only"):
        index.add(eb.MemoryCollection([1, 2], queries(dim, 2), index.space))
    assert len(index) == N


def test_maps_in_front_of_maps(build, tmp_path):
    """A rotation in front of a rotation; where scores were corrected for the first map, a second is refused."""
    old, one = build("Flat"), a_map("rotation", dim=P)
    two = a_map("rotation", source="new", target="third")
    eb.migrate(old, one, tmp_path / "one.faiss", mode="wrap")
    done = eb.migrate(tmp_path / "one.faiss", two, tmp_path / "two.faiss", mode="wrap")
    order, scores = best(queries(), one.then(two).apply(X), Metric.COSINE)
    hits = eb.open_index(tmp_path / "two.faiss").search(queries(), K)
    assert done.exact
    assert hits.ids.tolist() == INTS[order].tolist()
    np.testing.assert_allclose(hits.scores, scores, atol=1e-5)
    old = build("Flat", Metric.L2, name="l2.faiss")
    eb.migrate(old, a_map("isometry", Metric.L2), tmp_path / "one.faiss", mode="wrap", overwrite=True)
    again = eb.LinearMap(TURN, np.zeros(Q), space(Metric.L2, "new", Q), space(Metric.L2, "third", Q))
    with pytest.raises(MigrationRefusedError, match=r"it already has a map in front; combine the maps \(LinearMap.then\)"):
        eb.migrate(tmp_path / "one.faiss", again, tmp_path / "three.faiss", mode="wrap")


def test_an_l2_index_of_unit_vectors_gives_cosines(tmp_path):
    rows = X / np.linalg.norm(X, axis=1, keepdims=True)
    index = faiss.IndexHNSWFlat(P, 16)
    index.add(rows)
    faiss.write_index(index, str(tmp_path / "old.faiss"))
    order, scores = best(queries(), a_map().apply(rows), Metric.COSINE)
    for mode in ("wrap", "rewrite"):
        old_space = Space("old", P, Metric.COSINE, normalized=True)
        done = eb.migrate(tmp_path / "old.faiss", a_map(), tmp_path / f"{mode}.faiss", mode=mode, space=old_space)
        hits = eb.open_index(tmp_path / f"{mode}.faiss").search(queries(), K, parameters="efSearch=400")
        assert done.exact
        assert hits.ids.tolist() == order.tolist()
        np.testing.assert_allclose(hits.scores[:, 0], scores[:, 0], atol=1e-5)


# Traps


def test_transforms_of_a_loaded_index_are_freed_once(index_of, tmp_path):
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
    assert run_apart(program, tmp_path / "old.faiss", tmp_path / "new.faiss", tmp_path / "map") == "alive\n"


@pytest.mark.parametrize("factory", ["HNSW8", "IVF4,Flat"])
def test_nothing_is_written_into_a_mapped_file(build, tmp_path, factory):
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
    assert run_apart(program, old, tmp_path / "new.faiss", tmp_path / "map") == "alive\n"
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
def test_damaged_indexes_are_refused_and_the_process_lives(build, tmp_path, factory):
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
    assert int(run_apart(program, old, tmp_path / "new.faiss", tmp_path / "map")) > 20
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


# The command line


def invoke(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


def test_migrate_on_the_command_line(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMBRIDGE_CATALOG", raising=False)
    build("HNSW16")
    a_map().save("map.safetensors")
    done = invoke("migrate", "old.faiss", "map.safetensors", "new.faiss", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    kinds = {
        "path": str,
        "mode": str,
        "exact": bool,
        "verified_overlap": float,
        "queries_verified": int,
        "seconds": float,
        "reason": str,
    }
    assert {key: type(told[key]) for key in kinds} == kinds
    assert (told["path"], told["mode"], told["exact"], told["queries_verified"]) == ("new.faiss", "rewrite", True, 100)
    refused = invoke(
        "migrate", "old.faiss", "map.safetensors", "none.faiss", "--min-recall", "1", "--mode", "rebuild", "--verify-queries", 400
    )
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Error: 'old.faiss' is not migrated. rebuild: 0.9")
    assert not (tmp_path / "none.faiss").exists()
    assert invoke("migrate", "old.faiss", "map.safetensors", "new.faiss").exit_code == 1
    again = invoke("migrate", "old.faiss", "map.safetensors", "new.faiss", "--overwrite", "--mode", "wrap", "--quiet")
    assert again.stdout.startswith("new.faiss: 400 vectors of 'new' by wrap, exact, ")
    runs = Catalog("embridge.duckdb").sql('SELECT verb, parameters, "rows" FROM run ORDER BY id')
    assert [(r["verb"], json.loads(r["parameters"])["mode"], r["rows"]) for r in runs] == [
        ("migrate", "rewrite", N),
        ("migrate", "wrap", N),
    ]
    edges = Catalog("embridge.duckdb").sql("SELECT DISTINCT role FROM lineage WHERE verb = 'migrate' ORDER BY role")
    assert [e["role"] for e in edges] == ["index", "map"]
    assert invoke("migrate", "old.faiss", "map.safetensors", "new.faiss", "--mode", "teleport").exit_code == 2
    assert "embridge migrate foreign.faiss map.safetensors new.faiss --space minilm" in invoke("migrate", "--help").stdout


def test_a_stranger_s_index_on_the_command_line(index_of, tmp_path, write, table_of, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faiss.write_index(index_of("OPQ4,IVF4,PQ4x4np", np.tile(X, (3, 1))), "old.faiss")
    a_map("rotation", Metric.DOT).save("map.safetensors")
    write(tmp_path / "q.parquet", table_of(range(ASKED), queries()))
    words = ["migrate", "old.faiss", "map.safetensors", "new.faiss", "--no-catalog", "--json", "--queries", "q.parquet"]
    assert invoke(*words).exit_code == 1
    told = json.loads(invoke(*words, "--space", "old:dot", "--query-space", "new:dot").stdout)
    assert (told["mode"], told["exact"], told["queries_verified"]) == ("rewrite", True, ASKED)
    answered = invoke("search", "new.faiss", "q.parquet", "--space", "new:dot", "--no-catalog", "--json")
    assert len(json.loads(answered.stdout)["hits"]) == ASKED
    assert invoke(*words, "--space", "old:dot", "--query-space", "third", "--overwrite").exit_code == 1


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not gpu.gpu_count(), reason="FAISS has no GPU here")
def test_gpu_answers_and_rebuilds_as_the_cpu_does(build, tmp_path):
    old = build("IVF8,Flat", Metric.L2)
    done = eb.migrate(old, a_map("general", Metric.L2), tmp_path / "new.faiss", mode="rebuild")
    file = read_index_file(str(tmp_path / "new.faiss"))
    asked = queries()
    scores, labels = file.index.search(asked, K)
    hits = eb.open_index(tmp_path / "new.faiss").search(asked, K)
    assert done.mode == "rebuild"
    assert hits.ids.tolist() == labels.tolist()
    np.testing.assert_allclose(-hits.scores, scores, rtol=1e-4, atol=1e-4)
    file.index.nprobe = gpu.GPU_LIMIT + 1
    assert gpu.on_gpu(file.index) is file.index


def test_an_exact_move_of_rows_with_a_large_common_part_is_not_refused(index_of, tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, P)).astype(np.float32)
    rows[:, -1] += 3000
    rotation = np.linalg.qr(rng.normal(size=(P, P)))[0]
    old = index_of("Flat", rows, metric=faiss.METRIC_L2)
    faiss.write_index(old, str(tmp_path / "old.faiss"))
    spaces = [Space(name, P, Metric.L2) for name in ("old", "new")]
    translation = eb.LinearMap(rotation, np.zeros(P), *spaces)
    done = eb.migrate(tmp_path / "old.faiss", translation, tmp_path / "new.faiss", space=spaces[0], min_recall=0.99)
    assert done.exact


def test_an_index_with_a_sidecar_of_notes_is_written_as_it_was_read(index_of, tmp_path):
    path = str(tmp_path / "a.faiss")
    notes = {"adds": False, "scores": {"offset": [1.0] * P}}
    write_index_file(path, IndexFile(index_of("Flat", X), space(Metric.DOT), pa.array(INTS), {"source": "s"}, notes))
    assert read_index_file(path).notes == notes
