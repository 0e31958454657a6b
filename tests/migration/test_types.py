"""Which index types migrate how, proven type by type against brute force, as docs/reference/migration.md says.

``python -m tests.migration.test_types`` writes the table anew.
"""

import functools
import re
import tempfile
from pathlib import Path

import faiss
import numpy as np
import pytest

import embridge as eb
from embridge.errors import FaissIndexError, MigrationRefusedError
from embridge.indexes.describe import factory_of
from embridge.types import Metric, Space
from tests.support import ROOT

P, Q, N, N_QUERIES, K = 8, 12, 640, 40, 10
PAGE = ROOT / "docs/reference/migration.md"
TYPES = (
    "Flat", "HNSW8,Flat", "NSG8,Flat", "IVF8,Flat", "IVF8_HNSW4,Flat", "IVF4(IVF2,Flat),Flat", "SQfp16", "HNSW8,SQfp16",
    "IVF8,SQfp16", "SQbf16", "SQ8", "SQ4", "HNSW8,SQ8", "IVF8,SQ8", "RQ4x4", "IVF8,RQ4x4", "LSQ4x4", "PRQ2x2x4", "PQ4x4np",
    "IVF8,PQ4x4np", "IVF8,PQ4x4fsr", "PQ4x4fs", "OPQ4,PQ4x4np", "OPQ4,IVF8,PQ4x4np", "OPQ4,IVF8_HNSW4,PQ4x4np",
    "RR,Flat", "PCA6,Flat", "PCA6,IVF8,Flat", "L2norm,Flat", "IVF8,Flat,RFlat", "IVF8,PQ4x4np,RFlat",
)  # fmt: skip
METRICS = (Metric.L2, Metric.DOT, Metric.COSINE)
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(N, P)) * RNG.uniform(0.5, 2, size=(N, 1))).astype(np.float32)
IDS = RNG.permutation(10 * N)[:N]
QUERIES = RNG.normal(size=(N_QUERIES, Q)).astype(np.float32)
TURN = np.linalg.qr(RNG.normal(size=(Q, P)))[0]
MAPS = {
    "rotation": (TURN, np.zeros(Q)),
    "isometry": (1.7 * TURN, RNG.normal(size=Q)),
    "any map": (TURN @ np.diag(np.linspace(0.5, 1.5, P)) @ np.linalg.qr(RNG.normal(size=(P, P)))[0], 0.3 * RNG.normal(size=Q)),
}
COLUMNS = [(mode, kind) for mode in ("wrap", "rewrite") for kind in MAPS] + [("rebuild", "any map")]


def unit(a):
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def a_map(kind, metric):
    return eb.LinearMap(*MAPS[kind], Space("old", P, metric), Space("new", Q, metric))


def closeness(queries, rows, metric):
    q, x = queries.astype(np.float64), rows.astype(np.float64)
    if metric == Metric.L2:
        return -((q[:, None] - x[None]) ** 2).sum(-1)
    return unit(q) @ unit(x).T if metric == Metric.COSINE else q @ x.T


def share(found, truth):
    return np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)])


def pulled_back(translation, metric):
    """Queries for the old index and what its scores must become, by the formulas of the design, in float64."""
    W, b, q = translation.coef.astype(np.float64), translation.intercept.astype(np.float64), QUERIES.astype(np.float64)
    if metric == Metric.DOT:
        return q @ W, lambda s: s + (q @ b)[:, None]
    if metric == Metric.COSINE:
        return unit(q) @ W, lambda s: s * np.linalg.norm(unit(q) @ W, axis=1, keepdims=True)
    square = np.trace(W.T @ W) / P
    p = (q - b) @ W / square
    rest = ((q - b) ** 2).sum(1) - square * (p**2).sum(1)
    return p, lambda s: square * s - rest[:, None]


def cell_of(folder, old, kind, metric, mode):
    """``exact``, ``approximate`` or ``not possible``, each held against brute force."""
    translation = a_map(kind, metric)
    new = folder / "new.faiss"
    try:
        done = eb.migrate(old.path, translation, new, mode=mode, queries=QUERIES, overwrite=True)
    except (MigrationRefusedError, FaissIndexError):
        return "not possible"
    index = eb.open_index(new)
    hits = index.search(QUERIES, K)
    assert done.queries_verified == N_QUERIES
    try:
        ids, rows = eb.open(old.path).read()
    except FaissIndexError:  # fast scan: there is nothing but the old index's own answers
        assert (done.verified_overlap, "cannot be read back" in done.reason) == (done.agreement, True)
        true = done.agreement
    else:
        best = np.argsort(-closeness(QUERIES, translation.apply(rows), metric), axis=1, kind="stable")[:, :K]
        true = share(hits.ids, ids[best])
        assert done.verified_overlap == pytest.approx(true, abs=0.011)  # a tie or two
    if not done.exact:
        assert true > 3 * K / N
        return "approximate"
    if mode == "rebuild":
        assert true > 0.99
        return "exact"
    pulled, scores = pulled_back(translation, metric)
    before = old.search(pulled.astype(np.float32), K)
    assert share(hits.ids, before.ids) >= 0.995
    if "L2norm" not in Path(old.path).name:  # whose scores are of the pulled-back query made unit
        expected = scores(before.scores.astype(np.float64))
        np.testing.assert_allclose(hits.scores, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    return "exact"


@functools.cache
def row(factory):
    """One line of the table: what each mode is for each kind of map, by metric where they differ."""
    cells = {column: {} for column in COLUMNS}
    with tempfile.TemporaryDirectory() as folder:
        for metric in METRICS:
            collection = eb.MemoryCollection(IDS, X, Space("old", P, metric))
            old = eb.build_index(collection, Path(folder) / f"{metric}-{factory}.faiss", factory)
            for mode, kind in COLUMNS:
                cells[mode, kind][str(metric)] = cell_of(Path(folder), old, kind, metric, mode)
    return f"| `{factory}` | " + " | ".join(by_metric_text(cells[column]) for column in COLUMNS) + " |"


def by_metric_text(by_metric):
    words = {}
    for metric, word in by_metric.items():
        words.setdefault(word, []).append(metric)
    if len(words) == 1:
        return next(iter(words))
    return ", ".join(f"{'/'.join(words[w])} {w}" for w in ("exact", "approximate", "not possible") if w in words)


HEAD = [
    "| type | " + " | ".join(mode if mode == "rebuild" else f"{mode}, {kind}" for mode, kind in COLUMNS) + " |",
    "|---" * (1 + len(COLUMNS)) + "|",
]
PLACE = re.compile(r"(?<=<!-- migrate-table -->\n).*?(?=<!-- /migrate-table -->)", re.DOTALL)


def lines_of_readme():
    return PLACE.search(PAGE.read_text())[0].splitlines()


@pytest.mark.parametrize("factory", TYPES)
def test_the_table_of_the_guide_matches_the_measured_modes(factory):
    assert row(factory) in lines_of_readme()


def test_the_page_has_a_line_for_every_type_and_no_other():
    lines = lines_of_readme()
    assert lines[:2] == HEAD
    assert [line.split("`")[1] for line in lines[2:]] == list(TYPES)


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT], ids=["l2", "ip"])
@pytest.mark.parametrize(
    "factory",
    [
        *TYPES,
        "HNSW8,PQ4x4np", "IDMap2,Flat", "IDMap,HNSW8,Flat", "PQ4np", "PQ4", "IVF8,PQ4x6", "RR6,Flat", "PCAR6,Flat", "PCAW6,Flat",
        "PCAWR6,Flat",
        "Pad16,Flat", "OPQ4_8,PQ4x4np", "RQ1x4_2x6", "RQ2x4_Nfloat", "IVF8,RQ2x4_Nqint8", "IVF4,FlatDedup", "SQ6", "SQ8_direct",
        "IVF8,PQ4x4fs", "PQ4x4fs_64", "LSH", "LSHrt", "LSH24r", "ITQ,LSH", "RaBitQ", "IVF4,RaBitQ", "PQ4x4np,Refine(SQfp16)",
        "PLSQ2x2x4",
        "IVF4_HNSW8,SQbf16", "OPQ4,IVF8,PQ4x4np,RFlat",
    ],
)  # fmt: skip
def test_an_index_knows_its_factory_string(factory, metric):
    """Round trip: what the string builds describes itself by the string."""
    if "LSH" in factory and metric != faiss.METRIC_L2:
        pytest.skip("FAISS builds LSH for L2 only")
    width = 16 if "OPQ4_8" in factory else P
    made = faiss.index_factory(width, factory, metric)
    text = factory_of(made)
    assert text == factory
    again = faiss.index_factory(width, text, metric)
    assert type(faiss.downcast_index(again)) is type(faiss.downcast_index(made))
    assert factory_of(again) == text
    assert factory_of(faiss.index_factory(2 * width, text, metric)) == text  # and it serves another width


@pytest.mark.parametrize("factory", [f for f in TYPES if f != "NSG8,Flat"])
def test_an_index_from_a_file_knows_its_factory_string(factory, tmp_path):
    """FAISS does not store that a linear transform is OPQ, nor whether codes are polysemous."""
    made = faiss.index_factory(P, factory)
    made.train(X)
    made.add(X)
    faiss.write_index(made, str(tmp_path / "a.faiss"))
    assert factory_of(faiss.read_index(str(tmp_path / "a.faiss"))) == factory


def test_a_type_without_a_factory_string_is_reported():
    with pytest.raises(FaissIndexError, match="No factory string builds a FAISS IndexLattice"):
        factory_of(faiss.index_factory(P, "ZnLattice2x4_4"))


if __name__ == "__main__":
    table = "\n".join([*HEAD, *map(row, TYPES)])
    PAGE.write_text(PLACE.sub(lambda _: table + "\n", PAGE.read_text()))
