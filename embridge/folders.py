"""A folder as an output: a manifest lists the files that embridge wrote, and only these are replaced or removed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from embridge.errors import InterruptedOutputError, OutputError, OutputExistsError, UnreadableFileError
from embridge.files import fingerprint, sync_folder, whole_or_absent

MANIFEST = "_embridge.json"
_FORMAT = "embridge.folder.1"
_DATA = (".parquet", ".pq", ".parq")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_TEMPORARY = re.compile(r"^(.*/)?\.([^/]+)\.\d+-[0-9a-f-]+\.tmp$")
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@dataclass(frozen=True)
class Manifest:
    """The files that embridge wrote into a folder.

    Attributes
    ----------
    files : dict of str to (int, str)
        Size and fingerprint by path below the folder. An unfinished remote output has (-1, "").
    lineage : dict of str to str
        Fingerprints of the inputs of the files.
    """

    files: Mapping[str, tuple[int, str]]
    lineage: Mapping[str, str] = field(default_factory=dict)

    def dumps(self) -> bytes:
        """As JSON, the same bytes for the same content."""
        files = {name: {"size": size, "fingerprint": mark} for name, (size, mark) in sorted(self.files.items())}
        return json.dumps({"format": _FORMAT, "lineage": dict(self.lineage), "files": files}, indent=1).encode()

    @classmethod
    def loads(cls, data: bytes, where: str) -> Manifest:
        """From JSON.

        Raises
        ------
        UnreadableFileError
            It is not a manifest, or it names paths outside of the folder.
        """
        try:
            values = json.loads(data)
            if values["format"] != _FORMAT:
                raise UnreadableFileError.foreign(where, "a manifest of embridge", f"the format {_FORMAT!r}")
            files = {name: (entry["size"], entry["fingerprint"]) for name, entry in values["files"].items()}
            lineage = dict(values["lineage"].items())
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
            raise UnreadableFileError.at(where, "a manifest of embridge", e) from e
        for name, (size, mark) in files.items():
            parts = PurePosixPath(name).parts
            if not parts or parts[0] == "/" or ".." in parts or type(size) is not int or not isinstance(mark, str):
                raise UnreadableFileError.at(where, "a manifest of embridge", f"{name!r} is not a file below it")
        return cls(files, lineage)


def write_manifest(folder: Path, names: Iterable[str], lineage: Mapping[str, str]) -> str:
    """Write the manifest of the files `names` in `folder`; its own fingerprint."""
    files = {name: (os.path.getsize(folder / name), fingerprint(folder / name)) for name in names}
    with whole_or_absent(folder / MANIFEST) as temporary:
        temporary.write_bytes(Manifest(files, lineage).dumps())
    return fingerprint(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where it has none.

    Raises
    ------
    UnreadableFileError
    """
    try:
        descriptor = os.open(folder / MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise UnreadableFileError.at(str(folder / MANIFEST), "a manifest of embridge", e) from e
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableFileError.at(str(folder / MANIFEST), "a manifest of embridge", "it is not a regular file")
    with open(descriptor, "rb") as file:
        return Manifest.loads(file.read(), str(folder / MANIFEST))


def entries(folder: Path, below: str = "") -> Iterator[tuple[str, bool]]:
    """All that is in a folder as (path, whether it is a folder), folders after their content; links are not followed."""
    with os.scandir(folder / below) as found:
        names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
    for name, is_folder in names:
        path = f"{below}/{name}" if below else name
        if is_folder:
            yield from entries(folder, path)
        yield path, is_folder


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder with files that embridge did not write, where they would be lost or read as data.

    Raises
    ------
    OutputExistsError
        The folder is a link or has no manifest, a listed file was altered, or a Parquet file is not listed.
    UnreadableFileError
        The manifest is damaged.
    """
    if folder.is_symlink():
        raise OutputExistsError(f"{str(folder)!r} is a link to a folder, so it is not replaced. Hint: name the folder itself.")
    manifest = read_manifest(folder)
    if manifest is None:
        if next(entries(folder), None) is None:
            return
        raise OutputExistsError(
            f"{str(folder)!r} has no manifest ({MANIFEST}), so embridge did not write it and does not replace it. "
            "Hint: give another name, or move the folder away."
        )
    for name, is_folder in entries(folder):
        if name in manifest.files:
            if not _is_listed(folder, name, manifest):
                raise OutputExistsError(
                    f"{str(folder / name)!r} was altered since embridge wrote it, so it is not replaced. Hint: move it away."
                )
        elif not is_folder and _is_data(folder, name):
            raise OutputExistsError(
                f"{str(folder / name)!r} was not written by embridge, and would be read with the output. Hint: move it away."
            )


def _is_listed(folder: Path, name: str, manifest: Manifest) -> bool:
    """True where a file is the one listed in the manifest."""
    found = os.stat(folder / name, follow_symlinks=False)
    size, mark = manifest.files[name]
    return stat.S_ISREG(found.st_mode) and found.st_size == size and fingerprint(folder / name) == mark


def _is_data(folder: Path, name: str) -> bool:
    """True where a reader of the folder reads a file as rows: a Parquet file whose path has no part that begins with . or _."""
    if any(part.startswith((".", "_")) for part in name.split("/")):
        return False
    if name.lower().endswith(_DATA):
        return True
    if not stat.S_ISREG(os.stat(folder / name, follow_symlinks=False).st_mode):
        return False
    with open(folder / name, "rb") as file:
        return file.read(4) == b"PAR1"


def adopt(folder: Path, new: Path) -> None:
    """Give `new` a second link to each file of `folder` that embridge did not write, so that the file is never missing.

    Where a file cannot have two links, `settle` moves it.

    Raises
    ------
    OutputExistsError
        `new` has another file of that name.
    """
    manifest = read_manifest(folder)
    listed = {MANIFEST, *(manifest.files if manifest else ())}
    for name, is_folder in entries(folder):
        if name in listed:
            continue
        try:
            make_folders(new, name if is_folder else name.rpartition("/")[0])
            if not is_folder:
                os.link(folder / name, new / name, follow_symlinks=False)
        except FileExistsError as e:
            if is_folder or not _is_same(folder / name, new / name):
                raise OutputExistsError(f"{str(folder / name)!r} is in the place of an output. Hint: move it away.") from e
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, *_UNSUPPORTED):
                raise


def exchange(new: Path, folder: Path, old: Path) -> None:
    """Give `new` the name `folder`, whose content gets the name `old`: atomically, where the file system can."""
    if _swap(new, folder):
        os.rename(new, old)
    else:
        os.rename(folder, old)
        os.rename(new, folder)
    sync_folder(folder.absolute().parent)


def _swap(one: Path, other: Path) -> bool:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), os.fspath(other))


def settle(old: Path, folder: Path) -> None:
    """Clear a folder that was replaced: files of its manifest are removed, all others move to their place in `folder`.

    It can be interrupted at any moment and called again: the manifest is removed last.

    Raises
    ------
    OutputError
        A file cannot move, since another one has its name; it stays.
    """
    manifest = read_manifest(old) or Manifest({})
    for name, is_folder in entries(old):
        if name == MANIFEST:
            continue
        if is_folder:
            make_folders(folder, name) if name not in _parents(manifest.files) else None
            os.rmdir(old / name)
        elif name in manifest.files and _is_listed(old, name, manifest):
            os.unlink(old / name)
        elif not os.path.lexists(folder / name):
            make_folders(folder, name.rpartition("/")[0])
            os.rename(old / name, folder / name)
        elif _is_same(old / name, folder / name):
            os.unlink(old / name)
        else:
            raise OutputError(
                f"{str(old / name)!r} cannot be moved back to {str(folder / name)!r}, which exists already. Hint: move it."
            )
    (old / MANIFEST).unlink(missing_ok=True)
    os.rmdir(old)


def _parents(names: Iterable[str]) -> set[str]:
    return {str(parent) for name in names for parent in PurePosixPath(name).parents}


def _is_same(one: Path, other: Path) -> bool:
    return os.path.samestat(os.stat(one, follow_symlinks=False), os.stat(other, follow_symlinks=False))


def make_folders(folder: Path, below: str) -> None:
    """Make the folders of a path below `folder`, none of which may be a link."""
    for path in [*reversed(PurePosixPath(below).parents), PurePosixPath(below)]:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder / path)
        if not stat.S_ISDIR(os.stat(folder / path, follow_symlinks=False).st_mode):
            raise OutputExistsError(f"{str(folder / path)!r} is not a folder. Hint: move it away.")


def remove_known(folder: Path, known: Iterable[str], *, twins: Path | None = None, keep: Iterable[str] | None = None) -> None:
    """Remove from a working folder the files `known` by their paths, temporary files of these, and links to files of `twins`.

    With `keep` these files and the folder stay; else the folder is removed too. A missing folder is ignored.

    Raises
    ------
    InterruptedOutputError
        It holds other files; they stay.
    """
    if not os.path.lexists(folder):
        return
    check_own_folder(folder)
    names, kept = set(known), None if keep is None else set(keep)
    found = list(entries(folder))
    for name, is_folder in found:
        is_twin = twins is not None and os.path.lexists(twins / name) and _is_same(folder / name, twins / name)
        if not is_folder and name not in names and without_mark(name) not in names and not is_twin:
            raise InterruptedOutputError(f"{str(folder / name)!r} was not written by embridge. Hint: move it away.")
    for name, is_folder in found:
        if not is_folder and (kept is None or name not in kept):
            os.unlink(folder / name)
        elif is_folder and kept is None:
            os.rmdir(folder / name)
    if kept is None:
        os.rmdir(folder)


def without_mark(name: str) -> str:
    """The name that a temporary file (`embridge.files.whole_or_absent`) was to get; any other name as it is."""
    return _TEMPORARY.sub(r"\1\2", name)


def check_own_folder(folder: Path, mode: int | None = None) -> None:
    """Refuse a working folder under a predictable name that is not ours.

    Raises
    ------
    InterruptedOutputError
        It is a link or not a folder, belongs to another user, or is writable by others (with `mode`: has other rights).
    """
    found = os.stat(folder, follow_symlinks=False)
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != os.geteuid()
        or (mode is not None and stat.S_IMODE(found.st_mode) != mode)
    ):
        raise InterruptedOutputError(f"{str(folder)!r} is not a folder that embridge made for this user. Hint: move it away.")
