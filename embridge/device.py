"""Devices to compute on."""

from __future__ import annotations

import contextlib
import os

import torch

from embridge.arrays import UNIT_TOLERANCE
from embridge.errors import DeviceError


def available_devices() -> list[str]:
    """Names of the devices of this machine, best first."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, "cpu"]


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device to compute on; None and ``auto`` use CUDA where there is one.

    Raises
    ------
    DeviceError
        The device does not exist, or its kind is unknown.
    """
    names = available_devices()
    if device is None or str(device) == "auto":
        return torch.device(names[0])
    with contextlib.suppress(RuntimeError):
        found = torch.device(device)
        if found.type in ("cpu", "cuda") and any(name.startswith(str(found)) for name in names):
            return found
    raise DeviceError(f"Device {str(device)!r} is not available here. Available: {', '.join(names)}.")


def resolve_devices(device: str | torch.device | None = None) -> list[torch.device]:
    """The devices for shared work: all CUDA devices for None, ``auto`` and ``cuda``, else the named one."""
    first = resolve_device(device)
    if first.type != "cuda" or (device is not None and str(device) not in ("auto", "cuda")):
        return [first]
    return [torch.device(name) for name in available_devices() if name != "cpu"]


def free_memory(device: torch.device | None = None) -> int:
    """Free bytes of a CUDA device, or of the machine without swapping (all memory where the system does not report it)."""
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows scaled to unit length on their device; a zero row stays zero.

    Lengths are taken in float64, so that squares of tiny and huge rows neither vanish nor overflow. `torch.nn.functional.normalize`
    would leave rows shorter than 1e-12 short.

    Parameters
    ----------
    rows : torch.Tensor of shape (n, dim)

    Returns
    -------
    torch.Tensor of shape (n, dim)
    """
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64).to(rows.dtype)
    return rows / torch.where(lengths > 0, lengths, 1)


def unit_where_off(rows: torch.Tensor) -> torch.Tensor:
    """`embridge.arrays.unit_where_off` on the device of the rows, without waiting for it.

    Parameters
    ----------
    rows : torch.Tensor of shape (n, dim), float32

    Returns
    -------
    torch.Tensor of shape (n, dim), float32
    """
    if rows.is_cuda:
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64).to(rows.dtype)
        return rows / torch.where(((lengths - 1).abs() >= UNIT_TOLERANCE) & (lengths > 0), lengths, 1)
    # On a CPU the check is cheap, and few collections need more.
    off = (torch.linalg.vector_norm(rows, dim=1) - 1).abs() >= UNIT_TOLERANCE
    if off.any():
        rows = rows.clone()
        rows[off] = unit_rows(rows[off])
    return rows
