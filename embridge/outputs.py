"""The protocol of outputs: list every path that will be touched, check all of them against all inputs, hold a lock."""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import fnmatch
import glob
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from embridge.errors import InterruptedOutputError, MissingFileError, OutputExistsError, ParameterError
from embridge.files import remove_dead, whole_or_absent, writing
from embridge.folders import check_replaceable

# Side files by kind of output: suffixes of the output's name. Every side file must be listed here.
FILE: tuple[str, ...] = ()
INDEX = (".json", ".ids.parquet")
ON_DISK = (*INDEX, ".parts")  # an index whose inverted lists are in another file; that file is named by its content
DECODER = (".json",)
CONVERSION = (".bad.parquet", ".journal", ".partial", ".partial.bad", ".partial.old", ".tasks")
ENCODING = (".parts", ".tasks")
_WORKING = (*CONVERSION[1:], *ENCODING)  # of an unfinished run; resume and overwrite check its journal
_SIDECARS = (*INDEX, ".wal")  # of an input: an index's, and the log of a DuckDB file
_TRIES = 50


@dataclass(frozen=True)
class Output:
    """A file or folder that a verb will write, with its side files.

    Attributes
    ----------
    path : str or path-like
    sides : tuple of str
        Suffixes of side files: `FILE`, `INDEX`, `DECODER`, `CONVERSION`, `ENCODING`.
    folder : bool
        The output is a folder.
    """

    path: str | os.PathLike[str]
    sides: tuple[str, ...] = FILE
    folder: bool = False

    @property
    def target(self) -> Path:
        """The path of the output itself."""
        return Path(self.path)

    @property
    def touched(self) -> tuple[Path, ...]:
        """Every path that writing may create, replace or remove."""
        target = self.target
        return (target, *(target.with_name(target.name + suffix) for suffix in self.sides), _lock_path(target))


def check_outputs(
    *outputs: Output, inputs: Iterable[str | os.PathLike[str] | None] = (), overwrite: bool = False, resume: bool = False
) -> None:
    """Refuse outputs that may not be written, before any work is done.

    Parameters
    ----------
    outputs : Output
    inputs : iterable of path, glob or None
        Everything that the verb reads. Sidecars of an input (``X.json``, ``X.ids.parquet``) count as inputs; remote locations are
        checked by the caller.
    overwrite : bool, default False
        An output that exists may be replaced.
    resume : bool, default False
        The caller checks an existing output.

    Raises
    ------
    OutputExistsError
        It exists and may not be replaced; it is a folder where a file is written, or vice versa; or a path that will be
        touched is, contains, or is inside an input or another output, after links are resolved.
    MissingFileError
        Its folder does not exist.
    ParameterError
        It has no file name.
    """
    for output in outputs:
        _check_name(output)
    _check_apart(outputs)
    given = [os.fspath(path) for path in inputs if path is not None]
    found = _Inputs.of(given)
    patterns = [path for path in given if glob.has_magic(path) and not os.path.exists(path) and "://" not in path]
    for output in outputs:
        for touched in output.touched:
            found.check(touched)
        names = os.path.realpath(output.path).split("/")
        if any(_matches(os.path.realpath(pattern).split("/"), names, output.folder) for pattern in patterns):
            raise OutputExistsError(f"{str(output.path)!r} would become part of its own input. Hint: write it elsewhere.")
        _check_existing(output, overwrite=overwrite, resume=resume)


@contextlib.contextmanager
def claim(
    *outputs: Output, inputs: Iterable[str | os.PathLike[str] | None] = (), overwrite: bool = False, resume: bool = False
) -> Iterator[list[Path]]:
    """Lock outputs for this call, check them (`check_outputs`) under the lock, and yield their paths.

    The lock is a file ``.NAME.lock`` beside each output. The system releases it when the process ends, and the next process takes
    over a leftover file. Readers need no lock: outputs appear by a rename.

    Raises
    ------
    InterruptedOutputError
        Another call, in this process or another, is writing one of them.
    OutputExistsError, MissingFileError, ParameterError
        As `check_outputs`.
    """
    inputs = list(inputs)
    for output in outputs:
        _check_name(output)
    _check_apart(outputs)
    with contextlib.ExitStack() as stack:
        for target in sorted(output.target for output in outputs):
            stack.enter_context(locked(target))
        for path in {path for output in outputs for path in output.touched}:
            remove_dead(path)
        check_outputs(*outputs, inputs=inputs, overwrite=overwrite, resume=resume)
        yield [output.target for output in outputs]


@contextlib.contextmanager
def replacing(
    *outputs: Output, inputs: Iterable[str | os.PathLike[str] | None] = (), overwrite: bool = False
) -> Iterator[list[Path]]:
    """Claim outputs and yield a temporary file for each; all of them get their names when the block ends, or none does.

    Raises
    ------
    InterruptedOutputError, OutputExistsError, MissingFileError, ParameterError
        As `claim`.
    DiskFullError, OutputError
        As `embridge.files.whole_or_absent`.
    """
    with claim(*outputs, inputs=inputs, overwrite=overwrite) as targets, contextlib.ExitStack() as stack:
        yield [stack.enter_context(whole_or_absent(target)) for target in targets]


def _lock_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


@contextlib.contextmanager
def locked(target: Path, name: str | None = None) -> Iterator[None]:
    """Hold the lock of an output, which messages call `name`.

    Raises
    ------
    InterruptedOutputError
        Another call, in this process or another, holds it.
    """
    path, name = _lock_path(target), name or str(target)
    with writing(name):
        descriptor = _lock(path, name)
    try:
        yield
    finally:
        path.unlink(
            missing_ok=True
        )  # while the lock is held: a process that opened it meanwhile sees that it was removed, and retries
        os.close(descriptor)


def _lock(path: Path, name: str) -> int:
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OutputExistsError(f"{str(path)!r} is not a regular file, and a lock is needed there. Hint: move it away.")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError as e:
            os.close(descriptor)
            raise _busy(name) from e
        except FileNotFoundError:  # its owner removed it between our opening and locking
            pass
        os.close(descriptor)
    raise _busy(name)


def _busy(name: str) -> InterruptedOutputError:
    return InterruptedOutputError(f"Another process is writing {name!r}. Hint: wait for it, or give another output.")


def _check_name(output: Output) -> None:
    path = os.fspath(output.path)
    if "://" in path:
        raise ParameterError(f"{path!r} is a remote location, and this output is a local file. Hint: give a local path.")
    if not _is_path(path) or not output.target.name or output.target.name == "..":
        raise ParameterError(f"An output needs a file name. Got {path!r} instead.")
    if not output.target.parent.is_dir():
        raise MissingFileError.at(str(output.target.parent))


def _check_apart(outputs: tuple[Output, ...]) -> None:
    """Check that no two outputs touch one path, and that none is inside another."""
    seen: list[str] = []
    for output in outputs:
        own = [os.path.realpath(path) for path in output.touched]
        for path in own:
            if any(_overlap(path, other) for other in seen):
                raise OutputExistsError(f"{str(output.path)!r} is the name of two outputs. Hint: give each its own.")
        seen.extend(own)


@dataclass(frozen=True)
class _Inputs:
    """All paths that a verb reads, links resolved."""

    names: dict[str, str]
    files: dict[tuple[int, int], str]
    in_order: list[str]

    @classmethod
    def of(cls, given: Iterable[str]) -> _Inputs:
        found = {os.path.realpath(one): one for path in given for one in _input_paths(path)}
        marks = {(s.st_dev, s.st_ino): one for path, one in found.items() if os.path.isfile(path) for s in [os.stat(path)]}
        return cls(found, marks, sorted(found))

    def check(self, touched: Path) -> None:
        """Refuse a path that is an input, contains one, is inside one, or shares a file with one."""
        real = os.path.realpath(touched)
        if real in self.names:
            raise OutputExistsError.is_input(str(touched))
        below = bisect.bisect_left(self.in_order, real.rstrip("/") + "/")
        inside = self.in_order[below : below + 1]
        for other in (*(str(parent) for parent in Path(real).parents), *inside):
            if other in self.names and _overlap(real, other):
                raise OutputExistsError(
                    f"The output {str(touched)!r} and the input {self.names[other]!r} are nested. Hint: write it elsewhere."
                )
        inside = (os.path.join(folder, name) for folder, _, names in os.walk(real) for name in names)
        for path in inside if os.path.isdir(real) else (real,):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found = os.stat(path, follow_symlinks=False)
                if (found.st_dev, found.st_ino) in self.files:
                    raise OutputExistsError.is_input(path)


def _matches(pattern: list[str], names: list[str], is_folder: bool) -> bool:
    """True where a glob matches a path, or may match something inside it, by their parts."""
    if not names:
        return is_folder or all(part == "**" for part in pattern)
    if not pattern:
        return False
    if pattern[0] == "**":
        return any(_matches(pattern[1:], names[i:], is_folder) for i in range(len(names) + 1))
    return fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(pattern[1:], names[1:], is_folder)


def _overlap(one: str, other: str) -> bool:
    """True where one path is the other, or is inside it."""
    return one == other or one.startswith(other.rstrip("/") + "/") or other.startswith(one.rstrip("/") + "/")


def _is_path(path: str) -> bool:
    """True where the system allows a file of this name."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeError:
        return False


def _input_paths(path: str) -> list[str]:
    """A local input as paths: itself, the files behind a glob or in a folder, and sidecars."""
    if not _is_path(path) or ("://" in path and not path.startswith("file://")):
        return []
    path = path.removeprefix("file://")
    if not os.path.exists(path) and glob.has_magic(path):
        return [one for match in glob.glob(path, recursive=True) for one in _input_paths(match)]
    if os.path.isdir(path):
        return [path, *(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)]
    return [path, *(path + suffix for suffix in _SIDECARS if os.path.exists(path + suffix))]


def _check_existing(output: Output, *, overwrite: bool, resume: bool) -> None:
    target = output.target
    if target.is_dir() and not output.folder:
        raise OutputExistsError(f"{str(output.path)!r} is a folder, and the output is a file. Hint: give the name of a file.")
    if os.path.lexists(target) and not target.is_dir() and output.folder:
        raise OutputExistsError(f"{str(output.path)!r} is a file, and the output is a folder. Hint: give another name.")
    if output.folder and overwrite and target.is_dir():
        check_replaceable(target)
    for path in (target, *(target.with_name(target.name + suffix) for suffix in output.sides if suffix not in _WORKING)):
        if not os.path.lexists(path):
            continue
        if not overwrite and not resume:
            raise OutputExistsError.at(str(path))
        if path != target or not output.folder:
            mode = os.stat(path, follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
                raise OutputExistsError(f"{str(path)!r} is not a regular file, so it is not replaced. Hint: give another name.")


__all__ = [
    "CONVERSION",
    "DECODER",
    "ENCODING",
    "FILE",
    "INDEX",
    "ON_DISK",
    "Output",
    "check_outputs",
    "claim",
    "locked",
    "replacing",
]
