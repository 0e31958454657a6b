"""Checksums of damaged files made right again, as an attacker would make them: then the reader must refuse by itself."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import safetensors.numpy
from safetensors import SafetensorError

from embridge.conversion.log import _digest
from embridge.files import fingerprint
from embridge.tensors import encode_tensors

Files = dict[str, bytes]


def tensors(files: Files) -> Files:
    """Maps, moments and heads with the checksum of what they hold now."""
    found = dict(files)
    for name, data in files.items():
        with contextlib.suppress(SafetensorError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            size = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + size])["__metadata__"]
            metadata.pop("checksum", None)
            found[name] = encode_tensors(safetensors.numpy.load(data), metadata)
    return found


def journal(files: Files) -> Files:
    """Journals whose lines have the digests of what they say now."""
    found = dict(files)
    for name, data in files.items():
        if name.endswith(".journal"):
            mark, lines = "", []
            for line in data.split(b"\n"):
                text = line.partition(b" ")[2]
                mark = _digest(mark, text) if text else mark
                lines.append(f"{mark} ".encode() + text if text else line)
            found[name] = b"\n".join(lines)
    return found


def binding(files: Files) -> Files:
    """Sidecars that belong to the index and the ids as they are now."""
    found = dict(files)
    for name in files:
        if name.endswith(".faiss") and f"{name}.json" in files:
            with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
                said = json.loads(files[f"{name}.json"])
                said["index"]["fingerprint"] = _mark(files[name])
                if f"{name}.ids.parquet" in files:
                    said["index"]["ids"] = _mark(files[f"{name}.ids.parquet"])
                found[f"{name}.json"] = json.dumps(said).encode("utf-8", "surrogatepass")
    return found


def _mark(data: bytes) -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return fingerprint(Path(file.name))
