"""Convert a source of several files into a local folder, file by file under the same names, with a manifest."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import cast

from embridge.attempts import open_work, remove_work, work_folder
from embridge.conversion.file import bad_rows_path, check_bad_rows, convert_file, known_file, mark_of
from embridge.conversion.journal import begin
from embridge.conversion.log import Lines, Log, append_to, journal_path, partial_path, read_log, start
from embridge.conversion.ray import Place, convert_places
from embridge.conversion.task import Task
from embridge.errors import BadVectorsError, ChangedSourceError, InterruptedOutputError
from embridge.files import fingerprint, sync_folder, writing
from embridge.folders import MANIFEST, adopt, check_replaceable, exchange, make_folders, remove_known, settle, write_manifest
from embridge.records import Conversion
from embridge.stores import ParquetCollection
from embridge.tables.rejected import is_bad_rows, join_bad_rows

_FILES_AT_ONCE = 2  # on the CPU, where one file's pipeline leaves little idle
Files = list[tuple[str, ParquetCollection]]


def convert_folder(task: Task, target: Path) -> Conversion:
    """Write into ``OUT.partial``, which is renamed when all files are there; ``OUT.journal`` holds the plan.

    The caller has claimed the output.
    """
    started = time.perf_counter()
    files = files_of(task)
    names = [name for name, _ in files]
    partial, sides = partial_path(target), _sides(target)
    check_bad_rows(bad_rows_path(target))
    with writing(target):
        log = _begin(task, target, names)
        for folder in (partial, sides):
            folder.mkdir(exist_ok=True)
        try:
            with append_to(target, log) as lines:
                done = _convert_all(task, files, target, log, lines)
            check_rows(done, task)
            task.check_source()
        except ChangedSourceError:
            _discard(target, names)
            raise
        join_bad_rows(bad_rows_path(target), bad_lists(files, sides))
        remove_known(partial, _working_names(names), twins=target, keep=names)
        mark = write_manifest(partial, names, task.lineage)
        if os.path.lexists(target):
            check_replaceable(target)
            adopt(target, partial)
            with append_to(target, read_log(target) or log) as lines:
                lines.add({"replaced": mark})
            exchange(partial, target, _old(target))
            settle(_old(target), target)
        else:
            os.rename(partial, target)
            sync_folder(target.absolute().parent)
        _discard(target, names)
    return sum_of(done, task, str(target), ParquetCollection(target).fingerprint(), started)


def finished_folder(task: Task, target: Path) -> Conversion | None:
    """The result of an earlier finished run of the same task; files that an interruption left beside it are removed."""
    names = [name for name, _ in files_of(task)]
    with writing(target):
        _recover(target)
        found = task.already_done(target) if target.exists() else None
        if found is not None and read_log(target) is not None:
            _discard(target, names)
            if not found.skipped and is_bad_rows(bad_rows_path(target)):
                bad_rows_path(target).unlink()
    return found


def files_of(task: Task) -> Files:
    """Each file of the source, with its path below the folder."""
    return cast(ParquetCollection, task.source).split_files()


def _begin(task: Task, target: Path, names: list[str]) -> Log:
    """The journal of this run, or of the run that it continues; without --resume leftovers of that run are removed."""
    plan = task.plan | {"files": names}
    found = read_log(target)
    if found is not None and (task.resume or task.overwrite):
        _recover(target)
        found = read_log(target)
    if found is None:
        for path in (partial_path(target), _sides(target), _old(target), work_folder(target)):
            if os.path.lexists(path):
                raise InterruptedOutputError.not_ours(str(path))
    elif task.overwrite and not (task.resume and found.plan == plan and not found.fault):
        _discard(target, [name for name in found.plan.get("files", names) if isinstance(name, str)])
    elif not task.resume and os.path.lexists(partial_path(target)):
        raise InterruptedOutputError(
            f"{str(partial_path(target))!r} exists already. "
            "Hint: --resume continues it if a conversion left it, --overwrite replaces it."
        )
    return begin(target, plan, resume=task.resume, overwrite=task.overwrite)


def _recover(target: Path) -> None:
    """Finish a replacement of a folder that was interrupted: the journal holds the manifest of the new one."""
    log, partial, old = read_log(target), partial_path(target), _old(target)
    if log is None or not log.replaced:
        return
    if not os.path.lexists(target):  # between two renames
        os.rename(partial if _manifest_mark(partial) == log.replaced else old, target)
    if _manifest_mark(target) != log.replaced:
        return
    if os.path.lexists(partial) and not os.path.lexists(old):
        os.rename(partial, old)
    if os.path.lexists(old):
        settle(old, target)
    _discard(target, [name for name in log.plan["files"] if isinstance(name, str)])


def _manifest_mark(folder: Path) -> str:
    return fingerprint(folder / MANIFEST) if (folder / MANIFEST).is_file() else ""


def _convert_all(task: Task, files: Files, target: Path, log: Log, lines: Lines) -> list[Conversion]:
    """Convert every file that the journal does not name as finished, in this process or as tasks on a cluster."""
    partial, sides = partial_path(target), _sides(target)
    lock = threading.Lock()

    def add(name: str, mark: str) -> None:
        with lock:
            lines.add_file(name, mark)

    def prepare(number: int, name: str, part: Task) -> Conversion | None:
        make_folders(partial, name.rpartition("/")[0])
        found = known_file(part, partial / name, sides / f"{number}.parquet", name, log.files)
        if found is None:
            (partial / name).unlink(missing_ok=True)
        return found

    def one(number: int, name: str, part: Task) -> Conversion:
        if (found := prepare(number, name, part)) is not None:
            return found
        path, bad_path = partial / name, sides / f"{number}.parquet"
        done = convert_file(part, path, bad_path=bad_path, may_be_empty=True)
        add(name, mark_of(path, bad_path))
        return done

    if task.backend is None:
        return each_file(task, files, one)
    work = open_work(target)
    earlier = [prepare(number, name, replace(task, source=part)) for number, (name, part) in enumerate(files)]
    places = [
        Place(name, part, os.fspath(partial / name), os.fspath(sides / f"{number}.parquet"))
        for number, (name, part) in enumerate(files)
    ]
    return convert_places(task, places, earlier, work, log.files, add, may_be_empty=True)


def _sides(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial.bad")


def _old(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial.old")


def _working_names(names: Iterable[str]) -> list[str]:
    """All files that a run creates in ``OUT.partial``."""
    return [MANIFEST, *(name + suffix for name in names for suffix in ("", ".partial", ".journal"))]


def _discard(target: Path, names: list[str]) -> None:
    """Remove an unfinished folder, or leftovers beside a finished one; the journal last."""
    if (log := read_log(target)) is not None and log.replaced:
        start(target, log.plan)  # from here on nothing is about to be replaced
    remove_known(partial_path(target), _working_names(names), twins=target)
    remove_known(_sides(target), [f"{number}.parquet" for number in range(len(names))])
    remove_work(target)
    journal_path(target).unlink(missing_ok=True)


def bad_lists(files: Files, sides: Path) -> list[tuple[int, Path]]:
    """Where the rows of each file begin, and where its bad ones are listed."""
    found, start = [], 0
    for number, (_, part) in enumerate(files):
        found.append((start, sides / f"{number}.parquet"))
        start += len(part)
    return found


def each_file(task: Task, files: Files, one: Callable[[int, str, Task], Conversion]) -> list[Conversion]:
    """Convert every file, some in parallel; results in order. An error or Ctrl-C stops the others at their next row group."""
    rows = [0] * len(files)
    stopped = threading.Event()

    def run(number: int, name: str, part: ParquetCollection) -> Conversion:
        def advance(done: int, _: int) -> None:
            if stopped.is_set():
                raise CancelledError
            rows[number] = done
            if task.progress is not None:
                task.progress(sum(rows), len(task.source))

        found = one(number, name, task.of_file(part, progress=advance, resume=True, overwrite=False))
        advance(len(part), len(part))
        return found

    with ThreadPoolExecutor(max(_FILES_AT_ONCE, len(task.devices)), "embridge-file") as pool:
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


def check_rows(done: list[Conversion], task: Task) -> None:
    """Refuse an output without a row."""
    if not any(c.rows for c in done):
        raise BadVectorsError.none_left(task.source.name, len(task.source))


def sum_of(done: list[Conversion], task: Task, name: str, mark: str, started: float) -> Conversion:
    """The record of all files together."""
    rows, skipped, reused = (sum(getattr(c, count) for c in done) for count in ("rows", "skipped", "reused"))
    return task.result(name, rows, skipped, time.perf_counter() - started, mark, reused)
