"""Where arrays are computed."""

from __future__ import annotations

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
