"""Opening decoders, declaring the space of their input, and saving them with the declaration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from embridge.decoders.base import Decoder, Kind
from embridge.decoders.bounds import digest_of, read_bounded
from embridge.decoders.declaration import Declaration, read_declaration, sidecar, write_declaration
from embridge.decoders.linear import LinearHead
from embridge.decoders.onnx_decoder import open_onnx
from embridge.decoders.skops_decoder import dump_skops, open_skops
from embridge.errors import DecoderError, MissingFileError, ParameterError
from embridge.outputs import Output, check_outputs, replacing
from embridge.types import DeclaredSpace, Space

FORMATS = (".safetensors (a linear head)", ".skops (scikit-learn)", ".onnx", ".pt2 (torch.export)")
_DECLARED = (".skops", ".onnx", ".pt2")
_PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth")


def open_decoder(
    path: str | os.PathLike[str],
    *,
    space: Space | DeclaredSpace | str | None = None,
    kind: Kind | None = None,
    classes: Sequence[Any] | np.ndarray | None = None,
    trusted: Sequence[str] = (),
) -> Decoder:
    """Open a decoder: a linear head, a scikit-learn estimator, an ONNX program or a torch.export program.

    No code of the file is run: pickles are not read, and unknown types and operators are refused.

    Parameters
    ----------
    path : str or path-like
        ``*.safetensors`` (`LinearHead.save`), ``*.skops``, ``*.onnx`` or ``*.pt2``.
    space : Space, DeclaredSpace or str, optional
        Space of its input, where neither the file nor a sidecar ``X.json`` (`register_decoder`) names it: a name (``"mpnet"``),
        a name with a metric (``"mpnet:dot"``), or a whole Space. The width is read from the file where it has one.
    kind : {"classifier", "regressor", "output"}, optional
        Kind of an ONNX or torch program with one output. Default: ``regressor`` for one column, else ``output``.
    classes : sequence of str or int, optional
        Class names, in the order of the outputs, for a classifier without names. Default: their numbers.
    trusted : sequence of str, optional
        Names of types (skops) or operators (torch, ONNX) to allow in addition to those known to be harmless.

    Returns
    -------
    Decoder

    Raises
    ------
    MissingFileError, UnreadableFileError
        Missing, damaged or of another format.
    DecoderError
        A pickle, types or operators that are not trusted, or a program of another shape.
    UndeclaredSpaceError
        The space is unknown.
    SpaceMismatchError
        The declaration contradicts the file.
    MissingDependencyError
        skops or onnxruntime is not installed.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise MissingFileError.at(name)
    suffix, said = _suffix(name), Declaration.of(space, kind, classes)
    if suffix == ".safetensors":
        head = LinearHead.load(name)
        said.beside(name, Declaration(head.space, head.kind, head.classes))
        return head
    if suffix in _PICKLES:
        raise DecoderError.pickle(name, "save it as .skops, .onnx, .pt2, or as a linear head")
    if suffix not in _DECLARED:
        raise DecoderError(f"{name!r} is not a decoder of a known format. Formats: {', '.join(FORMATS)}.")
    data = read_bounded(name, "a decoder")
    digest = digest_of(data)
    return _open(name, data, said.beside(name, read_declaration(name, digest)), trusted)


def register_decoder(
    path: str | os.PathLike[str],
    space: Space | DeclaredSpace | str,
    *,
    kind: Kind | None = None,
    classes: Sequence[Any] | np.ndarray | None = None,
    normalized: bool | None = None,
    trusted: Sequence[str] = (),
    overwrite: bool = False,
) -> Decoder:
    """Declare the space of a decoder's input in a sidecar ``X.json``, after checking that it opens and decodes.

    A file that names its space itself (a linear head) is checked and gets no sidecar.

    Parameters
    ----------
    path, space, kind, classes, trusted
        As for `open_decoder`.
    normalized : bool, optional
        True where the vectors of the space have unit length. Default: that of `space`, else False.
    overwrite : bool, default False
        Replace an existing declaration.

    Returns
    -------
    Decoder

    Raises
    ------
    OutputExistsError
        It has a declaration already.
    DecoderError, SpaceMismatchError, UnreadableFileError
        As `open_decoder`.
    """
    name = os.fspath(path)
    if not os.path.isfile(name) or _suffix(name) not in _DECLARED:
        return open_decoder(name, space=space, kind=kind, classes=classes)
    check_outputs(Output(sidecar(name)), overwrite=overwrite)
    decoder = _open(name, read_bounded(name, "a decoder"), Declaration.of(space, kind, classes), trusted)
    if normalized is not None:
        decoder.space = replace(decoder.space, normalized=normalized)
    decoder.decode(np.zeros((1, decoder.space.dim), np.float32))
    write_declaration(name, decoder, overwrite=overwrite)
    return decoder


def save_decoder(
    model: Any,
    path: str | os.PathLike[str],
    space: Space,
    *,
    kind: Kind | None = None,
    classes: Sequence[Any] | np.ndarray | None = None,
    trusted: Sequence[str] = (),
    overwrite: bool = False,
) -> Decoder:
    """Save a model with the declaration of the space of its input.

    Parameters
    ----------
    model : fitted scikit-learn estimator, torch.export.ExportedProgram or LinearHead
        An estimator goes into ``*.skops``, or as a linear head into ``*.safetensors``; a program into ``*.pt2``.
    path : str or path-like
    space : Space
    kind, classes, trusted
        As for `open_decoder`.
    overwrite : bool, default False

    Returns
    -------
    Decoder
        The saved decoder, opened.

    Raises
    ------
    OutputExistsError
        The file exists and `overwrite` is False.
    DecoderError
        The model cannot be saved in this format, or not opened again without `trusted`.
    """
    name = os.fspath(path)
    check_outputs(Output(name), overwrite=overwrite)
    if _suffix(name) == ".safetensors":
        head = model if isinstance(model, LinearHead) else LinearHead.from_estimator(model, space, kind=kind)
        head.save(name, overwrite=overwrite)
        return LinearHead.load(name)
    if _suffix(name) == ".skops":
        data = dump_skops(model)
    elif _suffix(name) == ".pt2":
        data = _torch().dump_program(model)
    else:
        raise ParameterError.must_be("path", "*.skops, *.pt2 or *.safetensors", name)
    check_outputs(Output(sidecar(name)), overwrite=overwrite)
    _open(name, data, Declaration.of(space, kind, classes), trusted)  # a file that cannot be opened is not saved
    with replacing(Output(name), overwrite=overwrite) as [temporary]:
        temporary.write_bytes(data)
    return register_decoder(name, space, kind=kind, classes=classes, trusted=trusted, overwrite=overwrite)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _open(name: str, data: bytes, said: Declaration, trusted: Sequence[str]) -> Decoder:
    """Open the content of a file with the declaration `said`."""
    digest = digest_of(data)
    if _suffix(name) == ".skops":
        return open_skops(name, data, digest, said, trusted)
    if _suffix(name) == ".onnx":
        return open_onnx(name, data, digest, said, trusted)
    return _torch().open_program(name, data, digest, said, trusted)


def _torch() -> Any:
    """The module for torch.export programs, imported late since torch.export is slow to load.

    Raises
    ------
    DecoderError
        torch is too old for the format.
    """
    try:
        from embridge.decoders import torch_decoder
    except ImportError as e:
        raise DecoderError(f"A .pt2 decoder needs a torch that has torch.export.pt2_archive (2.8 and later): {e}.") from e
    return torch_decoder
