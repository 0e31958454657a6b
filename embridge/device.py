"""Devices to compute on, and the product that most of the work is."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import torch

from embridge.arrays import UNIT_TOLERANCE
from embridge.errors import DeviceError

_BLOCK = 4096


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


class _Unlocked:
    """A read-only array's memory, declared writable: torch warns of sharing it otherwise. Nothing here writes into it."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """An array as a tensor, sharing memory."""
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Unlocked(array)))


class Product:
    """``rows @ weight.T + bias`` in float32, for many blocks of rows on one device.

    On a CPU oneDNN multiplies: `torch.addmm` calls MKL, which on processors of AMD does without AVX-512 and takes twice as long
    (225 against 105 GFLOPS on one core of an EPYC of family 26, torch 2.13).

    Parameters
    ----------
    weight : ndarray of shape (dim_out, dim), float32
    bias : ndarray of shape (dim_out,), float32, optional
        Default: zero.
    device : torch.device or str, default "cpu"

    Attributes
    ----------
    weight, bias : Tensor
        Copies on the device.
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None = None, device: torch.device | str = "cpu") -> None:
        self.weight = torch.tensor(np.ascontiguousarray(weight), device=device)
        self.bias = self.weight.new_zeros(len(weight)) if bias is None else torch.tensor(bias, device=device)
        self._held: tuple[torch.Tensor, torch.Tensor] | None = None
        if self.weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and self.weight.numel():
            self._held = self.weight.to_mkldnn(), self.bias.to_mkldnn()

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """The product with rows of shape (n, dim), float32, in new memory of shape (n, dim_out)."""
        # oneDNN refuses zero rows, is not faster for one, and passes no gradients on to dense tensors.
        if self._held is None or len(rows) < 2 or (rows.requires_grad and torch.is_grad_enabled()):
            return torch.addmm(self.bias, rows, self.weight.T)
        return torch.nn.functional.linear(rows.to_mkldnn(), *self._held).to_dense()

    def of_array(self, rows: np.ndarray) -> np.ndarray:
        """The product with an array on the CPU, in new memory; 4,096 rows at a time, since oneDNN copies them."""
        out = np.empty((len(rows), len(self.bias)), np.float32)
        for start in range(0, len(rows), _BLOCK):
            block = np.ascontiguousarray(rows[start : start + _BLOCK], np.float32)
            out[start : start + _BLOCK] = self(as_tensor(block)).numpy()
        return out

    def __reduce__(self) -> tuple[type[Product], tuple[np.ndarray, np.ndarray, str]]:
        return Product, (self.weight.cpu().numpy(), self.bias.cpu().numpy(), str(self.weight.device))
