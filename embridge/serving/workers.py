"""Threads that compute, so that the event loop stays free for other requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from embridge.serving.problems import Problem

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Workers:
    """A few threads, and a limit on what waits for them: work whose request has run out of time still counts.

    Parameters
    ----------
    threads : int
    limit : int
        Pieces of work that run or wait.
    """

    def __init__(self, threads: int, limit: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="embridge")
        self._limit, self._pending = limit, 0

    async def run(self, work: Callable[Given, Result], *arguments: Given.args, **options: Given.kwargs) -> Result:
        """The result of `work`, done in a thread.

        Raises
        ------
        Problem
            Too much waits already.
        """
        if self._pending >= self._limit:
            raise Problem(503, "busy", f"{self._pending} pieces of work wait, the limit.", headers={"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        future = self._pool.submit(work, *arguments, **options)
        self._pending += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        return await asyncio.wrap_future(future)

    def _done(self) -> None:
        self._pending -= 1

    def close(self) -> None:
        """End the threads once their work is done."""
        self._pool.shutdown(wait=True, cancel_futures=True)
