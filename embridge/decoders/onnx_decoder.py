"""ONNX programs, run by onnxruntime: classifiers and regressors of skl2onnx, and programs with one output tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from embridge.decoders.base import (
    Decoded,
    Decoder,
    are_probabilities,
    as_classes,
    as_labels,
    as_outputs,
    check_classes,
    decoded,
    in_chunks,
    probe,
)
from embridge.decoders.bounds import SIDECAR_BYTES, parse_json
from embridge.decoders.declaration import Declaration, stored_classes, stored_space
from embridge.decoders.onnx_audit import audited_onnx, try_program
from embridge.errors import DecoderError, EmbridgeError, MissingDependencyError, UnreadableFileError
from embridge.types import Space

SPACE_KEY, KIND_KEY, CLASSES_KEY = "embridge.space", "embridge.kind", "embridge.classes"
_DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class OnnxDecoder(Decoder):
    """An ONNX program of one input of shape (n, dim).

    Two outputs of which the first holds labels are a classifier as skl2onnx writes it: label and probabilities, as a tensor or as
    a list of mappings (zipmap). A single tensor has the declared kind; undeclared, it is a regressor with one column, else of
    kind ``output``. A classifier's single tensor is read as probabilities where its rows sum to 1 on 64 probe rows.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    said : Declaration
    path, fingerprint : str
    """

    format: ClassVar[str] = "onnx"

    def __init__(self, session: Any, said: Declaration, path: str, fingerprint: str) -> None:
        self.path, self._session, self._fingerprint = path, session, fingerprint
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 2 or inputs[0].type not in _DTYPES:
            described = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise DecoderError(f"{path!r} must take one tensor of floats of shape (n, dim). It takes {described} instead.")
        rows, width = inputs[0].shape
        self._input, self._dtype = inputs[0].name, _DTYPES[inputs[0].type]
        self._rows = (rows, rows) if isinstance(rows, int) else (1, None)
        self.space = said.space_of(path, width if isinstance(width, int) else None)
        self._is_labeled = len(outputs) >= 2 and outputs[0].type in ("tensor(int64)", "tensor(string)")
        self.classes, self._probabilities = said.classes, False
        probed = self._run(probe(self.space.dim))
        if self._is_labeled:
            if said.kind not in (None, "classifier"):
                raise DecoderError(f"{path!r} gives labels and probabilities, so it is a classifier, not a {said.kind}.")
            self.kind = "classifier"
            self._probabilities = are_probabilities(probed[1])
            if self._probabilities and self.classes is not None and len(self.classes) != probed[1].shape[1]:
                raise DecoderError(
                    f"{path!r} gives {probed[1].shape[1]} probabilities per row, but {len(self.classes)} classes are named."
                )
        else:
            self.kind = said.kind or ("regressor" if probed[0].shape[1] == 1 else "output")
            check_classes(self, probed[0].shape[1])
            self._probabilities = self.kind == "classifier" and are_probabilities(probed[0])

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def _run(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        return in_chunks(rows.astype(self._dtype, copy=False), *self._rows, self._call)

    def _call(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return self._meaning(self._session.run(None, {self._input: rows}), len(rows))
        except EmbridgeError:
            raise
        except Exception as e:  # onnxruntime's errors have no common public class
            raise DecoderError.fails(self.name, e) from e

    def _meaning(self, found: list[Any], rows: int) -> tuple[np.ndarray, ...]:
        if not self._is_labeled:
            return (as_outputs(found[0], rows, self.name),)
        values = found[1]
        if isinstance(values, list):  # zipmap: one mapping of class to probability a row
            keys = list(values[0])
            if self.classes is None:
                self.classes = as_classes(keys)
            values = np.array([[row[key] for key in keys] for row in values], np.float32)
        labels, values = as_labels(found[0]), as_outputs(values, rows, self.name)
        if len(labels) != rows:
            raise DecoderError(f"{self.name} gave {len(labels):,} labels for {rows:,} vectors.")
        return labels, values

    def _decode(self, rows: np.ndarray) -> Decoded:
        found = self._run(rows)
        if not self._is_labeled:
            return decoded(self.kind, found[0], self.classes, probabilities=self._probabilities)
        label, values = found
        return Decoded(label, values) if self._probabilities else Decoded(label, output=values)


def open_onnx(path: str, data: bytes, fingerprint: str, said: Declaration, trusted: Sequence[str]) -> OnnxDecoder:
    """Open an ONNX program whose content is `data`: the checked bytes are loaded, after they ran in a separate process.

    Its own metadata are compared with `said`.

    Raises
    ------
    UnreadableFileError
        Damaged, or not an ONNX program.
    DecoderError
        Inputs or outputs of another kind, or operators that are not trusted.
    SpaceMismatchError
        An input of another width than declared.
    MissingDependencyError
        onnxruntime or onnx is not installed.
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise MissingDependencyError.of("onnxruntime", "A decoder in ONNX", "decoders") from e
    data = audited_onnx(path, data, trusted)
    try_program(path, data, said.space.dim if isinstance(said.space, Space) else None)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        return OnnxDecoder(session, said.beside(path, _own(path, metadata)), path, fingerprint)
    except EmbridgeError:
        raise
    except Exception as e:  # onnxruntime's errors have no common public class
        raise UnreadableFileError.at(path, "an ONNX program", e) from e


def _own(path: str, metadata: dict[str, str]) -> Declaration:
    """The declaration in the metadata of a program."""
    try:
        space = stored_space(parse_json(metadata[SPACE_KEY], SIDECAR_BYTES)) if SPACE_KEY in metadata else None
        classes = stored_classes(parse_json(metadata[CLASSES_KEY], SIDECAR_BYTES)) if CLASSES_KEY in metadata else None
        return Declaration.of(space, metadata.get(KIND_KEY), classes)  # type: ignore[arg-type]
    except (LookupError, TypeError, ValueError, AttributeError) as e:
        raise UnreadableFileError.at(path, "an ONNX program with a declaration of embridge", e) from e
