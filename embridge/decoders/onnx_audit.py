"""Checks an ONNX program before onnxruntime opens it, and runs it once in a separate process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from embridge.decoders.bounds import BATCH, DIM, OPERATORS, PROBE_BYTES, PROBE_SECONDS
from embridge.errors import DecoderError, EmbridgeError, MissingDependencyError, UnreadableFileError

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_ENDLESS = ("Loop", "Scan", "SequenceMap")
"""Operators that repeat others depending on the data: a program with one may never end."""

_CHECK_RUN = """
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
import numpy as np
import onnxruntime
stage = 3
try:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.stdin.buffer.read(), options, providers=["CPUExecutionProvider"])
    stage, place = 4, session.get_inputs()[0]
    kind = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2"}.get(place.type)
    rows, width = place.shape if len(place.shape) == 2 else (None, 0)
    width = width if isinstance(width, int) else int(sys.argv[2])
    if kind and width and len(session.get_inputs()) == 1:
        for count in (rows,) if isinstance(rows, int) else (64, 1):
            values = np.random.default_rng(0).normal(size=(count, width)) / width**0.5
            session.run(None, {place.name: values.astype(kind)})
except Exception as e:
    print(type(e).__name__ + ":", e)
    sys.exit(stage)
"""


def audited_onnx(path: str, data: bytes, trusted: Sequence[str]) -> bytes:
    """The program, read and checked.

    Raises
    ------
    UnreadableFileError
        Damaged, or not an ONNX program.
    DecoderError
        It has data in other files, operators that may never end or are not ONNX's own and not trusted, or takes
        more rows or values than a decoder may.
    MissingDependencyError
        onnx is not installed.
    """
    try:
        import onnx
    except ImportError as e:
        raise MissingDependencyError.of("onnx", "A decoder in ONNX", "decoders") from e
    try:
        model = onnx.ModelProto.FromString(data)
        _check(path, model, trusted)
        model.DiscardUnknownFields()
        return model.SerializeToString()
    except EmbridgeError:
        raise
    except Exception as e:  # protobuf's errors have no common public class
        raise UnreadableFileError.at(path, "an ONNX program", e) from e


def _check(path: str, model: Any, trusted: Sequence[str]) -> None:
    if not model.graph.node:
        raise UnreadableFileError.at(path, "an ONNX program", "it has no operators")
    keys = [entry.key for entry in model.metadata_props]
    if len(set(keys)) != len(keys):
        raise UnreadableFileError.at(path, "an ONNX program", "its metadata repeat a key")
    own = {(function.domain, function.name) for function in model.functions}
    foreign, count = set(), 0
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto" and (message.external_data or message.data_location == 1):
            raise DecoderError(
                f"{path!r} has tensors in other files ({message.name!r}), which its fingerprint does not cover. "
                "Hint: save it as one file (onnx.save_model without save_as_external_data)."
            )
        if kind == "TrainingInfoProto":
            raise DecoderError(f"{path!r} is a program for training. Hint: export it for inference.")
        if kind == "NodeProto":
            count += 1
            name = f"{message.domain}.{message.op_type}" if message.domain else message.op_type
            if message.domain in ("", "ai.onnx"):
                foreign |= {name} if message.op_type in _ENDLESS else set()
            elif message.domain not in _DOMAINS and (message.domain, message.op_type) not in own:
                foreign.add(name)
    if foreign := sorted(foreign - set(trusted)):
        raise DecoderError(
            f"{path!r} has operators that may never end or are not ONNX's own: {', '.join(foreign)}. It was not loaded. "
            f"Hint: if you made the file, trust them: --trust {foreign[0]} (trusted=[...])."
        )
    if count > OPERATORS:
        raise DecoderError(f"{path!r} calls {count:,} operators; the limit is {OPERATORS:,}.")
    for place in model.graph.input:
        sizes = [dim.dim_value for dim in place.type.tensor_type.shape.dim]
        if any(size > most or size < 0 for size, most in zip(sizes, (BATCH, DIM), strict=False)):
            raise DecoderError(f"{path!r} takes tensors of shape {sizes}. At most {BATCH:,} rows of {DIM:,} values are allowed.")


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all messages inside it: subgraphs, functions, attributes, tensors."""
    stack = [message]
    while stack:
        found = stack.pop()
        yield found
        for field, value in found.ListFields():
            if field.type == field.TYPE_MESSAGE:
                stack += [value] if hasattr(value, "DESCRIPTOR") else list(value)


def try_program(path: str, data: bytes, dim: int | None) -> None:
    """Load a program and run it on a few rows in a separate process, with bounded time and memory.

    A program that hangs or crashes onnxruntime does so there.

    Parameters
    ----------
    path : str
    data : bytes
        As returned by `audited_onnx`.
    dim : int or None
        Width of the rows where the program does not state it.

    Raises
    ------
    UnreadableFileError
        onnxruntime cannot load it.
    DecoderError
        It does not run, does not end, or ends the process.
    """
    command = [sys.executable, "-P", "-c", _CHECK_RUN, str(PROBE_BYTES + 3 * len(data)), str(dim or 0)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DecoderError(f"{path!r} did not load and run within {PROBE_SECONDS} s. It was ended, and not used.") from None
    except OSError as e:
        raise DecoderError(f"{path!r} cannot be run in a separate process: {e}") from e
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode == 4:
        raise DecoderError.fails(f"The decoder {path!r}", said)
    if done.returncode == 3:
        raise UnreadableFileError.at(path, "an ONNX program", said)
    if done.returncode:
        reason = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise DecoderError(f"{path!r} ends the process that loads and runs it ({reason}). It was not used.")
