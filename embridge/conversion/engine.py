"""Applies a map chunk by chunk, on a CPU or a CUDA device, from Arrow's memory into the output's memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from embridge.conversion.identity import Identity
from embridge.device import as_tensor, unit_where_off
from embridge.errors import MapError, ParameterError
from embridge.maps import KernelMap, Map

Precision = Literal["float32", "tf32", "bfloat16"]
CPU_CHUNK = 1024  # rows of a product on the CPU: rows are normalized while they are still in the cache


@dataclass(frozen=True)
class TranslateOptions:
    """How rows are translated.

    Attributes
    ----------
    dtype : {"float32", "float16"}
        Type of the output vectors; they are computed in float32.
    precision : {"float32", "tf32", "bfloat16"}
        Of the products.
    confidence : float, optional
        Add the columns ``predicted_error`` and ``error_bound``, which holds with this probability.
    device : str or torch.device, optional
        Default: CUDA where there is any, else the CPU.
    id_column, vector_column : str
        Used by `translate_batch`; a collection knows its own.
    validate : bool
        Check ids and vectors before they are translated; False where a reader has done so. Translations are always checked.
    name : str
        Name of the rows in error messages.
    """

    dtype: str = "float32"
    precision: Precision = "float32"
    confidence: float | None = None
    device: str | torch.device | None = None
    id_column: str = "id"
    vector_column: str = "vector"
    validate: bool = True
    name: str = "The batch"

    def check(self, translation: Map | Identity) -> None:
        """Check that the options are valid and that the map supports them.

        Raises
        ------
        ParameterError, MapError
        """
        for name, value, known in (
            ("dtype", self.dtype, ("float32", "float16")),
            ("precision", self.precision, ("float32", "tf32", "bfloat16")),
        ):
            if value not in known:
                raise ParameterError.must_be(name, f"one of {', '.join(known)}", value)
        if self.confidence is not None:
            if isinstance(translation, KernelMap):
                raise MapError.not_affine("its errors cannot be predicted")
            if translation.confidence is None:
                raise MapError(
                    "The map has no confidence, so it cannot predict errors. Hint: fit it with more held-out rows "
                    "(embridge fit --test-size 0.2), or eb.calibrate(translation, anchors, held_out)."
                )
            translation.confidence.quantile(self.confidence)


def chunks(pieces: Sequence[np.ndarray], rows: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Cut consecutive pieces into chunks of `rows` rows, each as (first row, slices).

    Chunks begin at multiples of `rows` whatever the pieces are, so a row is computed in the same product every time and is
    reproducible to the last bit.
    """
    held: list[np.ndarray] = []
    start = filled = 0
    for piece in pieces:
        at = 0
        while at < len(piece):
            part = piece[at : at + rows - filled]
            held.append(part)
            filled += len(part)
            at += len(part)
            if filled == rows:
                yield start, held
                start, held, filled = start + filled, [], 0
    if held:
        yield start, held


class Engine:
    """A map prepared for one device, which translates row group after row group in the same buffers; for one thread at a time.

    Parameters
    ----------
    translation : LinearMap or KernelMap
    device : torch.device
    chunk_rows : int
        Rows of one product. On CUDA it is halved for good when the device runs out of memory.
    options : TranslateOptions, optional
    """

    def __init__(self, translation: Map, device: torch.device, chunk_rows: int, options: TranslateOptions | None = None) -> None:
        self.translation, self.device, self.chunk_rows = translation, device, chunk_rows
        self.options = options or TranslateOptions()
        coverage = self.options.confidence
        self._normalized, self._scales_rows = translation.target.normalized, translation.scales_rows
        self._product = translation.product(device)
        self._half = self._product.weight.T.to(torch.bfloat16) if self.options.precision == "bfloat16" else None
        self._features = translation if isinstance(translation, KernelMap) else None
        self._slots: list[_Slot] = []
        self._confidence, self._coverage = (None if coverage is None else translation.confidence), coverage
        self._spread = None if self._confidence is None else self._confidence.tensors(device)

    def run(self, pieces: Sequence[np.ndarray], out: np.ndarray, errors: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Translate consecutive rows into `out`; returns which of them are zero and which are not finite.

        Parameters
        ----------
        pieces : sequence of ndarray of shape (n_i, dim_source)
            float16, float32 or float64.
        out : ndarray of shape (sum n_i, dim_target)
            float32 or float16.
        errors : ndarray of shape (2, sum n_i), float32, optional
            Receives predicted errors and their bounds, where the engine predicts them.

        Returns
        -------
        zero, not_finite : ndarray of int64
            Positions in `out`.
        """
        rows = as_tensor(out)
        squares, leverage = torch.empty(2, len(out), device=self.device)
        while True:
            try:
                self._run(pieces, rows, squares, leverage)
                break
            except torch.OutOfMemoryError:
                if self.chunk_rows <= 1:
                    raise
                self.chunk_rows = -(-self.chunk_rows // 2)
                self._slots.clear()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        lengths = squares.cpu().numpy()
        not_finite = np.flatnonzero(~np.isfinite(lengths))
        zero = np.flatnonzero(lengths == 0)
        if errors is not None and self._confidence is not None and self._coverage is not None:
            errors[0] = self._confidence.combine(leverage.cpu().numpy(), np.sqrt(lengths))
            errors[1] = self._confidence.widen(errors[0], self._coverage)
        if out.dtype == np.float16:
            # A float16 is infinite beyond 65,504, which only rows longer than that can hold; it is zero up to 2^-25, and only rows
            # that short can hold nothing else.
            long = np.flatnonzero(lengths > 65504.0**2)
            not_finite = np.union1d(not_finite, long[~np.isfinite(out[long]).all(axis=1)])
            short = np.flatnonzero(lengths <= 2 * out.shape[1] * 2.0**-50)
            zero = np.union1d(zero, short[~out[short].any(axis=1)])
        return zero, not_finite

    def _run(self, pieces: Sequence[np.ndarray], out: torch.Tensor, squares: torch.Tensor, leverage: torch.Tensor) -> None:
        if self.device.type == "cuda":
            self._run_cuda(pieces, out, squares, leverage)
            return
        for start, parts in chunks(pieces, self.chunk_rows):
            tensors = [as_tensor(part) for part in parts]
            x = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            rows = slice(start, start + len(x))
            self.translate(x, out[rows], squares[rows], leverage[rows])

    def translate(self, x: torch.Tensor, out: torch.Tensor, squares: torch.Tensor, leverage: torch.Tensor) -> None:
        """The whole computation for one chunk: product and offset fused, squared lengths, and unit length where a space needs it.

        Leverages as well, where errors are predicted. The last step casts to the type of the output.
        """
        if self._scales_rows:
            x = unit_where_off(x.to(torch.float32))
        if self._spread is not None and self._confidence is not None:
            mean, factor = self._spread
            away = torch.linalg.vector_norm((x.to(torch.float32) - mean) @ factor, dim=1)
            torch.add(away.square_(), 1 / self._confidence.anchors, out=leverage)
        if self._half is None:
            y = self._product(x.to(torch.float32))
        else:
            y = (x.to(self._half.dtype) @ self._half).to(torch.float32) + self._product.bias
        if self._features is not None:
            self._features.add_features(x, y)
        lengths = torch.linalg.vector_norm(y, dim=1, keepdim=True)
        torch.square(lengths.squeeze(1), out=squares)
        if self._normalized:
            torch.div(y, lengths.clamp_min(torch.finfo(torch.float32).tiny), out=out)
        else:
            out.copy_(y)

    def _run_cuda(self, pieces: Sequence[np.ndarray], out: torch.Tensor, squares: torch.Tensor, leverage: torch.Tensor) -> None:
        """Copy in, compute and copy out on three streams, with two chunks in flight, through pinned buffers."""
        if not self._slots:
            widths = self.translation.source.dim, self.translation.target.dim
            self._slots = [_Slot(self.device, self.chunk_rows, *widths) for _ in range(2)]
        tf32 = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.options.precision == "tf32"
        try:
            for number, (start, parts) in enumerate(chunks(pieces, self.chunk_rows)):
                self._slots[number % 2].run(self, start, parts, out, squares, leverage)
            for slot in self._slots:
                slot.drain()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32


class _Slot:
    """Buffers and streams of one chunk in flight on a CUDA device."""

    def __init__(self, device: torch.device, rows: int, dim_source: int, dim_target: int) -> None:
        self._device, self._in_shape, self._out_shape = device, (rows, dim_source), (rows, dim_target)
        self._ins: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]] = {}
        self._outs: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]] = {}
        self._copy_in, self._compute, self._copy_out = (torch.cuda.Stream(device) for _ in range(3))
        self._done = torch.cuda.Event()
        self._waiting: tuple[torch.Tensor, torch.Tensor] | None = None

    def run(
        self, engine: Engine, start: int, parts: list[np.ndarray], out: torch.Tensor, squares: torch.Tensor, leverage: torch.Tensor
    ) -> None:
        self.drain()
        tensors = [as_tensor(part) for part in parts]
        kind = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])  # files of a folder may differ
        pinned, x = self._pair(self._ins, kind, self._in_shape)
        count = 0
        for tensor in tensors:
            pinned[count : count + len(tensor)].copy_(tensor)
            count += len(tensor)
        ready, sent = self._pair(self._outs, out.dtype, self._out_shape)
        with torch.cuda.stream(self._copy_in):
            x[:count].copy_(pinned[:count], non_blocking=True)
        self._compute.wait_stream(self._copy_in)
        with torch.cuda.stream(self._compute):
            done = slice(start, start + count)
            engine.translate(x[:count], sent[:count], squares[done], leverage[done])
        self._copy_out.wait_stream(self._compute)
        with torch.cuda.stream(self._copy_out):
            ready[:count].copy_(sent[:count], non_blocking=True)
            self._done.record(self._copy_out)
        self._waiting = ready[:count], out[start : start + count]

    def drain(self) -> None:
        """Wait for the chunk in flight, and return it."""
        if self._waiting is not None:
            self._done.synchronize()
            ready, out = self._waiting
            out.copy_(ready)
            self._waiting = None

    def _pair(
        self, kept: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]], kind: torch.dtype, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A pinned buffer and its counterpart on the device, created once."""
        if kind not in kept:
            pinned = torch.empty(shape, dtype=kind, pin_memory=True)
            kept[kind] = (pinned, torch.empty(shape, dtype=kind, device=self._device))
        return kept[kind]
