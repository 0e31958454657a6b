"""The declaration of a decoder: a sidecar ``X.json`` that names its space, its kind and its classes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embridge.decoders.base import KINDS, Decoder, Kind, as_classes
from embridge.decoders.bounds import DIM, SIDECAR_BYTES, parse_json, read_bounded
from embridge.errors import DecoderError, ParameterError, SpaceMismatchError, UndeclaredSpaceError, UnreadableFileError
from embridge.outputs import Output, replacing
from embridge.types import DeclaredSpace, Metric, Space, resolve_space

_FORMAT, _KIND = "embridge.decoder.1", "a declaration of a decoder"


@dataclass(frozen=True, eq=False)
class Declaration:
    """Declared properties of a decoder; None where unknown.

    Attributes
    ----------
    space : Space, DeclaredSpace or str
        Space of its input. Only a `Space` gives the width.
    kind : {"classifier", "regressor", "output"}
    classes : ndarray of shape (n_classes,)
        Classes of a classifier, in the order of its outputs.
    """

    space: Space | DeclaredSpace | str | None = None
    kind: Kind | None = None
    classes: np.ndarray | None = None

    @classmethod
    def of(
        cls, space: Space | DeclaredSpace | str | None, kind: Kind | None, classes: Sequence[Any] | np.ndarray | None
    ) -> Declaration:
        """The same, checked."""
        if kind is not None and kind not in KINDS:
            raise ParameterError.must_be("kind", f"one of {', '.join(KINDS)}", kind)
        if classes is not None and kind not in (None, "classifier"):
            raise ParameterError(f"A decoder of kind {kind!r} has no classes. Leave them out.")
        return cls(space, kind, None if classes is None else as_classes(classes))

    def beside(self, path: str, known: Declaration) -> Declaration:
        """This declaration of a caller, checked against that of the file at `path` (`known`).

        Raises
        ------
        SpaceMismatchError, ParameterError
            They contradict each other.
        """
        if self.kind is not None and known.kind is not None and self.kind != known.kind:
            raise ParameterError(f"{path!r} was declared as {self.kind}, but its own declaration says {known.kind}.")
        space = self.space
        if isinstance(known.space, Space):
            space = resolve_space(repr(path), self.space, known.space, is_known=True)
        if self.classes is not None and known.classes is not None and self.classes.tolist() != known.classes.tolist():
            raise ParameterError(f"{path!r} was declared with other classes than those in its own declaration.")
        return Declaration(space, self.kind or known.kind, known.classes if self.classes is None else self.classes)

    def space_of(self, path: str, width: int | None) -> Space:
        """The space of a decoder's input, whose own width (if it has one) is `width`.

        Raises
        ------
        UndeclaredSpaceError
            The space or its width is unknown.
        SpaceMismatchError
            The decoder takes vectors of another width.
        """
        space = DeclaredSpace.parse(self.space) if isinstance(self.space, str) else self.space
        if space is None:
            raise UndeclaredSpaceError(
                f"The decoder {path} does not say which space it takes. Hint: `embridge decoder register {path} --space NAME`, or "
                "--decoder-space NAME, or eb.open_decoder(..., space=NAME)."
            )
        stated = space.dim if isinstance(space, Space) else 1
        if max(stated, width or 1) > DIM or min(stated, width or 1) < 1:
            raise DecoderError(f"{path!r} takes vectors of {max(stated, width or 1):,} values. The limit is {DIM:,}.")
        if isinstance(space, DeclaredSpace):
            if width is None:
                raise UndeclaredSpaceError(
                    f"The decoder {path!r} does not say how wide its input is. Hint: declare a whole Space(name, dim) for it."
                )
            return Space(space.name, width, space.metric or Metric.COSINE)
        if width is not None and width != space.dim:
            raise SpaceMismatchError.contradiction(repr(path), "dim", space.dim, width)
        return space


def sidecar(path: str) -> str:
    """The path of a decoder's declaration."""
    return f"{path}.json"


def read_declaration(path: str, digest: str) -> Declaration:
    """The declaration beside a decoder; an empty one where there is none.

    Raises
    ------
    UnreadableFileError
        It is damaged, or of another kind.
    DecoderError
        It was written for a file with another digest than `digest`.
    """
    name = sidecar(path)
    if not os.path.lexists(name):
        return Declaration()
    try:
        values = parse_json(read_bounded(name, _KIND, SIDECAR_BYTES), SIDECAR_BYTES)
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise UnreadableFileError.foreign(name, _KIND, f"the format {_FORMAT!r}")
        found = Declaration.of(stored_space(values["space"]), values["kind"], stored_classes(values["classes"]))
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as e:
        if isinstance(e, UnreadableFileError):
            raise
        raise UnreadableFileError.at(name, _KIND, e) from e
    if values.get("fingerprint") != digest:
        raise DecoderError(
            f"{path!r} is not the file that was registered. Hint: register it again with `embridge decoder register --overwrite`."
        )
    return found


def stored_space(values: Any) -> Space:
    """A space from its plain values in a file; raises TypeError where they are of other types."""
    named = isinstance(values, dict) and isinstance(values.get("name"), str) and isinstance(values.get("normalized"), bool)
    if not named or type(values.get("dim")) is not int:
        raise TypeError("its space is not described by a name, a width, a metric and a flag")
    return Space.from_dict(values)


def stored_classes(values: Any) -> list[Any] | None:
    """Names of classes from their plain values in a file; raises TypeError where they are not a list."""
    if not isinstance(values, list | None):
        raise TypeError("its classes are not a list")
    return values


def write_declaration(path: str, decoder: Decoder, *, overwrite: bool) -> None:
    """Write the declaration (space, kind, classes) of the decoder at `path` beside it.

    Raises
    ------
    OutputExistsError
        It has a declaration and `overwrite` is False.
    """
    values = {
        "format": _FORMAT,
        "space": decoder.space.to_dict(),
        "kind": decoder.kind,
        "classes": None if decoder.classes is None else decoder.classes.tolist(),
        "fingerprint": decoder.fingerprint,
    }
    with replacing(Output(sidecar(path)), overwrite=overwrite) as [temporary]:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
