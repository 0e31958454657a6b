"""The inputs of all torture: one folder of small files of every kind, the same bytes for the same code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

OLD_DIM, NEW_DIM, ROWS, SHARED = 12, 16, 1300, 1200
WORDS = ["bridge", "river", "stone", "arch", "rope", "iron", "steel", "cable", "truss", "span"]
WORDS += ["pier", "deck", "toll", "ferry", "ford", "canal", "lock", "weir", "dam", "bank"]
Verb = Callable[[list[str]], object]


def table_of(ids: list[object], vectors: np.ndarray, space: str, *, fixed: bool = True, **payload: object) -> pa.Table:
    """A collection as embridge writes it (`fixed`), or as others do; `space` is ``name`` or ``name:metric``."""
    values = pa.array(np.asarray(vectors, np.float32).ravel())
    dim = vectors.shape[1]
    offsets = pa.array(np.arange(0, len(values) + 1, dim), pa.int32())
    column = pa.FixedSizeListArray.from_arrays(values, dim) if fixed else pa.ListArray.from_arrays(offsets, values)
    name, _, metric = space.partition(":")
    facts = {"name": name, "dim": dim, "metric": metric or "cosine", "normalized": False}
    return pa.table({"id": ids, "vector": column, **payload}).replace_schema_metadata({"embridge.space": json.dumps(facts)})


def vectors_of(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same rows by an old and by a new model: a noisy linear relation."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, OLD_DIM))
    y = x @ np.random.default_rng(99).normal(size=(OLD_DIM, NEW_DIM)) / np.sqrt(OLD_DIM) + 0.2 * rng.normal(size=(rows, NEW_DIM))
    return x.astype(np.float32), y.astype(np.float32)


def make_tables(folder: Path) -> None:
    """Collections, texts, judgments, labels, ids."""
    x, y = vectors_of(ROWS)
    ids = [f"d{i:04d}" for i in range(ROWS)]
    pq.write_table(table_of(ids, x, "old", n=list(range(ROWS))), folder / "old.parquet", row_group_size=400)
    pq.write_table(table_of(ids[:SHARED], y[:SHARED], "new"), folder / "new.parquet", row_group_size=500)
    pq.write_table(table_of(ids[:SHARED], y[:SHARED] + 0.1, "new"), folder / "new-2.parquet")
    words = {"word": [WORDS[i % 20] for i in range(160)], "flag": pa.array(np.arange(160) % 2 == 0)}
    pq.write_table(table_of(ids[:160], x[:160], "old", **words), folder / "small.parquet", row_group_size=40)
    numbers = list(range(500, 620))
    pq.write_table(table_of(numbers, x[500:620], "old", fixed=False), folder / "numbers.parquet")
    holes = x[200:330].copy()
    holes[[3, 60, 61, 110]] = np.nan
    pq.write_table(table_of(ids[200:330], holes, "old"), folder / "holes.parquet", row_group_size=50)
    for number, name in enumerate(("a.parquet", "b/a.parquet", "c.parquet")):
        path = folder / "shards" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = slice(60 * number, 60 * (number + 1))
        part = x[rows].copy()
        part[7] = np.nan
        pq.write_table(table_of(ids[rows], part, "old", n=list(range(60))), path)
    pq.write_table(table_of(ids[:300], x[:300], "old:l2"), folder / "old-l2.parquet")
    pq.write_table(table_of(ids[1000:1250], y[1000:1250], "new"), folder / "native.parquet")
    qx, qy = vectors_of(60, seed=7)
    queries = [f"q{i}" for i in range(60)]
    pq.write_table(table_of(queries, qx, "old"), folder / "queries-old.parquet")
    pq.write_table(table_of(queries, qy, "new"), folder / "queries-new.parquet")
    judged = {"query_id": queries * 3, "doc_id": [ids[(7 * i) % SHARED] for i in range(180)], "score": [1, 2, 0] * 60}
    pq.write_table(pa.table(judged), folder / "qrels.parquet")
    pq.write_table(pa.table({"id": queries, "label": [WORDS[i % 3] for i in range(60)]}), folder / "labels.parquet")
    texts = [f"a {WORDS[i % 20]} and a {WORDS[(7 * i + 3) % 20]}" for i in range(24)]
    kept = {"id": [f"t{i:02d}" for i in range(24)], "text": texts, "length": [len(t) for t in texts]}
    pq.write_table(pa.table(kept), folder / "texts.parquet", row_group_size=10)
    pq.write_table(pa.table(kept | {"text": [t.upper() + "!" for t in texts]}), folder / "texts-2.parquet")
    pq.write_table(pa.table({"id": [f"t{i:02d}" for i in range(0, 24, 2)]}), folder / "ids.parquet")


def make_decoders(folder: Path) -> None:
    """A linear head and a program of each format, all over the new space."""
    import torch
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    import embridge as eb

    _, y = vectors_of(400, seed=3)
    labels = np.array(WORDS[:3])[y[:, :3].argmax(axis=1)]
    space = eb.Space("new", NEW_DIM)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(y, labels)
    eb.save_decoder(model, folder / "head.safetensors", space)
    eb.save_decoder(model, folder / "model.skops", space)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(NEW_DIM, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
    rows = torch.export.Dim("rows")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        torch.export.save(torch.export.export(net.eval(), (torch.zeros(4, NEW_DIM),), dynamic_shapes=({0: rows},)), buffer)
        (folder / "net.pt2").write_bytes(buffer.getvalue())
        made = to_onnx(LogisticRegression(max_iter=500).fit(y, labels), y[:1])
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    eb.register_decoder(folder / "net.pt2", space)
    eb.register_decoder(folder / "model.onnx", space)
    for name in ("net.pt2", "model.onnx", "model.skops"):  # one that is declared, one that is yet to be
        (folder / f"bare-{name}").write_bytes((folder / name).read_bytes())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that native code prints."""
    sys.stdout.flush()
    kept, null = (os.dup(1), os.dup(2)), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        yield
    finally:
        for number, before in enumerate(kept, 1):
            os.dup2(before, number)
            os.close(before)
        os.close(null)


FACTORIES = ("Flat", "HNSW8", "IVF6,Flat", "IVF6,SQ8", "PQ4x4np", "IVF6,PQ4x4np", "SQ8", "SQfp16", "PCA8,Flat", "OPQ4,PQ4x4np",
             "IDMap2,Flat", "Flat,RFlat", "NSG8,Flat", "IVF6_HNSW8,Flat", "PQ4x4fs")  # fmt: skip


def make_indexes(folder: Path, verb: Verb) -> None:
    """Indexes by embridge (string ids, integer ids, hubness), and bare ones of many types by FAISS."""
    for line in (
        f"index {folder}/old.parquet {folder}/old.faiss --factory IVF8,Flat",
        f"index {folder}/small.parquet {folder}/small.faiss --factory HNSW8",
        f"index {folder}/numbers.parquet {folder}/numbers.faiss --factory Flat",
        f"index {folder}/old-l2.parquet {folder}/old-l2.faiss --factory Flat",
        f"index {folder}/small.parquet {folder}/hubness.faiss --factory Flat --hubness {folder}/queries-old.parquet",
    ):
        verb([*shlex.split(line), "--no-catalog"])
    x, _ = vectors_of(300)
    (folder / "bare").mkdir()
    with quiet():  # FAISS warns that 300 rows are few
        make_bare_indexes(folder / "bare", x)


def make_bare_indexes(folder: Path, x: np.ndarray) -> None:
    """An index of every type of `FACTORIES` over the same rows."""
    import faiss

    for factory in FACTORIES:
        index = faiss.index_factory(OLD_DIM, factory, faiss.METRIC_INNER_PRODUCT if factory == "Flat" else faiss.METRIC_L2)
        index.train(x)
        if factory.startswith("IDMap"):
            index.add_with_ids(x, np.arange(1000, 1300))
        else:
            index.add(x)
        faiss.write_index(index, str(folder / f"{factory.replace(',', '_').replace('x', '-')}.faiss"))


def make_maps(folder: Path, verb: Verb) -> None:
    """Maps of every kind, moments, a translated collection, and a catalog that has seen some of it."""
    between = f"{folder}/old.parquet {folder}/new.parquet"
    catalog = f"--catalog {folder}/catalog.duckdb"
    moments = f"--moments {folder}/all.moments.safetensors"
    for line in (
        f"fit {between} -o {folder}/map.safetensors --method ridge --alpha 0.1 {moments} {catalog}",
        f"fit {between} -o {folder}/map-2.safetensors --method ridge --alpha 1.0 {catalog}",
        f"fit {between} -o {folder}/rotation.safetensors --method rotation {catalog}",
        f"fit {between} -o {folder}/kernel.safetensors --method kernel --landmarks 60 {catalog}",
        f"fit {folder}/old-l2.parquet {between.split()[1]} -o {folder}/isometry.safetensors --method isometry --no-catalog",
        f"convert {folder}/old.parquet {folder}/map.safetensors {folder}/translated.parquet {catalog}",
        f"convert {folder}/shards {folder}/map.safetensors {folder}/folder --on-bad skip {catalog}",
        f"merge {folder}/native.parquet {folder}/translated.parquet -o {folder}/merged.parquet --no-catalog",
        f"evaluate {folder}/map.safetensors {between} {catalog}",
    ):
        verb(shlex.split(line))


def make_world(folder: Path, verb: Verb, *, decoders: bool = True) -> None:
    """Make all inputs in `folder`; `verb` runs a command line and must raise where it fails."""
    folder.mkdir(parents=True)
    make_tables(folder)
    make_maps(folder, verb)
    make_indexes(folder, verb)
    if decoders:
        make_decoders(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
