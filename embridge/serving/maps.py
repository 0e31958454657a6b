"""The maps in force, by name, the conversions that they offer, and their reload when a file changes."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embridge.arrays import unit
from embridge.errors import EmbridgeError, MapError, ParameterError
from embridge.maps import KernelMap, Map, load_map
from embridge.maps.queries import project_queries
from embridge.serving.logs import log
from embridge.serving.media import checked
from embridge.serving.metrics import Metrics
from embridge.serving.problems import Problem
from embridge.types import Metric, Space

QUERY, DOCUMENT = "query", "document"
Signature = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Conversion:
    """One use of a map.

    Attributes
    ----------
    map : str
        Its name.
    translation : LinearMap or KernelMap
    source, target : Space
        Of the vectors that go in and come out.
    role : str
        ``query`` or ``document``. The adjoint of a map converts queries only.
    """

    map: str
    translation: Map
    source: Space
    target: Space
    role: str = QUERY

    @property
    def name(self) -> str:
        """Its name as a model, which begins with the space of the vectors that come out."""
        return f"{self.target.name}/{self.map}/{self.role}"

    @property
    def is_adjoint(self) -> bool:
        """True where queries go against the direction of the map."""
        return not self.translation.target.same_as(self.target)

    @property
    def rank(self) -> int:
        """Lower is better for queries: a map fitted for them, another map, an adjoint."""
        return 2 if self.is_adjoint else int(self.translation.record.role != "queries")

    def apply(self, vectors: np.ndarray, what: str = "vectors") -> np.ndarray:
        """Convert checked vectors, of shape (n, source.dim); float32, of unit length where the target space is normalized.

        Raises
        ------
        Problem
            A row of the result cannot be used, with its number.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # rows that overflow are found below
            out = project_queries(vectors, self.translation, self.target)
        cosine = self.target.metric == Metric.COSINE
        checked(out, replace(self.target, metric=Metric.COSINE) if cosine else self.target, what, " after the translation")
        return unit(out) if self.is_adjoint and self.target.normalized else out

    def facts(self) -> dict[str, Any]:
        """The space and the map, as in answers."""
        return {"space": self.target.to_dict(), "map": {"name": self.map, "fingerprint": self.translation.fingerprint}}


@dataclass(frozen=True, eq=False)
class ServedMap:
    """A map and the file that it came from.

    Attributes
    ----------
    name, path : str
    translation : LinearMap or KernelMap
    signature : tuple of int
        Of the file when it was read.
    loaded : float
        Time of the file's last change, in seconds since 1970.
    fault : str
        Why a newer file is not used; empty where there is none.
    """

    name: str
    path: str
    translation: Map
    signature: Signature | None
    fault: str = ""

    @property
    def conversions(self) -> list[Conversion]:
        """What it can convert: queries and documents in its direction, and queries against it where it has an adjoint."""
        source, target = self.translation.source, self.translation.target
        found = [Conversion(self.name, self.translation, source, target, role) for role in (QUERY, DOCUMENT)]
        if self.has_adjoint and not source.same_as(target):
            found.append(Conversion(self.name, self.translation, target, source, QUERY))
        return found

    @property
    def has_adjoint(self) -> bool:
        """True where queries of its target can be projected into its source."""
        translation = self.translation
        if isinstance(translation, KernelMap):
            return False
        return translation.source.metric != Metric.L2 or translation.isometry_scale is not None


def signature(path: str) -> Signature | None:
    """What changes when a file is replaced or written; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


class Maps:
    """The maps of a service. A request takes each map once, so that a reload never changes it midway.

    Parameters
    ----------
    paths : dict of str to str
        Files by name.
    metrics : Metrics

    Raises
    ------
    MissingFileError, UnreadableFileError
        A file is not a map.
    """

    def __init__(self, paths: dict[str, str], metrics: Metrics) -> None:
        self._metrics, self._lock = metrics, threading.Lock()
        self._maps = {name: self._load(name, path) for name, path in paths.items()}
        self._show()

    def _load(self, name: str, path: str) -> ServedMap:
        before = signature(path)
        return ServedMap(name, path, load_map(path), before)

    def __iter__(self) -> Any:
        return iter(list(self._maps.values()))

    def __len__(self) -> int:
        return len(self._maps)

    def conversions(self) -> list[Conversion]:
        """Those of all maps."""
        return [conversion for served in self for conversion in served.conversions]

    def conversion(self, name: str | None, space: str | None) -> Conversion:
        """The conversion of a map, by default of the only one, into a space, by default its target.

        Raises
        ------
        Problem
        """
        names = ", ".join(map(repr, self._maps)) or "none"
        if name is None and len(self._maps) != 1:
            raise Problem.invalid(f"Several maps are served; name one of {names}.", "map", "map_needed")
        if name is not None and name not in self._maps:
            raise Problem(404, "map_not_found", f"There is no map {name[:100]!r}. Maps: {names}.", "map")
        served = self._maps[name] if name is not None else next(iter(self._maps.values()))
        found = served.conversions
        chosen = next((c for c in found if space is None or c.target.name == space), None)
        if chosen is None:
            spaces = " or ".join(sorted({repr(c.target.name) for c in found}))
            adjoint = "" if served.has_adjoint else " It has no adjoint, so it works in one direction only."
            raise Problem.invalid(f"The map {served.name!r} leads to {spaces}, not to {str(space)[:100]!r}.{adjoint}", "to")
        return chosen

    def projection(self, space: Space, name: str | None) -> Conversion | None:
        """The conversion of queries into a space: that of a named map, else the best one; None where there is none.

        Raises
        ------
        Problem
            The named map does not lead there, or several are equally good.
        """
        into = [c for c in self.conversions() if c.role == QUERY and c.target.same_as(space)]
        if name is not None:
            self.conversion(name, None)
            into = [c for c in into if c.map == name]
            if not into:
                raise Problem.invalid(f"The map {name!r} does not lead to {space.name!r}.", "map", "space_mismatch")
        best = [c for c in into if c.rank == min(other.rank for other in into)]
        if len(best) > 1:
            named = ", ".join(repr(c.map) for c in best)
            raise Problem.invalid(f"Several maps project queries to {space.name!r}: {named}. Name one.", "map", "map_needed")
        return best[0] if best else None

    def reload(self) -> None:
        """Read again the files that changed. One that cannot be used leaves its map as it is, with an error in log and metrics."""
        with self._lock:
            for served in list(self._maps.values()):
                present = signature(served.path)
                if present == served.signature:
                    continue
                try:
                    made = self._load(served.name, served.path)
                    _check_spaces(served.translation, made.translation)
                except (EmbridgeError, OSError) as e:
                    self._replace(replace(served, signature=present, fault=str(e)), "failed")
                    log(logging.ERROR, "reload failed", map=served.name, path=served.path, reason=str(e))
                    continue
                self._replace(made, "done")
                before, after = served.translation.fingerprint, made.translation.fingerprint
                log(logging.INFO, "reloaded", map=served.name, path=served.path, before=before, fingerprint=after)

    def _replace(self, served: ServedMap, result: str) -> None:
        self._maps = self._maps | {served.name: served}
        self._metrics.reloads.labels("map", served.name, result).inc()
        self._show()

    def _show(self) -> None:
        self._metrics.maps.clear()
        for served in self._maps.values():
            translation = served.translation
            spaces = (translation.source.name, translation.target.name)
            self._metrics.maps.labels(served.name, translation.fingerprint, *spaces, translation.record.method).set(1)


def _check_spaces(old: Map, new: Map) -> None:
    if (old.source, old.target) != (new.source, new.target):
        old_ends, new_ends = (f"{m.source.name!r} -> {m.target.name!r}" for m in (old, new))
        raise MapError(
            f"The new map leads {new_ends}, and the old one {old_ends}: spaces or their metrics differ. Hint: restart the service."
        )


def check_names(maps: Maps) -> None:
    """Check that no two conversions have one name.

    Raises
    ------
    ParameterError
    """
    names = [conversion.name for conversion in maps.conversions()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ParameterError(f"Two models would have the name {repeated[0]!r}. Hint: give the maps other names, NAME=PATH.")
