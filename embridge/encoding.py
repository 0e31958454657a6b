"""Encodes a Parquet text column with a sentence-transformers model, in parts that survive an interruption."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch

from embridge.arrays import norms
from embridge.attempts import attempt, open_work, remove_work
from embridge.device import resolve_device
from embridge.errors import CollectionError, MissingDependencyError, OutputError, ParameterError
from embridge.files import fingerprint, writing
from embridge.outputs import ENCODING, Output, claim
from embridge.parts import Parts, whole_part
from embridge.ray import Backend, RayBackend, as_backend, connected, run_tasks
from embridge.stores.base import Batch, Collection, check_content
from embridge.stores.ids import check_unique
from embridge.stores.parquet.collection import ParquetCollection
from embridge.stores.parquet.metadata import read_object
from embridge.stores.parquet.writer import write_collection
from embridge.tables.texts import TextBatch, TextTable
from embridge.types import Metric, Space

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ENCODER_KEY = b"embridge.encoder"
_METRICS = {"cosine": Metric.COSINE, "dot": Metric.DOT, "euclidean": Metric.L2}


class PromptWarning(UserWarning):
    """A model has prompts, and none was chosen."""


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
    prompt: str | None = None,
    prompt_name: str | None = None,
    overwrite: bool = False,
    backend: Backend = "local",
    progress: Callable[[int, int], None] | None = None,
) -> Collection:
    """Encode the texts of a Parquet file with a sentence-transformers model into a Parquet collection.

    Rows are written in parts to the folder ``OUT.parts`` beside the output; a later call with the same texts, model and
    options continues after the last complete part. The output itself is complete or absent; then the folder is removed.

    The file's metadata ``embridge.encoder`` is JSON with the model, the prompt, its name, and the names of the model's
    prompts. A `PromptWarning` is issued where the model has prompts and none was chosen.

    Parameters
    ----------
    texts : str or path-like
        Parquet with an id and a text column; the other columns and the text pass through.
    model : str
        Name or path for sentence-transformers.
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
        Texts per forward pass.
    part_rows : int, default 4096
        Rows per part: the work that an interruption can lose.
    prompt : str, optional
        Prompt put before each text, for models that expect an instruction.
    prompt_name : str, optional
        Name of a prompt of the model, such as ``query`` or ``document``. Default: the model's default prompt, if it has one.
    overwrite : bool, default False
        Replace an existing output, and start again where there are parts of other inputs.
    backend : {"local", "ray"} or RayBackend, default "local"
        With Ray one task encodes a part; texts, model and output are where all nodes see them.
    progress : callable, optional
        Called with (rows done, rows in all).

    Returns
    -------
    Collection

    Raises
    ------
    MissingDependencyError
        sentence-transformers is not installed.
    ParameterError
        No such model, or no such prompt.
    OutputExistsError, InterruptedOutputError
        The output exists or is an input; there are parts of other inputs; or another process is writing it.
    ChangedSourceError
        The texts changed while they were read.
    BadIdsError
        Null or duplicate ids, or an id of `only` that is not among the texts.
    CollectionError
        A row without a text, or a column ``vector`` among the texts. All of these are raised before anything is encoded.
    """
    if part_rows < 1 or batch_size < 1:
        raise ParameterError.must_be("part_rows and batch_size", "at least 1", (part_rows, batch_size))
    if prompt is not None and prompt_name is not None:
        raise ParameterError("Give either prompt or prompt_name, not both.")
    ray = as_backend(backend)
    if ray is not None:
        ray.device_for(device)
    if dtype not in ("float16", "float32"):
        raise ParameterError.must_be("dtype", "'float32' or 'float16'", dtype)
    with connected(ray), claim(Output(path, ENCODING), inputs=[texts], overwrite=overwrite) as [target]:
        table = TextTable(texts, id_column=id_column, text_column=text_column)
        if "vector" in table.payload_schema.names:
            raise CollectionError.reserved_column(table.name, "vector")
        check_unique(table)
        table.check()
        wanted = None if only is None else table.chosen(only)
        place = resolve_device(device if ray is None else "cpu")  # tasks have their own; here the model only states its prompts
        encoder = load_encoder(model, place)
        chosen = _prompt(encoder, model, prompt, prompt_name)
        plan = {
            "texts": table.fingerprint(),
            "columns": [id_column, text_column],
            "model": model,
            "only": None if wanted is None else hashlib.blake2b(repr(sorted(wanted)).encode()).hexdigest(),
            "dtype": dtype,
            "part_rows": part_rows,
            "space": space or model.rstrip("/").rpartition("/")[2],
            "prompt": [chosen["prompt"], chosen["prompt_name"]],
        }
        with writing(target):
            parts = Parts(Path(f"{target}.parts"), plan, overwrite=overwrite)
            total = len(table) if wanted is None else len(wanted)
            work = None if ray is None else open_work(target)
            job = _Job(table, model, str(place), plan, batch_size, chosen["prompt"], parts.folder, work)
            if ray is None:
                counts = _encode_here(job, parts, encoder, wanted)
            else:
                counts = _encode_on_ray(replace(job, device=ray.device), parts, wanted, ray)
            done = 0
            with contextlib.closing(counts):
                for count in counts:
                    done += count
                    if progress is not None:
                        progress(done, total)
            _join(parts, table, total, target, plan, {ENCODER_KEY: json.dumps(chosen).encode()})
            parts.remove()
            remove_work(target)
    return ParquetCollection(target)


def _join(parts: Parts, table: TextTable, rows: int, target: Path, plan: dict[str, Any], metadata: dict[bytes, bytes]) -> None:
    """Join all parts into one file, which gets its name if no row is missing and the texts have not changed."""
    encoded = ParquetCollection(parts.folder)
    if len(encoded) != rows:
        raise OutputError(f"{encoded.name} holds {len(encoded):,} rows instead of {rows:,}. Hint: --overwrite starts again.")
    lineage, columns = {"source": plan["texts"], "model": plan["model"]}, (plan["columns"][0], "vector")
    with write_collection(target, encoded.space, table.id_type, table.payload_schema, columns=columns,
                          lineage=lineage, dtype=plan["dtype"], metadata=metadata) as output:  # fmt: skip
        for part in encoded.batches(payload=True):
            output.write(part)
        check_content(table, plan["texts"])


@dataclass(frozen=True, eq=False)
class _Job:
    """What is encoded, and how: all that a worker needs."""

    table: TextTable
    model: str
    device: str
    plan: dict[str, Any]
    batch_size: int
    prompt: str
    parts: Path
    work: Path | None


@dataclass(frozen=True, eq=False)
class _Part:
    """One part that a task encodes: the wanted rows within a span."""

    name: str
    number: int
    job: _Job
    span: tuple[int, int]


def _encode_here(job: _Job, parts: Parts, encoder: SentenceTransformer, wanted: set[Any] | None) -> Generator[int, None, None]:
    """Encode the parts that are missing, one after the other; yields the rows of each part."""
    for number, batch in enumerate(job.table.parts(job.plan["part_rows"], wanted)):
        if parts.find(number) is None:
            _write_part(job, batch, parts.new(number), encoder)
            parts.keep(number)
        yield len(batch)


def _encode_on_ray(job: _Job, parts: Parts, wanted: set[Any] | None, ray: RayBackend) -> Generator[int, None, None]:
    """The same as tasks; yields the rows of the parts that are there already, then of each that ends."""
    rows, total = job.plan["part_rows"], len(job.table) if wanted is None else len(wanted)
    spans = job.table.part_spans(rows, wanted)
    units = [_Part(f"part {i + 1} of {job.table.name}", i, job, span) for i, span in enumerate(spans) if parts.find(i) is None]
    counts = [min(rows, total - rows * unit.number) for unit in units]
    yield total - sum(counts)
    with contextlib.closing(run_tasks(ray, _encode_part, units, [wanted])) as tasks:
        for i, _ in tasks:
            yield counts[i]


def _encode_part(unit: _Part, wanted: set[Any] | None) -> None:
    """In a worker: encode one part, which gets its name when it is whole."""
    job = unit.job
    encoder = _encoder_of_worker(job.model, job.device)
    [batch] = job.table.parts(job.plan["part_rows"], wanted, unit.span)
    with attempt(os.fspath(job.work)) as folder:
        made = folder / "part.parquet"
        _write_part(job, batch, made, encoder)
        os.replace(made, whole_part(job.parts, unit.number, fingerprint(made)))


@functools.lru_cache(maxsize=1)
def _encoder_of_worker(model: str, device: str) -> SentenceTransformer:
    """The model of earlier tasks of this process."""
    return load_encoder(model, resolve_device(device))


def _write_part(job: _Job, batch: TextBatch, path: Path, encoder: SentenceTransformer) -> None:
    vectors = _vectors(encoder, batch.texts, job.batch_size, job.prompt)
    space, columns = _space(encoder, job.plan["space"], vectors), (job.plan["columns"][0], "vector")
    schema, dtype = job.table.payload_schema, job.plan["dtype"]
    with write_collection(path, space, job.table.id_type, schema, columns=columns, dtype=dtype) as output:
        output.write(Batch(batch.start, batch.ids, vectors, batch.payload))


def _prompt(encoder: SentenceTransformer, model: str, prompt: str | None, prompt_name: str | None) -> dict[str, Any]:
    """The metadata of the encoder: the prompt in use, and the prompts of the model."""
    prompts = {name: text for name, text in (getattr(encoder, "prompts", None) or {}).items() if text}
    default = getattr(encoder, "default_prompt_name", None)
    if prompt_name is not None and prompt_name not in prompts:
        known = ", ".join(sorted(prompts)) or "none"
        raise ParameterError(
            f"The model {model!r} has no prompt {prompt_name!r}. Its prompts: {known}. Hint: pass one with --prompt TEXT."
        )
    if prompt is None and prompt_name is None:
        prompt_name = default if default in prompts else None
        if prompts:
            used = f"its default, {prompt_name!r}, is used" if prompt_name else "none is used"
            warnings.warn(
                f"The model {model!r} has prompts ({', '.join(sorted(prompts))}) and none was chosen: {used}. "
                "Hint: --prompt-name NAME (prompt_name=).",
                PromptWarning,
                stacklevel=3,
            )
    text = prompts[prompt_name] if prompt_name is not None else prompt or ""
    return {"model": model, "prompt": text, "prompt_name": prompt_name, "prompts": sorted(prompts)}


def encoder_of(collection: Collection) -> dict[str, Any]:
    """The encoder's metadata of a file that `encode` wrote: ``model``, ``prompt``, ``prompt_name``, ``prompts``."""
    return read_object(pq.read_schema(collection.path), ENCODER_KEY, collection.name) or {}


def load_encoder(model: str, device: torch.device) -> SentenceTransformer:
    """A sentence-transformers model, by name or path; MissingDependencyError and ParameterError as for `encode`."""
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
    """Suppress the progress bar of loading weights, which --quiet could not stop."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _vectors(encoder: SentenceTransformer, texts: list[str], batch_size: int, prompt: str) -> np.ndarray:
    found = encoder.encode(texts, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False, prompt=prompt)
    return np.asarray(found, dtype=np.float32)


def _space(encoder: SentenceTransformer, name: str, vectors: np.ndarray) -> Space:
    metric = _METRICS.get(str(encoder.similarity_fn_name), Metric.COSINE)
    return Space(name, vectors.shape[1], metric, bool(np.abs(norms(vectors) - 1).max() < 1e-3))
