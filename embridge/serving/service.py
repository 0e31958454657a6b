"""All that the routes share: maps, encoders, what is searched, threads and metrics; and the reload of what changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from embridge.errors import EmbridgeError, ParameterError
from embridge.serving.encoders import Encoders
from embridge.serving.logs import log
from embridge.serving.maps import Conversion, Maps, check_names
from embridge.serving.metrics import Metrics
from embridge.serving.options import ServeOptions, named_paths
from embridge.serving.problems import Problem
from embridge.serving.query_log import QueryLog
from embridge.serving.targets import Target
from embridge.serving.workers import Workers
from embridge.types import Space


class Service:
    """What one service holds.

    Attributes
    ----------
    options : ServeOptions
    metrics : Metrics
    workers : Workers
    maps : Maps
    encoders : Encoders
    spaces : dict of str to Space
        All that occur, by name.
    targets : dict of str to Target
        What is searched, by name.
    query_log : QueryLog or None

    Raises
    ------
    ParameterError
        Nothing is served; two things have one name; an encoder, or a log of queries, that belongs to nothing served.
    EmbridgeError
        A file, store or model cannot be opened.
    """

    def __init__(self, options: ServeOptions) -> None:
        if not options.maps and not options.indexes:
            raise ParameterError("There is nothing to serve. Hint: embridge serve MAP..., or --index INDEX.")
        self.options, self.metrics = options, Metrics()
        self.workers = Workers(options.workers, options.max_concurrency)
        self.maps = Maps(named_paths(options.maps, "map"), self.metrics)
        check_names(self.maps)
        paths = named_paths(options.indexes, "index")
        self.targets = {name: Target(name, path, options.index_space) for name, path in paths.items()}
        self.encoders = Encoders(options, self.workers)
        self.spaces = self._spaces()
        self._check_encoders()
        self.query_log = None if options.query_log is None else self._open_log(options.query_log)
        self._changed = asyncio.Event()

    def _open_log(self, folder: str) -> QueryLog:
        rollouts = [target for target in self.targets.values() if target.kind == "rollout"]
        if len(rollouts) != 1 or rollouts[0].old_space is None:
            raise ParameterError(f"Queries are logged for one rollout, and {len(rollouts)} are served. Hint: --index ROLLOUT.")
        return QueryLog(folder, (rollouts[0].old_space, rollouts[0].space))

    def _spaces(self) -> dict[str, Space]:
        found = [space for c in self.maps.conversions() for space in (c.source, c.target)]
        found += [space for target in self.targets.values() for space in (target.space, target.old_space) if space is not None]
        spaces = {space.name: space for space in found}
        for space in found:
            if not space.same_as(spaces[space.name]):
                raise ParameterError(
                    f"The space {space.name!r} has {space.dim} dimensions in one file and {spaces[space.name].dim} in another."
                )
        return spaces

    def _check_encoders(self) -> None:
        spaces = {name: space.dim for name, space in self.spaces.items()}
        for encoder in self.encoders:
            if encoder.space not in spaces:
                raise ParameterError(
                    f"The encoder of {encoder.space!r} belongs to none of the spaces {', '.join(map(repr, spaces))}. "
                    "Hint: name its space, SPACE=MODEL (SPACE=URL#MODEL)."
                )
            if encoder.dim not in (None, spaces[encoder.space]):
                raise ParameterError(
                    f"The encoder of {encoder.space!r} gives {encoder.dim} dimensions, and the space has {spaces[encoder.space]}."
                )

    @property
    def rollout(self) -> Target:
        """The rollout that is served.

        Raises
        ------
        Problem
            There is none, or several.
        """
        found = [target for target in self.targets.values() if target.kind == "rollout"]
        if len(found) != 1:
            raise Problem(404, "no_rollout", "No rollout is served." if not found else "Several rollouts are served.")
        return found[0]

    def target(self, name: str | None) -> Target:
        """What is searched, by name; by default the only one.

        Raises
        ------
        Problem
        """
        names = ", ".join(map(repr, self.targets)) or "none"
        if name is None and len(self.targets) == 1:
            return next(iter(self.targets.values()))
        if name is None and self.targets:
            raise Problem.invalid(f"Several indexes are served; name one of {names}.", "index", "index_needed")
        if name not in self.targets:
            raise Problem(404, "index_not_found", f"There is no index {str(name)[:100]!r}. Indexes: {names}.", "index")
        return self.targets[name]

    def models(self) -> dict[str, Conversion]:
        """Conversions whose input an encoder makes, by their name as a model.

        The name of a space alone stands for queries converted into it, where one map does that best.
        """
        usable = [c for c in self.maps.conversions() if c.source.name in self.encoders]
        found = {c.name: c for c in usable}
        for space in {c.target.name: c.target for c in usable}.values():
            into = [c for c in usable if c.target.same_as(space) and c.role == "query"]
            best = [c for c in into if c.rank == min(other.rank for other in into)]
            if len(best) == 1:
                found.setdefault(space.name, best[0])
        return found

    async def watch(self) -> None:
        """Reload what changes, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self.options.reload)
            self._changed.clear()
            await asyncio.to_thread(self.reload)

    def look_now(self) -> None:
        """Look for changed files without waiting (SIGHUP)."""
        self._changed.set()

    def reload(self) -> None:
        """Read again the maps and indexes whose files changed."""
        self.maps.reload()
        for target in self.targets.values():
            try:
                done = target.reopen()
            except (EmbridgeError, OSError) as e:
                self.metrics.reloads.labels("index", target.name, "failed").inc()
                log(logging.ERROR, "reload failed", index=target.name, path=target.path, reason=str(e))
                continue
            if done:
                self.metrics.reloads.labels("index", target.name, "done").inc()
                log(logging.INFO, "reloaded", index=target.name, path=target.path)

    async def close(self) -> None:
        """Release connections and threads."""
        await self.encoders.close()
        await asyncio.to_thread(self.workers.close)

    def facts(self) -> dict[str, Any]:
        """What is served, for the log."""
        return {"maps": [m.name for m in self.maps], "indexes": list(self.targets), "encoders": [e.space for e in self.encoders]}
