"""Every method by role, pair and number of anchors, on real queries: `python -m tests.benchmarks.quality` prints Markdown.

It needs the folder `shared/data` beside the repository (or --data). Anchors are the first rows of a corpus, whose order is
random; of the others `--rows` are searched. Queries are split by a hash of their id: one half is for `auto, queries` to choose by,
all figures are of the other half. Accuracy is that of a linear SVM trained on 4,000 native rows of the target and tested on 2,000
others.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import embridge as eb
from embridge.anchors import Anchors
from embridge.anchors.moments import Moments
from embridge.maps import LinearMap
from embridge.neighbors import overlap, top_k
from embridge.records import AnchorRecord
from embridge.stores.ids import hash_ids
from embridge.translators import METHODS, QueryPairs
from embridge.types import Metric, Space

DATA = Path(__file__).parents[3] / "shared" / "data"
PAIRS = {
    "wordnet MiniLM -> MPNet": ("wordnet", "minilm-l6", "mpnet"),
    "wordnet MPNet -> MiniLM": ("wordnet", "mpnet", "minilm-l6"),
    "images Lite0 -> Lite2": ("images", "effnet-lite0", "effnet-lite2"),
}
ANCHORS = (300, 1000, 5000)
ROLES = ("documents", "queries", "decode")
CENTERED = "centered Procrustes"
PLAIN = (CENTERED, "rotation", "isometry", "affine", "linear", "l-ortho", "ortho")
K = 10
_TRAINED, _TESTED = 4000, 2000


@dataclass(frozen=True, eq=False)
class Pair:
    """Rows and queries of two encoders in one order, with judgments (a document id for each query) and labels."""

    ids: np.ndarray
    x: np.ndarray
    y: np.ndarray
    query_ids: np.ndarray
    query_x: np.ndarray
    query_y: np.ndarray
    relevant: tuple[np.ndarray, ...]
    labels: np.ndarray
    spaces: tuple[Space, Space]

    @classmethod
    def read(cls, data: Path, folder: str, source: str, target: str) -> Pair:
        ids, x = _read(data / folder / f"{source}.parquet")
        _, y = _read(data / folder / f"{target}.parquet")
        query_ids, query_x = _read(data / folder / f"{source}.queries.parquet")
        _, query_y = _read(data / folder / f"{target}.queries.parquet")
        judged: dict[object, list[object]] = {}
        for query, document in zip(*pq.read_table(data / folder / "qrels.parquet").to_pydict().values(), strict=True):
            judged.setdefault(query, []).append(document)
        relevant = tuple(np.array(judged.get(query, []), ids.dtype) for query in query_ids.tolist())
        table = pq.read_table(data / folder / "docs.parquet").to_pydict()
        known = dict(zip(table["id"], table["label"], strict=True))
        labels = np.array([known[i] for i in ids.tolist()])
        spaces = tuple(Space(name, side.shape[1], Metric.COSINE, True) for name, side in ((source, x), (target, y)))
        return cls(ids, x, y, query_ids, query_x, query_y, relevant, labels, spaces)  # pyright: ignore[reportArgumentType]

    def anchors(self, n: int) -> Anchors:
        record = AnchorRecord("", "", n, n, 0, 0.0, 0)
        return Anchors(self.ids[:n], self.x[:n], self.y[:n], *self.spaces, record)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    ids, vectors = eb.open(path, space="any").read()
    return np.asarray(ids), np.asarray(vectors, np.float32)


def centered_procrustes(moments: Moments) -> LinearMap:
    """Orthogonal Procrustes between centered sides, as other tools have it: no scale, the mean of the target added."""
    found = METHODS["isometry"]().solve(moments)
    weight = found.weight / found.parameters["scale"]
    return LinearMap(weight.T, moments.mean_y - moments.mean_x @ weight, moments.source, moments.target)


class Fits:
    """Maps from the first n rows of a pair: moments are taken once, and maps that no role changes are fitted once."""

    def __init__(self, pair: Pair, n: int) -> None:
        self.anchors = pair.anchors(n)
        self.folds = self.anchors.folds(full=True)
        self._plain: dict[str, eb.LinearMap] = {}

    def plain(self, name: str) -> eb.LinearMap:
        """A map without parameters to choose."""
        if name not in self._plain:
            total = self.folds.total()
            self._plain[name] = centered_procrustes(total) if name == CENTERED else METHODS[name]().fit(total)
        return self._plain[name]

    def by(self, role: str, queries: QueryPairs | None) -> dict[str, Callable[[], eb.LinearMap | eb.KernelMap]]:
        """What is compared for a role; `auto` last."""
        anchors, folds = self.anchors, self.folds
        found: dict[str, Callable[[], eb.LinearMap | eb.KernelMap]] = {
            name: functools.partial(self.plain, name) for name in (*PLAIN, *(["projection"] if role == "queries" else []))
        }
        found |= {name: functools.partial(eb.fit, folds, name, role=role) for name in ("ridge", "bridge")}
        if role == "documents":
            found["kernel"] = functools.partial(eb.fit, anchors, "kernel", role=role)
            found["auto, affine"] = functools.partial(eb.fit, folds, role=role)
        found["auto"] = functools.partial(eb.fit, anchors, role=role)
        if queries is not None:
            found["auto, queries"] = functools.partial(eb.fit, anchors, role=role, queries=queries)
        return found


def retrieval(pair: Pair, fits: Fits, role: str, o: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Overlap@10 and recall@10 of every method, with the standard errors of their differences to `auto`."""
    n = len(fits.anchors)
    half = hash_ids(pair.query_ids, "half", 0) % np.uint64(2) == 0
    corpus = slice(n, n + o.rows)
    place = {i: row for row, i in enumerate(pair.ids[corpus].tolist())}
    wanted = [np.array([place[i] for i in documents.tolist() if i in place], np.int64) for documents in pair.relevant]
    reported = [i for i in np.flatnonzero(~half) if len(wanted[i])][: o.queries]
    chosen_by = np.flatnonzero(half)
    pairs = QueryPairs(pair.query_x[chosen_by], pair.query_y[chosen_by], tuple(pair.relevant[i] for i in chosen_by))
    x, y, own = pair.x[corpus], pair.y[corpus], pair.query_y if role == "documents" else pair.query_x
    truth = top_k(own[reported], y if role == "documents" else x, K).ids
    relevant = np.stack([wanted[i][:1] for i in reported])  # one document a query in these data
    found: dict[str, dict[str, Any]] = {}
    units: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, fit in fits.by(role, pairs).items():
        if o.methods and name not in o.methods:
            continue
        started = time.perf_counter()
        fitted = fit()
        seconds = time.perf_counter() - started
        queries, documents = (own[reported], fitted.apply(x)) if role == "documents" else (fitted.apply(own[reported]), y)
        ids = top_k(queries, documents, K).ids
        units[name] = overlap(ids, truth), (ids == relevant).any(1).astype(float)
        found[name] = {"overlap": float(units[name][0].mean()), "recall": float(units[name][1].mean())}
        found[name] |= {"seconds": seconds, "chosen": _chosen(fitted)} if name.startswith("auto") else {}
    for number, measure in enumerate(("overlap", "recall")):
        for other in found if "auto" in units else ():
            difference = units[other][number] - units["auto"][number]
            found[other][f"{measure} error"] = float(difference.std(ddof=1) / len(difference) ** 0.5)
    return found


@functools.cache
def classifier(pair: Pair):
    """A linear SVM of the target, on rows before the last 2,000."""
    from sklearn.svm import LinearSVC

    trained = slice(-_TRAINED - _TESTED, -_TESTED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LinearSVC(random_state=0, max_iter=200).fit(pair.y[trained], pair.labels[trained])


def accuracy(pair: Pair, fits: Fits, only: list[str] | None) -> dict[str, dict[str, Any]]:
    """Accuracy of a linear SVM of the target on translated rows of the source, by every method."""
    model, tested = classifier(pair), slice(-_TESTED, None)
    found: dict[str, dict[str, Any]] = {
        "native": {"accuracy": float(np.mean(model.predict(pair.y[tested]) == pair.labels[tested]))}
    }
    for name, fit in fits.by("decode", None).items():
        if only and name not in only:
            continue
        fitted = fit()
        right = float(np.mean(model.predict(fitted.apply(pair.x[tested])) == pair.labels[tested]))
        found[name] = {"accuracy": right} | ({"chosen": _chosen(fitted)} if name == "auto" else {})
    return found


def _chosen(fitted: eb.LinearMap | eb.KernelMap) -> str:
    kept = {
        k: v for k, v in fitted.record.parameters.items() if k in ("alpha", "shrinkage_target_weight", "mean_weight", "penalty")
    }
    return " ".join([fitted.record.method, *(f"{k}={v:.3g}" for k, v in kept.items())])


def run(o: argparse.Namespace) -> list[dict]:
    """All figures, one record a cell of the tables."""
    records = []
    for name in o.pairs:
        pair = Pair.read(o.data, *PAIRS[name])
        for n in o.anchors:
            fits = Fits(pair, n)
            for role in o.roles:
                # Decoders are tested on the last rows.
                decoded = fits if n <= len(pair.ids) - _TESTED else Fits(pair, len(pair.ids) - _TESTED)
                cells = accuracy(pair, decoded, o.methods) if role == "decode" else retrieval(pair, fits, role, o)
                found = [{"pair": name, "anchors": n, "role": role, "method": method} | cell for method, cell in cells.items()]
                print(table(found), flush=True)
                records += found
                if o.out:
                    o.out.write_text(json.dumps(records, indent=2) + "\n")
    return records


def table(records: list[dict]) -> str:
    """Markdown of the records of one pair, number of anchors and role."""
    first = records[0]
    lines = [f"\n{first['pair']}, {first['anchors']:,} anchors, {first['role']}\n"]
    columns = [c for c in ("overlap", "recall", "accuracy", "seconds", "chosen") if any(c in record for record in records)]
    lines += ["| method | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for record in records:
        cells = [_cell(record, column) for column in columns]
        lines.append(f"| {record['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(record: dict, column: str) -> str:
    value = record.get(column, "")
    if isinstance(value, str):
        return value
    error = f" ± {record[f'{column} error']:.3f}" if record.get(f"{column} error") else ""
    return f"{value:.1f}" if column == "seconds" else f"{value:.3f}{error}"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The options of a comparison, from the command line unless they are given."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality", description=__doc__)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--anchors", type=int, nargs="+", default=list(ANCHORS))
    parser.add_argument("--roles", nargs="+", choices=ROLES, default=list(ROLES))
    parser.add_argument("--methods", nargs="+", help="some of the methods")
    parser.add_argument("--rows", type=int, default=8000, help="of the corpus that is searched")
    parser.add_argument("--queries", type=int, default=1500, help="at most, of the half that is reported")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    return parser.parse_args(given)


def main() -> None:
    run(arguments())


if __name__ == "__main__":
    main()
