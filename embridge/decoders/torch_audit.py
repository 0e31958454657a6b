"""Checks a torch.export archive before torch opens it, and writes a new archive from the checked parts.

``torch.export.load`` trusts its file (torch 2.13): it unpickles sample inputs, tensor subclasses and custom objects, evaluates
symbolic shapes as Python text (``sympy.sympify``), compiles guards into a function, calls any function that a name under ``torch``
leads to, and loads compiled libraries; and its zip reader is another than Python's. So torch never reads the file. It reads a new
archive of tensors stored as bytes and of a program of listed operators (`torch_operators`), with shapes of numbers, symbols and
arithmetic. Sample inputs, guards, stack traces and extra files are dropped.
"""

from __future__ import annotations

import ast
import io
import json
import pickletools
import re
from collections.abc import Collection, Iterator
from typing import Any

from torch.export.pt2_archive import PT2ArchiveWriter

from embridge.decoders.archive import read_archive
from embridge.decoders.bounds import OPERATORS, parse_json
from embridge.decoders.torch_operators import is_switched_on, is_tensor_operator
from embridge.errors import DecoderError, EmbridgeError, UnreadableFileError

_PROGRAM = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_SAMPLE_MODULES = ("torch", "torch._utils", "torch._tensor", "torch.serialization", "collections")
_TENSORS = re.compile(r"data/(weights|constants)/(weight|tensor)_\d+")
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_LEFT_BEHIND = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|data/sample_inputs/model\.pt|extra/[\w.\-]+"
)
_NAME = re.compile(r"(?!__)[A-Za-z0-9_]*(\.(?!__)[A-Za-z0-9_]+)*")
_NAMES = (
    "name", "as_name", "fqn", "parameter_name", "buffer_name", "tensor_constant_name", "user_input_name", "path_name", "arg_name",
)  # fmt: skip
_REFUSED = ("as_operator", "as_custom_obj", "as_graph", "custom_obj", "as_complex", "as_string_to_argument", "token")
_STATE = ("buffer_mutation", "parameter_mutation", "user_input_mutation", "loss_output", "gradient_to_parameter")
_ROWS = re.compile(r"L\['\w{1,80}'\]\.size\(\)\[0\] (<=|>=) (\d{1,9})", re.ASCII)
_SPECS = (None, "builtins.tuple", "builtins.list", "builtins.dict")

# Shapes: everything that torch's printer (sympy's srepr) writes, but nothing that is costly to evaluate
_TEXT = re.compile(r"[\w '(),=+\-*/<>!.%]{1,1000}", re.ASCII)
_SYMBOL = re.compile(r"[a-z]{1,3}\d{1,9}")
_VALUES = ("oo", "int_oo", "true", "false", "True", "False")
_FUNCTIONS = re.compile(
    "Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|Where|ToFloat|"
    "TruncToInt|TruncToFloat|CeilToInt|FloorToInt|RoundToInt|RoundDecimal|IntTrueDiv|FloatTrueDiv|Identity|"
    "Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Abs|"
    "Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan"
)
_SYNTAX = (
    ast.Expression, ast.Load, ast.keyword, ast.Name, ast.Constant, ast.Call, ast.UnaryOp, ast.USub, ast.UAdd,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow,
    ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
_POWERS, _EXPONENT = 3, 8


def audited_program(path: str, data: bytes, trusted: Collection[str] = ()) -> bytes:
    """A new archive of the parts of a program, after refusing everything that could make torch run code of the file.

    Parameters
    ----------
    path : str
        How messages call it.
    data : bytes
        Its content.
    trusted : collection of str
        Further operators that may be called, as the program names them (``torch.ops.mylib.op.default``).

    Returns
    -------
    bytes
        The archive for torch to load.

    Raises
    ------
    UnreadableFileError
        Damaged, not a strict zip archive, or not written by torch.export.save.
    DecoderError
        It holds something that could run code, or calls operators that are not trusted.
    """
    try:
        members = _members(path, data)
        program = parse_json(members.pop(_PROGRAM))
        for name in _CONFIGS:
            config = parse_json(members.pop(name))
            _check_payloads(path, config, name.rpartition("/")[0], members)
            members[name] = json.dumps(config).encode()
        _check_program(path, program, trusted)
        program["guards_code"] = []
        program["graph_module"]["metadata"] = {}
        for node in program["graph_module"]["graph"]["nodes"]:
            node["metadata"] = {}
        members[_PROGRAM] = json.dumps(program).encode()
    except EmbridgeError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as e:
        raise UnreadableFileError.at(path, "a program of torch.export", e) from e
    return _written(members)


def _members(path: str, data: bytes) -> dict[str, bytes]:
    """The relevant members, by their names below the archive's only folder."""
    found = read_archive(data, compressed=False)
    folders = {name.partition("/")[0] for name in found}
    members = {name.partition("/")[2]: content for name, content in found.items()}
    if _PROGRAM not in members or len(folders) != 1 or len(members) != len(found):
        raise UnreadableFileError.at(path, "a program of torch.export", f"it lacks {_PROGRAM}, or has several folders")
    if members.get("byteorder", b"little") != b"little":
        raise UnreadableFileError.at(path, "a program of torch.export", "its tensors are not little-endian")
    for name in members:
        if not (name in (_PROGRAM, *_CONFIGS) or _TENSORS.fullmatch(name) or _LEFT_BEHIND.fullmatch(name)):
            raise _unsafe(path, f"the unexpected part {name!r}")
    _check_samples(path, members.get(_SAMPLES, b""))
    return {name: content for name, content in members.items() if not _LEFT_BEHIND.fullmatch(name)}


def _check_samples(path: str, data: bytes) -> None:
    """Sample inputs are never loaded; a file whose sample inputs are more than tensors is still refused as suspicious."""
    try:
        for name, content in (read_archive(data, compressed=False) if data else {}).items():
            operations = list(pickletools.genops(content)) if name.endswith("/data.pkl") else ()
            for operation, argument, _ in operations:
                named = operation.name in ("GLOBAL", "INST") and str(argument).partition(" ")[0] not in _SAMPLE_MODULES
                if named or operation.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                    raise ValueError(argument)
    except ValueError as e:
        raise _unsafe(path, "sample inputs that are more than tensors") from e


def _written(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:  # type: ignore[arg-type]
        for name, content in members.items():
            writer.write_bytes(name, content)
        writer.write_bytes(_SAMPLES, b"")
    return buffer.getvalue()


def _check_payloads(path: str, config: Any, folder: str, members: dict[str, bytes]) -> None:
    """Tensors must be stored as bytes, and an empty member must be an empty tensor: torch would create zeros of the stated size."""
    for payload in config["config"].values():
        if payload["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            raise _unsafe(path, "pickled tensors or objects")
        sizes = [size["as_int"] for size in payload["tensor_meta"]["sizes"]]
        if not members[f"{folder}/{payload['path_name']}"] and 0 not in sizes:
            raise UnreadableFileError.at(path, "a program of torch.export", f"the tensor {payload['path_name']!r} has no data")
    for name in config["config"]:
        if not _NAME.fullmatch(name):
            raise _unsafe(path, f"the name {name[:40]!r}")


def _check_program(path: str, program: Any, trusted: Collection[str]) -> None:
    nodes = program["graph_module"]["graph"]["nodes"]
    if len(nodes) > OPERATORS:
        raise DecoderError(f"{path!r} calls {len(nodes):,} operators; the limit is {OPERATORS:,}.")
    if not all(_is_implied(guard, program["range_constraints"]) for guard in program.get("guards_code") or ()):
        raise DecoderError(
            f"{path!r} has conditions on the sizes of its input (guards). Hint: export it with a fixed number of rows, or with a "
            "torch.export.Dim of its own for the rows."
        )
    foreign = {node["target"] for node in nodes if not is_tensor_operator(node["target"])} - set(trusted)
    if foreign:
        raise DecoderError.untrusted(path, sorted(foreign))
    for node in nodes:
        for argument in node["inputs"]:
            value = next(iter(argument["arg"].values()), None)
            if is_switched_on(argument["name"], value):
                raise DecoderError(
                    f"{path!r} was exported in training mode ({node['target']} with {argument['name']}={value}). "
                    "Hint: model.eval() before torch.export.export."
                )
    for key, value in _items(program):
        _check_item(path, key, value)


def _is_implied(guard: str, ranges: dict[str, Any]) -> bool:
    """True for a condition on the number of rows that the range of the program's only symbol already implies."""
    found = _ROWS.fullmatch(guard)
    if found is None or len(ranges) != 1:
        return False
    (span,) = ranges.values()
    bound = int(found[2])
    if found[1] == "<=":
        return span["max_val"] is not None and span["max_val"] <= bound
    return span["min_val"] is not None and span["min_val"] >= bound


def _check_item(path: str, key: str, value: Any) -> None:
    """One key of the program, at any depth, and its value."""
    if key in _REFUSED and value is not None:
        raise _unsafe(path, f"an argument of kind {key!r}")
    if key in _STATE and value is not None:
        raise DecoderError(f"{path!r} changes its own weights or input while it runs ({key}). Hint: export it in eval mode.")
    if key == "treespec_namedtuple_fields" and value:
        raise _unsafe(path, "named tuples")
    names = [key, *([value] if key in _NAMES and value is not None else value or () if key == "forward_arg_names" else ())]
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _unsafe(path, f"the name {str(name)[:40]!r}")
    if key == "expr_str" and not is_plain_shape(value):
        raise _unsafe(path, f"the expression {str(value)[:40]!r}")
    if key in ("in_spec", "out_spec") and not _is_plain_tree(parse_json(value)[1]):
        raise _unsafe(path, "inputs or outputs in custom classes")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON, except of `metadata`, which is dropped."""
    stack = [value]
    while stack:
        found = stack.pop()
        if isinstance(found, list):
            stack += found
        elif isinstance(found, dict):
            yield from found.items()
            stack += [v for k, v in found.items() if k != "metadata"]


def is_plain_shape(text: Any) -> bool:
    """True for an expression of numbers, symbols and arithmetic that is short, and cheap to evaluate.

    It is passed to ``sympy.sympify``, which is an ``eval``. It is ASCII text in one line: calls of listed functions by name,
    numbers, and symbols such as ``s77``; no attributes, subscripts or comprehensions; powers only of small constant exponents.
    """
    if not isinstance(text, str) or not _TEXT.fullmatch(text):
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    functions = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    powers = [p for node in nodes if (p := _exponent(node)) is not None]
    if len(powers) > _POWERS or not all(_is_small(power) for power in powers):
        return False
    return all(isinstance(node, _SYNTAX) and _is_plain_node(node, is_function=id(node) in functions) for node in nodes)


def _is_plain_node(node: ast.AST, *, is_function: bool) -> bool:
    if isinstance(node, ast.Name):
        return bool(_FUNCTIONS.fullmatch(node.id) if is_function else _SYMBOL.fullmatch(node.id) or node.id in _VALUES)
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return bool(_SYMBOL.fullmatch(node.value) or re.fullmatch(r"[\d.]{1,40}", node.value))
        return isinstance(node.value, int | float) and abs(node.value) < 1 << 64
    if isinstance(node, ast.keyword):
        return node.arg is not None
    return not is_function  # only names can be called


def _exponent(node: ast.AST) -> ast.AST | None:
    """The exponent of a power."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return node.right
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Pow":
        return node.args[1] if len(node.args) == 2 else node
    return None


def _is_small(node: ast.AST) -> bool:
    """True for a constant integer between -8 and 8."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Integer" and len(node.args) == 1:
        node = node.args[0]
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) <= _EXPONENT


def _is_plain_tree(spec: Any) -> bool:
    """True for nested tuples, lists and dictionaries."""
    context = spec["context"]
    keys = parse_json(context) if isinstance(context, str) else context
    is_plain = keys is None or (isinstance(keys, list) and all(isinstance(key, str) for key in keys))
    return spec["type"] in _SPECS and is_plain and all(map(_is_plain_tree, spec["children_spec"]))


def _unsafe(path: str, what: str) -> DecoderError:
    return DecoderError(
        f"{path!r} holds {what}, which could run code when it is opened, so it was not opened. "
        "Hint: export the model again with torch.export.save, from plain tensors and ATen operators."
    )
