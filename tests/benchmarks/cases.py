"""One measurement a process: `python -m tests.benchmarks.cases CASE FOLDER ...` prints JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

_ROWS = 50_000


def make(folder: Path, n: int, p: int, q: int) -> dict[str, object]:
    """A collection without metadata, unit vectors in a list column, and a map."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import embridge as eb

    rng = np.random.default_rng(0)
    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32()))])
    with pq.ParquetWriter(folder / "source.parquet", schema, **_settings()) as writer:
        for start in range(0, n, _ROWS):
            x = rng.standard_normal((min(_ROWS, n - start), p), dtype=np.float32)
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            ids = pa.array([f"doc-{i:010d}" for i in range(start, start + len(x))])
            writer.write_table(pa.table([ids, _lists(x)], schema=schema))
    source, target = eb.Space("old", p, eb.Metric.COSINE, True), eb.Space("new", q, eb.Metric.COSINE, True)
    weight = rng.standard_normal((q, p)) / np.sqrt(p)
    eb.LinearMap(weight, rng.standard_normal(q) / 100, source, target).save(folder / "map.safetensors", overwrite=True)
    return {}


def _settings() -> dict[str, object]:
    return {"compression": "none", "use_dictionary": False, "write_statistics": ["id"]}


def _lists(vectors: np.ndarray):
    import pyarrow as pa

    offsets = np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.reshape(-1)))


def copy(folder: Path, n: int, p: int, q: int) -> dict[str, object]:
    """The floor: pyarrow reads the source and writes an output of the same size, and flushes it as we do."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32()))])
    rows = (32 << 20) // (4 * q)
    y = np.random.default_rng(0).standard_normal((rows, q), dtype=np.float32)
    started = time.perf_counter()
    source = pq.ParquetFile(folder / "source.parquet", buffer_size=1 << 20, pre_buffer=False)
    with open(folder / "out.parquet", "wb") as file:
        with pq.ParquetWriter(file, schema, **_settings()) as writer:
            for batch in source.iter_batches(rows):
                writer.write_table(pa.table([batch.column(0), _lists(y[: len(batch)])], schema=schema))
        file.flush()
        os.fsync(file.fileno())
    return {"seconds": time.perf_counter() - started}


def gemm(folder: Path, n: int, p: int, q: int) -> dict[str, object]:
    """The bare product on resident arrays, in batches that are used again."""
    import torch

    x, w, out = torch.randn(16384, p), torch.randn(p, q), torch.empty(16384, q)
    torch.mm(x, w, out=out)
    started = time.perf_counter()
    for start in range(0, n, 16384):
        rows = min(16384, n - start)
        torch.mm(x[:rows], w, out=out[:rows])
    return {"seconds": time.perf_counter() - started}


def convert(folder: Path, n: int, p: int, q: int) -> dict[str, object]:
    """What embridge does, checks and journal included; with CUDA where there is a device."""
    import torch

    import embridge as eb

    def run(device: str, name: str) -> float:
        source = eb.open(folder / "source.parquet", space="old")
        translation = eb.LinearMap.load(folder / "map.safetensors")
        return eb.convert(source, translation, folder / name, device=device).seconds

    found: dict[str, object] = {"seconds": run("cpu", "out.parquet"), "peak_mb": _peak()}
    if torch.cuda.is_available():
        run("cuda", "out-warm.parquet")
        found["cuda"] = run("cuda", "out-cuda.parquet")
    return found


def pandas(folder: Path, n: int, p: int, q: int) -> dict[str, object]:
    """What a user does today: load everything, scikit-learn's scalers around a matrix, write everything."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.preprocessing import StandardScaler

    w = np.random.default_rng(0).standard_normal((p, q)).astype(np.float32)
    started = time.perf_counter()
    table = pq.read_table(folder / "source.parquet")
    x = np.stack(table["vector"].combine_chunks().to_numpy(zero_copy_only=False))
    scaler_x, scaler_y = StandardScaler().fit(x[:5000]), StandardScaler().fit(x[:5000] @ w)
    y = scaler_y.inverse_transform(scaler_x.transform(x) @ w)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    vectors = pa.array(list(y.astype(np.float32)), pa.list_(pa.float32()))
    pq.write_table(pa.table([table["id"], vectors], ["id", "vector"]), folder / "out.parquet", **_settings())
    return {"seconds": time.perf_counter() - started}


def fit(folder: Path, n: int, p: int, q: int) -> dict[str, object]:
    """Fitting from anchors in memory against the products that no fit can do without, in the same precision (float64)."""
    import torch

    import embridge as eb
    from embridge.anchors import Anchors
    from embridge.records import AnchorRecord

    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, p), dtype=np.float32)
    y = x @ (rng.standard_normal((p, q), dtype=np.float32) / 20) + rng.standard_normal((n, q), dtype=np.float32)
    anchors = Anchors(np.arange(n), x, y, eb.Space("old", p), eb.Space("new", q), AnchorRecord("", "", n, n, 0, 0.0, 0))

    def products() -> None:
        for start in range(0, n, 100_000):  # float64 copies of a million rows would not fit beside them
            a, b = (torch.from_numpy(side[start : start + 100_000]).to(torch.float64) for side in (x, y))
            a.T @ b
            a.T @ a

    def paper() -> None:
        scaled = [(side - side.mean(0)) / side.std(0, ddof=1) for side in (x, y)]
        np.linalg.lstsq(*scaled, rcond=None)

    products()
    found: dict[str, object] = {"products": _best(products)}
    if n <= 100_000:  # lstsq wants several copies of everything
        found["paper"] = _timed(paper)
    found |= {method: _best(lambda m=method: eb.fit(anchors, m)) for method in ("linear", "ortho", "bridge")}
    found["bridge for decode"] = _best(lambda: eb.fit(anchors, "bridge", role="decode"))
    found |= {"auto": _best(lambda: eb.fit(anchors)), "auto, affine": _best(lambda: eb.fit(anchors, keep_affine=True))}
    return found


def query(folder: Path, p: int, q: int) -> dict[str, object]:
    """Microseconds to translate one query and a thousand, and of the bare products."""
    import embridge as eb

    rng = np.random.default_rng(0)
    source, target = eb.Space("old", p), eb.Space("new", q, eb.Metric.COSINE, True)
    plain = eb.LinearMap(rng.standard_normal((q, p)), rng.standard_normal(q), source, eb.Space("new", q))
    unit = eb.LinearMap(plain.coef, plain.intercept, source, target)
    x = rng.standard_normal((1000, p), dtype=np.float32)
    one, transposed = x[0], plain.coef.T
    found = {"one: bare us": lambda: one @ transposed, "one: apply us": lambda: plain.apply(one)}
    found |= {"one: apply to unit length us": lambda: unit.apply(one)}
    found |= {"1,000: bare us": lambda: x @ transposed, "1,000: apply us": lambda: plain.apply(x)}
    return {name: _microseconds(call) for name, call in found.items()}


def kernel(folder: Path, n: int, p: int, q: int, landmarks: int) -> dict[str, object]:
    """Seconds to translate rows by a kernel map, and of its three bare products in the same blocks."""
    import torch

    import embridge as eb

    rng = np.random.default_rng(0)
    spaces = eb.Space("old", p), eb.Space("new", q, eb.Metric.COSINE, True)
    affine = eb.LinearMap(rng.standard_normal((q, p)), rng.standard_normal(q), *spaces)
    bent = eb.KernelMap(affine, rng.standard_normal((landmarks, p)), rng.standard_normal((landmarks, q)), 1.0)
    x = torch.randn(n, p)
    coef, z, w = torch.randn(p, q), torch.randn(p, landmarks), torch.randn(landmarks, q)

    def bare() -> None:
        for start in range(0, n, 1024):
            rows = x[start : start + 1024]
            torch.addmm(rows @ coef, rows @ z, w)

    bare()
    return {"bare": _best(bare), "apply": _best(lambda: bent.apply(x)), "affine": _best(lambda: affine.apply(x))}


def device(folder: Path) -> dict[str, object]:
    import torch

    return {"name": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _best(call: Callable[[], object]) -> float:
    return min(_timed(call) for _ in range(2))


def _microseconds(call: Callable[[], object]) -> float:
    return min(_timed(lambda: [call() for _ in range(500)]) for _ in range(7)) / 500 * 1e6


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    name, place, *numbers = sys.argv[1:]
    measured = globals()[name](Path(place), *map(int, numbers))
    print(json.dumps({"peak_mb": _peak()} | measured))
