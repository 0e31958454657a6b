"""Reading, translating and writing the row groups of an output, overlapped."""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from embridge.conversion.batch import translate_batch
from embridge.conversion.engine import Engine
from embridge.conversion.identity import CopyEngine, Identity
from embridge.conversion.schedule import schedule
from embridge.conversion.task import Task
from embridge.device import free_memory
from embridge.stores import Batch, Collection
from embridge.stores.parquet.collection import ERROR_COLUMNS

Bad = tuple[int, Any, str]
Item = TypeVar("Item")


@dataclass
class Group:
    """Consecutive rows of a source that make one row group of the output.

    Attributes
    ----------
    parts : list of Batch
    rows : int
    read : int
        Rows of the source read up to the end of this group.
    bad : list of (position, id, reason)
        Rows of the source left out since the group before.
    errors : ndarray of shape (2, rows), float32, optional
        Predicted errors and their bounds, once it is translated by engines that predict them.
    """

    parts: list[Batch] = field(default_factory=list)
    rows: int = 0
    read: int = 0
    bad: list[Bad] = field(default_factory=list)
    errors: np.ndarray | None = None

    def table(self) -> pa.Table:
        """Ids and vectors, sharing memory; vectors of several types, as files of a folder may have them, are cast to the widest."""
        kind = np.result_type(*(part.vectors.dtype for part in self.parts))
        vectors = [np.ascontiguousarray(part.vectors, kind) for part in self.parts]
        lists = [pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1]) for rows in vectors]
        return pa.table({"id": pa.chunked_array([part.ids for part in self.parts]), "vector": pa.chunked_array(lists)})


def row_groups(
    source: Collection,
    group_rows: int,
    batch_rows: int,
    *,
    start: int = 0,
    after: str | int | None = None,
    on_bad: str = "stop",
) -> Iterator[Group]:
    """Cut the rows of a collection, from position `start` or from the row after the id `after` on, into row groups of the output.

    With `after`, `start` is the position of the row behind it. Groups depend on the rows alone, not on the batches they are read
    in. If only bad rows remain, the last group is empty.

    Raises
    ------
    BadVectorsError, BadIdsError
        With ``stop``: rows that cannot be translated. With ``skip`` they are left out, and listed.
    """
    group = Group()
    seen = start
    bad: list[Bad] = []
    skipped, shift = (start, 0) if after is None else (0, start)  # after an id, positions count from the row behind it
    options = {"payload": True, "row_filter": lambda _, stop: stop > skipped, "validate": on_bad != "skip", "after": after}
    for batch in source.batches(batch_rows, **options):
        batch = replace(batch, start=batch.start + shift)
        seen = batch.start + len(batch)
        rows = np.arange(max(start - batch.start, 0), len(batch))
        if on_bad == "skip" and (reasons := source.unusable(batch)):
            bad += [(batch.start + row, batch.ids[row].as_py(), reasons[row]) for row in rows.tolist() if row in reasons]
            rows = rows[~np.isin(rows, list(reasons))]
        while len(rows):
            taken, rows = np.split(rows, [group_rows - group.rows])
            group.parts.append(batch.at(taken))
            group.rows += len(taken)
            if group.rows == group_rows:
                group.read = batch.start + int(taken[-1]) + 1
                group.bad = [b for b in bad if b[0] < group.read]
                bad = bad[len(group.bad) :]
                yield group
                group = Group()
    if group.rows or bad:
        group.read, group.bad = seen, bad
        yield group


def readahead(items: Iterator[Item], depth: int = 1) -> Generator[Item, None, None]:
    """The same items, produced in a separate thread, at most `depth` of them ahead."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return

    def run() -> None:
        try:
            for item in items:
                put(item, None)
                if stopped.is_set():
                    return
            put(None, None)
        except BaseException as e:
            put(None, e)

    thread = threading.Thread(target=run, name="embridge-read", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


def translate_groups(
    groups: Iterator[Group],
    engines: Sequence[Engine | CopyEngine],
    buffers: Sequence[np.ndarray],
    write: Callable[[Group, np.ndarray], None],
) -> None:
    """Read, translate and write in order, overlapped.

    One thread reads, one thread per device translates, and the calling thread writes.

    Parameters
    ----------
    groups : iterator of Group
    engines : sequence of Engine or CopyEngine
        One a device; their options name the source, and leave ids and vectors to its reader (``validate=False``).
    buffers : sequence of ndarray of shape (group_rows, dim_target)
        Memory that row groups are translated into; it is reused.
    write : callable
        Receives each group and its translated vectors, in order.

    Raises
    ------
    BadVectorsError
        A row whose translation is zero where that is bad, or not finite.
    """
    idle: queue.SimpleQueue[Engine | CopyEngine] = queue.SimpleQueue()
    for engine in engines:
        idle.put(engine)

    def compute(group: Group, out: np.ndarray) -> None:
        if not group.rows:
            return
        engine = idle.get()
        try:
            if isinstance(engine, CopyEngine):
                engine.run(group.parts, out)
                return
            found = translate_batch(group.table(), engine, out=out)
        finally:
            idle.put(engine)
        if engine.options.confidence is not None:
            group.errors = np.stack([found[name].to_numpy() for name in ERROR_COLUMNS])

    free = list(buffers)
    pending: collections.deque[tuple[Group, np.ndarray, np.ndarray, Future[None]]] = collections.deque()

    def write_first() -> None:
        group, buffer, out, done = pending.popleft()
        done.result()
        write(group, out)
        free.append(buffer)

    with contextlib.closing(readahead(groups)) as ahead, ThreadPoolExecutor(len(engines), "embridge-translate") as pool:
        try:
            for group in ahead:
                if not free:
                    write_first()
                buffer = free.pop()
                out = buffer[: group.rows]
                pending.append((group, buffer, out, pool.submit(compute, group, out)))
            while pending:
                write_first()
        except BaseException:
            for *_, done in pending:
                done.cancel()
            raise


def translate_rows(
    task: Task, group_rows: int, write: Callable[[Group, np.ndarray], None], *, start: int = 0, after: str | int | None = None
) -> None:
    """Read, translate and write the rows of a task in groups of `group_rows`, from position `start` or after an id on.

    Raises
    ------
    BadVectorsError, BadIdsError
        Rows that cannot be translated.
    """
    source, target, dtype = task.source, task.translation.target, np.dtype(task.options.dtype)
    held = schedule(
        free_bytes=free_memory(),
        group_rows=group_rows,
        dim_source=source.stated_space.dim,
        dim_target=target.dim,
        itemsize=dtype.itemsize,
        devices=len(task.devices),
        cuda_bytes=min(free_memory(device) for device in task.devices) if task.devices[0].type == "cuda" else 0,
    )
    if isinstance(task.translation, Identity):
        engines: Sequence[Engine | CopyEngine] = [CopyEngine(target, source.name)]
    else:
        options = replace(task.options, validate=False, name=source.name)
        engines = [Engine(task.translation, device, held.chunk_rows, options) for device in task.devices]
    buffers = [np.empty((group_rows, target.dim), dtype) for _ in range(held.buffers)]  # memory is taken when it is written
    groups = row_groups(source, group_rows, task.batch_rows or held.batch_rows, start=start, after=after, on_bad=task.on_bad)
    translate_groups(groups, engines, buffers, write)
