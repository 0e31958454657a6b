"""Converts into object storage: files are completed in a staging folder, where they can be resumed, then uploaded in parts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from embridge.conversion.file import convert_file, finished_file
from embridge.conversion.folder import Files, bad_lists, check_rows, each_file, files_of, sum_of
from embridge.conversion.journal import discard
from embridge.conversion.ray import Place, convert_places
from embridge.conversion.task import Task
from embridge.errors import ChangedSourceError, OutputExistsError, ParameterError
from embridge.files import writing
from embridge.folders import MANIFEST, Manifest, check_own_folder
from embridge.outputs import Output, claim
from embridge.records import Conversion
from embridge.stores import ParquetCollection
from embridge.stores.filesystems import check_no_secret, shown
from embridge.stores.ids import check_unique
from embridge.stores.locations import (
    beside,
    exists,
    fingerprint_at,
    inner_path,
    is_remote,
    list_objects,
    read_object,
    remove,
    upload,
)
from embridge.tables.rejected import join_bad_rows

_LISTS = "_tasks"  # below the output, which readers ignore
_UNKNOWN = (-1, "")  # size and fingerprint of a file that an unfinished run may have uploaded


def convert_remote(task: Task, name: str, *, is_folder: bool) -> Conversion:
    """Convert into one object, or into one object per file of the source, with a manifest."""
    started = time.perf_counter()
    _check_apart(task, name)
    if task.backend is not None:
        check_no_secret(name)
    with _staging(name) as staging:
        if not is_folder and not task.overwrite and not task.resume and exists(name):
            raise OutputExistsError.at(name)
        check_unique(task.source)
        if is_folder:
            done = _convert_folder(task, name, staging)
        else:
            done = _convert_object(task, name, staging / "output.parquet", staging / "output.parquet.bad.parquet", lists=True)
    return replace(done, path=name, seconds=time.perf_counter() - started)


def _check_apart(task: Task, name: str) -> None:
    """Refuse an output that is, contains or lies in the source, and one without a key."""
    if name.partition("?")[0].partition("://")[2].strip("/").count("/") < 1:
        raise ParameterError(
            f"{name!r} is not the name of an object. Hint: give a bucket and a key, as in s3://bucket/new.parquet."
        )
    source = task.source
    if source.path is None or not is_remote(source.path) or source.path.partition("://")[0] != name.partition("://")[0]:
        return
    out = inner_path(name).rstrip("/")
    if out == inner_path(source.path).rstrip("/"):
        raise OutputExistsError.is_input(name)
    paths = source.paths if isinstance(source, ParquetCollection) else []
    for path in (inner_path(source.path).rstrip("/"), *paths):
        if path == out or path.startswith(f"{out}/") or (out.startswith(f"{path}/")):
            raise OutputExistsError(f"The output {name!r} and the input {path!r} are nested. Hint: write it elsewhere.")


@contextlib.contextmanager
def _staging(name: str) -> Iterator[Path]:
    """A private folder under a name that another run of the same output finds; it is removed when the output is complete."""
    mark = hashlib.blake2b(f"{os.geteuid()} {name}".encode(), digest_size=8).hexdigest()
    staging = Path(tempfile.gettempdir()) / f"embridge-{mark}"
    with claim(Output(staging, folder=True), resume=True), writing(name):
        with contextlib.suppress(FileExistsError):
            os.mkdir(staging, 0o700)
        check_own_folder(staging, 0o700)
        yield staging
        shutil.rmtree(staging)


def _convert_object(task: Task, to: str, local: Path, bad_path: Path, *, lists: bool, may_be_empty: bool = False) -> Conversion:
    """Convert one file locally and upload it; with `lists` its list of bad rows is uploaded beside it."""
    if (found := _already_there(task, to)) is not None:
        discard(local)
        return found
    if task.backend is not None:
        place = Place(shown(to), cast(ParquetCollection, task.source), to, beside(to, ".bad.parquet"))
        [found] = convert_places(task, [place], [None], None, {}, lambda _name, _mark: None, may_be_empty=False)
        try:
            task.check_source()
        except ChangedSourceError:
            remove(to)
            remove(place.bad)
            raise
        return found
    found = finished_file(task, local) if task.resume else None  # finished, but not uploaded
    if found is None:
        local.unlink(missing_ok=True)
        found = convert_file(task, local, bad_path=bad_path, may_be_empty=may_be_empty)
    if lists:
        _put_list(bad_path, to)
    upload(local, to)
    local.unlink()
    return found


def _already_there(task: Task, to: str) -> Conversion | None:
    """The record of an object that an earlier run of the same task has uploaded, with `resume`."""
    if not task.resume or task.overwrite or not exists(to):
        return None
    found = task.already_done(to)
    if found is None:
        raise OutputExistsError.at(to)
    return found


def _put_list(path: Path, to: str) -> None:
    there = beside(to, ".bad.parquet")
    if path.exists():
        upload(path, there)
    else:
        remove(there)


def _convert_folder(task: Task, name: str, staging: Path) -> Conversion:
    started = time.perf_counter()
    files = files_of(task)
    names = [relative for relative, _ in files]
    before = _check_objects(task, name, names)
    is_whole = set(before.files) == set(names) and _UNKNOWN not in before.files.values() and before.lineage == task.lineage
    if is_whole and task.resume and not task.overwrite and (found := task.already_done(name)) is not None:
        return found
    _put_manifest(Manifest(dict.fromkeys({*names, *before.files}, _UNKNOWN) | dict(before.files), task.lineage), name, staging)
    sides = staging / "bad"
    sides.mkdir(exist_ok=True)
    marks: dict[str, tuple[int, str]] = {}

    def one(number: int, relative: str, part: Task) -> Conversion:
        part = replace(part, overwrite=task.overwrite, resume=task.resume or task.overwrite)
        local = staging / "files" / relative
        local.parent.mkdir(parents=True, exist_ok=True)
        return _convert_object(
            part, beside(name, f"/{relative}"), local, sides / f"{number}.parquet", lists=False, may_be_empty=True
        )

    done = each_file(task, files, one) if task.backend is None else _files_on_ray(task, name, files, sides)
    check_rows(done, task)
    task.check_source()
    join_bad_rows(staging / "bad.parquet", bad_lists(files, sides))
    _put_list(staging / "bad.parquet", name)
    for relative in names:
        marks[relative] = fingerprint_at(beside(name, f"/{relative}"))
    for relative in set(before.files) - set(names):
        remove(beside(name, f"/{relative}"))
    _put_manifest(Manifest(marks, task.lineage), name, staging)
    return sum_of(done, task, name, ParquetCollection(name).fingerprint(), started)


def _files_on_ray(task: Task, name: str, files: Files, sides: Path) -> list[Conversion]:
    """Convert files as tasks, which upload them. Lists of bad rows are hidden objects until all files are there."""
    places = [
        Place(relative, part, beside(name, f"/{relative}"), beside(name, f"/{_LISTS}/{number}.parquet"))
        for number, (relative, part) in enumerate(files)
    ]
    earlier: list[Conversion | None] = []
    for number, place in enumerate(places):
        found = _already_there(replace(task, source=place.part), place.target)
        is_whole = found is None or not found.skipped or exists(place.bad) or (sides / f"{number}.parquet").exists()
        earlier.append(found if is_whole else None)
    done = convert_places(task, places, earlier, None, {}, lambda _name, _mark: None, may_be_empty=True)
    for number, place in enumerate(places):
        if done[number].skipped and exists(place.bad):
            (sides / f"{number}.parquet").write_bytes(read_object(place.bad))
        remove(place.bad)
    return done


def _check_objects(task: Task, name: str, names: list[str]) -> Manifest:
    """The existing manifest. Refuses to replace, or to write beside, objects that it does not name."""
    found = list_objects(name)
    if not found:
        return Manifest({})
    where = beside(name, f"/{MANIFEST}")
    if not task.overwrite and not task.resume:
        raise OutputExistsError.at(name)
    if MANIFEST not in found:
        raise OutputExistsError(
            f"{name!r} has no manifest ({MANIFEST}), so embridge did not write it and does not replace it. Hint: give another name."
        )
    manifest = Manifest.loads(read_object(where), where)
    for relative in found:
        there = beside(name, f"/{relative}")
        if relative not in manifest.files:
            if relative in names or (relative.lower().endswith((".parquet", ".pq", ".parq")) and _is_visible(relative)):
                raise OutputExistsError(f"{there!r} was not written by embridge, and would be replaced or read with the output.")
        elif manifest.files[relative] != _UNKNOWN and fingerprint_at(there) != manifest.files[relative]:
            raise OutputExistsError(f"{there!r} was altered since embridge wrote it, so it is not replaced. Hint: move it away.")
        elif manifest.files[relative] == _UNKNOWN and ParquetCollection(there).lineage.get("map") != manifest.lineage.get("map"):
            raise OutputExistsError(f"{there!r} was not written by embridge, so it is not replaced. Hint: move it away.")
    return manifest


def _is_visible(name: str) -> bool:
    return not any(part.startswith((".", "_")) for part in name.split("/"))


def _put_manifest(manifest: Manifest, name: str, staging: Path) -> None:
    path = staging / MANIFEST
    path.write_bytes(manifest.dumps())
    upload(path, beside(name, f"/{MANIFEST}"))
