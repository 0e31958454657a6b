"""Batches of one space in, batches of the other space out: the same lines on a CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from embridge.errors import BadVectorsError
from embridge.maps import LinearMap
from embridge.stores import Batch, Collection
from embridge.types import Metric


class _Unlocked:
    """A read-only array's memory, declared writable: torch warns of sharing it otherwise. Nothing here writes into it."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def as_tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Rows as a tensor on `device`, sharing memory where that is the CPU."""
    shared = array if array.flags.writeable else np.asarray(_Unlocked(array))
    return torch.from_numpy(shared).to(device)


def translate(
    source: Collection, translation: LinearMap, device: torch.device, *, dtype: str, batch_rows: int | None, payload: bool = True
) -> Iterator[Batch]:
    """The batches of a collection, translated.

    Parameters
    ----------
    source : Collection
    translation : LinearMap
    device : torch.device
    dtype : {"float32", "float16"}
        Of the vectors that come out; computed in float32.
    batch_rows : int or None
    payload : bool, default True

    Raises
    ------
    BadVectorsError
        A row whose translation is zero under cosine, or beyond the range of float16.
    """
    zero_is_bad = translation.target.metric == Metric.COSINE
    for batch in source.batches(batch_rows, payload=payload):
        found = translation.apply(as_tensor(batch.vectors, device))
        if zero_is_bad and not bool(found.any(dim=1).all()):
            _refuse(batch, ~found.any(dim=1), source, "a translation of length zero, which has no direction under cosine")
        if dtype == "float16":
            found = found.to(torch.float16)
            if not bool(torch.isfinite(found).all()):
                _refuse(batch, ~torch.isfinite(found).all(dim=1), source, "a translation beyond the range of float16")
        yield replace(batch, vectors=found.cpu().numpy())


def _refuse(batch: Batch, rows: torch.Tensor, source: Collection, reason: str) -> None:
    ids = [batch.ids[i].as_py() for i in torch.nonzero(rows).flatten().tolist()]
    raise BadVectorsError.rows(source.name, reason, ids)
