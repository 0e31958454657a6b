"""What the page is tested on: the bundled sample behind old, fused and hostile indexes, a rollout, a catalog, and two encoders."""

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

import embridge as eb
from embridge.types import Space
from tests import support
from tests.serving.support import Upstream, unit

SPACES = {"old": Space("minilm", 24, normalized=True), "new": Space("mpnet", 32, normalized=True)}
QUERY = "performance"
HOSTILE = (
    '<img src=x onerror="window.hit = 1">',
    "</script><script>window.hit = 1</script>",
    "{{ 7 * 7 }}",
    "'\"><b>",
    "long" * 40,
)
ROWS, SAMPLE, QUERIES, BIG = 600, 250, 120, 2**60 + 1


class Encoder(Upstream):
    """Gives the sample's queries their vectors by one model."""

    def __init__(self, known):
        super().__init__()
        self._known = known

    def vector(self, text):
        return self._known[text]


class PageWorld:
    """Files, made on the command line. Vectors are the sample's first principal components, so that all is quick."""

    def __init__(self, folder):
        self.folder, self.known = folder, {}
        relevant = set(pq.read_table(eb.sample_path("qrels"))["doc_id"].to_pylist())
        for side, space in SPACES.items():
            rows, queries = (pq.read_table(eb.sample_path(name)) for name in (space.name, f"{space.name}.queries"))
            vectors = [np.stack(table["vector"].to_numpy()) for table in (rows, queries)]
            components = np.linalg.eigh(np.cov(vectors[0].T))[1][:, -space.dim :]
            x, q = (unit(one @ components) for one in vectors)
            ids = rows["id"].to_pylist()
            order = sorted(range(len(ids)), key=lambda i: ids[i] not in relevant)[:ROWS]  # queries have something to find
            self._write(side, [ids[i] for i in order], x[order], space)
            self._write(f"{side}-sample", [ids[i] for i in order[:SAMPLE]], x[order[:SAMPLE]], space)
            self._write(f"{side}-queries", queries["id"].to_pylist()[:QUERIES], q[:QUERIES], space)
            self.known[side] = dict(zip(queries["lemma"].to_pylist(), q, strict=True))
        self._make()
        self._make_hostile()

    def _write(self, name, ids, vectors, space):
        support.write(self.folder / f"{name}.parquet", support.table_of(ids, vectors, space=space))

    def path(self, name):
        return str(self.folder / name)

    def _run(self, *arguments):
        done = support.run(*arguments, "--catalog", self.path("c.duckdb"))
        assert done.exit_code == 0, done.output

    def _make(self):
        p, pair = self.path, (self.path("old-queries.parquet"), self.path("new-queries.parquet"))
        self._run("fit", p("old.parquet"), p("new-sample.parquet"), "-o", p("documents.safetensors"), "--method", "ridge")
        self._run("index", p("old.parquet"), p("old.faiss"), "--factory", "Flat")
        self._run("convert", p("old.parquet"), p("documents.safetensors"), p("both.parquet"), "--keep-old")
        self._run("index", p("both.parquet"), p("fused.faiss"), "--fuse", p("both.parquet"), "--factory", "Flat")
        judged = ("--queries", *pair, "--qrels", eb.sample_path("qrels"))
        self._run("evaluate", p("documents.safetensors"), p("old.parquet"), p("new.parquet"), *judged)
        self._run("plan", p("old.parquet"), p("new.parquet"), *judged, "--anchors", 100, "--max-queries", 60)
        self._run("rollout", "start", p("old.parquet"), p("new-sample.parquet"), "-o", p("rollout"), *judged)
        self._run("rollout", "next", p("rollout"), "-n", 100, "-o", p("next.parquet"))
        new, ids = pq.read_table(p("new.parquet")), pq.read_table(p("next.parquet"))["id"]
        pq.write_table(new.filter(pc.is_in(new["id"], value_set=ids.combine_chunks())), p("native.parquet"))
        self._run("rollout", "add", p("rollout"), p("native.parquet"))

    def _make_hostile(self):
        vectors = unit(np.random.default_rng(5).normal(size=(len(HOSTILE), SPACES["old"].dim)))
        for name, ids in (("hostile", np.array(HOSTILE, object)), ("numbers", BIG + np.arange(len(HOSTILE)))):
            eb.build_index(eb.MemoryCollection(ids, vectors, SPACES["old"]), self.path(f"{name}.faiss"), "Flat")

    def arguments(self):
        """Of a service of everything but encoders."""
        named = {"live": "rollout", "old": "old.faiss", "fused": "fused.faiss", "<i>": "hostile.faiss", "numbers": "numbers.faiss"}
        indexes = [word for name, file in named.items() for word in ("--index", f"{name}={self.path(file)}")]
        return [self.path("documents.safetensors"), *indexes, "--catalog", self.path("c.duckdb")]

    def logged(self, query):
        """A logged query by both models."""
        tables = {side: pq.read_table(self.path(f"{side}-queries.parquet")) for side in SPACES}
        return {side: table["vector"][table["id"].to_pylist().index(query)].as_py() for side, table in tables.items()}
