"""The folder of a rollout: one immutable folder for its present stage, and a small file that names it.

``state.json`` names a folder ``stage-003-1a2b3c4d``, whose last part is a hash of its content. A step writes a whole new folder as
``.working``, renames it, replaces ``state.json`` and removes the old folder. Killed at any moment it leaves the old stage, or the
new one, and files that the next step removes. Readers open the folder that ``state.json`` names, and read again where a step
replaced it meanwhile (`reading`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from embridge.errors import EmbridgeError, InterruptedOutputError, MissingFileError, OutputError, UnreadableFileError
from embridge.files import fingerprint, sync_folder, whole_or_absent, writing
from embridge.folders import MANIFEST, check_own_folder, entries, read_manifest, write_manifest
from embridge.outputs import Output, claim
from embridge.records.rollout import RolloutStatus
from embridge.rollout.listed import LISTED
from embridge.rollout.rows import COLLECTION, LINK, MADE, check_rows_of, remove_unused

STATE, WORKING = "state.json", ".working"
MAP, QUERIES_MAP, MOMENTS = "map.safetensors", "queries-map.safetensors", "moments.safetensors"
QUERIES, QRELS, REACH, INDEX = "queries.parquet", "qrels.parquet", "reach.npy", "index.faiss"
INDEX_FILES = (INDEX, f"{INDEX}.json", f"{INDEX}.ids.parquet")
FILES = (COLLECTION, LINK, MAP, QUERIES_MAP, MOMENTS, QUERIES, QRELS, REACH, *INDEX_FILES, MANIFEST)
_NAMED_BY = (COLLECTION, LINK, QUERIES, QRELS, REACH)
_STAGE = "stage-"
_FORMAT = "embridge.rollout.1"
_LARGEST = 16 << 20  # bytes of state.json
_TRIES = 20
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class State:
    """The content of ``state.json``.

    Attributes
    ----------
    folder : str
        The folder of the present stage.
    lineage : dict of str to str
        Fingerprints of the collections and queries that the rollout was started with.
    factory : str
        FAISS factory string of the index; empty where there is none.
    seed : int
    status : RolloutStatus
    listed : str
        The file with the positions of rows that were listed to be encoded and are not native; empty where there are none.
    """

    folder: str
    lineage: dict[str, str]
    factory: str
    seed: int
    status: RolloutStatus
    listed: str = ""

    def is_start_of(self, lineage: dict[str, str], factory: str, seed: int) -> bool:
        """True for stage 0 of a rollout with these inputs: a start that was repeated after an interruption has nothing to do."""
        known = (self.status.stage, self.lineage, self.factory, self.seed)
        return known == (0, lineage, factory, seed)

    def dumps(self) -> bytes:
        """As JSON with a checksum, the same bytes for the same content."""
        values = {"format": _FORMAT, **asdict(self)}
        return json.dumps({"checksum": _checksum(values), **values}, indent=1, allow_nan=False).encode()

    @classmethod
    def loads(cls, data: bytes, where: str) -> State:
        """From JSON.

        Raises
        ------
        UnreadableFileError
            It is not the state of a rollout, or it was altered.
        """
        try:
            values = json.loads(data)
            if values.pop("checksum") != _checksum(values):
                raise UnreadableFileError.altered(where)
            if values.pop("format") != _FORMAT:
                raise UnreadableFileError.foreign(where, "the state of a rollout", f"the format {_FORMAT!r}")
            for name, start in ((values["folder"], _STAGE), (values["listed"] or LISTED, LISTED)):
                if not name.startswith(start) or "/" in name:
                    raise ValueError(f"{name!r} does not begin with {start!r}")
            return cls(**values | {"status": RolloutStatus.from_dict(values["status"])})
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
            raise UnreadableFileError.at(where, "the state of a rollout", e) from e


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_state(root: Path) -> State:
    """The state of a rollout.

    Raises
    ------
    MissingFileError
        There is no rollout at `root`.
    UnreadableFileError
        Its state is damaged.
    """
    path = root / STATE
    if not root.is_dir():
        raise MissingFileError(f"There is no rollout at {str(root)!r}. Hint: embridge rollout start.")
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise UnreadableFileError.foreign(str(root), "a rollout", STATE)
    return State.loads(path.read_bytes(), str(path))


def reading(root: Path, read: Callable[[State, Path], _Found]) -> _Found:
    """The result of `read` on the present stage; read again where a step replaced the stage meanwhile."""
    for _ in range(_TRIES):
        state = read_state(root)
        folder = root / state.folder
        try:
            check_stage(folder)
            return read(state, folder)
        except (EmbridgeError, OSError):
            if read_state(root).folder == state.folder:
                raise
    raise UnreadableFileError(f"{str(root)!r} changes repeatedly while it is read. Hint: try later.")


def check_stage(folder: Path, *, content: bool = False) -> None:
    """Check that all files of a stage are there with their sizes, and with `content` with their fingerprints.

    Raises
    ------
    UnreadableFileError
    """
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        raise UnreadableFileError.foreign(str(folder), "the stage of a rollout", MANIFEST)
    for name, (size, mark) in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size != size:
            raise UnreadableFileError(f"{str(path)!r} is missing or has another size than it was written with.")
        if content and fingerprint(path) != mark:
            raise UnreadableFileError.altered(str(path))
    if content:
        check_rows_of(folder)


@contextlib.contextmanager
def step(root: Path, *outputs: Output, inputs: list[str], overwrite: bool = False) -> Iterator[tuple[State, Path, Path]]:
    """Lock a rollout, remove what a killed step left, and yield its state, its stage, and an empty folder for the next one.

    Raises
    ------
    InterruptedOutputError
        Another process works on it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(claim(Output(root, folder=True), inputs=inputs, resume=True))
        if outputs:
            stack.enter_context(claim(*outputs, inputs=[*inputs, str(root)], overwrite=overwrite))
        state = read_state(root)
        check_stage(root / state.folder, content=True)
        with writing(root):
            clear(root, state)
            make_folder(root / WORKING)
        try:
            yield state, root / state.folder, root / WORKING
        finally:
            with writing(root):
                clear(root, read_state(root))


def clear(root: Path, state: State | None) -> None:
    """Remove stages and lists of rows other than those of `state`; files that embridge did not write stay, with their folder."""
    remove_unused(root, None if state is None else root / state.folder)
    kept = () if state is None else (state.folder, state.listed)
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        folder = Path(entry.path)
        if entry.name.removeprefix(".").startswith(LISTED) and entry.name not in kept and not entry.is_dir():
            folder.unlink()
        elif (entry.name == WORKING or entry.name.startswith(_STAGE)) and entry.name not in kept:
            check_own_folder(folder)
            for name, is_folder in list(entries(folder)):
                if not is_folder and _is_ours(name):
                    (folder / name).unlink()
            _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _is_ours(name: str) -> bool:
    """True for the files of a stage, and for the locks and temporary files of writing them."""
    base = name.removeprefix(".")
    return any(base == file or (base != name and base.startswith(f"{file}.")) for file in FILES)


def copy(stage: Path, working: Path, names: tuple[str, ...]) -> None:
    """Copy the files `names` that a stage has. Links would change the files' times, which tell readers that they were replaced."""
    for name in names:
        if (stage / name).exists():
            with whole_or_absent(working / name) as temporary:
                shutil.copyfile(stage / name, temporary)


def seal(working: Path, stage: int, lineage: dict[str, str]) -> str:
    """Finish a stage: write its manifest, and give the folder its name; returns the name.

    The name is a hash of rows, queries and counts, so that the same steps give the same name: an index is built in parallel, and
    safetensors writes its metadata in any order. Every step changes one of the hashed files.
    """
    names = [name for name in FILES if name != MANIFEST and (working / name).exists()]
    write_manifest(working, names, lineage)
    manifest = read_manifest(working)
    if manifest is None:
        raise OutputError(f"{str(working)!r} was removed while it was written.")
    digest = hashlib.blake2b(digest_size=4)
    for name in names:
        if name in _NAMED_BY:
            digest.update(f"{name} {manifest.files[name]}".encode())
    return f"stage-{stage:03d}-{digest.hexdigest()}"


def commit(root: Path, working: Path, state: State) -> None:
    """Make a sealed folder the present stage."""
    with writing(root):
        target = root / state.folder
        sync_folder(working)
        if read_state_or_none(root) is None or not target.exists():
            os.rename(working, target)
            sync_folder(root)
    replace_state(root, state)


def replace_state(root: Path, state: State) -> None:
    """Write ``state.json``."""
    with whole_or_absent(root / STATE) as temporary:
        temporary.write_bytes(state.dumps())


def read_state_or_none(root: Path) -> State | None:
    """The state, None before the first stage."""
    return read_state(root) if (root / STATE).exists() else None


def check_new(root: Path) -> Path:
    """Refuse to start a rollout over something else; returns the hidden folder in which it is built.

    Raises
    ------
    InterruptedOutputError
    """
    if os.path.lexists(root):
        raise InterruptedOutputError(f"{str(root)!r} exists already. Hint: give another name, or remove it.")
    building = root.with_name(f".{root.name}.start")
    discard(building)
    return building


def discard(building: Path) -> None:
    """Remove a rollout whose start was interrupted, if there is one; files that embridge did not write stay."""
    if os.path.lexists(building):
        check_own_folder(building)
        clear(building, None)
        for name, _ in list(entries(building)):
            if name in (STATE, MADE) or name.startswith((f".{STATE}.", f".{MADE}.")):
                (building / name).unlink()
        _remove_empty(building)


def make_folder(folder: Path) -> None:
    """Make a working folder.

    Raises
    ------
    InterruptedOutputError
        It is there, with files that embridge did not write.
    """
    try:
        folder.mkdir()
    except FileExistsError as e:
        raise InterruptedOutputError(f"{str(folder)!r} holds files that embridge did not write. Hint: move it away.") from e
