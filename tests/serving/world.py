"""A small world to serve: two spaces, maps between them, and indexes over 200 rows."""

import numpy as np

import embridge as eb
from embridge.records import FitRecord
from tests import support
from tests.serving.support import NEW, OLD, unit


class World:
    """Files and what is in them."""

    def __init__(self, folder):
        rng = np.random.default_rng(7)
        self.folder = folder
        self.coef = rng.normal(size=(NEW.dim, OLD.dim)).astype(np.float32)
        self.documents = eb.LinearMap(self.coef, 0.1 * rng.normal(size=NEW.dim), OLD, NEW, FitRecord("given", role="documents"))
        back, shift = np.linalg.pinv(self.coef), 0.1 * rng.normal(size=OLD.dim)
        self.queries = eb.LinearMap(back, shift, NEW, OLD, FitRecord("given", role="queries"))
        self.ids = np.array([f"d{i}" for i in range(200)], object)
        self.old = unit(rng.normal(size=(200, OLD.dim)))
        self.new = unit(self.old @ self.coef.T + 0.3 * rng.normal(size=(200, NEW.dim)))
        self.query_old, self.query_new = self.old[:5], self.new[:5]
        self.documents.save(folder / "documents.safetensors")
        self.queries.save(folder / "queries.safetensors")
        self._collections()

    def _collections(self):
        folder = self.folder
        old, new = eb.MemoryCollection(self.ids, self.old, OLD), eb.MemoryCollection(self.ids, self.new, NEW)
        support.write(folder / "old.parquet", support.table_of(self.ids, self.old, space=OLD))
        eb.convert(eb.open(folder / "old.parquet"), self.documents, folder / "both.parquet", keep_old=True)
        eb.build_index(old, folder / "old.faiss", "Flat")
        eb.build_index(new, folder / "native.faiss", "Flat")
        both = eb.open(folder / "both.parquet")
        eb.build_index(both, folder / "fused.faiss", "Flat", fuse=both.old_side)
        self.old_rows, self.new_rows = old, new

    def path(self, name):
        return str(self.folder / name)
