"""torch.export programs (``.pt2``) of one input and one output, looked through before they are opened."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch

from embridge.decoders.base import Decoded, Decoder, are_probabilities, as_outputs, check_classes, in_chunks, probe, tell
from embridge.decoders.declaration import Declaration
from embridge.decoders.skops_decoder import is_pickle
from embridge.decoders.torch_audit import audit_program
from embridge.errors import DecoderError, UnreadableFileError

_MANY = 1 << 31  # rows: a bound beyond is none


class TorchDecoder(Decoder):
    """A torch.export program that takes one tensor of shape (n, dim) and gives one.

    It is what was declared; undeclared, a regressor where it gives one column, else of kind ``output``. A classifier's output is
    taken for probabilities where its rows sum to 1 on 64 probe rows.

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
        self._rows = _bounds(rows, program.range_constraints)
        self.space = said.space_of(path, width if isinstance(width, int) else None)
        self._module = program.module()
        self.classes = said.classes
        tried = self._run(probe(self.space.dim))
        self.kind = said.kind or ("regressor" if tried.shape[1] == 1 else "output")
        check_classes(self, tried.shape[1])
        self._probabilities = self.kind == "classifier" and are_probabilities(tried)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def _run(self, rows: np.ndarray) -> np.ndarray:
        return in_chunks(rows, *self._rows, self._call)[0]

    def _call(self, rows: np.ndarray) -> tuple[np.ndarray]:
        try:
            with torch.no_grad():
                found = self._module(torch.tensor(rows, dtype=self._dtype, device=self._device))
        except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError) as e:
            raise DecoderError.fails(self.name, e) from e
        if isinstance(found, tuple | list) and len(found) == 1:
            found = found[0]
        if not isinstance(found, torch.Tensor):
            raise DecoderError(f"{self.name} must give one tensor. It gives {type(found).__name__} instead.")
        return (as_outputs(found.to(torch.float32).cpu().numpy(), len(rows), self.name),)

    def _decode(self, rows: np.ndarray) -> Decoded:
        return tell(self.kind, self._run(rows), self.classes, probabilities=self._probabilities)

    def to(self, device: str) -> Self:
        if str(device) == self._device:
            return self
        return self._moved(_device=str(device), _module=self._module.to(device))


def _bounds(rows: Any, constraints: Any) -> tuple[int, int | None]:
    """How few and how many rows the program takes at a time."""
    if isinstance(rows, int):
        return rows, rows
    for symbol, span in constraints.items():
        if str(symbol) == str(rows):
            lower, upper = float(span.lower), float(span.upper)
            return max(1, int(lower)), int(upper) if upper < _MANY else None
    return 1, None


def open_program(path: str, data: bytes, fingerprint: str, said: Declaration, trusted: Sequence[str]) -> TorchDecoder:
    """Open a torch.export program whose content is `data`: what is looked through is what is loaded.

    Raises
    ------
    DecoderError
        It holds something that could run code, calls operators that are not trusted, or is of another shape.
    UnreadableFileError
        Damaged, or no such program.
    SpaceMismatchError
        An input of another width than declared.
    """
    if not data.startswith(b"PK\x03\x04") and is_pickle(data):
        raise DecoderError.pickle(path, "save the program with torch.export.save")
    audit_program(path, data, trusted)
    log = logging.getLogger("torch.export")
    before, log.disabled = log.disabled, True  # it logs what it raises
    try:
        program = torch.export.load(io.BytesIO(data))
    except Exception as e:  # whatever a damaged program leads torch to
        raise UnreadableFileError.at(path, "a program of torch.export", e) from e
    finally:
        log.disabled = before
    return TorchDecoder(program, said, path, fingerprint)


def dump_program(program: torch.export.ExportedProgram) -> bytes:
    """A program as the content of a file."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()
