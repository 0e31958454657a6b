"""Parts of an unfinished output (an encoding, an index on disk): a folder beside it, with a plan that describes the inputs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embridge.errors import InterruptedOutputError, OutputExistsError, UnreadableFileError
from embridge.files import fingerprint, whole_or_absent
from embridge.folders import check_own_folder, remove_known, without_mark

_PLAN = "_plan.json"  # readers ignore it
_PART = re.compile(r"part-(\d{6,})(?:-([0-9a-f]{32}))?\.(?:parquet|faiss)")


class Parts:
    """``OUT.parts``, created, or continued where its plan is the same; the caller has claimed the output.

    The name of a part includes its fingerprint, so alterations are detected.

    Parameters
    ----------
    folder : Path
    plan : dict
        Everything that determines the parts, as JSON.
    overwrite : bool
        Remove parts of another plan.
    kind : {"parquet", "faiss"}
        The extension of parts.

    Raises
    ------
    OutputExistsError
        The folder holds parts of another plan, or files that embridge did not write.
    InterruptedOutputError
        A part was altered, or embridge did not create the folder.
    UnreadableFileError
        The plan is damaged.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], *, overwrite: bool, kind: str = "parquet") -> None:
        self.folder, self._kind = folder, kind
        if os.path.lexists(folder):
            check_own_folder(folder)
            found = _read_plan(folder / _PLAN)
            if found is not None and found != plan and not overwrite:
                differ = ", ".join(k for k in {**plan, **found} if plan.get(k) != found.get(k))
                raise OutputExistsError(
                    f"{str(folder)!r} holds parts of an interrupted run that differs in: {differ}. "
                    "Hint: repeat that run to finish it, or use --overwrite to start again."
                )
            if found is None and any(name != _PLAN and not name.startswith(f".{_PLAN}.") for name in os.listdir(folder)):
                raise OutputExistsError(f"{str(folder)!r} is needed for parts, but holds other files. Hint: move it away.")
            if found != plan:
                self.remove()
        folder.mkdir(exist_ok=True)
        if not (folder / _PLAN).exists():
            with whole_or_absent(folder / _PLAN) as temporary:
                temporary.write_text(json.dumps(plan))
        named = [(name, match) for name in self._names() if (match := _PART.fullmatch(name))]
        self._whole = {int(match[1]): (name, match[2]) for name, match in named if match[2]}
        remove_known(folder, self._names(), keep=[_PLAN, *(name for name, _ in self._whole.values())])

    def find(self, number: int) -> Path | None:
        """An existing part, or None."""
        if number not in self._whole:
            return None
        name, mark = self._whole[number]
        if fingerprint(self.folder / name) != mark:
            raise InterruptedOutputError.altered(str(self.folder / name), "its content does not match the fingerprint in its name")
        return self.folder / name

    def new(self, number: int) -> Path:
        """The path to write a part to; `keep` renames it."""
        return self.folder / f"part-{number:06d}.{self._kind}"

    def keep(self, number: int) -> None:
        """Rename a completely written part."""
        path = self.new(number)
        whole = whole_part(self.folder, number, mark := fingerprint(path), self._kind)
        os.rename(path, whole)
        self._whole[number] = whole.name, mark

    def remove(self) -> None:
        """Remove the parts, then the plan, which marks the folder as ours, then the folder."""
        remove_known(self.folder, self._names(), keep=[_PLAN])
        remove_known(self.folder, [_PLAN])

    def _names(self) -> Iterable[str]:
        return [_PLAN, *(name for name in os.listdir(self.folder) if _PART.fullmatch(without_mark(name)))]


def whole_part(folder: Path, number: int, mark: str, kind: str = "parquet") -> Path:
    """The path of a completely written part."""
    return folder / f"part-{number:06d}-{mark}.{kind}"


def _read_plan(path: Path) -> dict[str, Any] | None:
    """The plan of a folder of parts; None where there is none."""
    if not path.is_file() or path.is_symlink():
        return None
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise UnreadableFileError.at(str(path), "the plan of an unfinished run", e) from e
    if not isinstance(found, dict) or not found.keys() & {"model", "factory"}:
        raise UnreadableFileError.foreign(str(path), "the plan of an unfinished run", "the model, or the factory of an index")
    return found
