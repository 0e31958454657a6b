"""The base of every decoder: a model on top of one space, which accepts only vectors of that space."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from embridge.arrays import as_vectors, check_rows
from embridge.errors import DecoderError, SpaceMismatchError, n_rows
from embridge.types import Space

Kind = Literal["classifier", "regressor", "output"]
KINDS: tuple[Kind, ...] = ("classifier", "regressor", "output")


@dataclass(frozen=True, eq=False)
class Decoded:
    """The output of a decoder for n vectors.

    Attributes
    ----------
    prediction : ndarray of shape (n,) or None
        Labels of a classifier (int64, bool or strings), float32 of a regressor with one output; None where there are outputs only.
    probability : ndarray of shape (n, n_classes), float32, or None
        In the order of the decoder's `classes`.
    output : ndarray of shape (n, n_outputs), float32, or None
        Scores of a classifier without probabilities; the values of a regressor of several outputs, or of kind ``output``.
    """

    prediction: np.ndarray | None = None
    probability: np.ndarray | None = None
    output: np.ndarray | None = None

    def __len__(self) -> int:
        return len(next(a for a in (self.prediction, self.probability, self.output) if a is not None))


class Decoder(ABC):
    """A model trained on the vectors of one space.

    Attributes
    ----------
    format : str
        ``linear``, ``skops``, ``onnx`` or ``pt2``.
    path : str or None
        Its path.
    space : Space
        What it takes.
    kind : {"classifier", "regressor", "output"}
        ``output`` gives vectors: reconstructions, features.
    classes : ndarray of shape (n_classes,) or None
        Labels of a classifier that names them.
    fingerprint : str
        Content hash: 32 hexadecimal digits.
    """

    format: ClassVar[str]
    path: str | None
    space: Space
    kind: Kind
    classes: np.ndarray | None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Content hash: 32 hexadecimal digits."""

    @abstractmethod
    def _decode(self, rows: np.ndarray) -> Decoded:
        """Decode rows of the right width, finite, float32 and at least one."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"The decoder {self.path!r}" if self.path else "The decoder"

    def decode(self, vectors: Any) -> Decoded:
        """Decode vectors of the decoder's space.

        Parameters
        ----------
        vectors : array_like of shape (n, dim)

        Returns
        -------
        Decoded

        Raises
        ------
        SpaceMismatchError
            Vectors of another width.
        BadVectorsError
            NaN or infinite values.
        DecoderError
            The model fails on them, or gives something of another shape.
        """
        rows = as_vectors(vectors, what="vectors")
        if rows.shape[1] != self.space.dim:
            raise SpaceMismatchError.width(f"{self.name} of {self.space.name!r}", self.space.dim, rows.shape[1])
        check_rows(rows, range(len(rows)), "The input of the decoder", zero_is_bad=False)
        if not len(rows):
            one = self._decode(np.zeros((1, self.space.dim), np.float32))
            parts = (one.prediction, one.probability, one.output)
            return Decoded(*(None if part is None else part[:0] for part in parts))
        found = self._decode(rows.astype(np.float32, copy=False))
        if len(found) != len(rows):
            raise DecoderError(f"{self.name} gave {len(found):,} results for {len(rows):,} vectors.")
        return found

    def to(self, device: str) -> Self:
        """The same decoder computing on `device`; scikit-learn and ONNX programs stay on the CPU."""
        return self

    def _moved(self, **changes: Any) -> Self:
        """A shallow copy with some attributes changed."""
        other = copy.copy(self)
        for name, value in changes.items():
            object.__setattr__(other, name, value)
        return other

    def __repr__(self) -> str:
        where = "" if self.path is None else f", {self.path!r}"
        classes = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"{type(self).__name__}({self.kind} of {self.space.name!r} ({self.space.dim}){classes}{where})"


def as_outputs(values: Any, rows: int, name: str) -> np.ndarray:
    """Outputs of a model for `rows` vectors as float32 of shape (rows, n_outputs); further axes are flattened.

    Raises
    ------
    DecoderError
        They are not numbers, or not one row per vector.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim < 1 or len(array) != rows:
        raise DecoderError(
            f"{name} must give numbers, one row for each of {n_rows(rows)}. Got {array.dtype} of shape {array.shape} instead."
        )
    return np.ascontiguousarray(array.reshape(rows, -1), np.float32)


def as_labels(values: Any) -> np.ndarray:
    """Class labels as int64, bool or strings (object), shape (n,).

    Raises
    ------
    DecoderError
        Labels of another kind or of several kinds, beyond int64, or not one per row.
    """
    if isinstance(values, list | tuple) and len({type(v) for v in values if not isinstance(v, np.generic)}) > 1:
        raise DecoderError("Class labels must be all strings, all integers or all booleans. Got several kinds instead.")
    try:
        array = np.asarray(values)
    except ValueError:
        raise DecoderError("A classifier must give one label per row. Got lists of different lengths instead.") from None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DecoderError(f"A classifier must give one label per row. Got labels of shape {array.shape} instead.")
    if array.dtype.kind in "iu" and not (array.dtype.kind == "u" and (array > np.iinfo(np.int64).max).any()):
        return array.astype(np.int64)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind == "f" and np.array_equal(array, np.round(array)) and (np.abs(array) < 1 << 53).all():
        return array.astype(np.int64)  # integer labels stored in a float column
    if array.dtype.kind == "U" or (array.dtype.kind == "O" and all(isinstance(v, str) for v in array)):
        return array.astype(object)
    raise DecoderError(f"Class labels must be strings, booleans, or integers of 64 bits. Got {array.dtype} instead.")


def as_classes(values: Any) -> np.ndarray:
    """Names of classes as returned by `as_labels`, without duplicates.

    Raises
    ------
    DecoderError
        Labels of another kind, or repeated.
    """
    labels = as_labels(values if isinstance(values, np.ndarray) else list(values))
    if len(set(labels.tolist())) != len(labels):
        raise DecoderError(f"The classes of a decoder must differ. Got {labels.tolist()[:20]} instead.")
    return labels


def decoded(kind: Kind, outputs: np.ndarray, classes: np.ndarray | None, *, probabilities: bool) -> Decoded:
    """Interpret plain outputs of shape (n, n_outputs) for a model of some kind.

    The label of a row is the class of its largest value; for a single output the second class where it is above 0 (a score) or
    above 0.5 (a probability).
    """
    if kind == "classifier":
        if outputs.shape[1] == 1:
            index = (outputs[:, 0] > (0.5 if probabilities else 0.0)).astype(np.int64)
            outputs = np.hstack([1 - outputs, outputs]) if probabilities else outputs
        else:
            index = outputs.argmax(axis=1)
        prediction = index if classes is None else classes[index]
        return Decoded(prediction, outputs) if probabilities else Decoded(prediction, output=outputs)
    if kind == "regressor" and outputs.shape[1] == 1:
        return Decoded(outputs[:, 0])
    return Decoded(output=outputs)


def in_chunks(
    rows: np.ndarray, least: int, most: int | None, run: Callable[[np.ndarray], tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, ...]:
    """Call a program that takes between `least` and `most` rows at a time; shorter input is padded with zeros."""
    parts = []
    step = len(rows) if most is None else most
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        if len(chunk) < least:
            chunk = np.vstack([chunk, np.zeros((least - len(chunk), rows.shape[1]), rows.dtype)])
        count = min(step, len(rows) - start)
        parts.append([part[:count] for part in run(chunk)])
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def are_probabilities(outputs: np.ndarray) -> bool:
    """True where every row is non-negative and sums to 1 (a single value: is in [0, 1])."""
    if outputs.min(initial=0) < 0:
        return False
    if outputs.shape[1] == 1:
        return bool(outputs.max(initial=0) <= 1)
    return bool(np.abs(outputs.sum(axis=1) - 1).max(initial=0) < 1e-3)


def check_classes(decoder: Decoder, columns: int) -> None:
    """Refuse class names whose number differs from that of the outputs; without names, classes are numbered.

    Raises
    ------
    DecoderError
    """
    if decoder.kind != "classifier":
        decoder.classes = None
        return
    expected = 2 if columns == 1 else columns
    if decoder.classes is None:
        decoder.classes = np.arange(expected)
    elif len(decoder.classes) != expected:
        raise DecoderError(f"{decoder.path!r} has {expected} classes, but {len(decoder.classes)} are named.")


def probe(dim: int, rows: int = 64) -> np.ndarray:
    """Fixed rows of about unit length to test a program with."""
    return (np.random.default_rng(0).normal(size=(rows, dim)) / np.sqrt(dim)).astype(np.float32)
