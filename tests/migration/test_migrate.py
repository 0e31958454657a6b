"""Moving an index: what survives, and what `auto` chooses. Index types and metrics: test_types."""

import json

import faiss
import numpy as np
import pytest

import embridge as eb
from embridge.errors import (
    FaissIndexError,
    MigrationRefusedError,
)
from embridge.indexes import gpu
from embridge.migration import attempt
from embridge.stores.faiss.file import read_index_file, write_index_file
from embridge.stores.faiss.sidecars import json_path
from embridge.types import Metric, Space
from tests.migration.support import INTS, N_QUERIES, RNG, STRINGS, TURN, K, N, P, Q, X, a_map, best, listing, queries, space

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
    new_queries = queries()
    wide = "efSearch=400" if "HNSW" in factory else ""
    hits = eb.open_index(tmp_path / "new.faiss").search(new_queries, K, parameters=wide)
    order, scores = best(new_queries, translation.apply(X), metric)
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
    assert eb.open_index(tmp_path / "new.faiss").search(queries(), K).ids.shape == (N_QUERIES, K)
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
def test_auto_takes_the_exact_mode_or_measures(build, tmp_path, factory, metric, kind, mode, exact):
    done = eb.migrate(build(factory, metric), a_map(kind, metric), tmp_path / "new.faiss")
    assert (done.mode, done.exact) == (mode, exact)
    assert ("not rewrite: " in done.reason) == (mode != "rewrite")


def test_a_rewrite_that_costs_too_much_becomes_a_rebuild_with_the_reason(build, tmp_path):
    flat = np.diag(np.r_[np.full(P - 2, 0.02), 1, 1])  # condition number 50: two directions remain of eight
    translation = eb.LinearMap(flat, np.zeros(P), space(Metric.L2), space(Metric.L2, "new"))
    old = build("IVF32,Flat", Metric.L2)
    moved = eb.migrate(old, translation, tmp_path / "moved.faiss", mode="rewrite")
    done = eb.migrate(old, translation, tmp_path / "new.faiss")
    assert done.mode == "rebuild"
    assert done.verified_overlap > moved.verified_overlap
    assert (
        f"not rewrite: {moved.verified_overlap:.3f} of the true neighbors are found, {0.9 * done.own_overlap:.3f} are required"
        in done.reason
    )


def test_move_is_another_spelling_of_rewrite(build, tmp_path):
    assert eb.migrate(build("Flat"), a_map(), tmp_path / "new.faiss", mode="move").mode == "rewrite"


def test_where_no_mode_is_good_enough_the_best_is_reported(build, tmp_path):
    """Codes decoded and coded again may lose more than a map in front does."""
    old, translation = build("PQ4x4np"), a_map("general")
    each = {mode: eb.migrate(old, translation, tmp_path / f"{mode}.faiss", mode=mode) for mode in ("wrap", "rebuild")}
    best_mode = max(each, key=lambda mode: each[mode].verified_overlap)
    done = eb.migrate(old, translation, tmp_path / "new.faiss")
    assert (done.mode, done.exact, done.verified_overlap) == (best_mode, False, each[best_mode].verified_overlap)
    assert each[best_mode].verified_overlap < 0.9 * done.own_overlap
    with pytest.raises(MigrationRefusedError, match=r"rewrite: .*; wrap: 0\.\d+ of .*; rebuild: 0\.\d+ of .*0\.950 are required"):
        eb.migrate(old, translation, tmp_path / "none.faiss", min_recall=0.95)


def test_a_map_without_full_rank_does_not_rewrite(build, tmp_path):
    translation = eb.LinearMap(np.ones((P, P)) + 1e-6 * np.eye(P), np.zeros(P), space(Metric.L2), space(Metric.L2, "new"))
    with pytest.raises(MigrationRefusedError, match=r"rewrite: the map's condition number is \d"):
        eb.migrate(build("HNSW8", Metric.L2), translation, tmp_path / "new.faiss", mode="rewrite")


@pytest.mark.parametrize("mode", ["auto", "wrap", "rewrite", "rebuild"])
def test_below_the_wanted_recall_nothing_is_written(build, tmp_path, mode):
    """One list of 32 is probed: exact, and yet half of the neighbors are missed."""
    old = build("IVF32,Flat")
    before = listing(tmp_path)
    with pytest.raises(
        MigrationRefusedError, match=r"0\.\d+ of the true neighbors are found, 0\.990 are required.*lower --min-recall"
    ):
        eb.migrate(old, a_map(), tmp_path / "new.faiss", mode=mode, min_recall=0.99)
    assert listing(tmp_path) == before
    assert eb.migrate(old, a_map(), tmp_path / "new.faiss", mode=mode, min_recall=0.05).path.endswith("new.faiss")


def test_an_index_rewritten_wrongly_is_detected(build, tmp_path, monkeypatch):
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
    new_queries = queries(n=37)
    done = eb.migrate(build("Flat", Metric.DOT), a_map("general", Metric.DOT), tmp_path / "new.faiss", queries=new_queries)
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
            with pytest.raises(MigrationRefusedError, match="by an isometry only"):
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


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not gpu.gpu_count(), reason="FAISS has no GPU here")
def test_gpu_answers_and_rebuilds_as_the_cpu_does(build, tmp_path):
    old = build("IVF8,Flat", Metric.L2)
    done = eb.migrate(old, a_map("general", Metric.L2), tmp_path / "new.faiss", mode="rebuild")
    file = read_index_file(str(tmp_path / "new.faiss"))
    new_queries = queries()
    scores, labels = file.index.search(new_queries, K)
    hits = eb.open_index(tmp_path / "new.faiss").search(new_queries, K)
    assert done.mode == "rebuild"
    assert hits.ids.tolist() == labels.tolist()
    np.testing.assert_allclose(-hits.scores, scores, rtol=1e-4, atol=1e-4)
    file.index.nprobe = gpu.GPU_LIMIT + 1
    assert gpu.on_gpu(file.index) is file.index


def test_an_exact_rewrite_of_rows_with_a_large_common_part_is_not_refused(index_of, tmp_path):
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
