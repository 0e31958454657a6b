"""A small world for the tests of rollouts: rows, queries and judgments of an old model and of a better new one."""

from dataclasses import dataclass, replace

import numpy as np

import embridge as eb
from embridge.anchors import Anchors
from embridge.types import Space

ROWS, QUERIES, LATENT = 600, 400, 12
OLD, NEW = Space("old", 10, normalized=True), Space("new", 14, normalized=True)


def unit(values):
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class World:
    """Arrays in the order of the rows; a query is a noisy copy of its relevant row."""

    ids: np.ndarray
    x: np.ndarray
    y: np.ndarray
    query_ids: np.ndarray
    qx: np.ndarray
    qy: np.ndarray
    relevant: np.ndarray

    @property
    def old(self):
        return eb.MemoryCollection(self.ids, self.x, OLD, {"text": [f"row {i}" for i in self.ids]})

    def new(self, rows):
        """Rows by the new model."""
        return eb.MemoryCollection(self.ids[rows], self.y[rows], NEW)

    @property
    def queries(self):
        return eb.match(*self.query_sides)

    @property
    def query_sides(self):
        return eb.MemoryCollection(self.query_ids, self.qx, OLD), eb.MemoryCollection(self.query_ids, self.qy, NEW)

    @property
    def qrels(self):
        return {query: [row] for query, row in zip(self.query_ids.tolist(), self.ids[self.relevant].tolist(), strict=True)}

    def with_ids(self, ids):
        """The same rows by other ids."""
        return replace(self, ids=ids)

    def places(self, ids):
        """Positions of rows by id."""
        place = {row: n for n, row in enumerate(self.ids.tolist())}
        return np.array([place[row] for row in ids], np.int64)

    def start(self, path, rows=200, **options):
        """A rollout with the first rows native, with queries and judgments unless `options` say otherwise."""
        named = {"queries": self.queries, "qrels": self.qrels} | options
        return eb.Rollout.start(self.old, self.new(np.arange(rows)), path, **named)


def make_world(old_noise=0.5, new_noise=0.1, seed=3):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(ROWS, LATENT))
    relevant = rng.integers(ROWS, size=QUERIES)
    asked = latent[relevant] + 0.35 * rng.normal(size=(QUERIES, LATENT))
    sides = []
    for dim, noise in ((OLD.dim, old_noise), (NEW.dim, new_noise)):
        encoder = rng.normal(size=(LATENT, dim)) / np.sqrt(LATENT)
        sides.append([unit(part @ encoder + noise * rng.normal(size=(len(part), dim))) for part in (latent, asked)])
    (x, qx), (y, qy) = sides
    ids = np.array([f"d{i:04d}" for i in rng.permutation(ROWS)], object)
    return World(ids, x, y, np.array([f"q{i}" for i in range(QUERIES)], object), qx, qy, relevant)


def read_ids(path):
    from embridge.tables.ids import read_ids

    return read_ids(path).tolist()


def content(rollout):
    """What a rollout holds: its state, and the bytes of its collection."""
    import json
    from pathlib import Path

    state = json.loads((Path(rollout.path) / "state.json").read_text())
    return state, (Path(rollout.path) / state["folder"] / "collection.parquet").read_bytes()


def recall_at_10(found, relevant):
    """Share of queries whose relevant row is among the found ones."""
    return np.array([row in hits for hits, row in zip(found, relevant, strict=True)], float)


__all__ = ["NEW", "OLD", "Anchors", "World", "content", "make_world", "read_ids", "recall_at_10", "unit"]
