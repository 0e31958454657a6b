"""A source of several files into a folder, file by file under the same names, local or in object storage."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from embridge.conversion.journal import begin, check_plan, discard, journal_path, locked, partial_path, read_plan
from embridge.conversion.single import Progress, already_done, convert_file, plan_of
from embridge.errors import BadVectorsError, CollectionError, InterruptedOutputError, MissingFileError, OutputExistsError
from embridge.feature_maps import Map
from embridge.files import sync_folder
from embridge.records import Conversion
from embridge.stores import ParquetCollection
from embridge.stores.locations import beside, exists, find_files, remove, upload
from embridge.stores.tables import join_bad_rows

_FILES_AT_ONCE = 2  # on the CPU, where one file's pipeline leaves little idle


def convert_folder(
    source: ParquetCollection, translation: Map, target: Path, options: dict[str, Any], progress: Progress | None
) -> Conversion:
    """Into ``OUT.partial``, which is renamed when all files are there; ``OUT.journal`` holds the plan."""
    started = time.perf_counter()
    files = source.split_files()
    plan = plan_of(source, translation, options) | {"files": [relative for relative, _ in files]}
    partial = partial_path(target)
    sides = target.with_name(f"{partial.name}.bad")

    def one(number: int, relative: str, part: ParquetCollection, told: Progress) -> Conversion:
        out = partial / relative
        if out.exists() and (found := already_done(out, part, translation, options)):
            return found
        out.parent.mkdir(parents=True, exist_ok=True)
        known = {"resume": True, "bad_path": sides / f"{number}.parquet", "may_be_empty": True}
        return convert_file(part, translation, out, progress=told, **(options | known))

    with locked(target) as log:
        found = read_plan(log)
        if partial.exists() and not options["overwrite"] and (found is None or not options["resume"]):
            if found is None:
                journal_path(target).unlink()
            raise InterruptedOutputError.unfinished_folder(str(partial))
        check_plan(target, plan, found, resume=options["resume"])
        if found is None or not options["resume"]:
            for rest in (partial, sides):
                shutil.rmtree(rest, ignore_errors=True)
            begin(log, plan)
        partial.mkdir(exist_ok=True)
        sides.mkdir(exist_ok=True)
        done = _each_file(source, files, one, options, progress)
        _check_rows(done, source)
        join_bad_rows(f"{target}.bad.parquet", _lists(files, sides))
        if target.exists():  # a folder cannot be renamed onto another: the old one steps aside, then goes
            old = target.with_name(f"{partial.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(target, old)
        os.replace(partial, target)
        sync_folder(target.absolute().parent)
        discard(target)
    return _sum(done, str(target), translation, started)


def convert_folder_remote(
    source: ParquetCollection, translation: Map, name: str, staging: Path, options: dict[str, Any], progress: Progress | None
) -> Conversion:
    """Each file is made whole in `staging`, where it can be resumed, then uploaded and removed there."""
    started = time.perf_counter()
    if not options["overwrite"] and not options["resume"] and _holds_files(name):
        raise OutputExistsError.at(name)
    sides = staging / "bad"
    sides.mkdir(exist_ok=True)
    files = source.split_files()

    def one(number: int, relative: str, part: ParquetCollection, told: Progress) -> Conversion:
        to = beside(name, f"/{relative}")
        local = staging / "files" / relative
        local.parent.mkdir(parents=True, exist_ok=True)
        known = {"bad_path": sides / f"{number}.parquet", "may_be_empty": True}
        return convert_via(part, translation, to, local, told, options | known)

    done = _each_file(source, files, one, options, progress)
    _check_rows(done, source)
    if join_bad_rows(staging / "bad.parquet", _lists(files, sides)):
        upload(staging / "bad.parquet", beside(name, ".bad.parquet"))
    else:
        remove(beside(name, ".bad.parquet"))
    return _sum(done, name, translation, started)


def convert_via(
    source: Any, translation: Map, to: str, local: Path, progress: Progress | None, options: dict[str, Any]
) -> Conversion:
    """One file to object storage, by way of a local one; it is removed when it is there."""
    resume = options["resume"]
    if not options["overwrite"] and exists(to):
        found = already_done(to, source, translation, options) if resume else None
        if found is None:
            raise OutputExistsError.at(to)
        return found
    found = already_done(local, source, translation, options) if resume and local.exists() else None  # made, but not uploaded
    if found is None:
        found = convert_file(source, translation, local, progress=progress, **options)
    if "bad_path" not in options:  # of a folder they are listed together
        side, there = Path(f"{local}.bad.parquet"), beside(to, ".bad.parquet")
        if side.exists():
            upload(side, there)
        else:
            remove(there)
    upload(local, to)
    local.unlink()
    return found


def _holds_files(name: str) -> bool:
    try:
        return bool(find_files(name)[1])
    except (MissingFileError, CollectionError):
        return False


def _lists(files: list[tuple[str, ParquetCollection]], sides: Path) -> list[tuple[int, Path]]:
    """Where the rows of each file begin, and where its bad ones are listed."""
    found, start = [], 0
    for number, (_, part) in enumerate(files):
        found.append((start, sides / f"{number}.parquet"))
        start += len(part)
    return found


def _each_file(
    source: ParquetCollection,
    files: list[tuple[str, ParquetCollection]],
    one: Callable[[int, str, ParquetCollection, Progress], Conversion],
    options: dict[str, Any],
    progress: Progress | None,
) -> list[Conversion]:
    """Convert every file, some at a time; results in order. An error, or Ctrl-C, ends the others at their next row group."""
    rows = [0] * len(files)
    stopped = threading.Event()

    def run(number: int, relative: str, part: ParquetCollection) -> Conversion:
        def told(done: int, _: int) -> None:
            if stopped.is_set():
                raise CancelledError
            rows[number] = done
            if progress is not None:
                progress(sum(rows), len(source))

        found = one(number, relative, part, told)
        told(len(part), len(part))
        return found

    with ThreadPoolExecutor(max(_FILES_AT_ONCE, len(options["devices"])), "embridge-file") as pool:
        futures = [pool.submit(run, number, *file) for number, file in enumerate(files)]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            stopped.set()
            for future in futures:
                future.cancel()
            raise


def _check_rows(done: list[Conversion], source: ParquetCollection) -> None:
    if not any(c.rows for c in done):
        raise BadVectorsError.none_left(source.name, len(source))


def _sum(done: list[Conversion], name: str, translation: Map, started: float) -> Conversion:
    rows, skipped = sum(c.rows for c in done), sum(c.skipped for c in done)
    made = ParquetCollection(name).fingerprint()
    seconds = time.perf_counter() - started
    return Conversion(name, rows, seconds, done[0].device, done[0].source, translation.fingerprint, made, skipped)
