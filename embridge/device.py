"""Where arrays are computed."""

from __future__ import annotations

import os

import torch

from embridge.errors import DeviceError


def available_devices() -> list[str]:
    """Names of the devices of this machine, best first."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, "cpu"]


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device to compute on; None and ``auto`` take CUDA where there is one.

    Raises
    ------
    DeviceError
        The device is not there, or there is no such kind of device.
    """
    names = available_devices()
    if device is None or str(device) == "auto":
        return torch.device(names[0])
    try:
        found = torch.device(device)
    except RuntimeError:
        raise DeviceError.unavailable(str(device), names) from None
    if found.type not in ("cpu", "cuda") or not any(name.startswith(str(found)) for name in names):
        raise DeviceError.unavailable(str(device), names)
    return found


def resolve_devices(device: str | torch.device | None = None) -> list[torch.device]:
    """The devices for work that several can share: all CUDA devices for None, ``auto`` and ``cuda``, else the one that is named."""
    first = resolve_device(device)
    if first.type != "cuda" or (device is not None and str(device) not in ("auto", "cuda")):
        return [first]
    return [torch.device(name) for name in available_devices() if name != "cpu"]


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that can be had: of a CUDA device, or of the machine without swapping (all of it where the system does not tell)."""
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
