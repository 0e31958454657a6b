"""torch.export programs (``.pt2``) of one input and one output, checked before they are opened, and limited in memory and time."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from embridge.decoders.base import Decoded, Decoder, are_probabilities, as_outputs, check_classes, decoded, in_chunks, probe
from embridge.decoders.bounds import BATCH, RUN_BYTES, RUN_FLOPS, STEP_BYTES
from embridge.decoders.declaration import Declaration
from embridge.decoders.skops_decoder import is_pickle
from embridge.decoders.torch_audit import audited_program
from embridge.errors import DecoderError, EmbridgeError, UnreadableFileError

_MANY = 1 << 31  # rows: a larger bound counts as none


class TorchDecoder(Decoder):
    """A torch.export program that takes one tensor of shape (n, dim) and gives one.

    It has the declared kind; undeclared, it is a regressor with one output column, else of kind ``output``. A classifier's output
    is read as probabilities where its rows sum to 1 on 64 probe rows.

    Parameters
    ----------
    program : torch.export.ExportedProgram
    said : Declaration
    path, fingerprint : str
    """

    format: ClassVar[str] = "pt2"

    def __init__(self, program: Any, said: Declaration, path: str, fingerprint: str) -> None:
        self.path, self._fingerprint, self._device = path, fingerprint, "cpu"
        names = program.graph_signature.user_inputs
        places = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
        if len(places) != 1 or not isinstance(places[0], torch.Tensor) or places[0].ndim != 2 or not places[0].is_floating_point():
            raise DecoderError(f"{path!r} must take one tensor of floats of shape (n, dim). It takes {places} instead.")
        rows, width = places[0].shape
        self._dtype = places[0].dtype
        self._rows = _bounds(path, rows, program.range_constraints)
        self.space = said.space_of(path, width if isinstance(width, int) else None)
        self._module = program.module()
        self.classes = said.classes
        probed = probe(self.space.dim)
        least, most = self._rows
        rows = max(least, min(len(probed), most or len(probed)))
        largest = _largest_step(path, self._module, rows, self.space.dim, self._dtype)
        self._rows = least, min(most or BATCH, max(rows, rows * STEP_BYTES // largest))
        versions = self._versions()
        found = self._run(probed)
        if self._versions() != versions:
            raise DecoderError(f"{path!r} changes its own weights while it runs. Hint: export it in eval mode.")
        self.kind = said.kind or ("regressor" if found.shape[1] == 1 else "output")
        check_classes(self, found.shape[1])
        self._probabilities = self.kind == "classifier" and are_probabilities(found)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def _versions(self) -> list[int]:
        """The version counter of each of its tensors."""
        return [tensor._version for tensor in (*self._module.parameters(), *self._module.buffers())]

    def _run(self, rows: np.ndarray) -> np.ndarray:
        return in_chunks(rows, *self._rows, self._call)[0]

    def _call(self, rows: np.ndarray) -> tuple[np.ndarray]:
        try:
            with torch.no_grad():
                found = self._module(torch.tensor(rows, dtype=self._dtype, device=self._device))
        except Exception as e:  # its operators may raise anything
            raise DecoderError.fails(self.name, e) from e
        if isinstance(found, tuple | list) and len(found) == 1:
            found = found[0]
        if not isinstance(found, torch.Tensor):
            raise DecoderError(f"{self.name} must give one tensor. It gives {type(found).__name__} instead.")
        return (as_outputs(found.to(torch.float32).cpu().numpy(), len(rows), self.name),)

    def _decode(self, rows: np.ndarray) -> Decoded:
        return decoded(self.kind, self._run(rows), self.classes, probabilities=self._probabilities)

    def to(self, device: str) -> Self:
        if str(device) == self._device:
            return self
        return self._moved(_device=str(device), _module=self._module.to(device))


def _bounds(path: str, rows: Any, constraints: Any) -> tuple[int, int | None]:
    """The least and the largest number of rows that the program takes at a time."""
    least, most = (rows, rows) if isinstance(rows, int) else (1, None)
    if not isinstance(rows, int):
        span = {str(symbol): span for symbol, span in constraints.items()}.get(str(rows))
        if span is None and not rows.node.expr.is_Symbol:
            raise DecoderError(
                f"{path!r} must take any number of rows. It takes {rows} instead. Hint: export it with a fixed number."
            )
        if span is not None:
            least, upper = max(1, int(span.lower)), float(span.upper)
            most = int(upper) if upper < _MANY else None
    if not 1 <= least <= min(BATCH, most or BATCH):
        raise DecoderError(f"{path!r} needs {least:,} rows at a time; the limit is {BATCH:,}.")
    return least, most


class _Cost(torch.fx.Interpreter):
    """Runs a program on tensors without data, and adds up its memory and operations."""

    bytes, largest = 0, 1

    def run_node(self, n: torch.fx.Node) -> Any:
        found = super().run_node(n)
        values = found if isinstance(found, tuple | list) else (found,)
        size = sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
        if n.op == "call_function":
            self.bytes, self.largest = self.bytes + size, max(self.largest, size)
        if size > STEP_BYTES or self.bytes > RUN_BYTES or any(isinstance(v, int) and abs(v) >= 1 << 63 for v in values):
            raise _TooCostlyError
        return found


class _TooCostlyError(Exception):
    """A step exceeds a limit."""


def _largest_step(path: str, module: Any, rows: int, dim: int, dtype: torch.dtype) -> int:
    """Bytes that the largest result of an operator takes, found without running the program.

    Raises
    ------
    DecoderError
        It needs more memory or time than a decoder may, or its operators do not fit together.
    """
    cost = _Cost(module)
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode, FlopCounterMode(display=False) as counter:
            cost.run(mode.from_tensor(torch.empty(rows, dim, dtype=dtype)))
        too_costly = counter.get_total_flops() > RUN_FLOPS
    except Exception as e:  # its operators may raise anything; our own error may be wrapped
        too_costly = isinstance(e, _TooCostlyError) or isinstance(e.__cause__, _TooCostlyError)
        if not too_costly:
            raise DecoderError.fails(f"The decoder {path!r}", e) from e
    if too_costly:
        raise DecoderError(
            f"{path!r} takes more than {STEP_BYTES >> 30} GiB in one step, or {RUN_BYTES >> 30} GiB or {RUN_FLOPS:.0e} operations "
            f"in all, for {rows:,} rows of {dim:,} values. Hint: it is not a decoder of single vectors."
        )
    return cost.largest


def open_program(path: str, data: bytes, fingerprint: str, said: Declaration, trusted: Sequence[str]) -> TorchDecoder:
    """Open a torch.export program whose content is `data`: the checked bytes are loaded.

    Raises
    ------
    DecoderError
        It holds something that could run code, calls operators that are not trusted, or is of another shape.
    UnreadableFileError
        Damaged, or not a torch.export program.
    SpaceMismatchError
        An input of another width than declared.
    """
    if not data.startswith(b"PK\x03\x04") and is_pickle(data):
        raise DecoderError.pickle(path, "save the program with torch.export.save")
    data = audited_program(path, data, trusted)
    with _quietly():
        try:
            program = torch.export.load(io.BytesIO(data))
            return TorchDecoder(program, said, path, fingerprint)
        except EmbridgeError:
            raise
        except Exception as e:  # a damaged or inconsistent program can make torch raise anything
            raise UnreadableFileError.at(path, "a program of torch.export", e) from e


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep torch from logging what it raises, and from warning of tensors over read-only bytes."""
    known = logging.root.manager.loggerDict.items()
    logs = [log for name, log in known if name.startswith("torch") and isinstance(log, logging.Logger) and not log.disabled]
    for log in logs:
        log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log in logs:
            log.disabled = False


def dump_program(program: torch.export.ExportedProgram) -> bytes:
    """A program as the content of a file.

    Raises
    ------
    DecoderError
        Not a program, or one that torch cannot save.
    """
    buffer = io.BytesIO()
    try:
        torch.export.save(program, buffer)
    except Exception as e:  # torch may raise anything
        raise DecoderError(f"torch.export cannot save a {type(program).__name__}: {str(e).strip() or type(e).__name__}") from e
    return buffer.getvalue()
