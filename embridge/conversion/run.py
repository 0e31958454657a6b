"""`convert`: a whole collection into another space, as one file, a folder of files, or objects in object storage."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from embridge.conversion.engine import Precision, TranslateOptions
from embridge.conversion.file import convert_file, finished_file
from embridge.conversion.folder import convert_folder, finished_folder
from embridge.conversion.identity import Identity
from embridge.conversion.ray import convert_file_on_ray
from embridge.conversion.remote import convert_remote
from embridge.conversion.store import convert_store
from embridge.conversion.task import OnBad, Progress, Task
from embridge.errors import OutputExistsError, ParameterError
from embridge.maps import Map
from embridge.outputs import CONVERSION, Output, claim
from embridge.ray import Backend, as_backend, connected
from embridge.records import Conversion
from embridge.stores import Collection, ParquetCollection, source_paths
from embridge.stores.ids import check_unique
from embridge.stores.locations import is_remote
from embridge.stores.registry import store_of


def convert(
    source: Collection,
    translation: Map,
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    compact: bool = False,
    precision: Precision = "float32",
    on_bad: OnBad = "stop",
    confidence: float | None = None,
    keep_old: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    batch_rows: int | None = None,
    backend: Backend = "local",
    progress: Progress | None = None,
) -> Conversion:
    """Translate every vector of a collection and write a Parquet collection of the target space.

    Ids, row order, other columns and other file metadata are kept. Reading, translating and writing overlap; memory
    is bounded by the row group (16 MiB of vectors), not by the collection. The output is whole or absent: it grows as
    ``OUT.partial`` beside a journal, and gets its name when it is complete, a sample of it was recomputed, and the source is still
    what it was.

    Parameters
    ----------
    source : Collection
    translation : LinearMap or KernelMap
        From the space of the source.
    path : str or path-like
        A Parquet file, local, ``s3://`` or ``gs://`` (staged in the temporary folder, then uploaded). A source of several
        files goes into a folder, file by file under the same names, unless the path ends in ``.parquet``. A folder has a manifest
        (``_embridge.json``) of what embridge wrote into it. Or the URI of a collection in a store (``lancedb:///path#table``),
        which cannot be opened before it is finished; bad rows that are left out are counted there, not listed.
    device : str, optional
        Default: all CUDA devices where there are any, else the CPU.
    dtype : {"float32", "float16"}
        Of the vectors written; computed in float32.
    compact : bool, default False
        Byte stream split and zstd for float32 vectors: smaller, slower.
    precision : {"float32", "tf32", "bfloat16"}
        Of the products.
    on_bad : {"stop", "skip"}
        What to do about rows that cannot be translated (no vector, NaN, infinite, zero under cosine): stop, or leave them out and
        list them in ``OUT.bad.parquet``.
    confidence : float, optional
        Write two more columns (float32) beside the vectors, by the map's confidence: ``predicted_error`` of each row's translation,
        and ``error_bound``, which its error does not exceed with this probability at least (see `Confidence`).
    keep_old : bool, default False
        Write the source's vectors too, as they are stored, as the column ``old_vector`` of their own space: a two-vector
        collection, for fused search.
    overwrite : bool, default False
        Replace an existing or unfinished output. In a folder only files that embridge wrote are replaced.
    resume : bool, default False
        Continue an unfinished output of the same source, map and options; the bytes are those of an uninterrupted run.
    batch_rows : int, optional
        Rows read at a time. Default: by free memory.
    backend : {"local", "ray"} or RayBackend, default "local"
        With Ray one task converts a file, or a span of row groups of a very large one; the bytes are the same. Source and output
        are Parquet, in object storage or in folders that all nodes share. Files that are finished are kept; `resume` skips them.
    progress : callable, optional
        Called with (rows done, rows in all); with Ray after each task.

    Returns
    -------
    Conversion
        Its `reused` counts the rows that an earlier run had done.

    Raises
    ------
    SpaceMismatchError
        The map starts in another space.
    MapError, ParameterError, CollectionError
        The map has no confidence, or not of this coverage; the source has a column of that name already.
    OutputExistsError
        The output exists; or it is, contains or is inside the source; or it holds files that embridge did not write, or that were
        altered since, and that would be replaced or read with it.
    InterruptedOutputError
        An unfinished output exists, or does not match, or was altered; or another process is writing it.
    BadVectorsError, BadIdsError
        Rows that cannot be translated, null or duplicate ids.
    ChangedSourceError
        The source changed while it was read. Nothing is kept.
    DiskFullError, OutputError
        The disk is full, or the folder was removed. Finished row groups are kept.
    BackendError, MissingDependencyError
        The cluster cannot be reached, or lost tasks more often than they are retried. Finished files are kept.
    """
    options = TranslateOptions(dtype, precision, confidence, device)
    rest = {"compact": compact, "keep_old": keep_old, "overwrite": overwrite, "resume": resume, "progress": progress}
    rest["backend"] = as_backend(backend)
    return convert_task(Task.of(source, translation, options, on_bad=on_bad, batch_rows=batch_rows, **rest), os.fspath(path))


def copy(
    source: Collection,
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    compact: bool = False,
    on_bad: OnBad = "stop",
    overwrite: bool = False,
    resume: bool = False,
    batch_rows: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Copy a collection to another store: ids, vectors, payload and space are kept.

    Parameters
    ----------
    source : Collection
    path : str or path-like
        A Parquet file or folder, or the URI of a collection in a store, as for `convert`.
    dtype, compact, on_bad, overwrite, resume, batch_rows, progress
        As for `convert`.

    Returns
    -------
    Conversion
        Its `map` is empty.

    Raises
    ------
    EmbridgeError
        As `convert`.
    """
    rest = {"compact": compact, "keep_old": False, "overwrite": overwrite, "resume": resume, "progress": progress}
    options = TranslateOptions(dtype, device="cpu")
    task = Task.of(source, Identity(source.space), options, on_bad=on_bad, batch_rows=batch_rows, **rest)
    return convert_task(task, os.fspath(path))


def convert_task(task: Task, name: str) -> Conversion:
    """Convert into the store, object storage, folder or file that `name` is the name of."""
    with connected(task.backend):  # fails before anything is written
        return _convert(task, name)


def _convert(task: Task, name: str) -> Conversion:
    if store_of(name) is not None:
        if task.backend is not None:
            raise ParameterError(f"The backend 'ray' writes Parquet, not {name!r}. Hint: `embridge copy` the output there.")
        return convert_store(task, name)
    if name.lower().endswith((".faiss", ".index")):
        raise ParameterError(f"{name!r} is the name of a FAISS index, which `embridge index` builds. Hint: name a Parquet file.")
    source = task.source
    is_folder = makes_folder(source, name)
    if is_remote(name):
        return convert_remote(task, name, is_folder=is_folder)
    finished, make = (finished_folder, convert_folder) if is_folder else (finished_file, convert_file)
    output = Output(name, CONVERSION, folder=is_folder)
    if task.backend is not None and not is_folder:
        make = convert_file_on_ray
    with claim(output, inputs=source_paths(source), overwrite=task.overwrite, resume=task.resume) as [target]:
        if task.resume and not task.overwrite and (found := finished(task, target)) is not None:
            return replace(found, path=name)
        if os.path.lexists(target) and not task.overwrite:
            raise OutputExistsError.at(name)
        check_unique(source)
        return replace(make(task, Path(target)), path=name)


def makes_folder(source: Collection, name: str) -> bool:
    """True where the output is a folder: the source has several files, and the output's name does not end in ``.parquet``."""
    base = name.partition("?")[0] if is_remote(name) else name
    return isinstance(source, ParquetCollection) and source.is_many and not base.endswith(".parquet")
