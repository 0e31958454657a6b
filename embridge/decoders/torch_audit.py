"""What a torch.export archive holds, looked through before torch opens it.

``torch.export.load`` trusts its file (torch 2.13): it unpickles sample inputs, tensor subclasses and custom objects, evaluates
symbolic shapes as Python text, compiles guards into a function, calls any function that a name under ``torch`` leads to, and loads
compiled libraries. So nothing is let through but tensors stored as bytes, ATen operators, and expressions made of numbers.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Collection, Iterator
from typing import Any

import torch

from embridge.errors import DecoderError, UnreadableFileError

_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt|"
    r"data/(weights|constants)/(model_(weights|constants)_config\.json|(weight|tensor)_\d+)|extra/[\w.\-]+"
)
_SAMPLES = "data/sample_inputs/model.pt"
_TARGETS = re.compile(
    r"torch\.ops\.(aten|prims)\.\w+\.\w+|torch\.sym_(int|float|max|min|not|ite|sqrt|sum)|"
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|abs|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_FILES = ("torch.ops.aten.from_file.", "torch.ops.aten._from_file")
_NAME = re.compile(r"[A-Za-z0-9_.]*")
_NAMES = ("name", "as_name", "fqn", "parameter_name", "buffer_name", "tensor_constant_name", "path_name", "arg_name")
_REFUSED = ("as_operator", "as_custom_obj", "as_graph", "custom_obj", "as_complex")
_FUNCTIONS = re.compile(
    "Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|Where|ToFloat|"
    "TruncToInt|TruncToFloat|CeilToInt|FloorToInt|RoundToInt|RoundDecimal|IntTrueDiv|FloatTrueDiv|FloatPow|PowByNatural|Identity|"
    "Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Abs"
)
_PLAIN = (
    ast.Expression, ast.Load, ast.Tuple, ast.keyword, ast.Name, ast.Constant, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare,
    ast.Call, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Subscript, ast.Attribute,
)  # fmt: skip
_SPECS = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def audit_program(path: str, data: bytes, trusted: Collection[str] = ()) -> None:
    """Refuse an archive that could make torch run code of the file.

    Parameters
    ----------
    path : str
        How messages call it.
    data : bytes
        Its content.
    trusted : collection of str
        Operators beside ATen's that may be called, as the program names them (``torch.ops.mylib.op.default``).

    Raises
    ------
    UnreadableFileError
        Damaged, or not written by torch.export.save.
    DecoderError
        It holds something that could run code, or calls operators that are not trusted.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name.partition("/")[2]: name for name in archive.namelist()}
            if "models/model.json" not in members or len({name.partition("/")[0] for name in archive.namelist()}) != 1:
                raise UnreadableFileError.at(path, "a program of torch.export", "it lacks models/model.json")
            for member in members:
                if not _MEMBERS.fullmatch(member):
                    raise DecoderError.unsafe(path, f"the unexpected part {member!r}")
            for kind in ("weights", "constants"):
                config = json.loads(archive.read(members[f"data/{kind}/model_{kind}_config.json"]))
                _check_payloads(path, config)
            _check_samples(path, archive.read(members[_SAMPLES]) if _SAMPLES in members else b"")
            program = json.loads(archive.read(members["models/model.json"]))
    except (zipfile.BadZipFile, LookupError, TypeError, AttributeError, ValueError, EOFError, RecursionError) as e:
        if isinstance(e, DecoderError | UnreadableFileError):
            raise
        raise UnreadableFileError.at(path, "a program of torch.export", e) from e
    _check_program(path, program, trusted)


def _check_payloads(path: str, config: Any) -> None:
    for payload in config["config"].values():
        if payload["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            raise DecoderError.unsafe(path, "pickled tensors or objects")


def _check_samples(path: str, data: bytes) -> None:
    """torch falls back to plain pickle where its safe reader fails, so what its safe reader cannot read is refused."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as e:  # of whatever class the unpickler has for it
        raise DecoderError.unsafe(path, "sample inputs that are more than tensors") from e


def _check_program(path: str, program: Any, trusted: Collection[str]) -> None:
    foreign = set()
    for key, value in _items(program):
        if key in _REFUSED and value is not None:
            raise DecoderError.unsafe(path, f"an argument of kind {key!r}")
        if key == "treespec_namedtuple_fields" and value:
            raise DecoderError.unsafe(path, "named tuples")
        if (key in _NAMES and isinstance(value, str) and not _NAME.fullmatch(value)) or not _NAME.fullmatch(key):
            raise DecoderError.unsafe(path, f"the name {(str(value) if key in _NAMES else key)[:40]!r}")
        if key == "forward_arg_names" and not all(_NAME.fullmatch(name) for name in value or ()):
            raise DecoderError.unsafe(path, "names of arguments that are no names")
        if key == "expr_str" and not _is_plain(value, shapes=False):
            raise DecoderError.unsafe(path, f"the expression {str(value)[:40]!r}")
        if key == "guards_code" and not all(_is_plain(guard, shapes=True) for guard in value or ()):
            raise DecoderError.unsafe(path, "guards that are more than comparisons of sizes")
        if key in ("in_spec", "out_spec") and not _is_plain_tree(json.loads(value)[1]):
            raise DecoderError.unsafe(path, "inputs or outputs in classes of its own")
        if key == "target" and isinstance(value, str) and (value.startswith(_FILES) or not _TARGETS.fullmatch(value)):
            foreign.add(value)
    if foreign := sorted(foreign - set(trusted)):
        raise DecoderError.untrusted(path, foreign)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON, except of `metadata`, whose text torch only looks up."""
    stack = [value]
    while stack:
        found = stack.pop()
        if isinstance(found, list):
            stack += found
        elif isinstance(found, dict):
            yield from found.items()
            stack += [v for k, v in found.items() if k != "metadata"]


def _is_plain(text: Any, *, shapes: bool) -> bool:
    """True for an expression of numbers, symbols and arithmetic; with `shapes` also of the sizes of inputs."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError):
        return False
    for node in nodes:
        if not isinstance(node, _PLAIN) or (not shapes and isinstance(node, ast.Subscript | ast.Attribute)):
            return False
        if isinstance(node, ast.Attribute) and node.attr not in ("size", "stride", "shape"):
            return False
        if isinstance(node, ast.Call) and not (
            (isinstance(node.func, ast.Name) and _FUNCTIONS.fullmatch(node.func.id)) or isinstance(node.func, ast.Attribute)
        ):
            return False
        if isinstance(node, ast.Name) and "__" in node.id:
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.fullmatch(r"\w+", node.value):
            return False
    return True


def _is_plain_tree(spec: Any) -> bool:
    """True for nested tuples, lists and dictionaries."""
    return spec["type"] in _SPECS and all(map(_is_plain_tree, spec["children_spec"]))
