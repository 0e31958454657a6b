"""Independent parts of an evaluation, computed side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``[function(part) for part in parts]`` in threads, which share the threads of torch among them.

    Half of the work is sorting and selecting by NumPy, which uses one core. With one thread of torch (OMP_NUM_THREADS=1) parts are
    computed one after the other; so are parts of parts.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(parts))
    if workers < 2:
        return [function(part) for part in parts]
    try:
        with ThreadPoolExecutor(workers, "embridge-part", torch.set_num_threads, (threads // workers,)) as pool:
            return list(pool.map(function, parts))
    finally:
        torch.set_num_threads(threads)  # also the number of threads that are started later
