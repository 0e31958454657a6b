"""Maps and moments as safetensors files: written completely, with a checksum, and checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from embridge.errors import EmbridgeError, MissingFileError, UnreadableFileError
from embridge.outputs import Output, replacing

_HEADER = 16 << 20  # bytes; the metadata of a map is some 10 KiB
_CHECKSUM = "checksum"
_KINDS = "fu"  # floats and the unsigned hashes of ids


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Write tensors and metadata, with a checksum of both.

    Raises
    ------
    OutputExistsError
        The file exists and `overwrite` is False.
    """
    with replacing(Output(path), overwrite=overwrite) as [temporary]:
        temporary.write_bytes(encode_tensors(tensors, metadata))


def encode_tensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The content of a file of tensors and metadata, with a checksum of both.

    Built in memory, since safetensors itself writes to a temporary file that would remain after an interruption.
    """
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return save(arrays, {**metadata, _CHECKSUM: checksum(arrays, metadata)})


@contextlib.contextmanager
def reading_tensors(
    path: str | os.PathLike[str], formats: tuple[str, ...], what: str, *, must_have_checksum: bool = False
) -> Iterator[tuple[dict[str, str], dict[str, np.ndarray]]]:
    """Metadata and tensors of a file of one of `formats`; errors in the block are reported as an unreadable file.

    Files of embridge 0.1 have no checksum. Its maps are still read, since their fingerprint is checked; its moments are refused.

    Raises
    ------
    MissingFileError
        The file does not exist.
    UnreadableFileError
        Not a regular file, truncated, altered, not `what`, or the block fails on what the file holds.
    """
    name = os.fspath(path)
    try:
        _check_header(name)
        with safe_open(name, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in formats:
                raise UnreadableFileError.foreign(name, f"{what} of embridge", "its metadata")
            # Copies: arrays from the file may be read-only.
            tensors = {key: np.array(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        known = metadata.get(_CHECKSUM)
        if known is None and must_have_checksum:
            raise UnreadableFileError.foreign(name, f"{what} that can be trusted", "a checksum (embridge 0.1 wrote none)")
        if known is not None and known != checksum(tensors, metadata):
            raise UnreadableFileError.altered(name)
        for key, tensor in tensors.items():
            if tensor.dtype.kind not in _KINDS or (tensor.dtype.kind == "f" and not np.isfinite(tensor).all()):
                raise ValueError(f"{key!r} holds NaN, infinite or other values than numbers")
        yield metadata, tensors
    except (MissingFileError, UnreadableFileError):
        raise
    except (
        EmbridgeError, SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError,
        MemoryError,
    ) as e:  # fmt: skip
        raise UnreadableFileError.at(name, what, e) from e


def checksum(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Hash of every tensor and of all metadata but the checksum itself: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, tensor.dtype.str, tensor.shape]).encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    digest.update(json.dumps({k: v for k, v in metadata.items() if k != _CHECKSUM}, sort_keys=True).encode())
    return digest.hexdigest()


def _check_header(name: str) -> None:
    """Refuse files that are not regular (opening a pipe would block) and headers larger than any that embridge writes."""
    try:
        mode = os.stat(name).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError.at(name) from None
    if not stat.S_ISREG(mode):
        raise UnreadableFileError(f"{name!r} is not a regular file. Hint: give the name of a .safetensors file.")
    with open(name, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _HEADER:
        raise ValueError(f"its header claims {size:,} bytes; the limit is {_HEADER:,}")
