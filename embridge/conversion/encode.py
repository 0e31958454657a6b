"""Vectors of a Parquet text column by a sentence-transformers model, in parts that survive an interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embridge.arrays import norms
from embridge.conversion.run import Progress
from embridge.device import resolve_device
from embridge.errors import BadIdsError, CollectionError, MissingDependencyError, OutputExistsError, ParameterError
from embridge.files import check_output, whole_or_absent
from embridge.ids import check_unique
from embridge.stores.collection import Batch, Collection
from embridge.stores.parquet import ParquetCollection
from embridge.stores.texts import TextBatch, TextTable
from embridge.stores.writer import write_collection
from embridge.types import Metric, Space

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_METRICS = {"cosine": Metric.COSINE, "dot": Metric.DOT, "euclidean": Metric.L2}


def encode(
    texts: str | os.PathLike[str],
    model: str,
    path: str | os.PathLike[str],
    *,
    space: str | None = None,
    id_column: str = "id",
    text_column: str = "text",
    only: np.ndarray | None = None,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    batch_size: int = 64,
    part_rows: int = 4096,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Collection:
    """Encode the texts of a Parquet file with a sentence-transformers model into a Parquet collection.

    Rows are written in parts to the folder ``OUT.parts`` beside the output; a later call with the same texts, model and
    options goes on after the last whole part. The output itself is whole or absent, and the folder goes when it is there.

    Parameters
    ----------
    texts : str or path-like
        Parquet with an id and a text column; the other columns and the text pass through.
    model : str
        A name or a path that sentence-transformers takes.
    path : str or path-like
        The Parquet file to write.
    space : str, optional
        Name of the space; default: the last part of the model's name.
    id_column, text_column : str
    only : ndarray, optional
        Ids to encode (`sample_rows` chooses some); default: all.
    device : str, optional
        Default: CUDA where there is one, else the CPU.
    dtype : {"float32", "float16"}
    batch_size : int, default 64
        Texts a forward pass.
    part_rows : int, default 4096
        Rows a part, and so the work that an interruption can lose.
    overwrite : bool, default False
        Replace an output that is there, and start anew where parts of other inputs lie.
    progress : callable, optional
        Called with (rows done, rows in all).

    Returns
    -------
    Collection
        The output, opened.

    Raises
    ------
    MissingDependencyError
        sentence-transformers is not installed.
    ParameterError
        No such model, or parts of other inputs are in the way.
    BadIdsError
        Null or duplicate ids, or an id of `only` that is not among the texts.
    CollectionError
        A row without a text, or a column ``vector`` among the texts. All of these before anything is encoded.
    """
    if part_rows < 1 or batch_size < 1:
        raise ParameterError.must_be("part_rows and batch_size", "at least 1", (part_rows, batch_size))
    target = check_output(path, overwrite=overwrite, inputs=(os.fspath(texts),))
    table = TextTable(texts, id_column=id_column, text_column=text_column)
    if "vector" in table.payload_schema.names:
        raise CollectionError.reserved_column(table.name, "vector")
    check_unique(table)
    table.check()
    wanted = None if only is None else _wanted(table, only)
    place = resolve_device(device)
    encoder = _load(model, place)
    parts = Path(f"{target}.parts")
    plan = {
        "texts": table.fingerprint(),
        "columns": [id_column, text_column],
        "model": model,
        "only": None if wanted is None else hashlib.blake2b(repr(sorted(wanted)).encode()).hexdigest(),
        "dtype": dtype,
        "part_rows": part_rows,
        "space": space or model.rstrip("/").rpartition("/")[2],
    }
    _prepare(parts, plan, overwrite=overwrite)
    total = len(table) if wanted is None else len(wanted)
    done = 0
    for number, batch in enumerate(_parts(table, part_rows, wanted)):
        part = parts / f"part-{number:06d}.parquet"
        if not part.exists():
            vectors = _vectors(encoder, batch.texts, batch_size)
            with write_collection(part, _space(encoder, plan["space"], vectors), table.id_type, table.payload_schema,
                                  columns=(id_column, "vector"), dtype=dtype) as output:  # fmt: skip
                output.write(Batch(batch.start, batch.ids, vectors, batch.payload))
        done += len(batch.ids)
        if progress is not None:
            progress(done, total)
    encoded = ParquetCollection(parts)
    lineage = {"source": plan["texts"], "model": model}
    with write_collection(target, encoded.space, table.id_type, table.payload_schema,
                          columns=(id_column, "vector"), lineage=lineage, dtype=dtype) as output:  # fmt: skip
        for part in encoded.batches(payload=True):
            output.write(part)
    shutil.rmtree(parts)
    return ParquetCollection(target)


def _load(model: str, device: torch.device) -> SentenceTransformer:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as e:
        raise MissingDependencyError.of("sentence-transformers", "Encoding texts", "encode") from e
    try:
        with _without_bars():
            return SentenceTransformer(model, device=str(device))
    except (OSError, ValueError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ParameterError(f"{model!r} cannot be loaded as a sentence-transformers model: {reason}") from e


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Let no progress bar of loading weights onto stderr, which --quiet could not stop."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _prepare(parts: Path, plan: dict[str, Any], *, overwrite: bool) -> None:
    """Make the folder of parts, or make sure that the parts in it belong to the same plan."""
    journal = parts / "plan.json"
    if parts.exists():
        found = json.loads(journal.read_text()) if journal.exists() else None
        if found == plan:
            return
        if found is None and any(not p.name.startswith(".plan.json.") for p in parts.iterdir()):
            raise OutputExistsError(f"{str(parts)!r} is needed for parts, but holds other files. Hint: move it away.")
        if found is not None and not overwrite:
            differ = ", ".join(k for k in plan if plan[k] != found.get(k))
            raise OutputExistsError(
                f"{str(parts)!r} holds parts of an interrupted run that differs in: {differ}. "
                "Hint: repeat that run to finish it, or --overwrite to start anew."
            )
        shutil.rmtree(parts)
    parts.mkdir()
    with whole_or_absent(journal) as temporary:
        temporary.write_text(json.dumps(plan))


def _wanted(table: TextTable, only: np.ndarray) -> set[Any]:
    """The ids to encode, all of which must be there."""
    wanted = set(only.tolist())
    if not wanted:
        raise ParameterError.must_be("only", "at least one id", [])
    missing = set(wanted)
    for batch in table.id_reader():
        missing.difference_update(batch.column(0).to_pylist())
    if missing:
        raise BadIdsError.unknown("The choice of ids", sorted(missing))
    return wanted


def _parts(table: TextTable, part_rows: int, wanted: set[Any] | None) -> Iterator[TextBatch]:
    """The wanted rows in parts of `part_rows`, however few of a row group are wanted: a part is one file and one round of work."""
    held: list[TextBatch] = []
    for batch in table.batches(part_rows):
        rest = batch if wanted is None else batch.at(np.flatnonzero([i in wanted for i in batch.ids.to_pylist()]))
        while len(rest) >= (room := part_rows - sum(map(len, held))):
            yield TextBatch.joined([*held, rest.at(np.arange(room))])
            held, rest = [], rest.at(np.arange(room, len(rest)))
        if len(rest):
            held.append(rest)
    if held:
        yield TextBatch.joined(held)


def _vectors(encoder: SentenceTransformer, texts: list[str], batch_size: int) -> np.ndarray:
    found = encoder.encode(texts, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False)
    return np.asarray(found, dtype=np.float32)


def _space(encoder: SentenceTransformer, name: str, vectors: np.ndarray) -> Space:
    metric = _METRICS.get(str(encoder.similarity_fn_name), Metric.COSINE)
    return Space(name, vectors.shape[1], metric, bool(np.abs(norms(vectors) - 1).max() < 1e-3))
