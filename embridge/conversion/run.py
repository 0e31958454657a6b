"""A whole collection into another model's space: one file, a folder of files, or object storage."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from embridge.conversion.engine import Precision
from embridge.conversion.folder import convert_folder, convert_folder_remote, convert_via
from embridge.conversion.journal import discard, locked
from embridge.conversion.single import Progress, already_done, convert_file
from embridge.conversion.stream import OnBad
from embridge.device import resolve_devices
from embridge.errors import CollectionError, MapError, MissingFileError, OutputExistsError, ParameterError, SpaceMismatchError
from embridge.feature_maps import FeatureMap, Map
from embridge.files import check_output
from embridge.ids import check_unique
from embridge.records import Conversion
from embridge.stores import Collection, ParquetCollection
from embridge.stores.locations import exists, is_remote, same_place
from embridge.stores.parquet import ERROR_COLUMNS


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
    overwrite: bool = False,
    resume: bool = False,
    batch_rows: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Translate every vector of a collection and write a Parquet collection of the target space.

    Ids, row order and the other columns stay as they are. Reading, translating and writing overlap; memory is bounded by the row
    group (16 MiB of vectors), not by the collection. The output is whole or absent: it grows as ``OUT.partial`` beside a journal,
    and gets its name when it is complete and a sample of it was recomputed.

    Parameters
    ----------
    source : Collection
    translation : LinearMap or FeatureMap
        From the space of the source.
    path : str or path-like
        A Parquet file, local, ``s3://`` or ``gs://`` (staged in the temporary folder, then uploaded). A source of several
        files goes into a folder, file by file under the same names, unless the path ends in ``.parquet``.
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
    overwrite : bool, default False
        Replace an output, or an unfinished one, that is there.
    resume : bool, default False
        Go on with an unfinished output of the same source, map and options; the bytes are those of an undisturbed run.
    batch_rows : int, optional
        Rows read at a time. Default: by the memory at hand.
    progress : callable, optional
        Called with (rows done, rows in all).

    Returns
    -------
    Conversion

    Raises
    ------
    SpaceMismatchError
        The map starts in another space.
    MapError, ParameterError, CollectionError
        The map has no confidence, or not of this coverage; the source has a column of that name already.
    OutputExistsError, InterruptedOutputError
        The output exists, or is the source; an unfinished one is there, or does not match.
    BadVectorsError, BadIdsError
        Rows that cannot be translated, null or duplicate ids.
    DiskFullError
        There is no room for the output. What is done is kept.
    """
    if not translation.source.same_as(source.space):
        raise SpaceMismatchError.between("The map", translation.source, source.name, source.space)
    for name, value, known in (
        ("dtype", dtype, ("float32", "float16")),
        ("precision", precision, ("float32", "tf32", "bfloat16")),
        ("on_bad", on_bad, ("stop", "skip")),
    ):
        if value not in known:
            raise ParameterError.must_be(name, f"one of {', '.join(known)}", value)
    if batch_rows is not None and batch_rows < 1:
        raise ParameterError.must_be("batch_rows", "at least 1", batch_rows)
    if confidence is not None:
        _check_confidence(source, translation, confidence)
    options: dict[str, Any] = {
        "devices": resolve_devices(device),
        "dtype": dtype,
        "compact": compact,
        "precision": precision,
        "on_bad": on_bad,
        "confidence": confidence,
        "overwrite": overwrite,
        "resume": resume,
        "batch_rows": batch_rows,
    }
    name = os.fspath(path)
    base = name.partition("?")[0] if is_remote(name) else name
    folder = source if isinstance(source, ParquetCollection) and source.is_many and not base.endswith(".parquet") else None
    if is_remote(name):
        return _convert_remote(source, folder, translation, name, options, progress)
    if folder is None:
        target = check_output(name, overwrite=overwrite or resume, inputs=_inputs(source))
    else:
        target = _check_folder(folder, Path(name), overwrite=overwrite or resume)
    if source.path is not None and Path(source.path).resolve() in Path(name).resolve().parents:
        raise OutputExistsError.within(name, source.path)
    options["origin"] = source.fingerprint()
    if target.exists() and resume and not overwrite:
        found = already_done(name, source, translation, options)
        if found is None:
            raise OutputExistsError.at(name)
        with locked(target):
            discard(target)
        return found
    check_unique(source)
    if folder is not None:
        return convert_folder(folder, translation, target, options, progress)
    return replace(convert_file(source, translation, target, progress=progress, **options), path=name)


def _check_confidence(source: Collection, translation: Map, coverage: float) -> None:
    """Refuse what errors cannot be foretold for, or not written beside."""
    if isinstance(translation, FeatureMap):
        raise MapError.not_affine("its errors cannot be foretold")
    if translation.confidence is None:
        raise MapError.no_confidence()
    translation.confidence.quantile(coverage)
    for column in ERROR_COLUMNS:
        if column in (source.id_column, source.vector_column, *source.payload_schema.names):
            raise CollectionError.reserved_column(source.name, column)


def _inputs(source: Collection) -> tuple[str, ...]:
    """Every file that a collection is read from."""
    if source.path is None:
        return ()
    return (source.path, *(source.paths if isinstance(source, ParquetCollection) else ()))


def _check_folder(source: ParquetCollection, target: Path, *, overwrite: bool) -> Path:
    """The path of a folder that may be written."""
    if target.exists() and source.path and os.path.exists(source.path) and os.path.samefile(source.path, target):
        raise OutputExistsError.is_input(str(target))
    if target.exists() and not overwrite:
        raise OutputExistsError.at(str(target))
    if not target.absolute().parent.is_dir():
        raise MissingFileError.at(str(target.parent))
    return target


def _convert_remote(
    source: Collection, folder: ParquetCollection | None, translation: Map, name: str, options: dict[str, Any],
    progress: Progress | None,
) -> Conversion:  # fmt: skip
    """Files are made whole in the temporary folder, where they can be resumed, and then uploaded in parts (multipart)."""
    started = time.perf_counter()
    if source.path is not None and is_remote(source.path) and same_place(source.path, name):
        raise OutputExistsError.is_input(name)
    if folder is None and exists(name) and not options["overwrite"] and not options["resume"]:
        raise OutputExistsError.at(name)
    options["origin"] = source.fingerprint()
    check_unique(source)
    staging = Path(tempfile.gettempdir()) / f"embridge-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
    staging.mkdir(exist_ok=True)
    if folder is not None:
        done = convert_folder_remote(folder, translation, name, staging, options, progress)
    else:
        done = convert_via(source, translation, name, staging / "output.parquet", progress, options)
    shutil.rmtree(staging)
    return replace(done, path=name, seconds=time.perf_counter() - started)
