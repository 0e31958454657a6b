"""How many rows to hold at a time, computed from free memory."""

from __future__ import annotations

from dataclasses import dataclass

from embridge.conversion.engine import CPU_CHUNK

_BUDGET = 256 << 20  # of buffers for one file; more are not faster
_LEAST_ROWS = 256


@dataclass(frozen=True)
class Schedule:
    """What a conversion holds in memory.

    Attributes
    ----------
    batch_rows : int
        Rows read at a time.
    buffers : int
        Row groups of the output in memory: one computed per device, one written.
    chunk_rows : int
        Rows translated at a time on a device.
    """

    batch_rows: int
    buffers: int
    chunk_rows: int


def schedule(
    *, free_bytes: int, group_rows: int, dim_source: int, dim_target: int, itemsize: int = 4, devices: int = 1, cuda_bytes: int = 0
) -> Schedule:
    """Choose batch, buffers and chunk.

    Parameters
    ----------
    free_bytes : int
        Free memory.
    group_rows : int
        Rows of a row group of the output. It is fixed: a resumed run needs the same.
    dim_source, dim_target : int
    itemsize : int, default 4
        Bytes of an output value.
    devices : int, default 1
        Devices that translate at the same time.
    cuda_bytes : int, default 0
        Free memory of the smallest CUDA device; 0 on the CPU.

    Returns
    -------
    Schedule

    Examples
    --------
    >>> schedule(free_bytes=8 << 30, group_rows=10922, dim_source=384, dim_target=768)
    Schedule(batch_rows=5461, buffers=2, chunk_rows=1024)
    """
    budget = min(_BUDGET, free_bytes // 4)
    group_bytes = group_rows * dim_target * itemsize
    # Where memory is short a group is translated and written before the next is begun.
    buffers = max(1, min(devices + 1, budget // max(1, group_bytes)))
    # Arrow holds a column about twice while it decodes it, and as many batches wait as there are buffers.
    row_bytes = 4 * dim_source * 4
    batch_rows = min(max(_LEAST_ROWS, budget // (8 * row_bytes)), group_rows)
    # CUDA: in and out in float32, twice (two slots a device), in half of what is free.
    chunk_rows = cuda_bytes // 2 // (2 * 4 * (dim_source + 2 * dim_target)) if cuda_bytes else CPU_CHUNK
    return Schedule(int(batch_rows), int(buffers), int(min(max(_LEAST_ROWS, chunk_rows), max(_LEAST_ROWS, group_rows))))
