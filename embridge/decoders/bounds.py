"""Limits for the files of decoders, and the only functions that read their bytes and their JSON."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from typing import Any

from embridge.errors import UnreadableFileError

FILE_BYTES = 2 << 30
"""Bytes of a file: protobuf (ONNX) ends at 2 GiB, and a file is held in memory while it is checked and opened."""
SIDECAR_BYTES = 16 << 20
"""Bytes of a declaration: a million class names fit."""
MEMBERS = 20_000
"""Members of an archive: a program has one per weight; the largest public models have a few thousand."""
EXPANDED_BYTES = 4 << 30
"""Bytes of all members of an archive when decompressed: twice the largest file."""
SMALL_BYTES, RATIO = 64 << 20, 100
"""An archive may expand to 64 MiB, or to 100 times its size: weights hardly compress, zero-filled arrays in a small file do."""
JSON_BYTES = 256 << 20
"""Bytes of a JSON member: parsing takes about ten times as much memory."""
DEPTH = 200
"""Nesting of JSON: far below Python's recursion limit (1,000), since libraries use several frames per level."""
NODES = 500_000
"""Values in a schema, with shared parts counted at every reference, as skops walks them: large pipelines have thousands."""
OPERATORS = 50_000
"""Operators of a program: a transformer of 100 layers has about 5,000."""
DIM = 1 << 20
"""Width of a decoder's input: the widest embeddings in use have 16,384 values. 64 probe rows of it take 256 MiB."""
BATCH = 1 << 16
"""Largest fixed number of rows per call of a program: shorter input is padded."""
STEP_BYTES = 2 << 30
"""Bytes that one operator may give for the probe rows."""
RUN_BYTES, RUN_FLOPS = 64 << 30, 2 * 10**12
"""Bytes and floating-point operations of one run on the probe rows: under a minute on one core."""
PROBE_SECONDS = 120
"""Time in which an ONNX program must be loaded and run on the probe rows: usual programs take under a second on an idle machine."""
PROBE_BYTES = 8 << 30
"""Address space of the process that loads an ONNX program first, in addition to three times its file."""


def read_bounded(path: str, kind: str, most: int = FILE_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes, read once.

    Raises
    ------
    UnreadableFileError
        Not a regular file, too large, or the system cannot read it.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a FIFO would block
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise UnreadableFileError.at(path, kind, "it is not a regular file")
            if facts.st_size > most:
                raise UnreadableFileError.at(path, kind, f"it has {facts.st_size:,} bytes, and at most {most:,} are read")
            data = file.read(facts.st_size + 1)  # no more: `most` bytes would be allocated, whatever the file holds
            if len(data) != facts.st_size:
                raise UnreadableFileError.at(path, kind, "it changes while it is read")
            return data
    except OSError as e:
        if isinstance(e, UnreadableFileError):
            raise
        raise UnreadableFileError.at(path, kind, e.strerror or e) from e


def digest_of(data: bytes) -> str:
    """Content hash of a whole file: 32 hexadecimal digits. Up to 64 MiB it equals `embridge.files.fingerprint`.

    Larger files are hashed whole too, not sampled, so that the fingerprint covers everything that is loaded.
    """
    digest = hashlib.blake2b(len(data).to_bytes(8, "little"), digest_size=16)
    digest.update(data)
    return digest.hexdigest()


def parse_json(data: bytes | str, most: int = JSON_BYTES) -> Any:
    """Parse JSON of bounded size and depth without repeated keys.

    Raises
    ------
    ValueError
        Anything else.
    """
    if len(data) > most:
        raise ValueError(f"its JSON has {len(data):,} bytes; the limit is {most:,}")
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    level, depth = [found], 0
    while level := [child for value in level for child in _children(value)]:
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"its JSON is nested more than {DEPTH} levels deep")
    return found


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"its JSON has the key {key[:80]!r} twice")
        found[key] = value
    return found
