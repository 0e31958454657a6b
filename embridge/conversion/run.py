"""A whole collection into another model's space: one file, a folder of files, or object storage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from embridge.conversion.engine import Precision
from embridge.conversion.single import convert_file
from embridge.conversion.stream import OnBad
from embridge.device import resolve_devices
from embridge.errors import (
    BadVectorsError,
    InterruptedOutputError,
    MissingFileError,
    OutputExistsError,
    ParameterError,
    SpaceMismatchError,
)
from embridge.files import check_output, sync_folder, whole_or_absent
from embridge.ids import check_unique
from embridge.maps import LinearMap
from embridge.records import Conversion
from embridge.stores import Collection, ParquetCollection
from embridge.stores.locations import exists, is_remote, upload

Progress = Callable[[int, int], None]
_FILES_AT_ONCE = 2  # on the CPU, where one file's pipeline leaves little idle


def convert(
    source: Collection,
    translation: LinearMap,
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    compact: bool = False,
    precision: Precision = "float32",
    on_bad: OnBad = "stop",
    overwrite: bool = False,
    resume: bool = False,
    batch_rows: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Translate every vector of a collection and write a Parquet collection of the target space.

    Ids, row order and the other columns stay as they are. Reading, translating and writing overlap; memory is bounded by the row
    group (32 MiB of vectors), not by the collection. The output is whole or absent: it grows as ``OUT.partial`` beside a journal,
    and gets its name when it is complete and a sample of it was recomputed.

    Parameters
    ----------
    source : Collection
    translation : LinearMap
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
    options: dict[str, Any] = {
        "devices": resolve_devices(device),
        "dtype": dtype,
        "compact": compact,
        "precision": precision,
        "on_bad": on_bad,
        "overwrite": overwrite,
        "resume": resume,
        "batch_rows": batch_rows,
    }
    name = os.fspath(path)
    into_folder = isinstance(source, ParquetCollection) and source.is_many and not name.endswith(".parquet")
    if is_remote(name):
        if not into_folder and exists(name) and not overwrite and not resume:
            raise OutputExistsError.at(name)
        check_unique(source)
        return _convert_remote(source, translation, name, into_folder, options, progress)
    if into_folder:
        return _convert_folder(source, translation, Path(name), options, progress)
    target = check_output(name, overwrite=overwrite or resume, inputs=_inputs(source))
    if target.exists() and resume and not overwrite:
        return _already_done(name, source, translation)
    check_unique(source)
    return replace(convert_file(source, translation, target, progress=progress, **options), path=name)


def _inputs(source: Collection) -> tuple[str, ...]:
    """Every local file that a collection is read from."""
    if source.path is None:
        return ()
    return (source.path, *(source.paths if isinstance(source, ParquetCollection) else ()))


def _already_done(name: str, source: Collection, translation: LinearMap) -> Conversion:
    """What a run that ended just before it could say so had made.

    Raises
    ------
    OutputExistsError
        It was made of something else.
    """
    found = ParquetCollection(name)
    if found.lineage != {"source": source.fingerprint(), "map": translation.fingerprint}:
        raise OutputExistsError.at(name)
    skipped = len(source) - len(found)
    return Conversion(name, len(found), 0.0, "cpu", found.lineage["source"], found.lineage["map"], found.fingerprint(), skipped)


def _convert_folder(
    source: ParquetCollection, translation: LinearMap, target: Path, options: dict[str, Any], progress: Progress | None
) -> Conversion:
    """File by file into ``OUT.partial``, which is renamed when all of them are there."""
    started = time.perf_counter()
    if target.exists() and not options["overwrite"]:
        raise OutputExistsError.at(str(target))
    if target.exists() and source.path and os.path.exists(source.path) and os.path.samefile(source.path, target):
        raise OutputExistsError.is_input(str(target))
    if not target.absolute().parent.is_dir():
        raise MissingFileError.at(str(target.parent))
    check_unique(source)
    partial = target.with_name(f"{target.name}.partial")
    plan = {"source": source.fingerprint(), "map": translation.fingerprint}
    _prepare_folder(partial, plan, resume=options["resume"], overwrite=options["overwrite"])

    def one(relative: str, part: ParquetCollection, told: Progress) -> Conversion:
        out = partial / relative
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            return _already_done(str(out), part, translation)
        return convert_file(part, translation, out, progress=told, **(options | {"resume": True}))

    done = _each_file(source, one, options, progress)
    (partial / "plan.json").unlink()
    if target.exists():
        # Both names are never there at once without the other: the old folder steps aside, then goes.
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        os.replace(target, old)
        os.replace(partial, target)
        shutil.rmtree(old)
    else:
        os.replace(partial, target)
    sync_folder(target.absolute().parent)
    return _sum(done, str(target), plan, ParquetCollection(target).fingerprint(), time.perf_counter() - started)


def _prepare_folder(partial: Path, plan: dict[str, str], *, resume: bool, overwrite: bool) -> None:
    journal = partial / "plan.json"
    if partial.exists():
        found = json.loads(journal.read_text()) if journal.exists() else None
        if resume and found == plan:
            return
        if resume and not overwrite and found is not None:
            raise InterruptedOutputError.differs(str(partial), [k for k in plan if plan[k] != found.get(k)])
        if not overwrite:
            raise InterruptedOutputError.unfinished_folder(str(partial))
        shutil.rmtree(partial)
    partial.mkdir()
    with whole_or_absent(journal) as temporary:
        temporary.write_text(json.dumps(plan))


def _each_file(
    source: ParquetCollection,
    one: Callable[[str, ParquetCollection, Progress], Conversion],
    options: dict[str, Any],
    progress: Progress | None,
) -> list[Conversion]:
    """Convert every file of a source, some at a time; results in order."""
    files = source.split_files()
    rows = dict.fromkeys((relative for relative, _ in files), 0)

    def run(relative: str, part: ParquetCollection) -> Conversion:
        def told(done: int, _: int) -> None:
            rows[relative] = done
            if progress is not None:
                progress(sum(rows.values()), len(source))

        found = one(relative, part, told)
        told(len(part), len(part))
        return found

    with ThreadPoolExecutor(max(_FILES_AT_ONCE, len(options["devices"])), "embridge-file") as pool:
        futures = [pool.submit(run, relative, part) for relative, part in files]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _convert_remote(
    source: Collection, translation: LinearMap, name: str, into_folder: bool, options: dict[str, Any], progress: Progress | None
) -> Conversion:  # fmt: skip
    """Each file is made whole in the temporary folder, where it can be resumed, and then uploaded in parts (multipart)."""
    started = time.perf_counter()
    staging = Path(tempfile.gettempdir()) / f"embridge-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
    staging.mkdir(exist_ok=True)

    def one(relative: str, part: Collection, told: Progress | None) -> Conversion:
        to = _join(name, relative) if into_folder else name
        if exists(to) and not options["overwrite"]:
            if not options["resume"]:
                raise OutputExistsError.at(to)
            return _already_done(to, part, translation)
        local = staging / (relative or "output.parquet")
        local.parent.mkdir(parents=True, exist_ok=True)
        if local.exists() and options["resume"]:  # made, but not uploaded
            found = _already_done(str(local), part, translation)
        else:
            found = convert_file(part, translation, local, progress=told, **options)
        upload(local, to)
        if (bad := Path(f"{local}.bad.parquet")).exists():
            upload(bad, f"{to}.bad.parquet")
        return found

    plan = {"source": source.fingerprint(), "map": translation.fingerprint}
    if into_folder and isinstance(source, ParquetCollection):
        done = _each_file(source, one, options, progress)
    else:
        done = [one("", source, progress)]
    shutil.rmtree(staging)
    return _sum(done, name, plan, ParquetCollection(name).fingerprint(), time.perf_counter() - started)


def _join(name: str, relative: str) -> str:
    """A file under a remote folder; what follows a question mark are options of the file system."""
    base, mark, query = name.partition("?")
    return f"{base.rstrip('/')}/{relative}{mark}{query}"


def _sum(done: list[Conversion], name: str, plan: dict[str, str], fingerprint: str, seconds: float) -> Conversion:
    rows, skipped = sum(c.rows for c in done), sum(c.skipped for c in done)
    if not rows:
        raise BadVectorsError(f"Nothing was written to {name!r}: no row could be translated.")
    return Conversion(name, rows, seconds, done[0].device, plan["source"], plan["map"], fingerprint, skipped)
